"""Python's search for garbage, which took a twelfth of the tests' time."""

import gc


def search_nothing():
    gc.disable()


def search_less():
    """Not in what was imported, which stays; and seldom, for JAX makes many objects that are no garbage."""
    gc.enable()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
