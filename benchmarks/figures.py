"""The pictures of the pages, on no ground and in ink that light and dark themes both show."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Points = Sequence[tuple[int, float]]

_INK = "#808080"
_STYLE = {
    **{f"{name}.color": _INK for name in ("xtick", "ytick", "text")},
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor"), _INK),
    "legend.framealpha": 0,
    "savefig.transparent": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.25,
    "font.size": 9,
    "svg.hashsalt": "jax_crop",  # the same picture is the same file
}


def growth(path: Path, title: str, panels: Mapping[str, Mapping[str, Points]]) -> None:
    """Milliseconds against what grows: a panel for each operation, a line for each library."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.2), sharey=True, layout="constrained", squeeze=False)
        for panel, (operation, lines) in zip(axes.flat, panels.items(), strict=True):
            for (name, points), style in zip(lines.items(), ("o-", "s--"), strict=False):
                panel.plot(*zip(*points, strict=True), style, label=name)
            panel.set(title=operation, xscale="log", yscale="log", xlabel=title)
        axes[0, 0].set_ylabel("ms")
        axes[0, 0].legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
