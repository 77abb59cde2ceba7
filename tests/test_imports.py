"""What may import what, and what each package offers."""

import importlib
import subprocess
import sys

import pytest

DOORS = {
    "kgtrace_store": [
        "ExactSearch",
        "FaissSearch",
        "Generation",
        "GenerationStatus",
        "IndexRoot",
        "Manifest",
        "Milvus",
        "SearchIndex",
        "Vocabulary",
    ],
    "kgtrace_indexer": [
        "Aggregation",
        "Answer",
        "Attribution",
        "Attributor",
        "BuildConfig",
        "BuildReport",
        "Completions",
        "Direction",
        "Group",
        "ModelFile",
        "Order",
        "Ranking",
        "Restriction",
        "Seconds",
        "Sums",
        "TracInAnalyzer",
        "TripleTable",
        "append",
        "build",
        "open_attributor",
        "read_model",
        "read_training_folder",
        "read_triples",
        "read_vocabulary",
        "write_model",
    ],
    "kgtrace_server": ["AsyncClient", "Client", "LocalClient", "Service", "Settings", "create_app"],
}


@pytest.mark.parametrize("package", DOORS)
def test_public_api(package: str) -> None:
    """Each package offers exactly these names."""
    module = importlib.import_module(package)
    assert module.__all__ == DOORS[package]
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("kgtrace_store", ["torch", "fastapi", "faiss", "pymilvus", "numpy", "h5py"]),
        ("kgtrace_indexer", ["fastapi", "pydantic", "pykeen", "faiss"]),
        ("kgtrace_server.cli", ["torch", "fastapi", "pydantic", "faiss"]),
    ],
)
def test_what_an_import_does_not_bring(package: str, absent: list[str]) -> None:
    """Importing a package does not load what only some of its functions need."""
    program = f"import sys, {package}; print([m for m in {absent!r} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
