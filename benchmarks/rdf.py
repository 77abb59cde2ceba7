"""How fast triples are read from RDF, beside the same triples as tab-separated text.

::

    python -m benchmarks.rdf ../shared/data/FB15k-237/train.txt
"""

import argparse
import gzip
import tempfile
from pathlib import Path
from time import perf_counter

from kgtrace import read_triples
from kgtrace_store import Vocabulary

IRI = "http://example.org/"
RUNS = 5


def main() -> None:
    """Write the triples of a file in each syntax, and print the fastest of some readings."""
    parser = argparse.ArgumentParser(description="How fast triples are read from RDF.")
    parser.add_argument("triples", type=Path, metavar="FILE", help="lines of head⇥relation⇥tail")
    triples = [line.split("\t") for line in parser.parse_args().triples.read_text().splitlines()]
    vocabulary = Vocabulary(
        sorted({IRI + label.strip("/") for head, _, tail in triples for label in (head, tail)}),
        sorted({IRI + relation.strip("/") for _, relation, _ in triples}),
    )
    iris = [[IRI + label.strip("/") for label in triple] for triple in triples]
    n_triples = "".join(f"<{head}> <{relation}> <{tail}> .\n" for head, relation, tail in iris)
    turtle = f"@base <{IRI}> .\n{n_triples.replace(IRI, '')}"
    files = {
        "train.txt": "".join("\t".join(triple) + "\n" for triple in iris).encode(),
        "train.nt": n_triples.encode(),
        "train.nt.gz": gzip.compress(n_triples.encode()),
        "train.ttl": turtle.encode(),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder) / name
            path.write_bytes(content)
            print(f"{name:<12} {len(triples) / min(_seconds(path, vocabulary) for _ in range(RUNS)):>9,.0f} triples/s")


def _seconds(path: Path, vocabulary: Vocabulary) -> float:
    start = perf_counter()
    read_triples(path, vocabulary)
    return perf_counter() - start


if __name__ == "__main__":
    main()
