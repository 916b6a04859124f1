"""Which program runs where, and why.

=========  ==================================================================================================
gather     the formula itself: wherever thousands of threads work at once, or XLA partitions the work of a CPU
loops      a CPU: XLA would form in memory what a scatter or a sum adds, and a stack of all maps of a pyramid
products   a TPU: it multiplies matrices a thousand times faster than it gathers pixels, or adds to them
=========  ==================================================================================================
"""

from types import ModuleType

from jax_crop._sampling import loops, products

PROGRAMS: dict[str, ModuleType] = {"cpu": loops, "tpu": products}


def of(partitioned: bool) -> dict[str, ModuleType]:
    """The programs of platforms that do not run `gather`, for what XLA partitions over devices or does not."""
    return {name: program for name, program in PROGRAMS.items() if not (partitioned and program is loops)}
