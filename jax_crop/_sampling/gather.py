"""Sampling as its formula says: gathers of pixels, and for its transpose a scatter.

The value is ``left + (right - left) * w``, which keeps constants exact. The derivative is that of the same surface
written ``left * (1 - w) + right * w``: linear in the pixels.

Programs are written for one group (`tables`): images ``[B, H, W, C]``, tables ``[N, ...]``.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jax_crop._calls import in_memory, in_one_loop
from jax_crop._geometry import Axis
from jax_crop._light import Light, where
from jax_crop._sampling.bits import converted, stored
from jax_crop._sampling.meshes import zeros
from jax_crop._sampling.tables import Samples, Scheme, Taps, Term, each_group, inside, taps, total, windowed

# Unrolled samples of a bin are fused into one pass; more would make the program grow.
_UNROLLED = 4


def values(scheme: Scheme, images: Sequence[Array], samples: Samples, *, used_again: bool = False) -> Array:
    """Crops ``[G, N, h, w, C]`` in the scheme's dtype.

    In memory if they will be used again, or are sums of samples: XLA on CPUs would hold each pixel that was gathered
    where crops have several uses, and the samples also where crops are summed.
    """
    crops = each_group(functools.partial(_values, scheme))(tuple(images), samples)
    return in_memory(crops) if used_again or scheme.samples != (1, 1) else crops


def _values(scheme: Scheme, images: Sequence[Array], samples: Samples) -> Array:
    image, samples = _stacked(scheme, images, samples)
    samples, one = _without_an_axis_of_one_box(samples)
    (rows,) = _in_memory(samples.rows, [samples.rows.fraction])  # with the image in their indices
    columns = lax.optimization_barrier(samples.columns)  # in memory: on CPUs they are
    fill: ArrayLike = 0 if samples.fill is None else samples.fill[..., None, None, :]

    def value(rows: Axis, columns: Axis) -> Array:
        return where(inside(rows.inside, columns.inside), _interpolate(scheme, image, rows, columns), fill).array

    crops = _sum_of_samples(scheme, rows, columns, samples.share, value).astype(scheme.dtype)
    return crops[None] if one else crops


def crops(scheme: Scheme, images: Sequence[Array], terms: Sequence[Term]) -> Array:
    """The sum of terms, ``[G, N, h, w, C]``."""
    return each_group(functools.partial(_crops, scheme, [term.orders for term in terms]))(
        tuple(images), [term.samples for term in terms]
    )


def _crops(scheme: Scheme, orders: Any, images: Sequence[Array], of_terms: Sequence[Samples]) -> Array:
    image, places = _stacked(scheme, images, of_terms[0])
    places, one = _without_an_axis_of_one_box(places)
    of_axes = zip(*(_without_an_axis_of_one_box(samples)[0][:2] for samples in of_terms), strict=True)
    rows, columns = (  # all of the same places
        _in_memory(windowed(axis), [windowed(*of_term).fraction for of_term in zip(terms, orders, strict=True)])
        for axis, terms, orders in zip(places[:2], of_axes, zip(*orders, strict=True), strict=True)
    )

    def value(rows: list[Axis], columns: list[Axis]) -> Array:
        row_orders, column_orders = zip(*orders, strict=True)
        weights = _weights(
            [taps(row, scheme.window[0], order) for row, order in zip(rows, row_orders, strict=True)],
            [taps(column, scheme.window[1], order) for column, order in zip(columns, column_orders, strict=True)],
        )
        parts = []
        for k, m in itertools.product(range(scheme.window[0]), range(scheme.window[1])):
            pixels = _pixels(scheme, image, k, rows[0].index + k, columns[0].index + m)
            weight = weights[k, m]
            parts.append(jnp.where(weight == 0, 0, pixels * weight))  # what has no weight has no influence
        return jnp.where(inside(rows[0].inside, columns[0].inside), total(parts), 0)

    result = _sum_of_samples(scheme, rows, columns, places.share, value)
    return result[None] if one else result


def _weights(rows: Sequence[Taps], columns: Sequence[Taps]) -> dict[tuple[int, int], Array]:
    """Those of all terms together for each pixel of the window, ``[N, h, w, 1]``."""
    window = len(rows[0].weights), len(columns[0].weights)
    return {
        (k, m): total(
            [
                row.weights[k][..., :, None, None] * column.weights[m][..., None, :, None]
                for row, column in zip(rows, columns, strict=True)
            ],
        )
        for k, m in itertools.product(range(window[0]), range(window[1]))
    }


def images(scheme: Scheme, shapes: Sequence[tuple[Any, ...]], crops: Array, terms: Sequence[Term]) -> list[Array]:
    """What the terms add to the images ``[G, B, H, W, C]``: one scatter-add of windows for each."""
    program = functools.partial(_images, scheme, shapes, [term.orders for term in terms])
    return each_group(program)(crops, [term.samples for term in terms])


def _images(
    scheme: Scheme, shapes: Sequence[tuple[Any, ...]], orders: Any, crops: Array, of_terms: Sequence[Samples]
) -> list[Array]:
    crops = _shared(scheme, crops, of_terms[0])
    boxes, height, width, channels = crops.shape
    down, across = scheme.samples  # all of which are added at once: over devices, there is one sum of an image then
    crops = jnp.broadcast_to(crops[:, :, None, :, None], (boxes, height, down, width, across, channels))
    crops = crops.reshape(boxes, height * down, width * across, 1, 1, channels)
    results = []
    for level, (batch, image_height, image_width) in enumerate(shapes):
        window = scheme.windows[level]
        terms = [Term(samples.of_level(level), order) for samples, order in zip(of_terms, orders, strict=True)]
        rows, columns = zip(*[term.taps(window, share=False) for term in terms], strict=True)
        weights = _weights(rows, columns)
        grid = jnp.stack([jnp.stack([weights[k, m] for m in range(window[1])], -2) for k in range(window[0])], -3)
        counts = inside(rows[0].inside, columns[0].inside)[..., None, None]
        updates = jnp.where(counts, crops, 0) * grid
        first_row = rows[0].first + terms[0].samples.item[:, None] * image_height
        starts = jnp.broadcast_arrays(first_row[:, :, None], columns[0].first[:, None, :])
        image = lax.scatter_add(
            zeros((batch * image_height, image_width, channels), scheme.compute, crops, of_terms),
            jnp.stack(starts, axis=-1),
            updates,
            lax.ScatterDimensionNumbers((3, 4, 5), (), (0, 1)),
            mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
        )
        results.append(image.reshape(batch, image_height, image_width, channels))
    return results


def weights(scheme: Scheme, crops: Array, images: Sequence[Array], term: Term) -> tuple[Array, Array]:
    """What the fractions of rows and of columns gain by, ``[G, N, n]`` each."""
    return each_group(functools.partial(_weights_of, scheme, term.orders))(crops, tuple(images), term.samples)


def _weights_of(
    scheme: Scheme, orders: tuple[int, int], crops: Array, images: Sequence[Array], samples: Samples
) -> tuple[Array, Array]:
    image, samples = _stacked(scheme, images, samples)
    down, across = scheme.samples
    crops = _shared(scheme, crops, samples)
    rows, columns = Term(samples, orders).taps(scheme.window, share=False)
    last_row, last_column = scheme.window[0] - 1, scheme.window[1] - 1

    def sums(rows: Taps, columns: Taps) -> tuple[Array, Array]:
        counts = inside(rows.inside, columns.inside)
        pixels = [
            [_pixels(scheme, image, k, rows.first + k, columns.first + m) for m in range(last_column + 1)]
            for k in range(last_row + 1)
        ]
        by_rows = _weighed(
            [b - a for a, b in zip(pixels[0], pixels[-1], strict=True)], [w[:, None, :, None] for w in columns.weights]
        )
        by_columns = _weighed([row[-1] - row[0] for row in pixels], [w[:, :, None, None] for w in rows.weights])
        row_sum, column_sum = (jnp.where(counts, by * crops, 0) for by in (by_rows, by_columns))
        return row_sum.sum((2, 3)), column_sum.sum((1, 3))

    n_rows, n_columns = rows.first.shape[-1], columns.first.shape[-1]
    boxes = crops.shape[0]
    row_bars = zeros((boxes, n_rows // down, down), scheme.compute, crops, image, samples)
    column_bars = zeros((boxes, n_columns // across, across), scheme.compute, crops, image, samples)

    def step(i: Any, j: Any, bars: tuple[Array, Array]) -> tuple[Array, Array]:
        of_row, of_column = sums(_sample_of(down, rows, i), _sample_of(across, columns, j))
        return bars[0].at[..., i].add(of_row), bars[1].at[..., j].add(of_column)

    row_bars, column_bars = _over_samples(scheme, step, (row_bars, column_bars))
    return row_bars.reshape(boxes, n_rows), column_bars.reshape(boxes, n_columns)


def _shared(scheme: Scheme, crops: Array, samples: Samples) -> Array:
    """The cotangents of samples, ``[N, h, w, C]``, of those of their bins."""
    crops = crops.astype(scheme.compute)
    return crops if samples.share is None else crops * samples.share[:, None, None, None]


def _weighed(values: list[Array], weights: list[Array]) -> Array:
    """Their weighted sum; a value without weight has no influence."""
    parts = [jnp.where(weight == 0, 0, value * weight) for value, weight in zip(values, weights, strict=True)]
    return total(parts)


@functools.partial(jax.checkpoint, static_argnums=0)  # keeps no mask for the backward pass
def fill_tangent(dtype: Any, fill_dot: Array, samples: Samples) -> Array:
    """The tangent of crops ``[G, N, h, w, C]``, linear in the fill's, ``[G, N, C]``."""
    counts = inside(samples.rows.inside, samples.columns.inside)
    return jnp.where(counts, 0, fill_dot[..., None, None, :]).astype(dtype)


def _stacked(scheme: Scheme, images: Sequence[Array], samples: Samples) -> tuple[Array, Samples]:
    """``[R, W, C]``: images one below the other, each as wide as the widest, so that one gather serves them all."""
    heights = [image.shape[1] for image in images]
    if len(images) == 1:
        stack = images[0].reshape(-1, *images[0].shape[2:])
        index = Light(samples.item)[..., None] * heights[0] + samples.rows.index
        return stack, _with_rows(samples, index.array)
    widest = max(image.shape[2] for image in images)
    # Of images of one row, each row is followed by one of zeros: whoever takes two must not see the next image's.
    spacing = [1 + scheme.window[0] - rows for rows, _ in scheme.windows]
    padded = [
        jnp.pad(image.reshape(-1, 1, *image.shape[2:]), ((0, 0), (0, space - 1), (0, widest - image.shape[2]), (0, 0)))
        for image, space in zip(images, spacing, strict=True)
    ]
    stack = jnp.concatenate([image.reshape(-1, widest, image.shape[3]) for image in padded])
    lengths = [image.shape[0] * image.shape[1] * space for image, space in zip(images, spacing, strict=True)]
    first_rows = jnp.stack([jnp.asarray(n, jnp.int32) for n in itertools.accumulate(lengths[:-1], initial=0)])
    space, first_row, height = (
        jnp.asarray(x, jnp.int32)[samples.level][..., None] for x in (spacing, first_rows, heights)
    )
    return stack, _with_rows(samples, (samples.rows.index + samples.item[..., None] * height) * space + first_row)


def _with_rows(samples: Samples, index: Array) -> Samples:
    return samples._replace(rows=samples.rows._replace(index=index))


def _without_an_axis_of_one_box(samples: Samples) -> tuple[Samples, bool]:
    """Under vmap, XLA would order such an axis so that it could not fuse the gather; and whether there was one."""
    if is_one := samples.item.shape == (1,):
        samples = jax.tree.map(lambda x: x[0], samples)
    return samples, is_one


def _sum_of_samples(
    scheme: Scheme, rows: Any, columns: Any, share: Array | None, value: Callable[[Any, Any], Array]
) -> Array:
    """The sum of ``value(row, column)``, ``[N, h, w, C]`` of one sample of each output pixel, over all its samples."""
    down, across = scheme.samples

    def of(i: Any, j: Any) -> Array:
        return value(_sample_of(down, rows, i), _sample_of(across, columns, j))

    total = _over_samples(scheme, lambda i, j, total: total + of(i, j), of(0, 0), first=1)
    return total if share is None else total * share[..., None, None, None]


def is_unrolled(scheme: Scheme) -> bool:
    """Whether samples of a bin are read by one pass, not in a loop."""
    return math.prod(scheme.samples) <= _UNROLLED


def _over_samples(scheme: Scheme, step: Callable[[Any, Any, Any], Any], carry: Any, first: int = 0) -> Any:
    """``step(i, j, carry)`` for every sample of a bin, or from one of them on."""
    down, across = scheme.samples
    if is_unrolled(scheme):
        for k in range(first, down * across):
            carry = step(*divmod(k, across), carry)
        return carry
    return lax.fori_loop(first, down * across, lambda k, carry: step(k // across, k % across, carry), carry)


def _sample_of(count: int, tables: Any, index: Any) -> Any:
    """Of each output pixel's ``count`` samples along an axis, one: ``[..., n * count]`` to ``[..., n]``."""
    if isinstance(index, int):
        return jax.tree.map(lambda table: table[..., index::count], tables)

    def of(table: Array) -> Array:
        by_pixel = table.reshape(*table.shape[:-1], -1, count)
        return lax.dynamic_index_in_dim(by_pixel, index, axis=-1, keepdims=False, allow_negative_indices=False)

    return jax.tree.map(of, tables)


def _in_memory(axis: Axis, fractions: Sequence[Array]) -> list[Axis]:
    """The same places with each of the fractions, computed once, not anew for each channel."""
    index, inside, first, *others = lax.optimization_barrier((axis.index, axis.inside, *fractions))
    index, inside, first = (light.array for light in in_one_loop(*map(Light, (index, inside, first))))
    return [Axis(index, fraction, inside) for fraction in (first, *in_memory(others))]


def _interpolate(scheme: Scheme, image: Array, rows: Axis, columns: Axis) -> Array:
    """The surface at each sample, ``[N, h, w, C]``, or ``[h, w, C]`` of one box."""
    finite = jnp.issubdtype(image.dtype, jnp.integer)

    def across(k: int, row: Array) -> Array:
        pixels = [_pixels(scheme, image, k, row, column) for column in _read(scheme.window[1], columns)]
        return _lerp(pixels, columns.fraction[..., None, :, None], finite)

    in_rows = [across(k, row) for k, row in enumerate(_read(scheme.window[0], rows))]
    return _lerp(in_rows, rows.fraction[..., :, None, None], finite)


def _read(window: int, axis: Axis) -> list[Array]:
    """The pixels that are read: a sample on a pixel has no second, and may be on the last."""
    second = Light(axis.index) + (Light(axis.fraction) != 0).astype(jnp.int32)
    return [axis.index, second.array][:window]


def _lerp(values: list[Array], weight: Array, finite: bool) -> Array:
    """Between the first value and the last; a value without weight has no influence, be it infinite or NaN."""
    if len(values) == 1:
        return values[0]
    left, right = map(Light, values)
    between = left + (right - left) * weight
    return (between if finite else where(Light(weight) == 0, left, between)).array


def _pixels(scheme: Scheme, image: Array, k: int, rows: Array, columns: Array) -> Array:
    """The pixels at each of ``[N, h]`` rows and ``[N, w]`` columns: ``[N, h, w, C]``, in the type of interpolation.

    ``k`` says which row of a sample's window the rows are, the first or the second. Of bfloat16, these are read as
    integers of two types (`bits`): XLA on CPUs fuses what is read at up to 15 places, and holds it otherwise
    (`xla/service/fusion_node_indexing_evaluation.cc`); four samples read 16 pixels.
    """
    dtype, (height, width, channels) = image.dtype, image.shape
    image = stored(image, (jnp.uint16, jnp.int16)[k])
    rows, columns = lax.expand_dims(rows, (rows.ndim,)), lax.expand_dims(columns, (columns.ndim - 1,))
    if isinstance(height * width, int) and height * width < 2**31:
        # One address each: pairs for images of one channel XLA would form in memory.
        address = (Light(rows) * width + columns).array
        image, indices = image.reshape(-1, channels), lax.expand_dims(address, (address.ndim,))
    else:  # which an address might overflow
        indices = jnp.stack(jnp.broadcast_arrays(rows, columns), axis=-1)
    axes = tuple(range(indices.shape[-1]))
    pixels = lax.gather(
        image,
        indices,
        lax.GatherDimensionNumbers(offset_dims=(indices.ndim - 1,), collapsed_slice_dims=axes, start_index_map=axes),
        slice_sizes=(*[1] * len(axes), channels),
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    return converted(pixels, dtype, scheme.compute)
