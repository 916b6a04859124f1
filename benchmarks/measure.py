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
        repeats: timed runs in a turn.
        seconds: a call that has been timed for so long sits out the later turns.
    """

    turns: int = 6
    repeats: int = 4
    seconds: float = 0.4


QUICK = Effort(turns=1, repeats=2, seconds=0.1)


class Quartiles(NamedTuple):
    """Of a call's times, in milliseconds."""

    lower: float
    median: float
    upper: float


def in_turn(calls: Mapping[str, Call], effort: Effort) -> dict[str, Quartiles]:
    """Times of calls that share the machine: all have their turn, then all have the next.

    A turn begins with an untimed run, since the threads of the library before spin for a while after their work: not
    for so long that it matters to a run that takes all its seconds at once. On a GPU several runs are queued for each
    wait, as in training.
    """
    queued = 10 if jax.default_backend() == "gpu" else 1
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(effort.turns):
        for name, call in calls.items():
            if sum(times[name]) >= effort.seconds:
                continue
            if (first := _seconds(call, 1)) >= effort.seconds:
                times[name].append(first)
                continue
            turn: list[float] = []
            while len(turn) < effort.repeats and sum(turn) * queued < effort.seconds / effort.turns:
                turn.append(_seconds(call, queued) / queued)
            times[name] += turn
    return {name: Quartiles(*(1e3 * np.percentile(seconds, [25, 50, 75])).tolist()) for name, seconds in times.items()}


def _seconds(call: Call, runs: int) -> float:
    start = time.perf_counter()
    for _ in range(runs - 1):
        call.run()
    call.wait(call.run())
    return time.perf_counter() - start


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy that no cache holds."""
    source = jnp.zeros(2**26, jnp.float32)
    copy = jax.jit(lambda x: x + 1).lower(source).compile()
    call = Call(lambda: copy(source), jax.block_until_ready, np.asarray)
    return 2 * source.nbytes / (in_turn({"copy": call}, Effort())["copy"].median / 1e3)
