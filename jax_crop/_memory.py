"""Values that are computed once: XLA on a CPU computes them anew in each loop that reads them, unless told not to."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.xla_metadata import set_xla_metadata


def in_memory(integers: Array, floats: Array) -> tuple[Array, Array]:
    """The same int32 numbers and floats; on a CPU in memory, and computed in one loop."""
    return lax.platform_dependent(integers, floats, cpu=_in_one_loop, default=lambda *arrays: arrays)


def _in_one_loop(integers: Array, floats: Array) -> tuple[Array, Array]:
    # A loop of XLA's has one result. Complex numbers have two parts, of any bits.
    word = jnp.int32 if floats.dtype == jnp.float32 else jnp.int64
    bits = lax.bitcast_convert_type(integers.astype(word), floats.dtype)
    pairs = call(lax.optimization_barrier, lax.complex(bits, floats))  # JAX would skip a call that does nothing
    return lax.bitcast_convert_type(lax.real(pairs), word).astype(jnp.int32), lax.imag(pairs)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` as a call that XLA does not inline."""
    with set_xla_metadata(inlineable="false"):
        return jax.jit(function)(*arguments)
