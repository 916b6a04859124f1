"""Sampling on a CPU, where a gather of all pixels will not do: loops compiled to one function of one thread.

XLA would run a loop as a program of its own for each step, and a scatter or a sum as one that needs all that it adds in
memory; and one gather for all maps of a pyramid needs them stacked, a copy. But a call that is marked as small
(`_calls.small`) is compiled as a whole, to machine code that adds in place.

All groups' images lie one below the other, and rows of pixels have one address among them all; so all call forms, and
all their mapped forms, run the same loops.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_crop._calls import small
from jax_crop._sampling import gather
from jax_crop._sampling.bits import restored, stored
from jax_crop._sampling.meshes import zeros
from jax_crop._sampling.steps import at, floats, loop, only, put, summed, take
from jax_crop._sampling.tables import Samples, Scheme, Taps, Term, flat, items_of_all, total


def values(scheme: Scheme, images: Sequence[Array], samples: Samples) -> Array:
    """As `gather.values`, to the bit; that uses all cores, where it holds no image. Where it does, there is no fill."""
    if gather_holds(scheme, images):
        return _crops(scheme, images, [Term(samples)], _interpolated)
    return gather.values(scheme, images, samples, used_again=True)  # in both passes of a gradient


def crops(scheme: Scheme, images: Sequence[Array], terms: Sequence[Term]) -> Array:
    """As `gather.crops`, which uses all cores, where that holds no image.

    Not in memory, as values are: fused with what follows, a Hessian-vector product holds two sets of crops, not four.
    """
    if gather_holds(scheme, images):
        return _crops(scheme, images, terms, _weighed)
    return gather.crops(scheme, images, terms)


def gather_holds(scheme: Scheme, images: Sequence[Array]) -> bool:
    """Whether XLA on CPUs would hold images for a gather: stacked, or bfloat16 that a loop over samples reads."""
    return len(images) > 1 or (images[0].dtype == jnp.bfloat16 and not gather.is_unrolled(scheme))


def _crops(scheme: Scheme, images: Sequence[Array], terms: Sequence[Term], pixel_sum: Callable[..., Array]) -> Array:
    samples = terms[0].samples
    groups, boxes, n_rows = samples.rows.index.shape
    down, across = scheme.samples
    size = n_rows // down, samples.columns.index.shape[-1] // across
    share = flat(jnp.ones((groups, boxes), scheme.compute) if samples.share is None else samples.share)
    result = stored(zeros((groups * boxes, *size, images[0].shape[-1]), scheme.dtype, images, terms))
    for level, image in enumerate(images):
        tables = _tables(scheme, level, image.shape[1:4], terms, share=False)
        result = _with_crops(scheme.dtype, result, image.reshape(-1, *image.shape[3:]), tables, share, pixel_sum)
    return restored(result, scheme.dtype).reshape(groups, boxes, *result.shape[1:])


def images(scheme: Scheme, shapes: Sequence[tuple[Any, ...]], crops: Array, terms: Sequence[Term]) -> list[Array]:
    """As `gather.images`."""
    groups, channels = crops.shape[0], crops.shape[-1]
    results = []
    for level, (batch, height, width) in enumerate(shapes):
        tables = _tables(scheme, level, (batch, height, width), terms)
        result = _image((groups * batch * height, width, channels), flat(crops), tables)
        results.append(result.reshape(groups, batch, height, width, channels))
    return results


def weights(scheme: Scheme, crops: Array, images: Sequence[Array], term: Term) -> tuple[Array, Array]:
    """As `gather.weights`."""
    groups, boxes = crops.shape[:2]
    parts = []
    for level, image in enumerate(images):
        ((rows, columns),) = _tables(scheme, level, image.shape[1:4], [term], share=False)
        parts.append(_weights(flat(crops), image.reshape(-1, *image.shape[3:]), rows, columns))
    row_bars, column_bars = (total(of_levels) for of_levels in zip(*parts, strict=True))
    share = 1 if term.samples.share is None else term.samples.share[..., None]
    return row_bars.reshape(groups, boxes, -1) * share, column_bars.reshape(groups, boxes, -1) * share


def _tables(
    scheme: Scheme, level: int, shape: tuple[Any, ...], terms: Sequence[Term], share: bool = True
) -> list[tuple[Taps, Taps]]:
    """For each term its taps, ``[G * N, n]``, of rows by their addresses among the rows of all groups' images."""
    batch, height, _ = shape
    tables = []
    for term in terms:
        rows, columns = Term(term.samples.of_level(level), term.orders).taps(scheme.windows[level], share)
        first_row = items_of_all(term.samples.item, batch) * height
        rows = rows._replace(first=rows.first + first_row[..., None])
        tables.append(jax.tree.map(flat, (rows, columns)))
    return tables


def _with_crops(
    dtype: Any,
    crops: Array,
    image: Array,
    terms: Sequence[tuple[Taps, Taps]],
    share: Array,
    pixel_sum: Callable[..., Array],
) -> Array:
    """The array of crops ``[N, h, w, C]``, in which those of boxes with a sample inside are written; outside is 0.

    Args:
        dtype: of the crops.
        crops: as they are `stored`.
        image: ``[R, W, C]``.
        terms: tables of rows ``[N, h * samples]`` and of columns ``[N, w * samples]``.
        share: ``[N]``, what each sample of a bin counts.
        pixel_sum: of ``(pixels, rows, columns)`` to ``[C]``.
    """
    channels = image.shape[2]
    window = len(terms[0][0].weights), len(terms[0][1].weights), channels

    def with_all(crops: Array, image: Array, terms: _TermTables, share: Array, starts: Array) -> Array:
        (rows, columns), *_ = terms
        _, height, width, _ = crops.shape
        down, across = rows.places.shape[1] // height, columns.places.shape[1] // width

        def with_bins(part: Array, crops: Array) -> Array:
            n, i = _split(part, height)

            def with_bin(j: Array, crops: Array) -> Array:
                def add_sample(sample: Array, total: Array) -> Array:
                    y, x = _split(sample, across)
                    y, x = i * down + y, j * across + x
                    row, column = at(rows.places, n, y), at(columns.places, n, x)
                    row_weights = [at(rows.weights, n, y) for rows, _ in terms]
                    column_weights = [at(columns.weights, n, x) for _, columns in terms]
                    pixels = floats(image, _start(row, column, image), window, total.dtype)
                    return total + only(_inside(row, column), pixel_sum(pixels, row_weights, column_weights))

                total = loop(down * across, add_sample, zeros((channels,), share.dtype, crops, image, terms))
                total = stored((total * at(share, n)).astype(dtype))
                return put(crops, total[None, None, None], (n, i, j, 0))

            return loop(width, with_bin, crops)

        return _row_after_row(starts, image.shape[0], with_bins, crops)

    starts = _starts(*terms[0], crops.shape[1], image.shape[0])
    return small(with_all, crops, image, _term_tables(terms), share, starts)


def _interpolated(pixels: Array, rows: Sequence[Array], columns: Sequence[Array]) -> Array:
    return _between([_between(line, columns[0]) for line in pixels], rows[0])


def _weighed(pixels: Array, rows: Sequence[Array], columns: Sequence[Array]) -> Array:
    result = jnp.zeros_like(pixels[0, 0])
    for k, m in itertools.product(range(pixels.shape[0]), range(pixels.shape[1])):
        weight = total([row[k] * column[m] for row, column in zip(rows, columns, strict=True)])
        result += only(weight != 0, pixels[k, m] * weight)  # what has no weight has no influence
    return result


def _image(shape: tuple[int, ...], crops: Array, terms: Sequence[tuple[Taps, Taps]]) -> Array:
    """What all samples add to the pixels that they weigh, ``[R, W, C]``, summed in the type of the weights.

    Args:
        shape: ``(R, W, C)``, the image's.
        crops: ``[N, h, w, C]``, of samples, or of bins of several samples each.
        terms: tables of rows ``[N, h * samples]`` and of columns ``[N, w * samples]``.
    """
    rows, columns = terms[0]
    window = _merged((len(rows.weights), len(columns.weights), shape[2]))

    def of_all(image: Array, crops: Array, terms: _TermTables, starts: Array) -> Array:
        (rows, columns), *_ = terms
        height, width = rows.places.shape[1], columns.places.shape[1]

        def add_row(part: Array, image: Array) -> Array:
            n, i = _split(part, height)
            row = at(rows.places, n, i)
            row_weights = [at(rows.weights, n, i) for rows, _ in terms]

            def add_sample(j: Array, image: Array) -> Array:
                column = at(columns.places, n, j)
                column_weights = [at(columns.weights, n, j) for _, columns in terms]
                value = only(_inside(row, column), _sample(crops, n, i, j, rows, columns))
                weights = total([r[:, None] * c[None] for r, c in zip(row_weights, column_weights, strict=True)])
                added = (weights[..., None] * value[None, None]).reshape(window)
                start = _start(row, column, image)
                return put(image, take(image, start, window) + added, start)

            return loop(width, add_sample, image, unroll=_at_once(shape[2]))

        return _row_after_row(starts, shape[0], add_row, image).reshape(shape)

    starts = _starts(rows, columns, rows.first.shape[1], shape[0])
    # Set by all threads, each of which is the first to use its pages.
    image = zeros(_merged(shape), rows.weights[0].dtype, crops, terms)
    return small(of_all, image, crops, _term_tables(terms, shape), starts)


def _weights(crops: Array, image: Array, rows: Taps, columns: Taps) -> tuple[Array, Array]:
    """How much the samples of each row, or of each column, would gain in all if they moved by one pixel.

    Args:
        crops: ``[N, h, w, C]``, of samples, or of bins of several samples each.
        image: ``[R, W, C]``.
        rows: ``[N, h * samples]``.
        columns: ``[N, w * samples]``.

    Returns:
        ``[N, h * samples]`` and ``[N, w * samples]``, in the type of the weights.
    """
    channels = image.shape[2]
    window = len(rows.weights), len(columns.weights), channels
    dtype = rows.weights[0].dtype

    def of_all(crops: Array, image: Array, rows: _Table, columns: _Table, starts: Array) -> tuple[Array, Array]:
        image = image.reshape(_merged(image.shape))
        (boxes, height, _), width = rows.places.shape, columns.places.shape[1]
        others = crops, image, rows, columns

        def add_row(n: Array, i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            row, own_columns = at(rows, n, i), at(columns, n)
            crop = _row_of_samples(crops, n, i, rows, columns)

            def add_sample(j: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
                row_sum, column_sums = sums
                column, value = at((own_columns, crop), j)
                start = _start(row.places, column.places, image)
                pixels = floats(image, start, _merged(window), value.dtype).reshape(window)
                by_row = _weighed_sum([pixels[-1, k] - pixels[0, k] for k in range(window[1])], column.weights)
                by_column = _weighed_sum([pixels[k, -1] - pixels[k, 0] for k in range(window[0])], row.weights)
                inside = _inside(row.places, column.places)
                by_row, by_column = only(inside, by_row * value), only(inside, by_column * value)
                column_sum = take(column_sums, (j, 0), (1, channels)) + by_column[None]
                return row_sum + by_row, put(column_sums, column_sum, (j, 0))

            row_sums, column_sums = sums
            row_sum = zeros((channels,), dtype, others)
            row_sum, column_sums = loop(width, add_sample, (row_sum, column_sums), unroll=_at_once(channels))
            return put(row_sums, summed(row_sum[None]), (i,)), column_sums

        def of_box(n: Array, results: tuple[Array, Array]) -> tuple[Array, Array]:
            of_rows, of_columns = results
            sums = zeros((height,), dtype, others), zeros((width, channels), dtype, others)
            row_sums, column_sums = loop(height, lambda i, sums: add_row(n, i, sums), sums)
            return put(of_rows, row_sums[None], (n, 0)), put(of_columns, summed(column_sums)[None], (n, 0))

        results = zeros((boxes, height), dtype, others), zeros((boxes, width), dtype, others)
        return _row_after_row(starts, image.shape[0], of_box, results)

    starts = _starts(rows, columns, 1, image.shape[0])
    return small(of_all, crops, image, _table(rows), _table(columns, image.shape), starts)


def _weighed_sum(values: Sequence[Array], weights: Array) -> Array:
    """What has no weight has no influence."""
    parts = [only(weights[k] != 0, value * weights[k]) for k, value in enumerate(values)]
    return total(parts)


class _Table(NamedTuple):
    """Taps in two parts, both in use whatever the shapes: XLA fails if an argument of a small call is not.

    Attributes:
        places: ``[N, n, 2]``, where the first pixel starts, and whether the sample is inside; of the first term only.
        weights: ``[N, n, taps]``.
    """

    places: Any
    weights: Array


_TermTables = list[tuple[_Table, _Table]]


def _table(taps: Taps, image: tuple[int, ...] = (1, 1, 1)) -> _Table:
    """Of places along rows, or along the columns of an image of some shape if that is to be merged."""
    stride = _merged(image)[1] // image[1]
    places = jnp.stack([taps.first * stride, taps.inside.astype(jnp.int32)], axis=-1)
    return _Table(places, jnp.stack(taps.weights, axis=-1))


def _term_tables(terms: Sequence[tuple[Taps, Taps]], image: tuple[int, ...] = (1, 1, 1)) -> list[tuple[_Table, _Table]]:
    """Those of rows and of columns for each term, which are all of the same places."""
    first, *others = [(_table(rows), _table(columns, image)) for rows, columns in terms]
    return [first, *[(rows._replace(places=None), columns._replace(places=None)) for rows, columns in others]]


def _merged(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape ``(R, W, C)``, or that of one run of floats for each row: the faster one if channels are few."""
    rows, columns, channels = shape
    return (rows, columns * channels) if _known(channels) < 16 else shape


def _at_once(channels: int) -> int:
    """How many pixels a step of a loop adds: 24 floats. Twice as many only take longer to compile."""
    return -(-24 // _known(channels))


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


def _start(row: Array, column: Array, image: Array) -> tuple[Any, ...]:
    return (row[0], column[0], 0)[: image.ndim]


def _inside(row: Array, column: Array) -> Array:
    return (row[1] & column[1]) != 0


def _sample(crops: Array, n: Array, i: Array, j: Array, rows: _Table, columns: _Table) -> Array:
    """The cotangent ``[C]`` of a sample, which is that of its bin."""
    down, across = rows.places.shape[1] // crops.shape[1], columns.places.shape[1] // crops.shape[2]
    start = n, _split(i, down)[0], _split(j, across)[0], 0
    return floats(crops, start, (1, 1, 1, crops.shape[3]), rows.weights.dtype).reshape(-1)


def _row_of_samples(crops: Array, n: Array, i: Array, rows: _Table, columns: _Table) -> Array:
    """Those of a row, ``[w * samples, C]``: one run of floats, which is faster where channels are few."""
    _, height, width, channels = crops.shape
    down, across = rows.places.shape[1] // height, columns.places.shape[1] // width
    of_bins = floats(crops, (n, _split(i, down)[0], 0, 0), (1, 1, *crops.shape[2:]), rows.weights.dtype)[0, 0]
    return jnp.broadcast_to(of_bins[:, None], (width, across, channels)).reshape(-1, channels)


def _split(index: Array, count: int) -> tuple[Array, Array]:
    """Which run of ``count`` elements an element is in, and which of them it is."""
    return lax.div(index, jnp.int32(count)), lax.rem(index, jnp.int32(count))


def _between(values: Any, weights: Array) -> Array:
    """Between the first value and the last; a value without weight has no influence, be it infinite or NaN."""
    first, last, weight = values[0], values[-1], weights[-1]
    if len(values) == 1:
        return first * weight  # which is 1, and in use: see `_Table`
    on_first, on_last = (jnp.broadcast_to(weight == whole, first.shape) for whole in (0, 1))
    return lax.select(on_last, last, lax.select(on_first, first, first + (last - first) * weight))


def _row_after_row(starts: Array, height: int, body: Callable[[Array, Any], Any], carry: Any) -> Any:
    """A loop over those parts that start in the image, row after row, so that its rows stay in caches."""
    none = jnp.int32(starts.shape[0])

    # Which part is the first to start in each row, and which follows on each: much quicker than XLA's sort. The newest
    # part of a row is kept beside the one before it, so that the table is changed in place, and read after.
    def link(step: Array, links: tuple[Array, Array]) -> tuple[Array, Array]:
        newest, following = links
        part = none - 1 - step
        row = at(starts, part)
        newest = put(newest, jnp.stack([part, at(newest, row)[0]])[None], (row, 0))
        return newest, put(following, at(newest, row)[1:], (part,))

    def links(shape: tuple[int, ...]) -> Array:
        return zeros(shape, jnp.int32, starts) + none

    newest, following = loop(starts.shape[0], link, (links((height + 1, 2)), links(starts.shape)))

    def of_row(row: Array, carry: Any) -> Any:
        def of_next(state: tuple[Array, Any]) -> tuple[Array, Any]:
            part, carry = state
            return at(following, part), body(part, carry)

        return lax.while_loop(lambda state: state[0] < none, of_next, (at(newest, row)[0], carry))[1]

    return loop(height, of_row, carry)
