"""What the examples claim; that they run at all, .ci/run shows."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

import jax_crop
from tests.conftest import OPTIMIZED

pytestmark = OPTIMIZED


@pytest.fixture(scope="module")
def learn_where_to_look():
    path = Path(__file__).parent.parent / "examples/learn_where_to_look.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


@pytest.fixture(scope="module")
def ends(learn_where_to_look):
    """How many pixels each box is from its target at the end of its way: ours, and with TensorFlow's slope."""
    example = learn_where_to_look
    image = example.blurred(example.photograph())
    start, truth = jax_crop.boxes.normalize([example.START, example.TARGET], (example.SIZE, example.SIZE))
    target = jax_crop.crop_and_resize(image, truth[None], None, example.CROP_SIZE)[0]
    ways = [example.learn(image, target, start)[0], example.learn(image, target, start, example.floor_and_ceil)[0]]
    return [np.abs(way[-1] * (example.SIZE - 1) - example.TARGET).max() for way in ways]


def test_box_finds_its_target(ends):
    assert ends[0] < 1


def test_box_with_slope_zero_stays(ends, learn_where_to_look):
    assert ends[1] == np.abs(learn_where_to_look.START - learn_where_to_look.TARGET).max()


@pytest.mark.parametrize("box", [[125, 4, 253, 132], [30.3, 41.7, 200.9, 180.2], [-20.4, 9.6, 300.1, 77.7]])
def test_slope_called_tensorflows_is(learn_where_to_look, box):
    example = learn_where_to_look
    image = example.photograph()
    boxes = np.float32([box]) / (example.SIZE - 1)
    weights = np.random.default_rng(0).normal(size=(1, *example.CROP_SIZE, 3)).astype(np.float32)

    @jax.value_and_grad
    def total(boxes):
        return jnp.sum(weights * example.floor_and_ceil(image, boxes, None, example.CROP_SIZE))

    ours = total(boxes)
    with tf.GradientTape() as tape:
        variable = tf.Variable(boxes)
        theirs = tf.reduce_sum(weights * tf.image.crop_and_resize(image[None], variable, [0], example.CROP_SIZE))
    np.testing.assert_allclose(ours[0], theirs, rtol=1e-4)
    slopes = tape.gradient(theirs, variable).numpy()
    np.testing.assert_allclose(ours[1], slopes, rtol=1e-3, atol=1e-3 * np.abs(slopes).max())
