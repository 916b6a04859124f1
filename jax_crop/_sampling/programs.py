"""Which program runs where, and why.

=========  ==================================================================================================
gather     the formula itself: wherever thousands of threads work at once, or XLA partitions the work
loops      a CPU: XLA would form in memory what a scatter or a sum adds, and a stack of all maps of a pyramid
=========  ==================================================================================================
"""

from types import ModuleType

from jax_crop._sampling import loops


def of(partitioned: bool) -> dict[str, ModuleType]:
    """The programs of platforms that do not run `gather`, for what XLA partitions over devices or does not."""
    return {} if partitioned else {"cpu": loops}
