"""Ask a running service from Python: what its model predicts, and why.

    python examples/ask.py http://127.0.0.1:8000 egypt embassy

A key is taken from ``KGTRACE_READ_KEY``. ``LocalClient(Path("INDEX"))`` in the place of ``Client(...)`` answers the
same from an index folder, without a service.
"""

import argparse
import os

from kgtrace import Client, KgtraceError


def main() -> None:
    """Predict a tail, and explain it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("address")
    parser.add_argument("head", help="label of an entity")
    parser.add_argument("relation", help="label of a relation")
    args = parser.parse_args()
    with Client(args.address, key=os.environ.get("KGTRACE_READ_KEY")) as client:
        predicted = client.predictions(head=args.head, relation=args.relation, top_k=1, filtered=True)
        if not predicted.predictions:
            raise SystemExit(f"every tail of {args.head} {args.relation} is a training triple already")
        tail = predicted.predictions[0].entity
        print(f"{args.head} {args.relation} {tail}, the best tail that is no training triple, because of")

        triple = (args.head, args.relation, tail.id)
        (explanation,) = client.influences([triple], top_k=5).results
        for found in explanation.influences:
            because = found.triple
            print(f"{found.influence:10.4g}  {because.head} {because.relation} {because.tail}")
        print("certified: no other training triple has more influence" if explanation.certified else "not certified")

        for found in client.aggregate(triple, by="relation", top_k=3, exact=True).groups:
            print(f"{found.influence.sum:10.4g}  of the {found.influence.count} training triples of {found.group}")


if __name__ == "__main__":
    try:
        main()
    except KgtraceError as error:  # an unknown label, for instance: the message has the nearest ones
        raise SystemExit(str(error)) from None
