"""Every case, every operation, every peer: times in turn, after a check that all compute the same."""

from collections.abc import Container, Iterable
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.cases import Case, Data, edges, fine_size, make
from benchmarks.measure import Effort, Quartiles, copy_bandwidth, in_turn
from benchmarks.peers import OURS, PEERS, Call, installed

FLOOR = "copy of as many bytes"
_MOST_TEMPORARIES = 2**30

# The largest difference from ours, relative to the largest entry, with which a peer still computes the same: float32
# positions are rounded, which moves some slopes of a box gradient to the next pixel; bfloat16 itself is rounded.
_TOLERANCE = {"forward": 2e-3, "image gradient": 2e-3, "box gradient": 5e-2, "training step": 4e-3}
_TOLERANCE_BFLOAT16 = 2e-2


class Row(NamedTuple):
    """One peer in one case; times are None where it was not run for the temporaries it needs.

    Attributes:
        times: of a call.
        difference: the largest, from our result, relative to its largest entry.
        agrees: whether that is no more than rounding.
        compile_seconds: if it compiles.
        temporaries: bytes, if known.
    """

    kind: str
    case: str
    operation: str
    peer: str
    times: Quartiles | None
    difference: float
    agrees: bool
    compile_seconds: float | None
    temporaries: int | None


def measure(cases: Iterable[Case], effort: Effort) -> list[Row]:
    """Rows of all operations on the cases."""
    rows = []
    bandwidth = copy_bandwidth() if jax.default_backend() == "gpu" else None
    for case in cases:
        data = make(case)
        for operation in case.operations:
            rows += of_operation(case, operation, data, effort, bandwidth)
            print(line(rows, case, operation), flush=True)
    return rows


def of_operation(case: Case, operation: str, data: Data, effort: Effort, bandwidth: float | None) -> list[Row]:
    calls, rows = {}, []
    for name, call in prepared(case, operation, data).items():
        too_large = name != OURS and (call.temporaries or 0) > _MOST_TEMPORARIES
        result = None if too_large else call.value(call.wait(call.run()))
        if name == OURS:
            expected = result
        difference = 0.0 if result is None else relative_difference(result, expected)
        agrees = difference <= max(_TOLERANCE[operation], _TOLERANCE_BFLOAT16 * (case.dtype == "bfloat16"))
        rows.append(
            Row(case.kind, case.name, operation, name, None, difference, agrees, call.compile_seconds, call.temporaries)
        )
        if not too_large:
            calls[name] = call
    times = in_turn(calls, effort)
    rows = [row._replace(times=times.get(row.peer)) for row in rows]
    if bandwidth and operation != "training step":
        floor = Quartiles(*3 * [1e3 * moved_bytes(case, operation, data) / bandwidth])
        rows.append(Row(case.kind, case.name, operation, FLOOR, floor, 0.0, True, None, None))
    return rows


def prepared(case: Case, operation: str, data: Data, only: Container[str] = tuple(PEERS)) -> dict[str, Call]:
    """The calls of those peers that are installed and offer the operation."""
    calls = {name: peer(case, operation, data) for name, peer in installed().items() if name in only}
    return {name: call for name, call in calls.items() if call}


def relative_difference(result: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(result - expected).max() / np.abs(expected).max())


def moved_bytes(case: Case, operation: str, data: Data) -> int:
    """What any implementation reads and writes once: crops, and all of an image's gradient or the pixels in use."""
    if operation == "image gradient":
        return case.crops_bytes + case.image_bytes
    in_use = [np.zeros(shape[:3], bool) for shape in case.maps]
    for level, touched in enumerate(in_use):
        y1, x1, y2, x2 = edges(case, data.boxes.astype(np.float64), level)
        for i in np.flatnonzero(data.levels == level):
            rows, columns = (
                np.floor(np.linspace(start[i], stop[i], samples) * (pixels - 1)).astype(int)
                for start, stop, samples, pixels in zip(
                    (y1, x1), (y2, x2), fine_size(case), touched.shape[1:], strict=True
                )
            )
            for down in (0, 1):
                for right in (0, 1):
                    touched[data.box_indices[i]][np.ix_(rows + down, columns + right)] = True
    pixel_bytes = case.maps[0][3] * case.image_dtype.itemsize
    return case.crops_bytes + sum(int(touched.sum()) for touched in in_use) * pixel_bytes


def line(rows: list[Row], case: Case, operation: str) -> str:
    """For the screen: our time, and the peers' times over it."""
    here = [row for row in rows if (row.case, row.operation) == (case.name, operation)]
    mine = next(row.times.median for row in here if row.peer == OURS)
    ratios = [f"{row.peer} {row.times.median / mine:.2f}" for row in here if row.times and row.peer != OURS]
    return f"{case.name}, {operation}: {mine:.2f} ms; times that of {', '.join(ratios)}"
