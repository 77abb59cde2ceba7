"""What a build and a query move and multiply on a GPU, and the rates that its memory, its cores and its bus allow by that.

    python -m benchmarks.roofline            # seconds; needs no GPU

From shapes alone: nothing is measured. Writes the table in ``docs/speed.md``. Every operation on whole tensors reads its
operands from the GPU's memory and writes its result there, once each; tensors without a number for each output of the
convolution are left out, but for those that are copied to the CPU.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pages import replace

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a GPU can do in a second."""

    memory: float = 4.8e12
    """Bytes."""
    float32: float = 67e12
    """Operations, in float64, too; a multiplication and an addition are two."""
    bus: float = 55e9
    """Bytes to or from the CPU, by PCIe 5."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """A ConvE and its training triples; by default a ConvE of 200 dimensions on FB15k-237, both directions."""

    triples: int = 272_115
    groups: int = 149_689
    """Distinct (h, r) of both directions."""
    entities: int = 14_541
    width: int = 200
    """d: numbers in a row of an embedding table."""
    outputs: int = 10_368
    """q: outputs of the convolution, all channels."""
    channels: int = 32
    patch: int = 10
    """Numbers of a patch, and a one for the bias."""
    dim: int = 64
    """k: length of the index code."""
    v_dims: int = 64
    """Coordinates kept of the linear layer's input."""
    directions: int = 2
    readers: int = 6_591
    """Reads of the rows of head, relation and tail of a test triple, on average over FB15k-237's."""

    @property
    def stored(self) -> int:
        """Bytes of a training triple that a build copies to the CPU."""
        reads = self.directions * (
            2 * (self.width + 1) + self.width
        )  # numbers: of head and tail with bias, of relation
        rows = 3 * reads + (4 + 4) * 3 * self.directions  # and norms and rows
        factors = self.directions * (2 * (self.width + self.v_dims) + 2 * 8)  # float16, and two sizes of each
        return rows + factors + 4 * (self.dim + 2 + 2 + self.directions)  # φ, ρ, norms under both losses, slopes


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a build or a query."""

    name: str
    moved: float
    """Bytes in the GPU's memory."""
    multiplied: float
    """Operations in float32."""
    copied: float = 0.0
    """Bytes over the bus."""

    def seconds(self, machine: Machine) -> float:
        """Return the longest of the times that memory, cores and bus need: they work side by side."""
        return max(self.moved / machine.memory, self.multiplied / machine.float32, self.copied / machine.bus)


def of_build(s: Shapes) -> list[Stage]:
    """Return the stages of a build, of one training triple on average."""
    share, linear = s.groups / s.triples, 2 * s.width * s.outputs
    positions = s.outputs // s.channels
    convolution = 2 * s.outputs * s.patch
    patches = 4 * s.patch * positions
    small = 2 * (s.channels * s.patch) * (s.channels * (s.patch + 2))  # from Q to small parameters
    return [
        # patches and z1 written and read; v written, and read by the linear layer
        Stage("forward passes", share * (2 * patches + 16 * s.outputs), share * (convolution + linear)),
        # dy1 written, masked (a gather of v, read and written) and read twice; patches gathered and read
        Stage(
            "gradients",
            s.directions * (32 * s.outputs + 3 * patches + 2 * patches),
            s.directions * (linear + 2 * convolution + small),
        ),
        # v read for its coordinates and its norm; gathered, read and multiplied for the products of the directions
        Stage(
            "codes",
            share * 8 * s.outputs + s.directions * 12 * s.outputs,
            share * 2 * s.outputs * s.v_dims + s.directions * (2 * s.directions * s.outputs + 2 * s.width * s.width),
        ),
        Stage("copies to the CPU", s.stored, 0.0, s.stored),
    ]


def of_queries(s: Shapes, batch: int) -> list[Stage]:
    """Return the stages of queries for a batch of test triples, by either score."""
    weight, linear = 4 * s.width * s.outputs, 2 * s.width * s.outputs
    factors = s.directions * 2 * (s.width + s.v_dims)  # bytes of both factors of a training triple, in float16
    named = 10 * s.directions * batch
    return [
        Stage("gradients of test triples", 2 * weight + 32 * batch * s.outputs, batch * 2 * linear),
        Stage(
            "scores of all tails",
            4 * s.entities * (s.width + batch),
            2 * batch * s.entities * s.width,
            4 * batch * s.entities,
        ),
        # gathered, joined, scaled, multiplied with Pg' in float64; then a number, a mark and a key for each training triple
        Stage(
            "preconditioned influence of all that share a row",
            batch * (80 * s.readers * s.width + 60 * s.triples),
            batch * 6 * s.readers * s.width,
        ),
        Stage("TracIn of the ten named", 2 * weight + 44 * named * s.outputs, named * 2 * linear),
        Stage(
            "factor bounds of all training triples",
            s.triples * (factors + 4 * batch),
            2 * batch * s.triples * s.directions * (s.width + s.v_dims),
        ),
    ]


def tables(shapes: Shapes, machine: Machine) -> str:
    """Return the table in Markdown."""
    lines = [
        "| stage | moved | multiplied | over the bus | allows |",
        "|---|---|---|---|---|",
    ]
    build = of_build(shapes)
    together = Stage(
        "all of it", *(sum(getattr(stage, name) for stage in build) for name in ("moved", "multiplied", "copied"))
    )
    lines += [
        f"| a training triple: {stage.name} | {_row(stage)} | {_short(1 / stage.seconds(machine))} triples/s |"
        for stage in [*build, together]
    ]
    for batch, name in ((1, "one query"), (256, "a batch of 256")):
        lines += [
            f"| {name}: {stage.name} | {_row(stage)} | {1e3 * stage.seconds(machine):.3f} ms |"
            for stage in of_queries(shapes, batch)
        ]
    return "\n".join(lines) + "\n"


def _row(stage: Stage) -> str:
    return f"{_short(stage.moved)}B | {_short(stage.multiplied)}FLOP | {_short(stage.copied)}B"


def _short(number: float) -> str:
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {letter}"
    return f"{number:.3g} "


def main() -> None:
    """Write the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    replace(PAGE, "roofline", tables(Shapes(), Machine()))


if __name__ == "__main__":
    main()
