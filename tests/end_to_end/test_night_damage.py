"""Generations that are damaged, old or too new: found out when they are opened, while another one goes on serving."""

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from kgtrace_indexer import open_index
from kgtrace_server.cli import parser as cli
from kgtrace_server.http.app import create_app
from kgtrace_server.http.reload import Reloader
from kgtrace_server.http.serving import loader
from kgtrace_server.settings import Settings
from kgtrace_store import IndexRoot, durable, layout
from kgtrace_store.errors import SchemaTooNew, SchemaTooOld, StoreError
from kgtrace_store.generation import list_tree
from tests.end_to_end.conftest import Night, wait_until
from tests.server.conftest import Client

TRUNCATIONS, FLIPS = 64, 256
"""Of each file, in the slow test."""
SAMPLED = 8
"""Quick tests try so many times fewer."""


@contextmanager
def damaged(path: Path, data: bytes) -> Iterator[None]:
    """Put something else in the place of a file."""
    sound = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(sound)


def harm(sound: bytes, truncations: int, flips: int, chance: random.Random) -> Iterator[bytes]:
    """Cut a file short and flip single bits of it, at random."""
    size = len(sound)
    for end in chance.sample(range(size), min(truncations, size)):
        yield sound[:end]
    for bit in chance.sample(range(8 * size), min(flips, 8 * size)):
        flipped = bytearray(sound)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


@pytest.mark.parametrize("fewer", [SAMPLED, pytest.param(1, marks=pytest.mark.slow)])
def test_damage_is_found_and_the_old_generation_serves_on(night: Night, tmp_path: Path, fewer: int) -> None:
    """64 truncations and 256 flipped bits of each published file are all found when the generation is opened."""
    root = IndexRoot(shutil.copytree(night.begun, tmp_path / "root"))
    load = loader(Settings(index=root.path, device="cpu"))
    served = []
    reloader = Reloader(root.path, load, served.append)
    reloader.check()
    old = reloader.generation
    night.build(root.path)
    folder = root.path / layout.GENERATIONS / str(root.current())
    names, _ = list_tree(folder)
    assert len(names) == 17
    tried = 0
    chance = random.Random(0)
    for name in names:
        path = folder / name
        variants = list(harm(path.read_bytes(), TRUNCATIONS // fewer, FLIPS // fewer, chance))
        for data in variants:
            with damaged(path, data), pytest.raises(StoreError):
                root.open()
        with damaged(path, variants[-1]):
            result = reloader.check()
        assert result is not None
        assert not result.ok
        assert reloader.generation == old
        tried += len(variants)
    print(f"{tried} kinds of damage to {len(names)} files were found")
    assert tried > 2000 // fewer
    assert len(served) == 1
    reloader.check()
    assert reloader.generation == folder.name


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(True, "gradients.h5 has"), (False, "bytes of memory, 1000 are available")],
    ids=["a damaged file", "too little memory"],
)
def test_a_failed_reload_is_told_to_probes(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bool, reason: str
) -> None:
    """The old generation answers on, and ``/readyz`` and ``/metrics`` say what is wrong."""
    root = IndexRoot(shutil.copytree(night.begun, tmp_path / "root"))
    old = root.current()
    available = 1 << 40
    monkeypatch.setitem(Reloader.__init__.__kwdefaults__, "memory", lambda: available)
    settings = Settings(index=root.path, device="cpu")
    app = create_app(loader(settings), settings)
    client = Client(app)
    with following(app):
        wait_until(lambda: client.get("/readyz").status_code == 200)
        available = available if damage else 1000
        new = published(night, root, damage)
        wait_until(lambda: client.get("/readyz").json()["reload"]["generation"] == new)
        ready = client.get("/readyz").json()
        assert (ready["generation"], ready["reload"]["ok"]) == (old, False)
        assert reason in ready["reload"]["reason"]
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(client.get("/metrics").text)
            for sample in family.samples
        }
        assert samples["kgtrace_reloads_total", "failed"] >= 1
        answer = client.post("/v1/influences", {"triples": night.query.tolist()})
        assert (answer.status_code, answer.json()["generation"]) == (200, old)


def test_a_damaged_generation_is_refused_by_the_command_line(
    night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 1, whichever verb would have used it."""
    root = IndexRoot(shutil.copytree(night.begun, tmp_path / "root"))
    new = published(night, root, damage=True)
    for verb, *arguments in (["verify"], ["publish", new], ["query", "--triple", "0", "0", "0"]):
        assert cli.main([verb, "--index", str(root.path), *arguments]) == 1
        assert "gradients.h5 has" in capsys.readouterr().err


def published(night: Night, root: IndexRoot, damage: bool) -> str:
    """Make a new generation live, and return its id; one that is damaged becomes so before anybody looks."""
    elsewhere = IndexRoot(shutil.copytree(root.path, root.path.with_name("elsewhere")))
    night.build(elsewhere.path)
    new = str(elsewhere.current())
    source, target = (where.path / layout.GENERATIONS / new for where in (elsewhere, root))
    shutil.copytree(source, target)
    if damage:
        gradients = target / layout.GRADIENTS
        gradients.write_bytes(gradients.read_bytes()[:-1])
    durable.replace_file(root.path / layout.CURRENT, f"{new}\n".encode())  # `publish` would refuse what is damaged
    return new


@contextmanager
def following(app: FastAPI) -> Iterator[None]:
    """Let an application follow its index root."""
    app.state.backend.start()
    try:
        yield
    finally:
        app.state.backend.close()


GOLDEN = Path(__file__).parents[1] / "golden"


def test_a_generation_of_this_schema_still_answers(tmp_path: Path) -> None:
    """An index that was written before opens, verifies and answers as it did."""
    root = shutil.copytree(GOLDEN / f"schema-{layout.SCHEMA_VERSION}", tmp_path / "index")
    wanted = json.loads((root / "answer.json").read_bytes())
    attributor = open_index(root, device="cpu")
    found = attributor.query(np.array([wanted["triple"]]), top_k=len(wanted["train_index"])).attributions[0]
    assert found.certified
    assert found.train_index.tolist() == wanted["train_index"]
    np.testing.assert_allclose(found.influence, wanted["influence"], rtol=1e-3)


@pytest.mark.parametrize("version", range(1, layout.SCHEMA_VERSION))
def test_a_generation_of_an_earlier_schema_is_refused_by_name(
    version: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused wherever it would be opened, and listed, and says what to do."""
    root = shutil.copytree(GOLDEN / f"schema-{version}", tmp_path / "index")
    live = str(IndexRoot(root).current())
    with pytest.raises(SchemaTooOld, match=f"schema version {version}, this kgtrace reads .*: rebuild the index"):
        open_index(root, device="cpu")
    for verb in ("verify", "publish", "query"):
        arguments = {"publish": [live], "query": ["--triple", "0", "0", "0"]}.get(verb, [])
        assert cli.main([verb, "--index", str(root), *arguments]) == 1
        assert "rebuild the index with kgtrace build" in capsys.readouterr().err
    assert cli.main(["list", "--index", str(root)]) == 0
    assert "rebuild the index with kgtrace build" in capsys.readouterr().out


def test_a_generation_of_a_later_schema_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused wherever it would be opened, and says what to do."""
    root = shutil.copytree(GOLDEN / f"schema-{layout.SCHEMA_VERSION}", tmp_path / "index")
    live = str(IndexRoot(root).current())
    path = root / layout.GENERATIONS / live / layout.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"schema_version": layout.SCHEMA_VERSION + 1}))
    with pytest.raises(SchemaTooNew, match=f"schema version {layout.SCHEMA_VERSION + 1}.*upgrade kgtrace"):
        open_index(root, device="cpu")
    for verb in ("verify", "publish", "query"):
        arguments = {"publish": [live], "query": ["--triple", "0", "0", "0"]}.get(verb, [])
        assert cli.main([verb, "--index", str(root), *arguments]) == 1
        assert "upgrade kgtrace or rebuild the index" in capsys.readouterr().err
    assert cli.main(["list", "--index", str(root)]) == 0
    assert "upgrade kgtrace or rebuild the index" in capsys.readouterr().out
