"""Workers that are the ranks of a torchrun (https://docs.pytorch.org/docs/stable/elastic/run.html).

All ranks are given the same command. Rank 0 builds, and encodes parts itself; the others wait for its task and assist.
They talk through torchrun's own key-value store:

==============  ============================================================================
``task``        JSON: what `Task` holds but for the model, and all parts
``next``        a counter: who increments it has the part of the number it had
``reports``     a counter of reports
``report-N``    JSON: a part and its file, an error, or that a rank has left
==============  ============================================================================

When a rank dies, torchrun ends the others, and with ``--max-restarts`` starts all of them again: the build then goes on
from the parts that were finished.
"""

import json
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgtrace_indexer.building.workers import Encoder, Task, use_gpu
from kgtrace_indexer.inputs.model_file import ModelFile
from kgtrace_store import errors

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

_PATIENCE = timedelta(days=1)
"""How long ranks wait for each other: rank 0 chooses directions first, and torchrun ends those whose peers are dead."""


def rank() -> int | None:
    """Return this process's rank among several of torchrun's, or None."""
    return int(os.environ["RANK"]) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


class TorchrunWorkers:
    """All ranks, as rank 0 has them."""

    def encode(self, task: Task, parts: Sequence[range]) -> Iterator[tuple[range, str]]:
        """Yield parts as they are finished, by whichever rank."""
        store = _store()
        use_gpu(int(os.environ.get("LOCAL_RANK", "0")))
        said = {
            "configuration": dict(task.configuration),
            "folder": str(task.folder),
            "batch_size": task.batch_size,
            "device": task.device,
            "parts": [[part.start, part.stop] for part in parts],
        }
        store.set("task", json.dumps(said))
        others, reports = int(os.environ["WORLD_SIZE"]) - 1, 0
        encoder: Encoder | None = None
        number = _next(store)
        while number < len(parts) or others:
            if number < len(parts):
                encoder = encoder or Encoder(task)
                yield parts[number], encoder.encode(parts[number])
                number = _next(store)
            while others and (reports < store.add("reports", 0) or number >= len(parts)):
                reports += 1
                if (found := _read(store, reports, parts)) is None:
                    others -= 1
                else:
                    yield found


def assist(model: ModelFile) -> None:
    """Encode parts of rank 0's build until none is left. `model` is that of the build."""
    store = _store()
    use_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    said = json.loads(store.get("task"))
    parts = [range(*ends) for ends in said.pop("parts")]
    task = Task(model, **{**said, "folder": Path(said["folder"])})
    encoder: Encoder | None = None
    try:
        while (number := _next(store)) < len(parts):
            encoder = encoder or Encoder(task)
            _report(store, {"part": number, "file": encoder.encode(parts[number])})
    except errors.KgtraceError as e:
        _report(store, {"error": type(e).__name__, "message": str(e)})
    _report(store, {"left": True})


def _store() -> "Store":
    """Return the store of this attempt, which torchrun holds, or where it does not rank 0."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined] # not in every build of torch

    held = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=rank() == 0 and not held, timeout=_PATIENCE)
    return PrefixStore(f"kgtrace-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _next(store: "Store") -> int:
    return int(store.add("next", 1)) - 1


def _report(store: "Store", report: dict[str, Any]) -> None:
    store.set(f"report-{store.add('reports', 1)}", json.dumps(report))


def _read(store: "Store", number: int, parts: Sequence[range]) -> tuple[range, str] | None:
    """Return a part that another rank has encoded, or None if it has left. Raises what it raised."""
    report = json.loads(store.get(f"report-{number}"))
    if "error" in report:
        raise getattr(errors, report["error"])(report["message"])
    return None if "left" in report else (parts[report["part"]], report["file"])
