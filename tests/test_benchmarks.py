"""The benchmarks: every peer computes what the library does, clocks run in turn, and pages say what was measured."""

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import correctness, figures, memory, report, results, scaling, speed
from benchmarks.cases import OPERATIONS, Case, make
from benchmarks.measure import QUICK, Effort, Quartiles, in_turn
from benchmarks.peers import GATHER, OURS, RACING, TENSORFLOW, Call
from tests import oracle

CROP = Case(((2, 20, 24, 3),), 6, (5, 4))
ROI = CROP._replace(strides=(16,))
PYRAMID = Case(((2, 40, 48, 3), (2, 20, 24, 3), (2, 10, 12, 3)), 6, (5, 4), strides=(4, 8, 16))


@pytest.mark.parametrize(
    ("case", "operation"),
    [
        (CROP, "forward"),
        (CROP, "image gradient"),
        (CROP, "training step"),
        (CROP._replace(dtype="uint8"), "box gradient"),
        (ROI, "box gradient"),
        (PYRAMID, "forward"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_peers_compute_the_same(case, operation):
    rows = speed.of_operation(case, operation, make(case), QUICK, bandwidth=1e9)
    assert {row.peer for row in rows} >= {OURS, GATHER}
    assert all(row.agrees for row in rows), rows
    assert all(row.times.lower <= row.times.median <= row.times.upper for row in rows)


def test_another_result_is_marked(monkeypatch):
    half = Call(lambda: 0.5, lambda result: result, lambda result: np.array([result, 1]))
    whole = half._replace(run=lambda: 1.0)
    monkeypatch.setattr(speed, "installed", lambda: {OURS: lambda *_: whole, GATHER: lambda *_: half})
    ours, theirs = speed.of_operation(CROP, "forward", make(CROP), QUICK, bandwidth=None)
    assert (ours.agrees, theirs.agrees, theirs.difference) == (True, False, 0.5)


def test_calls_take_turns():
    log = []
    calls = {name: Call(lambda name=name: name, log.append, np.asarray) for name in "ab"}
    times = in_turn(calls, Effort(turns=2, repeats=3, seconds=60))
    assert "".join(log) == "aaaabbbb" * 2  # one untimed call and three timed ones
    assert times.keys() == calls.keys()


def test_floor_counts_pixels_in_use_once():
    # Samples at rows 2, 4 and columns 2, 4 of one image read rows and columns 2 to 5; the second box adds nothing.
    case = Case(((1, 9, 9, 3),), 2, (2, 2))
    boxes = np.array([[0.25, 0.25, 0.5, 0.5]] * 2, np.float32)
    data = make(case)._replace(boxes=boxes, box_indices=np.zeros(2, np.int32), levels=np.zeros(2, np.int32))
    crops = 2 * 2 * 2 * 3 * 4
    assert speed.moved_bytes(case, "forward", data) == crops + 4 * 4 * 3 * 4
    assert speed.moved_bytes(case, "image gradient", data) == crops + 9 * 9 * 3 * 4


def test_wrong_decisions_are_counted():
    decisions = correctness.decisions(10_000, adversarial=True)
    inside = [samples.inside for samples in decisions]

    def crop(_image, boxes, _box_indices, size):
        axis = oracle.samples(boxes[:, 0], boxes[:, 2], 2, size[0])
        return np.repeat(axis.inside[:, :, None, None], size[1], axis=2).astype(np.float32)

    right = correctness.Implementation(crop, None, None)
    wrong = right._replace(crop=lambda *arguments: 1 - crop(*arguments))
    assert inside[0].any()
    assert correctness.wrong_decisions(right, decisions) == "0"
    assert correctness.wrong_decisions(wrong, decisions) == "1,000,000"


def test_memory_needs_no_run():
    row = memory.measure_one(CROP, "forward")
    assert 0 < row.temporaries <= row.bound == 2**20 + CROP.crops_bytes // 50


def scaling_points():
    axes = [(name, operation) for name in scaling.AXES for operation in scaling.OPERATIONS]
    return [scaling.Point(*axis, peer, n, float(n)) for axis in axes for peer in (OURS, TENSORFLOW) for n in (1, 10)]


def test_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(report, "DOCS", tmp_path)

    def row(case, peer, milliseconds, agrees=True, operation="forward"):
        times = Quartiles(milliseconds, milliseconds, milliseconds)
        return speed.Row("crop_and_resize", case, operation, peer, times, 0.25, agrees, 0.5, 2**20)

    rows = [row("small", OURS, 1), row("small", TENSORFLOW, 2), row("small", RACING, 3), row("small", GATHER, 5, False)]
    rows += [row("large", OURS, 10), row("large", TENSORFLOW, 80)]
    rows += [row("large", GATHER, 0)._replace(times=None, temporaries=3 * 2**30)]
    rows += [row("small", peer, 1, operation=operation) for operation in OPERATIONS[1:] for peer in (OURS, GATHER)]
    results.save("speed", rows)
    results.save("speed-keep", [row("large", OURS, 5), row("large", TENSORFLOW, 60)])
    results.save("memory", [memory.Row("large", "forward", 2 * 2**20, 2**20, 3 * 2**20)])
    results.save("scaling", scaling_points())
    results.save("correctness", [correctness.Finding("wrong decisions", {TENSORFLOW: "7", OURS: "0"})])
    report.write()

    page = (tmp_path / "performance.md").read_text()
    for text in (
        "| TensorFlow | **4.00** (2.00; 2) |",  # the geometric mean of 2 and 8, and the least
        "| small | 1.00 (1.00–1.00) | 2.00 | 3.00¹ | 5.00² | 0.5 | 1.00 |",
        "| large | 10.00 (10.00–10.00) | 8.00 |  | needs 3.0 GiB | 0.5 | 1.00 |",
        "| TensorFlow | **12.00** (12.00; 1) |",
        "| large: forward | 10.00 → 5.00 | 8.00 → 12.00 |",
        "| large | forward | 2.00 **over** | 1.00 | 3.00 |",
    ):
        assert text in page
    assert "| wrong decisions | 7 | 0 |" in (tmp_path / "correctness-table.md").read_text()
    assert (tmp_path / "figures" / "speed-cpu.svg").exists()
    assert "forward 4.00 (least 2.00, 2 cases); with freed memory kept: forward 12.00" in report.headline("cpu")


def test_pictures_do_not_change_by_themselves(tmp_path):
    for name in ("first.svg", "second.svg"):
        figures.scaled(tmp_path / name, "channels", scaling_points())
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()


def test_unknown_case(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "no such case"])
    with pytest.raises(SystemExit):
        command.main()
    assert "no case has no such case in its name" in capsys.readouterr().err
