"""The transposes of sampling on a CPU: loops from sample to sample, each compiled to one function of one thread.

XLA would run a loop as a program of its own for each step, and a scatter or a sum as one that needs all that it adds in
memory. But a call that is marked as small is compiled as a whole, to machine code that adds in place.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.xla_metadata import set_xla_metadata


class Taps(NamedTuple):
    """The pixels that samples weigh along one axis.

    Attributes:
        first: ``[N, n]``, the index of the first of them.
        weights: ``[N, n, taps]``, of that and the next.
        inside: ``[N, n]``, whether a sample has influence.
    """

    first: Array
    weights: Array
    inside: Array


def image_cotangent(shape: tuple[int, ...], crops: Array, rows: Taps, columns: Taps) -> Array:
    """What all samples add to the pixels that they weigh.

    Args:
        shape: ``(R, W, C)``, the image's.
        crops: the cotangents ``[N, h, w, C]`` of samples, or of bins of several samples each.
        rows: ``[N, h * samples]``.
        columns: ``[N, w * samples]``.

    Returns:
        ``[R, W, C]``, summed in the type of the weights.
    """
    window = _merged((rows.weights.shape[2], columns.weights.shape[2], shape[2]))

    def cotangent(image: Array, crops: Array, rows: _Table, columns: _Table) -> Array:
        height = rows.places.shape[1]

        def add_row(n: Array, i: Array, row: _Table, columns: _Table, image: Array) -> Array:
            crop, inside = _row_of_samples(crops, n, i, height, row, columns)
            crop = _only(inside[:, None], crop)

            def add_sample(j: Array, image: Array) -> Array:
                column, value = _at((columns, crop), j)
                weights = row.weights[:, None] * column.weights[None]
                added = (weights[..., None] * value[None, None]).reshape(window)
                start = _start(row, column, image)
                return _put(image, _take(image, start, window) + added, start)

            return _loop(crop.shape[0], add_sample, image, unroll=_MANY // shape[2])

        def add_box(n: Array, image: Array) -> Array:
            own_rows, own_columns = _at((rows, columns), n)

            def add(i: Array, image: Array) -> Array:
                return add_row(n, i, _at(own_rows, i), own_columns, image)

            return _loop(height, add, image)

        return _loop(crops.shape[0], add_box, image).reshape(shape)

    tables = _table(rows), _table(columns, shape)
    zeros = _zeros(_merged(shape), tables[0], crops)  # set by all threads, each of which is the first to use its pages
    return _small(cotangent, zeros, crops, *tables)


def box_cotangent(crops: Array, image: Array, rows: Taps, columns: Taps) -> tuple[Array, Array]:
    """How much the samples of each row, or of each column, would gain in all if they moved by one pixel.

    Args:
        crops: the cotangents ``[N, h, w, C]`` of samples, or of bins of several samples each.
        image: ``[R, W, C]``.
        rows: ``[N, h * samples]``.
        columns: ``[N, w * samples]``.

    Returns:
        ``[N, h * samples]`` and ``[N, w * samples]``, in the type of the weights.
    """
    channels = image.shape[2]
    window = rows.weights.shape[2], columns.weights.shape[2], channels

    def cotangent(crops: Array, image: Array, rows: _Table, columns: _Table) -> tuple[Array, Array]:
        image = image.reshape(_merged(image.shape))
        (boxes, height, _), width = rows.places.shape, columns.places.shape[1]

        def add_row(n: Array, i: Array, row: _Table, columns: _Table, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            crop, inside = _row_of_samples(crops, n, i, height, row, columns)

            def add_sample(j: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
                row_sum, column_sums = sums
                column, value, is_inside = _at((columns, crop, inside), j)
                pixels = _take(image, _start(row, column, image), _merged(window)).astype(value.dtype).reshape(window)
                down = sum((pixels[-1, k] - pixels[0, k]) * column.weights[k] for k in range(window[1]))
                across = sum((pixels[k, -1] - pixels[k, 0]) * row.weights[k] for k in range(window[0]))
                down, across = _only(is_inside, down * value), _only(is_inside, across * value)
                column_sum = _take(column_sums, (j, 0), (1, channels)) + across[None]
                return row_sum + down, _put(column_sums, column_sum, (j, 0))

            row_sums, column_sums = sums
            row_sum = _zeros((channels,), rows, crops)
            row_sum, column_sums = _loop(width, add_sample, (row_sum, column_sums), unroll=_MANY // channels)
            return _put(row_sums, _sum(row_sum[None]), (i,)), column_sums

        def of_box(n: Array, results: tuple[Array, Array]) -> tuple[Array, Array]:
            own_rows, own_columns = _at((rows, columns), n)

            def add(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
                return add_row(n, i, _at(own_rows, i), own_columns, sums)

            sums = _zeros((height,), rows, crops), _zeros((width, channels), rows, crops)
            row_sums, column_sums = _loop(height, add, sums)
            of_rows, of_columns = results
            return _put(of_rows, row_sums[None], (n, 0)), _put(of_columns, _sum(column_sums)[None], (n, 0))

        return _loop(boxes, of_box, (_zeros((boxes, height), rows, crops), _zeros((boxes, width), rows, crops)))

    return _small(cotangent, crops, image, _table(rows), _table(columns, image.shape))


# How many floats a step of a loop should add at least: a few pixels, or many channels of one.
_MANY = 48


class _Table(NamedTuple):
    """Taps in two parts, both in use whatever the shapes: XLA fails if an argument of a small call is not.

    Attributes:
        places: ``[N, n, 2]``, where the first pixel starts, and whether the sample is inside.
        weights: ``[N, n, taps]``.
    """

    places: Array
    weights: Array


def _table(taps: Taps, image: tuple[int, ...] = (1, 1, 1)) -> _Table:
    """Of places along rows, or along the columns of an image of some shape."""
    stride = _merged(image)[1] // image[1]
    return _Table(jnp.stack([taps.first * stride, taps.inside.astype(jnp.int32)], axis=-1), taps.weights)


def _merged(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape ``(R, W, C)``, or that of one run of floats for each row: the faster one if channels are few."""
    rows, columns, channels = shape
    return (rows, columns * channels) if channels < 16 else shape


def _start(row: _Table, column: _Table, image: Array) -> tuple[Any, ...]:
    return (row.places[0], column.places[0], 0)[: image.ndim]


def _row_of_samples(crops: Array, n: Array, i: Array, height: int, row: _Table, columns: _Table) -> tuple[Array, Array]:
    """The cotangents of the samples of one of ``height`` rows of a box, ``[w * samples, C]``, and which are inside."""
    _, bins, width, channels = crops.shape
    down, across = height // bins, columns.places.shape[0] // width
    of_bins = _take(crops, (n, lax.div(i, jnp.int32(down)), 0, 0), (1, 1, width, channels))
    of_bins = of_bins.astype(row.weights.dtype).reshape(width, 1, channels)
    of_samples = jnp.broadcast_to(of_bins, (width, across, channels)).reshape(-1, channels)
    return of_samples, (row.places[1] & columns.places[:, 1]) != 0


def _at(arrays: Any, i: Array) -> Any:
    """Element ``i`` of arrays' first axis."""
    return jax.tree.map(lambda x: _take(x, (i, *[0] * (x.ndim - 1)), (1, *x.shape[1:])).reshape(x.shape[1:]), arrays)


def _take(array: Array, start: tuple[Any, ...], shape: tuple[int, ...]) -> Array:
    return lax.dynamic_slice(array, [jnp.int32(i) for i in start], shape, allow_negative_indices=False)


def _put(array: Array, part: Array, start: tuple[Any, ...]) -> Array:
    return lax.dynamic_update_slice(array, part, [jnp.int32(i) for i in start], allow_negative_indices=False)


def _only(inside: Array, values: Array) -> Array:
    """The values, 0 where not inside."""
    inside = inside if inside.ndim == 0 else jnp.broadcast_to(inside, values.shape)
    return lax.select(inside, values, jnp.zeros_like(values))  # jnp.where would remain a call


def _sum(values: Array) -> Array:
    """``[n, C]`` to ``[n]``; not by a reduction: XLA leaves large ones to a library, which a small call cannot use."""
    count, channels = values.shape
    lanes = math.gcd(channels, 16)  # so many sums at once, which are then folded

    def add(k: Array, sums: Array) -> Array:
        return sums + _take(values, (0, k * lanes), (count, lanes))

    sums = _loop(channels // lanes - 1, lambda k, sums: add(k + 1, sums), values[:, :lanes])
    while lanes > 1:
        lanes //= 2
        sums = sums[:, :lanes] + sums[:, lanes:]
    return sums[:, 0]


def _zeros(shape: tuple[int, ...], rows: _Table, crops: Array) -> Array:
    """Zeros; within `jax.shard_map` of a type that differs between devices as the crops do."""
    zero, _ = lax.optimization_barrier((jnp.zeros((), rows.weights.dtype), crops))
    return jnp.broadcast_to(zero, shape)


def _loop(count: int, body: Callable[[Array, Any], Any], carry: Any, unroll: int = 1) -> Any:
    return lax.fori_loop(0, count, lambda i, carry: body(i.astype(jnp.int32), carry), carry, unroll=max(1, unroll))


def _small(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` as a call that XLA compiles as a whole."""
    arguments = lax.optimization_barrier(arguments)  # a constant would move into the loops, and be in use no longer
    with set_xla_metadata(inlineable="false", xla_cpu_small_call="true"):
        return jax.jit(function)(*arguments)
