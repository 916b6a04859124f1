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

from jax_crop._exact import Pair, dot, two_sum
from tests.conftest import jax_config

DTYPES = {"float32": np.float32, "float64": np.float64}
MOST_WEIGHT = {np.float32: 2**24 - 1, np.float64: 2**30 - 1}
SUMS_OF_WEIGHTS = [1, 2, 3, 7, 13, 255, 4095, 4096, 4097, 8190, 65535]
N = 10_000  # one shape for all, for every operation is compiled for each shape


@pytest.fixture(params=DTYPES.values(), ids=DTYPES)
def dtype(request):
    with jax_config(jax_enable_x64=request.param is np.float64):
        yield request.param


@pytest.fixture(params=[False, True], ids=["eager", "jit"])
def maybe_jit(request):
    return jax.jit if request.param else lambda function: function


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


def sums_that_cancel(rng, n, dtype):
    """Values ``a``, ``b`` and weights ``p``, ``q``, for which ``a * p + b * q`` is often 0 or ``p + q``, or nearly."""
    m = rng.choice([*SUMS_OF_WEIGHTS, MOST_WEIGHT[dtype]], n)
    q = rng.integers(0, m + 1)
    p = m - q
    a, b = (floats_of_all_sizes(rng, n, dtype) for _ in range(2))
    unit = rng.uniform(0.5, 1, n) * 2.0 ** rng.integers(-20, 20, n)
    kind, bound = rng.integers(0, 4, n), rng.integers(0, 2, n)
    with np.errstate(over="ignore", under="ignore"):
        a = np.where(kind == 0, bound - q * unit, np.where(kind == 1, -b, a)).astype(dtype)
        b = np.where(kind == 0, bound + p * unit, b).astype(dtype)
    return a, b, p, q


def rational(x):
    return Fraction(x.item())


@functools.cache
def example_sums(dtype):
    """Values, weights, and their sums as rational numbers."""
    a, b, p, q = sums_that_cancel(np.random.default_rng(0), N, dtype)
    exact = [rational(a_) * int(p_) + rational(b_) * int(q_) for a_, b_, p_, q_ in zip(a, b, p, q, strict=True)]
    return a, b, p, q, exact


def weights(p, dtype):
    return jnp.asarray(p, jnp.int32 if dtype is np.float32 else jnp.int64)


def test_two_sum_is_exact(dtype, maybe_jit):
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-1, 1, N).astype(dtype) * dtype(2) ** rng.integers(-40, 40, N).astype(dtype) for _ in "ab")
    b[::4] = -np.nextafter(a[::4], dtype(9))
    total, error = (np.asarray(x) for x in maybe_jit(two_sum)(jnp.asarray(a), jnp.asarray(b)))
    np.testing.assert_array_equal(total, a + b)
    assert np.count_nonzero(error) > N // 2
    for i in range(N):
        assert rational(total[i]) + rational(error[i]) == rational(a[i]) + rational(b[i])


def test_dot_decides_as_rational_numbers_do(dtype, maybe_jit):
    a, b, p, q, exact = example_sums(dtype)

    def decide(a, b, p, q):
        pair = dot((a, p), (b, q), dtype=dtype)
        bound = (p + q).astype(dtype)
        return pair.at_least(jnp.zeros_like(a)), pair.at_most(bound), pair.at_least(bound), pair.at_most(-bound)

    decisions = maybe_jit(decide)(jnp.asarray(a), jnp.asarray(b), weights(p, dtype), weights(q, dtype))
    bounds = [int(m) for m in p + q]
    expected = [
        [e >= 0 for e in exact],
        [e <= m for e, m in zip(exact, bounds, strict=True)],
        [e >= m for e, m in zip(exact, bounds, strict=True)],
        [e <= -m for e, m in zip(exact, bounds, strict=True)],
    ]
    np.testing.assert_array_equal(decisions, expected)
    # The examples are no easy ones: plain arithmetic decides some of them wrongly, and many are on a bound.
    with np.errstate(over="ignore", invalid="ignore"):
        assert np.count_nonzero((a * p.astype(dtype) + b * q.astype(dtype) >= 0) != expected[0]) > 10
    assert sum(e in (0, m) for e, m in zip(exact, bounds, strict=True)) > 100


def test_dot_with_weights_known_while_tracing(dtype, maybe_jit):
    a, b, _, _, _ = example_sums(dtype)
    for p, q in [(0, 13), (4097, 8190), (1, MOST_WEIGHT[dtype])]:
        high, low = maybe_jit(lambda a, b, p=p, q=q: dot((a, p), (b, np.full(a.shape, q)), dtype=dtype))(a, b)
        for a_, b_, high_, low_ in list(zip(a, b, np.asarray(high), np.asarray(low), strict=True))[:2000]:
            exact = rational(a_) * p + rational(b_) * q
            assert np.sign(high_) == (exact > 0) - (exact < 0)
            if is_normal(exact, dtype):
                assert is_pair_of(high_, low_, exact, max(p, q))


def is_normal(exact, dtype):
    """Whether the number is far from too large, and what a pair holds of it is not too small, for normal floats."""
    info = np.finfo(dtype)
    return exact == 0 or Fraction(2) ** (info.minexp + 2 * info.nmant + 3) < abs(exact) < 2 ** (info.maxexp // 2)


def is_pair_of(high, low, exact, most_weight):
    """Whether ``high`` is the number rounded, and ``low`` the rest to as many bits as it has."""
    bits = 2 * np.finfo(high.dtype).nmant
    tolerance = abs(exact) * max(Fraction(2) ** -bits, most_weight * Fraction(2) ** (-bits - 12))
    is_rounded = abs(rational(high) - exact) <= rational(np.spacing(np.abs(high))) / 2 + tolerance
    return is_rounded and abs(rational(high) + rational(low) - exact) <= tolerance


def test_pairs_hold_twice_the_bits_of_a_float(dtype, maybe_jit):
    a, b, p, q, exact = example_sums(dtype)
    pairs = maybe_jit(lambda a, b, p, q: dot((a, p), (b, q), dtype=dtype))(a, b, weights(p, dtype), weights(q, dtype))
    checked = 0
    for high, low, e, weight in zip(*map(np.asarray, pairs), exact, np.maximum(p, q).tolist(), strict=True):
        if is_normal(e, dtype):
            assert is_pair_of(high, low, e, weight), (high, low, float(e))
            checked += 1
    assert checked > 0.4 * N


def test_sums_beyond_the_normal_floats_keep_their_sign_and_side(dtype, maybe_jit):
    info = np.finfo(dtype)
    a = np.resize(np.array([1, -1, 3, -3], dtype) * info.smallest_subnormal, N)
    tiny = maybe_jit(lambda a: dot((a, 1), (a, 2), dtype=dtype))(a)
    np.testing.assert_array_equal(np.sign(tiny.high), np.sign(a))
    assert np.all(np.abs(tiny.high) <= info.tiny)
    a = np.resize(np.array([1, -1], dtype) * info.max, N)
    huge = maybe_jit(lambda a: dot((a, 4095), (a, 4095), dtype=dtype))(a)
    assert np.all(np.isfinite(huge.high)) & np.all(np.isfinite(huge.low))
    np.testing.assert_array_equal(np.sign(huge.high), np.sign(a))
    assert np.all(np.abs(huge.high) > 2.0**63)
    for pair in (tiny, huge):
        assert not np.any(pair.at_least(jnp.zeros_like(a[0])) & pair.at_most(jnp.zeros_like(a[0])))


def test_dot_of_narrow_values_in_a_wide_sum(maybe_jit):
    """Denormal float32 values, which a conversion to float64 may take for 0."""
    a, b, p, q, exact = example_sums(np.float32)
    with jax_config(jax_enable_x64=True):
        sums = maybe_jit(lambda a, b: dot((a, p), (b, q), dtype=np.float64))(jnp.asarray(a), jnp.asarray(b))
        for high, low, e, weight in zip(*map(np.asarray, sums), exact, np.maximum(p, q).tolist(), strict=True):
            assert is_pair_of(high, low, e, weight), (high, low, float(e))


def test_floor_is_the_integer_below(dtype, maybe_jit):
    a, b, p, q, exact = example_sums(dtype)
    whole, rest = maybe_jit(lambda a, b, p, q: dot((a, p), (b, q), dtype=dtype).floor())(
        a, b, weights(p, dtype), weights(q, dtype)
    )
    assert whole.dtype == jnp.int32
    whole, high = np.asarray(whole), np.asarray(rest.high)
    in_range = [(i, e) for i, e in enumerate(exact) if abs(e) < 2**31 - 1]
    for i, e in in_range:
        assert whole[i] == math.floor(e)
        fraction = e - whole[i]
        assert (high[i] == 0) == (fraction == 0)
        if is_normal(fraction, dtype):
            ulp = Fraction(2) ** -np.finfo(dtype).nmant
            assert abs(rational(high[i]) - fraction) <= fraction * ulp + abs(e) * ulp**2
    assert len(in_range) > 0.4 * N


def test_comparisons_look_at_the_low_part(dtype):
    one, zero = jnp.ones((), dtype), jnp.zeros((), dtype)
    tiny = jnp.asarray(np.finfo(dtype).tiny)
    for low, at_least, at_most in [(-tiny, False, True), (zero, True, True), (tiny, True, False)]:
        pair = Pair(one, low)
        assert bool(pair.at_least(one)) == at_least
        assert bool(pair.at_most(one)) == at_most


@functools.cache
def scalar_dot(dtype):
    def decide(a, b, p, q, bound):
        pair = dot((a, p), (b, q), dtype=dtype)
        return pair, pair.at_least(bound), pair.at_most(bound)

    return jax.jit(decide)


@pytest.mark.parametrize("name", DTYPES)
@given(data=st.data())
def test_dot_of_any_two_products(name, data):
    dtype = DTYPES[name]
    info = np.finfo(dtype)
    value = st.floats(width=info.bits, allow_nan=False, allow_infinity=False)
    weight = st.integers(0, MOST_WEIGHT[dtype])
    a, b, p, q = data.draw(st.tuples(value, value, weight, weight))
    if data.draw(st.booleans()):
        b = float(dtype(-a * p / q)) if q and math.isfinite(dtype(-a * p / q)) else b
    bound = data.draw(st.integers(0, 2**12))
    exact = Fraction(a) * p + Fraction(b) * q
    with jax_config(jax_enable_x64=dtype is np.float64):
        pair, at_least, at_most = scalar_dot(dtype)(
            *np.array([a, b], dtype), weights(p, dtype), weights(q, dtype), dtype(bound)
        )
    assert bool(at_least) == (exact >= bound)
    assert bool(at_most) == (exact <= bound)
    if is_normal(exact, dtype):
        assert is_pair_of(*map(np.asarray, pair), exact, max(p, q))
