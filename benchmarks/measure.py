"""Time calls in turn."""

import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import Call


class Effort(NamedTuple):
    """How much to measure.

    Attributes:
        turns: how often each call has its turn.
        repeats: timed calls in a turn.
        seconds: a call that has been timed for so long sits out the rest.
    """

    turns: int = 6
    repeats: int = 3
    seconds: float = 0.6


QUICK = Effort(turns=1, repeats=2, seconds=0.2)


class Quartiles(NamedTuple):
    """Of a call's times, in milliseconds."""

    lower: float
    median: float
    upper: float


def in_turn(calls: Mapping[str, Call], effort: Effort) -> dict[str, Quartiles]:
    """Times of calls that share the machine: all have their turn, then all have the next.

    A turn begins with an untimed call, since the threads of the library before spin for a while after their work. On a
    GPU several calls are queued for each wait, as in a training loop.
    """
    queued = 10 if jax.default_backend() == "gpu" else 1
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(effort.turns):
        for name, call in calls.items():
            if sum(times[name]) * queued < effort.seconds:
                call.wait(call.run())
            for _ in range(effort.repeats):
                if sum(times[name]) * queued >= effort.seconds:
                    break
                start = time.perf_counter()
                for _ in range(queued - 1):
                    call.run()
                call.wait(call.run())
                times[name].append((time.perf_counter() - start) / queued)
    return {name: Quartiles(*(1e3 * np.percentile(seconds, [25, 50, 75])).tolist()) for name, seconds in times.items()}


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy that no cache holds."""
    source = jnp.zeros(2**26, jnp.float32)
    copy = jax.jit(lambda x: x + 1).lower(source).compile()
    call = Call(lambda: copy(source), jax.block_until_ready, np.asarray)
    return 2 * source.nbytes / (in_turn({"copy": call}, Effort())["copy"].median / 1e3)
