"""Sampling several images, and the transposes of sampling, on a CPU: loops compiled to one function of one thread.

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

from jax_crop._manual import vary_as


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


def with_crops(crops: Array, image: Array, rows: Taps, columns: Taps, share: Array) -> Array:
    """The array of crops, in which those of boxes with a sample inside are written; samples outside count 0.

    Args:
        crops: ``[N, h, w, C]``, of the type of the weights.
        image: ``[R, W, C]``.
        rows: ``[N, h * samples]``.
        columns: ``[N, w * samples]``.
        share: ``[N]``, what each sample of a bin counts.
    """
    channels = image.shape[2]
    window = rows.weights.shape[2], columns.weights.shape[2], channels

    def with_all(crops: Array, image: Array, rows: _Table, columns: _Table, share: Array, starts: Array) -> Array:
        _, height, width, _ = crops.shape
        down, across = rows.places.shape[1] // height, columns.places.shape[1] // width

        def with_bins(part: Array, crops: Array) -> Array:
            n, i = _split(part, height)

            def with_bin(j: Array, crops: Array) -> Array:
                def add_sample(sample: Array, total: Array) -> Array:
                    y, x = _split(sample, across)
                    row, column = _at(rows, n, i * down + y), _at(columns, n, j * across + x)
                    pixels = _take(image, _start(row, column, image), window).astype(total.dtype)
                    lines = [_between(line, column.weights) for line in pixels]
                    return total + _only(_inside(row, column), _between(lines, row.weights))

                total = _loop(down * across, add_sample, _zeros((channels,), rows, crops, image))
                return _put(crops, (total * _at(share, n))[None, None, None], (n, i, j, 0))

            return _loop(width, with_bin, crops)

        return _down(starts, image.shape[0], with_bins, crops)

    starts = _starts(rows, columns, crops.shape[1], image.shape[0])
    return _small(with_all, crops, image, _table(rows), _table(columns), share, starts)


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

    def cotangent(image: Array, crops: Array, rows: _Table, columns: _Table, starts: Array) -> Array:
        height = rows.places.shape[1]

        def add_row(part: Array, image: Array) -> Array:
            n, i = _split(part, height)
            row = _at(rows, n, i)

            def add_sample(j: Array, image: Array) -> Array:
                column = _at(columns, n, j)
                value = _only(_inside(row, column), _sample(crops, n, i, j, rows, columns))
                weights = row.weights[:, None] * column.weights[None]
                added = (weights[..., None] * value[None, None]).reshape(window)
                start = _start(row, column, image)
                return _put(image, _take(image, start, window) + added, start)

            return _loop(columns.places.shape[1], add_sample, image, unroll=_MANY // _known(shape[2]))

        return _down(starts, shape[0], add_row, image).reshape(shape)

    tables = _table(rows), _table(columns, shape)
    starts = _starts(rows, columns, rows.first.shape[1], shape[0])
    zeros = _zeros(_merged(shape), tables[0], crops)  # set by all threads, each of which is the first to use its pages
    return _small(cotangent, zeros, crops, *tables, starts)


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

    def cotangent(crops: Array, image: Array, rows: _Table, columns: _Table, starts: Array) -> tuple[Array, Array]:
        image = image.reshape(_merged(image.shape))
        (boxes, height, _), width = rows.places.shape, columns.places.shape[1]

        def add_row(n: Array, i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            row, own_columns = _at(rows, n, i), _at(columns, n)
            crop = _row_of_samples(crops, n, i, rows, columns)

            def add_sample(j: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
                row_sum, column_sums = sums
                column, value = _at((own_columns, crop), j)
                pixels = _take(image, _start(row, column, image), _merged(window)).astype(value.dtype).reshape(window)
                down = sum((pixels[-1, k] - pixels[0, k]) * column.weights[k] for k in range(window[1]))
                across = sum((pixels[k, -1] - pixels[k, 0]) * row.weights[k] for k in range(window[0]))
                inside = _inside(row, column)
                down, across = _only(inside, down * value), _only(inside, across * value)
                column_sum = _take(column_sums, (j, 0), (1, channels)) + across[None]
                return row_sum + down, _put(column_sums, column_sum, (j, 0))

            row_sums, column_sums = sums
            row_sum = _zeros((channels,), rows, crops, image)
            row_sum, column_sums = _loop(width, add_sample, (row_sum, column_sums), unroll=_MANY // _known(channels))
            return _put(row_sums, _sum(row_sum[None]), (i,)), column_sums

        def of_box(n: Array, results: tuple[Array, Array]) -> tuple[Array, Array]:
            of_rows, of_columns = results
            sums = _zeros((height,), rows, crops, image), _zeros((width, channels), rows, crops, image)
            row_sums, column_sums = _loop(height, lambda i, sums: add_row(n, i, sums), sums)
            return _put(of_rows, row_sums[None], (n, 0)), _put(of_columns, _sum(column_sums)[None], (n, 0))

        zeros = _zeros((boxes, height), rows, crops, image), _zeros((boxes, width), rows, crops, image)
        return _down(starts, image.shape[0], of_box, zeros)

    starts = _starts(rows, columns, 1, image.shape[0])
    return _small(cotangent, crops, image, _table(rows), _table(columns, image.shape), starts)


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
    """Of places along rows, or along the columns of an image of some shape if that is to be merged."""
    stride = _merged(image)[1] // image[1]
    return _Table(jnp.stack([taps.first * stride, taps.inside.astype(jnp.int32)], axis=-1), taps.weights)


def _merged(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape ``(R, W, C)``, or that of one run of floats for each row: the faster one if channels are few."""
    rows, columns, channels = shape
    return (rows, columns * channels) if _known(channels) < 16 else shape


def _known(channels: int) -> int:
    """The number of channels; if that is left open (`jax.export`), a large one of which nothing but 1 is a divisor."""
    return channels if isinstance(channels, int) else 2**31 - 1


def _starts(rows: Taps, columns: Taps, parts: int, height: int) -> Array:
    """The row of an image in which each part of a box starts, ``[N * parts]``; its height if all of that is outside.

    A box has some equal parts: of all its rows of samples, or of as many as a row of bins has, or of one.
    """
    inside = rows.inside & jnp.any(columns.inside, axis=1)[:, None]
    first, inside = (x.reshape(-1, x.shape[1] // parts) for x in (rows.first, inside))
    return jnp.where(jnp.any(inside, axis=1), first[:, 0], height)


def _start(row: _Table, column: _Table, image: Array) -> tuple[Any, ...]:
    return (row.places[0], column.places[0], 0)[: image.ndim]


def _inside(row: _Table, column: _Table) -> Array:
    return (row.places[1] & column.places[1]) != 0


def _sample(crops: Array, n: Array, i: Array, j: Array, rows: _Table, columns: _Table) -> Array:
    """The cotangent ``[C]`` of a sample, which is that of its bin."""
    down, across = rows.places.shape[1] // crops.shape[1], columns.places.shape[1] // crops.shape[2]
    return _at(crops, n, _split(i, down)[0], _split(j, across)[0]).astype(rows.weights.dtype)


def _row_of_samples(crops: Array, n: Array, i: Array, rows: _Table, columns: _Table) -> Array:
    """Those of a row, ``[w * samples, C]``: one run of floats, which is faster where channels are few."""
    _, height, width, channels = crops.shape
    down, across = rows.places.shape[1] // height, columns.places.shape[1] // width
    of_bins = _at(crops, n, _split(i, down)[0]).astype(rows.weights.dtype)
    return jnp.broadcast_to(of_bins[:, None], (width, across, channels)).reshape(-1, channels)


def _split(index: Array, count: int) -> tuple[Array, Array]:
    """Which run of ``count`` elements an element is in, and which of them it is."""
    return lax.div(index, jnp.int32(count)), lax.rem(index, jnp.int32(count))


def _at(arrays: Any, *indices: int | Array) -> Any:
    """Element ``indices`` of arrays' first axes."""

    def element(array: Array) -> Array:
        shape = array.shape[len(indices) :]
        return _take(array, (*indices, *[0] * len(shape)), (*[1] * len(indices), *shape)).reshape(shape)

    return jax.tree.map(element, arrays)


def _take(array: Array, start: tuple[Any, ...], shape: tuple[int, ...]) -> Array:
    return lax.dynamic_slice(array, [jnp.int32(i) for i in start], shape, allow_negative_indices=False)


def _put(array: Array, part: Array, start: tuple[Any, ...]) -> Array:
    return lax.dynamic_update_slice(array, part, [jnp.int32(i) for i in start], allow_negative_indices=False)


def _only(inside: Array, values: Array) -> Array:
    """The values, 0 if not inside."""
    return lax.select(inside, values, jnp.zeros_like(values))  # jnp.where would remain a call


def _between(values: Any, weights: Array) -> Array:
    """Between the first value and the last; a value without weight has no influence, be it infinite or NaN."""
    first, last, weight = values[0], values[-1], weights[-1]
    if len(values) == 1:
        return first * weight  # which is 1, and in use: see `_Table`
    on_first, on_last = (jnp.broadcast_to(weight == whole, first.shape) for whole in (0, 1))
    return lax.select(on_last, last, lax.select(on_first, first, first + (last - first) * weight))


def _sum(values: Array) -> Array:
    """``[n, C]`` to ``[n]``; not by a reduction: XLA leaves large ones to a library, which a small call cannot use."""
    count, channels = values.shape
    lanes = math.gcd(_known(channels), 16)  # so many sums at once, which are then folded

    def add(k: Array, sums: Array) -> Array:
        return sums + _take(values, (0, k * lanes), (count, lanes))

    sums = _loop(channels // lanes - 1, lambda k, sums: add(k + 1, sums), values[:, :lanes])
    while lanes > 1:
        lanes //= 2
        sums = sums[:, :lanes] + sums[:, lanes:]
    return sums[:, 0]


def _zeros(shape: tuple[int, ...], rows: _Table, *likes: Array) -> Array:
    return _full(shape, jnp.zeros((), rows.weights.dtype), *rows, *likes)


def _full(shape: tuple[int, ...], value: Array, *likes: Array) -> Array:
    """An array of one value; within `jax.shard_map` of a type that differs between devices as any of some others do."""
    (value,) = vary_as([value], likes)
    return jnp.broadcast_to(value, shape)


def _down(starts: Array, height: int, body: Callable[[Array, Any], Any], carry: Any) -> Any:
    """A loop over those parts that start in the image, row after row, so that its rows stay in caches."""
    none = jnp.int32(starts.shape[0])

    # Which part is the first to start in each row, and which follows on each: much quicker than XLA's sort.
    def link(step: Array, links: tuple[Array, Array]) -> tuple[Array, Array]:
        first, following = links
        part = none - 1 - step
        row = _at(starts, part)
        return _put(first, part[None], (row,)), _put(following, _at(first, row)[None], (part,))

    links = _full((height + 1,), none, starts), _full(starts.shape, none, starts)
    first, following = _loop(starts.shape[0], link, links)

    def of_row(row: Array, carry: Any) -> Any:
        def of_next(state: tuple[Array, Any]) -> tuple[Array, Any]:
            part, carry = state
            return _at(following, part), body(part, carry)

        return lax.while_loop(lambda state: state[0] < none, of_next, (_at(first, row), carry))[1]

    return _loop(height, of_row, carry)


def _loop(count: int, body: Callable[[Array, Any], Any], carry: Any, unroll: int = 1) -> Any:
    return lax.fori_loop(0, count, lambda i, carry: body(i.astype(jnp.int32), carry), carry, unroll=max(1, unroll))


def _small(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` as a call that XLA compiles as a whole."""
    arguments = lax.optimization_barrier(arguments)  # a constant would move into the loops, and be in use no longer
    with set_xla_metadata(inlineable="false", xla_cpu_small_call="true"):
        return jax.jit(function)(*arguments)
