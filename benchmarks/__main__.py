"""Measure speed, memory and correctness, and write the pages in docs/.

All parts take half an hour on two cores; each is saved as soon as it is measured. On a GPU the same command measures
there, beside those peers that have one. ``python -m benchmarks accelerators`` asks the compilers of TPUs and GPUs
instead, and needs neither.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".5")  # PyTorch wants some of a GPU too

if sys.argv[1:2] == ["accelerators"]:  # with other settings of JAX, and other packages than what follows
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.accelerators_page", *sys.argv[2:]])

import jax

from benchmarks import compositions, correctness, first_call, memory, report, results, speed
from benchmarks.cases import CROPS, KERNELS, ROIS, Case
from benchmarks.measure import QUICK, Effort
from benchmarks.peers import TORCHVISION

_PAGES = "pages"
_ALL = (*CROPS, *ROIS, *KERNELS)

# What each part measures, of the chosen cases where it has such.
_PARTS: dict[str, Callable[[Sequence[Case], Effort], Sequence[Any]]] = {
    "speed": lambda cases, effort: speed.measure([c for c in cases if c not in KERNELS], effort),
    "kernels": lambda cases, effort: speed.measure([c for c in cases if c in KERNELS], effort),
    "torchvision": lambda _, effort: speed.beside(TORCHVISION, ROIS, effort),
    # Forms differ by little: in few turns, by less than what else the machine does.
    "compositions": lambda _, effort: compositions.measure(effort._replace(turns=5 * effort.turns)),
    "first_call": lambda _, effort: first_call.measure(quick=effort == QUICK),
    "scaling": lambda _, effort: speed.scaling(effort._replace(seconds=effort.seconds / 2)),
    "memory": lambda _, effort: memory.measure(quick=effort == QUICK),
    "correctness": lambda _, effort: correctness.measure(quick=effort == QUICK),
}
_ELSEWHERE = ("torchvision",)  # in an environment of its own
_ALSO_KEPT = ("speed", "kernels")  # measured once more, under other settings of the allocator


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
        "--malloc", choices=("default", "keep"), default="default", help="keep: glibc keeps freed memory"
    )
    options = parser.parse_args()

    keep = options.malloc == "keep"
    if keep and not results.keeps_freed_memory():  # glibc reads its settings as the process starts
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], os.environ | results.KEEP)

    texts = [name for name in options.names if name not in (*_PARTS, _PAGES)]
    cases = [case for case in _ALL if all(text in case.name for text in texts)]
    if not cases:
        parser.error(f"no case has {' and '.join(texts)} in its name: {'; '.join(case.name for case in _ALL)}")
    parts = [name for name in options.names if name in _PARTS]
    if not parts and _PAGES not in options.names:
        parts = list(_ALSO_KEPT if keep or texts else [part for part in _PARTS if part not in _ELSEWHERE])
    if missing := [part for part in parts if part in _ELSEWHERE and not importlib.util.find_spec(part)]:
        parser.error(f"{missing[0]} is not installed: benchmarks/peers.py says how")

    saves = not (texts or options.quick)
    start = time.perf_counter()
    for part in parts:
        effort = QUICK if options.quick else Effort(turns=3) if keep else Effort()
        rows = _PARTS[part](cases, effort)
        if saves:
            results.save(f"{part}-keep" if keep else part, rows)
        print(f"== {part}: done after {(time.perf_counter() - start) / 60:.1f} minutes\n", flush=True)
        if saves and not keep and part in _ALSO_KEPT and jax.default_backend() == "cpu":
            subprocess.run([sys.executable, "-m", "benchmarks", part, "--malloc", "keep"], check=True)
    if not keep and (saves or _PAGES in options.names):
        report.write()
        print("\n".join(report.headlines(jax.default_backend())))


if __name__ == "__main__":
    main()
