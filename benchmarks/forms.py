"""The same work asked for in many forms, under `jax.vmap` above all, and its derivatives.

A crop function takes (maps, boxes, box_indices or None). A form makes of it a function of (maps, boxes ``[B * N, 4]``,
box_indices) whose crops follow each other in the same order, whatever their leading axes are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import Case
from benchmarks.peers import plain

Crop = Callable[[Any, Any, Any], jax.Array]
Form = Callable[[Crop], Crop]

_SETS = 2


def _grouped(array: Any, groups: int) -> Any:
    return array.reshape(groups, -1, *array.shape[1:])


def _each_image(crop: Crop) -> Crop:
    return lambda m, boxes, _: jax.vmap(lambda m, boxes: crop(m, boxes, None))(m, _grouped(boxes, len(m[0])))


def _each_box(crop: Crop) -> Crop:
    return lambda m, boxes, indices: jax.vmap(lambda box, i: crop(m, box[None], i[None])[0])(boxes, indices)


def _each_box_of_one(crop: Crop) -> Crop:
    return lambda m, boxes, _: jax.vmap(lambda box: crop(m, box[None], None)[0])(boxes)


def _each_set(crop: Crop) -> Crop:
    return lambda m, *lists: jax.vmap(lambda *lists: crop(m, *lists))(*(_grouped(x, _SETS) for x in lists))


def _first_image(crop: Crop) -> Crop:
    return lambda m, boxes, indices: crop([each[0] for each in m], boxes, None)


# Of a batch, and of the same boxes in one image; the first is what the others are compared with.
BASE, OF_GRADIENT = "box_indices", "vmap of the gradient"
BATCH: dict[str, Form] = {
    BASE: lambda crop: crop,
    "[B, N, 4]": lambda crop: lambda m, boxes, _: crop(m, _grouped(boxes, len(m[0])), None),
    "vmap over images with their boxes": _each_image,
    "vmap over images, then over boxes": lambda crop: _each_image(_each_box_of_one(crop)),
    "vmap over boxes": _each_box,
    "vmap over sets of boxes": _each_set,
}
ONE_IMAGE: dict[str, Form] = {
    BASE: lambda crop: crop,
    "one image": _first_image,
    "vmap over boxes of one image": lambda crop: _first_image(_each_box_of_one(crop)),
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


def _squares(crop: Crop, maps: Any, indices: Any) -> Callable[[Any], jax.Array]:
    return lambda boxes: (crop(maps, boxes, indices).astype(jnp.float32) ** 2).sum()


# Of (crop function, maps, boxes, indices, cotangent of the crops); tangents are the maps and boxes themselves.
FORWARD, IMAGE, BOXES = "forward", "image gradient", "box gradient"
JVP_IMAGE, JVP_BOXES, HVP, SQUARES = "jvp in image", "jvp in boxes", "Hessian-vector product", "gradient of squares"
_DERIVATIVES: dict[str, Callable[..., Any]] = {
    FORWARD: lambda f, m, b, i, _: f(m, b, i),
    IMAGE: lambda f, m, b, i, bar: jax.vjp(lambda m: f(m, b, i), m)[1](bar),
    BOXES: lambda f, m, b, i, bar: jax.vjp(lambda b: f(m, b, i), b)[1](bar),
    JVP_IMAGE: lambda f, m, b, i, _: jax.jvp(lambda m: f(m, b, i), (m,), (m,)),
    JVP_BOXES: lambda f, m, b, i, _: jax.jvp(lambda b: f(m, b, i), (b,), (b,)),
    HVP: lambda f, m, b, i, _: jax.jvp(jax.grad(_squares(f, m, i)), (b,), (b,)),
    SQUARES: lambda f, m, b, i, _: jax.grad(_squares(f, m, i))(b),
}
DERIVATIVES = (FORWARD, IMAGE, BOXES, JVP_IMAGE, JVP_BOXES, HVP)


def derivative(crop: Crop, operation: str) -> Callable[..., Any]:
    """Of (maps, boxes, indices, cotangent of the crops)."""
    return lambda *arguments: _DERIVATIVES[operation](crop, *arguments)


def of_gradient(crop: Crop, operation: str) -> Callable[..., Any]:
    """A `vmap` over images of the gradient of one image with its boxes."""

    def call(maps: Any, boxes: Any, _: Any, crops_bar: Any) -> Any:
        one = derivative(crop, operation)
        boxes, crops_bar = (_grouped(x, len(maps[0])) for x in (boxes, crops_bar))
        return jax.vmap(lambda m, boxes, bar: one(m, boxes, None, bar))(maps, boxes, crops_bar)

    return call
