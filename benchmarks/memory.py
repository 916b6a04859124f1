"""Temporary memory as the compiler states it: exact, and without running anything."""

from collections.abc import Iterable
from typing import NamedTuple

import jax

from benchmarks.cases import Case, abstract
from benchmarks.peers import jax_function, ours

OPERATIONS = ("forward", "image gradient", "box gradient")
MIB = 2**20


class Row(NamedTuple):
    """Bytes that one operation on one case holds beside its arguments and results, and with ten times the boxes."""

    case: str
    operation: str
    temporaries: int
    bound: int
    temporaries_tenfold: int


def measure(cases: Iterable[Case]) -> list[Row]:
    rows = []
    for case in cases:
        for operation in OPERATIONS:
            if operation in case.operations:
                rows.append(measure_one(case, operation))
                print(f"{case.name}, {operation}: {rows[-1].temporaries / MIB:.2f} MiB of temporaries", flush=True)
    return rows


def measure_one(case: Case, operation: str) -> Row:
    here, tenfold = (_temporaries(each, operation) for each in (case, case._replace(boxes=10 * case.boxes)))
    return Row(case.name, operation, here, _bound(case, operation), tenfold)


def _temporaries(case: Case, operation: str) -> int:
    compiled = jax.jit(jax_function(ours, case, operation)).lower(abstract(case)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def _bound(case: Case, operation: str) -> int:
    """What we allow ourselves."""
    return MIB + case.crops_bytes // 50 if operation == "forward" else 16 * MIB + case.crops_bytes // 8
