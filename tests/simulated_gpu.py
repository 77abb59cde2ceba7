"""A GPU that computes on the CPU: it counts kernels and waits, and refuses what a real one refuses.

Tensors that are made on device ``cuda`` while a `SimulatedGpu` is active hold their numbers in memory, and say that
they are on ``cuda:0``. So the code under test takes the way that it takes on a GPU, and its answers can be compared.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from kgtrace_indexer import pieces, threads
from kgtrace_indexer.building import lanes

CUDA = torch.device("cuda", 0)

_WAITS = {
    "_local_scalar_dense", "_unique2", "bincount", "equal", "linalg_cholesky", "linalg_eigh", "masked_select",
    "nonzero", "unique_consecutive", "unique_dim",
}  # fmt: skip
"""Operations whose caller waits for the numbers on the GPU."""
_NO_KERNEL = {
    "_local_scalar_dense", "_reshape_alias", "_unsafe_view", "detach", "empty", "empty_like", "empty_strided",
    "lift_fresh", "new_empty", "new_empty_strided",
}  # fmt: skip
"""Operations that launch none, besides views."""
_INDEXED = {"index", "index_put", "index_put_"}
"""Operations that take indices of the CPU, too, and masks: they wait for either."""
_BETWEEN_DEVICES = {"_to_copy", "copy_"}


class OnGpu(Tensor):
    """A tensor of the simulated GPU; `numbers` are on the CPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "OnGpu":
        """Wrap a tensor of the CPU."""
        with torch.inference_mode(numbers.is_inference()):
            tensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, numbers.size(), strides=numbers.stride(), storage_offset=numbers.storage_offset(),
                dtype=numbers.dtype, device="meta",
            )  # fmt: skip
        tensor.numbers = numbers
        return tensor

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The GPU; to torch itself, which may be without CUDA, the tensor has no place at all."""
        return CUDA

    def __getitem__(self, index: Any) -> Tensor:
        """Turn a list into a tensor of the CPU; torch would make it one without numbers."""
        return super().__getitem__(torch.tensor(index) if isinstance(index, list) else index)

    def untyped_storage(self) -> Any:
        """Return the numbers' storage."""
        return self.numbers.untyped_storage()

    def tolist(self) -> Any:
        """Copy the numbers to the CPU, as a tensor of a GPU does."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the GPU that is active."""
        raise RuntimeError(f"{func} after the simulated GPU is gone, or on a thread that does not have it")


class SimulatedGpu(TorchDispatchMode):
    """Counts kernels and waits by their operations."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def reset(self) -> None:
        """Count from 0."""
        self.kernels.clear()
        self.waits.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, on the CPU's tensors or on the GPU's; raise `RuntimeError` if it has both."""
        kwargs = dict(kwargs or {})
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                return func.decompose(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::").removeprefix("prims::")
        tensors = [arg for arg in tree_flatten((args, kwargs))[0] if isinstance(arg, Tensor)]
        ours = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
        wanted = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        if not ours and wanted not in ("cuda", "meta"):
            return func(*args, **kwargs)
        others = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and tensor.dim()]
        indexes = name in _INDEXED and isinstance(args[0], OnGpu) and not any(t.is_floating_point() for t in others)
        if ours and others and name not in _BETWEEN_DEVICES and not indexes:
            raise RuntimeError(f"{func}: some tensors are on the GPU, others are not")
        to_cpu = wanted == "cpu" or (name == "copy_" and not isinstance(args[0], OnGpu))
        asynchronous = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        copies = name in _BETWEEN_DEVICES and (to_cpu or len(ours) < len(tensors))
        self._count(func, name, tensors, copies=copies, asynchronous=asynchronous)
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        known = {id(tensor.numbers): tensor for tensor in ours}
        plain = tree_map(lambda arg: arg.numbers if isinstance(arg, OnGpu) else arg, (args, kwargs))
        lazy = {"_conj": torch.conj_physical, "_neg_view": torch.neg}  # what torch makes of it later is not seen here
        result = lazy.get(name, func)(*plain[0], **plain[1])
        if to_cpu:
            return result

        def wrapped(out: Any) -> Any:
            if not isinstance(out, Tensor):
                return out
            return known[id(out)] if id(out) in known else OnGpu(out)

        return tree_map(wrapped, result)

    def _count(self, func: Any, name: str, tensors: list[Tensor], *, copies: bool, asynchronous: bool) -> None:
        by_mask = name in _INDEXED and any(t.dtype == torch.bool or not isinstance(t, OnGpu) for t in tensors[1:])
        lengths = name == "repeat_interleave" and func._overloadname == "Tensor"
        strided = any(isinstance(tensor, OnGpu) and not tensor.is_contiguous() for tensor in tensors)
        if name in _WAITS or by_mask or lengths or (copies and not asynchronous):
            self.waits[name] += 1
        elif copies and strided:
            self.kernels["contiguous"] += 1
        elif not (func.is_view or name in _NO_KERNEL or copies):
            self.kernels[name] += 1


class _Stream:
    """A stream, or the context of a stream: everything is computed at once."""

    def __init__(self, *of: Any) -> None: ...

    def wait_stream(self, other: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


class _Event:
    def __init__(self, gpu: SimulatedGpu) -> None:
        self._gpu = gpu

    def record(self) -> None: ...

    def synchronize(self) -> None:
        """Count a wait."""
        self._gpu.waits["synchronize"] += 1


class _Inline:
    """Calls functions on the thread that submits them: no other one has the GPU."""

    def __init__(self, *of: Any, initializer: Any = None, initargs: Sequence[Any] = ()) -> None: ...

    def submit(self, function: Any, *args: Any) -> Future[Any]:
        """Call a function."""
        future = Future[Any]()
        try:
            future.set_result(function(*args))
        except Exception as e:
            future.set_exception(e)
        return future

    def map(self, function: Any, items: Any) -> Iterator[Any]:
        """Call a function for each item."""
        return map(function, items)

    def shutdown(self, *, cancel_futures: bool = False) -> None: ...


def _empty(*shape: Any, pin_memory: bool = False, **options: Any) -> Tensor:
    return _torch_empty(*shape, **options)


_torch_empty = torch.empty


class _FirstGpu(TorchFunctionMode):
    """Gives the GPU its number, which a torch without CUDA does not know."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function with ``cuda:0`` in place of ``cuda``."""
        args, kwargs = tree_map(
            lambda arg: CUDA if isinstance(arg, torch.device) and arg.type == "cuda" else arg, (args, kwargs or {})
        )
        made = func in (torch.tensor, torch.as_tensor) and not any(isinstance(arg, Tensor) for arg in args)
        if made and kwargs.get("device") == CUDA:  # which no mode sees
            return func(*args, **kwargs | {"device": "cpu"}).to(CUDA)
        return func(*args, **kwargs)


@contextmanager
def simulated_gpu(free: int = 1 << 37) -> Iterator[SimulatedGpu]:
    """Let torch see a GPU with so many free bytes, on the calling thread; kgtrace then computes on that alone."""
    gpu = SimulatedGpu()
    pieces.recently_free.cache_clear()
    with (
        patch.object(torch.cuda, "_lazy_init", lambda: None),
        patch.object(torch.cuda, "memory_reserved", lambda device=None: 0),
        patch.object(torch.cuda, "memory_allocated", lambda device=None: 0),
        patch.object(torch.cuda, "Stream", _Stream),
        patch.object(torch.cuda, "Event", lambda: _Event(gpu)),
        patch.object(torch.cuda, "stream", _Stream),
        patch.object(torch.cuda, "current_stream", _Stream),
        patch.object(torch, "empty", _empty),
        patch.object(threads, "ThreadPoolExecutor", _Inline),
        patch.object(lanes, "ThreadPoolExecutor", _Inline),
        patch.object(Tensor, "pin_memory", lambda tensor: tensor),
        patch.object(Tensor, "record_stream", lambda tensor, stream: None),
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "mem_get_info", lambda device=None: (free, free)),
        _FirstGpu(),
        gpu,
    ):
        yield gpu
