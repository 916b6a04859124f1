"""Which program runs where, and why.

=========  =============================================================================================================
gather     the formula itself: wherever thousands of threads work at once, or XLA partitions the work of a CPU
loops      a CPU: XLA would form in memory what a scatter or a sum adds, and a stack of all maps of a pyramid
products   a TPU: it multiplies matrices a thousand times faster than it gathers pixels, or adds to them
bands      a CPU, where a kernel weighs many pixels (`by_kernel`): loops over those alone; all else takes products there
=========  =============================================================================================================
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from jax_crop._sampling import gather, loops, products


class Program(NamedTuple):
    """The crops of `sample`, and the three sums of `linear`."""

    values: Callable[..., Any]
    crops: Callable[..., Any]
    images: Callable[..., Any]
    weights: Callable[..., Any]


def of(devices: int | None) -> dict[str, Program]:
    """By platform, ``"default"`` for all others.

    ``devices`` is over how many XLA partitions the work, None if it does not.
    """
    of_tpu = products.values, products.crops, products.images, products.weights
    by_gather = Program(gather.values, gather.crops, gather.images, gather.weights)
    by_loops = Program(loops.values, loops.crops, loops.images, loops.weights)
    by_products = Program(*(functools.partial(program, devices=devices) for program in of_tpu))
    return {"default": by_gather, "tpu": by_products, "cpu": by_loops if devices is None else by_gather}
