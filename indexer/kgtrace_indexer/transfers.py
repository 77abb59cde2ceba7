"""Copies between the CPU and a device that neither waits for; on the CPU there is nothing to copy."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Return an array as a tensor on a device; operations that follow on the current stream see the numbers."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, np.ndarray]]:
    """Start to copy tensors of one device to the CPU, on a stream of their own; return a function that waits for them.

    Copies begin when the current stream has computed the tensors; what it computes next goes on beside them. Tensors
    that are parts of one are copied together, and come as parts of one array.
    """
    copies = dict(tensors)
    device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
    copied: torch.cuda.Event | None = None
    if device.type == "cuda":
        copying, copied = torch.cuda.Stream(device), torch.cuda.Event()
        copying.wait_stream(torch.cuda.current_stream(device))
        wholes: dict[int, Tensor] = {}
        with torch.cuda.stream(copying):
            for name, tensor in tensors.items():
                storage = tensor.untyped_storage()
                if (place := storage.data_ptr()) not in wholes:
                    whole = tensor.as_strided((storage.nbytes() // tensor.element_size(),), (1,), 0)
                    wholes[place] = torch.empty(whole.shape, dtype=tensor.dtype, pin_memory=True)
                    wholes[place].copy_(whole, non_blocking=True)
                    tensor.record_stream(copying)  # its memory is not used again before it is copied
                copies[name] = wholes[place].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            copied.record()

    def arrays() -> dict[str, np.ndarray]:
        if copied is not None:
            copied.synchronize()
        return {name: tensor.numpy() for name, tensor in copies.items()}

    return arrays
