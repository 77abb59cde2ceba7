"""``kgtrace demo``: from nothing to an answer on UMLS, a small medical knowledge graph in PyKEEN's wheel."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgtrace_server.cli.progress import Progress
from kgtrace_server.settings import Settings
from kgtrace_store.errors import MissingExtra

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = Path("kgtrace-demo")
"""Where model and index go, below the working directory."""

TRIPLE = ("alga", "interacts_with", "human")
"""The prediction explained: not among the training triples, and ranked first by the trained model."""

_LABEL_SMOOTHING = 0.1
_LEARNING_RATE = 0.003
_BATCH = 128


def run(*, once: bool) -> None:
    """Train, index, serve, ask over HTTP, print the answer, and go on serving until interrupted unless `once`.

    Raises
    ------
    MissingExtra
        PyKEEN or FAISS is not installed.
    """
    from kgtrace_indexer import BuildConfig, build, open_index, read_model, read_training_folder
    from kgtrace_server.cli import render
    from kgtrace_server.client import Client
    from kgtrace_server.http import serving
    from kgtrace_server.http.app import create_app
    from kgtrace_server.service import Service

    model, root = FOLDER / "model", FOLDER / "index"
    _say(f"1. Training a ConvE on UMLS into {model}")
    with Progress("epochs") as progress:
        train_umls(model, progress=lambda done, total: progress("training", done, total))
    _say(f"2. Indexing its training triples into {root}")
    vocabulary, triples = read_training_folder(model / "training_triples")
    with Progress("triples") as progress:
        report = build(root, read_model(model), vocabulary, triples, BuildConfig(), progress=progress)
    _say(f"   generation {report.generation}: {report.triples:,} triples, {report.bytes / 1e6:.1f} MB")
    settings, listening = _listen(root)
    server = serving.server(create_app(Service(open_index(root)), settings), settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        address = serving.address(listening)
        _say(f"3. Serving at {address}; asking POST /v1/influences why {' '.join(TRIPLE)}\n")
        with Client(address) as client:  # whose connection waits until the server accepts
            _say(render.influences(client.influences([TRIPLE])))
        if not once:
            _say(f"dashboard: {address}/\ndocumentation: {address}/docs\nStop with Ctrl-C.")
            thread.join()
    except KeyboardInterrupt:
        pass
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _listen(root: Path) -> tuple[Settings, Any]:
    """Listen on the usual port, or on any free one where that is taken, to serve an index root."""
    from kgtrace_server.http import serving

    try:
        settings = Settings(index=root, log_level="warning")
        return settings, serving.listen(settings)
    except serving.CannotListen:
        settings = Settings(index=root, port=0, log_level="warning")
        return settings, serving.listen(settings)


def train_umls(
    folder: Path,
    *,
    epochs: int = 120,
    embedding_dim: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Train a ConvE on UMLS and save it as PyKEEN's ``save_to_directory`` does: model and training triples.

    Training is 1-N with binary cross-entropy on logits, scoring all tails of a batch of (h, r) with one matrix product
    (PyKEEN's own loop multiplies batch × entities × dimensions element by element). One thread does it: these products
    are so small that a second one would only wait for the first, and one gives the same model on every machine.

    Raises
    ------
    MissingExtra
        PyKEEN is not installed.
    """
    try:
        import torch
        from pykeen.datasets import UMLS
        from pykeen.models import ConvE
    except ImportError as error:
        raise MissingExtra("the demo trains a PyKEEN model: pip install pykeen") from error
    from kgtrace_indexer.threads import one_thread

    torch.manual_seed(seed)
    factory = UMLS(create_inverse_triples=True).training
    model = ConvE(
        triples_factory=factory, embedding_dim=embedding_dim, output_channels=16, loss="bcewithlogits", random_seed=seed
    )
    head, relation, tail = factory.mapped_triples.T
    sources = torch.cat([torch.stack([head, 2 * relation], 1), torch.stack([tail, 2 * relation + 1], 1)])
    targets = torch.cat([tail, head])
    pairs, group = sources.unique(dim=0, return_inverse=True)
    labels = torch.zeros(len(pairs), factory.num_entities)
    labels[group, targets] = 1.0
    labels = labels * (1 - _LABEL_SMOOTHING) + _LABEL_SMOOTHING / factory.num_entities
    optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    with one_thread():
        for epoch in range(epochs):
            for batch in torch.randperm(len(pairs)).split(_BATCH):
                optimizer.zero_grad()
                score = _tail_scores(model, pairs[batch])
                torch.nn.functional.binary_cross_entropy_with_logits(score, labels[batch]).backward()
                optimizer.step()
            progress(epoch + 1, epochs)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.eval(), folder / "trained_model.pkl")
    factory.to_path_binary(folder / "training_triples")


def _tail_scores(model: Any, pairs: "Tensor") -> "Tensor":
    """Return the scores of all entities as tail of (head, relation row) pairs (m, 2): (m, E)."""
    import torch

    entities, bias = (representation() for representation in model.entity_representations)  # (E, d), (E,)
    shape = model.interaction.shape_info
    image = (-1, shape.input_channels, shape.image_height, shape.image_width)
    relations = model.relation_representations[0](pairs[:, 1])
    stacked = torch.cat([entities[pairs[:, 0]].view(image), relations.view(image)], 2)
    x = model.interaction.hr1d(model.interaction.hr2d(stacked).flatten(1))
    scores: Tensor = x @ entities.T + bias
    return scores
