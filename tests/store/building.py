"""Builds of small generations for the tests of index roots."""

from kgtrace_store import durable
from kgtrace_store.generations import IndexRoot
from kgtrace_store.staging import Staging

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def fill(staging: Staging, content: bytes = b"content") -> str:
    durable.write_file(staging.path / "top.txt", content)
    durable.make_folder(staging.path / "sub" / "deep")
    durable.write_file(staging.path / "sub" / "deep" / "empty", b"")
    return staging.commit(configuration={"dim": 4}, counts={"triples": 2}, provenance={"by": "test"})


def build(root: IndexRoot, fingerprint: str, *, publish: bool = True) -> str:
    with root.stage(fingerprint) as staging:
        id_ = fill(staging, fingerprint.encode())
    if publish:
        root.publish(id_)
    return id_
