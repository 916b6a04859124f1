"""The benchmarks: peers and forms compute what the library does, clocks run in turn, pages say what was measured."""

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import compositions, correctness, first_call, report, results, speed
from benchmarks.cases import AXES, CROPS, KERNELS, OPERATIONS, ROIS, Case, make
from benchmarks.forms import BASE, BATCH, HVP, OF_GRADIENT, SQUARES
from benchmarks.measure import QUICK, Call, Effort, Quartiles, Row, in_turn, race
from benchmarks.peers import GATHER, OURS, RACING, TENSORFLOW
from tests import oracle

CROP = Case(((2, 20, 24, 3),), 6, (5, 4))
ROI = CROP._replace(strides=(16,))
PYRAMID = Case(((2, 40, 48, 3), (2, 20, 24, 3), (2, 10, 12, 3)), 6, (5, 4), strides=(4, 8, 16))
ANTIALIASED = Case(((2, 60, 70, 3),), 6, (5, 4), "uint8", smallest=0.3, method="antialiased")


@pytest.mark.parametrize(
    ("case", "operation"),
    [
        (CROP, "forward"),
        (CROP, "image gradient"),
        (CROP, "training step"),
        (CROP._replace(dtype="uint8"), "box gradient"),
        (ROI, "box gradient"),
        (PYRAMID, "forward"),
        (ANTIALIASED, "forward"),
        (ANTIALIASED._replace(method="antialiased cubic"), "image gradient"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_peers_compute_the_same(case, operation):
    rows = speed.of_operation(case, operation, make(case), QUICK)
    differ = {row.who for row in rows if not row.agrees}  # what is cut out first sees nothing beyond
    assert rows[0].who == OURS
    assert len(rows) > 1
    assert differ <= {"OpenCV resize", "PyTorch interpolate", "TensorFlow resize"}, rows
    assert all(row.times.lower <= row.times.median <= row.times.upper for row in rows)


def test_forms_compute_the_same():
    rows = compositions.of_forms(ROI, "box gradient", QUICK)
    assert all(row.agrees for row in rows), [row for row in rows if not row.agrees]
    assert {row.who for row in rows} >= {*BATCH, OF_GRADIENT}


def test_another_result_is_marked():
    half = Call(lambda: 0.5, lambda result: np.array([result, 1]))
    ours, theirs = race("", "", {OURS: half._replace(run=lambda: 1.0), GATHER: half}, QUICK, tolerance=0.1)
    assert (ours.agrees, theirs.agrees, theirs.difference) == (True, False, 0.5)


def test_calls_take_turns():
    log = []
    calls = {name: Call(lambda name=name: name, np.asarray, log.append) for name in "ab"}
    times = in_turn(calls, Effort(turns=2, repeats=3, seconds=60))
    assert "".join(log) == "aaaabbbb" * 2  # one untimed call and three timed ones
    assert times.keys() == calls.keys()


def test_wrong_decisions_are_counted():
    def crop(_image, boxes, _box_indices, size):
        axis = oracle.samples(boxes[:, 0], boxes[:, 2], _image.shape[1], size[0])
        return np.repeat(axis.inside[:, :, None, None], size[1], axis=2).astype(np.float32)

    assert correctness.wrong_decisions(crop, 10_000, adversarial=True) == "0"
    assert correctness.wrong_decisions(lambda *a: 1 - crop(*a), 10_000, adversarial=True) == "1,000,000"


def test_first_call():
    ten_lines = first_call.first_call(first_call.CROP, GATHER, first_call.FORWARD)
    assert ten_lines["seconds"] > 0
    assert 20 < ten_lines["instructions"] < 500


def test_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(report, "DOCS", tmp_path)
    report.write()
    assert "Not measured" in (tmp_path / "performance-tables.md").read_text()

    def row(case, who, milliseconds, operation="forward", agrees=True):
        times = milliseconds and Quartiles(*[milliseconds] * 3)
        return Row(case.name, operation, who, times, 0.25, agrees, 0.5, 3 * 2**30)

    small, large = CROPS[:2]
    rows = [row(small, OURS, 1.0), row(small, TENSORFLOW, 2.0), row(small, RACING, 3.0)]
    rows += [row(small, GATHER, 5.0, agrees=False), row(large, OURS, 10.0), row(large, TENSORFLOW, 80.0)]
    rows += [row(large, GATHER, None), row(ROIS[0], OURS, 1.0), row(ROIS[0], GATHER, 1.5)]
    results.save("speed", rows)
    results.save("speed-keep", [row(large, OURS, 5.0), row(large, TENSORFLOW, 60.0)])
    results.save("kernels", [row(KERNELS[0], OURS, 2.0), row(KERNELS[0], OURS, 6.0, "box gradient")])
    form, *_ = (form for form in BATCH if form != BASE)
    forms = [(BASE, 1.0), (form, 1.5), (BASE + compositions.PLAIN, 2.0), (form + compositions.PLAIN, 1.0)]
    rows = [row(small, who, milliseconds) for who, milliseconds in forms]
    rows += [row(small, who, time, "derivatives") for who, time in (("forward", 1.0), (SQUARES, 4.0), (HVP, 10.0))]
    results.save("compositions", rows)
    results.save(
        "first_call", [Row("crop", "forward", who, None, 0, True, 2.0, None, None, 9) for who in (OURS, GATHER)]
    )
    results.save("memory", [Row("large", "forward", BASE, temporaries=2 * 2**20, bound=2**20)])
    scaled = [axis.case(value) for axis in AXES.values() for value in axis.values]
    results.save(
        "scaling", [row(case, who, 1.0, op) for case in scaled for who in (OURS, TENSORFLOW) for op in OPERATIONS[:3]]
    )
    results.save("correctness", [correctness.Finding("wrong decisions", {TENSORFLOW: "7", OURS: "0"})])
    report.write()

    first, tables = ((tmp_path / name).read_text() for name in ("performance.md", "performance-tables.md"))
    assert (
        "| TensorFlow, crops | 4.00 (2.00)<br>12.00 (12.00) |" in first
    )  # the geometric mean of 2 and 8, and the least
    for text in (
        "| 1.00 (1.00–1.00) | 2.00 | 3.00¹ | 5.00² |",
        "| 10.00 (10.00–10.00) | 8.00 |  | needs 3.0 GiB |",
        f"| {KERNELS[0].name} | 1.00 (3072.00 MiB) | 3.00 (3072.00 MiB) |",
        f"The worst form costs 1.50 times `box_indices` ({small.name}; forward; {form})",
        "| 1.00 (3072.00) | 2.50 (3072.00) |",
        "| crop, forward | 2.00 s, 9 | 2.00 s, 9 | 1.00, 1.00 |",
        "| large | 2.00 of 1 **over** |",
        "| 255 | 1.00 (1.00) | 1.00 (1.00) | 1.00 (1.00) |",
    ):
        assert text in tables, text
    assert "| wrong decisions | 0 | 7 |" in (tmp_path / "correctness-table.md").read_text()
    assert "forward 4.00 (2.00) in 2 cases. With an allocator" in report.headlines("cpu")[1]


def test_docs_have_the_pages_of_the_results(tmp_path, monkeypatch):
    docs = report.DOCS
    monkeypatch.setattr(report, "DOCS", tmp_path)
    report.write()
    written = sorted(tmp_path.iterdir())
    assert len(written) == 3
    for page in written:
        assert page.read_text() == (docs / page.name).read_text(), page.name


def test_unknown_case(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "no such case"])
    with pytest.raises(SystemExit):
        command.main()
    assert "no case has no such case in its name" in capsys.readouterr().err
