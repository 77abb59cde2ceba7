"""Addresses of models in registries."""

import sys
from pathlib import Path

import pytest

from kgtrace_indexer.inputs.registries import InMlflow, OnHub, address, fetch
from kgtrace_store.errors import BadRequest, MissingExtra


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("hf://me/conve", OnHub("me/conve")),
        ("hf://me/conve-1.0_b@v1.0", OnHub("me/conve-1.0_b", "v1.0")),
        ("hf://me/conve@refs/pr/1", OnHub("me/conve", "refs/pr/1")),
        ("mlflow:/My model/3", InMlflow("My model/3")),
        ("mlflow:/conve@champion", InMlflow("conve@champion")),
        ("folder/model.pt", None),
        ("/hf://me/conve", None),
        ("hf", None),
    ],
)
def test_addresses_are_told_from_paths(text: str, place: OnHub | InMlflow | None) -> None:
    """And written as they are read."""
    assert address(text) == place
    assert place is None or str(place) == text


@pytest.mark.parametrize(
    "text", ["hf://conve", "hf://me/conve/trained_model.pkl", "hf://me/conve@", "hf:me/conve", "hf://me /conve"]
)
def test_a_malformed_address_of_the_hub_is_refused(text: str) -> None:
    """Naming the form that it should have, instead of a path that is not there."""
    with pytest.raises(BadRequest, match="is not hf://OWNER/REPO"):
        address(text)


@pytest.mark.parametrize("text", ["mlflow:/conve", "mlflow:/conve/1/model", "mlflow://conve/1", "mlflow:conve/1"])
def test_a_malformed_address_of_mlflow_is_refused(text: str) -> None:
    """The same."""
    with pytest.raises(BadRequest, match="is not mlflow:/NAME/VERSION"):
        address(text)


@pytest.mark.parametrize(
    ("place", "library", "extra"), [(OnHub("a/b"), "huggingface_hub", "hub"), (InMlflow("a/1"), "mlflow", "mlflow")]
)
def test_without_the_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: OnHub | InMlflow, library: str, extra: str
) -> None:
    """The message says what to install."""
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'kgtrace\[{extra}\]'"):
        fetch(place, tmp_path)
