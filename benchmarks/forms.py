"""The same work asked for in many forms, under `jax.vmap` above all, and its derivatives.

A crop function takes (maps, boxes, box_indices or None); a form makes of it a function of (maps, boxes ``[B * N, 4]``,
box_indices) whose crops follow each other in the same order, whatever their leading axes are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import Case
from benchmarks.peers import plain

Crop = Callable[[Any, Any, Any], jax.Array]

BASE = "box_indices"
OF_GRADIENT = "vmap of the gradient"
_SETS = 2


def per_image(maps: Any, array: Any) -> Any:
    return array.reshape(len(maps[0]), -1, *array.shape[1:])


def _nested(crop: Crop) -> Crop:
    def of_image(maps: Any, boxes: Any) -> jax.Array:
        return jax.vmap(lambda box: crop(maps, box[None], None)[0])(boxes)

    return lambda maps, boxes, _: jax.vmap(of_image)(maps, per_image(maps, boxes))


def _sets(crop: Crop) -> Crop:
    def several(maps: Any, boxes: Any, indices: Any) -> jax.Array:
        boxes, indices = (x.reshape(_SETS, -1, *x.shape[1:]) for x in (boxes, indices))
        return jax.vmap(lambda boxes, indices: crop(maps, boxes, indices))(boxes, indices)

    return several


# Of a batch; the first is what the others are compared with.
BATCH: dict[str, Callable[[Crop], Crop]] = {
    BASE: lambda crop: crop,
    "[B, N, 4]": lambda crop: lambda maps, boxes, _: crop(maps, per_image(maps, boxes), None),
    "vmap over images with their boxes": lambda crop: (
        lambda maps, boxes, _: jax.vmap(lambda maps, boxes: crop(maps, boxes, None))(maps, per_image(maps, boxes))
    ),
    "vmap over images, then over boxes": _nested,
    "vmap over boxes": lambda crop: (
        lambda maps, boxes, indices: jax.vmap(lambda box, i: crop(maps, box[None], i[None])[0])(boxes, indices)
    ),
    "vmap over sets of boxes": _sets,
}

# Of the same boxes in one image.
ONE_IMAGE: dict[str, Callable[[Crop], Crop]] = {
    BASE: lambda crop: crop,
    "one image": lambda crop: lambda maps, boxes, _: crop([m[0] for m in maps], boxes, None),
    "vmap over boxes of one image": lambda crop: (
        lambda maps, boxes, _: jax.vmap(lambda box: crop([m[0] for m in maps], box[None], None)[0])(boxes)
    ),
}


def plain_crop(case: Case) -> Crop:
    """The ten lines of jnp in every form."""

    def crop(maps: Any, boxes: Any, indices: Any) -> jax.Array:
        if indices is None and boxes.ndim == 3:
            indices, boxes = jnp.repeat(jnp.arange(len(boxes)), boxes.shape[1]), boxes.reshape(-1, 4)
        elif indices is None:
            maps, indices = [m[None] for m in maps], jnp.zeros(len(boxes), jnp.int32)
        return plain(case, maps, boxes, indices)

    return crop


FORWARD, IMAGE, BOXES = "forward", "image gradient", "box gradient"
JVP_IMAGE, JVP_BOXES, HVP, SQUARES = "jvp in image", "jvp in boxes", "Hessian-vector product", "gradient of squares"
DERIVATIVES = (FORWARD, IMAGE, BOXES, JVP_IMAGE, JVP_BOXES, HVP)


def derivative(function: Crop, operation: str) -> Callable[..., Any]:
    """Of (maps, boxes, indices, cotangent of the crops); tangents are the maps and boxes themselves."""

    def call(maps: Any, boxes: Any, indices: Any, crops_bar: Any) -> Any:
        def of_maps(maps: Any) -> jax.Array:
            return function(maps, boxes, indices)

        def of_boxes(boxes: Any) -> jax.Array:
            return function(maps, boxes, indices)

        def squares(boxes: Any) -> jax.Array:
            return (of_boxes(boxes).astype(jnp.float32) ** 2).sum()

        programs = {
            FORWARD: lambda: of_maps(maps),
            IMAGE: lambda: jax.vjp(of_maps, maps)[1](crops_bar),
            BOXES: lambda: jax.vjp(of_boxes, boxes)[1](crops_bar),
            JVP_IMAGE: lambda: jax.jvp(of_maps, (maps,), (maps,)),
            JVP_BOXES: lambda: jax.jvp(of_boxes, (boxes,), (boxes,)),
            SQUARES: lambda: jax.grad(squares)(boxes),
            HVP: lambda: jax.jvp(jax.grad(squares), (boxes,), (boxes,)),
        }
        return programs[operation]()

    return call


def of_gradient(crop: Crop, operation: str) -> Callable[..., Any]:
    """A `vmap` over images of the gradient of one image with its boxes."""

    def call(maps: Any, boxes: Any, _: Any, crops_bar: Any) -> Any:
        one = derivative(crop, operation)
        arguments = maps, per_image(maps, boxes), per_image(maps, crops_bar)
        return jax.vmap(lambda maps, boxes, crops_bar: one(maps, boxes, None, crops_bar))(*arguments)

    return call
