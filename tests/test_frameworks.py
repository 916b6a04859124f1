"""Recipes: a crop inside a module of Flax, Equinox and Keras, jitted and differentiated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_crop

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 1, (2, 16, 16, 3)).astype(np.float32)
BOXES = np.array([[[0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]], [[0.3, 0.9, 0.8, 0.1], [0, 0.5, 0.5, 1]]], np.float32)
LABELS = np.array([[0, 1], [1, 0]], np.int32)


def cross_entropy(logits):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(LABELS)[..., None], axis=-1))


def expected_loss(kernel, bias):
    """The same head without a framework."""
    crops = jax_crop.crop_and_resize(IMAGES, BOXES, None, (4, 4))
    return cross_entropy(crops.reshape(2, 2, -1) @ kernel + bias)


def test_flax_nnx():
    from flax import nnx

    class Head(nnx.Module):
        def __init__(self, rngs):
            self.classify = nnx.Linear(4 * 4 * 3, 2, rngs=rngs)

        def __call__(self, images, boxes):
            crops = jax_crop.crop_and_resize(images, boxes, None, (4, 4))
            return self.classify(crops.reshape(*boxes.shape[:2], -1))

    @nnx.jit
    def loss_and_gradients(head, images, boxes):
        return nnx.value_and_grad(lambda head: cross_entropy(head(images, boxes)))(head)

    head = Head(nnx.Rngs(0))
    loss, gradients = loss_and_gradients(head, IMAGES, BOXES)
    kernel, bias = head.classify.kernel[...], head.classify.bias[...]
    assert float(loss) == pytest.approx(float(expected_loss(kernel, bias)), rel=1e-5)
    expected = jax.grad(expected_loss)(kernel, bias)
    np.testing.assert_allclose(gradients.classify.kernel[...], expected, atol=1e-6)


def test_equinox():
    import equinox as eqx

    class Looker(eqx.Module):
        """Learns where to look as well: its boxes are parameters."""

        boxes: jax.Array
        classify: eqx.nn.Linear

        def __call__(self, image):
            crops = jax_crop.crop_and_resize(image, self.boxes, None, (4, 4))
            return jax.vmap(self.classify)(crops.reshape(len(self.boxes), -1))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss_and_gradients(looker, image):
        return jnp.sum(looker(image) ** 2)

    looker = Looker(jnp.asarray(BOXES[0]), eqx.nn.Linear(4 * 4 * 3, 2, key=jax.random.key(0)))
    loss, gradients = loss_and_gradients(looker, IMAGES[0])

    def expected_loss(boxes):
        crops = jax_crop.crop_and_resize(IMAGES[0], boxes, None, (4, 4))
        return jnp.sum((crops.reshape(2, -1) @ looker.classify.weight.T + looker.classify.bias) ** 2)

    expected, by_boxes = jax.value_and_grad(expected_loss)(looker.boxes)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradients.boxes, by_boxes, rtol=1e-4, atol=1e-4)
    assert np.all(np.any(gradients.boxes != 0, axis=1))


def test_keras():
    import keras

    assert keras.backend.backend() == "jax"

    class Crops(keras.layers.Layer):
        def call(self, images, boxes):
            return jax_crop.crop_and_resize(images, boxes, None, (4, 4))

        def compute_output_shape(self, images_shape, boxes_shape):
            return (*boxes_shape[:2], 4, 4, images_shape[-1])

    images, boxes = keras.Input((16, 16, 3)), keras.Input((2, 4))
    features = keras.layers.Reshape((2, 4 * 4 * 3))(Crops()(images, boxes))
    model = keras.Model([images, boxes], keras.layers.Dense(2)(features))
    kernel, bias = (variable.value for variable in model.trainable_variables)

    @jax.jit
    def loss_and_gradients(variables, images, boxes):
        def loss(variables):
            logits, _ = model.stateless_call(variables, [], [images, boxes])
            return cross_entropy(logits)

        return jax.value_and_grad(loss)(variables)

    loss, gradients = loss_and_gradients([kernel, bias], IMAGES, BOXES)
    assert float(loss) == pytest.approx(float(expected_loss(kernel, bias)), rel=1e-5)
    np.testing.assert_allclose(gradients[0], jax.grad(expected_loss)(kernel, bias), atol=1e-6)

    model.compile(optimizer="sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = model.evaluate([IMAGES, BOXES], LABELS, verbose=0)
    model.fit([IMAGES, BOXES], LABELS, epochs=3, verbose=0)
    assert model.evaluate([IMAGES, BOXES], LABELS, verbose=0) < before
