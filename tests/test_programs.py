"""All programs of sampling, a TPU's and a GPU's included, compute the same sums, which are each other's derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_crop import _geometry
from jax_crop._sampling import gather, linear, loops, products, tables

PROGRAMS = {"loops": loops, "products": products, "products_in_turn": None}
IN_TURN = {
    "crops": functools.partial(products.crops, devices=None),
    "images": functools.partial(products.images, devices=None),
    "weights": functools.partial(products.weights, devices=None),
}
CASES = {  # G, B, H, W, C, N, h, w, samples
    "one": (1, 1, 9, 8, 3, 7, 4, 5, 1),
    "groups": (3, 1, 9, 8, 3, 7, 4, 5, 1),
    "indices": (1, 3, 9, 8, 3, 70, 4, 5, 1),
    "pooled": (1, 5, 9, 8, 3, 7, 4, 5, 2),
    "many_samples": (2, 1, 1, 8, 3, 7, 4, 5, 3),
}


@functools.cache
def random_case(groups, batch, height, width, channels, boxes, h, w, samples):
    rng = np.random.default_rng(0)
    edges = rng.uniform(-0.2, 1.2, (groups, boxes, 4)).astype(np.float32)
    lattices = _geometry.corners(height, h * samples), _geometry.corners(width, w * samples)
    locate = jax.jit(jax.vmap(lambda b: _geometry.locate(b, (height, width), lattices, jnp.float32)))
    rows, columns = locate(edges)
    share = jnp.full((groups, boxes), 1 / samples**2, jnp.float32) if samples > 1 else None
    item = jnp.asarray(rng.integers(0, batch, (groups, boxes)), jnp.int32)
    scheme = tables.Scheme(((min(height, 2), min(width, 2)),), (samples, samples), jnp.dtype(jnp.float32))
    image = rng.standard_normal((groups, batch, height, width, channels), np.float32)
    crops = rng.standard_normal((groups, boxes, h, w, channels), np.float32)
    return scheme, tables.Samples(rows, columns, item, None, share), jnp.asarray(image), jnp.asarray(crops)


def moved(axis, seed):
    """How far each sample moves, in place of its fraction."""
    dot = np.random.default_rng(seed).standard_normal(axis.fraction.shape, np.float32)
    return axis._replace(fraction=jnp.where(axis.inside, dot, 0))


def all_sums(of, scheme, samples, image, crops):
    term = tables.Term(samples)
    rows, columns = moved(samples.rows, 1), moved(samples.columns, 2)
    slopes = [
        tables.Term(samples._replace(rows=rows), (1, 0)),
        tables.Term(samples._replace(columns=columns), (0, 1)),
    ]
    both = tables.Term(samples._replace(rows=rows, columns=columns), (1, 1))
    shapes = [image.shape[1:4]]
    return {
        "crops": of("crops")(scheme, [image], [term]),
        "crops by boxes": of("crops")(scheme, [image], slopes),
        "images": of("images")(scheme, shapes, crops, [term]),
        "images by boxes": of("images")(scheme, shapes, crops, slopes),
        "weights": of("weights")(scheme, crops, [image], term),
        "weights by boxes": of("weights")(scheme, crops, [image], both),
    }


@functools.cache
def sums_of_gathers(case):
    return jax.jit(lambda: all_sums(functools.partial(getattr, gather), *random_case(*CASES[case])))()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_agree(program, case):
    arguments = random_case(*CASES[case])
    of = IN_TURN.__getitem__ if program == "products_in_turn" else functools.partial(getattr, PROGRAMS[program])
    expected = sums_of_gathers(case)
    found = jax.jit(lambda: all_sums(of, *arguments))()
    for name, arrays in expected.items():
        for expected_array, found_array in zip(jax.tree.leaves(arrays), jax.tree.leaves(found[name]), strict=True):
            scale = max(float(jnp.abs(expected_array).max()), 1e-3)
            np.testing.assert_allclose(found_array, expected_array, rtol=0, atol=2e-6 * scale, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_values_of_a_tpu(case):
    """To the precision of float32; a pixel that is not finite stays where it has weight."""
    scheme, samples, image, _ = random_case(*CASES[case])
    bad = np.asarray(image).copy()
    bad[0, 0, 0, 1, 0], bad[0, 0, 0, 4, 1], bad[0, -1, -1, 3, 1], bad[0, 0, 0, 6, 2] = np.nan, np.inf, -np.inf, np.inf
    by_gather = jax.jit(lambda pixels: gather.values(scheme, [pixels], samples))
    by_products = jax.jit(lambda pixels: products.values(scheme, [pixels], samples))
    for pixels in (image, jnp.asarray(bad), (image * 99).astype(jnp.uint8)):
        expected, found = np.asarray(by_gather(pixels)), np.asarray(by_products(pixels))
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(np.isfinite(found), finite)  # the formula makes NaN of some infinities
        largest = np.abs(pixels[jnp.isfinite(pixels)]).max()
        np.testing.assert_allclose(found[finite], expected[finite], rtol=0, atol=3e-7 * largest)


@pytest.mark.parametrize("case", ["groups", "indices"])
def test_chunks(case, monkeypatch):
    """Whatever fits into one."""
    arguments = random_case(*CASES[case])
    expected = sums_of_gathers(case)
    monkeypatch.setattr(products, "_BYTES_BETWEEN", 3000)
    for of in (IN_TURN.__getitem__, functools.partial(getattr, products)):
        found = jax.jit(lambda of=of: all_sums(of, *arguments))()
        jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=0, atol=3e-5), found, expected)


@pytest.mark.parametrize("case", ["indices", "pooled"])
def test_sums_are_derivatives_of_each_other(case):
    """Forward over reverse and reverse over reverse, as JAX itself derives the formula."""
    scheme, samples, image, crops = random_case(*CASES[case])

    def number(sum_of_terms, image, row, column):
        own = samples._replace(
            rows=samples.rows._replace(fraction=row), columns=samples.columns._replace(fraction=column)
        )
        return jnp.sum(jnp.sin(sum_of_terms(scheme, [image], [tables.Term(own)])) * crops)

    arguments = image, samples.rows.fraction, samples.columns.fraction
    dots = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(3).standard_normal(x.shape, np.float32)), arguments)

    def gradient(sum_of_terms):
        return jax.grad(functools.partial(number, sum_of_terms), (0, 1, 2))

    def along(sum_of_terms):
        return jax.jvp(gradient(sum_of_terms), arguments, dots)

    def reverse_over_reverse(sum_of_terms):
        of = gradient(sum_of_terms)
        slope = lambda *at: sum(jnp.vdot(g, d) for g, d in zip(of(*at), dots, strict=True))  # noqa: E731
        return jax.grad(slope, (0, 1, 2))(*arguments)

    found = jax.jit(lambda: (*along(linear.crops), reverse_over_reverse(linear.crops)))()
    first, second = jax.jit(lambda: along(gather.crops))()
    expected = first, second, second  # which is symmetric
    for f, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(f, e, rtol=0, atol=3e-5 * max(float(jnp.abs(e).max()), 1e-3))
