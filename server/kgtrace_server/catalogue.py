"""What an index root holds, as the command line and the service list it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kgtrace_server.wire import Generation
    from kgtrace_store.generations import IndexRoot
    from kgtrace_store.manifest import Manifest

_UNREADABLE: Mapping[str, Any] = dict.fromkeys(("built_at", "model", "counts", "configuration", "bytes"))


def generations(root: "IndexRoot") -> "list[Generation]":
    """Describe every generation, oldest first. Raises `CorruptGeneration` for a foreign ``CURRENT``."""
    return [
        {
            "id": status.id,
            "live": status.live,
            "problem": status.problem,
            **(_UNREADABLE if status.manifest is None else _facts(status.manifest)),  # type: ignore[typeddict-item]
        }
        for status in root.generations()
    ]


def _facts(manifest: "Manifest") -> dict[str, Any]:
    return {
        "built_at": manifest.created_at,
        "model": manifest.provenance.get("interaction"),
        "counts": dict(manifest.counts),
        "configuration": dict(manifest.configuration),
        "bytes": sum(record.bytes for record in manifest.files.values()),
    }
