"""What a generation says about itself, and the checksums that hold it to its word."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from kgtrace_store import durable, layout
from kgtrace_store.errors import CorruptGeneration, SchemaTooNew, SchemaTooOld

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and checksum of one file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Read a whole regular file, in blocks.

        Raises :class:`CorruptGeneration` when it is missing, unreadable or anything but a regular file.
        """
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise CorruptGeneration(f"{path} is not a regular file")
            with path.open("rb") as f:
                digest = hashlib.file_digest(f, "sha256").hexdigest()
                return cls(f.tell(), digest)
        except FileNotFoundError as e:
            raise CorruptGeneration(f"{path} is missing") from e
        except OSError as e:
            raise CorruptGeneration(f"cannot read {path}: {e.strerror}") from e


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of ``manifest.json``. On disk it carries a checksum of itself besides these fields."""

    generation: str
    """The id, which is also the folder's name."""
    created_at: str
    """When it was committed: RFC 3339, UTC."""
    fingerprint: str
    """Identifies model, triples, labels, names, configuration and schema version; if equal, so is the content."""
    configuration: Mapping[str, Any]
    """How it was built: loss, layers, projection and so on, as JSON."""
    counts: Mapping[str, int]
    """How many triples, entities, relations and so on it holds."""
    files: Mapping[str, FileRecord]
    """Every other file of the folder, by its path inside, with ``/``."""
    provenance: Mapping[str, Any]
    """Where it came from: names of input files, versions, durations, as JSON."""
    schema_version: int = layout.SCHEMA_VERSION
    """Version of the layout."""

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` and force it to disk. Raises :class:`StorageFailed`."""
        fields = asdict(self)
        document = {**fields, "checksum": _checksum(fields)}
        durable.write_file(folder / layout.MANIFEST, json.dumps(document, indent=2).encode() + b"\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``manifest.json``; fields it does not know are passed over, as later versions may add some.

        Raises :class:`CorruptGeneration` for a missing, malformed or altered one, :class:`SchemaTooNew` and
        :class:`SchemaTooOld`.
        """
        path = folder / layout.MANIFEST
        try:
            data = path.read_bytes()
            document = json.loads(data, parse_constant=_refuse_constant)
        except FileNotFoundError as e:
            raise CorruptGeneration(f"{path} is missing") from e
        except OSError as e:
            raise CorruptGeneration(f"cannot read {path}: {e.strerror}") from e
        except (ValueError, RecursionError) as e:
            raise CorruptGeneration(f"{path} is not JSON: {e}") from e
        if not isinstance(document, dict):
            raise CorruptGeneration(f"{path} holds a {type(document).__name__}, expected an object")
        version = document.get("schema_version")
        if type(version) is not int or version < 1:
            raise CorruptGeneration(f"{path}: schema_version is {version!r}, expected a positive integer")
        if version > layout.SCHEMA_VERSION:
            raise SchemaTooNew(
                f"{path} has schema version {version}, this kgtrace reads up to {layout.SCHEMA_VERSION}: "
                "upgrade kgtrace or rebuild the index"
            )
        if version < layout.SCHEMA_VERSION:
            raise SchemaTooOld(
                f"{path} has schema version {version}, this kgtrace reads {layout.SCHEMA_VERSION}: rebuild the index "
                "with kgtrace build"
            )
        recorded = document.pop("checksum", None)
        computed = _checksum(document)
        if recorded != computed:
            raise CorruptGeneration(f"{path} was altered: its checksum is {computed}, it says {recorded}")
        if not data.endswith(b"\n"):
            raise CorruptGeneration(f"{path} is cut short: it does not end with a line feed")
        return cls(
            generation=_field(path, document, "generation", str),
            created_at=_field(path, document, "created_at", str),
            fingerprint=_field(path, document, "fingerprint", str),
            configuration=_field(path, document, "configuration", dict),
            counts=_field(path, document, "counts", dict),
            files={
                _checked_name(path, name): _file_record(path, name, record)
                for name, record in _field(path, document, "files", dict).items()
            },
            provenance=_field(path, document, "provenance", dict),
            schema_version=version,
        )


def _checksum(fields: Mapping[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _field(path: Path, document: Mapping[str, Any], name: str, kind: type) -> Any:
    value = document.get(name)
    if not isinstance(value, kind):
        raise CorruptGeneration(f"{path}: {name} is a {type(value).__name__}, expected a {kind.__name__}")
    return value


def _checked_name(path: Path, name: str) -> str:
    """A manifest must not make its reader look at files outside of the generation."""
    parts = PurePosixPath(name).parts
    if not parts or name != "/".join(parts) or ".." in parts or "\0" in name or parts[0] == "/":
        raise CorruptGeneration(f"{path}: file name {name!r} is not a plain path inside the generation")
    if name == layout.MANIFEST:
        raise CorruptGeneration(f"{path} lists itself")
    return name


def _file_record(path: Path, name: str, record: Any) -> FileRecord:
    match record:
        case {"bytes": int(size), "sha256": str(digest)} if size >= 0 and _SHA256.fullmatch(digest):
            return FileRecord(size, digest)
    raise CorruptGeneration(f"{path}: size and checksum of {name!r} are {record!r}")


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
