"""The pages that show the results: docs/performance.md and docs/correctness-table.md."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import figures, memory, results, scaling
from benchmarks.cases import OPERATIONS
from benchmarks.measure import Quartiles
from benchmarks.peers import GATHER, OURS, PEERS, RACING, TENSORFLOW
from benchmarks.speed import FLOOR, Row

DOCS = Path(__file__).parent.parent / "docs"
_BACKENDS = ("cpu", "gpu", "tpu")
_KINDS = {"crop_and_resize": ("crop_and_resize",), "ROIAlign": ("roi_align", "multilevel_roi_align")}

_WRITTEN = "<!-- Written by `python -m benchmarks`: change that, not this. -->\n"

_NOTES = {
    "¹": "¹ Wrong: threads add to the same pixel without synchronisation.",
    "²": "² Differs by more than rounding: OpenCV makes uint8 crops of a uint8 image; a plain gather of bfloat16 pixels"
    " sums its gradient in bfloat16.",
}

_ALLOCATOR = """\
### Where the allocator decides

By default, glibc fetches an array of more than 32 MiB from the system at each call and returns it after, some smaller
ones too, and the page faults of fresh memory can cost more than the work. JAX allocates its results so; TensorFlow
reuses memory of its own. Here glibc keeps what is freed, for all libraries alike: `python -m benchmarks --malloc keep`,
which sets `{settings}`. All other tables are of glibc's defaults. The same
variables serve any program whose arrays are as large.
"""

_NOTICED = 0.75  # of the time by default

_BOUNDS = """\
### Temporary memory

MiB beside arguments and results, exact. The bound that we set ourselves is 1 MiB and 2 % of the crops for the forward
pass, 16 MiB and an eighth of the crops for a gradient. The gradient of a bfloat16 image is summed in a float32 image,
which is over it: XLA updates no array of bfloat16 in place on a CPU. So are the crops of a pyramid of bfloat16.
"""

_STAND = f"""\
# Where implementations stand

The same questions to each implementation of corner-aligned crops. The truth is rational arithmetic on the float32 boxes
for positions, and float64 for values and gradients. Images are white noise between 0 and 1. TensorFlow runs in its
default mode. *{GATHER}* is the ten lines that everyone writes, under `jit`, with gradients by autodiff (`gather` in
`benchmarks/peers.py`). TensorFlow is asked about every whole-image crop; the others, which compile for each size, about
a random sample.
"""

_METHOD = """\
## How this is measured

All libraries run in one process, in turn, on the same boxes and the same white noise, with as many threads as there
are cores. Inputs wait in each library's own tensors and layout (channels first for ONNX Runtime and PyTorch), and
results stay there. A turn begins with an untimed run, because the threads of the library before spin for a while after
their work; a few timed runs follow, each until its result is there. Shown is the median over all turns, with the
quartiles; of a run that takes longer than 0.4 seconds there is but one. Before the clock runs, every result is
compared with ours.

- Boxes keep clear of the image's border, where the conventions of the libraries differ. Their sides are spread evenly
  over the octaves from a twentieth of the image (0.3 of it where 64 images have a box each) to nine tenths.
- A gradient is the transposed Jacobian times a given cotangent. The training step is crop, flatten, matrix product, sum
  of squares, and the gradient with respect to the image, in one compiled function. Integer images have no gradient.
- TensorFlow runs in `tf.function`; its image gradient and training step under `enable_op_determinism`, where alone they
  are right. It has no crops in bfloat16: there its image is converted to float32 and its crops back.
- TensorFlow, `grid_sample` and the JAX peers do ROIAlign as crops twice as fine and a mean over 2×2 pixels.
- PyTorch is eager: the forward pass that its gradients need is done before the clock runs. `grid_sample` and the peers
  under `vmap` read one image for all its boxes, without copies.
- For pyramids, *jnp gather* takes one pass per level; ONNX Runtime and torchvision get each level's boxes sorted out.
- *Temporaries* are what the compiled function holds beside its arguments and results, as the compiler states it. A peer
  in JAX that needs more than 1 GiB of them is not run.
"""


def write() -> None:
    """Both pages and the pictures, from the results that are there."""
    sections = [section for backend in _BACKENDS if (section := _section(backend))]
    _write("performance.md", ["# Performance\n", *sections, _METHOD] if sections else [])
    _write("correctness-table.md", _correctness())


def _write(page: str, parts: Sequence[str]) -> None:
    if parts:
        DOCS.mkdir(exist_ok=True)
        (DOCS / page).write_text("\n".join((_WRITTEN, *parts)))


def headline(backend: str) -> str:
    """One line for the README."""
    result = results.load(backend, "speed")
    if result is None:
        return ""
    usual, kept = (_means_to_tensorflow(speed_rows(backend, part)) for part in ("speed", "speed-keep"))
    if not usual:
        return ""
    means = f"{usual}; with freed memory kept: {kept}" if kept else usual
    return f"TensorFlow's time over ours on {_place(result.machine)}, geometric mean: {means}."


def _means_to_tensorflow(rows: Sequence[Row]) -> str:
    ratios = {operation: _ratios(rows, operation, TENSORFLOW, _KINDS["crop_and_resize"]) for operation in OPERATIONS}
    return ", ".join(f"{name} {_mean(e):.2f} (least {min(e):.2f}, {len(e)} cases)" for name, e in ratios.items() if e)


def speed_rows(backend: str, part: str = "speed") -> list[Row]:
    result = results.load(backend, part)
    rows = [Row(**row) for row in result.rows] if result else []
    return [row._replace(times=row.times and Quartiles(*row.times)) for row in rows]


def _section(backend: str) -> str:
    """Of all that was measured on one backend."""
    result, rows = results.load(backend, "speed"), speed_rows(backend)
    if result is None:
        return ""
    picture = f"figures/speed-{backend}.svg"
    figures.speed(DOCS / picture, rows, OPERATIONS)
    parts = [
        f"## On {_place(result.machine)}\n",
        *_summaries(rows),
        f"![The time of each peer over ours, by case and operation]({picture})\n",
        "Our time in milliseconds with its quartiles, and each peer's time over ours:\n",
        *(_speed_table(rows, operation) for operation in OPERATIONS),
        *(note + "\n" for mark, note in _NOTES.items() if any(_mark(row) == mark for row in rows)),
        _all_figures(rows),
        _kept_memory(rows, speed_rows(backend, "speed-keep")),
        _scaling(backend),
        _memory(backend),
        _measured_on(result.machine),
    ]
    return "\n".join(part for part in parts if part)


def _place(machine: dict[str, Any]) -> str:
    on_cpu = machine["device"] == "cpu"
    return f"{machine['cores']} cores of an {machine['processor']}" if on_cpu else machine["device"]


def _measured_on(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"Measured on {machine['date']} on {_place(machine)}: {machine['system']}, {versions}.\n"


# ---- speed


def _by_case(rows: Iterable[Row], operation: str, kinds: Iterable[str]) -> dict[str, dict[str, Row]]:
    """The rows of each case, by peer."""
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.operation == operation and row.kind in kinds:
            cases.setdefault(row.case, {})[row.peer] = row
    return cases


def _ratios(rows: Iterable[Row], operation: str, peer: str, kinds: Iterable[str]) -> list[float]:
    """The peer's time over ours, in each case."""
    cases = _by_case(rows, operation, kinds).values()
    return [at[peer].times.median / at[OURS].times.median for at in cases if peer in at and at[peer].times]


def _mean(ratios: Sequence[float]) -> float:
    """The geometric one."""
    return float(np.exp(np.mean(np.log(ratios))))


def _summaries(rows: Sequence[Row]) -> Iterator[str]:
    yield "A peer's time over ours: geometric mean (least; number of cases).\n"
    for title, kinds in _KINDS.items():
        lines = []
        for peer in PEERS:
            ratios = [_ratios(rows, operation, peer, kinds) for operation in OPERATIONS]
            if peer != OURS and any(ratios):
                lines.append(
                    [
                        peer,
                        *(f"**{_mean(each):.2f}** ({min(each):.2f}; {len(each)})" if each else "" for each in ratios),
                    ]
                )
        yield _table([title, *OPERATIONS], lines)


def _speed_table(rows: Sequence[Row], operation: str) -> str:
    peers = _peers(row for row in rows if row.operation == operation)
    lines = []
    for title, kinds in _KINDS.items():
        for case, at in _by_case(rows, operation, kinds).items():
            cost = [f"{at[OURS].compile_seconds:.1f}", _mib(at[OURS].temporaries)]
            lines.append([case, _milliseconds(at[OURS]), *(_ratio(at, peer) for peer in peers), *cost])
        means = [_ratios(rows, operation, peer, kinds) for peer in peers]
        lines.append(
            [f"*{title}, geometric mean*", "", *(f"*{_mean(each):.2f}*" if each else "" for each in means), "", ""]
        )
    header = ["", "jax_crop, ms", *peers, "compile, s", "temporaries, MiB"]
    return f"### {operation.capitalize()}\n\n{_table(header, lines)}"


def _peers(rows: Iterable[Row]) -> list[str]:
    """All but us, in their order."""
    here = {row.peer for row in rows} - {OURS}
    return [peer for peer in (*PEERS, FLOOR) if peer in here]


def _milliseconds(row: Row) -> str:
    return f"{row.times.median:.2f} ({row.times.lower:.2f}–{row.times.upper:.2f})" if row.times else "not run"


def _ratio(at: dict[str, Row], peer: str) -> str:
    """The peer's time over ours."""
    if peer not in at:
        return ""
    if at[peer].times is None:
        return f"needs {at[peer].temporaries / 2**30:.1f} GiB"
    return f"{at[peer].times.median / at[OURS].times.median:.2f}{_mark(at[peer])}"


def _mark(row: Row) -> str:
    return "¹" if row.peer == RACING else "" if row.agrees else "²"


def _all_figures(rows: Iterable[Row]) -> str:
    lines = [
        [
            row.case,
            row.operation,
            row.peer,
            _milliseconds(row),
            f"{row.difference:.0e}" if row.times and row.peer not in (OURS, FLOOR) else "",
            "" if row.compile_seconds is None else f"{row.compile_seconds:.1f}",
            "" if row.temporaries is None else _mib(row.temporaries),
        ]
        for row in rows
    ]
    header = ["", "", "", "ms (quartiles)", "largest difference", "compile, s", "temporaries, MiB"]
    return f'<details markdown="1"><summary>All figures</summary>\n\n{_table(header, lines)}\n</details>\n'


def _kept_memory(usual: Sequence[Row], kept: Sequence[Row]) -> str:
    """When the allocator keeps what is freed: means, and those cases where that makes a difference to us."""
    if not kept:
        return ""
    peers = [peer for peer in _peers(kept) if peer != RACING]
    lines = []
    for operation in OPERATIONS:
        before, after = (_by_case(rows, operation, sum(_KINDS.values(), ())) for rows in (usual, kept))
        for case in after:
            if after[case][OURS].times.median > _NOTICED * before[case][OURS].times.median:
                continue
            times = f"{before[case][OURS].times.median:.2f} → {after[case][OURS].times.median:.2f}"
            ratios = (
                f"{_ratio(before[case], p)} → {_ratio(after[case], p)}" if p in after[case] else "" for p in peers
            )
            lines.append([f"{case}: {operation}", times, *ratios])
    settings = " ".join(f"{name}={value}" for name, value in results.KEEP.items())
    parts = [
        _ALLOCATOR.format(settings=settings),
        *_summaries(kept),
        "By default → with freed memory kept, where that saves a quarter of our time or more:\n",
        _table(["", "jax_crop, ms", *peers], lines),
    ]
    return "\n".join(parts)


# ---- the rest


def _scaling(backend: str) -> str:
    result = results.load(backend, "scaling")
    if result is None:
        return ""
    points = [scaling.Point(**row) for row in result.rows]
    pictures = []
    for name, axis in scaling.AXES.items():
        picture = f"figures/scaling-{name}-{backend}.svg"
        figures.scaled(DOCS / picture, name, points)
        pictures.append(f"![Time against {axis.title}]({picture})\n")
    return "### As the work grows\n\n" + "\n".join(pictures)


def _memory(backend: str) -> str:
    result = results.load(backend, "memory")
    if result is None:
        return ""
    lines = []
    for row in (memory.Row(**row) for row in result.rows):
        verdict = "" if row.temporaries <= row.bound else " **over**"
        counts = [_mib(row.temporaries) + verdict, _mib(row.bound), _mib(row.temporaries_tenfold)]
        lines.append([row.case, row.operation, *counts])
    return f"{_BOUNDS}\n{_table(['', '', 'temporaries', 'bound', 'with ten times the boxes'], lines)}"


def _mib(count: int) -> str:
    return f"{count / memory.MIB:.2f}"


def _correctness() -> list[str]:
    result = results.load("cpu", "correctness")
    if result is None:
        return []
    names = list(result.rows[0]["answers"])
    lines = [[row["question"], *(row["answers"][name] for name in names)] for row in result.rows]
    return [_STAND, _table(["", *names], lines), _measured_on(result.machine)]


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] + ["---:"] * (len(header) - 1), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
