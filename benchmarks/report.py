"""The pages that show the results, made of the templates in pages/."""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.cases import AXES, CROPS, KERNELS, OPERATIONS, ROIS
from benchmarks.compositions import DERIVATIVES as _DERIVED
from benchmarks.compositions import PLAIN
from benchmarks.forms import BASE, DERIVATIVES, FORWARD, HVP, SQUARES
from benchmarks.measure import Row
from benchmarks.memory import MIB
from benchmarks.peers import GATHER, OURS, PEERS, RACING, TENSORFLOW, TORCHVISION
from benchmarks.speed import FLOOR, geometric_mean, ratios_to_first

DOCS = Path(__file__).parent.parent / "docs"
_PAGES = Path(__file__).parent / "pages"
_KINDS = {"crops": ("crop",), "ROIAlign": ("ROIAlign", "pyramid"), "antialiased": ("antialiased",)}
_KIND = {
    case.name: title for case in (*CROPS, *ROIS, *KERNELS) for title, kinds in _KINDS.items() if case.kind in kinds
}
_NOT_MEASURED = "Not measured since the programs changed.\n"


def write() -> None:
    """All pages, from the results that are there."""
    backends = [backend for backend in ("cpu", "gpu", "tpu") if results.load(backend, "speed")]
    rows = functools.partial(results.rows, "cpu")
    _fill("performance.md", summaries="\n".join(map(_summary, backends)))
    _fill(
        "performance-tables.md",
        speed="\n".join(part for backend in backends for part in _speed_of(backend)),
        settings=" ".join(f"{name}={value}" for name, value in results.KEEP.items()),
        kept="\n".join(_speed([*rows("speed-keep"), *rows("kernels-keep")])),
        prices=_prices(rows("compositions")),
        compositions="\n".join(_compositions(rows("compositions"))),
        first_call=_first_call(rows("first_call")),
        scaling="\n".join(_scaling(rows("scaling"))),
        memory=_memory(rows("memory")),
    )
    if result := results.load("cpu", "correctness"):
        cells = [(row["question"], *answer) for row in result.rows for answer in row["answers"].items()]
        _fill("correctness-table.md", answers=_table(cells, [OURS]), machine=_measured_on(result.machine))


def _fill(page: str, **parts: str) -> None:
    text = (_PAGES / page).read_text()
    for name, part in parts.items():
        text = text.replace(f"{{{{{name}}}}}", part or _NOT_MEASURED)
    (DOCS / page).write_text(text)


def headlines(backend: str) -> list[str]:
    """A line for the README, and the worst of the compositions."""
    lines = [_prices(results.rows(backend, "compositions"))]
    if result := results.load(backend, "speed"):
        usual, kept = (_to_tensorflow(results.rows(backend, part)) for part in ("speed", "speed-keep"))
        line = f"TensorFlow's time over ours on {_place(result.machine)}, geometric mean (least): {usual}."
        lines.append(line + f" With an allocator that keeps freed memory: {kept}." * bool(kept))
    return [line for line in lines if line]


def _to_tensorflow(rows: Iterable[Row]) -> str:
    found = [(name, _ratios(rows, name, "crops").get(TENSORFLOW)) for name in OPERATIONS]
    return ", ".join(f"{name} {_mean(ratios)} in {len(ratios)} cases" for name, ratios in found if ratios)


# ---- parts of pages


def _summary(backend: str) -> str:
    """By default, and below with freed memory kept."""
    parts = ("speed", "kernels"), ("speed-keep", "kernels-keep")
    usual, kept = ([row for part in each for row in results.rows(backend, part)] for each in parts)
    cells = []
    for title, who, operation in itertools.product(
        _KINDS, [name for name in PEERS if name not in (OURS, RACING)], OPERATIONS
    ):
        sources = (usual, kept) if who != TORCHVISION else [results.rows(backend, TORCHVISION)]
        here = [_ratios(rows, operation, title).get(who) for rows in sources]
        if here[0]:
            cells.append((f"{who}, {title}", operation, "<br>".join(_mean(each) for each in here if each)))
    return f"### On {_place(results.load(backend, 'speed').machine)}\n\n{_table(cells, OPERATIONS)}"


def _speed_of(backend: str) -> Iterator[str]:
    machine = results.load(backend, "speed").machine
    yield f"## On {_place(machine)}\n\n{_measured_on(machine)}"
    kernels = results.rows(backend, "kernels")
    yield from _speed([*results.rows(backend, "speed"), *kernels])
    yield from _speed(results.rows(backend, TORCHVISION), f", beside {TORCHVISION}")
    ours = [row for row in kernels if row.who == OURS]
    first = {row.case: row for row in ours if row.operation == FORWARD}
    cells = [(row.case, row.operation, f"{_ratio(row, first[row.case])} ({_mib(row)} MiB)") for row in ours]
    yield f"### Our gradients over our forward pass, antialiased\n\n{_table(cells)}"


def _speed(rows: Sequence[Row], beside: str = "") -> Iterator[str]:
    """A table for each operation on crops and ROIAlign, and on what is antialiased."""
    for antialiased in (False, True):
        for operation in OPERATIONS:
            here = [r for r in rows if r.operation == operation and (_KIND[r.case] == "antialiased") == antialiased]
            ours = {row.case: row for row in here if row.who == OURS}
            cells = [(row.case, "ours, ms", _milliseconds(row)) for row in ours.values()]
            for row in here:
                mark = "¹" if row.who == RACING else "" if row.agrees else "²"
                if row.who != OURS:
                    cells.append((row.case, row.who, _ratio(row, ours[row.case]) + mark))
            means = {who: each for who, each in ratios_to_first(here).items() if who != OURS}
            cells += [("*geometric mean (least)*", who, f"*{_mean(each)}*") for who, each in means.items()]
            for case, row in ours.items():
                cells += [(case, "ours: compile, s", f"{row.compile_seconds:.1f}"), (case, "MiB", _mib(row))]
            if here:
                title = f"### {operation.capitalize()}{', antialiased' * antialiased}{beside}"
                yield f"{title}\n\n{_table(cells, ['ours, ms', *PEERS, FLOOR])}"


def _compositions(rows: Sequence[Row]) -> Iterator[str]:
    """A table for each case: forms over the base, and jnp's ten lines under the same `vmap`."""
    base, tables = {}, {}
    for row in rows:
        first = base.setdefault((row.case, row.operation), row)
        if row.operation == _DERIVED:
            if row.who == HVP:
                first = next(r for r in rows if (r.case, r.who) == (row.case, SQUARES))
            table, line, column = _DERIVED, row.case, row.who
        else:
            plain = row.who.endswith(PLAIN)
            table, line, column = row.case, row.who.removesuffix(PLAIN), row.operation + ", jnp" * plain
        tables.setdefault(table, []).append((line, column, f"{_ratio(row, first)} ({_mib(row)})"))
    for title, cells in tables.items():
        yield f"**{title}**\n\n{_table(cells, DERIVATIVES if title == _DERIVED else ())}"


def _prices(rows: Sequence[Row]) -> str:
    """The worst form and the mean over all, in time; against the base, and against jnp in the same form."""
    times = {(r.case, r.operation, r.who): r.times.median for r in rows if r.operation != _DERIVED and r.times}
    ours = {key: time for key, time in times.items() if not key[2].endswith(PLAIN)}
    to_base = {key: time / times[*key[:2], BASE] for key, time in ours.items() if key[2] != BASE}
    plain = {key: times.get((*key[:2], key[2] + PLAIN)) for key in ours}
    to_plain = {key: time / plain[key] for key, time in ours.items() if plain[key]}
    if not (to_base and to_plain):
        return ""
    untimed = sum(row.times is None and not row.who.endswith(PLAIN) for row in rows)
    worst, beside = (max(ratios, key=ratios.get) for ratios in (to_base, to_plain))
    return (
        f"The worst form costs {to_base[worst]:.2f} times `box_indices` ({'; '.join(worst)}), all of them "
        f"{geometric_mean(to_base.values()):.2f} times in geometric mean; beside jnp's ten lines in the same form "
        f"the worst is {to_plain[beside]:.2f} ({'; '.join(beside)})."
        + f" {untimed} forms need more than 1 GiB and were not run."
        * bool(untimed)
    )


def _first_call(rows: Sequence[Row]) -> str:
    cells = []
    for row in rows:
        line = f"{row.case}, {row.operation}"
        cells.append((line, row.who, f"{row.compile_seconds:.2f} s, {row.instructions}"))
        if row.who == GATHER:
            ours = next(r for r in rows if (r.case, r.operation, r.who) == (row.case, row.operation, OURS))
            ratio = f"{ours.compile_seconds / row.compile_seconds:.2f}, {ours.instructions / row.instructions:.2f}"
            cells.append((line, "ratios", ratio))
    return _table(cells)


def _scaling(rows: Sequence[Row]) -> Iterator[str]:
    """Ours in ms, and TensorFlow's time over it."""
    found = {(row.case, row.operation, row.who): row for row in rows}
    for axis in AXES.values() if found else ():
        cells = []
        for value, operation in itertools.product(axis.values, OPERATIONS[:3]):
            ours, other = (found.get((axis.case(value).name, operation, who)) for who in (OURS, TENSORFLOW))
            ratio = f" ({_ratio(other, ours)})" if other else ""
            cells.append((str(value), operation, f"{ours.times.median:.2f}{ratio}"))
        yield f"**{axis.title}**\n\n{_table(cells)}"


def _memory(rows: Sequence[Row]) -> str:
    """The worst form of each program."""
    worst: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row.case, row.operation
        worst[key] = max(row, worst.get(key, row), key=lambda row: row.temporaries)
    over = {key: " **over**" * (row.temporaries > row.bound) for key, row in worst.items()}
    cells = [(*key, f"{_mib(row)} of {row.bound / MIB:.0f}{over[key]}") for key, row in worst.items()]
    return _table(cells, DERIVATIVES)


# ---- pieces


def _ratios(rows: Iterable[Row], operation: str, title: str) -> dict[str, list[float]]:
    return ratios_to_first(row for row in rows if row.operation == operation and _KIND[row.case] == title)


def _mean(ratios: Sequence[float]) -> str:
    return f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})"


def _milliseconds(row: Row) -> str:
    return f"{row.times.median:.2f} ({row.times.lower:.2f}–{row.times.upper:.2f})"


def _ratio(row: Row, base: Row) -> str:
    return f"{row.times.median / base.times.median:.2f}" if row.times else f"needs {row.temporaries / 2**30:.1f} GiB"


def _mib(row: Row) -> str:
    return f"{(row.temporaries or 0) / MIB:.2f}"


def _place(machine: dict[str, Any]) -> str:
    on_cpu = machine["device"] == "cpu"
    return f"{machine['cores']} cores of an {machine['processor']}" if on_cpu else machine["device"]


def _measured_on(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"Measured on {machine['date']} on {_place(machine)}: {machine['system']}, {versions}.\n"


def _table(cells: Iterable[tuple[str, str, str]], order: Sequence[str] = ()) -> str:
    """Of line, column and text of each cell. Lines come as their first cells do, columns too after those in order."""
    lines: dict[str, dict[str, str]] = {}
    for line, column, text in cells:
        lines.setdefault(line, {})[column] = text
    columns = list(dict.fromkeys(column for each in lines.values() for column in each))
    columns.sort(key=lambda column: order.index(column) if column in order else math.inf)
    rows = [["", *columns], ["---"] + ["---:"] * len(columns)]
    rows += [[line, *(each.get(column, "") for column in columns)] for line, each in lines.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) if lines else ""
