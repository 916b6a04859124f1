"""Measure speed, memory and correctness, and write the pages in docs/.

On a GPU the same command measures there, beside those peers that have one. ``python -m benchmarks accelerators`` asks
the compilers of TPUs and GPUs instead, and needs neither.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".5")  # PyTorch wants some of a GPU too

if sys.argv[1:2] == ["accelerators"]:  # with other settings of JAX, and other packages than what follows
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.accelerators_page", *sys.argv[2:]])

import jax

from benchmarks import correctness, memory, report, results, scaling, speed
from benchmarks.cases import ALL, Case
from benchmarks.measure import QUICK, Effort

_PARTS = ("speed", "scaling", "memory", "correctness")
_PAGES = "pages"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        help=f"what to measure ({', '.join(_PARTS)}; all of it by default); {_PAGES} only writes the pages from saved "
        "results; any other text chooses the cases that have it in their name, and nothing is saved",
    )
    parser.add_argument("--quick", action="store_true", help="hardly repeat anything, and save nothing")
    parser.add_argument(
        "--malloc",
        choices=("default", "keep"),
        default="default",
        help="keep: glibc keeps memory that is freed; only speed is measured",
    )
    options = parser.parse_args()

    keep = options.malloc == "keep"
    if keep and not results.keeps_freed_memory():  # glibc reads its settings as the process starts
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], os.environ | results.KEEP)

    texts = [name for name in options.names if name not in (*_PARTS, _PAGES)]
    parts = [name for name in options.names if name in _PARTS]
    if not parts and _PAGES not in options.names:
        parts = ["speed"] if keep or texts else list(_PARTS)
    cases = [case for case in ALL if all(text in case.name for text in texts)]
    if not cases:
        parser.error(f"no case has {' and '.join(texts)} in its name: {'; '.join(case.name for case in ALL)}")

    saves = not (texts or options.quick)
    for part in parts:
        rows = _measure(part, cases, QUICK if options.quick else Effort())
        if saves:
            results.save(f"{part}-keep" if keep else part, rows)
    if saves and not keep:
        if "speed" in parts and jax.default_backend() == "cpu":  # once more, under other settings of the allocator
            subprocess.run([sys.executable, "-m", "benchmarks", "speed", "--malloc", "keep"], check=True)
        report.write()
        print(report.headline(jax.default_backend()))


def _measure(part: str, cases: Sequence[Case], effort: Effort) -> Sequence[Any]:
    if part == "speed":
        return speed.measure(cases, effort)
    if part == "scaling":
        return scaling.measure(effort._replace(seconds=effort.seconds / 2))
    if part == "memory":
        return memory.measure(cases)
    return correctness.measure(quick=effort == QUICK)


if __name__ == "__main__":
    main()
