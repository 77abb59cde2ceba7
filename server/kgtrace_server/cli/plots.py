"""The results of `kgtrace evaluate`, as pictures: accuracy against speed, dimension and sample rate.

Labels stand at the points they name, so there is no legend to look things up in. Colours are those of Okabe and Ito
(2008), which the colour-blind tell apart, and shapes differ as well.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgtrace_store import durable
from kgtrace_store.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg")

_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
_SIZE = (7.2, 4.5)
"""Inches."""
_DOTS = 130
"""Dots an inch, of PNG."""
_STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text: small, and searchable
    "svg.hashsalt": "kgtrace",  # the same picture is the same file
}
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
"""Where a label may stand beside its point: right (1) or left, above (1) or below. The first that is free is taken."""


def require() -> None:
    """Raise `MissingExtra` without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise MissingExtra("plots need matplotlib: pip install 'kgtrace[plots]', or leave out --plots") from e


def write(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw a document of `kgtrace_server.cli.evaluation` into a folder, made if need be; return the files.

    Raises `MissingExtra` without matplotlib, and `StorageFailed`.
    """
    require()
    import matplotlib
    from matplotlib.figure import Figure

    durable.make_folder(folder)
    paths = []
    for name, draw in (
        ("accuracy-speed", _accuracy_speed),
        ("overlap-dimension", _overlap_dimension),
        ("overlap-sample-rate", _overlap_sample_rate),
    ):
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=_SIZE, dpi=_DOTS, layout="constrained")
            draw(figure.add_subplot(), content)
            for format in FORMATS:
                data = io.BytesIO()
                figure.savefig(data, format=format, metadata={"Date": None} if format == "svg" else None)
                paths.append(folder / f"{name}.{format}")
                durable.replace_file(paths[-1], data.getvalue())
    return paths


def _accuracy_speed(axes: "Axes", content: Mapping[str, Any]) -> None:
    loop, index = content["plain_loop"], content["index"]
    scale = 1.0 if loop is None else loop["seconds_a_query"]
    _set_up(axes, content, "Accuracy against speed", "; circles: presets, squares: layers")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,g}" if loop is None else f"{x:,g} ×")
    axes.set_xlabel("queries a second" if loop is None else "times faster than the plain loop")
    labels = []
    for alike in _distinct(content, ("preset", "layers")):
        x, y = scale / alike[0]["seconds_a_query"], alike[0]["overlap"]
        preset = any(configuration["group"] == "preset" for configuration in alike)
        axes.plot(x, y, "o" if preset else "s", color=_BLUE if preset else _ORANGE, markersize=7, clip_on=False)
        labels.append(
            _Label(x, y, " = ".join(configuration["name"] for configuration in alike), _BLUE if preset else _ORANGE)
        )
    x, y = scale / index["seconds_a_query"], index["overlap"]
    axes.plot(x, y, "*", color=_GREEN, markersize=18, clip_on=False)
    name = f"kgtrace's index:\n{index['certified']} of {content['test_triples']} certified exact"
    labels.insert(0, _Label(x, y, name, _GREEN, radius=9))
    if loop is not None:
        axes.axvline(1, color=_GREY, linestyle=":")
        axes.annotate("plain loop", (1, 0.5), (4, 0), textcoords="offset points", rotation=90, va="center", color=_GREY)
    axes.margins(x=0.12)
    _label(axes, labels)


def _overlap_dimension(axes: "Axes", content: Mapping[str, Any]) -> None:
    _set_up(axes, content, "What random projections find, by dimension (all layers)")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("coordinates of the projection")
    series: dict[str, list[Mapping[str, Any]]] = {}
    colours = {"gaussian": _BLUE, "sparse": _ORANGE}
    for (kind, colour), marker in zip(colours.items(), "os", strict=True):
        swept = [c for c in content["configurations"] if c["group"] == "dimension" and c["projection"] == kind]
        axes.plot([c["dim"] for c in swept], [c["overlap"] for c in swept], marker=marker, color=colour)
        series[kind] = swept
    for gaussian, sparse in zip(series["gaussian"], series["sparse"], strict=True):
        low, high = sorted((gaussian, sparse), key=lambda c: float(c["overlap"]))
        last = gaussian is series["gaussian"][-1]
        for one, above in ((high, True), (low, False)):
            text = f"{one['projection']} {one['overlap']:.2f}" if last else f"{one['overlap']:.2f}"
            axes.annotate(
                text, (one["dim"], one["overlap"]), (0, 7 if above else -7), textcoords="offset points",
                ha="center", va="bottom" if above else "top", color=colours[one["projection"]], fontsize=9,
            )  # fmt: skip
    dims = [c["dim"] for c in series["gaussian"]]
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.minorticks_off()
    axes.margins(x=0.1)
    _draw_index(axes, content)


def _overlap_sample_rate(axes: "Axes", content: Mapping[str, Any]) -> None:
    _set_up(axes, content, "What samples of the training triples find, by rate")
    axes.set_xlabel("sampled training triples, %")
    sampled = [c for c in content["configurations"] if c["group"] == "sample rate"]
    rates, overlaps = [100 * c["sample_rate"] for c in sampled], [c["overlap"] for c in sampled]
    axes.plot([0, 100], [0, 1], linestyle="--", color=_GREY)
    axes.plot(rates, overlaps, marker="o", color=_BLUE)
    axes.margins(x=0.05)
    _draw_index(axes, content)
    for rate, overlap in zip(rates, overlaps, strict=True):
        axes.annotate(
            f"{overlap:.2f}", (rate, overlap), (6, -5), textcoords="offset points", va="top", color=_BLUE, fontsize=9
        )
    axes.annotate("overlap = rate", (60, 0.6), (-6, 6), textcoords="offset points", ha="right", color=_GREY)


def _set_up(axes: "Axes", content: Mapping[str, Any], title: str, marks: str = "") -> None:
    model = content["model"]
    axes.set_title(title, loc="left", fontweight="bold", pad=20)
    axes.annotate(
        f"{model['source']}: {content['training_triples']:,} training triples, "
        f"{content['test_triples']} test triples{marks}",
        (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", fontsize=9, color=_GREY,
    )  # fmt: skip
    axes.set_ylabel(f"share of the exact top {content['top_k']} found")
    axes.set_ylim(-0.07, 1.12)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])


def _draw_index(axes: "Axes", content: Mapping[str, Any]) -> None:
    """Draw the overlap of the index, as a line across."""
    index = content["index"]
    axes.axhline(index["overlap"], color=_GREEN, linewidth=2)
    axes.annotate(
        f"kgtrace's index: {index['overlap']:.2f}, {index['certified']} of {content['test_triples']} certified exact",
        (0.01, index["overlap"]), (0, 4), xycoords=("axes fraction", "data"), textcoords="offset points", color=_GREEN,
    )  # fmt: skip


def _distinct(content: Mapping[str, Any], groups: Sequence[str]) -> list[list[Mapping[str, Any]]]:
    """Return the configurations of some groups; configurations that differ in their names alone are together."""
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for configuration in content["configurations"]:
        if configuration["group"] in groups:
            settings = [configuration[name] for name in ("layers", "projection", "dim", "sample_rate")]
            alike.setdefault(repr(settings), []).append(configuration)
    return list(alike.values())


@dataclass(frozen=True, slots=True)
class _Label:
    """A name beside a point."""

    x: float
    y: float
    text: str
    colour: str
    radius: float = 4.0
    """Of the point's mark, in points."""


def _label(axes: "Axes", labels: Sequence[_Label]) -> None:
    """Write labels (x, y, text, colour) beside their points, where they cover neither points nor one another."""
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles the scales
    points = axes.transData.transform([(label.x, label.y) for label in labels])
    pixels = [label.radius * figure.dpi / 72 for label in labels]
    taken = [Bbox.from_bounds(x - r, y - r, 2 * r, 2 * r) for (x, y), r in zip(points, pixels, strict=True)]
    for label in labels:
        tried: list[tuple[int, int, Any, Any]] = []
        for across, up in _SIDES:
            note = axes.annotate(
                label.text, (label.x, label.y), ((label.radius + 4) * across, (label.radius + 4) * up),
                textcoords="offset points", ha=("right", "center", "left")[across + 1],
                va=("top", "center", "bottom")[up + 1], color=label.colour, fontsize=9,
            )  # fmt: skip
            box = note.get_window_extent()
            outside = not (axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1)
            tried.append((10 * outside + sum(box.overlaps(other) for other in taken), len(tried), note, box))
        _, best, _, box = min(tried, key=lambda place: place[:2])
        for _, place, note, _ in tried:
            if place != best:
                note.remove()
        taken.append(box)
