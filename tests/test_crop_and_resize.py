"""What `crop_and_resize` promises of values, against the oracle in exact arithmetic."""

import functools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_crop import crop_and_resize
from tests import oracle
from tests.conftest import PAIRS

METHODS = ["bilinear", "nearest"]
WHOLE = np.float32([[0, 0, 1, 1]])
STATIC = ("crop_size", "method", "align_corners", "dtype")

# One shape for most tests, for every shape is compiled.
IMAGE_SHAPE, CROP_SIZE = (3, 6, 9, 2), (4, 5)
BOXES = np.float32(
    [
        [0.1, 0.2, 0.7, 0.8],
        [0.9, 0.1, 0.3, 0.6],  # flipped
        [0.0, 0.0, 1.0, 1.0],
        [-0.4, 0.3, 0.6, 1.7],  # partly outside
        [1.1, 0.0, 2.0, 1.0],  # wholly
        [0.4, 0.625, 0.4, 0.625],  # no extent
        [0.2, 0.9, 0.8, 0.1],
        [0.0, 0.125, 0.6, 0.625],  # on pixels
    ]
)
BOX_INDICES = np.int32([0, 1, 2, 0, 1, 2, 0, 1])

methods = pytest.mark.parametrize("method", METHODS)
alignments = pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])


def random_image(shape, dtype="float32", seed=0):
    return oracle.random_image(np.random.default_rng(seed), shape, dtype)


def span(image):
    """The range of an image's finite values and 0."""
    values = np.asarray(image, np.float64)
    values = values[np.isfinite(values)]
    return max(values.max(initial=0) - values.min(initial=0), 1e-30)


def assert_as_oracle(
    crops, image, boxes, indices, crop_size, method="bilinear", *, fill=0.0, dtype="float32", align_corners=True
):
    """No error above 3e-7 of the image's range, beyond what the type of the crops costs; the fill exactly."""
    expected = oracle.crop_and_resize(image, boxes, indices, crop_size, method, fill, align_corners)
    assert crops.dtype == dtype
    assert crops.shape == expected.shape
    inside = oracle.inside(image, boxes, indices, crop_size, align_corners)
    filled = np.broadcast_to(np.asarray(fill).astype(jnp.dtype(dtype)), expected.shape)
    np.testing.assert_array_equal(np.asarray(crops)[~inside], filled[~inside])
    crops, expected = np.asarray(crops, np.float64)[inside], expected[inside]
    rounding = 0 if dtype == "float32" else 0.5 * float(jnp.finfo(dtype).eps) * np.abs(expected)
    tolerance = (1e-15 if dtype == "float64" else 3e-7) * span(image) + rounding
    error = np.abs(crops - expected)
    assert np.all(error <= tolerance), f"largest error {error.max()}, of the image's range {error.max() / span(image)}"


def by_both_methods(image, boxes, indices, crop_size, fill=0.0, **options):
    """Crops by bilinear and nearest, compiled together."""
    crop = [functools.partial(crop_and_resize, crop_size=crop_size, method=method, **options) for method in METHODS]
    return jax.jit(lambda *args: [c(*args, extrapolation_value=fill) for c in crop])(image, boxes, indices)


# Transforms


def plain(*args, **options):
    return crop_and_resize(*args, **options)


def jitted(image, boxes, box_indices, crop_size, **options):
    return jax.jit(crop_and_resize, static_argnames=STATIC)(image, boxes, box_indices, crop_size, **options)


def eager(*args, **options):
    with jax.disable_jit():
        return crop_and_resize(*args, **options)


def vmapped_over_boxes(image, boxes, box_indices, crop_size, **options):
    def crop(box, index):
        return crop_and_resize(image, box[None], index[None], crop_size, **options)[0]

    return jax.vmap(crop)(jnp.asarray(boxes), jnp.asarray(box_indices))


def vmapped_over_channels(image, boxes, box_indices, crop_size, *, extrapolation_value, **options):
    def crop(channel, fill):
        return crop_and_resize(channel[..., None], boxes, box_indices, crop_size, extrapolation_value=fill, **options)

    fill = jnp.broadcast_to(jnp.float32(extrapolation_value), image.shape[3])
    return jax.vmap(crop, in_axes=(3, 0), out_axes=3)(jnp.asarray(image), fill)[..., 0]


@PAIRS
@alignments
@methods
@pytest.mark.parametrize("transform", [plain, jitted, eager, vmapped_over_boxes, vmapped_over_channels])
def test_transforms(transform, method, align_corners):
    rng = np.random.default_rng(0)
    image, indices = random_image(IMAGE_SHAPE), rng.integers(-1, 4, 40)
    boxes = np.concatenate([np.resize(BOXES, (24, 4)), oracle.misleading_boxes(rng, 16, IMAGE_SHAPE[1:3], CROP_SIZE)])
    fill, options = np.float32([-7, 0.1]), {"method": method, "align_corners": align_corners}
    crops = transform(image, boxes, indices, CROP_SIZE, extrapolation_value=fill, **options)
    assert_as_oracle(crops, image, boxes, indices, CROP_SIZE, fill=fill, **options)


# Forms and types of arguments


@methods
def test_call_forms(method):
    """TensorFlow's form; one image; boxes of each image."""
    image, boxes = random_image(IMAGE_SHAPE), np.resize(BOXES, (3, 5, 4))
    indices = np.repeat(np.arange(3), 5)
    tensorflows = crop_and_resize(image, boxes.reshape(15, 4), indices, CROP_SIZE, method, 0.5)
    assert_as_oracle(tensorflows, image, boxes.reshape(15, 4), indices, CROP_SIZE, method=method, fill=0.5)
    of_each = crop_and_resize(image, boxes, None, CROP_SIZE, method, 0.5)
    assert of_each.shape == (3, 5, *CROP_SIZE, 2)
    np.testing.assert_array_equal(of_each.reshape(tensorflows.shape), tensorflows)
    for i in range(3):
        np.testing.assert_array_equal(crop_and_resize(image[i], boxes[i], None, CROP_SIZE, method, 0.5), of_each[i])


@pytest.mark.parametrize("dtype", oracle.IMAGE_DTYPES)
def test_image_types(with_and_without_x64, dtype):
    image = random_image(IMAGE_SHAPE, dtype)
    crops = crop_and_resize(image, BOXES, BOX_INDICES, CROP_SIZE, "bilinear", -0.1)
    assert_as_oracle(crops, image, BOXES, BOX_INDICES, CROP_SIZE, fill=-0.1)


@pytest.mark.parametrize("dtype", oracle.IMAGE_DTYPES)
def test_nearest_copies_pixels(x64, dtype):
    image = random_image(IMAGE_SHAPE, dtype)
    crops = crop_and_resize(image, BOXES, BOX_INDICES, CROP_SIZE, "nearest", -0.1)
    expected = oracle.crop_and_resize(image, BOXES, BOX_INDICES, CROP_SIZE, "nearest", np.float32(-0.1))
    np.testing.assert_array_equal(crops, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("image_dtype", "dtype"),
    [
        ("uint8", "bfloat16"),
        ("bfloat16", "bfloat16"),
        ("float32", "float16"),
        ("int32", "float64"),
        ("float64", "float64"),
    ],
)
def test_crop_types(x64, image_dtype, dtype):
    image = random_image(IMAGE_SHAPE, image_dtype)
    for method, crops in zip(
        METHODS, by_both_methods(image, BOXES, BOX_INDICES, CROP_SIZE, 0.3, dtype=dtype), strict=True
    ):
        assert_as_oracle(crops, image, BOXES, BOX_INDICES, CROP_SIZE, method, fill=0.3, dtype=dtype)


def test_float64_boxes(x64):
    """They are kept: sample and border are a ten-millionth of the image apart here."""
    image = random_image(IMAGE_SHAPE, "float64")
    boxes = np.float64([[-1e-12, 0, 1, 1], [1e-12, 0, 1 - 1e-12, 1], [1 / 3, 0.1, 2 / 3, 0.9]])
    crops = crop_and_resize(image, boxes, np.zeros(3, int), CROP_SIZE, dtype="float64")
    assert_as_oracle(crops, image, boxes, np.zeros(3, int), CROP_SIZE, dtype="float64")
    assert np.all(crops[0, 0] == 0)
    assert np.all(crops[1] != 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_boxes_of_fewer_bits(dtype):
    image, boxes = random_image(IMAGE_SHAPE), BOXES.astype(jnp.dtype(dtype))
    crops = crop_and_resize(image, boxes, BOX_INDICES, CROP_SIZE)
    assert_as_oracle(crops, image, boxes.astype(np.float32), BOX_INDICES, CROP_SIZE)


def test_lists_and_crop_sizes_of_any_kind():
    image = random_image(IMAGE_SHAPE)
    expected = crop_and_resize(image, BOXES, BOX_INDICES, CROP_SIZE)
    for crop_size in ([4, 5], np.array([4, 5]), (np.int64(4), np.uint8(5))):
        crops = crop_and_resize(image.tolist(), BOXES.tolist(), BOX_INDICES.tolist(), crop_size)
        np.testing.assert_array_equal(crops, expected)
    with_tracers = jax.jit(
        lambda x: crop_and_resize(image, [[x, 0.2, 0.7, 0.8], [x, x, x, x]], [0, 1], CROP_SIZE, "bilinear", [x, 0])
    )
    boxes = np.float32([[0.1, 0.2, 0.7, 0.8], [0.1, 0.1, 0.1, 0.1]])
    assert_as_oracle(with_tracers(np.float32(0.1)), image, boxes, [0, 1], CROP_SIZE, fill=np.float32([0.1, 0]))


# Boxes


@methods
def test_flipped_boxes_flip_the_crop(method):
    image = random_image(IMAGE_SHAPE)
    crops = crop_and_resize(image, BOXES, BOX_INDICES, CROP_SIZE, method, 0.5)
    up_down = crop_and_resize(image, BOXES[:, [2, 1, 0, 3]], BOX_INDICES, CROP_SIZE, method, 0.5)
    left_right = crop_and_resize(image, BOXES[:, [0, 3, 2, 1]], BOX_INDICES, CROP_SIZE, method, 0.5)
    np.testing.assert_array_equal(up_down, crops[:, ::-1])
    np.testing.assert_array_equal(left_right, crops[:, :, ::-1])


def test_nearest_rounds_halves_away_from_zero():
    image = np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1)
    crops = crop_and_resize(image, WHOLE, np.zeros(1, int), (9, 1), "nearest")
    np.testing.assert_array_equal(crops.ravel(), [0, 1, 1, 2, 2, 3, 3, 4, 4])


@alignments
def test_samples_next_to_the_border(align_corners):
    """One float beyond the border is outside, however large the image; on it is inside."""
    image = np.ones((1, 8, 700, 1), np.float32)
    below, above = np.nextafter(np.float32(0), np.float32(-1)), np.nextafter(np.float32(1), np.float32(2))
    boxes = np.float32([[0, 0, 1, 1], [below, 0, 1, 1], [0, below, 1, 1], [0, 0, above, 1], [0, 0, 1, above]])
    crops = crop_and_resize(image, boxes, np.zeros(5, int), (14, 3), align_corners=align_corners)[..., 0]
    expected = np.ones((5, 14, 3))
    if align_corners:
        expected[1, 0] = expected[2, :, 0] = expected[3, -1] = expected[4, :, -1] = 0
    np.testing.assert_array_equal(crops, expected)


@pytest.mark.parametrize(
    ("box_dtype", "dtype"),
    [(kind, "float32") for kind in ("float16", "bfloat16", "float32")]
    + [(kind, "float64") for kind in ("float32", "float64")],
)
def test_denormal_edges(x64, box_dtype, dtype):
    """The smallest number below 0 is outside: no conversion on the way takes it for 0."""
    tiny = jnp.finfo(box_dtype).smallest_subnormal
    boxes = np.array([[-tiny, 0, 1, 1], [tiny, 0, 1, 1], [0, -tiny, 0, 0], [1, 1, -tiny, tiny]]).astype(tiny.dtype)
    crops = crop_and_resize(np.ones((1, 8, 9, 1)), boxes, np.zeros(4, int), (3, 2), dtype=dtype)[..., 0]
    expected = np.ones((4, 3, 2))
    expected[0, 0] = expected[2, :, 0] = expected[3, -1] = 0
    np.testing.assert_array_equal(crops, expected)


@methods
def test_boxes_that_no_image_holds_are_outside_everywhere(method):
    """Non-finite and huge coordinates, whatever the image holds; their neighbours do not notice."""
    image = np.full(IMAGE_SHAPE, np.nan, np.float32)
    image[0] = random_image(IMAGE_SHAPE)[0]
    bad = [np.nan, np.inf, -np.inf, 1e38, -1e38, np.finfo(np.float32).max]
    boxes = np.tile(np.float32([0.1, 0.2, 0.7, 0.8]), (4 * len(bad) + 3, 1))
    for i in range(4 * len(bad)):
        boxes[i, i % 4] = bad[i // 4]
    boxes[-3], boxes[-2] = np.nan, [-np.inf, -np.inf, np.inf, np.inf]
    indices = np.full(len(boxes), 0)
    crops = np.asarray(crop_and_resize(image, boxes, indices, CROP_SIZE, method, np.float32([5, 6])))
    assert_as_oracle(crops, image, boxes, indices, CROP_SIZE, method, fill=np.float32([5, 6]))
    non_finite = ~np.isfinite(boxes).all(axis=1)
    assert np.all(crops[non_finite] == np.float32([5, 6]))
    assert np.all(crops[-1, ..., 0] != 5)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "uint32", "int64", "uint64"])
def test_box_indices_outside_the_batch(with_and_without_x64, dtype):
    """Also those that fewer bits would bring back into the batch."""
    info = np.iinfo(dtype)
    candidates = [0, 1, 2, -1, 3, info.max, info.min, 2**31, 2**32, 2**32 + 1, 2**40, 1 - 2**32]
    indices = np.resize(np.array([i for i in candidates if info.min <= i <= info.max], dtype), len(candidates))
    image, boxes = random_image(IMAGE_SHAPE), np.tile(WHOLE, (len(indices), 1))
    as_jax_holds_them = [jnp.asarray(indices)] if with_and_without_x64 or info.bits < 64 else []
    for given_indices in [indices, *as_jax_holds_them]:
        crops = np.asarray(crop_and_resize(image, boxes, given_indices, CROP_SIZE, extrapolation_value=9))
        assert_as_oracle(crops, image, boxes, indices, CROP_SIZE, fill=9)
        np.testing.assert_array_equal(np.any(crops != 9, axis=(1, 2, 3)), (indices >= 0) & (indices < 3))


# Fill values


FILLS = [0, -0.1, 1e30, np.nan, np.inf, np.uint8(200), np.float32([0.1, -1e30]), np.array([1, 2]), [0.1, np.nan]]


@pytest.mark.parametrize("fill", FILLS, ids=str)
def test_extrapolation_value(fill):
    """A scalar or one for each channel, of any real type: exactly it, wherever a sample is outside."""
    image, indices = random_image(IMAGE_SHAPE), np.where(np.arange(8) == 6, -1, BOX_INDICES)
    crops = crop_and_resize(image, BOXES, indices, CROP_SIZE, "bilinear", fill)
    assert_as_oracle(crops, image, BOXES, indices, CROP_SIZE, fill=fill)


@pytest.mark.parametrize("fill", [np.float32(0.1), np.float32([0.1, np.inf])], ids=str)
def test_traced_extrapolation_value(fill):
    image = random_image(IMAGE_SHAPE)
    crop = jax.jit(lambda fill: by_both_methods(image, BOXES, BOX_INDICES, CROP_SIZE, fill))
    for method, crops in zip(METHODS, crop(fill), strict=True):
        assert_as_oracle(crops, image, BOXES, BOX_INDICES, CROP_SIZE, method, fill=fill)


# Sizes


@alignments
@pytest.mark.parametrize(
    ("size", "crop_size"),
    [((6, 9), (1, 1)), ((1, 1), (1, 5)), ((1, 9), (4, 1)), ((6, 1), (1, 5)), ((1, 1), (4, 5))],
)
def test_one_pixel_and_one_sample(size, crop_size, align_corners):
    image, options = random_image((3, *size, 2)), {"align_corners": align_corners}
    boxes = np.concatenate([BOXES, oracle.misleading_boxes(np.random.default_rng(0), 40, size, crop_size)])
    indices = np.resize(BOX_INDICES, 48)
    for method, crops in zip(METHODS, by_both_methods(image, boxes, indices, crop_size, 3, **options), strict=True):
        assert_as_oracle(crops, image, boxes, indices, crop_size, method, fill=3, **options)


@methods
@pytest.mark.parametrize(("batch", "boxes", "channels"), [(0, 0, 2), (0, 3, 2), (2, 0, 2), (2, 3, 0), (0, 0, 0)])
def test_nothing_to_crop(method, batch, boxes, channels):
    """No boxes, no images (every index is outside then), no channels."""
    image, boxes = np.ones((batch, 6, 9, channels), np.uint8), np.zeros((boxes, 4), np.float32)
    crops = crop_and_resize(image, boxes, np.zeros(len(boxes), int), CROP_SIZE, method, 7, dtype="bfloat16")
    assert crops.shape == (len(boxes), *CROP_SIZE, channels)
    assert crops.dtype == jnp.bfloat16
    assert np.all(crops == 7)
    of_each = crop_and_resize(image, np.zeros((batch, len(boxes), 4), np.float32), None, CROP_SIZE, method)
    assert of_each.shape == (batch, len(boxes), *CROP_SIZE, channels)


@pytest.mark.parametrize("method", ["bilinear", "cubic"])
def test_nothing_to_map(method):
    """`jax.vmap` and `jax.lax.map` over no images, and over no boxes, and gradients of that."""

    def total(image, box):
        return crop_and_resize(image, box[None], None, CROP_SIZE, method).sum()

    image, box = jnp.ones((6, 9, 2)), jnp.zeros(4)
    gradients = jax.grad(total, (0, 1))
    for axes in ((0, 0), (0, None), (None, 0)):
        none = [x if axis is None else jnp.zeros((0, *x.shape)) for x, axis in zip((image, box), axes, strict=True)]
        assert jax.vmap(total, axes)(*none).shape == (0,)
        of_images, of_boxes = jax.vmap(gradients, axes)(*none)
        assert (of_images.shape, of_boxes.shape) == ((0, 6, 9, 2), (0, 4))
    assert jax.lax.map(lambda box: total(image, box), jnp.zeros((0, 4)), batch_size=8).shape == (0,)


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8", ">i2", ">u4", ">i8", np.longdouble])
def test_any_order_of_bytes(dtype):
    """As files have it, of which JAX knows nothing."""
    image, boxes, fill = np.arange(24).reshape(2, 3, 4, 1), np.float32([[0, 0, 1, 1], [0.5, -1, 1, 1]]), np.array(7)
    expected = crop_and_resize(image.astype(np.float32), boxes, [1, 0], CROP_SIZE, "bilinear", 7)
    crops = crop_and_resize(
        image.astype(dtype), boxes.astype(">f4"), np.array([1, 0], ">i4"), CROP_SIZE, "bilinear", fill.astype(dtype)
    )
    np.testing.assert_array_equal(crops, expected)


@pytest.mark.parametrize("fill", [2**40, -(2**31) - 1, np.uint32(2**32 - 1), [2**33]])
def test_fills_beyond_int32(fill):
    crops = crop_and_resize(np.ones((2, 2, 1)), [[5.0, 5.0, 6.0, 6.0]], None, 1, extrapolation_value=fill)
    assert crops.item() == np.float32(np.ravel(fill)[0])


def corner_aligned_resize(image, size):
    """``[H, W]`` to ``size``, linearly and to the nearest, in float64; one sample stands in the middle."""
    tables = []
    for pixels, n in zip(image.shape, size, strict=True):
        a = np.arange(n) if n > 1 else np.array([0.5])
        exact_twice = (4 * a * (pixels - 1)).astype(int) // 2
        steps = max(n - 1, 1)
        weights = np.maximum(1 - np.abs(exact_twice[:, None] - 2 * steps * np.arange(pixels)) / (2 * steps), 0)
        tables.append((weights, (exact_twice + steps) // (2 * steps)))
    (row_weights, rows), (column_weights, columns) = tables
    return row_weights @ image @ column_weights.T, image[np.ix_(rows, columns)]


@pytest.mark.parametrize("n", range(1, 65, 2))
def test_resizes_all_pairs_of_sizes(n):
    """The first 1 to 64 pixels of an image to ``n`` rows and ``n + 1`` columns: all pairs, in few compilations."""
    image, sizes, crop_size = random_image((65, 65)), np.arange(1, 65), (n, n + 1)
    corner = (sizes - 1).astype(np.float32) / 64  # exactly pixel size - 1
    boxes = np.stack([0 * corner, 0 * corner, corner, corner], axis=1)
    linear, nearest = (np.asarray(crops)[..., 0] for crops in by_both_methods(image[..., None], boxes, None, crop_size))
    for i, size in enumerate(sizes):
        expected = corner_aligned_resize(image[:size, :size].astype(np.float64), crop_size)
        np.testing.assert_allclose(linear[i], expected[0], rtol=0, atol=3e-7 * span(image))
        np.testing.assert_array_equal(nearest[i], expected[1])


@pytest.mark.parametrize(
    ("size", "crop_size"),
    [
        ((8, 16), (14, 28)),
        ((56, 64), (28, 112)),
        ((64, 63), (61, 64)),
        ((3, 2), (64, 63)),
        ((41, 1), (1, 33)),
        ((29, 57), (57, 29)),
    ],
)
def test_whole_image_is_a_corner_aligned_resize(size, crop_size):
    """Among them sizes at which the naive arithmetic loses the last row or column."""
    image = random_image(size)
    linear, nearest = (
        np.asarray(crops)[0, ..., 0] for crops in by_both_methods(image[..., None], WHOLE, None, crop_size)
    )
    expected = corner_aligned_resize(image.astype(np.float64), crop_size)
    np.testing.assert_allclose(linear, expected[0], rtol=0, atol=3e-7 * span(image))
    np.testing.assert_array_equal(nearest, expected[1])


@pytest.mark.parametrize(("size", "crop_size"), [((8, 16), (14, 28)), ((9, 7), (3, 64)), ((5, 1), (5, 4))])
def test_whole_image_between_pixel_edges_is_what_jax_resizes(size, crop_size):
    image = random_image((*size, 2))
    crops = crop_and_resize(image, WHOLE, None, crop_size, align_corners=False)
    expected = jax.image.resize(image, (*crop_size, 2), "bilinear", antialias=False)
    np.testing.assert_allclose(crops[0], expected, rtol=0, atol=2e-6)


@alignments
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 64), (223, 50)])
def test_whole_image_at_its_own_size_is_the_image_bit_for_bit(size, align_corners):
    """Any bits: infinite, NaN of every payload, -0, denormal."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, (2, *size, 3), dtype=np.uint32)
    image = np.where(rng.random(bits.shape) < 0.7, bits, bits | 0x7F800000).view(np.float32)
    image[0, 0, 0] = -0.0, np.inf, np.nan
    boxes, indices = np.tile(WHOLE, (2, 1)), np.arange(2)
    for crops in by_both_methods(image, boxes, indices, size, align_corners=align_corners):
        np.testing.assert_array_equal(np.asarray(crops).view(np.uint32), image.view(np.uint32))


def test_images_beyond_two_to_the_31_pixels():
    """Where int32 no longer counts pixels; only the last rows and columns are not 0."""
    size = 46_342
    image = np.zeros((1, size, size, 1), np.uint8)
    assert image.size > 2**31
    image[0, -64:, -64:] = random_image((64, 64, 1), "uint8").clip(1)
    near = 1 - 50 / (size - 1)
    boxes = np.float32([[near, near, 1, 1], [1, 1, near, near], [near, 0, 1, near], [0.5, 0.5, 1, 1], [0, 0, 1, 1]])
    indices = np.zeros(len(boxes), int)
    on_device = jnp.asarray(image)
    for method in METHODS:
        crops = np.asarray(crop_and_resize(on_device, boxes, indices, (40, 7), method))
        expected = oracle.crop_and_resize(image, boxes, indices, (40, 7), method)
        assert np.all(expected[:2] > 0)
        np.testing.assert_allclose(crops, expected, rtol=0, atol=3e-7 * 255)
    on_device.delete()


# Pixel values


@alignments
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_constants_are_preserved_exactly(dtype, align_corners):
    """At every sample inside, whatever its weights."""
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(0, 1, (150, 4)), rng.integers(0, 12, (50, 4)) / 11]).astype(np.float32)
    crop = jax.jit(lambda image: crop_and_resize(image, boxes, None, (5, 7), align_corners=align_corners))
    for value in [1, 7, 16_777_215] + [0.1, -1 / 3, 1e30, -3e38, 1e-30] * (dtype != "int32"):
        image = np.full((6, 9, 1), value, jnp.dtype(dtype))
        np.testing.assert_array_equal(crop(image), np.full((200, 5, 7, 1), image[0, 0, 0].astype(np.float32)))


@alignments
@methods
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_pixels_reach_only_samples_that_weigh_them(value, method, align_corners):
    rng, options = np.random.default_rng(0), {"method": method, "align_corners": align_corners}
    boxes = np.concatenate([rng.uniform(-0.1, 1.1, (60, 4)), rng.integers(0, 17, (60, 4)) / 16]).astype(np.float32)
    indices = rng.integers(0, 2, 120)
    finite = random_image((2, 5, 9, 2))
    marked = rng.random(finite.shape) < 0.15
    crop = jax.jit(lambda image: crop_and_resize(image, boxes, indices, (4, 9), extrapolation_value=1, **options))
    crops = np.asarray(crop(np.where(marked, np.float32(value), finite)))
    weighs = oracle.weighs(marked, boxes, indices, (4, 9), **options)
    assert 0.05 < weighs.mean() < 0.9
    np.testing.assert_array_equal(~np.isfinite(crops), weighs)
    np.testing.assert_array_equal(crops[~weighs], np.asarray(crop(finite))[~weighs])


# Properties

coordinates = st.one_of(
    st.floats(-0.5, 1.5, width=32),
    st.integers(-2, 14).map(lambda k: k / 12),
    st.sampled_from([0.0, 1.0, np.nan, 1e38, 2.0**-149]),
)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4)),
    crop_size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    dtype=st.sampled_from(oracle.IMAGE_DTYPES),
    boxes=hnp.arrays(np.float32, (9, 4), elements=coordinates),
    indices=hnp.arrays(np.int32, 9, elements=st.integers(-1, 3)),
    fill=st.floats(-10, 10, width=32),
    method=st.sampled_from(METHODS),
    align_corners=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=20)
def test_any_call(shape, crop_size, dtype, boxes, indices, fill, method, align_corners, seed):
    image, options = random_image(shape, dtype, seed), {"method": method, "align_corners": align_corners}
    crops = crop_and_resize(image, boxes, indices, crop_size, extrapolation_value=fill, **options)
    assert_as_oracle(crops, image, boxes, indices, crop_size, fill=fill, **options)


@given(boxes=hnp.arrays(np.float32, (9, 4), elements=coordinates), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=200)
def test_any_boxes(boxes, seed, data):
    """As `test_any_call`, of one shape, and so of many more boxes."""
    options = {"method": data.draw(st.sampled_from(METHODS)), "align_corners": data.draw(st.booleans())}
    image, indices = random_image(IMAGE_SHAPE, seed=seed), np.resize(BOX_INDICES, 9)
    crops = crop_and_resize(image, boxes, indices, CROP_SIZE, **options)
    assert_as_oracle(crops, image, boxes, indices, CROP_SIZE, **options)
