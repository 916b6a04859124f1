"""XLA's habits on CPUs, contained: what each function relies on, and where that was seen.

Each is a matter of speed and memory alone: a compiler that does not know the attributes runs the same program.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.xla_metadata import set_xla_metadata

from jax_crop._light import Light, bitcast, maximum, where


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` as a call that XLA does not inline, which ends a fusion.

    `lax.optimization_barrier` does not: XLA takes it out on CPUs before it fuses. Seen with jaxlib 0.7.2 to 0.12.0.1.
    """
    with set_xla_metadata(inlineable="false"):
        return jax.jit(function)(*arguments)


def in_memory(tables: Any) -> Any:
    """The same tables; on a CPU in memory, for XLA computes what a gather needs anew for each element of its result."""
    return lax.platform_dependent(tables, cpu=lambda tables: call(_same, tables), default=lambda tables: tables)


def _same(tables: Any) -> Any:
    """Behind a barrier, for JAX would skip a call that does nothing."""
    return jax.tree.map(lax.optimization_barrier, tables)


def in_one_loop(integers: Light, flags: Light, floats: Light) -> tuple[Light, Light, Light]:
    """The same natural numbers where flags are true, flags, and floats; on a CPU in memory, and computed together.

    A loop of XLA's has one result. Complex numbers have two parts, of any bits.
    """
    arrays = integers.array, flags.array, floats.array
    integers, flags, floats = map(
        Light, lax.platform_dependent(*arrays, cpu=_as_complex, default=lambda *arrays: arrays)
    )
    return integers, flags, floats


def _as_complex(integers: Array, flags: Array, floats: Array) -> tuple[Array, Array, Array]:
    word = jnp.int32 if floats.dtype == jnp.float32 else jnp.int64
    code = where(flags, Light(integers).astype(word), jnp.iinfo(word).min)
    pairs = call(_same, lax.complex(bitcast(code, floats.dtype).array, floats))
    code = bitcast(Light(lax.real(pairs)), word)
    return maximum(code, 0).astype(jnp.int32).array, (code >= 0).array, lax.imag(pairs)


def small(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` as a call that XLA compiles as a whole on a CPU, to machine code that adds in place.

    XLA would run a loop as a program of its own for each step. It marks small loops so itself
    (`xla/service/cpu/small_while_loop_hoisting_pass.h`). Seen with jaxlib 0.7.2 to 0.12.0.1. XLA fails to compile a
    call that leaves an argument out of use, or of which it would split a part over its threads.
    """
    arguments = lax.optimization_barrier(arguments)  # a constant would move into the loops, and be in use no longer
    with set_xla_metadata(inlineable="false", xla_cpu_small_call="true"):
        return jax.jit(function)(*arguments)


def to_be_written(shape: Sequence[Any], dtype: Any, like: Array) -> Array:
    """An array of which a call is to write all; until then, a number of another array.

    Calls that begin with zeros share these, and XLA gives each of them a copy. Seen with jaxlib 0.7.2 to 0.12.0.1.
    """
    return jnp.broadcast_to(like[(0,) * like.ndim].astype(dtype), shape)
