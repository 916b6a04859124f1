"""TensorFlow's crop_and_resize beside ours: equal, but for samples that TensorFlow puts on the wrong side of a border.

TensorFlow computes positions in float32: they are off by a few millionths of the image, and that decides for samples on
a border and for nearest pixels halfway between two. The oracle in exact arithmetic shows who departs.
"""

import inspect

import jax
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.cbook import get_sample_data
from matplotlib.image import imread

from jax_crop import crop_and_resize
from tests import oracle
from tests.conftest import OPTIMIZED

pytestmark = OPTIMIZED

TYPES = ["uint8", "uint16", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
FILL = -777.0  # in none of the images
POSITION_ERROR = 2.0**-21  # of float32 arithmetic, relative to the size of the image
IMAGE_SHAPE, CROP_SIZE = (3, 31, 44, 2), (9, 14)

methods = pytest.mark.parametrize("method", ["bilinear", "nearest"])


@pytest.fixture(scope="module")
def photograph():
    """``[1, 600, 512, 3]``, uint8."""
    with get_sample_data("grace_hopper.jpg") as file:
        return imread(file, format="jpg")[None]


@pytest.fixture(scope="module")
def deterministic():
    """The only mode in which TensorFlow's gradients are right on a CPU of several cores."""
    tf.config.experimental.enable_op_determinism()


def random_boxes(n, batch):
    rng = np.random.default_rng(0)
    return rng.uniform(-0.2, 1.2, (n, 4)).astype(np.float32), rng.integers(0, batch, n).astype(np.int32)


def wrong_sides(image, boxes, indices, crop_size, method):
    """How many samples TensorFlow puts on the wrong side of the border, having shown that all else is equal."""
    ours = np.asarray(crop_and_resize(image, boxes, indices, crop_size, method, FILL))
    theirs = tf.image.crop_and_resize(image, boxes, indices, crop_size, method, FILL).numpy()
    exact = oracle.crop_and_resize(image, boxes, indices, crop_size, method, FILL)
    inside = oracle.inside(image, boxes, indices, crop_size)
    span = float(image.max()) - min(float(image.min()), 0)
    np.testing.assert_allclose(ours, exact, rtol=0, atol=3e-7 * span)
    np.testing.assert_array_equal(ours[~inside], FILL)

    rows = oracle.samples(boxes[:, 0], boxes[:, 2], image.shape[1], crop_size[0])
    columns = oracle.samples(boxes[:, 1], boxes[:, 3], image.shape[2], crop_size[1])
    same_side = (theirs != FILL).any(axis=-1) == inside
    differ = (np.abs(theirs - ours) > 3e-7 * span).any(axis=-1) & same_side
    if method == "bilinear":
        tolerance = span * POSITION_ERROR * max(image.shape[1:3])
        assert np.all(np.abs(theirs - ours)[differ] <= tolerance)
    else:
        halfway = [
            np.abs(axis.fraction - 0.5) < POSITION_ERROR * size
            for axis, size in zip((rows, columns), image.shape[1:3], strict=True)
        ]
        assert np.all((halfway[0][:, :, None] | halfway[1][:, None, :])[differ])
    return np.count_nonzero(~same_side)


def test_signature():
    """Porting is a change of import: the same names, order and defaults."""
    theirs, ours = (
        [(p.name, p.default) for p in inspect.signature(f).parameters.values()][:6]
        for f in (tf.image.crop_and_resize, crop_and_resize)
    )
    assert ours == theirs


@methods
@pytest.mark.parametrize("dtype", TYPES)
def test_types(dtype, method):
    image = np.random.default_rng(1).uniform(0, 100, IMAGE_SHAPE).astype(dtype)
    assert wrong_sides(image, *random_boxes(200, 3), CROP_SIZE, method) == 0


@methods
@pytest.mark.parametrize("crop_size", [(1, 1), (1, 30), (64, 48)])
def test_photograph(photograph, crop_size, method):
    assert wrong_sides(photograph, *random_boxes(100, 1), crop_size, method) == 0


def test_non_finite_boxes_raise_in_tensorflow_alone(photograph):
    boxes, index = np.float32([[0, np.nan, 1, 1]]), np.zeros(1, np.int32)
    assert np.all(crop_and_resize(photograph, boxes, index, CROP_SIZE, "bilinear", FILL) == FILL)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not finite"):
        tf.image.crop_and_resize(photograph, boxes, index, CROP_SIZE)


# Of one pixel along an axis: boxes from outside along it, or wholly outside, or large.
ONE_PIXEL = np.float32([[0, -0.5, 1, 1.5], [0.9, 3, 0.2, 9], [-0.4, -7, 0.7, -3], [0.1, -9, 0.8, 2e30], [0, 1, 2, 0]])


@methods
@pytest.mark.parametrize("crop_size", [(2, 3), (1, 1), (5, 2)])
@pytest.mark.parametrize("shape", [(1, 4, 1, 2), (1, 1, 4, 2), (1, 1, 1, 2)])
def test_one_pixel_is_everywhere(shape, crop_size, method):
    image = np.random.default_rng(5).uniform(0, 1, shape).astype(np.float32)
    boxes = ONE_PIXEL[:, [1, 0, 3, 2]] if shape[1] == 1 else ONE_PIXEL
    assert wrong_sides(image, boxes, np.zeros(len(boxes), np.int32), crop_size, method) == 0


@methods
@pytest.mark.parametrize(("size", "crop_size"), [((8, 16), (14, 28)), ((56, 64), (28, 112))])
def test_tensorflow_loses_the_border_of_whole_images(size, crop_size, method):
    """Its page promises a corner-aligned resize; it fills the last row and column, which are exactly on the border."""
    image = np.random.default_rng(2).uniform(0, 1, (1, *size, 2)).astype(np.float32)
    box, index = np.float32([[0, 0, 1, 1]]), np.zeros(1, np.int32)
    height, width = crop_size
    assert oracle.inside(image, box, index, crop_size).all()
    assert wrong_sides(image, box, index, crop_size, method) == height + width - 1
    theirs = tf.image.crop_and_resize(image, box, index, crop_size, method, FILL).numpy()
    assert np.all(theirs[0, -1] == FILL)
    assert np.all(theirs[0, :, -1] == FILL)


def test_samples_on_the_wrong_side_are_tensorflows():
    """Of boxes whose samples stand on the border or one float beyond: ours are exact, and TensorFlow misplaces some."""
    rng = np.random.default_rng(3)
    image = rng.uniform(0, 1, IMAGE_SHAPE).astype(np.float32)
    boxes, indices = random_boxes(300, 3)
    edges = oracle.misleading_boxes(rng, 300, IMAGE_SHAPE[1:3], CROP_SIZE)
    boxes[:, [0, 2]] = np.clip(np.nan_to_num(edges), -9, 9)[:, [0, 2]]  # TensorFlow may crash on huge boxes
    assert wrong_sides(image, boxes, indices, CROP_SIZE, "bilinear") > 0


def gradients(image, boxes, indices, crop_size, method, crops_bar):
    """TensorFlow's cotangents of image and boxes, and ours."""
    with tf.GradientTape() as tape:
        variables = tf.constant(image), tf.constant(boxes)
        tape.watch(variables)
        crops = tf.image.crop_and_resize(*variables, indices, crop_size, method)
    theirs = tape.gradient(crops, variables, crops_bar)
    ours = jax.vjp(lambda image, boxes: crop_and_resize(image, boxes, indices, crop_size, method), image, boxes)[1](
        crops_bar
    )
    return [bar.numpy() for bar in theirs], [np.asarray(bar) for bar in ours]


@pytest.mark.usefixtures("deterministic")
@methods
def test_gradients(photograph, method):
    """Away from pixels, where slopes meet, and from points halfway between two: there TensorFlow's are right."""
    boxes, indices = random_boxes(200, 1)
    size, crop_size = photograph.shape[1:3], (5, 6)
    rows = oracle.samples(boxes[:, 0], boxes[:, 2], size[0], crop_size[0])
    columns = oracle.samples(boxes[:, 1], boxes[:, 3], size[1], crop_size[1])
    distances = [
        np.abs(axis.fraction * 2 - np.round(axis.fraction * 2)).min(axis=1, where=axis.inside, initial=1)
        for axis in (rows, columns)
    ]
    smooth = np.minimum(*distances) > 2e-3
    assert np.count_nonzero(smooth) > 100
    image = photograph.astype(np.float32) / 255
    crops_bar = np.random.default_rng(4).uniform(-1, 1, (np.count_nonzero(smooth), *crop_size, 3)).astype(np.float32)
    (their_image, their_boxes), (image_bar, boxes_bar) = gradients(
        image, boxes[smooth], indices[smooth], crop_size, method, crops_bar
    )
    np.testing.assert_allclose(image_bar, their_image, rtol=0, atol=1e-3 * np.abs(their_image).max())
    if method == "bilinear":
        np.testing.assert_allclose(boxes_bar, their_boxes, rtol=0, atol=1e-4 * np.abs(their_boxes).max())


@pytest.mark.usefixtures("deterministic")
@methods
def test_gradients_where_one_pixel_is_everywhere(method):
    """As smooth as TensorFlow's: no slope along the axis of one pixel, and the same slopes along the other."""
    image, boxes = np.float32([1, 2, 4, 9]).reshape(1, 4, 1, 1), ONE_PIXEL[1:4]
    crops_bar = np.random.default_rng(6).uniform(-1, 1, (3, 3, 2, 1)).astype(np.float32)
    (their_image, their_boxes), (image_bar, boxes_bar) = gradients(image, boxes, [0, 0, 0], (3, 2), method, crops_bar)
    np.testing.assert_allclose(image_bar, their_image, rtol=0, atol=1e-5)
    assert not np.any(boxes_bar[:, [1, 3]])
    if method == "bilinear":
        np.testing.assert_allclose(boxes_bar, their_boxes, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("deterministic")
def test_tensorflow_has_no_slope_on_pixels():
    """A ramp has the same slope everywhere; of the whole image at its own size TensorFlow says it is 0."""
    image = np.arange(9, dtype=np.float32).reshape(1, 9, 1, 1) * np.ones((1, 9, 9, 1), np.float32)
    box, index, ones = np.float32([[0, 0, 1, 1]]), np.zeros(1, np.int32), np.ones((1, 9, 9, 1), np.float32)
    (_, theirs), (_, ours) = gradients(image, box, index, (9, 9), "bilinear", ones)
    np.testing.assert_array_equal(theirs, np.zeros((1, 4)))
    expected = oracle.cotangents(ones, image, box, index).boxes
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(expected, [[324, 0, 324, 0]])
