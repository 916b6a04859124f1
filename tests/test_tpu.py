"""What a TPU would run, as its compiler says: small programs, compiled by a Python that has ``jax[tpu]``."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VARIABLE = "JAX_CROP_TPU_PYTHON"
BOXES, SIZE, STEPS = 8, (7, 7), 1000
SAMPLES = BOXES * SIZE[0] * SIZE[1]  # at least: ROIAlign takes four for a bin

PROGRAM = f"""
import json
import numpy as np
from benchmarks.accelerators import devices, look
import jax
import jax_crop
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

struct = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")
maps, boxes, crops_bar = struct(2, 32, 32, 8), struct(2, {BOXES // 2}, 4), struct(2, {BOXES // 2}, *{SIZE}, 8)
operations = {{
    "crop_and_resize": lambda maps, boxes: jax_crop.crop_and_resize(maps, boxes, None, {SIZE}),
    "roi_align": lambda maps, boxes: jax_crop.roi_align(maps, boxes, None, {SIZE}),
    "multilevel_roi_align": lambda maps, boxes: jax_crop.multilevel_roi_align(
        (maps, maps[:, ::2, ::2]), boxes, None, {SIZE}
    ),
}}
loops = {{"loop": look(lambda x: jax.lax.fori_loop(0, {STEPS}, lambda i, x: x @ x, x), struct(8, 8)).longest_loop}}
for name, crop in operations.items():
    gradients = lambda maps, boxes, crops_bar: jax.vjp(crop, maps, boxes)[1](crops_bar)
    loops[name] = look(gradients, maps, boxes, crops_bar).longest_loop

# On four, with so many boxes that they go in chunks; the forward pass is part of the gradients.
mesh = Mesh(np.array(devices("v5e")).reshape(2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
on_mesh = lambda shape, *axes: jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh, P(*axes)))
maps, boxes = on_mesh((4, 64, 64, 256), "data"), on_mesh((4, 100, 4), "data", "model")
loss = lambda maps, boxes: (jax_crop.crop_and_resize(maps, boxes, None, (14, 14)) ** 2).sum()
with jax.set_mesh(mesh):
    on_four = look(jax.grad(loss, (0, 1)), maps, boxes)
print(json.dumps([loops, on_four.longest_loop, on_four.collectives]))
"""


@pytest.fixture(scope="module")
def seen():
    python = os.environ.get(VARIABLE)
    if python is None:
        missing = f"{VARIABLE} must name a Python with jax[tpu]: pip install --editable '.[accelerators]'"
        (pytest.fail if "CI" in os.environ else pytest.skip)(missing)
    child = subprocess.run([python, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


def test_gradients_are_no_loops_over_samples(seen):
    longest = dict(seen[0])
    assert longest.pop("loop") == STEPS  # one that is there is seen
    assert max(longest.values()) < SAMPLES, longest


def test_devices_of_an_automatic_mesh_only_sum_image_gradients(seen):
    """Each has its own images, or shares them and has some of their boxes."""
    _, chunks, collectives = seen
    assert chunks > 1
    assert collectives == {"all-reduce": 1}
