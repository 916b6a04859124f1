"""Every case, every operation, every peer: times in turn, after a check that all compute the same."""

from collections.abc import Iterable

import numpy as np

from benchmarks.cases import AXES, Case, Data, make
from benchmarks.measure import Effort, Quartiles, Row, copy_bandwidth, race
from benchmarks.peers import OURS, PEERS, TENSORFLOW, prepared

FLOOR = "copy of as many bytes"

# The largest difference from ours, relative to the largest entry, with which a peer still computes the same: float32
# positions are rounded, which moves some slopes of a box gradient to the next pixel; bfloat16 itself is rounded, and so
# are the crops of those who antialias uint8, to whole numbers and between their passes.
_TOLERANCE = {"forward": 2e-3, "image gradient": 2e-3, "box gradient": 5e-2, "training step": 4e-3}
_ROUNDED = 4e-2


def measure(cases: Iterable[Case], effort: Effort) -> list[Row]:
    """Rows of all operations on the cases."""
    rows, bandwidth = [], copy_bandwidth()
    for case in cases:
        data = make(case)
        for operation in case.operations:
            rows += of_operation(case, operation, data, effort)
            if operation != "training step":  # whatever pixels are read, the crops and an image's gradient move
                moved = case.crops_bytes + case.image_bytes * (operation == "image gradient")
                rows.append(Row(case.name, operation, FLOOR, Quartiles(*3 * [1e3 * moved / bandwidth])))
    return rows


def scaling(effort: Effort) -> list[Row]:
    """Ours and TensorFlow's, along each axis."""
    return beside(TENSORFLOW, [axis.case(value) for axis in AXES.values() for value in axis.values], effort)


def beside(peer: str, cases: Iterable[Case], effort: Effort) -> list[Row]:
    """Of ours and one other's derivatives."""
    only = (OURS, peer)
    rows = [of_operation(case, o, make(case), effort, only) for case in cases for o in PEERS[peer].operations[:3]]
    return [row for each in rows for row in each]


def of_operation(case: Case, operation: str, data: Data, effort: Effort, only: tuple[str, ...] = ()) -> list[Row]:
    calls = prepared(case, operation, data, only)
    antialiased = case.kind == "antialiased" and operation == "forward"
    if antialiased:  # peers' pixels are from 0 to 255, of cubic kernels too
        calls = {n: c._replace(value=lambda r, value=c.value: np.clip(value(r), 0, 255)) for n, c in calls.items()}
    tolerance = max(_TOLERANCE[operation], _ROUNDED * (antialiased or case.dtype == "bfloat16"))
    return race(case.name, operation, calls, effort, tolerance)


def ratios_to_first(rows: Iterable[Row]) -> dict[str, list[float]]:
    """Times over that of the first row of the same case and operation, by who took them."""
    first: dict[tuple[str, str], float] = {}
    ratios: dict[str, list[float]] = {}
    for row in rows:
        if row.times:
            base = first.setdefault((row.case, row.operation), row.times.median)
            ratios.setdefault(row.who, []).append(row.times.median / base)
    return ratios


def geometric_mean(ratios: Iterable[float]) -> float:
    return float(np.exp(np.mean(np.log(list(ratios)))))
