"""The generations that an index root holds, as the command line and the service list them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kgtrace_server.schema.operation import Agreement, GenerationInfo
from kgtrace_store import layout

if TYPE_CHECKING:
    from kgtrace_store.generations import GenerationStatus, IndexRoot


def generations(root: "IndexRoot") -> list[GenerationInfo]:
    """Describe every generation, oldest first. Raises `CorruptGeneration` for a foreign ``CURRENT``."""
    return [_described(status, root.path / layout.GENERATIONS / status.id) for status in root.generations()]


def _described(status: "GenerationStatus", folder: Path) -> GenerationInfo:
    manifest = status.manifest
    if manifest is None:
        return GenerationInfo(id=status.id, live=status.live, problem=status.problem)
    return GenerationInfo(
        id=status.id,
        live=status.live,
        problem=status.problem,
        built_at=manifest.created_at,
        model=manifest.provenance.get("interaction"),
        counts=dict(manifest.counts),
        configuration=dict(manifest.configuration),
        bytes=sum(record.bytes for record in manifest.files.values()),
        agreement=_agreement(folder / layout.GATE),
    )


def _agreement(gate: Path) -> Agreement | None:
    """Read the gate's verdict; None where there was nothing to agree with, or no verdict that can be read."""
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
