"""What an index root holds, as the command line and the service list it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgtrace_store import layout

if TYPE_CHECKING:
    from kgtrace_server.wire import Agreement, Generation
    from kgtrace_store.generations import IndexRoot
    from kgtrace_store.manifest import Manifest

_UNREADABLE: Mapping[str, Any] = dict.fromkeys(("built_at", "model", "counts", "configuration", "bytes", "agreement"))


def generations(root: "IndexRoot") -> "list[Generation]":
    """Describe every generation, oldest first. Raises `CorruptGeneration` for a foreign ``CURRENT``."""
    return [
        {
            "id": status.id,
            "live": status.live,
            "problem": status.problem,
            **_facts(root.path / layout.GENERATIONS / status.id, status.manifest),  # type: ignore[typeddict-item]
        }
        for status in root.generations()
    ]


def _facts(folder: Path, manifest: "Manifest | None") -> Mapping[str, Any]:
    if manifest is None:
        return _UNREADABLE
    return {
        "built_at": manifest.created_at,
        "model": manifest.provenance.get("interaction"),
        "counts": dict(manifest.counts),
        "configuration": dict(manifest.configuration),
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "agreement": _agreement(folder / layout.GATE),
    }


def _agreement(gate: Path) -> "Agreement | None":
    """Read what the gate found; None where there was nothing to agree with, or no verdict that can be read."""
    try:
        verdict = json.loads(gate.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    match verdict:
        case {
            "agreement": {
                "generation": str(other),
                "overlap": float() | int() | None as overlap,
                "top_k": int(top_k),
                "triples": int(triples),
            }
        }:
            return {"generation": other, "overlap": overlap, "top_k": top_k, "triples": triples}
    return None
