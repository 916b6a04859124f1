"""XLA's habits on CPUs, contained: what each function relies on, and where that was seen.

Each is a matter of speed and memory alone. A compiler that does not know them runs the same program as it would any.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata


def in_memory(tables: Any) -> Any:
    """The same tables; on a CPU in memory, since XLA computes what a gather needs anew for every element of its result.

    A call that XLA does not inline ends a fusion; `lax.optimization_barrier` does not, for XLA takes it out before it
    fuses on CPUs. Seen with jaxlib 0.7.2 to 0.12.0.1.
    """
    same = functools.partial(jax.tree.map, lax.optimization_barrier)  # JAX would skip a call that does nothing
    return lax.platform_dependent(tables, cpu=functools.partial(_call, same), default=lambda tables: tables)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    with set_xla_metadata(inlineable="false"):
        return jax.jit(function)(*arguments)


def small(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` as a call that XLA's CPU compiler compiles as a whole, to machine code that adds in place.

    XLA would run a loop as a program of its own for each step. It marks small loops so itself
    (`xla/service/cpu/small_while_loop_hoisting_pass.h`). Seen with jaxlib 0.7.2 to 0.12.0.1. It fails if an argument is
    not in use, or if it would split a part of the call over its threads.
    """
    arguments = lax.optimization_barrier(arguments)  # a constant would move into the loops, and be in use no longer
    with set_xla_metadata(inlineable="false", xla_cpu_small_call="true"):
        return jax.jit(function)(*arguments)
