"""What the first call costs: to trace, lower and compile, each time in a fresh process, and the program's size.

``python -m benchmarks.first_call crop "jnp gather" forward`` is such a process.
"""

import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

import jax_crop
from benchmarks.cases import CROPS, Case, abstract
from benchmarks.measure import Row
from benchmarks.peers import GATHER, OURS, gather

CROP = "crop"
FORWARD, GRADIENTS = "forward", "value and both gradients"
_TIMES = 15

# Samples per bin and axis; of an adaptive number, at most so many.
_SAMPLES = [{"sampling_ratio": n} for n in (1, 2, 8, 16)]
_SAMPLES += [{"sampling_ratio": 0, "max_sampling_ratio": n} for n in (8, 32)]
_FUNCTIONS: dict[str, dict[str, tuple[Case, Callable[..., jax.Array]]]] = {
    CROP: {OURS: (CROPS[0], jax_crop.crop_and_resize), GATHER: (CROPS[0], gather)}
}
for _options in _SAMPLES:
    _name = ", ".join(f"{name}={value}" for name, value in _options.items())
    _FUNCTIONS[f"roi_align, {_name}"] = {OURS: (CROPS[2], functools.partial(jax_crop.roi_align, **_options))}


def measure(quick: bool = False) -> list[Row]:
    rows = []
    for case, operation in itertools.product(_FUNCTIONS, (FORWARD, GRADIENTS)):
        turns = [
            {who: _in_a_process(case, who, operation) for who in _FUNCTIONS[case]}
            for _ in range(1 if quick or case != CROP else _TIMES)
        ]
        for who in _FUNCTIONS[case]:
            seconds = statistics.median(turn[who]["seconds"] for turn in turns)
            instructions = turns[0][who]["instructions"]
            rows.append(Row(case, operation, who, compile_seconds=seconds, instructions=instructions))
            print(f"{case}, {operation}, {who}: {seconds:.2f} s, {instructions} instructions", flush=True)
    return rows


def _in_a_process(case: str, who: str, operation: str) -> dict[str, Any]:
    """Of its own, where nothing was compiled before."""
    command = [sys.executable, "-m", "benchmarks.first_call", case, who, operation]
    fresh = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return json.loads(subprocess.check_output(command, env=fresh))


def first_call(case: str, who: str, operation: str) -> dict[str, float]:
    setting, function = _FUNCTIONS[case][who]
    data = abstract(setting)

    def crop(image: Any, boxes: Any, indices: Any) -> jax.Array:
        return function(image, boxes, indices, setting.size)

    def loss(image: Any, boxes: Any, indices: Any) -> jax.Array:
        return (crop(image, boxes, indices) ** 2).sum()

    jax.jit(lambda x: x + 1).lower(data.boxes).compile()  # JAX's own first time
    start = time.perf_counter()
    program = jax.jit(crop if operation == FORWARD else jax.value_and_grad(loss, (0, 1)))
    compiled = program.lower(data.maps[0], data.boxes, data.box_indices).compile()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "instructions": compiled.as_text().count(" = ")}


if __name__ == "__main__":
    print(json.dumps(first_call(*sys.argv[1:])))
