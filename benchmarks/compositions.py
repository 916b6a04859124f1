"""What a form costs over one call with box_indices on the same work, and a derivative over the forward pass."""

import functools

import jax
import jax.numpy as jnp

from benchmarks import forms
from benchmarks.cases import Case, Data, make
from benchmarks.forms import BATCH, BOXES, FORWARD, IMAGE, OF_GRADIENT, ONE_IMAGE, Crop
from benchmarks.measure import Call, Effort, Row, compiled, race
from benchmarks.peers import ours

PLAIN = ", jnp gather"
DERIVATIVES = "derivatives"

CASES = (
    Case(((4, 64, 64, 256),), 256, (7, 7)),
    Case(((8, 224, 224, 3),), 64, (64, 64)),
    Case(((4, 64, 64, 256),), 256, (7, 7), strides=(16,)),
    Case(((2, 64, 64, 64), (2, 32, 32, 64), (2, 16, 16, 64)), 128, (7, 7), strides=(4, 8, 16)),
)
_DERIVED = (*CASES[:3], *(CASES[1]._replace(method=method) for method in ("half-pixel", "antialiased")))


def measure(effort: Effort) -> list[Row]:
    in_forms = [of_forms(case, operation, effort) for case in CASES for operation in (FORWARD, IMAGE, BOXES)]
    return [row for rows in (*in_forms, *(of_derivatives(case, effort) for case in _DERIVED)) for row in rows]


def of_forms(case: Case, operation: str, effort: Effort) -> list[Row]:
    rows = race(case.name, operation, _calls(case, operation, BATCH), effort, tolerance=5e-2)
    return rows + race(f"{case.name}, one image", operation, _calls(case, operation, ONE_IMAGE), effort, tolerance=5e-2)


def of_derivatives(case: Case, effort: Effort) -> list[Row]:
    operations = (*forms.DERIVATIVES, forms.SQUARES)
    calls = {each: _call(case, forms.derivative(_ours(case), each), _ours(case)) for each in operations}
    return race(case.name, DERIVATIVES, calls, effort)


def _ours(case: Case) -> Crop:
    return functools.partial(ours, case)


def _calls(case: Case, operation: str, chosen: dict[str, forms.Form]) -> dict[str, Call]:
    """Of every form, and of the ten lines of jnp in the same forms; those have no pyramids worth the name."""
    calls, first = {}, chosen is ONE_IMAGE
    crops = {"": _ours(case), PLAIN: forms.plain_crop(case)}
    for suffix, crop in crops.items() if case.kind != "pyramid" else [("", crops[""])]:
        for name, form in chosen.items():
            calls[name + suffix] = _call(case, forms.derivative(form(crop), operation), form(crop), first)
        if operation != FORWARD and not first:
            calls[OF_GRADIENT + suffix] = _call(case, forms.of_gradient(crop, operation), crop)
    return calls


@functools.lru_cache(maxsize=1)
def _arrays(case: Case) -> Data:
    return jax.tree.map(jnp.asarray, make(case))


def _call(case: Case, function: Crop, crop: Crop, first: bool = False) -> Call:
    """With a cotangent that has the leading axes of the form's crops; of the first image alone, or of all."""
    data = _arrays(case)
    maps, indices = list(data.maps), data.box_indices
    if first:
        maps, indices = [m[:1] for m in maps], jnp.zeros_like(indices)
    crops_bar = data.crops_bar.reshape(jax.eval_shape(crop, maps, data.boxes, indices).shape)
    return compiled(function, maps, data.boxes, indices, crops_bar)
