"""The generations that an index root holds, as the command line and the service list and describe them."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgtrace_server.schema.operation import Agreement, GenerationInfo, IndexInfo
from kgtrace_store import layout

if TYPE_CHECKING:
    from kgtrace_store.generations import GenerationStatus, IndexRoot
    from kgtrace_store.manifest import Manifest


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


def describe(manifest: "Manifest") -> IndexInfo:
    """Describe the index of a generation."""
    built = datetime.fromisoformat(manifest.created_at)
    configuration = dict(manifest.configuration)
    return IndexInfo(
        generation=manifest.generation,
        built_at=manifest.created_at,
        age_seconds=max(0.0, (datetime.now(UTC) - built).total_seconds()),
        fingerprint=manifest.fingerprint,
        model=manifest.provenance.get("interaction"),
        summed=manifest.provenance.get("summed", []),
        loss=configuration.get("loss"),
        layers=configuration.get("layers"),
        projection=_projection(configuration),
        sample_rate=configuration.get("sample_rate", 1.0),
        counts=dict(manifest.counts),
        configuration=configuration,
    )


def _projection(configuration: Mapping[str, Any]) -> dict[str, Any]:
    kind = configuration.get("projection", "pca")
    fields = {"pca": ("dim", "landmarks", "seed"), "none": ()}.get(kind, ("dim", "seed"))
    return {"type": kind} | {name: configuration.get(name) for name in fields}
