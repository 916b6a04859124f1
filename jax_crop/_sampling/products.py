"""Sampling as products of matrices: what a TPU is made for.

With the weights of a box's rows and of its columns as dense matrices, a crop is ``rows @ image @ columns.T``, however
many samples a bin has. The sums are those of the formula, in another order; products run in the precision of float32.

Boxes go in chunks, so that what is between the two products stays small. The boxes of a chunk are of one image, which
is read in place: boxes with indices are sorted by image first, and each image's are filled up to whole chunks.

A pixel that is not finite would reach all that is multiplied with it, since 0 times NaN is NaN. `values` keeps it where
it has weight; in a derivative by boxes it reaches all boxes of its image.
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
from jax_crop._sampling.tables import Samples, Scheme, Taps, Term, flat, float_of, inside, items_of_all
from jax_crop._sampling.varying import zeros

# What lies between two products, of all boxes of a chunk.
_BYTES_BETWEEN = 32 * 2**20

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def values(scheme: Scheme, images: Sequence[Array], samples: Samples) -> Array:
    """As `gather.values` to the precision of float32, with 0 outside."""
    result = crops(scheme, [finite(image) for image in images], [Term(samples)])
    if any(map(_has_fractions, images)):
        all_finite = functools.reduce(jnp.logical_and, [jnp.isfinite(image).all() for image in images])
        result = lax.cond(
            all_finite, lambda result, *_: result, functools.partial(_with_marks, scheme), result, images, samples
        )
    return result.astype(scheme.dtype)


def _has_fractions(image: Array) -> bool:
    return jnp.issubdtype(image.dtype, jnp.floating)


def _with_marks(scheme: Scheme, result: Array, images: Sequence[Array], samples: Samples) -> Array:
    """The crops, with NaN and infinities where pixels that are such have weight."""

    def reached(signs: Sequence[Callable[[Array], Array]]) -> Array:
        marks = [functools.reduce(jnp.logical_or, [sign(image) for sign in signs]) for image in images]
        # Ones and zeros are exact in any precision, and weights are not negative.
        return (
            crops(scheme, [mark.astype(scheme.compute) for mark in marks], [Term(samples)], lax.Precision.DEFAULT) > 0
        )

    positive, negative = reached([jnp.isnan, jnp.isposinf]), reached([jnp.isnan, jnp.isneginf])
    result = jnp.where(positive, jnp.inf, jnp.where(negative, -jnp.inf, result))
    return jnp.where(positive & negative, jnp.nan, result)


def crops(
    scheme: Scheme,
    images: Sequence[Array],
    terms: Sequence[Term],
    precision: lax.Precision = lax.Precision.HIGHEST,
    *,
    partitioned: bool = True,
) -> Array:
    """As `gather.crops`."""
    parts = [_crops_of_level(scheme, level, image, terms, precision, partitioned) for level, image in enumerate(images)]
    return functools.reduce(jnp.add, parts)


def _crops_of_level(
    scheme: Scheme, level: int, image: Array, terms: Sequence[Term], precision: lax.Precision, partitioned: bool
) -> Array:
    layout = _Layout.of(image.shape, terms[0].samples, _crop_size(scheme, terms[0].samples), len(terms), partitioned)
    image, terms = layout.images(image), layout.terms(terms)
    tables = _tables(scheme, level, terms)
    chunks = _chunks(layout, terms[0].samples)

    def of_chunk(item: Array, tables: Any) -> Array:
        own = _own(image, item).astype(scheme.compute)
        total = []
        for rows, columns in _dense(scheme, tables, image.shape):
            total.append(_product(own, rows, columns, precision))
        return functools.reduce(jnp.add, total)

    results = lax.map(lambda chunk: of_chunk(*chunk), (chunks.items, chunks.split(tables)))
    return layout.in_groups(chunks.join(results))


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
    counts = inside(samples.rows.inside, samples.columns.inside)
    return jnp.where(counts, result, fill[:, None, None, None]).astype(dtype)


def finite(image: Array) -> Array:
    """The image, with 0 for pixels that are not finite."""
    return jnp.where(jnp.isfinite(image), image, 0) if _has_fractions(image) else image


def crops_of_kernel(
    kernel: Kernel, image: Array, samples: Samples, dtype: Any, product: Callable[..., Array] | None = None
) -> Array:
    """Crops ``[G, N, h, w, C]``, computed in a dtype; with 0 outside."""
    size = samples.rows.index.shape[-1], samples.columns.index.shape[-1]
    layout = _Layout.of(image.shape, samples, size, 1, partitioned=True)
    image, (term,) = layout.images(image), layout.terms([Term(samples)])
    chunks = _chunks(layout, term.samples)

    @jax.checkpoint  # or its matrices would stay for the derivative
    def of_chunk(own: Array, axes: tuple[Axis, Axis]) -> Array:
        rows, columns = (_kernels.weights(kernel, *of_axis) for of_axis in zip(axes, own.shape[1:3], strict=True))
        return (product or _product)(own.astype(dtype), rows, columns)

    results = lax.map(
        lambda chunk: of_chunk(_own(image, chunk[0]), chunk[1]),
        (chunks.items, chunks.split((term.samples.rows, term.samples.columns))),
    )
    return layout.in_groups(chunks.join(results))


def _product(images: Array, rows: Array, columns: Array, precision: lax.Precision = lax.Precision.HIGHEST) -> Array:
    """Crops ``[G, N, h, w, C]`` of an image of each group."""
    between = _einsum("gnir,grwc->gniwc", rows, images, precision=precision)
    return _einsum("gniwc,gnjw->gnijc", between, columns, precision=precision)


def _product_of_not_finite(images: Array, rows: Array, columns: Array) -> Array:
    """What pixels that are not finite make of crops: NaN or an infinity, of the sign of its weight; or 0."""
    sizes = jnp.abs(rows), jnp.abs(columns)
    infinite = jnp.isposinf(images).astype(rows.dtype) - jnp.isneginf(images).astype(rows.dtype)
    sign, reached = _product(infinite, rows, columns), _product(jnp.abs(infinite), *sizes)
    nan = _product(jnp.isnan(images).astype(rows.dtype), *sizes) > 0
    nan |= jnp.abs(sign) < reached  # infinities of both signs
    return jnp.where(nan, jnp.nan, jnp.where(reached > 0, jnp.sign(sign) * jnp.inf, 0))


def images(
    scheme: Scheme,
    shapes: Sequence[tuple[Any, ...]],
    crops: Array,
    terms: Sequence[Term],
    *,
    partitioned: bool = True,
) -> list[Array]:
    """As `gather.images`."""
    results = []
    for level, of_level in enumerate(shapes):
        shape, samples = (crops.shape[0], *of_level, crops.shape[-1]), terms[0].samples
        layout = _Layout.of(shape, samples, _crop_size(scheme, samples), len(terms), partitioned)
        shape, own_crops, own_terms = layout.shape, layout.boxes(crops), layout.terms(terms)
        tables = _tables(scheme, level, own_terms)
        chunks = _chunks(layout, own_terms[0].samples)

        def add(image: Array, chunk: Any, shape: Any = shape) -> tuple[Array, None]:
            item, crops, tables = chunk
            crops = crops.astype(scheme.compute)
            total = []
            for rows, columns in _dense(scheme, tables, shape):
                total.append(_einsum("gnir,gniwc->grwc", rows, _einsum("gnijc,gnjw->gniwc", crops, columns)))
            added = _own(image, item) + functools.reduce(jnp.add, total)
            return lax.dynamic_update_slice_in_dim(image, added[:, None], item, axis=1), None

        start = zeros(shape, scheme.compute, crops, tables)
        result, _ = lax.scan(add, start, (chunks.items, chunks.split(own_crops), chunks.split(tables)))
        results.append(result.reshape(layout.given))
    return results


def weights(
    scheme: Scheme, crops: Array, images: Sequence[Array], term: Term, *, partitioned: bool = True
) -> tuple[Array, Array]:
    """As `gather.weights`."""
    parts = [_weights_of_level(scheme, level, crops, image, term, partitioned) for level, image in enumerate(images)]
    rows, columns = zip(*parts, strict=True)
    return functools.reduce(jnp.add, rows), functools.reduce(jnp.add, columns)


def _weights_of_level(
    scheme: Scheme, level: int, crops: Array, image: Array, term: Term, partitioned: bool
) -> tuple[Array, Array]:
    layout = _Layout.of(image.shape, term.samples, _crop_size(scheme, term.samples), 2, partitioned)
    image, crops, (term,) = layout.images(image), layout.boxes(crops), layout.terms([term])
    # The slopes are the derivative times a fraction of 1.
    samples = term.samples
    ones = samples.with_fractions(*(jnp.ones_like(axis.fraction) for axis in samples[:2]))
    terms = [term, Term(ones._replace(share=None), (1, 1))]
    tables = _tables(scheme, level, terms)
    chunks = _chunks(layout, samples)
    share = None if samples.share is None else samples.share[..., None]

    def of_chunk(item: Array, crops: Array, tables: Any) -> tuple[Array, Array]:
        own, crops = _own(image, item).astype(scheme.compute), crops.astype(scheme.compute)
        # The share is in the weights of rows, which those of rows themselves are not multiplied with.
        ((rows, columns),) = _dense(scheme, tables[:1], image.shape)
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
    of_rows, of_columns = chunks.join(of_rows), chunks.join(of_columns)
    return layout.in_groups(of_rows if share is None else of_rows * share), layout.in_groups(of_columns)


class _Layout(NamedTuple):
    """Whether groups are multiplied together, or in turn, as the images of one group.

    Together, work that XLA partitions over devices stays where it is. In turn, more boxes of one image are multiplied
    at a time.

    Attributes:
        given: ``[G, B, H, W, C]``.
        in_order: whether boxes have no indices into several images.
        together: only if they are in order.
        most: boxes of a chunk.
    """

    given: tuple[Any, ...]
    in_order: bool
    together: bool
    most: int

    @classmethod
    def of(
        cls, shape: tuple[Any, ...], samples: Samples, crop_size: tuple[int, int], terms: int, partitioned: bool
    ) -> "_Layout":
        groups, batch, height, width, channels = shape
        count, (h, w) = samples.rows.index.shape[1], crop_size
        in_order = _is_known(batch) and batch == 1
        if not _is_known(channels):
            return cls(shape, in_order, partitioned and in_order, 1)
        # Of each box, what lies between the products, and the matrices.
        most = max(1, _BYTES_BETWEEN // (4 * terms * (h * width * channels + h * height + w * width)))
        fit = _is_known(groups, count) and groups * count <= most
        together = in_order and (partitioned or fit)
        return cls(shape, in_order, together, max(1, most // groups) if together and _is_known(groups) else most)

    @property
    def shape(self) -> tuple[Any, ...]:
        groups, batch, *rest = self.given
        return self.given if self.together else (1, groups * batch, *rest)

    def images(self, images: Array) -> Array:
        return images.reshape(self.shape)

    def boxes(self, tables: Any) -> Any:
        """Tables ``[G, N, ...]`` as those of the layout's groups."""
        return tables if self.together else jax.tree.map(lambda table: flat(table)[None], tables)

    def in_groups(self, table: Array) -> Array:
        """The reverse of `boxes`."""
        return table.reshape(self.given[0], -1, *table.shape[2:])

    def terms(self, terms: Sequence[Term]) -> list[Term]:
        def of(samples: Samples) -> Samples:
            item = samples.item if self.together else items_of_all(samples.item, self.given[1])
            return self.boxes(samples._replace(item=item))

        return [Term(of(term.samples), term.orders) for term in terms]


def _own(image: Array, item: Array) -> Array:
    """The image of a chunk, in each group: ``[G, H, W, C]``."""
    return lax.dynamic_index_in_dim(image, item, axis=1, keepdims=False)


def _tables(scheme: Scheme, level: int, terms: Sequence[Term]) -> list[tuple[Taps, Taps]]:
    return [Term(term.samples.of_level(level), term.orders).taps(scheme.windows[level]) for term in terms]


def _dense(scheme: Scheme, tables: Sequence[tuple[Taps, Taps]], shape: tuple[Any, ...]) -> list[tuple[Array, Array]]:
    """The matrices of rows ``[..., h, H]`` and of columns ``[..., w, W]``, into which samples of a bin are folded."""
    return [
        (_matrix(rows, shape[2], scheme.samples[0]), _matrix(columns, shape[3], scheme.samples[1]))
        for rows, columns in tables
    ]


def _matrix(taps: Taps, size: int, samples: int) -> Array:
    pixels = jnp.arange(size, dtype=jnp.int32).reshape(*[1] * taps.first.ndim, size)
    inside = taps.inside[..., None]
    parts = [
        jnp.where(((taps.first + k)[..., None] == pixels) & inside, weights[..., None], 0)
        for k, weights in enumerate(taps.weights)
    ]
    matrix = functools.reduce(jnp.add, parts)
    return matrix.reshape(*matrix.shape[:-2], -1, samples, size).sum(axis=-2)


class _Chunks(NamedTuple):
    """Boxes in chunks of one image each.

    Attributes:
        items: ``[chunks]``, the image.
        size: how many boxes a chunk has, ``K``.
        count: of the boxes, ``N``.
        images: of how many images the boxes are in order, equally many of each.
        boxes: ``[chunks * K]``, the box in each place; None if they are in order.
        places: ``[N]``, in which place each box is; None likewise.
        interleaved: whether a chunk takes every so many-th box, so that boxes that are sharded stay where they are.
    """

    items: Array
    size: Any
    count: Any
    images: Any
    interleaved: bool
    boxes: Array | None = None
    places: Array | None = None

    def split(self, tables: Any) -> Any:
        """``[G, N, ...]`` each to ``[chunks, G, K, ...]``; with zeros in places without a box."""

        def of(table: Array) -> Array:
            groups, _, *rest = table.shape
            if self.boxes is None:
                table = table.reshape(groups, self.images, self.count // self.images, *rest)
                missing = self._chunks_of_image() * self.size - table.shape[2]
                if not (isinstance(missing, int) and missing == 0):
                    table = jnp.pad(table, [(0, 0), (0, 0), (0, missing)] + [(0, 0)] * len(rest))
            else:
                table = table.at[:, self.boxes].get(mode="fill", fill_value=0)
            sizes = self.size, self._chunks_of_image()
            if self.interleaved:
                table = table.reshape(groups, self.images, *sizes, *rest)
                return jnp.moveaxis(table, (1, 3), (0, 1)).reshape(-1, groups, self.size, *rest)
            table = table.reshape(groups, self.images, *sizes[::-1], *rest)
            return jnp.moveaxis(table, 0, 2).reshape(-1, groups, self.size, *rest)

        return jax.tree.map(of, tables)

    def join(self, results: Array) -> Array:
        """``[chunks, G, K, ...]`` to ``[G, N, ...]``."""
        _, groups, _, *rest = results.shape
        results = results.reshape(self.images, self._chunks_of_image(), groups, self.size, *rest)
        results = jnp.moveaxis(results, (0, 1), (1, 3)) if self.interleaved else jnp.moveaxis(results, 2, 0)
        results = results.reshape(groups, self.images, -1, *rest)
        if self.places is None:
            return results[:, :, : self.count // self.images].reshape(groups, self.count, *rest)
        return results[:, 0, self.places]

    def _chunks_of_image(self) -> Any:
        return self.items.shape[0] // self.images


def _chunks(layout: _Layout, samples: Samples) -> _Chunks:
    """How boxes are taken in chunks: in order, or sorted by image."""
    _, batch, *_ = layout.shape
    count, size = samples.rows.index.shape[1], layout.most
    if layout.in_order:
        of_image = count // batch
        chunks = -(-of_image // size) if _is_known(of_image) else 1
        items = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), chunks)
        return _Chunks(items, -(-of_image // chunks), count, batch, layout.together)

    # Half of an image's share of the boxes, so that few places stay empty.
    size = min(size, max(8, -(-count // (2 * batch))) if _is_known(count, batch) else 8)
    chunks = (count + batch * (size - 1)) // size
    item = samples.item[0]
    is_of = (item[:, None] == jnp.arange(batch, dtype=jnp.int32)[None]).astype(jnp.int32)
    before = jnp.sum(is_of * (jnp.cumsum(is_of, axis=0) - 1), axis=1)  # boxes of the same image
    chunks_of_images = -(-jnp.sum(is_of, axis=0) // size)
    end = jnp.cumsum(chunks_of_images)
    places = before % size * chunks + (end - chunks_of_images)[item] + before // size
    every = jnp.arange(chunks * size, dtype=jnp.int32)[:, None]
    boxes = jnp.min(jnp.where(places[None] == every, jnp.arange(count, dtype=jnp.int32)[None], count), axis=1)
    items = jnp.sum(jnp.arange(chunks, dtype=jnp.int32)[:, None] >= end[None], axis=1)
    items = jnp.minimum(items, batch - 1).astype(jnp.int32)
    return _Chunks(items, size, count, 1, True, boxes, places)


def _crop_size(scheme: Scheme, samples: Samples) -> tuple[int, int]:
    return samples.rows.index.shape[-1] // scheme.samples[0], samples.columns.index.shape[-1] // scheme.samples[1]


def _is_known(*sizes: Any) -> bool:
    return all(isinstance(size, int) for size in sizes)
