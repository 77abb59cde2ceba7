"""NumPy arrays and JSON objects in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from kgtrace_store.errors import UnreadableModel

_LONGEST_JSON = 2**20


def read_array(path: Path, kinds: str) -> np.ndarray:
    """Read a two-dimensional array of one of NumPy's `kinds` of numbers, without unpickling anything.

    Raises `UnreadableModel` for a file that is missing, damaged or holds something else.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # takes no pickles, and no sizes beyond the file's
    except FileNotFoundError:
        raise UnreadableModel(f"{path} is missing") from None
    except (OSError, ValueError, EOFError) as e:
        raise UnreadableModel(f"{path} is truncated, or no array of numpy.save: {' '.join(str(e).split())}") from e
    if array.ndim != 2 or array.dtype.kind not in kinds:
        raise UnreadableModel(f"{path} holds {array.dtype} of shape {array.shape}, not a table of numbers")
    return array


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if there is no such file. Raises `UnreadableModel` for anything else."""
    try:
        with path.open("rb") as f:
            content = json.loads(f.read(_LONGEST_JSON))
    except FileNotFoundError:
        return None
    except OSError as e:
        raise UnreadableModel(f"cannot read {path}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise UnreadableModel(f"{path} is not JSON: {e}") from e
    if not isinstance(content, dict):
        raise UnreadableModel(f"{path} holds no JSON object")
    return content
