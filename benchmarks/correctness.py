"""How often, and by how much, implementations are wrong: TensorFlow, plain jnp code and this library.

The truth comes from the tests' oracle: rational arithmetic on the float32 boxes, and float64 values.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import jax_crop
from benchmarks.cases import CROPS, make
from benchmarks.peers import GATHER, OURS, TENSORFLOW, gather
from tests import oracle

_SIZES = range(2, 400)
_COMPILED_PAIRS = 120
_RUNS = 10  # of an image gradient, whose threads may race
_WRONG = 1e-4  # relative to the largest entry; float32 sums stay far below
# (pixels, samples) of in/out decisions: sizes of feature maps, photographs and videos; of crops and of pooled features.
_DECISIONS = tuple((pixels, samples) for pixels in (8, 56, 224, 3840) for samples in (7, 28, 112))
_WHOLE, _FIRST = np.array([[0, 0, 1, 1]], np.float32), np.zeros(1, np.int32)

Crop = Callable[..., Any]  # image, boxes, box indices and crop size to crops


class Implementation(NamedTuple):
    """Its crop, and of the crops' cotangent, image, boxes and box indices the gradients of image and boxes."""

    crop: Crop
    gradients: Callable[..., tuple[Any, Any]]


class Finding(NamedTuple):
    """One line of the table: what was asked, and the answer of each implementation."""

    question: str
    answers: dict[str, str]


def measure(quick: bool = False) -> list[Finding]:
    """The table; quickly, from a fraction of the samples."""
    share = 80 if quick else 1
    implementations = {GATHER: _in_jax(gather), OURS: _in_jax(jax_crop.crop_and_resize)}
    if importlib.util.find_spec("tensorflow"):
        implementations = {TENSORFLOW: _tensorflow()} | implementations

    pairs = np.random.default_rng(0).permutation([(size, n) for size in _SIZES for n in _SIZES])
    some = {TENSORFLOW: len(pairs) // share}  # the others compile for each pair
    case = CROPS[2]._replace(boxes=CROPS[2].boxes // (8 if quick else 1))
    relative = "relative to its largest entry"
    questions: dict[str, Callable[[str, Implementation], str]] = {
        f"whole-image crops that keep their last row, of (image size, crop size) from {_SIZES[0]} to {_SIZES[-1]}": (
            lambda name, each: _whole_images(each.crop, pairs[: some.get(name, max(2, _COMPILED_PAIRS // share))])
        ),
        "in/out decisions that are wrong, per million, boxes anywhere": (
            lambda _, each: wrong_decisions(each.crop, 1_000_000 // share, adversarial=False)
        ),
        "in/out decisions that are wrong, per million, boxes with samples on borders and next to them": (
            lambda _, each: wrong_decisions(each.crop, 1_000_000 // share, adversarial=True)
        ),
        "largest error of a value, 1080p, relative to the largest pixel": (
            lambda _, each: _value_error(each.crop, (1080, 1920))
        ),
        "largest error of a value, 4K, relative to the largest pixel": (
            lambda _, each: _value_error(each.crop, (2160, 3840))
        ),
        f"largest error of an image gradient, {relative}, in {_RUNS} runs of {case.name}": (
            lambda _, each: _image_gradient_error(each, case)
        ),
        f"largest error of a box gradient, {relative}, whole-image crop of a ramp at its own size": (
            lambda _, each: _ramp_error(each)
        ),
    }
    findings = []
    for question, answer in questions.items():
        findings.append(Finding(question, {name: answer(name, each) for name, each in implementations.items()}))
        print(f"{question}: {'; '.join(f'{name} {text}' for name, text in findings[-1].answers.items())}", flush=True)
    return findings


def _in_jax(crop: Crop) -> Implementation:
    @jax.jit
    def gradients(crops_bar: Any, image: Any, boxes: Any, box_indices: Any) -> Any:
        size = crops_bar.shape[1:3]
        return jax.vjp(lambda *arrays: crop(*arrays, box_indices, size), image, boxes)[1](crops_bar)

    return Implementation(jax.jit(crop, static_argnums=3), gradients)


def _tensorflow() -> Implementation:
    """In its default mode."""
    import tensorflow as tf

    def gradients(crops_bar: Any, image: Any, boxes: Any, box_indices: Any) -> Any:
        image, boxes = tf.constant(image), tf.constant(boxes)
        with tf.GradientTape() as tape:
            tape.watch([image, boxes])
            crops = tf.image.crop_and_resize(image, boxes, box_indices, crops_bar.shape[1:3])
        return tape.gradient(crops, [image, boxes], output_gradients=tf.constant(crops_bar))

    return Implementation(tf.image.crop_and_resize, gradients)


def _whole_images(crop: Crop, pairs: np.ndarray) -> str:
    """Of two pairs at a time, one along rows and one along columns; of ones, so that 0 is outside."""
    right = []
    for (height, rows), (width, columns) in pairs[: len(pairs) // 2 * 2].reshape(-1, 2, 2).tolist():
        crops = np.asarray(crop(np.ones((1, height, width, 1), np.float32), _WHOLE, _FIRST, (rows, columns)))
        right += [crops[0, -1, 0, 0] > 0.5, crops[0, 0, -1, 0] > 0.5]
    return f"{100 * np.mean(right):.1f} % of {len(right):,}"


def wrong_decisions(crop: Crop, number: int, adversarial: bool) -> str:
    """Per million, of samples along rows of images of ones."""
    rng, wrong = np.random.default_rng(0), []
    for pixels, samples in _DECISIONS:
        n_boxes = number // len(_DECISIONS) // samples
        start, stop = rng.uniform(-0.5, 1.5, (2, n_boxes)).astype(np.float32)
        if adversarial:
            edges = np.stack(oracle.misleading_edges(rng, n_boxes, pixels, samples))
            usual = (np.abs(edges) <= 4).all(axis=0)  # beyond, and where not finite, TensorFlow may crash
            start, stop = np.where(usual, edges, (start, stop))
        boxes = np.stack([start, np.zeros_like(start), stop, np.ones_like(stop)], axis=1)
        ones, first = np.ones((1, pixels, 2, 1), np.float32), np.zeros(n_boxes, np.int32)
        crops = np.asarray(crop(ones, boxes, first, (samples, 2)))
        wrong.append((crops[:, :, 0, 0] > 0.5) != oracle.samples(start, stop, pixels, samples).inside)
    return f"{1e6 * np.mean(np.concatenate(wrong, axis=None)):,.0f}"


def _value_error(crop: Crop, size: tuple[int, int]) -> str:
    case = CROPS[4]._replace(maps=((1, *size, 3),))
    data = make(case)
    arguments = (data.maps[0], data.boxes, data.box_indices, case.size)
    return f"{np.abs(np.asarray(crop(*arguments)) - oracle.crop_and_resize(*arguments)).max():.1e}"


def _relative_error(result: Any, truth: np.ndarray) -> float:
    return float(np.abs(np.asarray(result) - truth).max() / np.abs(truth).max())


@functools.cache
def _image_gradient(case: Any) -> tuple[Any, np.ndarray]:
    data = make(case)
    arguments = (data.crops_bar, data.maps[0], data.boxes, data.box_indices)
    return arguments, oracle.cotangents(*arguments).image


def _image_gradient_error(implementation: Implementation, case: Any) -> str:
    arguments, truth = _image_gradient(case)
    errors = [_relative_error(implementation.gradients(*arguments)[0], truth) for _ in range(_RUNS)]
    return f"{max(errors):.1e}, wrong in {sum(error > _WRONG for error in errors)}"


def _ramp_error(implementation: Implementation) -> str:
    ramp = np.linspace(0, 1, 16, dtype=np.float32)
    image = (ramp[:, None] + ramp)[None, ..., None]
    arguments = (np.ones_like(image), image, _WHOLE, _FIRST)
    return f"{_relative_error(implementation.gradients(*arguments)[1], oracle.cotangents(*arguments).boxes):.1e}"
