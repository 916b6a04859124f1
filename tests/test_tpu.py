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
from benchmarks.accelerators import look
import jax
import jax_crop

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
print(json.dumps(loops))
"""


def test_gradients_are_no_loops_over_samples():
    python = os.environ.get(VARIABLE)
    if python is None:
        missing = f"{VARIABLE} must name a Python with jax[tpu]: pip install --editable '.[accelerators]'"
        (pytest.fail if "CI" in os.environ else pytest.skip)(missing)
    child = subprocess.run([python, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    longest = json.loads(child.stdout.splitlines()[-1])
    assert longest.pop("loop") == STEPS  # one that is there is seen
    assert max(longest.values()) < SAMPLES, longest
