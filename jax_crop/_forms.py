"""The three call forms, each brought to the one that is computed; and where that is computed on an Explicit mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jax_crop._arguments import Values


def in_form(
    crop: Callable[..., Array],
    images: tuple[Values, ...],
    boxes: Values,
    box_indices: Values | None,
    fill: Values | None,
    **options: Any,
) -> Array:
    """Applies ``crop``, which takes the canonical form, to any of the call forms.

    Args:
        crop: of images ``[G, B, H, W, C]``, boxes ``[G, N, 4]``, indices ``[G, N]`` or None (of the first image), the
            fill and the options to crops ``[G, N, h, w, C]``.
        images: ``[B, H, W, C]`` each or ``[H, W, C]`` each.
        boxes: ``[N, 4]`` or ``[B, N, 4]``.
        box_indices: ``[N]`` or None.
        fill: ``[C]``, a scalar or None.
        **options: static.

    Returns:
        The crops, ``[N, h, w, C]`` or ``[B, N, h, w, C]``.
    """
    return _in_form((images, boxes, box_indices, fill), crop=crop, options=tuple(options.items()))


@functools.partial(jax.jit, static_argnames=("crop", "options"))
def _in_form(arguments: tuple[Any, ...], *, crop: Callable[..., Array], options: tuple[tuple[str, Any], ...]) -> Array:
    def in_groups(images: tuple[Values, ...], boxes: Values, box_indices: Values | None, fill: Values | None) -> Array:
        if boxes.ndim == 3:  # each image is a group
            return crop(tuple(image[:, None] for image in images), boxes, None, fill, **dict(options))
        if box_indices is None:  # one image is a batch of one
            images = tuple(image[None] for image in images)
        else:
            box_indices = box_indices[None]
        return crop(tuple(image[None] for image in images), boxes[None], box_indices, fill, **dict(options))[0]

    # Under `jax.disable_jit` NumPy's arrays would stay such, and warn of what overflows.
    return _on_each_device(in_groups, jax.tree.map(jnp.asarray, arguments))


def _on_each_device(crop: Callable[..., Array], arguments: tuple[Any, ...]) -> Array:
    """On an Explicit mesh, each device cuts the boxes that it holds, without communication.

    Crops are sharded as boxes are, along the batch and along their number, and as the first image is along channels,
    where boxes are not sharded along the same axis of the mesh. All else is replicated. On an Auto mesh this is the
    compiler's work.
    """
    mesh = jax.sharding.get_abstract_mesh()
    explicit = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit}
    if not explicit:
        return crop(*arguments)
    images, boxes, box_indices, fill = arguments
    *batch, count, _ = _spec(boxes)
    *image_batch, _, _, channels = _spec(images[0])
    if batch:  # of the boxes, so of the images, which are replicated to where their boxes are
        batch = image_batch = [batch[0] or _unless_in(image_batch[0], count)]
    else:
        image_batch = [None for _ in image_batch]
    channels = _unless_in(channels, *batch, count)
    in_specs = (
        tuple(P(*image_batch, None, None, channels) for _ in images),
        P(*batch, count, None),
        None if box_indices is None else P(count),
        None if fill is None else P(*[channels] * np.ndim(fill)),
    )
    arguments = jax.tree.map(jax.sharding.reshard, arguments, in_specs)
    out_specs = P(*batch, count, None, None, channels)
    # Under `jax.vmap` an axis of the mesh may be taken, of which `shard_map` knows by itself.
    names: dict[str, Any] = {} if explicit == set(mesh.axis_names) else {"axis_names": explicit}
    return jax.shard_map(crop, in_specs=in_specs, out_specs=out_specs, **names)(*arguments)


def _unless_in(entry: Any, *others: Any) -> Any:
    """An entry of a `PartitionSpec`, or None if others have one of its axes of the mesh."""
    return None if _names(entry) & _names(*others) else entry


def _names(*entries: Any) -> set[str]:
    """The axes of the mesh in entries of a `PartitionSpec`."""
    return {name for entry in entries if entry is not None for name in ((entry,) if isinstance(entry, str) else entry)}


def _spec(array: Values) -> tuple[Any, ...]:
    """The mesh axes that each axis of an array is sharded along, None where it is not."""
    return tuple(jax.typeof(array).sharding.spec) if isinstance(array, jax.Array) else (None,) * array.ndim
