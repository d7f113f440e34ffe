"""Curves as an SVG picture, drawn by matplotlib (`pip install 'trainyard[bench]'`)."""

from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any

# the same curves give the same bytes, and words stay words that can be searched for
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "trainyard",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
}

Points = Sequence[tuple[float, float]]


def svg(
    title: str, x_label: str, lines: Mapping[str, Points], kind: Callable[[str], str] = str
) -> str:
    """Named lines over one x axis, each with its last value; the y axis starts at 0.

    Lines whose names are of one kind, such as the seeds of a recipe, have one color.
    """
    import matplotlib  # 0.3 s, and a benchmark's tiny form draws nothing
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=x_label)
        colors: dict[str, str] = {}
        for name, line in lines.items():
            color = colors.setdefault(kind(name), f"C{len(colors)}")
            last = f": {line[-1][1]:.1f}" if line else ""
            axes.plot([x for x, _ in line], [y for _, y in line], label=name + last, color=color)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#ddd")
        figure.legend(loc="outside right upper", frameon=False)
        written = StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()
