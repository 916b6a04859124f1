"""Pixels -> crops, and the derivatives of that."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax

from jax_crop._sampling import gather, linear, loops, products
from jax_crop._sampling.by_kernel import sample_by_kernel as sample_by_kernel
from jax_crop._sampling.meshes import partitioned_over, unless_partitioned
from jax_crop._sampling.primitives import derived
from jax_crop._sampling.tables import Samples as Samples
from jax_crop._sampling.tables import Scheme as Scheme
from jax_crop._sampling.tables import closed_under_vmap
from jax_crop._sampling.tables import each_group as each_group
from jax_crop._sampling.tables import float_of as float_of
from jax_crop._sampling.tables import in_items as in_items


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def sample(scheme: Scheme, images: tuple[Array, ...], samples: Samples) -> Array:
    """Crops of images, or of the maps of a pyramid: each box of one of them.

    Args:
        scheme: see `Scheme`.
        images: ``[G, B, H, W, C]`` each, any real type.
        samples: see `Samples`.

    Returns:
        ``[G, N, h, w, C]`` in the scheme's dtype, differentiable in images, fractions and fill.
    """
    # A TPU multiplies matrices; all others gather, but a CPU runs loops where a gather would hold an image.
    by_gather, by_loops = functools.partial(gather.values, scheme), functools.partial(loops.values, scheme)

    @closed_under_vmap
    def by_products(images: tuple[Array, ...], samples: Samples) -> Array:
        return products.values(scheme, images, samples, devices=partitioned_over((images, samples)))

    programs: dict[str, Callable[..., Array]] = {"tpu": by_products}
    if loops.gather_holds(scheme, images):  # in pooling alone, which has no fill
        programs["cpu"] = closed_under_vmap(functools.partial(unless_partitioned, by_loops, by_gather))
    return lax.platform_dependent(images, samples, **programs, default=by_gather)


@functools.partial(sample.defjvp, symbolic_zeros=True)
def _(scheme: Scheme, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    # By a primitive: before JAX 0.11, `lax.scan` forgets rules of functions in derivatives of derivatives.
    return derived(functools.partial(linear.values, scheme), primals, tangents)
