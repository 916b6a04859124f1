"""Temporary memory as the compiler states it: exact, and nothing is allocated, so shapes are as large as one likes."""

import functools
import itertools
import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax

from benchmarks.cases import Case, abstract
from benchmarks.forms import BASE, BATCH, BOXES, DERIVATIVES, FORWARD, IMAGE, JVP_IMAGE, Crop, derivative
from benchmarks.measure import Row
from benchmarks.peers import ours

OPERATIONS = (FORWARD, IMAGE, BOXES)
MIB = 2**20

# Images large against their crops, and the reverse.
_LARGE_IMAGE = Case(((8, 1000, 1000, 16),), 16, (7, 7))
_MANY_CROPS = Case(((4, 16, 16, 16),), 4096, (28, 28))
_FORMS = {
    _LARGE_IMAGE.boxes: (BASE, "[B, N, 4]", "vmap over boxes", "vmap over images, then over boxes"),
    _MANY_CROPS.boxes: (BASE,),
}


def cases() -> Iterator[Case]:
    for case in (_LARGE_IMAGE, _MANY_CROPS):
        batch, height, width, channels = case.maps[0]
        levels = tuple((batch, height >> n, width >> n, channels) for n in range(2))
        for dtype in ("float32", "bfloat16"):
            yield case._replace(dtype=dtype)
            yield case._replace(dtype=dtype, method="antialiased")
            yield case._replace(dtype=dtype, strides=(4,))
            yield case._replace(dtype=dtype, strides=(4, 8), maps=levels)
        yield case._replace(dtype="uint8")
        yield case._replace(dtype="uint8", method="antialiased")


def programs() -> Iterator[tuple[Case, str, str]]:
    """Case, derivative and form; integer images have no derivatives of their own."""
    for case, operation in itertools.product(cases(), DERIVATIVES):
        if case.dtype != "uint8" or operation not in (IMAGE, JVP_IMAGE):
            yield from ((case, operation, form) for form in _FORMS[case.boxes])


def measure(quick: bool = False) -> list[Row]:
    """As many compilers at a time as there are cores."""
    chosen = list(programs())[:: 40 if quick else 1]
    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row in pool.map(lambda program: measure_one(*program), chosen):
            rows.append(row)
            over = f", over {row.bound / MIB:.2f}" if row.temporaries > row.bound else ""
            print(f"{row.case}, {row.operation}, {row.who}: {row.temporaries / MIB:.2f} MiB{over}", flush=True)
    return rows


def measure_one(case: Case, operation: str, form: str = BASE) -> Row:
    program = compile_program(BATCH[form](functools.partial(ours, case)), case, operation)
    temporaries = program.memory_analysis().temp_size_in_bytes
    return Row(case.name, operation, form, temporaries=temporaries, bound=bound(case, operation))


def compile_program(function: Crop, case: Case, operation: str) -> jax.stages.Compiled:
    data = abstract(case)
    arguments = data.maps, data.boxes, data.box_indices
    crops_bar = jax.eval_shape(function, *arguments)
    return jax.jit(derivative(function, operation)).lower(*arguments, crops_bar).compile()


def bound(case: Case, operation: str) -> int:
    """What we allow ourselves."""
    if operation == FORWARD:
        return MIB + case.crops_bytes // 50
    if operation in OPERATIONS:
        return 16 * MIB + (case.image_bytes + case.crops_bytes) // 8 + _summed(case, operation)
    return 16 * MIB + 2 * 4 * math.prod(case.crops_shape)  # in float32, in which everything is interpolated


def largest(case: Case, operation: str) -> int:
    """What no array of a program is larger than."""
    return case.image_bytes + case.crops_bytes + _summed(case, operation)


def _summed(case: Case, operation: str) -> int:
    """A 16-bit image's gradient is summed in float32, once: XLA on CPUs cannot add to bfloat16 in place."""
    return 2 * case.image_bytes if (case.dtype, operation) == ("bfloat16", IMAGE) else 0


def largest_buffer(program: jax.stages.Compiled) -> int:
    """Bytes of the largest array that an instruction makes; what stands within a fusion is never an array in memory."""
    text = program.as_text()
    fused = set(re.findall(r"calls=(%?[\w.-]+)", text))
    sizes = [0]
    for computation in re.split(r"\n(?=\S)", text):
        if computation.split(" ", 1)[0] not in fused:
            for bits, shape in re.findall(r" = [a-z]+(\d*)\w*\[([\d,]+)\]\S* (?!parameter)", computation):
                sizes.append(math.prod(map(int, shape.split(","))) * max(int(bits or 8) // 8, 1))
    return max(sizes)
