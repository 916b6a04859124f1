"""The three call forms, each brought to the one that is computed; and where that is computed on an Explicit mesh."""

from collections.abc import Callable
from typing import Any

import jax
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
) -> Array:
    """Applies ``crop``, which takes the canonical form, to any of the call forms.

    Args:
        crop: of images ``[G, B, H, W, C]``, boxes ``[G, N, 4]``, indices ``[G, N]`` or None (all of the first image) and
            the fill to crops ``[G, N, h, w, C]``.
        images: ``[B, H, W, C]`` each or ``[H, W, C]`` each.
        boxes: ``[N, 4]`` or ``[B, N, 4]``.
        box_indices: ``[N]`` or None.
        fill: ``[C]``, a scalar or None.

    Returns:
        The crops, ``[N, h, w, C]`` or ``[B, N, h, w, C]``.
    """

    def in_groups(images: tuple[Values, ...], boxes: Values, box_indices: Values | None, fill: Values | None) -> Array:
        if boxes.ndim == 3:  # each image is a group
            return crop(tuple(image[:, None] for image in images), boxes, None, fill)
        if box_indices is None:
            return crop(tuple(image[None, None] for image in images), boxes[None], None, fill)[0]
        return crop(tuple(image[None] for image in images), boxes[None], box_indices[None], fill)[0]

    return _on_each_device(in_groups, (images, boxes, box_indices, fill))


def _on_each_device(crop: Callable[..., Array], arguments: tuple[Any, ...]) -> Array:
    """On an Explicit mesh, each device cuts the boxes that it holds, without communication.

    Crops are sharded as boxes are, along the batch and along their number, and as the first image is along channels.
    All else is replicated. On an Auto mesh this is the compiler's work.
    """
    mesh = jax.sharding.get_abstract_mesh()
    explicit = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit}
    if not explicit:
        return crop(*arguments)
    images, boxes, box_indices, fill = arguments
    *batch, count, _ = _spec(boxes)
    *image_batch, _, _, channels = _spec(images[0])
    if batch:  # of the boxes, so of the images
        batch = image_batch = [batch[0] or image_batch[0]]
    else:
        image_batch = [None for _ in image_batch]
    in_specs = (
        tuple(P(*image_batch, None, None, channels) for _ in images),
        P(*batch, count, None),
        None if box_indices is None else P(count),
        None if fill is None else P(*[channels] * np.ndim(fill)),
    )
    arguments = jax.tree.map(jax.sharding.reshard, arguments, in_specs)
    out_specs = P(*batch, count, None, None, channels)
    return jax.shard_map(crop, in_specs=in_specs, out_specs=out_specs, axis_names=explicit)(*arguments)


def _spec(array: Values) -> tuple[Any, ...]:
    """The mesh axes that each axis of an array is sharded along, None where it is not."""
    return tuple(jax.typeof(array).sharding.spec) if isinstance(array, jax.Array) else (None,) * array.ndim
