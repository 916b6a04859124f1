"""What compiled programs hold beside arguments and results, as the compiler states it: exact, and nothing runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cases, memory
from jax_crop import crop_and_resize

OPERATIONS = [
    pytest.param(case, operation, id=f"{case.name}, {operation}")
    for case in cases.ALL
    for operation in memory.OPERATIONS
    if operation in case.operations
]


@pytest.mark.parametrize(("case", "operation"), OPERATIONS)
def test_temporaries_are_tables(case, operation):
    """Of positions; neither what a gather reads nor what a scatter adds is held in memory."""
    row = memory.measure_one(case, operation)
    allowed = row.bound
    if (case.dtype, operation) == ("bfloat16", "image gradient"):
        allowed += 4 * np.prod(case.maps[0])  # summed in float32: XLA on CPUs cannot add to bfloat16 in place
    assert row.temporaries <= allowed
    assert row.temporaries_tenfold <= 11 * row.temporaries + 2**20


@pytest.mark.parametrize("boxes", [1, 2])
def test_forward_temporaries_with_boxes_for_each_image(boxes):
    crop = jax.jit(lambda images, boxes: crop_and_resize(images, boxes, None, (96, 96)))
    images, boxes = jax.ShapeDtypeStruct((16, 64, 64, 3), np.uint8), jax.ShapeDtypeStruct((16, boxes, 4), jnp.float32)
    compiled = crop.lower(images, boxes).compile()
    crops = np.prod(compiled.out_info.shape) * 4
    assert compiled.memory_analysis().temp_size_in_bytes <= 2**20 + crops // 50
