"""Models in a registry: the registry's own library brings one onto this machine, and its folder is read as any is.

::

    hf://OWNER/REPO[@REVISION]                a repository of the Hugging Face Hub
    mlflow:/NAME/VERSION, mlflow:/NAME@ALIAS  a registered model of MLflow
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kgtrace_store.errors import BadRequest, MissingExtra, RegistryUnavailable

_HUB = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^\s@]+))?")
_MLFLOW = re.compile(r"mlflow:/(?P<model>[^/@:]+(/[^/@]+|@[^/@]+))")


@dataclass(frozen=True, slots=True)
class OnHub:
    """A repository of the Hugging Face Hub."""

    repository: str
    """``OWNER/REPO``."""
    revision: str | None = None
    """Branch, tag or commit; None for the main branch."""

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class InMlflow:
    """A version of a registered model of MLflow."""

    model: str
    """``NAME/VERSION`` or ``NAME@ALIAS``."""

    def __str__(self) -> str:
        return f"mlflow:/{self.model}"


def address(text: str) -> OnHub | InMlflow | None:
    """Read an address; None for a text that is none, such as a path. Raises `BadRequest` for a malformed one."""
    if match := _HUB.fullmatch(text):
        return OnHub(match["repository"], match["revision"])
    if match := _MLFLOW.fullmatch(text):
        return InMlflow(match["model"])
    if text.startswith("hf:"):
        raise BadRequest(f"{text!r} is not hf://OWNER/REPO or hf://OWNER/REPO@REVISION")
    if text.startswith("mlflow:"):
        raise BadRequest(f"{text!r} is not mlflow:/NAME/VERSION or mlflow:/NAME@ALIAS")
    return None


def fetch(place: OnHub | InMlflow, folder: Path) -> tuple[Path, str]:
    """Bring a model onto this machine.

    Returns its folder, which is below ``folder`` or in the cache of the Hub, and its address, there with the commit.
    Raises `RegistryUnavailable` and `MissingExtra`.
    """
    if isinstance(place, OnHub):
        with asking_hub(place) as hub:
            snapshot = Path(hub.snapshot_download(place.repository, revision=place.revision))
        return snapshot, str(OnHub(place.repository, snapshot.name))
    try:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException
    except ImportError as e:
        raise MissingExtra("mlflow:/ needs MLflow: pip install 'kgtrace[mlflow]'") from e
    try:
        return Path(download_artifacts(f"models:/{place.model}", dst_path=str(folder))), str(place)
    except (MlflowException, OSError) as e:
        raise RegistryUnavailable(f"cannot use {place}: {e}") from e


@contextmanager
def asking_hub(place: OnHub) -> Iterator[Any]:
    """Give the Hub's library; its errors become `RegistryUnavailable`, its absence `MissingExtra`."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as e:
        raise MissingExtra("hf:// needs the Hub's library: pip install 'kgtrace[hub]'") from e
    # Of HTTP, by a library that differs between versions, of its cache, of missing tokens, and of malformed names.
    failures: Any = (*HfHubHTTPError.__bases__, OSError, HFValidationError)
    try:
        yield huggingface_hub
    except failures as e:
        raise RegistryUnavailable(f"cannot use {place}: {e}") from e
