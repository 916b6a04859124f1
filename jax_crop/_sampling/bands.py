"""Sampling by an interpolation kernel on a CPU: loops over the pixels that have weight, of one thread.

The matrices of `products` are bands: a sample's pixels follow one another. Of each box, the rows of samples are summed
first, of the columns that it reaches; then the columns, of what these sums leave. Both add runs of floats: what lies
between them is transposed, so that a column of samples is a run as well. As many pixels are read as the kernel reaches;
so no bound on the size of boxes is asked for.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jax_crop._calls import small
from jax_crop._geometry import Axis
from jax_crop._kernels import Kernel
from jax_crop._sampling.steps import at, loop, only, put, take
from jax_crop._sampling.tables import Samples, flat, float_of, items_of_all
from jax_crop._sampling.varying import zeros

# How many floats of a row of pixels are summed at once, and of a column of samples: these stay in the nearest cache.
_ACROSS = 256
_DOWN = 4096


def can_compile(shape: tuple[Any, ...]) -> bool:
    """Whether a small call can take images ``[..., C]``: XLA would split work on very many channels over threads."""
    return isinstance(shape[-1], int) and shape[-1] <= 2**14


def values_of_kernel(kernel: Kernel, dtype: Any, of_groups: tuple[Array, Array], samples: Samples) -> Array:
    """As `products.values_of_kernel`."""
    image, fill = of_groups
    groups, batch, height, width, channels = image.shape
    n_boxes, h, w = groups * samples.item.shape[1], samples.rows.index.shape[-1], samples.columns.index.shape[-1]
    compute = float_of(dtype)
    first_row = items_of_all(samples.item, batch) * height
    fills = jnp.broadcast_to(fill[:, None], (*samples.item.shape, channels)).astype(compute)
    (row_taps, row_places), (column_taps, column_places) = (
        _tables(kernel, axis, size) for axis, size in zip(samples[:2], (height, width), strict=True)
    )
    down = min(h, max(1, _DOWN // channels))
    others = image, fill, samples
    result = small(
        lambda *arrays: _crops(kernel, *arrays),
        zeros((n_boxes, h, w, channels), compute, others),
        # One more than is needed, for XLA fails if an argument is not in use, as is one that is written as a whole.
        zeros((width + 1, down, channels), compute, others),
        zeros((height + 1,), compute, others),
        image.reshape(-1, width * channels),
        *map(flat, (_reach(first_row, column_taps), row_taps, row_places, column_taps, column_places, fills)),
    )
    return result.reshape(groups, -1, h, w, channels).astype(dtype)


def _tables(kernel: Kernel, axis: Axis, size: int) -> tuple[Array, Array]:
    """The first pixel of each sample and the one after its last, the same if outside; how far the first is ahead.

    ``[..., n, 2]`` each. How far is in units of the kernel, with one pixel in these units.
    """
    index, fraction, inside, scale = axis
    radius = jnp.minimum(kernel.radius * scale, 2.0**30)
    first = jnp.maximum(index - jnp.floor(radius - fraction).astype(jnp.int32), 0)
    after = jnp.minimum(index + jnp.floor(radius + fraction).astype(jnp.int32) + 1, size)
    ahead = ((first - index).astype(fraction.dtype) - fraction) / scale
    taps = jnp.where(inside[..., None], jnp.stack([first, after], axis=-1), 0)
    return taps, jnp.stack([ahead, jnp.broadcast_to(1 / scale, ahead.shape)], axis=-1)


def _reach(first_row: Array, taps: Array) -> Array:
    """The first row of each box's image; from the first pixel of any sample to the one after the last: ``[..., 3]``."""
    first, after = taps[..., 0], taps[..., 1]
    none = jnp.iinfo(jnp.int32).max
    return jnp.stack([first_row, jnp.min(jnp.where(first < after, first, none), -1), jnp.max(after, -1)], axis=-1)


def _crops(
    kernel: Kernel,
    crops: Array,
    between: Array,
    weights: Array,
    image: Array,
    reach: Array,
    row_taps: Array,
    row_places: Array,
    column_taps: Array,
    column_places: Array,
    fills: Array,
) -> Array:
    """The array of crops ``[N, h, w, C]`` with all of them written.

    Args:
        kernel: see `Kernel`.
        crops: of the type that is computed in.
        between: ``[W + 1, rows, C]``, memory for what is between the two sums.
        weights: ``[H + 1]``, memory for those of a row.
        image: ``[R, W * C]``.
        reach: ``[N, 3]``, see `_reach`.
        row_taps: ``[N, h, 2]``, see `_tables`.
        row_places: ``[N, h, 2]``.
        column_taps: ``[N, w, 2]``.
        column_places: ``[N, w, 2]``.
        fills: ``[N, C]``.
    """
    boxes, h, w, channels = crops.shape
    width, down = image.shape[1] // channels, between.shape[1]
    across = min(width, max(1, _ACROSS // channels))

    def weight(place: Array, tap: Array) -> Array:
        return kernel(place[0] + tap.astype(place.dtype) * place[1])

    def of_rows(n: Array, i: Array, place: Array, state: Any) -> Any:
        """The sums of row ``i`` of samples, in place ``place`` between."""
        taps = at(row_taps, n, i)
        count = taps[1] - taps[0]

        def set_weight(tap: Array, state: Any) -> Any:
            total, weights = state
            new = weight(at(row_places, n, i), tap)
            return total + new, put(weights, new[None], (tap,))

        between, weights = state
        total, weights = loop(count, set_weight, (jnp.zeros_like(weights[0]), weights))
        first_row, first, after = at(reach, n)
        row = first_row + taps[0]

        def of_block(k: Array, between: Array) -> Array:
            start = jnp.minimum(first + k * across, width - across)

            def add(tap: Array, sums: Array) -> Array:
                run = take(image, (row + tap, start * channels), (1, across * channels))[0]
                return _added(sums, at(weights, tap), run)

            sums = loop(count, add, zeros((across * channels,), between.dtype, between, image))
            return put(between, (sums * (1 / total)).reshape(across, 1, channels), (start, place, 0))

        blocks = lax.div(after - first + (across - 1), jnp.int32(across))
        return loop(jnp.where(count > 0, blocks, 0), of_block, between), weights

    def of_column(n: Array, i: Array, j: Array, between: Array, crops: Array) -> Array:
        taps, place = at(column_taps, n, j), at(column_places, n, j)

        def add(tap: Array, state: Any) -> Any:
            total, sums = state
            new = weight(place, tap)
            return total + new, _added(sums, new, at(between, taps[0] + tap).reshape(-1))

        start = jnp.zeros_like(between[0, 0, 0]), jnp.zeros_like(between[0]).reshape(-1)
        total, sums = loop(taps[1] - taps[0], add, start)
        own = take(row_taps, (n, i, 0), (1, down, 2))[0]
        inside = (own[:, 0] < own[:, 1]) & (taps[0] < taps[1])
        inside = jnp.broadcast_to(inside[:, None], (down, channels))
        fill = jnp.broadcast_to(at(fills, n)[None], (down, channels))
        value = lax.select(inside, (sums * (1 / total)).reshape(down, channels), fill)
        return put(crops, value[None, :, None], (n, i, j, 0))

    def of_box(n: Array, state: Any) -> Any:
        def of_part(part: Array, state: Any) -> Any:
            crops, *others = state
            i = jnp.minimum(part * down, h - down)
            between, weights = loop(down, lambda k, others: of_rows(n, i + k, k, others), tuple(others))
            crops = loop(w, lambda j, crops: of_column(n, i, j, between, crops), crops)
            return crops, between, weights

        return loop(-(-h // down), of_part, state)

    return loop(boxes, of_box, (crops, between, weights))[0]


def _added(sums: Array, weight: Array, run: Array) -> Array:
    return sums + only(jnp.broadcast_to(weight != 0, sums.shape), run.astype(sums.dtype) * weight)
