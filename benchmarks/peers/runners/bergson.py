"""bergson: double-sided projection in hooks, memory-mapped gradients, torch or FAISS search.

*Default*: every tensor of the network is a trainable parameter, and the gradients are searched by its own matrix
product. *Tuned*: only the tracked weight is trainable, and FAISS searches.
"""

from pathlib import Path
from time import perf_counter

import faiss
import numpy as np
import torch
from torch import Tensor, nn

if not hasattr(faiss, "GpuIndex"):
    faiss.GpuIndex = faiss.IndexShards  # looked up on CPU, too; a plain index is not one of these

from bergson import Attributor, FaissConfig, GradientProcessor
from bergson.collector.gradient_collectors import StreamingGradientCollector
from bergson.data import create_index, load_gradients

from benchmarks.peers.protocol import Layer, Request, Stored, folder_bytes, run


class Sequences(nn.Module):
    """The layer on samples that are sequences of length 1, which is what bergson's hooks expect."""

    def __init__(self, layer: Layer, everything_trainable: bool) -> None:
        super().__init__()
        self.layer = layer
        if everything_trainable:
            for name, buffer in list(layer.named_buffers()):
                delattr(layer, name)
                layer.register_parameter(name, nn.Parameter(buffer))

    def forward(self, inputs: Tensor, tail: Tensor) -> Tensor:
        """Return Σℓ."""
        return self.layer.losses(self.layer(inputs[:, None]).squeeze(1), tail).sum()


class Bergson(Stored):
    """Gradients collected by hooks into an index folder."""

    package = "bergson"

    def prepare(self) -> None:
        """Wrap the layer."""
        self.network = Sequences(self.problem.layer, not self.request.options["tuned"])
        self.side = int(self.request.options["dim"] ** 0.5)
        self.processor = GradientProcessor(projection_dim=self.side, projection_type="rademacher")

    def gradients(self, inputs: Tensor, tail: Tensor) -> dict[str, Tensor]:
        """Return the projected gradients of a batch."""
        collector = StreamingGradientCollector(
            model=self.network, processor=self.processor, target_modules={"layer.fc"}, dtype=torch.float32
        )
        with collector:
            self.network(inputs, tail).backward()
            self.network.zero_grad()
        return dict(collector.mod_grads)

    def build(self, count: int, batch_size: int) -> None:
        """Write the index folder."""
        root = Path(self.request.folder) / f"index-{count}-{batch_size}"
        store = create_index(root, count, {"layer.fc": self.side**2}, np.float32)
        start = 0
        for inputs, tail in self.problem.train.first(count).batches(batch_size):
            store[start : start + len(tail)] = self.gradients(inputs, tail)["layer.fc"].numpy()
            start += len(tail)
        self.finish(root, store)

    def finish(self, root: Path, store: np.memmap) -> None:
        """Make a filled index folder searchable."""
        store.flush()
        self.processor.save(root)
        self.root = root
        self.attributor = Attributor(root, faiss_cfg=FaissConfig() if self.request.options["tuned"] else None)

    def grow(self, count: int) -> None:
        """Fill a larger index folder with copies."""
        vectors = np.array(load_gradients(self.root))
        root = Path(self.request.folder) / f"index-{count}-copies"
        store = create_index(root, count, {"layer.fc": self.side**2}, np.float32)
        for start in range(0, count, len(vectors)):
            store[start : start + len(vectors)] = vectors[: count - start]
        self.finish(root, store)

    def bytes(self) -> int:
        """Return the size of the folder: gradients, and FAISS's copy of them."""
        return folder_bytes(self.root)

    def search(self, start: int, count: int, top_k: int) -> tuple[np.ndarray, float]:
        """Compute the query's gradient and search."""
        query = self.gradients(*self.problem.test[start : start + count])
        begun = perf_counter()
        _, ids = self.attributor.search(query, top_k)
        return ids.numpy(), perf_counter() - begun


def choose(request: Request) -> Bergson:
    """There is one method."""
    return Bergson(request)


if __name__ == "__main__":
    run(choose)
