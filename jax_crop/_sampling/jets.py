"""Values with how they move along a direction, as loops carry them: a product is that of both, with its derivative."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_crop._sampling.tables import total

# A value; and if anything moves, how it does: one array or tree of arrays, or two of the same shapes.
Jet = tuple[Any, ...]


def applied(function: Callable[..., Any], *jets: Jet) -> Jet:
    """A function's value; and its move, if those of what it is given are known."""
    values, *moves = zip(*jets, strict=True)
    return jax.jvp(function, values, moves[0]) if moves else (function(*values),)


def product(a: Jet, b: Jet) -> Jet:
    """Of which either may stand still."""
    moves = [move * value for move, value in (*zip(a[1:], b, strict=False), *zip(b[1:], a, strict=False))]
    return (a[0] * b[0], total(moves)) if moves else (a[0] * b[0],)


def inverse(jet: Jet) -> Jet:
    return applied(lambda value: 1 / value, jet)


def plus(a: Any, b: Any) -> Any:
    return jax.tree.map(lax.add, a, b)


def nothing(like: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, like)
