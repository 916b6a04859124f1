"""`_exact` against rational arithmetic: sums of products of floats of every size decide as exact numbers do."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_crop._exact import Number, Window, divide, weighted_sums
from jax_crop._light import Light
from tests.conftest import OPTIMIZED, jax_config

pytestmark = OPTIMIZED

DTYPES = {"float32": np.float32, "float64": np.float64}
# What p + q is, and the scale; their product is below 2^31.
LIMITS = [(2, 1), (26, 223), (4094, 4000), (8190, 69_999), (2**24 - 1, 3), (2, 2**29)]
N = 2_000  # one shape for all, for every operation is compiled for each shape


@pytest.fixture(params=DTYPES.values(), ids=DTYPES)
def dtype(request):
    with jax_config(jax_enable_x64=request.param is np.float64):
        yield request.param


@pytest.fixture(params=LIMITS, ids=str)
def limits(request):
    return request.param


def floats_of_all_sizes(rng, n, dtype):
    """Every exponent, denormals, fractions and their neighbours."""
    info = np.finfo(dtype)
    bits = rng.integers(0, 2**info.bits, n, dtype=f"u{info.bits // 8}").view(dtype)
    fraction = (rng.integers(-20, 21, n) / rng.integers(1, 21, n)).astype(dtype)
    choices = [
        np.where(np.isfinite(bits), bits, 1),
        rng.uniform(-2, 2, n),
        fraction,
        np.nextafter(fraction, rng.choice([-9, 9], n).astype(dtype)),
        rng.integers(-50, 51, n) * info.smallest_subnormal,
        np.ldexp(rng.choice([-1.0, 1.0], n), rng.integers(info.minexp, info.maxexp, n)),
        rng.choice([-1.0, 1.0], n) * info.max,
    ]
    return np.choose(rng.integers(0, len(choices), n), [np.asarray(choice, dtype) for choice in choices])


def sums_that_cancel(rng, n, dtype, steps):
    """Values ``a``, ``b`` and weights ``p``, ``q``, for which ``a * p + b * q`` is often 0 or ``p + q``, or nearly."""
    q = np.where(rng.random(n) < 0.3, rng.choice([0, 1, steps // 2, steps], n), rng.integers(0, steps + 1, n))
    p = steps - q
    a, b = (floats_of_all_sizes(rng, n, dtype) for _ in range(2))
    unit = rng.uniform(0.5, 1, n) * 2.0 ** rng.integers(-20, 20, n) / steps
    kind, bound = rng.integers(0, 4, n), rng.integers(0, 2, n)
    with np.errstate(over="ignore", under="ignore"):
        a = np.where(kind == 0, bound - q * unit, np.where(kind == 1, -b, a)).astype(dtype)
        b = np.where(kind == 0, bound + p * unit, b).astype(dtype)
    return a, b, p, q


def rational(x):
    return Fraction(x.item())


@functools.cache
def example_sums(dtype, steps):
    """Values ``[N, 2]``, weights ``[N, 2]``, and their sums as rational numbers."""
    a, b, p, q = sums_that_cancel(np.random.default_rng(0), N, dtype, steps)
    exact = [rational(a_) * int(p_) + rational(b_) * int(q_) for a_, b_, p_, q_ in zip(a, b, p, q, strict=True)]
    return np.stack([a, b], axis=1), np.stack([p, q], axis=1), exact


def sums(values, weights, steps, scale, dtype):
    """Of one product of numbers each: ``[N, 2]`` and ``[N, 2]`` to a number ``[N]``."""
    window = Window.of(steps, scale, steps, dtype)
    scale = np.full((1, 1, 1), scale, np.int32)
    number = weighted_sums(values[None], weights[None, :, :, None], scale, window)
    return Number(*(x.array[0, :, 0] for x in number))


def known_weights(values, weights, steps, scale, dtype):
    """As `sums`, jitted for weights that are known while tracing."""
    return jax.jit(lambda values: sums(values, weights, steps, scale, dtype))(values)


def assert_right(number, exact, steps, scale, dtype):
    """Between 0 and the bound as rational numbers are; elsewhere on the right side of both."""
    whole, rest, is_whole = map(np.asarray, number)
    assert whole.dtype == (np.int32 if dtype == np.float32 else np.int64)
    # What the last visible bit of the smaller float stands for, beside the largest other: see `Window.reach`.
    inside, least = 0, Fraction(2) ** (steps.bit_length() - 2 * np.finfo(dtype).nmant - 3)
    for i, e in enumerate(exact):
        if 0 <= e <= steps:
            e *= scale
            fraction = e - math.floor(e)
            assert whole[i] == math.floor(e)
            assert is_whole[i] == (fraction == 0)
            assert abs(rational(rest[i]) - fraction) <= fraction * Fraction(2) ** -np.finfo(dtype).nmant + least
            inside += 1
        elif e < 0:
            assert whole[i] < 0
        else:
            assert whole[i] > steps * scale or (whole[i] == steps * scale and not is_whole[i])
    return inside


def test_sums_decide_as_rational_numbers_do(dtype, limits):
    steps, scale = limits
    values, weights, exact = example_sums(dtype, steps)
    inside = assert_right(known_weights(values, weights, steps, scale, dtype), exact, steps, scale, dtype)
    assert 0.2 * N < inside < 0.8 * N


def test_no_precision_of_products_has_a_say():
    """Not even one that all of a program is asked for."""
    steps, scale = 26, 223
    values, weights, exact = example_sums(np.float32, steps)
    with jax.default_matmul_precision("BF16_BF16_F32"):
        number = known_weights(values, weights, steps, scale, np.float32)
    assert_right(number, exact, steps, scale, np.float32)


def test_examples_are_no_easy_ones(dtype):
    """Plain arithmetic decides some of them wrongly, and many are on a bound."""
    values, weights, exact = example_sums(dtype, 8190)
    with np.errstate(over="ignore", invalid="ignore"):
        plain = np.sum(values * weights.astype(dtype), axis=1)
    assert np.count_nonzero((plain >= 0) != [e >= 0 for e in exact]) > 10
    assert sum(e in (0, 8190) for e in exact) > 100


def test_traced_weights(dtype):
    steps, scale = 26, 223
    values, weights, exact = example_sums(dtype, steps)
    weights = np.clip(weights, 1, steps - 1)  # 0 has to be known
    exact = [
        sum(rational(v) * int(w) for v, w in zip(*pair, strict=True)) for pair in zip(values, weights, strict=True)
    ]
    number = jax.jit(lambda values, weights: sums(values, weights, steps, scale, dtype))(values, weights)
    assert_right(number, exact, steps, scale, dtype)


def test_tiny_numbers_keep_their_size(dtype):
    """To the bits of a float, down to the smallest of them."""
    a = np.ldexp(np.ones(N), np.random.default_rng(0).integers(np.finfo(dtype).minexp, -20, N)).astype(dtype)
    values, weights = np.stack([a, 3 * a], axis=1), np.full((N, 2), [1, 1])
    whole, rest, is_whole = known_weights(values, weights, 2, 5, dtype)
    np.testing.assert_array_equal(whole, 0)
    np.testing.assert_array_equal(is_whole, False)
    np.testing.assert_array_equal(rest, 20 * a)


def test_numbers_that_do_not_exist_are_large(dtype):
    values = np.array([[np.nan, 1], [1, np.inf], [-np.inf, np.inf], [1, 1], [np.nan, np.nan]], dtype)
    for weights in ([1, 1], [0, 2], [2, 0]):
        number = known_weights(values, np.tile(weights, (5, 1)), 2, 3, dtype)
        np.testing.assert_array_equal(number.whole[3], 2 * 3)
        assert np.all(np.delete(number.whole, 3) > 2**30)
        assert np.all(np.isfinite(number.rest))


def test_narrow_values_in_a_wide_sum(x64):
    """Denormal float32 values, which a conversion to float64 may take for 0."""
    values, weights, exact = example_sums(np.float32, 26)
    assert_right(known_weights(values, weights, 26, 223, np.float64), exact, 26, 223, np.float64)


@functools.cache
def one_sum(steps, scale, dtype):
    return jax.jit(lambda values, weights: sums(values, weights, steps, scale, dtype))


@pytest.mark.parametrize("name", DTYPES)
@given(data=st.data())
def test_sum_of_any_two_products(name, data):
    dtype, steps, scale = DTYPES[name], 4094, 99
    value = st.floats(width=np.finfo(dtype).bits, allow_nan=False, allow_infinity=False)
    a, b, q = data.draw(st.tuples(value, value, st.integers(1, steps - 1)))
    p = steps - q
    if data.draw(st.booleans()):
        bound = data.draw(st.integers(0, steps))
        with np.errstate(over="ignore"):
            nearest = dtype((bound - a * p) / q)
        b = float(nearest) if np.isfinite(nearest) else b
    with jax_config(jax_enable_x64=dtype is np.float64):
        number = one_sum(steps, scale, dtype)(np.array([[a, b]], dtype), np.array([[p, q]]))
    assert_right(number, [Fraction(a) * p + Fraction(b) * q], steps, scale, dtype)


@pytest.mark.parametrize("most", [2**20 - 1, 2**22 - 1, 2**31 - 1])
@pytest.mark.parametrize("divisor", [2, 3, 7, 26, 4094, 2**21 - 1, 2**24, 2**30 - 1])
def test_divide_as_integers_do(divisor, most):
    rng = np.random.default_rng(divisor)
    near = np.arange(1, 1000) * max(most // divisor // 1000, 1) * divisor
    dividend = np.concatenate([rng.integers(0, most, N), near - 1, near, near + 1, [0, 1, divisor, most]])
    dividend = np.concatenate([dividend, -rng.integers(1, divisor, 20), [-1, -divisor]])
    dividend = np.clip(dividend, -divisor, most).astype(np.int32)
    found = jax.jit(lambda x: [result.array for result in divide(Light(x), np.int32(divisor), most)])(
        jnp.asarray(dividend)
    )
    np.testing.assert_array_equal(found, np.divmod(dividend, divisor))
