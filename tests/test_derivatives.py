"""The derivatives of `crop_and_resize`, against a float64 reference, finite differences, and one another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jax_crop import crop_and_resize, multilevel_roi_align, roi_align
from tests import oracle
from tests.conftest import jax_config

alignments = pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
STATIC = ("crop_size", "method", "align_corners", "dtype")


@functools.partial(jax.jit, static_argnames=STATIC)
def pull_back(crops_bar, image, boxes, indices, crop_size, fill, **options):
    """The cotangents of image, boxes and fill."""

    def crop(image, boxes, fill):
        return crop_and_resize(image, boxes, indices, crop_size, extrapolation_value=fill, **options)

    return jax.vjp(crop, image, boxes, fill)[1](crops_bar)


def assert_close(found, expected, tolerance):
    """Relative to the largest entry."""
    found = np.asarray(found, np.float64)
    assert found.shape == expected.shape
    largest = np.abs(expected).max(initial=0)
    error = np.abs(found - expected).max(initial=0)
    assert error <= tolerance * largest, f"error {error} of {largest}"


def assert_as_reference(found, crops_bar, image, boxes, indices, **options):
    expected = oracle.cotangents(crops_bar, image, boxes, indices, **options)
    image_bar, boxes_bar, fill_bar = found
    assert_close(image_bar, expected.image, 5e-6)
    assert_close(boxes_bar, expected.boxes, 2e-5)
    assert_close(fill_bar, expected.fill, 5e-6)


def random_case(size, crop_size, *, batch=2, channels=2, boxes=40, seed=0):
    """A cotangent, an image, boxes of all kinds, and indices of which some are none of the batch."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 1, (batch, *size, channels)).astype(np.float32)
    edges = rng.uniform(-0.2, 1.2, (boxes, 4)).astype(np.float32)
    edges[::4] = oracle.misleading_boxes(rng, len(edges[::4]), size, crop_size)
    crops_bar = rng.uniform(-1, 1, (boxes, *crop_size, channels)).astype(np.float32)
    return crops_bar, image, edges, rng.integers(-1, batch + 1, boxes)


# Against the reference


@alignments
@pytest.mark.parametrize(
    ("size", "crop_size"),
    [((30, 41), (7, 5)), ((6, 9), (1, 1)), ((1, 9), (4, 1)), ((6, 1), (1, 5)), ((1, 1), (3, 4)), ((2, 3), (5, 8))],
)
def test_cotangents(size, crop_size, align_corners):
    """Of random and misleading boxes, on crops of 1 and images of 1 pixel; the fill is of each channel."""
    crops_bar, image, boxes, indices = random_case(size, crop_size)
    found = pull_back(crops_bar, image, boxes, indices, crop_size, np.zeros(2, np.float32), align_corners=align_corners)
    assert_as_reference(found, crops_bar, image, boxes, indices, align_corners=align_corners)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("boxes", [30, 7])
def test_cotangents_of_large_crops(monkeypatch, boxes, devices):
    """More than a CPU takes at once: a few rows of a box, or of many, so that each device has one."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    jax.clear_caches()
    crops_bar, image, edges, indices = random_case((30, 41), (64, 48), channels=8, boxes=boxes)
    found = pull_back(crops_bar, image, edges, indices, (64, 48), np.zeros(8, np.float32))
    assert_as_reference(found, crops_bar, image, edges, indices)


@alignments
def test_cotangents_of_nearest(align_corners):
    """The image's exactly: whole numbers here, so that no order of summation rounds; the boxes' 0."""
    crops_bar, image, boxes, indices = random_case((6, 9), (4, 5))
    crops_bar = np.round(crops_bar * 100)
    options = {"method": "nearest", "align_corners": align_corners}
    found = pull_back(crops_bar, image, boxes, indices, (4, 5), np.zeros(2, np.float32), **options)
    expected = oracle.cotangents(crops_bar, image, boxes, indices, **options)
    for bar, expected_bar in zip(found, expected, strict=True):
        np.testing.assert_array_equal(bar, expected_bar)
    assert not np.any(found[1])
    assert np.any(found[0])


def test_cotangents_in_float64(x64):
    """To float64's precision, where dtype asks for it."""
    crops_bar, image, boxes, indices = (x.astype(np.float64) for x in random_case((6, 9), (4, 5)))
    indices = indices.astype(int)
    found = pull_back(crops_bar, image, boxes, indices, (4, 5), np.zeros(2), dtype="float64")
    for bar, expected in zip(found, oracle.cotangents(crops_bar, image, boxes, indices), strict=True):
        assert bar.dtype == np.float64
        assert_close(bar, expected, 1e-13)


def test_scalar_fill_takes_the_sum_of_all_channels():
    crops_bar, image, boxes, indices = random_case((6, 9), (4, 5))
    fill_bar = pull_back(crops_bar, image, boxes, indices, (4, 5), np.float32(0))[2]
    assert_close(fill_bar, oracle.cotangents(crops_bar, image, boxes, indices).fill.sum(), 5e-6)


def test_call_forms():
    """Boxes of each image, and one image, have TensorFlow's form's cotangents."""
    crops_bar, image, boxes, _ = random_case((6, 9), (4, 5))
    fill = np.zeros(2, np.float32)
    of_each = pull_back(crops_bar.reshape(2, 20, 4, 5, 2), image, boxes.reshape(2, 20, 4), None, (4, 5), fill)
    found = of_each[0], of_each[1].reshape(40, 4), of_each[2]
    assert_as_reference(found, crops_bar, image, boxes, np.repeat([0, 1], 20))
    of_one = pull_back(crops_bar, image[1], boxes, None, (4, 5), fill)
    assert_as_reference((of_one[0][None], *of_one[1:]), crops_bar, image[1:], boxes, np.zeros(40, int))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_image_cotangents_are_summed_in_float32(dtype):
    """A thousand ones on one pixel are a thousand: bfloat16 would stop at 256, float16 would lose the last of 4096."""
    image = jnp.zeros((1, 3, 3, 1), dtype)
    boxes = np.full((1000, 4), 0.5, np.float32)

    def total(image):
        return crop_and_resize(image, boxes, np.zeros(1000, int), (2, 2)).sum()

    image_bar = jax.jit(jax.grad(total))(image)
    assert image_bar.dtype == dtype
    np.testing.assert_array_equal(image_bar[0, :, :, 0], [[0, 0, 0], [0, 4000, 0], [0, 0, 0]])


# On pixels and borders


@pytest.mark.parametrize(("height", "width"), [(2, 3), (9, 14), (64, 33)])
def test_whole_image_at_its_own_size(height, width):
    """Every sample is exactly on a pixel: still a linear ramp has its slope, and any image the slopes of the design."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    ramp = (3 * rows - 2 * columns + 5)[None, ..., None]
    boxes, indices = np.float32([[0, 0, 1, 1], [1, 1, 0, 0]]), np.zeros(2, int)
    ones = np.ones((2, height, width, 1), np.float32)
    fill = np.zeros(1, np.float32)
    boxes_bar = pull_back(ones, ramp, boxes, indices, (height, width), fill)[1]
    # Of the weights a / (n - 1), and of their complements, half the number of rows or columns is the sum.
    by_row, by_column = 3 * (height - 1) * height * width / 2, -2 * (width - 1) * height * width / 2
    assert_close(boxes_bar, np.array([[by_row, by_column, by_row, by_column]] * 2), 2e-5)

    image = np.random.default_rng(0).uniform(-1, 1, ramp.shape).astype(np.float32)
    crops_bar = np.random.default_rng(1).uniform(-1, 1, ones.shape).astype(np.float32)
    found = pull_back(crops_bar, image, boxes, indices, (height, width), fill)
    assert_as_reference(found, crops_bar, image, boxes, indices)


def test_slopes_on_pixels():
    """Toward the next pixel, on the last pixel toward the one before; along both axes, flipped or not."""
    squares = np.float32([0, 1, 4, 9, 16])
    moved = np.full((1, 4), 0.25, np.float32)  # by one pixel
    for image in (squares.reshape(1, 5, 1, 1), squares.reshape(1, 1, 5, 1)):
        for box in (np.float32([[0, 0, 1, 1]]), np.float32([[1, 1, 0, 0]])):

            def crop(boxes, image=image):
                return crop_and_resize(image, boxes, np.zeros(1, int), image.shape[1:3]).ravel()

            slopes = jax.jvp(crop, (box,), (moved,))[1]
            np.testing.assert_array_equal(slopes, [1, 3, 5, 7, 7][:: -1 if box[0, 0] else 1])


def test_slopes_at_the_borders_of_pixel_edges():
    """With align_corners=False samples beyond the outermost centres do not move; those on the centres do."""
    image = np.float32([0, 1, 4, 9]).reshape(1, 4, 1, 1)
    places = np.float32([0, 0.0625, 0.125, 0.25, 0.875, 0.9375, 1])  # at pixels -0.5, -0.25, 0, 0.5, 3, 3.25, 3.5
    boxes = np.stack([places, 0 * places, places, 0 * places + 1], axis=1)

    def crop(boxes):
        return crop_and_resize(image, boxes, np.zeros(7, int), (1, 1), align_corners=False).ravel()

    values, slopes = jax.jvp(crop, (boxes,), (np.full((7, 4), 0.25, np.float32),))
    np.testing.assert_array_equal(values, [0, 0, 0, 0.5, 9, 9, 9])
    np.testing.assert_array_equal(slopes, [0, 0, 1, 1, 5, 0, 0])


def test_constant_images_have_no_box_gradient():
    crops_bar, image, boxes, indices = random_case((6, 9), (4, 5))
    boxes_bar = pull_back(crops_bar, np.full_like(image, 0.1), boxes, indices, (4, 5), np.zeros(2, np.float32))[1]
    np.testing.assert_array_equal(boxes_bar, np.zeros((40, 4)))


# What is no number


@alignments
@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_non_finite_and_huge_boxes_have_zero_gradients(method, align_corners):
    """With JAX looking for NaN and infinity wherever they could arise; and in images of no box, NaN does no harm."""
    bad = np.float32([np.nan, np.inf, -np.inf, 1e38, -1e38, np.finfo(np.float32).max])
    boxes = np.tile(np.float32([0.1, 0.2, 0.7, 0.8]), (40, 1))
    for i in range(4 * len(bad)):
        boxes[i, i % 4] = bad[i // 4]
    boxes[24:30] = bad[:, None]
    crops_bar, image, _, _ = random_case((6, 9), (4, 5))
    indices = np.where(np.arange(40) < 36, 0, -1)
    options = {"method": method, "align_corners": align_corners}
    with jax_config(jax_debug_nans=True, jax_debug_infs=True):
        found = pull_back(crops_bar, image, boxes, indices, (4, 5), np.zeros(2, np.float32), **options)
    assert_as_reference(found, crops_bar, image, boxes, indices, **options)
    assert not np.any(found[1][:30][~np.isfinite(boxes[:30]).all(axis=1)])
    assert not np.any(found[1][36:])

    image[1] = np.nan
    with_nan = pull_back(crops_bar, image, boxes, indices, (4, 5), np.zeros(2, np.float32), **options)
    for bar, with_nan_bar in zip(found, with_nan, strict=True):
        np.testing.assert_array_equal(bar, with_nan_bar)


def test_image_cotangents_do_not_depend_on_pixels():
    crops_bar, image, boxes, indices = random_case((6, 9), (4, 5))
    fill = np.zeros(2, np.float32)
    image_bar = pull_back(crops_bar, image, boxes, indices, (4, 5), fill)[0]
    of_nan = pull_back(crops_bar, np.full_like(image, np.nan), boxes, indices, (4, 5), fill)[0]
    np.testing.assert_array_equal(of_nan, image_bar)


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_integers_have_float0_cotangents(dtype):
    crops_bar, image, boxes, indices = random_case((6, 9), (4, 5))
    image = (image * 100).astype(dtype)

    def crop(image, boxes, indices):
        return crop_and_resize(image, boxes, indices, (4, 5))

    image_bar, boxes_bar, indices_bar = jax.vjp(crop, image, boxes, indices)[1](crops_bar)
    assert (image_bar.dtype, image_bar.shape) == (jax.dtypes.float0, image.shape)
    assert (indices_bar.dtype, indices_bar.shape) == (jax.dtypes.float0, indices.shape)
    assert_close(boxes_bar, oracle.cotangents(crops_bar, image, boxes, indices).boxes, 2e-5)


# Finite differences


def smooth_case(seed=0, boxes=12):
    """float64: an image, boxes no sample of which is near a pixel or a border, indices, and a fill value."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 1, (2, 5, 7, 2))
    edges = rng.uniform(-0.2, 1.2, (2000, 4))
    distances = []
    for start, stop, size, n in [(0, 2, 5, 3), (1, 3, 7, 4)]:
        positions = (edges[:, [start]] + (edges[:, [stop]] - edges[:, [start]]) * np.linspace(0, 1, n)) * (size - 1)
        distances.append(np.abs(positions - np.round(positions)).min(axis=1))
    edges = edges[np.min(distances, axis=0) > 0.02][:boxes]
    assert len(edges) == boxes
    return image, edges, rng.integers(-1, 3, boxes), np.array([0.3, -0.4])


def smooth_crop(indices):
    def crop(image, boxes, fill):
        return crop_and_resize(image, boxes, indices, (3, 4), extrapolation_value=fill, dtype="float64")

    return crop


@pytest.mark.parametrize("argument", ["image", "boxes", "fill"])
def test_finite_differences(x64, argument):
    """Each entry of the boxes, and directions of the image and the fill value."""
    image, boxes, indices, fill = smooth_case()
    arguments = {"image": image, "boxes": boxes, "fill": fill}
    x = arguments.pop(argument)
    crop = jax.jit(lambda x: smooth_crop(indices)(**arguments, **{argument: x}))
    derivative = jax.jit(lambda x, direction: jax.jvp(crop, (x,), (direction,))[1])
    directions = (
        np.eye(4)[:, None] * np.ones_like(x)
        if argument == "boxes"
        else np.random.default_rng(1).normal(size=(3, *x.shape))
    )
    for direction in directions:
        difference = (crop(x + 1e-5 * direction) - crop(x - 1e-5 * direction)) / 2e-5
        assert np.any(difference)
        assert_close(derivative(x, direction), np.asarray(difference), 1e-6)


@pytest.mark.parametrize("mode", ["fwd", "rev"])
def test_check_grads(x64, mode):
    image, boxes, indices, fill = smooth_case(boxes=4)
    check_grads(
        jax.jit(smooth_crop(indices)), (image, boxes, fill), order=2, modes=[mode], eps=1e-5, atol=1e-6, rtol=1e-6
    )


# Composition: one number of image, boxes and fill, whose derivatives of any order are not trivial

IMAGE, BOXES, INDICES, FILL = smooth_case(boxes=3)


def loss(image, boxes, fill, indices=INDICES):
    crops = crop_and_resize(image, boxes, indices, (3, 4), extrapolation_value=fill, dtype="float64")
    return jnp.sum(jnp.sin(crops * (1 + jnp.arange(crops.size).reshape(crops.shape) / 7)))


def flat_loss(x):
    """The loss of image, boxes and fill in one vector, so that all second derivatives are one matrix."""
    image, boxes, fill = jnp.split(x, [IMAGE.size, IMAGE.size + BOXES.size])
    return loss(image.reshape(IMAGE.shape), boxes.reshape(BOXES.shape), fill)


POINT = np.concatenate([IMAGE.ravel(), BOXES.ravel(), FILL])
DIRECTION = np.random.default_rng(2).normal(size=POINT.shape)


@functools.cache
def expected_gradient():
    """By the reference, through the chain rule by hand."""
    crops = oracle.crop_and_resize(IMAGE, BOXES, INDICES, (3, 4), extrapolation_value=FILL)
    factors = 1 + np.arange(crops.size).reshape(crops.shape) / 7
    bars = oracle.cotangents(np.cos(crops * factors) * factors, IMAGE, BOXES, INDICES)
    return np.concatenate([bar.ravel() for bar in bars])


@functools.cache
def expected_curvature():
    """The Hessian times the direction, by differences of the gradient, right to about 1e-8."""
    gradient, step = jax.jit(jax.grad(flat_loss)), 1e-5
    return np.asarray(gradient(POINT + step * DIRECTION) - gradient(POINT - step * DIRECTION)) / (2 * step)


GRADIENTS = {
    "grad": lambda x: jax.grad(flat_loss)(x),
    "vjp": lambda x: jax.vjp(flat_loss, x)[1](1.0)[0],
    "jacfwd": lambda x: jax.jacfwd(flat_loss)(x),
    "jacrev": lambda x: jax.jacrev(flat_loss)(x),
    "vmap(jvp)": lambda x: jax.vmap(lambda e: jax.jvp(flat_loss, (x,), (e,))[1])(jnp.eye(x.size)),
    "vmap(linearize)": lambda x: jax.vmap(jax.linearize(flat_loss, x)[1])(jnp.eye(x.size)),
    "linear_transpose(linearize)": lambda x: jax.linear_transpose(jax.linearize(flat_loss, x)[1], x)(1.0)[0],
    "grad(checkpoint)": lambda x: jax.grad(jax.checkpoint(flat_loss))(x),
    "vmap(grad)": lambda x: jax.vmap(jax.grad(flat_loss))(jnp.stack([x + 1, x]))[1],
    "grad(vmap)": lambda x: jax.grad(lambda x: jax.vmap(flat_loss)(jnp.stack([x, x])).sum() / 2)(x),
    "grad(scan)": lambda x: jax.grad(scanned_loss)(x),
    "grad(scan(checkpoint))": lambda x: jax.grad(functools.partial(scanned_loss, transform=jax.checkpoint))(x),
    "scan(grad)": lambda x: jax.lax.scan(lambda c, x: (c, jax.grad(flat_loss)(x)), 0, jnp.stack([x + 1, x]))[1][1],
    "jacfwd(vmap(scan))": lambda x: jax.jacfwd(lambda x: jax.vmap(scanned_loss)(x[None])[0])(x),
}


def scanned_loss(x, transform=lambda body: body):
    """The loss of twice the images in a scan, halved."""

    @transform
    def body(total, x):
        return total + flat_loss(x), None

    return jax.lax.scan(body, 0.0, jnp.stack([x, x]))[0] / 2


@pytest.mark.parametrize("gradient", GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_of_every_kind(x64, gradient):
    assert_close(jax.jit(gradient)(POINT), expected_gradient(), 1e-12)


CURVATURES = {
    "hessian": lambda x, v: jax.hessian(flat_loss)(x) @ v,
    "jvp(grad)": lambda x, v: jax.jvp(jax.grad(flat_loss), (x,), (v,))[1],
    "grad(jvp)": lambda x, v: jax.grad(lambda x: jax.jvp(flat_loss, (x,), (v,))[1])(x),
    "grad(grad)": lambda x, v: jax.grad(lambda x: jax.grad(flat_loss)(x) @ v)(x),
    "jvp(grad(checkpoint))": lambda x, v: jax.jvp(jax.grad(jax.checkpoint(flat_loss)), (x,), (v,))[1],
    "jvp(grad(scan))": lambda x, v: jax.jvp(jax.grad(scanned_loss), (x,), (v,))[1],
    "grad(vmap(grad))": lambda x, v: jax.grad(lambda x: (jax.vmap(jax.grad(flat_loss))(x[None]) @ v)[0])(x),
    "grad(grad(scan))": lambda x, v: jax.grad(lambda x: jax.grad(scanned_loss)(x) @ v)(x),
    "linearize(grad)": lambda x, v: jax.linearize(jax.grad(flat_loss), x)[1](v),
    "vmap(jvp(grad))": lambda x, v: jax.vmap(lambda x: jax.jvp(jax.grad(flat_loss), (x,), (v,))[1])(x[None])[0],
}


@pytest.mark.parametrize("curvature", CURVATURES.values(), ids=CURVATURES)
def test_second_derivatives_of_every_kind(x64, curvature):
    assert_close(jax.jit(curvature)(POINT, DIRECTION), expected_curvature(), 1e-6)


OF_ONE_IMAGE = {
    "antialiased": lambda image, boxes: crop_and_resize(image, boxes, None, (3, 2), "cubic", antialias=True),
    "nearest": lambda image, boxes: crop_and_resize(image, boxes, None, (3, 2), "nearest"),
    "adaptive": lambda image, boxes: roi_align(image, 8 * boxes, None, (3, 2), sampling_ratio=0, max_sampling_ratio=2),
    "pyramid": lambda image, boxes: multilevel_roi_align(
        (image, image[::2, ::2]), 30 * boxes, None, (3, 2), canonical_size=16.0
    ),
}


@pytest.mark.parametrize("crop", OF_ONE_IMAGE.values(), ids=OF_ONE_IMAGE)
def test_gradients_of_gradients_through_a_scan(crop):
    """Of image and boxes, each by each: as without it."""
    image = np.random.default_rng(0).uniform(0, 1, (9, 8, 2)).astype(np.float32)
    boxes = np.random.default_rng(1).uniform(-0.1, 1.1, (5, 4)).astype(np.float32)
    along = np.cos(image), np.sin(boxes)

    def second(total):
        def slope(image, boxes):
            return sum(map(jnp.vdot, jax.grad(total, (0, 1))(image, boxes), along))

        return jax.jit(jax.grad(slope, (0, 1)))(image, boxes)

    def total(image, boxes):
        return jnp.sum(jnp.sin(3 * crop(image, boxes)))

    def scanned(image, boxes):
        return jax.lax.scan(lambda sum_, b: (sum_ + total(image, b) / 2, None), 0.0, jnp.stack([boxes, boxes]))[0]

    for found, expected in zip(second(scanned), second(total), strict=True):
        assert_close(found, np.asarray(expected), 1e-5)


def test_third_derivative(x64):
    """Along one direction: the sine's, and the product of fractions', by differences of the second."""

    def second(x):
        return jax.jvp(jax.grad(flat_loss), (x,), (DIRECTION,))[1] @ DIRECTION

    third = jax.jit(lambda x: jax.jvp(second, (x,), (DIRECTION,))[1])(POINT)
    second = jax.jit(second)
    difference = (second(POINT + 1e-5 * DIRECTION) - second(POINT - 1e-5 * DIRECTION)) / 2e-5
    assert_close(third, np.asarray(difference), 1e-5)


def test_without_jit(x64):
    with jax.disable_jit():
        assert_close(jax.grad(flat_loss)(jnp.asarray(POINT)), expected_gradient(), 1e-12)


# What gradients cost and whether they return


def test_gradients_are_the_same_from_run_to_run():
    """Bit for bit, where many samples share a pixel and the work is for more than one thread."""
    crops_bar, image, boxes, indices = random_case((40, 40), (14, 14), channels=8, boxes=300)
    arguments = crops_bar, image, boxes, indices, (14, 14), np.zeros(8, np.float32)
    first = [np.asarray(bar).tobytes() for bar in pull_back(*arguments)]
    for _ in range(10):
        assert [np.asarray(bar).tobytes() for bar in pull_back(*arguments)] == first


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("moving", [["image"], ["boxes"], ["fill"], ["image", "boxes", "fill"]], ids="-".join)
def test_gradients_hold_no_crops(moving):
    """Between forward and backward pass there are arguments and tables of rows and columns, but nothing like a crop."""
    boxes = np.tile(np.float32([0.1, 0.2, 0.7, 0.8]), (50, 1))
    arguments = {"image": np.ones((2, 20, 30, 8), np.float32), "boxes": boxes, "fill": np.zeros(8, np.float32)}

    def crop(moving):
        image, boxes, fill = (arguments | moving).values()
        return crop_and_resize(image, boxes, np.zeros(50, int), (128, 128), extrapolation_value=fill)

    crops, pull_back = jax.eval_shape(lambda x: jax.vjp(crop, x), {name: arguments[name] for name in moving})
    tables = 50 * (128 + 128) * 64  # up to 64 bytes for each row and column of each box
    assert bytes_of(pull_back) <= bytes_of(arguments) + tables + bytes_of(crops) / 8
