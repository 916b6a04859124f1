"""Time calls in turn, after a check that they compute the same."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_MOST_TEMPORARIES = 2**30


class Effort(NamedTuple):
    """How much to measure.

    Attributes:
        turns: how often each call has its turn.
        repeats: timed runs in a turn.
        seconds: a call that has been timed for so long sits out the later turns.
    """

    turns: int = 5
    repeats: int = 4
    seconds: float = 0.25


QUICK = Effort(turns=1, repeats=2, seconds=0.02)


class Call(NamedTuple):
    """Work that is ready to run, with no argument.

    Attributes:
        run: starts it.
        value: its result as one float array in our layout; of several arrays one after the other.
        wait: returns the result of `run` when it is there; many libraries return no sooner.
        compile_seconds: what compiling it took, if it compiles.
        temporaries: the bytes it holds beside arguments and results, if known.
    """

    run: Callable[[], Any]
    value: Callable[[Any], np.ndarray]
    wait: Callable[[Any], Any] = lambda result: result
    compile_seconds: float | None = None
    temporaries: int | None = None


class Quartiles(NamedTuple):
    """Of a call's times, in milliseconds."""

    lower: float
    median: float
    upper: float


class Row(NamedTuple):
    """What was found of one implementation, or form, in one case. None is what was not measured.

    Attributes:
        case: what was asked.
        operation: which derivative, or none.
        who: who did it, or in which form.
        times: of a call.
        difference: the largest from the first one's result, relative to its largest entry.
        agrees: whether that is no more than rounding.
        compile_seconds: of the first call.
        temporaries: bytes beside arguments and results.
        bound: the bytes that we allow ourselves.
        instructions: of the optimised program.
    """

    case: str
    operation: str
    who: str
    times: Quartiles | None = None
    difference: float = 0.0
    agrees: bool = True
    compile_seconds: float | None = None
    temporaries: int | None = None
    bound: int | None = None
    instructions: int | None = None


def flat(arrays: Any) -> np.ndarray:
    return np.concatenate([np.asarray(array).astype(np.float64).ravel() for array in jax.tree.leaves(arrays)])


def compiled(function: Callable[..., Any], *arguments: Any) -> Call:
    """Of a function of JAX's arrays."""
    lowered = jax.jit(function).lower(*arguments)
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    temporaries = program.memory_analysis().temp_size_in_bytes
    return Call(lambda: program(*arguments), flat, jax.block_until_ready, seconds, temporaries)


def race(
    case: str, operation: str, calls: Mapping[str, Call], effort: Effort, tolerance: float | None = None
) -> list[Row]:
    """Rows of calls that compute the same as the first, unless there is no tolerance; printed as ratios to that."""
    rows, running, expected = [], {}, None
    for name, call in calls.items():
        row = Row(case, operation, name, compile_seconds=call.compile_seconds, temporaries=call.temporaries)
        if not running or (call.temporaries or 0) <= _MOST_TEMPORARIES:
            if tolerance is not None:
                result = call.value(call.wait(call.run()))
                expected = result if expected is None else expected
                difference = float(np.abs(result - expected).max() / np.abs(expected).max())
                row = row._replace(difference=difference, agrees=difference <= tolerance)
            running[name] = call
        rows.append(row)
    times = in_turn(running, effort)
    first, *others = times
    ratios = (f"{name} {times[name].median / times[first].median:.2f}" for name in others)
    print(f"{case}, {operation}: {first} {times[first].median:.2f} ms; times that: {', '.join(ratios)}", flush=True)
    return [row._replace(times=times.get(row.who)) for row in rows]


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
    copy = compiled(lambda x: x + 1, source)
    return 2 * source.nbytes / (in_turn({"copy": copy}, Effort())["copy"].median / 1e3)
