"""What `jax.experimental.checkify` reports of the data that tracing cannot know; to all else it does not exist."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import checkify
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_crop._arguments import Values

try:
    from jax._src.checkify import checkify_jaxpr, error_checks  # they have no public names
except ImportError:  # a JAX that moves them loses the reports, and nothing else
    error_checks = {}


def checked(crops: Array, boxes: Values, box_indices: Values | None, batch: int) -> Array:
    """The crops; where `checkify` looks, their boxes ``[..., 4]`` must be finite and indices ``[...]`` in range."""
    return _checked_p.bind(crops, boxes, *([] if box_indices is None else [box_indices]), batch=batch)


def _check(boxes: Array, *box_indices: Array, batch: int) -> None:
    # Sums and extremes only, which need no data from elsewhere if the boxes are sharded.
    finite = jnp.isfinite(boxes).all(axis=-1)
    checkify.check(finite.all(), "boxes must be finite, but {} are not", jnp.sum(~finite))
    for indices in box_indices:
        if indices.size:
            lowest, highest = indices.min(), indices.max()
            message = f"box_indices must be in [0, {batch}), but they reach from {{}} to {{}}"
            checkify.check((lowest >= 0) & (highest < batch), message, lowest, highest)


# `checkify.debug_check` would leave an effect in every program, with which `jax.export` could not serialize it. So this
# is an operation of its own, the identity, that a rule turns into checks.
_checked_p = Primitive("jax_crop_checked")
_checked_p.def_impl(lambda crops, *_, batch: crops)
_checked_p.def_abstract_eval(lambda crops, *_, batch: crops)
mlir.register_lowering(_checked_p, lambda _, crops, *__, batch: [crops])


def _jvp(primals: Any, tangents: Any, *, batch: int) -> Any:
    return _checked_p.bind(*primals, batch=batch), tangents[0]


def _vmap(arguments: Any, axes: Any, *, batch: int) -> Any:
    (crops, *data), (crops_axis, *data_axes) = arguments, axes
    data = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(data, data_axes, strict=True)]
    return _checked_p.bind(crops, *data, batch=batch), crops_axis


def _discharge(error: Any, enabled_errors: Any, crops: Any, *data: Any, batch: int) -> tuple[Any, Any]:
    checks = jax.make_jaxpr(functools.partial(_check, batch=batch))(*data)
    error, _ = checkify_jaxpr(checks, enabled_errors, error, *data)
    return error, crops


ad.primitive_jvps[_checked_p] = _jvp
batching.primitive_batchers[_checked_p] = _vmap
error_checks[_checked_p] = _discharge
