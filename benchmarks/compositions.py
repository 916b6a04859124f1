"""What a form costs over one call with box_indices on the same work, and a derivative over the forward pass."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.cases import Case, make
from benchmarks.forms import (
    BATCH,
    BOXES,
    DERIVATIVES,
    FORWARD,
    IMAGE,
    OF_GRADIENT,
    ONE_IMAGE,
    SQUARES,
    Crop,
    derivative,
    of_gradient,
    plain_crop,
)
from benchmarks.measure import Call, Effort, Row, compiled, race
from benchmarks.peers import ours

PLAIN = ", jnp gather"
ONE = ", one image"

PYRAMID = Case(((2, 64, 64, 64), (2, 32, 32, 64), (2, 16, 16, 64)), 128, (7, 7), strides=(4, 8, 16))
CASES = (
    Case(((4, 64, 64, 256),), 256, (7, 7)),
    Case(((8, 224, 224, 3),), 64, (64, 64)),
    Case(((4, 64, 64, 256),), 256, (7, 7), strides=(16,)),
    PYRAMID,
)
_DERIVED = (*CASES[:3], CASES[1]._replace(method="half-pixel"), CASES[1]._replace(method="antialiased"))


def measure(effort: Effort, cases: tuple[Case, ...] = CASES, derived: tuple[Case, ...] = _DERIVED) -> list[Row]:
    rows = []
    for case in cases:
        for operation in (FORWARD, IMAGE, BOXES):
            for name, forms in ((case.name, BATCH), (case.name + ONE, ONE_IMAGE)):
                rows += race(name, operation, _calls(case, operation, forms is ONE_IMAGE), effort, tolerance=5e-2)
    for case in derived:
        names = (*DERIVATIVES, SQUARES)
        calls = {name: _call(case, name, functools.partial(ours, case), False) for name in names}
        rows += race(case.name, "derivatives", calls, effort)
    return rows


def _calls(case: Case, operation: str, one_image: bool) -> dict[str, Call]:
    """Of every form, and of the ten lines of jnp in the same forms; those have no pyramids worth the name."""
    calls = {}
    for suffix, crop in {"": functools.partial(ours, case), PLAIN: plain_crop(case)}.items():
        if suffix and case.kind == "pyramid":
            continue
        for form, wrap in (ONE_IMAGE if one_image else BATCH).items():
            calls[form + suffix] = _call(case, operation, wrap(_listed(crop)), one_image)
        if operation != FORWARD and not one_image:
            calls[OF_GRADIENT + suffix] = _call(case, operation, _listed(crop), False, within=True)
    return calls


def _listed(crop: Crop) -> Crop:
    return lambda maps, boxes, indices: crop(list(maps), boxes, indices)


def _call(case: Case, operation: str, function: Crop, one_image: bool, within: bool = False) -> Call:
    """Cotangents have the leading axes of the form's crops before the clock runs."""
    data = jax.tree.map(jnp.asarray, make(case))
    maps, boxes, indices = list(data.maps), data.boxes, data.box_indices
    if one_image:
        maps, indices = [m[:1] for m in maps], jnp.zeros_like(indices)
    if within:
        return compiled(of_gradient(function, operation), maps, boxes, indices, data.crops_bar)
    crops_bar = data.crops_bar.reshape(jax.eval_shape(function, maps, boxes, indices).shape)
    return compiled(derivative(function, operation), maps, boxes, indices, crops_bar)
