"""`roi_align` and `multilevel_roi_align` against the definition: positions in fractions, the rest in float64 NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jax_crop
from tests import roi_oracle
from tests.conftest import jax_config, on_a_mesh

SIZE = (13, 17)
FEATURES = np.random.default_rng(0).standard_normal((2, *SIZE, 3), dtype=np.float32)
BOXES = np.array(
    [[0.5, 1.0, 9.0, 12.5], [-3.0, 4.0, 6.0, 30.0], [2.0, 3.0, 7.0, 8.0], [8.0, 1.5, 3.0, 9.0]], np.float32
)
INDICES = np.array([0, 1, 1, 0])
ADAPTIVE = {"sampling_ratio": 0, "max_sampling_ratio": 4}

# Feature map, bins, options.
CASES = {
    "defaults": (SIZE, (7, 7), {}),
    "not_aligned": (SIZE, (7, 7), {"aligned": False, "spatial_scale": 0.7}),
    "one_sample": (SIZE, (1, 1), {"sampling_ratio": 1, "spatial_scale": 0.7}),
    "three_samples": (SIZE, (2, 2), {"sampling_ratio": 3, "spatial_scale": 0.25}),
    "not_aligned_three_samples": (SIZE, (3, 1), {"sampling_ratio": 3, "spatial_scale": 0.3, "aligned": False}),
    "adaptive": (SIZE, (3, 2), {**ADAPTIVE, "spatial_scale": 1 / 16}),
    "not_aligned_adaptive": (SIZE, (2, 4), {**ADAPTIVE, "spatial_scale": 0.3, "aligned": False}),
    "one_pixel": ((1, 1), (2, 2), {}),
    "one_row": ((1, 5), (2, 3), {"aligned": False}),
    "one_column": ((5, 1), (2, 3), ADAPTIVE),
}


def some_boxes(rng, n, size, scale=1.0):
    """In the map, partly and wholly outside, around it, on pixels and half-way between; empty and flipped ones."""
    extent = np.tile(size, 2)
    halves = rng.integers(-4, 2 * max(size) + 5, (n, 4)) / 2
    choices = [rng.uniform(0, 1, (n, 4)) * extent, rng.uniform(-0.4, 1.4, (n, 4)) * extent, halves, np.round(halves)]
    boxes = np.choose(rng.integers(0, len(choices), n)[:, None], choices)
    boxes[:4] = [[0, 0, *size], [-9, -9, 99, 99], [-5, 2, -3, 4], [2, 2, 2, 2]]
    return (boxes / scale).astype(np.float32)


def assert_close(actual, expected, tolerance):
    """Up to a tolerance relative to the largest entry expected."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.max(np.abs(expected), initial=0))


@functools.partial(jax.jit, static_argnames=("output_size", "options"))
def _value_and_cotangents(features, boxes, box_indices, pooled_bar, output_size, options):
    def pool(features, boxes):
        return jax_crop.roi_align(features, boxes, box_indices, output_size, **dict(options))

    pooled, pull_back = jax.vjp(pool, features, boxes)
    return pooled, *pull_back(pooled_bar)


def value_and_cotangents(features, boxes, box_indices, pooled_bar, **options):
    """Of `roi_align`: the result and, by its cotangent, those of the features and the boxes."""
    return _value_and_cotangents(
        features, boxes, box_indices, pooled_bar, pooled_bar.shape[1:3], tuple(options.items())
    )


def loss(boxes, box_indices, pooled_bar, features=FEATURES, **options):
    pooled = jax_crop.roi_align(features, boxes, box_indices, pooled_bar.shape[1:3], **options)
    return jnp.sum(pooled * pooled_bar)


def a_cotangent(boxes, output_size=(3, 2)):
    return np.random.default_rng(1).standard_normal((len(boxes), *output_size, 3), dtype=np.float32)


def pyramid(rng, levels=4, finest=(40, 52), dtype=np.float32):
    """Of a batch of two, strides 4, 8, ..., the last levels of few pixels."""
    sizes = [(-(-finest[0] // 2**level), -(-finest[1] // 2**level)) for level in range(levels)]
    return [rng.standard_normal((2, *size, 3)).astype(dtype) for size in sizes]


def pyramid_boxes(rng, n):
    """Boxes of all levels, in pixels of 160 x 208: small, large, around all, flipped, empty, not finite."""
    centre, side = rng.uniform(-20, 200, (n, 2)), 2 ** rng.uniform(2, 10, (n, 1)) * rng.uniform(0.7, 1.4, (n, 2))
    boxes = np.concatenate([centre - side / 2, centre + side / 2], axis=1)
    boxes[:4] = [[-600, -600, 900, 900], [90, 80, 20, 10], [50, 60, 50, 90], [0, 0, np.inf, 9]]
    return boxes.astype(np.float32)


def levels_of(boxes, finest=2, coarsest=5):
    y1, x1, y2, x2 = boxes.astype(np.float64).T
    area = np.where((y2 > y1) & (x2 > x1) & np.isfinite(boxes).all(1), (y2 - y1) * (x2 - x1), 1e-9)
    return np.clip(np.floor(4 + np.log2(np.sqrt(area) / 224)), finest, coarsest).astype(int)


# Values and first derivatives


@pytest.mark.parametrize("aligned", [True, False])
def test_oracle_is_differentiated_correctly(aligned):
    """The derivatives that everything below is held to, against central differences."""
    rng = np.random.default_rng(0)
    features, boxes, step = FEATURES.astype(np.float64), rng.uniform(-2, 16, (9, 4)), 1e-6
    indices, pooled_bar = rng.integers(-1, 3, 9), rng.standard_normal((9, 3, 2, 3))
    pool = functools.partial(roi_oracle.roi_align, output_size=(3, 2), aligned=aligned)
    features_bar, boxes_bar = roi_oracle.cotangents(pooled_bar, features, boxes, indices, (3, 2), aligned=aligned)
    for k, direction in enumerate(np.eye(4) * step):
        change = pool(features, boxes + direction, indices) - pool(features, boxes - direction, indices)
        np.testing.assert_allclose((change * pooled_bar).sum((1, 2, 3)) / (2 * step), boxes_bar[:, k], atol=1e-6)
    direction = rng.standard_normal(features.shape)
    change = np.sum(pool(direction, boxes, indices) * pooled_bar)
    assert change == pytest.approx(np.sum(direction * features_bar))


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case):
    size, output_size, options = CASES[case]
    rng = np.random.default_rng(0)
    boxes = some_boxes(rng, 150, size, options.get("spatial_scale", 1.0))
    indices = rng.integers(-1, 3, len(boxes))
    features, pooled_bar = (
        rng.standard_normal((n, *shape, 3)).astype("f4") for n, shape in ((2, size), (150, output_size))
    )
    pooled, features_bar, boxes_bar = value_and_cotangents(features, boxes, indices, pooled_bar, **options)
    expected = roi_oracle.cotangents(pooled_bar, features, boxes, indices, output_size, **options)
    assert_close(pooled, roi_oracle.roi_align(features, boxes, indices, output_size, **options), 5e-7)
    assert_close(features_bar, expected[0], 5e-6)
    assert_close(boxes_bar, expected[1], 2e-5)


def test_box_gradient_on_pixels():
    """One sample on pixels 0, 0, 3, 5, 6 of a parabola: slopes toward higher indices, at the last pixel the inside."""
    ramp = jnp.arange(7.0)[:, None, None] ** 2
    y = np.array([0.0, -0.25, 3.0, 5.0, 6.0, 6.5], np.float32) + 0.5
    boxes = np.stack([y - 2, y * 0, y + 2, y * 0 + 1], axis=1)

    def total(boxes):
        return jax_crop.roi_align(ramp, boxes, None, (1, 1), sampling_ratio=1).sum()

    slopes = np.array([1, 0, 7, 11, 11, 0])
    expected = np.zeros((6, 4))
    expected[:, 0] = expected[:, 2] = slopes / 2
    np.testing.assert_array_equal(jax.grad(total)(boxes), expected)


@pytest.mark.parametrize("aligned", [True, False])
def test_border_is_one_pixel_wide(aligned):
    """A sample counts from -1 to the number of pixels, both included, and not one float beyond."""
    position = np.float32([-1, 4]) + np.float32(0.5 if aligned else 0.0)
    first, last, zero = position - np.float32(0.5), position + np.float32(0.5), position * 0
    beyond = np.nextafter(first, np.float32([-9, -9])), np.nextafter(last, np.float32([9, 9]))
    boxes = [[first, last], [[beyond[0][0], first[1]], [last[0], beyond[1][1]]]]
    boxes = np.concatenate([np.stack([start, zero, stop, zero + 3], axis=1) for start, stop in boxes])
    pooled = jax_crop.roi_align(np.ones((4, 4, 1)), boxes, None, (1, 1), sampling_ratio=1, aligned=aligned)
    np.testing.assert_array_equal(pooled.ravel(), [1, 1, 0, 0])


@pytest.mark.parametrize("sampling_ratio", [1, 2, 3, 4])
def test_constants(sampling_ratio):
    """Exactly by default, and by single samples; else to the rounding of a sum."""
    for constant in np.float32([0.1, 0.7, 1e30]):
        features = np.full_like(FEATURES, constant)
        pooled = jax_crop.roi_align(features, BOXES[[0, 2, 3]], INDICES[:3], (3, 2), sampling_ratio=sampling_ratio)
        tolerance = 0 if sampling_ratio <= 2 else 2**-20
        np.testing.assert_allclose(pooled, np.full(pooled.shape, constant), rtol=tolerance)


# The number of samples


def test_adaptive_samples():
    """As many samples as pixels begin in a bin: 1, 2, 2, 3, 4, and the bound of 4 for what has more."""
    sides = np.float32([3, 3.5, 6, 6.5, 12, 12.5, 40])
    boxes = np.stack([sides * 0, sides * 0, sides, sides], axis=1) - np.float32(0.3)
    pooled = jax_crop.roi_align(FEATURES[0], boxes, None, (3, 3), **ADAPTIVE)
    for box, found, ratio in zip(boxes, pooled, [1, 2, 2, 3, 4, 4, 4], strict=True):
        expected = roi_oracle.roi_align(FEATURES, box[None], [0], (3, 3), sampling_ratio=ratio)[0]
        assert_close(found, expected, 5e-7)


def test_adaptive_samples_differ_between_axes():
    box = np.float32([[0.2, 0.1, 2.2, 14.1]])  # 1 and 3 samples a bin
    pooled = jax_crop.roi_align(FEATURES[0], box, None, (3, 5), **ADAPTIVE)
    rows = roi_oracle.axis(box[:, 0], box[:, 2], SIZE[0], 3, 1, True, None).weights
    columns = roi_oracle.axis(box[:, 1], box[:, 3], SIZE[1], 5, 3, True, None).weights
    assert_close(pooled, np.einsum("nhi,ijc,nwj->nhwc", rows, FEATURES[0], columns), 5e-7)


@pytest.mark.parametrize("aligned", [True, False])
def test_adaptive_boxes_without_size(aligned):
    """Empty and flipped boxes have no sample, whatever the edges round to; widened to one pixel, they have one."""
    y = np.linspace(1, 9, 9, dtype=np.float32) / np.float32(0.3) + np.float32(0.01)
    boxes = np.stack([y, y * 0 + 5, y, y * 0 + 25], axis=1)
    boxes = np.concatenate([boxes, boxes[:, [1, 0, 3, 2]], np.float32([[9, 9, 3, 3], [3, 20, 20, 3]])])
    pooled = jax_crop.roi_align(
        np.ones_like(FEATURES[0]), boxes, None, (3, 2), spatial_scale=0.3, aligned=aligned, **ADAPTIVE
    )
    np.testing.assert_allclose(pooled, np.full(pooled.shape, 0.0 if aligned else 1.0), rtol=2**-20)


# Call forms and types


def test_call_forms_agree():
    boxes = np.stack([BOXES, BOXES[::-1] + 1])
    pool = functools.partial(jax_crop.roi_align, output_size=(3, 2), **ADAPTIVE)
    per_image = pool(FEATURES, boxes, None)
    chex.assert_shape(per_image, (2, 4, 3, 2, 3))
    chex.assert_trees_all_equal(per_image[1], pool(FEATURES[1], boxes[1], None))
    flat = pool(FEATURES, boxes.reshape(-1, 4), np.repeat([0, 1], 4))
    chex.assert_trees_all_equal(per_image, flat.reshape(per_image.shape))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_floating_features_keep_their_type(dtype):
    with jax_config(jax_enable_x64=dtype is jnp.float64):
        features = jnp.asarray(FEATURES, dtype)
        pooled_bar = jnp.asarray(a_cotangent(BOXES), dtype)
        pooled, features_bar, boxes_bar = value_and_cotangents(features, BOXES, INDICES, pooled_bar)
        assert (pooled.dtype, features_bar.dtype, boxes_bar.dtype) == (dtype, dtype, jnp.float32)
        tolerance = 2 * float(jnp.finfo(dtype).eps)
        expected = roi_oracle.cotangents(pooled_bar, features, BOXES, INDICES, (3, 2))
        assert_close(pooled.astype(float), roi_oracle.roi_align(features, BOXES, INDICES, (3, 2)), tolerance)
        assert_close(features_bar.astype(float), expected[0], tolerance)
        assert_close(boxes_bar, expected[1], 2e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_integer_features_give_float32(dtype):
    features = (FEATURES * 20 + 60).astype(dtype)
    pooled = jax_crop.roi_align(features, BOXES, INDICES, (3, 2))
    assert pooled.dtype == jnp.float32
    assert_close(pooled, roi_oracle.roi_align(features, BOXES, INDICES, (3, 2)), 5e-7)


def test_float64_throughout(x64):
    """Also the geometry, where the boxes are float64; features of float32 are pooled in float32 all the same."""
    rng = np.random.default_rng(0)
    features, boxes = FEATURES.astype(np.float64), some_boxes(rng, 20, SIZE).astype(np.float64) + 1e-9
    indices, pooled_bar = rng.integers(0, 2, 20), rng.standard_normal((20, 3, 2, 3))
    results = value_and_cotangents(features, boxes, indices, pooled_bar, **ADAPTIVE)
    expected = roi_oracle.cotangents(pooled_bar, features, boxes, indices, (3, 2), **ADAPTIVE)
    expected = roi_oracle.roi_align(features, boxes, indices, (3, 2), **ADAPTIVE), *expected
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == jnp.float64
        assert_close(result, wanted, 1e-14)
    assert jax_crop.roi_align(FEATURES, boxes, indices, (3, 2)).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_boxes_of_half_precision(dtype):
    boxes = jnp.asarray(BOXES, dtype)  # exactly
    chex.assert_trees_all_equal(*(jax_crop.roi_align(FEATURES, b, INDICES, (3, 2)) for b in (boxes, BOXES)))


def test_bfloat16_gradients_are_summed_in_float32():
    """A thousand boxes share a pixel; in bfloat16 its gradient would stop growing at 256."""
    features, boxes = jnp.ones((1, 2, 2, 1), jnp.bfloat16), np.tile(np.float32([[0, 0, 1, 1]]), (1000, 1))
    zeros = np.zeros(1000, int)
    total = jax.grad(lambda f: jax_crop.roi_align(f, boxes, zeros, (1, 1)).astype(jnp.float32).sum())(features)
    expected = roi_oracle.cotangents(np.ones((1000, 1, 1, 1)), features, boxes, zeros, (1, 1))[0]
    assert expected.max() > 500
    np.testing.assert_allclose(total.astype(np.float32), expected, rtol=2**-8)


@pytest.mark.parametrize(
    ("features", "boxes"),
    [((2, 5, 5, 3), (0, 4)), ((2, 5, 5, 0), (4, 4)), ((0, 5, 5, 3), (4, 4)), ((0, 5, 5, 3), (0, 4))],
)
def test_nothing_to_pool(features, boxes):
    indices = np.zeros(boxes[0], int)
    pooled_bar = np.ones((boxes[0], 3, 2, features[-1]), np.float32)
    results = value_and_cotangents(np.ones(features, np.float32), np.ones(boxes, np.float32), indices, pooled_bar)
    for result, shape in zip(results, (pooled_bar.shape, features, boxes), strict=True):
        np.testing.assert_array_equal(result, np.zeros(shape))


# Boxes that are none, pixels that are none


@pytest.mark.parametrize("options", [{}, {"aligned": False, **ADAPTIVE}], ids=["defaults", "not_aligned_adaptive"])
def test_boxes_that_read_nothing(options):
    """Padding, boxes that are not finite and boxes far outside: 0, and no influence of NaN or of others."""
    boxes = np.tile(np.float32([0, 0, 5, 5]), (10, 1))
    boxes[:6, 0], boxes[2, 1], boxes[5, 3] = [np.nan, np.inf, -np.inf, 1e38, -1e38, 1.0], np.nan, -np.inf
    boxes[3:5, 2] = boxes[3:5, 0]
    boxes[6] = [-50, -50, -40, -40]
    indices = np.array([0] * 7 + [-1, 2, 2**31 - 1])
    features = np.full_like(FEATURES, np.nan)
    pooled_bar = np.ones((10, 3, 2, 3), np.float32)
    results = value_and_cotangents(features, boxes, indices, pooled_bar, **options)
    for result, shape in zip(results, (pooled_bar.shape, features.shape, boxes.shape), strict=True):
        np.testing.assert_array_equal(result, np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, {"sampling_ratio": 1, "aligned": False}, ADAPTIVE], ids=["2", "1", "adaptive"])
def test_bad_pixels_reach_the_bins_that_weigh_them(bad, options):
    rng = np.random.default_rng(0)
    features = np.where(rng.random(FEATURES.shape) < 0.02, np.float32(bad), FEATURES)
    boxes = some_boxes(rng, 100, SIZE)
    indices = rng.integers(0, 2, 100)
    pooled = np.asarray(jax_crop.roi_align(features, boxes, indices, (3, 2), **options))
    expected = roi_oracle.roi_align(features, boxes, indices, (3, 2), **options)
    np.testing.assert_array_equal(np.isfinite(pooled), np.isfinite(expected))
    np.testing.assert_allclose(pooled[np.isfinite(pooled)], expected[np.isfinite(expected)], atol=2e-6)


any_edge = st.one_of(st.floats(width=32, allow_subnormal=False), st.floats(-3, 12, width=32, allow_subnormal=False))


@given(
    st.lists(st.tuples(*[any_edge] * 4), min_size=3, max_size=3), st.tuples(*[st.integers(-2, 3)] * 3), st.booleans()
)
def test_any_floats(boxes, indices, aligned):
    boxes, indices = np.array(boxes, np.float32), np.array(indices)
    pooled_bar = a_cotangent(boxes, (2, 3))
    options = {"spatial_scale": 2.0, "aligned": aligned, **ADAPTIVE}
    pooled, features_bar, boxes_bar = value_and_cotangents(FEATURES, boxes, indices, pooled_bar, **options)
    expected = roi_oracle.roi_align(FEATURES, boxes, indices, (2, 3), **options)
    np.testing.assert_allclose(pooled, expected, atol=2e-6)
    expected = roi_oracle.cotangents(pooled_bar, FEATURES, boxes, indices, (2, 3), **options)[0]
    np.testing.assert_allclose(features_bar, expected, atol=2e-5)
    chex.assert_tree_all_finite(boxes_bar)


# Transforms


def jit(boxes, box_indices, **options):
    return jax.jit(lambda *args: jax_crop.roi_align(*args, (3, 2), **options))(FEATURES, boxes, box_indices)


def vmap(boxes, box_indices, **options):
    def one(box, index):
        return jax_crop.roi_align(FEATURES, box[None], index[None], (3, 2), **options)[0]

    return jax.vmap(one)(boxes, box_indices)


def vmap_of_jit_over_features(boxes, box_indices, **options):
    """Channels as a batch of maps of one channel."""
    pool = jax.jit(lambda features: jax_crop.roi_align(features, boxes, box_indices, (3, 2), **options))
    return jax.vmap(pool, in_axes=3, out_axes=3)(FEATURES[..., None]).squeeze(-1)


@pytest.mark.parametrize("transform", [jit, vmap, vmap_of_jit_over_features])  # without jit: see `test_strict.py`
def test_values_under_transforms(transform):
    expected = roi_oracle.roi_align(FEATURES, BOXES, INDICES, (3, 2), **ADAPTIVE)
    assert_close(transform(BOXES, INDICES, **ADAPTIVE), expected, 5e-7)


def test_vmap_of_grad():
    """Of each box alone, of all boxes at once, and of boxes per image: the same."""
    pooled_bar = a_cotangent(BOXES)
    expected = roi_oracle.cotangents(pooled_bar, FEATURES, BOXES, INDICES, (3, 2))[1]

    def of_one(box, index, pooled_bar):
        return loss(box[None], index[None], pooled_bar[None])

    assert_close(jax.vmap(jax.grad(of_one))(BOXES, INDICES, pooled_bar), expected, 2e-5)

    def of_image(boxes, features, pooled_bar):
        return loss(boxes, None, pooled_bar, features)

    order = np.argsort(INDICES, kind="stable")
    boxes, bars = (values[order].reshape(2, 2, *values.shape[1:]) for values in (BOXES, pooled_bar))
    assert_close(jax.vmap(jax.grad(of_image))(boxes, FEATURES, bars).reshape(4, 4), expected[order], 2e-5)


def test_jvp():
    rng = np.random.default_rng(0)
    features_dot, boxes_dot = (rng.standard_normal(values.shape, dtype=np.float32) for values in (FEATURES, BOXES))
    pooled_bar = a_cotangent(BOXES)
    _, pooled_dot = jax.jvp(
        lambda f, b: jax_crop.roi_align(f, b, INDICES, (3, 2)), (FEATURES, BOXES), (features_dot, boxes_dot)
    )
    features_bar, boxes_bar = roi_oracle.cotangents(pooled_bar, FEATURES, BOXES, INDICES, (3, 2))
    expected = np.sum(features_bar * features_dot) + np.sum(boxes_bar * boxes_dot)
    assert np.sum(np.asarray(pooled_dot, np.float64) * pooled_bar) == pytest.approx(expected, rel=2e-5)


def test_hessian():
    """In the boxes: mixed derivatives of rows and columns, and no other, as the surface is bilinear."""
    pooled_bar = a_cotangent(BOXES)

    def of_one(box, index, pooled_bar):
        return loss(box[None], index[None], pooled_bar[None])

    hessian = jax.jit(jax.vmap(jax.hessian(of_one)))(BOXES, INDICES, pooled_bar)
    expected = roi_oracle.hessian_in_boxes(pooled_bar, FEATURES, BOXES, INDICES, (3, 2))
    assert_close(hessian, expected, 2e-5)


def test_gradient_in_features_of_gradient_in_boxes():
    rng = np.random.default_rng(0)
    pooled_bar, boxes_dot = a_cotangent(BOXES), rng.standard_normal(BOXES.shape, dtype=np.float32)
    other = rng.standard_normal(FEATURES.shape, dtype=np.float32)

    def slope(features):
        return jnp.sum(jax.grad(loss)(BOXES, INDICES, pooled_bar, features) * boxes_dot)

    # The slope is linear in the features.
    expected = np.sum(roi_oracle.cotangents(pooled_bar, other, BOXES, INDICES, (3, 2))[1] * boxes_dot)
    assert np.sum(jax.grad(slope)(FEATURES) * other) == pytest.approx(expected, rel=2e-5)


def test_strict_modes_adaptive(strict_jax, with_and_without_x64):
    """Also with NaN in a box, which is never computed with."""
    boxes = np.array([BOXES, BOXES])
    boxes[0, 0, 0] = np.nan
    features = (FEATURES * 9).astype(np.int8)
    pooled = jax_crop.roi_align(features, boxes, None, (3, 2), spatial_scale=0.7, **ADAPTIVE)
    chex.assert_tree_all_finite(pooled)


# The pyramid


def as_they_are(arrays):
    """On one device, where a CPU has a program of its own."""
    return arrays


PLACES = pytest.mark.parametrize("placed", [as_they_are, on_a_mesh])


@PLACES
@pytest.mark.parametrize("options", [{}, {"aligned": False, **ADAPTIVE}], ids=["defaults", "not_aligned_adaptive"])
def test_pyramid_equals_its_levels(options, placed):
    """Bit for bit; on a mesh, where other programs run, up to how a compiler fuses a product and a sum."""
    rng = np.random.default_rng(0)
    maps, boxes = pyramid(rng), pyramid_boxes(rng, 200)
    indices = rng.integers(-1, 3, 200)
    pooled = jax_crop.multilevel_roi_align(placed(maps), placed(boxes), indices, (7, 7), **options)
    levels = levels_of(boxes)
    assert np.all(np.bincount(levels)[2:] >= 20)
    for level, features in enumerate(maps):
        alone = jax_crop.roi_align(features, boxes, indices, (7, 7), spatial_scale=1 / (4 * 2**level), **options)
        on_level = levels == level + 2
        tolerance = 0 if placed is as_they_are else 1e-6
        np.testing.assert_allclose(pooled[on_level], alone[on_level], rtol=0, atol=tolerance)


@PLACES
def test_gradients_in_a_pyramid(placed):
    rng = np.random.default_rng(0)
    maps, boxes = pyramid(rng), pyramid_boxes(rng, 60)
    indices, pooled_bar = rng.integers(-1, 3, 60), rng.standard_normal((60, 3, 2, 3), dtype=np.float32)

    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(maps, boxes):
        return jnp.sum(jax_crop.multilevel_roi_align(maps, boxes, indices, (3, 2)) * pooled_bar)

    maps_bar, boxes_bar = jax.jit(gradients)(placed(maps), placed(boxes))
    for level, features in enumerate(maps):
        on_level = levels_of(boxes) == level + 2
        features_bar, expected = roi_oracle.cotangents(
            pooled_bar[on_level], features, boxes[on_level], indices[on_level], (3, 2), spatial_scale=1 / (4 * 2**level)
        )
        assert_close(maps_bar[level], features_bar, 5e-6)
        assert_close(boxes_bar[on_level], expected, 2e-5)


NARROW = {"output_size": (3, 3), "sampling_ratio": 1}
NARROW_LEVELS = {"canonical_level": 1, "canonical_size": 4.0}


def narrow_pyramid():
    """Maps, boxes and indices, and how far the first two move. Some samples are exactly on a level's only pixel."""
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((2, *size, 3), dtype=np.float32) for size in ((9, 3), (4, 1), (1, 2), (1, 1))]
    starts, sides = rng.uniform(-2, 4, (80, 2)), np.exp(rng.uniform(0, np.log(40), (80, 2)))
    boxes = np.concatenate([starts, starts + sides], axis=1).astype(np.float32)
    boxes[:3] = [[0.3, -1.5, 5.3, 3.5], [-2.5, 0.3, 6.5, 9.3], [-4, -4, 12, 12]]
    indices = rng.integers(-1, 2, 80)
    indices[:3] = 0, 1, 1
    return (maps, boxes), indices, jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), (maps, boxes))


@functools.partial(jax.jit, static_argnums=0)
def values_and_derivatives(pool, arguments, indices, tangents):
    pooled, pooled_dot = jax.jvp(lambda *at: pool(*at, indices), arguments, tangents)
    return pooled, pooled_dot, jax.vjp(lambda *at: pool(*at, indices), *arguments)[1](pooled)


@functools.cache
def of_each_narrow_level():
    def pool(maps, boxes, indices):
        level = jax_crop.boxes.assign_levels(boxes, 0, 3, **NARROW_LEVELS)
        on_level = [jnp.where(level == i, indices, -1) for i in range(4)]
        return sum(
            jax_crop.roi_align(m, boxes, on_level[i], spatial_scale=0.5**i, **NARROW) for i, m in enumerate(maps)
        )

    return values_and_derivatives(pool, *narrow_pyramid())


@PLACES
def test_derivatives_where_a_level_is_one_row_or_column(placed):
    """Its neighbours in a stack of all levels are no part of it."""

    def pool(maps, boxes, indices):
        strides = 1, 2, 4, 8
        return jax_crop.multilevel_roi_align(maps, boxes, indices, strides=strides, **NARROW, **NARROW_LEVELS)

    arguments, indices, tangents = narrow_pyramid()
    found, expected = values_and_derivatives(pool, placed(arguments), indices, tangents), of_each_narrow_level()
    assert all(np.any(bar) for bar in expected[2][0])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-6), found, expected)


def test_call_forms_of_a_pyramid_agree():
    rng = np.random.default_rng(0)
    maps, boxes = pyramid(rng), pyramid_boxes(rng, 12)
    flat = jax_crop.multilevel_roi_align(maps, boxes, np.repeat([0, 1], 6), (3, 2))
    per_image = jax_crop.multilevel_roi_align(maps, boxes.reshape(2, 6, 4), None, (3, 2))
    single = jax_crop.multilevel_roi_align([m[1] for m in maps], boxes[6:], None, (3, 2))
    chex.assert_trees_all_equal(per_image, flat.reshape(2, 6, 3, 2, 3))
    chex.assert_trees_all_equal(per_image[1], single)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 0, 1, 1, 2, 2, 3, 3]),
        ({"strides": (4, 8, 16, 32)}, [0, 0, 1, 1, 2, 2, 3, 3]),
        ({"strides": [2, 4, 8, 16]}, [0, 1, 2, 2, 3, 3, 3, 3]),
        ({"canonical_level": 3}, [0, 0, 0, 0, 1, 1, 2, 3]),
        ({"canonical_size": 112}, [0, 1, 2, 2, 3, 3, 3, 3]),
    ],
)
def test_levels_are_fine_to_coarse(options, expected):
    """Constant maps tell which of them was read; a box of 224 is on level 4, of stride 16, exactly from there on."""
    maps = [np.full((512 // 2**level, 512 // 2**level, 1), level, np.float32) for level in range(4)]
    sides = np.float32([10, 111, 112, 223, 224, 447, 448, 900])
    boxes = np.stack([sides * 0 + 20, sides * 0 + 20, sides + 20, sides + 20], axis=1)
    pooled = jax_crop.multilevel_roi_align(maps, boxes, None, (1, 1), sampling_ratio=1, **options)
    np.testing.assert_array_equal(pooled.max((1, 2, 3)), expected)


def test_pyramid_of_one_level():
    maps, stride = [FEATURES], 8
    boxes = BOXES * stride
    pooled = jax_crop.multilevel_roi_align(maps, boxes, INDICES, (3, 2), strides=[stride])
    chex.assert_trees_all_equal(pooled, jax_crop.roi_align(FEATURES, boxes, INDICES, (3, 2), spatial_scale=1 / stride))


@PLACES
def test_levels_do_not_reach_each_other(placed):
    """Nor what fills narrow levels up: NaN all over the other maps, boxes over the borders of the one they are on."""
    rng = np.random.default_rng(0)
    boxes = pyramid_boxes(rng, 60)

    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def total(maps, boxes, indices):
        return jax_crop.multilevel_roi_align(maps, boxes, indices, (3, 2)).sum()

    total = jax.jit(total)
    for level in range(4):
        maps = [m if i == level else np.full_like(m, np.nan) for i, m in enumerate(pyramid(rng))]
        value, (maps_bar, boxes_bar) = total(
            placed(maps), placed(boxes), np.where(levels_of(boxes) == level + 2, 0, -1)
        )
        chex.assert_tree_all_finite((value, maps_bar, boxes_bar))
        assert [bool(np.any(m)) for m in maps_bar] == [i == level for i in range(4)]


@PLACES
def test_images_of_one_row_do_not_reach_each_other(placed):
    maps = [np.ones((2, *size, 3), np.float32) for size in ((4, 5), (1, 3))]
    for m in maps:
        m[1] = np.nan
    boxes = np.float32([[0, 0, 3, 4], [-1, 0, 5, 6], [0.5, 0.5, 1.5, 9]])

    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def total(maps, boxes):
        options = {"strides": (1, 2), "canonical_level": 1, "canonical_size": 5.0}
        return jax_crop.multilevel_roi_align(maps, boxes, [0, 0, 0], (3, 2), **options).sum()

    value, (maps_bar, boxes_bar) = jax.jit(total)(placed(maps), placed(boxes))
    chex.assert_tree_all_finite((value, maps_bar, boxes_bar))
    assert all(np.any(bar[0]) and not np.any(bar[1]) for bar in maps_bar)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.uint8])
def test_types_of_a_pyramid(dtype):
    rng = np.random.default_rng(0)
    maps = [(m * 9 + 40).astype(dtype) for m in pyramid(rng)]
    pooled = jax_crop.multilevel_roi_align(maps, BOXES * 9, INDICES, (3, 2))
    assert pooled.dtype == (jnp.bfloat16 if dtype == jnp.bfloat16 else jnp.float32)


# Errors


MAP, MAPS = np.zeros((2, 5, 5, 3), np.float32), [np.zeros((2, n, n, 3), np.float32) for n in (8, 4)]


def call(features=MAP, boxes=BOXES, box_indices=INDICES, output_size=(3, 2), **options):
    return jax_crop.roi_align(features, boxes, box_indices, output_size, **options)


def call_pyramid(features=MAPS, boxes=BOXES, box_indices=INDICES, output_size=(3, 2), **options):
    return jax_crop.multilevel_roi_align(features, boxes, box_indices, output_size, **options)


@pytest.mark.parametrize("function", [call, call_pyramid])
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "boxes must be of a floating type, got int64", {"boxes": BOXES.astype(np.int64)}),
        (ValueError, r"boxes must be \[N, 4\] or .* got shape \(4, 3\)", {"boxes": BOXES[:, :3]}),
        (ValueError, "box_indices must be one index for each box.*features.*", {"box_indices": INDICES[:3]}),
        (ValueError, "box_indices says which image each box is cut from.*None", {"box_indices": None}),
        (TypeError, "box_indices must be of an integer type, got float64", {"box_indices": INDICES * 1.0}),
        (TypeError, r"output_size must be a pair of integers \(height, width\).*, got 7.0", {"output_size": 7.0}),
        (TypeError, "output_size must be a pair of integers.*got .*2.5", {"output_size": (2.5, 3)}),
        (ValueError, r"output_size must be a pair of positive integers .* got \(0, 3\)", {"output_size": (0, 3)}),
        (ValueError, "output_size times sampling_ratio times pixels must stay below", {"output_size": (2**21, 3)}),
        (ValueError, "sampling_ratio must be an integer from 0 on, got -1", {"sampling_ratio": -1}),
        (TypeError, "sampling_ratio must be of an integer type, got 1.5", {"sampling_ratio": 1.5}),
        (ValueError, "expected a positive max_sampling_ratio, got None", {"sampling_ratio": 0}),
        (ValueError, "max_sampling_ratio, got 0", {"sampling_ratio": 0, "max_sampling_ratio": 0}),
        (ValueError, "max_sampling_ratio must be an integer.*-2", {"sampling_ratio": 0, "max_sampling_ratio": -2}),
        (
            ValueError,
            "max_sampling_ratio goes with sampling_ratio=0 only, got sampling_ratio=2",
            {"max_sampling_ratio": 4},
        ),
    ],
)
def test_errors(function, error, message, arguments):
    with pytest.raises(error, match=message):
        function(**arguments)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "features must be of an integer or floating type, got complex64", {"features": MAP.astype("c8")}),
        (TypeError, "features must be of an integer or floating type, got bool", {"features": MAP > 0}),
        (ValueError, r"features must be \[H, W, C\] or .* got shape \(5, 5\)", {"features": MAP[0, ..., 0]}),
        (ValueError, r"features must be at least one pixel.* got shape \(2, 0, 5, 3\)", {"features": MAP[:, :0]}),
        (ValueError, "spatial_scale must be a positive number.*got 0", {"spatial_scale": 0}),
        (ValueError, "spatial_scale must be a positive number.*got nan", {"spatial_scale": float("nan")}),
        (ValueError, "spatial_scale must be a positive number.*got '4'", {"spatial_scale": "4"}),
    ],
)
def test_errors_of_a_map(error, message, arguments):
    with pytest.raises(error, match=message):
        call(**arguments)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "features must be a sequence of feature maps, fine to coarse, got ndarray", {"features": MAP}),
        (TypeError, "features must be a sequence of feature maps, fine to coarse, got list", {"features": []}),
        (ValueError, r"features\[1\] must be \[H, W, C\]", {"features": [MAP, MAP[0, 0]]}),
        (TypeError, r"features\[1\] must be of an integer or floating type", {"features": [MAP, MAP > 0]}),
        (ValueError, "same type, batch and channels, got .*float16", {"features": [MAP, MAP.astype(np.float16)]}),
        (ValueError, r"same type, batch and channels, got .*\[2, 5, 5, 2\]", {"features": [MAP, MAP[..., :2]]}),
        (ValueError, r"same type, batch and channels, got .*\[1, 5, 5, 3\]", {"features": [MAP, MAP[:1]]}),
        (ValueError, r"strides must be 2 powers of two.* got \(4, 8, 16\)", {"strides": (4, 8, 16)}),
        (ValueError, r"strides must be 2 powers of two.* got \(8, 4\)", {"strides": (8, 4)}),
        (ValueError, r"strides must be 2 powers of two.* got \(3, 6\)", {"strides": (3, 6)}),
        (ValueError, r"strides must be 2 powers of two.* got \(0, 0\)", {"strides": (0, 0)}),
        (ValueError, r"strides must be 2 powers of two.* got \(\)", {"strides": ()}),
        (ValueError, "canonical_size must be a positive number.*got -224", {"canonical_size": -224}),
    ],
)
def test_errors_of_a_pyramid(error, message, arguments):
    with pytest.raises(error, match=message):
        call_pyramid(**arguments)


@pytest.mark.parametrize(
    ("function", "name", "options"),
    [
        (call, "output_size", {}),
        (call, "spatial_scale", {}),
        (call, "sampling_ratio", {}),
        (call, "max_sampling_ratio", {"sampling_ratio": 0}),
        (call_pyramid, "canonical_size", {}),
    ],
)
def test_what_must_not_be_traced(function, name, options):
    value = (3, 2) if name == "output_size" else 2
    with pytest.raises((TypeError, ValueError), match=f"{name} must be .*known while tracing"):
        jax.jit(lambda value: function(**{name: value}, **options))(value)
