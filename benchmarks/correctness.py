"""How often, and by how much, implementations are wrong: TensorFlow, plain jnp code and this library.

The truth comes from the tests' oracle: rational arithmetic on the float32 boxes, and float64 values.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_crop
from benchmarks.cases import CROPS, make
from benchmarks.peers import GATHER, OURS, TENSORFLOW, gather
from tests import oracle

_SIZES = range(2, 400)
_ON_SCREEN = {"1080p": (1080, 1920), "4K": (2160, 3840)}
_COMPILED_PAIRS = 120
_RUNS = 10  # of an image gradient, whose threads may race
_WRONG = 1e-4  # relative to the largest entry; float32 sums stay far below
# (pixels, samples) of in/out decisions: sizes of feature maps, photographs and videos; of crops and of pooled features.
_DECISIONS = tuple((pixels, samples) for pixels in (8, 56, 224, 3840) for samples in (7, 28, 112))


class Implementation(NamedTuple):
    """Functions of NumPy's arrays to NumPy's arrays: image, boxes, box indices and crop size to crops.

    The gradients take the crops' cotangent first, and no crop size.
    """

    crop: Callable[..., np.ndarray]
    image_gradient: Callable[..., np.ndarray]
    box_gradient: Callable[..., np.ndarray]


class Finding(NamedTuple):
    """One line of the table: what was asked, and the answer for each implementation."""

    question: str
    answers: dict[str, str]


def measure(quick: bool = False) -> list[Finding]:
    """The table; quickly, from a fraction of the samples."""
    share = 80 if quick else 1
    implementations = {GATHER: _in_jax(gather), OURS: _in_jax(jax_crop.crop_and_resize)}
    if importlib.util.find_spec("tensorflow"):
        implementations = {TENSORFLOW: _tensorflow()} | implementations

    findings = []

    def ask(question: str, answer: Callable[[str, Implementation], str]) -> None:
        findings.append(Finding(question, {name: answer(name, each) for name, each in implementations.items()}))
        print(f"{question}: {'; '.join(f'{name} {text}' for name, text in findings[-1].answers.items())}", flush=True)

    # TensorFlow is asked about every pair. The others compile for each, so that they are asked about some.
    pairs = np.random.default_rng(0).permutation([(size, n) for size in _SIZES for n in _SIZES])
    some = {TENSORFLOW: len(pairs) // share}
    ask(
        f"whole-image crops that keep their last row, of (image size, crop size) from {_SIZES[0]} to {_SIZES[-1]}",
        lambda name, each: _share_of_whole_images(each, pairs[: some.get(name, _COMPILED_PAIRS // share)]),
    )
    for boxes in ("anywhere", "with samples on borders and next to them"):
        asked = decisions(1_000_000 // share, adversarial=boxes != "anywhere")
        ask(
            f"in/out decisions that are wrong, per million, boxes {boxes}",
            lambda _, each, asked=asked: wrong_decisions(each, asked),
        )
    for screen, size in _ON_SCREEN.items():
        ask(
            f"largest error of a value, {screen}, relative to the largest pixel",
            lambda _, each, size=size: f"{_value_error(each, size):.1e}",
        )
    case = CROPS[2]._replace(boxes=CROPS[2].boxes // (8 if quick else 1))
    data = make(case)
    arguments = (data.crops_bar, data.maps[0], data.boxes, data.box_indices)
    image_bar = oracle.cotangents(*arguments).image
    ask(
        f"largest error of an image gradient, relative to its largest entry, in {_RUNS} runs of {case.name}",
        lambda _, each: _image_gradient_error(each, arguments, image_bar),
    )
    ask(
        "largest error of a box gradient, relative to its largest entry, whole-image crop of a ramp at its own size",
        lambda _, each: f"{_ramp_error(each):.1e}",
    )
    return findings


def _in_jax(crop: Callable[..., jax.Array]) -> Implementation:
    @functools.partial(jax.jit, static_argnames="size")
    def run(image: Any, boxes: Any, box_indices: Any, size: tuple[int, int]) -> jax.Array:
        return crop(image, boxes, box_indices, size)

    @functools.partial(jax.jit, static_argnames="by")
    def gradient(crops_bar: Any, image: Any, boxes: Any, box_indices: Any, by: int) -> jax.Array:
        size = crops_bar.shape[1:3]
        return jax.vjp(lambda *arrays: crop(*arrays, box_indices, size), image, boxes)[1](crops_bar)[by]

    return Implementation(
        lambda *arguments: np.asarray(run(*arguments)),
        lambda *arguments: np.asarray(gradient(*arguments, by=0)),
        lambda *arguments: np.asarray(gradient(*arguments, by=1)),
    )


def _tensorflow() -> Implementation:
    """In its default mode."""
    import tensorflow as tf

    def image_gradient(crops_bar: Any, image: Any, boxes: Any, box_indices: Any) -> np.ndarray:
        return tf.raw_ops.CropAndResizeGradImage(
            grads=crops_bar, boxes=boxes, box_ind=box_indices, image_size=image.shape, T=tf.float32
        ).numpy()

    return Implementation(
        lambda *arguments: tf.image.crop_and_resize(*arguments).numpy(),
        image_gradient,
        lambda crops_bar, image, boxes, box_indices: tf.raw_ops.CropAndResizeGradBoxes(
            grads=crops_bar, image=image, boxes=boxes, box_ind=box_indices
        ).numpy(),
    )


def _share_of_whole_images(implementation: Implementation, pairs: np.ndarray) -> str:
    """Of two pairs at a time, one along rows and one along columns; of ones, so that 0 is outside."""
    box, first = np.array([[0, 0, 1, 1]], np.float32), np.zeros(1, np.int32)
    right = []
    for (height, rows), (width, columns) in pairs[: len(pairs) // 2 * 2].reshape(-1, 2, 2).tolist():
        crop = implementation.crop(np.ones((1, height, width, 1), np.float32), box, first, (rows, columns))
        right += [crop[0, -1, 0, 0] > 0.5, crop[0, 0, -1, 0] > 0.5]
    return f"{100 * np.mean(right):.1f} % of {len(right):,}"


class Decisions(NamedTuple):
    """Samples of boxes along one axis of so many pixels: the boxes' edges, ``[N]``, and the truth, ``[N, samples]``."""

    pixels: int
    start: np.ndarray
    stop: np.ndarray
    inside: np.ndarray


def decisions(number: int, adversarial: bool) -> list[Decisions]:
    rng = np.random.default_rng(0)
    each = []
    for pixels, samples in _DECISIONS:
        n_boxes = number // len(_DECISIONS) // samples
        start, stop = rng.uniform(-0.5, 1.5, (2, n_boxes)).astype(np.float32)
        if adversarial:
            edges = np.stack(oracle.misleading_edges(rng, n_boxes, pixels, samples))
            usual = (np.abs(edges) <= 4).all(axis=0)  # beyond, and where not finite, TensorFlow may crash
            start, stop = np.where(usual, edges, (start, stop))
        each.append(Decisions(pixels, start, stop, oracle.samples(start, stop, pixels, samples).inside))
    return each


def wrong_decisions(implementation: Implementation, decisions: Sequence[Decisions]) -> str:
    """Per million."""
    wrong = []
    for pixels, start, stop, inside in decisions:
        boxes = np.stack([start, np.zeros_like(start), stop, np.ones_like(stop)], axis=1)
        ones, first = np.ones((1, pixels, 2, 1), np.float32), np.zeros(len(boxes), np.int32)
        crops = implementation.crop(ones, boxes, first, (inside.shape[1], 2))
        wrong.append((crops[:, :, 0, 0] > 0.5) != inside)
    return f"{1e6 * np.mean(np.concatenate(wrong, axis=None)):,.0f}"


def _value_error(implementation: Implementation, size: tuple[int, int]) -> float:
    case = CROPS[4]._replace(maps=((1, *size, 3),))
    data = make(case)
    arguments = (data.maps[0], data.boxes, data.box_indices, case.size)
    return float(np.abs(implementation.crop(*arguments) - oracle.crop_and_resize(*arguments)).max())


def _image_gradient_error(implementation: Implementation, arguments: tuple[Any, ...], truth: np.ndarray) -> str:
    errors = [
        np.abs(implementation.image_gradient(*arguments) - truth).max() / np.abs(truth).max() for _ in range(_RUNS)
    ]
    return f"{max(errors):.1e}, wrong in {sum(error > _WRONG for error in errors)}"


def _ramp_error(implementation: Implementation) -> float:
    size = 16
    ramp = jnp.linspace(0, 1, size)
    image = np.broadcast_to((ramp[:, None] + ramp)[None, ..., None], (1, size, size, 1)).astype(np.float32)
    box, first = np.array([[0, 0, 1, 1]], np.float32), np.zeros(1, np.int32)
    arguments = (np.ones_like(image), image, box, first)
    truth = oracle.cotangents(*arguments).boxes
    return float(np.abs(implementation.box_gradient(*arguments) - truth).max() / np.abs(truth).max())
