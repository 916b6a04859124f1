"""Sampling as products of matrices: what a TPU is made for.

With the weights of a box's rows and of its columns as dense matrices, a crop is ``rows @ image @ columns.T``, however many
samples a bin has. The sums are those of the formula, in another order; products run in the precision of float32.

Boxes go in chunks, so that what is between the two products stays small. The boxes of a chunk are of one image, which
is read in place: boxes with indices are sorted by image first, and each image's are filled up to whole chunks.

A pixel that is not finite would reach all that is multiplied with it, since 0 times NaN is NaN. `values` keeps it where it
has weight.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_crop import _kernels
from jax_crop._geometry import Axis
from jax_crop._kernels import Kernel
from jax_crop._sampling.tables import Samples, Scheme, Taps, Term, float_of
from jax_crop._sampling.varying import zeros

# What lies between two products, of all boxes of a chunk.
_BYTES_BETWEEN = 24 * 2**20

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def values(scheme: Scheme, images: Sequence[Array], samples: Samples, fill: Array) -> Array:
    """As `gather.values`, to the precision of float32."""
    result = crops(scheme, [finite(image) for image in images], [Term(samples)])
    if any(map(_has_fractions, images)):
        all_finite = functools.reduce(jnp.logical_and, [jnp.isfinite(image).all() for image in images])
        result = lax.cond(
            all_finite, lambda result, *_: result, functools.partial(_with_marks, scheme), result, images, samples
        )
    if len(images) == 1:  # a pyramid's bins count samples outside as 0
        inside = samples.rows.inside[..., :, None] & samples.columns.inside[..., None, :]
        if scheme.samples == (1, 1):
            result = jnp.where(inside[..., None], result, fill.astype(result.dtype))
    return result.astype(scheme.dtype)


def _has_fractions(image: Array) -> bool:
    return jnp.issubdtype(image.dtype, jnp.floating)


def _with_marks(scheme: Scheme, result: Array, images: Sequence[Array], samples: Samples) -> Array:
    """The crops, with NaN and infinities where pixels that are such have weight."""
    reached = [
        crops(scheme, [mark(image).astype(scheme.compute) for image in images], [Term(samples)]) > 0
        for mark in (jnp.isnan, jnp.isposinf, jnp.isneginf)
    ]
    nan, positive, negative = reached
    result = jnp.where(positive, jnp.inf, jnp.where(negative, -jnp.inf, result))
    return jnp.where(nan | (positive & negative), jnp.nan, result)


def crops(scheme: Scheme, images: Sequence[Array], terms: Sequence[Term]) -> Array:
    """As `gather.crops`."""
    parts = [_crops_of_level(scheme, level, image, terms) for level, image in enumerate(images)]
    return functools.reduce(jnp.add, parts)


def _crops_of_level(scheme: Scheme, level: int, image: Array, terms: Sequence[Term]) -> Array:
    def of_chunk(own: Array, tables: Any) -> Array:
        dense = _dense(scheme, tables, image.shape)
        return functools.reduce(jnp.add, [_product(own.astype(scheme.compute), *matrices) for matrices in dense])

    tables = _tables(scheme, level, terms)
    chunks = _chunks(image.shape, terms[0].samples.item, _crop_size(scheme, terms[0].samples), len(tables))
    return _by_chunks(chunks, of_chunk, image, tables)


def values_of_kernel(kernel: Kernel, dtype: Any, of_groups: tuple[Array, Array], samples: Samples) -> Array:
    """Crops ``[G, N, h, w, C]`` in a dtype by an interpolation kernel, of images and fills ``[G, C]``."""
    image, fill = of_groups
    compute = float_of(dtype)
    result = crops_of_kernel(kernel, finite(image), samples, compute)
    if _has_fractions(image):
        result = lax.cond(
            jnp.isfinite(image).all(),
            lambda result, _: result,
            lambda result, image: result + crops_of_kernel(kernel, image, samples, compute, _product_of_not_finite),
            result,
            image,
        )
    inside = samples.rows.inside[..., :, None] & samples.columns.inside[..., None, :]
    return jnp.where(inside[..., None], result, fill[:, None, None, None]).astype(dtype)


def finite(image: Array) -> Array:
    """The image, with 0 for pixels that are not finite."""
    return jnp.where(jnp.isfinite(image), image, 0) if _has_fractions(image) else image


def crops_of_kernel(
    kernel: Kernel, image: Array, samples: Samples, dtype: Any, product: Callable[..., Array] | None = None
) -> Array:
    """Crops ``[G, N, h, w, C]``, computed in a dtype; with 0 outside."""
    groups, batch = image.shape[:2]
    if not (_is_one(groups) or _is_one(batch)):  # chunks of one image each are others in each group

        def of_group(image: Array, samples: Samples) -> Array:
            own = jax.tree.map(lambda x: x[None], samples)
            return crops_of_kernel(kernel, image[None], own, dtype, product)[0]

        return jax.vmap(of_group)(image, samples)
    axes = samples.rows, samples.columns

    @jax.checkpoint  # or its matrices would stay for the derivative
    def of_chunk(own: Array, axes: tuple[Axis, Axis]) -> Array:
        matrices = [_kernels.weights(kernel, axis, size) for axis, size in zip(axes, own.shape[1:3], strict=True)]
        return (product or _product)(own.astype(dtype), *matrices)

    size = samples.rows.index.shape[-1], samples.columns.index.shape[-1]
    return _by_chunks(_chunks(image.shape, samples.item, size, least=1), of_chunk, image, axes)


def _product(images: Array, rows: Array, columns: Array) -> Array:
    """Crops ``[G, N, h, w, C]`` of an image of each group."""
    return _einsum("gniwc,gnjw->gnijc", _einsum("gnir,grwc->gniwc", rows, images), columns)


def _product_of_not_finite(images: Array, rows: Array, columns: Array) -> Array:
    """What pixels that are not finite make of crops: NaN or an infinity, of the sign of its weight; or 0."""
    sizes = jnp.abs(rows), jnp.abs(columns)
    infinite = jnp.isposinf(images).astype(rows.dtype) - jnp.isneginf(images).astype(rows.dtype)
    sign, reached = _product(infinite, rows, columns), _product(jnp.abs(infinite), *sizes)
    nan = _product(jnp.isnan(images).astype(rows.dtype), *sizes) > 0
    nan |= jnp.abs(sign) < reached  # infinities of both signs
    return jnp.where(nan, jnp.nan, jnp.where(reached > 0, jnp.sign(sign) * jnp.inf, 0))


def _by_chunks(chunks: "_Chunks", of_chunk: Callable[[Array, Any], Array], image: Array, tables: Any) -> Array:
    return chunks.join(
        lax.map(lambda chunk: of_chunk(_own(image, chunk[0]), chunk[1]), (chunks.items, chunks.split(tables)))
    )


def images(scheme: Scheme, shapes: Sequence[tuple[Any, ...]], crops: Array, terms: Sequence[Term]) -> list[Array]:
    """As `gather.images`."""
    groups, channels = crops.shape[0], crops.shape[-1]
    results = []
    for level, (batch, height, width) in enumerate(shapes):
        shape = (groups, batch, height, width, channels)
        tables = _tables(scheme, level, terms)
        chunks = _chunks(shape, terms[0].samples.item, _crop_size(scheme, terms[0].samples), len(tables))

        def add(image: Array, chunk: Any, shape: Any = shape) -> tuple[Array, None]:
            item, crops, tables = chunk
            crops = crops.astype(scheme.compute)
            total = []
            for rows, columns in _dense(scheme, tables, shape):
                total.append(_einsum("gnir,gniwc->grwc", rows, _einsum("gnijc,gnjw->gniwc", crops, columns)))
            added = _own(image, item) + functools.reduce(jnp.add, total)
            return lax.dynamic_update_slice_in_dim(image, added[:, None], item, axis=1), None

        start = zeros(shape, scheme.compute, crops, tables)
        results.append(lax.scan(add, start, (chunks.items, chunks.split(crops), chunks.split(tables)))[0])
    return results


def weights(scheme: Scheme, crops: Array, images: Sequence[Array], term: Term) -> tuple[Array, Array]:
    """As `gather.weights`."""
    parts = [_weights_of_level(scheme, level, crops, image, term) for level, image in enumerate(images)]
    rows, columns = zip(*parts, strict=True)
    return functools.reduce(jnp.add, rows), functools.reduce(jnp.add, columns)


def _weights_of_level(scheme: Scheme, level: int, crops: Array, image: Array, term: Term) -> tuple[Array, Array]:
    # The slopes are the derivative times a fraction of 1.
    samples = term.samples
    ones = samples._replace(
        rows=samples.rows._replace(fraction=jnp.ones_like(samples.rows.fraction)),
        columns=samples.columns._replace(fraction=jnp.ones_like(samples.columns.fraction)),
        share=None,
    )
    terms = [term, Term(ones, (1, 1))]
    tables = _tables(scheme, level, terms)
    chunks = _chunks(image.shape, samples.item, _crop_size(scheme, samples), len(tables))
    share = None if samples.share is None else samples.share[..., None]

    def of_chunk(item: Array, crops: Array, tables: Any) -> tuple[Array, Array]:
        own, crops = _own(image, item).astype(scheme.compute), crops.astype(scheme.compute)
        # The share is in the weights of rows, which those of rows themselves are not multiplied with.
        (rows, columns), _ = _dense(scheme, tables, image.shape)
        row_slopes, column_slopes = (
            _matrix(taps, size, 1) for taps, size in zip(tables[1], own.shape[1:3], strict=True)
        )
        by_row = _einsum("gniwc,grwc->gnir", _einsum("gnijc,gnjw->gniwc", crops, columns), own)
        by_column = _einsum("gnijc,gniwc->gnjw", crops, _einsum("gnir,grwc->gniwc", rows, own))
        down, across = scheme.samples
        return (
            jnp.sum(jnp.repeat(by_row, down, axis=2) * row_slopes, axis=-1),
            jnp.sum(jnp.repeat(by_column, across, axis=2) * column_slopes, axis=-1),
        )

    of_rows, of_columns = lax.map(
        lambda chunk: of_chunk(*chunk), (chunks.items, chunks.split(crops), chunks.split(tables))
    )
    of_rows = chunks.join(of_rows)
    return of_rows if share is None else of_rows * share, chunks.join(of_columns)


def _own(image: Array, item: Array) -> Array:
    """The image of a chunk, in each group: ``[G, H, W, C]``."""
    return lax.dynamic_index_in_dim(image, item, axis=1, keepdims=False)


def _tables(scheme: Scheme, level: int, terms: Sequence[Term]) -> list[tuple[Taps, Taps]]:
    return [Term(term.samples.of_level(level), term.orders).taps(scheme.windows[level]) for term in terms]


def _dense(scheme: Scheme, tables: Sequence[tuple[Taps, Taps]], shape: tuple[Any, ...]) -> list[tuple[Array, Array]]:
    """The matrices of rows ``[..., h, H]`` and of columns ``[..., w, W]``, with the samples of a bin folded into them."""
    return [
        (_matrix(rows, shape[2], scheme.samples[0]), _matrix(columns, shape[3], scheme.samples[1]))
        for rows, columns in tables
    ]


def _matrix(taps: Taps, size: int, samples: int) -> Array:
    pixels = jnp.arange(size, dtype=jnp.int32)
    matrix = 0
    for k, weights in enumerate(taps.weights):
        hit = (taps.first + k)[..., None] == pixels
        matrix = matrix + jnp.where(hit & taps.inside[..., None], weights[..., None], 0)
    return matrix.reshape(*matrix.shape[:-2], -1, samples, size).sum(axis=-2)


class _Chunks(NamedTuple):
    """Boxes in chunks of one image each.

    Attributes:
        items: ``[chunks]``, the image.
        boxes: ``[G, chunks * K]``, which box is in each place; None where boxes are in order.
        places: ``[G, N]``, in which place each box is.
        count: of the boxes, ``N``.
        size: of a chunk, ``K``.
    """

    items: Array
    boxes: Array | None
    places: Array | None
    count: Any
    size: int

    def split(self, tables: Any) -> Any:
        """``[G, N, ...]`` each to ``[chunks, G, K, ...]``."""

        def of(table: Array) -> Array:
            if self.boxes is None:
                padding = self.items.shape[0] * self.size - self.count
                table = jnp.pad(table, [(0, 0), (0, padding)] + [(0, 0)] * (table.ndim - 2))
            else:
                table = jax.vmap(lambda own, boxes: own.at[boxes].get(mode="fill", fill_value=0))(table, self.boxes)
            # A chunk takes every so many-th box, so that boxes that are sharded stay where they are.
            return jnp.moveaxis(table.reshape(table.shape[0], self.size, -1, *table.shape[2:]), 2, 0)

        return jax.tree.map(of, tables)

    def join(self, results: Array) -> Array:
        """``[chunks, G, K, ...]`` to ``[G, N, ...]``."""
        results = jnp.moveaxis(results, 0, 2)
        results = results.reshape(results.shape[0], -1, *results.shape[3:])
        if self.places is None:
            return results[:, : self.count]
        return jax.vmap(lambda own, places: own[places])(results, self.places)


def _crop_size(scheme: Scheme, samples: Samples) -> tuple[int, int]:
    down, across = scheme.samples
    return samples.rows.index.shape[-1] // down, samples.columns.index.shape[-1] // across


def _chunks(
    shape: tuple[Any, ...], items: Array, crop_size: tuple[int, int], terms: int = 1, least: int = 8
) -> _Chunks:
    """How boxes, each of one of the items ``[G, N]``, are taken in chunks from images ``[G, B, H, W, C]``."""
    groups, batch, height, width, channels = shape
    count, (h, w) = items.shape[1], crop_size
    floats = terms * (h * width * channels + h * height + w * width)
    size = max(1, _BYTES_BETWEEN // (4 * floats * groups)) if _is_known(channels, groups) else 1
    if not _is_known(count):
        size = count if _is_one(batch) else size
        chunks = 1 if _is_one(batch) else (count + batch * (size - 1)) // size
    elif _is_one(batch):
        chunks = -(-count // size)
        size = -(-count // chunks)
    else:  # half of an image's share of boxes, so that few places stay empty
        size = min(size, max(least, -(-count // (2 * batch)))) if _is_known(batch) else min(size, least)
        chunks = (count + batch * (size - 1)) // size
    if _is_one(batch):
        return _Chunks(jnp.zeros(chunks, jnp.int32), None, None, count, size)
    item = items[0]
    of_image = (item[:, None] == jnp.arange(batch, dtype=jnp.int32)[None]).astype(jnp.int32)
    before = jnp.sum(of_image * (jnp.cumsum(of_image, axis=0) - 1), axis=1)  # boxes of the same image
    last = jnp.cumsum(-(-jnp.sum(of_image, axis=0) // size))  # after each image's last chunk
    first = jnp.concatenate([jnp.zeros(1, last.dtype), last[:-1]])[item]
    places = (before % size) * chunks + first + before // size
    every = jnp.arange(chunks * size, dtype=jnp.int32)[:, None]
    numbers = jnp.arange(count, dtype=jnp.int32)
    boxes = jnp.min(jnp.where(places[None] == every, numbers[None], count), axis=1)
    items = jnp.sum(jnp.arange(chunks, dtype=jnp.int32)[:, None] >= last[None], axis=1)
    return _Chunks(jnp.minimum(items, batch - 1).astype(jnp.int32), boxes[None], places[None], count, size)


def _is_known(*sizes: Any) -> bool:
    return all(isinstance(size, int) for size in sizes)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1
