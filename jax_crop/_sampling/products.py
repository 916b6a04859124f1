"""Sampling as products of matrices: what a TPU is made for.

With the weights of a box's rows and of its columns as dense matrices, a crop is ``rows @ image @ columns.T``, however
many samples a bin has. The sums are those of the formula, in another order; products run in the precision of float32.

Boxes go in chunks, so that what is between the two products stays small. The boxes of a chunk are of one image, which
is read in place: boxes with indices are sorted by image first, and each image's are filled up to whole chunks.

A pixel that is not finite would reach all that is multiplied with it, since 0 times NaN is NaN. `values` keeps it where
it has weight; in a derivative by boxes it reaches all boxes of its image.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jax_crop import _kernels
from jax_crop._geometry import Axis
from jax_crop._kernels import Kernel
from jax_crop._light import Light, absolute, is_finite, minimum, where
from jax_crop._sampling.meshes import partitioned_over, zeros
from jax_crop._sampling.tables import Samples, Scheme, Taps, Term, filled, flat, float_of, items_of_all, total

# What lies between two products, of all boxes of a chunk.
_BYTES_BETWEEN = 32 * 2**20

_dot = functools.partial(lax.dot_general, precision=lax.Precision.HIGHEST)
_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def values(scheme: Scheme, images: Sequence[Array], samples: Samples, *, devices: int | None = 1) -> Array:
    """As `gather.values` to the precision of float32. For `devices` see `_Layout.of`."""
    terms = [Term(samples._replace(fill=None))]
    plans = [_plan(scheme, level, image.shape, terms, devices) for level, image in enumerate(images)]
    return filled(_crops(plans, images, guarded=True).astype(scheme.dtype), samples)


def crops(scheme: Scheme, images: Sequence[Array], terms: Sequence[Term], *, devices: int | None = 1) -> Array:
    """As `gather.crops`. For `devices` see `_Layout.of`."""
    plans = [_plan(scheme, level, image.shape, terms, devices) for level, image in enumerate(images)]
    return _crops(plans, images)


def _crops(plans: Sequence["_Plan"], images: Sequence[Array], *, guarded: bool = False) -> Array:
    def of_level(plan: _Plan, image: Array) -> Array:
        image = plan.layout.images(image)

        def of_chunk(product: Callable[..., Array], item: Array, tables: Any) -> Array:
            own = _own(image, item).astype(plan.scheme.compute)
            return total(product(own, rows, columns) for rows, columns in plan.dense(tables))

        return plan.layout.in_groups(plan.chunks.map(_by_product(of_chunk, plan.layout, image, guarded), plan.tables))

    return total(map(of_level, plans, images))


def values_of_kernel(kernel: Kernel, dtype: Any, image: Array, samples: Samples) -> Array:
    """Crops ``[G, N, h, w, C]`` in a dtype by an interpolation kernel."""
    crops = crops_of_kernel(kernel, image, samples._replace(fill=None), float_of(dtype), guarded=True)
    return filled(crops, samples).astype(dtype)


def crops_of_kernel(kernel: Kernel, image: Array, samples: Samples, dtype: Any, *, guarded: bool = False) -> Array:
    """Crops ``[G, N, h, w, C]``, computed in a dtype; with 0 outside. For `guarded` see `_by_product`."""
    size = [axis.index.shape[-1] for axis in samples[:2]]
    layout = _Layout.of(image.shape, samples, size, devices=partitioned_over((image, samples)))
    image, (term,) = layout.images(image), layout.terms([Term(samples)])

    def of_chunk(product: Callable[..., Array], item: Array, axes: tuple[Axis, Axis]) -> Array:
        own = _own(image, item).astype(dtype)
        rows, columns = (_kernels.weights(kernel, *of_axis) for of_axis in zip(axes, own.shape[1:3], strict=True))
        return product(own, rows, columns)

    axes = term.samples.rows, term.samples.columns
    return layout.in_groups(_chunks(layout, term.samples).map(_by_product(of_chunk, layout, image, guarded), axes))


def _by_product(of_chunk: Callable[..., Array], layout: "_Layout", image: Array, guarded: bool) -> Callable[..., Array]:
    """``of_chunk(product, item, tables)`` by `_product`; guarded, by `_product_of_any` where an image needs it."""
    if not (guarded and _has_fractions(image)):
        return jax.checkpoint(functools.partial(of_chunk, _product))  # or a derivative would keep all matrices
    if layout.devices > 1:  # which would have to tell each other
        return functools.partial(of_chunk, _product_of_any)
    are_finite = lax.reduce_and(lax.is_finite(image), (0, 2, 3, 4))
    by_products = [functools.partial(of_chunk, product) for product in (_product, _product_of_any)]

    def by_either(item: Array, tables: Any) -> Any:
        is_finite = lax.dynamic_index_in_dim(are_finite, item, keepdims=False, allow_negative_indices=False)
        return lax.cond(is_finite, *by_products, item, tables)

    return by_either


def _product(images: Array, rows: Array, columns: Array) -> Array:
    """Crops ``[G, N, h, w, C]`` of an image of each group."""
    between = _dot(rows, images, (((3,), (1,)), ((0,), (0,))), preferred_element_type=columns.dtype)
    by_column = _dot(columns, between, (((3,), (3,)), ((0, 1), (0, 1))))
    return lax.transpose(by_column, (0, 1, 3, 2, 4))


def _product_of_any(images: Array, rows: Array, columns: Array) -> Array:
    """The same, in which a pixel that is not finite is NaN or an infinity where it has weight, and there alone.

    Infinities of both signs make NaN, but if one weighs hundreds of times as much as the other.
    """
    # Only signs are asked for: one pass in bfloat16 each.
    image, *rough = Light(images), *(Light(weights).astype(jnp.bfloat16) for weights in (rows, columns))
    infinite = (image == np.inf).astype(jnp.bfloat16) - (image == -np.inf).astype(jnp.bfloat16)
    marks = 1 - is_finite(image).astype(jnp.bfloat16)
    sign = Light(_product(infinite.array, *(weights.array for weights in rough)))
    reached = Light(_product(marks.array, *(absolute(weights).array for weights in rough)))
    not_finite = where(absolute(sign) < reached, np.nan, where(reached > 0, sign * np.inf, 0))
    return (not_finite.astype(rows.dtype) + _product(finite(images), rows, columns)).array


def finite(image: Array) -> Array:
    """The image, with 0 for pixels that are not finite."""
    return where(is_finite(Light(image)), image, 0).array if _has_fractions(image) else image


def _has_fractions(image: Array) -> bool:
    return jnp.issubdtype(image.dtype, jnp.floating)


def images(
    scheme: Scheme,
    shapes: Sequence[tuple[Any, ...]],
    crops: Array,
    terms: Sequence[Term],
    *,
    devices: int | None = 1,
) -> list[Array]:
    """As `gather.images`."""

    def of_level(level: int, shape: tuple[Any, ...]) -> Array:
        shape = crops.shape[0], *shape, crops.shape[-1]
        plan = _plan(scheme, level, shape, terms, devices, few_chunks=True)

        def add(image: Array, chunk: Any) -> tuple[Array, None]:
            item, crops, tables = chunk
            crops = crops.astype(plan.scheme.compute)
            added = total(
                _einsum("gnir,gniwc->grwc", rows, _einsum("gnijc,gnjw->gniwc", crops, columns))
                for rows, columns in plan.dense(tables)
            )
            added += _own(image, item)
            image = lax.dynamic_update_slice_in_dim(image, added[:, None], item, axis=1, allow_negative_indices=False)
            return image, None

        chunks, own_crops = plan.chunks, plan.layout.boxes(crops)
        start = zeros(plan.layout.shape, plan.scheme.compute, own_crops, plan.tables)
        result, _ = lax.scan(add, start, (chunks.items, chunks.split(own_crops), chunks.split(plan.tables)))
        return result.reshape(plan.layout.given)

    return [of_level(level, shape) for level, shape in enumerate(shapes)]


def weights(
    scheme: Scheme, crops: Array, images: Sequence[Array], term: Term, *, devices: int | None = 1
) -> tuple[Array, Array]:
    """As `gather.weights`."""
    parts = [_weights_of_level(scheme, level, crops, image, term, devices) for level, image in enumerate(images)]
    rows, columns = zip(*parts, strict=True)
    return total(rows), total(columns)


def _weights_of_level(
    scheme: Scheme, level: int, crops: Array, image: Array, term: Term, devices: int | None
) -> tuple[Array, Array]:
    samples = term.samples
    # The slopes are the derivative times a fraction of 1.
    slopes = samples.with_fractions(*(jnp.ones_like(axis.fraction) for axis in samples[:2]))._replace(share=None)
    plan = _plan(scheme, level, image.shape, [term, Term(slopes, (1, 1))], devices, few_chunks=True)
    image, crops = plan.layout.images(image), plan.layout.boxes(crops)

    def of_chunk(item: Array, given: tuple[Array, Any]) -> tuple[Array, Array]:
        crops, tables = given
        own, crops = _own(image, item).astype(plan.scheme.compute), crops.astype(plan.scheme.compute)
        # The share is in the weights of rows, which those of rows themselves are not multiplied with.
        ((rows, columns),) = plan.dense(tables[:1])
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

    of_rows, of_columns = map(plan.layout.in_groups, plan.chunks.map(of_chunk, (crops, plan.tables)))
    return of_rows if samples.share is None else of_rows * samples.share[..., None], of_columns


class _Layout(NamedTuple):
    """Whether groups are multiplied together, or in turn, as the images of one group.

    Together, work that XLA partitions over devices stays where it is. In turn, more boxes of one image are multiplied
    at a time.

    Attributes:
        given: ``[G, B, H, W, C]``.
        in_order: whether boxes have no indices into several images.
        together: only if they are in order.
        most: boxes of a chunk.
        devices: over how many the work is partitioned, as far as that is known.
    """

    given: tuple[Any, ...]
    in_order: bool
    together: bool
    most: int
    devices: int

    @classmethod
    def of(cls, shape: tuple[Any, ...], samples: Samples, crop_size: Sequence[int], devices: int | None) -> "_Layout":
        """For images ``[G, B, H, W, C]``.

        ``devices`` is over how many XLA may partition the work, 1 if that is not known; None if it surely does not.
        """
        partitioned, devices = devices is not None, devices or 1
        groups, batch, height, width, channels = shape
        count, (h, w) = samples.rows.index.shape[1], crop_size
        in_order = _is_known(batch) and batch == 1
        if not _is_known(channels):
            return cls(shape, in_order, partitioned and in_order, 1, devices)
        # Of each box, what lies between the products, and the matrices.
        most = max(1, _BYTES_BETWEEN // (4 * (h * width * channels + h * height + w * width)))
        fit = _is_known(groups, count) and groups * count <= most
        together = in_order and (partitioned or fit)
        of_each = most * devices // groups if together and _is_known(groups) else most
        return cls(shape, in_order, together, max(1, of_each), devices)

    @property
    def shape(self) -> tuple[Any, ...]:
        groups, batch, *rest = self.given
        return self.given if self.together else (1, groups * batch, *rest)

    def images(self, images: Array) -> Array:
        """Of any number of channels."""
        return images.reshape(*self.shape[:-1], images.shape[-1])

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
    return lax.dynamic_index_in_dim(image, item, axis=1, keepdims=False, allow_negative_indices=False)


class _Plan(NamedTuple):
    """How the boxes of a level are multiplied.

    Attributes:
        scheme: see `Scheme`.
        layout: see `_Layout`.
        chunks: see `_Chunks`.
        tables: of each term, what samples weigh of rows and of columns, in the layout's groups.
    """

    scheme: Scheme
    layout: _Layout
    chunks: "_Chunks"
    tables: list[tuple[Taps, Taps]]

    def dense(self, tables: Sequence[tuple[Taps, Taps]]) -> list[list[Array]]:
        """Matrices of rows ``[..., h, H]`` and of columns ``[..., w, W]``, into which samples of a bin are folded."""
        size, samples = self.layout.given[2:4], self.scheme.samples
        return [[_matrix(*axis) for axis in zip(table, size, samples, strict=True)] for table in tables]


def _plan(
    scheme: Scheme,
    level: int,
    shape: tuple[Any, ...],
    terms: Sequence[Term],
    devices: int | None,
    few_chunks: bool = False,
) -> _Plan:
    """Of images ``[G, B, H, W, C]``. For `devices` see `_Layout.of`, for `few_chunks` `_chunks`."""
    samples = terms[0].samples
    crop_size = [axis.index.shape[-1] // count for axis, count in zip(samples[:2], scheme.samples, strict=True)]
    layout = _Layout.of(shape, samples, crop_size, devices)
    terms = layout.terms(terms)
    tables = [Term(term.samples.of_level(level), term.orders).taps(scheme.windows[level]) for term in terms]
    return _Plan(scheme, layout, _chunks(layout, terms[0].samples, few_chunks), tables)


def _matrix(taps: Taps, size: int, samples: int) -> Array:
    first = where(taps.inside, taps.first, -len(taps.weights))[..., None]
    pixels = Light(_range(size, axes=taps.first.ndim))
    matrix: Any = 0
    for k, weights in enumerate(taps.weights):
        matrix = where(first == (pixels - k).array, weights[..., None], matrix)
    matrix = matrix.array.reshape(*taps.first.shape[:-1], -1, samples, size)
    return lax.reduce_sum(matrix, (matrix.ndim - 2,))


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

    def map(self, of_chunk: Callable[[Array, Any], Any], tables: Any) -> Any:
        """``[G, N, ...]`` each, what a chunk's results are of its image and its part of the tables ``[G, N, ...]``."""
        results = lax.map(lambda chunk: of_chunk(*chunk), (self.items, self.split(tables)))
        return jax.tree.map(self._joined, results)

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
                table = _taken(table, self.boxes)
            sizes = self.size, self._chunks_of_image()
            if self.interleaved:
                table = table.reshape(groups, self.images, *sizes, *rest)
                table = lax.transpose(table, (1, 3, 0, 2, *range(4, table.ndim)))
            else:
                table = table.reshape(groups, self.images, *sizes[::-1], *rest)
                table = lax.transpose(table, (1, 2, 0, *range(3, table.ndim)))
            return table.reshape(-1, groups, self.size, *rest)

        return jax.tree.map(of, tables)

    def _joined(self, results: Array) -> Array:
        """``[chunks, G, K, ...]`` to ``[G, N, ...]``."""
        _, groups, _, *rest = results.shape
        results = results.reshape(self.images, self._chunks_of_image(), groups, self.size, *rest)
        order = (2, 0, 3, 1) if self.interleaved else (2, 0, 1, 3)
        results = lax.transpose(results, (*order, *range(4, results.ndim)))
        results = results.reshape(groups, self.images, -1, *rest)
        if self.places is None:
            return results[:, :, : self.count // self.images].reshape(groups, self.count, *rest)
        return _taken(results[:, 0], self.places)

    def _chunks_of_image(self) -> Any:
        return self.items.shape[0] // self.images


def _chunks(layout: _Layout, samples: Samples, few: bool = False) -> _Chunks:
    """How boxes are taken in chunks: in order, or sorted by image.

    Equal chunks, if boxes in order divide into such, need no copy that is filled up; and where devices share the boxes,
    each has as many of every chunk's, which stay where they are. But there are more of them: an image's gradient adds
    to all of the image with each, and that of boxes takes twice as long on a v6e. On one device both ask for few.
    """
    _, batch, *_ = layout.shape
    count, size = samples.rows.index.shape[1], layout.most
    if layout.in_order:
        of_image = count // batch
        chunks = -(-of_image // size) if _is_known(of_image) else 1
        if _is_known(of_image) and (layout.devices > 1 or not few):
            chunks = max(
                range(chunks, 2 * chunks),
                key=lambda n: 0 if of_image % n else math.gcd(of_image // n, layout.devices),
            )
        items = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), chunks)
        return _Chunks(items, -(-of_image // chunks), count, batch, layout.together)

    # Half of an image's share of the boxes, so that few places stay empty.
    size = min(size, -(-count // (2 * batch)) if _is_known(count, batch) else 8)
    chunks = (count + batch * (size - 1)) // size
    # How many boxes of each image there are, up to each box, and chunks, up to each image.
    is_of = (Light(samples.item[0, :, None]) == _range(batch, axes=1)).astype(jnp.int32)
    until = lax.cumsum(is_of.array)
    boxes_of = Light(lax.reduce_sum(is_of.array, (0,)))
    chunks_of = lax.div((boxes_of + (size - 1)).array, jnp.int32(size))
    end = Light(lax.cumsum(chunks_of))
    first = ((end - chunks_of) * size)[None]
    places = lax.reduce_sum((is_of * (first + until - 1)).array, (1,))
    box = where(Light(places[None]) == _range(chunks * size)[:, None], _range(count, axes=1), count)
    ended = (Light(_range(chunks)[:, None]) >= end[None]).astype(jnp.int32)
    item = minimum(Light(lax.reduce_sum(ended.array, (1,))), batch - 1)
    return _Chunks(item.array, size, count, 1, False, lax.reduce_min(box.array, (1,)), places)


def _range(size: Any, axes: int = 0) -> Array:
    """The numbers below a size, after some axes of one."""
    return lax.broadcasted_iota(jnp.int32, (*[1] * axes, size), axes)


def _taken(table: Array, places: Array) -> Array:
    """``[G, n, ...]``, what stands in places; 0 beyond the last."""
    groups, _, *rest = table.shape
    numbers = lax.GatherDimensionNumbers((0, *range(2, table.ndim)), collapsed_slice_dims=(1,), start_index_map=(1,))
    return lax.gather(table, places[:, None], numbers, (groups, 1, *rest), mode="fill", fill_value=0)


def _is_known(*sizes: Any) -> bool:
    return all(isinstance(size, int) for size in sizes)
