"""Every kind of index goes the whole way: built, listed, verified, followed, asked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kgtrace_server.cli import parser as cli
from kgtrace_server.http.reload import Reloader, open_warm
from kgtrace_server.schema.questions import InfluenceRequest
from kgtrace_server.service import Service

COUNT = 120
KINDS: dict[str, list[str]] = {
    "pca": ["--landmarks", "64"],
    "gaussian": ["--projection", "gaussian"],
    "sparse sample": ["--projection", "sparse", "--sample-rate", "0.5", "--stratify-by", "relation"],
    "none": ["--projection", "none"],
}
PROJECTIONS: dict[str, dict[str, Any]] = {
    "pca": {"type": "pca", "dim": 16, "landmarks": 64, "seed": 3},
    "gaussian": {"type": "gaussian", "dim": 16, "seed": 3},
    "sparse sample": {"type": "sparse", "dim": 16, "seed": 3},
    "none": {"type": "none"},
}


@pytest.fixture(scope="module")
def train(umls: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some training triples in labels."""
    path = tmp_path_factory.mktemp("kinds") / "train.tsv"
    _, vocabulary, table = umls
    lines = (
        f"{vocabulary.entities[h]}\t{vocabulary.relations[r]}\t{vocabulary.entities[t]}\n"
        for h, r, t in table.ids[:COUNT]
    )
    path.write_text("".join(lines))
    return path


def test_a_service_follows_from_kind_to_kind(
    umls_folder: Path, umls: tuple, train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each generation is built by the command line, verified, loaded beside the one before, and answers."""
    root = tmp_path / "index"
    served: list[Service] = []
    reloader = Reloader(root, lambda generation: Service(open_warm(root, generation, device="cpu")), served.append)
    query = tuple(umls[2].ids[5].tolist())
    for kind, options in KINDS.items():
        call = ["--model", str(umls_folder), "--train", str(train), "--dim", "16", "--seed", "3", "--device", "cpu"]
        assert cli.main(["build", *call, *options, "--index", str(root), "--json"]) == 0
        generation = json.loads(capsys.readouterr().out)["generation"]
        assert cli.main(["verify", "--index", str(root), "--device", "cpu"]) == 0
        reload = reloader.check()
        assert reload is not None
        assert (reload.ok, reload.generation) == (True, generation), reload.reason
        info = served[-1].index_info()
        assert info.projection == PROJECTIONS[kind]
        assert info.sample_rate == (0.5 if "sample" in kind else 1.0)
        answer, exact = (
            served[-1].influences(InfluenceRequest.of(triples=[query], top_k=3, exact=exact)).results[0]
            for exact in (False, True)
        )
        assert len(answer.influences) == 3
        assert exact.certified
        if answer.certified:
            found = [one.influence for one in answer.influences]
            np.testing.assert_allclose(found, [one.influence for one in exact.influences], rtol=1e-4)
        capsys.readouterr()
        assert cli.main(["query", "--index", str(root), "--triple", *map(str, query), "--device", "cpu"]) == 0
        said = "of a sample of 0.5 of the training triples; no others can be named" in capsys.readouterr().out
        assert said == ("sample" in kind)
    assert cli.main(["list", "--index", str(root), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["generations"]
    assert [one["configuration"]["projection"] for one in listed] == ["pca", "gaussian", "sparse", "none"]
    assert listed[2]["counts"]["training_triples"] == COUNT > listed[2]["counts"]["triples"]
