"""What all programs of sampling are told: the canonical form, and what a sample weighs.

The canonical form has ``G`` groups of ``B`` images and ``N`` boxes each: images ``[G, B, H, W, C]``, tables of boxes
``[G, N, ...]``, crops ``[G, N, h, w, C]``. It is closed under `jax.vmap`: where images are mapped there are more
groups, where boxes alone are mapped there are more boxes of the same images. So no composition multiplies an image.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from jax_crop._geometry import Axis
from jax_crop._light import Light, where


def float_of(*dtypes: Any) -> Any:
    """The dtype to compute in: float64 where one of the dtypes is, else float32."""
    return jnp.dtype(jnp.float64 if jnp.float64 in dtypes else jnp.float32)


class Scheme(NamedTuple):
    """What is known of crops before their data is.

    Attributes:
        windows: of each map, how many (rows, columns) of pixels a sample weighs: 2 for linear interpolation, else 1.
        samples: how many samples an output pixel sums along (rows, columns): 1 but for pooling.
        dtype: of the crops.
    """

    windows: tuple[tuple[int, int], ...]
    samples: tuple[int, int]
    dtype: Any

    @property
    def window(self) -> tuple[int, int]:
        """The largest of any map."""
        rows, columns = zip(*self.windows, strict=True)
        return max(rows), max(columns)

    @property
    def compute(self) -> Any:
        """The dtype of interpolation."""
        return float_of(self.dtype)


class Samples(NamedTuple):
    """Where samples are taken.

    Attributes:
        rows: ``[G, N, h * samples]``, in the image that the box belongs to.
        columns: ``[G, N, w * samples]``.
        item: ``[G, N]``, which image of its group that is.
        level: ``[G, N]``, which of several maps that is in; None if there is one.
        share: ``[G, N]``, what each of several samples of an output pixel counts; None if it has one.
        fill: ``[G, N, C]``, the value of a sample outside; None for 0, as where several are averaged.
    """

    rows: Axis
    columns: Axis
    item: Array
    level: Array | None
    share: Array | None
    fill: Array | None = None

    def with_fractions(self, rows: Any, columns: Any) -> "Samples":
        """The samples at other fractions, or moved so far."""
        return self._replace(rows=self.rows._replace(fraction=rows), columns=self.columns._replace(fraction=columns))

    def of_level(self, level: int) -> "Samples":
        """The samples of one of several maps; all others are outside."""
        if self.level is None:
            return self
        inside = self.rows.inside & (self.level == level)[..., None]
        return self._replace(rows=self.rows._replace(inside=inside))


def inside(rows: Array, columns: Array) -> Array:
    """Whether samples are inside along rows ``[..., h]`` and along columns ``[..., w]``: ``[..., h, w, 1]``."""
    return (Light(rows[..., :, None, None]) & columns[..., None, :, None]).array


def filled(crops: Array, samples: Samples) -> Array:
    """Crops ``[..., N, h, w, C]`` with the fill, if there is one, where samples are outside."""
    if samples.fill is None:
        return crops
    counts = inside(samples.rows.inside, samples.columns.inside)
    return where(counts, crops, samples.fill.astype(crops.dtype)[..., None, None, :]).array


def flat(table: Array) -> Array:
    """All groups' boxes, ``[G, N, ...]`` to ``[G * N, ...]``."""
    return table.reshape(-1, *table.shape[2:])


def total(parts: Iterable[Array]) -> Array:
    """Their sum. Python's own would begin with an addition to 0."""
    return functools.reduce(lax.add, parts)


def items_of_all(item: Array, batch: Any) -> Array:
    """Which of all groups' images each box is of, ``[G, N]``: each group has a batch of them."""
    first = Light(lax.broadcasted_iota(jnp.int32, (item.shape[0], 1), 0)) * batch
    return (first + item).array


def in_items(rows: Axis, box_indices: Array | None, batch: Any) -> tuple[Array, Axis]:
    """Which image of its group each box is of, ``[G, N]``, and its rows: outside of an image that is not there."""
    if box_indices is None:
        return jnp.zeros(rows.index.shape[:2], jnp.int32), rows
    item = Light(box_indices)
    exists = (item >= 0) & (item < batch)
    inside = Light(rows.inside) & exists[..., None].array
    return where(exists, item, 0).array, rows._replace(inside=inside.array)


class Taps(NamedTuple):
    """The pixels that samples weigh along one axis.

    Attributes:
        first: ``[..., n]``, the index of the first of them.
        weights: ``[..., n]`` each, of that and the next.
        inside: ``[..., n]``, whether a sample has influence.
    """

    first: Array
    weights: list[Array]
    inside: Array


class Term(NamedTuple):
    """Samples that weigh pixels by linear interpolation, or by its derivative: crops are sums of such terms.

    Attributes:
        samples: those of the derivative along an axis have how far each sample moves as its fraction.
        orders: of the derivative along rows and columns, 0 or 1.
    """

    samples: Samples
    orders: tuple[int, int] = (0, 0)

    def taps(self, window: tuple[int, int], share: bool = True) -> tuple[Taps, Taps]:
        """The pixels along rows and columns; with a sample's share in the weights of its row."""
        rows, columns = (
            taps(axis, count, order) for axis, count, order in zip(self.samples[:2], window, self.orders, strict=True)
        )
        if share and self.samples.share is not None:
            rows = rows._replace(weights=[weight * self.samples.share[..., None] for weight in rows.weights])
        return rows, columns


def windowed(axis: Axis, order: int = 0) -> Axis:
    """The same samples between two pixels of the image each: one on the last is at the fraction 1 of the last two.

    Of the derivative, order 1, fractions are how far samples move, and stay.
    """
    if axis.on_last is None:
        return axis
    on_last, fraction = Light(axis.on_last), Light(axis.fraction)
    index = Light(axis.index) - on_last.astype(jnp.int32)
    fraction = fraction if order else fraction + on_last.astype(fraction.dtype)
    return Axis(index.array, fraction.array, axis.inside)


def taps(axis: Axis, count: int, order: int) -> Taps:
    """Of ``count`` pixels, for linear interpolation or its derivative."""
    index, f, inside, *_ = windowed(axis, order)
    if count == 1:
        return Taps(index, [lax.full_like(f, 1 - order)], inside)
    first = lax.neg(f) if order else (1 - Light(f)).array
    return Taps(index, [first, f], inside)


def each_group(program: Callable[..., Any]) -> Callable[..., Any]:
    """A program of one group for all of them: at once, and without their axis if there is but one."""

    def of_all(*arrays: Any) -> Any:
        groups = jax.tree.leaves(arrays)[0].shape[0]
        if isinstance(groups, int) and groups == 1:
            results = program(*jax.tree.map(lambda x: lax.squeeze(x, (0,)), arrays))
            return jax.tree.map(lambda x: lax.expand_dims(x, (0,)), results)
        return jax.vmap(program)(*arrays)

    return of_all


def joined(
    program: Callable[[Sequence[Array], Sequence[Array]], Sequence[Array]],
    size: int,
    of_groups: tuple[Sequence[Array], Sequence[int | None]],
    of_boxes: tuple[Sequence[Array], Sequence[int | None]],
    gives_groups: bool,
) -> tuple[Sequence[Array], int]:
    """A program of the canonical form under `jax.vmap`: the mapped axis joins the groups, or else the boxes.

    Args:
        program: of arrays ``[G, ...]`` and arrays ``[G, N, ...]`` to arrays of one kind.
        size: of the mapped axis.
        of_groups: the arrays ``[G, ...]``, and which axis of each is mapped, if any.
        of_boxes: likewise.
        gives_groups: whether the results are ``[G, ...]``, not ``[G, N, ...]``.

    Returns:
        The results, and which of their axes is the mapped one.
    """
    if size == 0:  # none of the results for one

        def one(array: Array, axis: int | None) -> Array:
            pads = [(0, int(k == axis), 0) for k in range(array.ndim)]
            return lax.pad(array, jnp.zeros((), array.dtype), pads)

        of_groups, of_boxes = (([*map(one, *of)], of[1]) for of in (of_groups, of_boxes))
        results, at = joined(program, 1, of_groups, of_boxes, gives_groups)
        return [lax.slice_in_dim(x, 0, 0, axis=at) for x in results], at

    more_groups = gives_groups or any(axis is not None for axis in of_groups[1])
    at = 0 if more_groups else 1

    def join(array: Array, axis: int | None) -> Array:
        if axis is None:
            array = jnp.broadcast_to(jnp.expand_dims(array, at), (*array.shape[:at], size, *array.shape[at:]))
        else:
            array = jnp.moveaxis(array, axis, at)
        return array.reshape(*array.shape[:at], size * array.shape[at + 1], *array.shape[at + 2 :])

    groups = map(join, *of_groups) if more_groups else of_groups[0]
    results = program(list(groups), list(map(join, *of_boxes)))
    return [x.reshape(*x.shape[:at], size, x.shape[at] // size, *x.shape[at + 1 :]) for x in results], at


def closed_under_vmap(program: Callable[..., Array]) -> Callable[..., Array]:
    """A program of ``(images, samples)`` that takes a mapped axis in the canonical form, as derivatives do."""
    mapped = custom_vmap(program)

    @mapped.def_vmap
    def _(size: int, is_mapped: Any, images: Any, samples: Any) -> tuple[Array, bool]:
        images_mapped, samples_mapped = is_mapped

        def axes(mapped: Any) -> list[int | None]:
            return [0 if is_mapped else None for is_mapped in jax.tree.leaves(mapped)]

        trees = jax.tree.structure(images), jax.tree.structure(samples)

        def of_lists(*leaves: Sequence[Array]) -> list[Array]:
            return [closed_under_vmap(program)(*map(jax.tree.unflatten, trees, leaves))]

        (crops,), axis = joined(
            of_lists,
            size,
            (jax.tree.leaves(images), axes(images_mapped)),
            (jax.tree.leaves(samples), axes(samples_mapped)),
            gives_groups=False,
        )
        return jnp.moveaxis(crops, axis, 0), True

    return mapped
