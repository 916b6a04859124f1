"""What small programs (`_calls.small`) are made of: reads, writes and loops that XLA compiles to plain machine code."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_crop._calls import call
from jax_crop._sampling.bits import converted, stored


def at(arrays: Any, *indices: int | Array) -> Any:
    """Element ``indices`` of arrays' first axes."""

    def element(array: Array) -> Array:
        shape = array.shape[len(indices) :]
        return take(array, (*indices, *[0] * len(shape)), (*[1] * len(indices), *shape)).reshape(shape)

    return jax.tree.map(element, arrays)


def take(array: Array, start: tuple[Any, ...], shape: tuple[int, ...]) -> Array:
    return lax.dynamic_slice(array, [jnp.int32(i) for i in start], shape, allow_negative_indices=False)


def put(array: Array, part: Array, start: tuple[Any, ...]) -> Array:
    return lax.dynamic_update_slice(array, part, [jnp.int32(i) for i in start], allow_negative_indices=False)


def only(inside: Array, values: Array) -> Array:
    """The values, 0 if not inside."""
    return lax.select(inside, values, jnp.zeros_like(values))  # jnp.where would remain a call


def loop(count: int | Array, body: Callable[[Array, Any], Any], carry: Any, unroll: int = 1) -> Any:
    """A step of the loop takes up to ``unroll`` of the body's, or down to half as many if fewer are left over then."""
    unroll = max(1, unroll)
    if isinstance(count, int):
        unroll = min(range(unroll, unroll // 2, -1), key=lambda steps: count % steps)
    return lax.fori_loop(0, count, lambda i, carry: body(jnp.asarray(i, jnp.int32), carry), carry, unroll=unroll)


def summed(values: Array) -> Array:
    """``[n, C]`` to ``[n]``; not by a reduction: XLA leaves large ones to a library, which a small call cannot use."""
    count, channels = values.shape
    lanes = math.gcd(channels if isinstance(channels, int) else 1, 16)  # so many sums at once, which are then folded

    def add(k: Array, sums: Array) -> Array:
        return sums + take(values, (0, k * lanes), (count, lanes))

    sums = loop(channels // lanes - 1, lambda k, sums: add(k + 1, sums), values[:, :lanes])
    while lanes > 1:
        lanes //= 2
        sums = sums[:, :lanes] + sums[:, lanes:]
    return sums[:, 0]


def floats(array: Array, start: tuple[Any, ...], shape: tuple[int, ...], dtype: Any) -> Array:
    """A part of an array, as `take` gives it, in another dtype.

    bfloat16 is read as integers (`bits`). XLA would move all of that out of loops, but it moves nothing out of a call,
    and reads no more than the part there. Yet it counts the whole array as the call's work, and splits that over
    threads, which small programs cannot use: unless the call writes in place. So the part is put into an array that is
    larger. Seen with jaxlib 0.7.2 to 0.12.0.1.
    """
    if array.dtype != jnp.bfloat16:
        return take(array, start, shape).astype(dtype)

    def put_part(array: Array, room: Array, *start: Array) -> Array:
        part = converted(take(stored(array), start, shape), array.dtype, dtype)
        return put(room, part, (0,) * len(shape))

    room = jnp.zeros((*shape[:-1], shape[-1] + 1), dtype)
    return call(put_part, array, room, *map(jnp.int32, start))[..., :-1]
