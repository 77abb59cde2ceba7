"""What may import what, and what each package offers."""

import ast
import importlib
import inspect
import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["kgtrace", "kgtrace_store", "kgtrace_indexer", "kgtrace_server"])
def test_public_names_are_there_and_typed(package: str) -> None:
    """Every name that a package offers can be imported, and type checkers know the same names."""
    module = importlib.import_module(package)
    typed = [
        alias.asname
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    ]
    assert module.__all__ == sorted(typed)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("kgtrace", ["torch", "fastapi", "faiss", "pymilvus", "numpy", "h5py"]),
        ("kgtrace_store", ["torch", "fastapi", "faiss", "pymilvus", "numpy", "h5py"]),
        ("kgtrace_indexer.building.build", ["fastapi", "pydantic", "pykeen", "faiss", "pyoxigraph"]),
        ("kgtrace_server.cli.parser", ["torch", "fastapi", "pydantic", "faiss", "networkx"]),
    ],
)
def test_what_an_import_does_not_bring(package: str, absent: list[str]) -> None:
    """Importing a package does not load what only some of its functions need."""
    program = f"import sys, {package}; print([m for m in {absent!r} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
