"""The pictures of the page, on a background of their own so that light and dark themes show them alike."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import scaling
from benchmarks.peers import OURS, PEERS, RACING, TENSORFLOW
from benchmarks.speed import FLOOR, Row

_STYLE = {
    "figure.facecolor": "#f5f4ef",
    "axes.facecolor": "#fbfaf7",
    "savefig.facecolor": "#f5f4ef",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dcdad2",
    "font.size": 9,
    "svg.hashsalt": "jax_crop",  # the same picture is the same file
}
_MARKERS = dict(zip([*PEERS, FLOOR], "osdDv^<>Pp*", strict=True))
_COLORS = dict(zip([*PEERS, FLOOR], [*plt.cm.tab10.colors, "black"], strict=True))


def speed(path: Path, rows: Sequence[Row], operations: Sequence[str]) -> None:
    """A peer's time over ours, a panel for each operation and a line for each case."""
    cases = list(dict.fromkeys(row.case for row in rows))
    ours = {(row.case, row.operation): row.times.median for row in rows if row.peer == OURS}
    with plt.rc_context(_STYLE):
        size = (11, 2 + 0.45 * len(cases))
        figure, panels = plt.subplots(2, 2, figsize=size, sharex=True, sharey=True, layout="constrained")
        handles = {}
        for panel, operation in zip(panels.flat, operations, strict=True):
            ratios: dict[str, list[tuple[float, int]]] = {}
            for row in rows:
                if row.operation == operation and row.peer != OURS and row.times:
                    ratio = row.times.median / ours[row.case, operation]
                    ratios.setdefault(row.peer, []).append((ratio, cases.index(row.case)))
            for peer, points in ratios.items():
                style = {"color": _COLORS[peer], "fillstyle": "none" if peer == RACING else "full"}
                handles[peer] = panel.plot(*zip(*points, strict=True), _MARKERS[peer], **style)[0]
            panel.axvline(1, color="black", linewidth=1)
            panel.set(title=operation, xscale="log")
            panel.set_yticks(range(len(cases)), cases, fontsize=7)
        panels[0, 0].invert_yaxis()
        for panel in panels[1]:
            panel.set_xlabel("the peer's time over ours: right of the line we are faster")
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)
        _save(figure, path)


def scaled(path: Path, name: str, points: Sequence[scaling.Point]) -> None:
    """Time against one axis, a panel for each operation."""
    with plt.rc_context(_STYLE):
        figure, panels = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
        handles = {}
        for panel, operation in zip(panels, scaling.OPERATIONS, strict=True):
            for peer, line in ((OURS, "-"), (TENSORFLOW, "--")):
                here = [p for p in points if (p.axis, p.operation, p.peer) == (name, operation, peer)]
                style = {"marker": _MARKERS[peer], "color": _COLORS[peer]}
                curve = [p.value for p in here], [p.milliseconds for p in here]
                handles[peer] = panel.plot(*curve, line, **style)[0]
            panel.set(title=operation, xscale="log", yscale="log", xlabel=scaling.AXES[name].title)
        panels[0].set_ylabel("ms")
        panels[0].legend(handles.values(), handles.keys())
        _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
