"""Time against the number of boxes, the size of crops and the channels: ours and TensorFlow's."""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.cases import Case, make
from benchmarks.measure import Effort, in_turn
from benchmarks.peers import OURS, TENSORFLOW
from benchmarks.speed import prepared

OPERATIONS = ("forward", "image gradient", "box gradient")


class Axis(NamedTuple):
    """What grows; no result is so large that the allocator fetches fresh memory from the system for it."""

    title: str
    values: tuple[int, ...]
    case: Callable[[int], Case]


AXES = {
    "boxes": Axis(
        "boxes of 1×128×128×16 → 7×7",
        (1, 5, 20, 100, 500, 2000, 10_000),
        lambda boxes: Case(((1, 128, 128, 16),), boxes, (7, 7)),
    ),
    "crop-size": Axis(
        "rows and columns of 8 crops of 1×512×512×3",
        (4, 8, 16, 32, 64, 128, 256, 512),
        lambda size: Case(((1, 512, 512, 3),), 8, (size, size)),
    ),
    "channels": Axis(
        "channels of 1×64×64, 64 boxes → 14×14",
        (1, 3, 8, 32, 128, 512),
        lambda channels: Case(((1, 64, 64, channels),), 64, (14, 14)),
    ),
}


class Point(NamedTuple):
    axis: str
    operation: str
    peer: str
    value: int
    milliseconds: float


def measure(effort: Effort) -> list[Point]:
    points = []
    for name, axis in AXES.items():
        for value in axis.values:
            case = axis.case(value)
            data = make(case)
            for operation in OPERATIONS:
                calls = prepared(case, operation, data, only=(OURS, TENSORFLOW))
                times = in_turn(calls, effort)
                points += [Point(name, operation, peer, value, t.median) for peer, t in times.items()]
        print(f"scaling with {axis.title}: done", flush=True)
    return points
