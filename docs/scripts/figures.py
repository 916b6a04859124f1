"""Draws the figures of the documentation: `python docs/scripts/figures.py [NAME ...]`, from the root of the repository.

Positions and slopes are not drawn from formulas: they are what the libraries return. Needs the extras examples, test.
"""

import contextlib
import os
import runpy
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from matplotlib import cbook
from matplotlib.colors import ListedColormap
from PIL import Image

import jax_crop

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs/figures"
# Grounds are transparent, and these read on light and on dark pages. Wider than 7 inches, text is too small on phones.
OURS, THEIRS, INK = "#a450d6", "#e8590c", "#808080"
WHOLE = np.array([[0, 0, 1, 1]], np.float32)
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 13,
    "font.size": 12,
    "savefig.transparent": True,
    "svg.hashsalt": "jax_crop",
    **dict.fromkeys(["axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"], INK),
}


def geometry() -> plt.Figure:
    """What TensorFlow and plain jnp lose of whole images, and of which sizes."""
    photo = plt.imread(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    small = jax_crop.crop_and_resize(
        photo, jax_crop.boxes.normalize([[100, 130, 350, 380]], photo.shape[:2]), None, (64, 64)
    )
    crops = {
        "TensorFlow": tf.image.crop_and_resize(small, WHOLE, [0], (112, 112), extrapolation_value=-1)[0],
        "jax_crop": jax_crop.crop_and_resize(small, WHOLE, [0], (112, 112), extrapolation_value=-1)[0],
    }
    figure, (upper, lower) = plt.subplots(2, 2, figsize=(7, 7.6), layout="constrained")
    for axes, (title, crop) in zip(upper, crops.items(), strict=True):
        filled = np.where(np.asarray(crop) < 0, [255, 0, 160], crop)
        axes.imshow(filled.round().astype(np.uint8)[72:, 72:], extent=(71.5, 111.5, 111.5, 71.5))
        axes.set(
            title=f"{title}, 64 → 112", xticks=[72, 111], yticks=[72, 111], xlabel="lower right corner of the crop"
        )
    sizes = np.arange(2, 65)
    for axes, lost, title in (
        (lower[0], _lost_by_tensorflow(sizes), "TensorFlow"),
        (lower[1], _lost_by_plain_jnp(sizes), "its formula in jnp, jitted"),
    ):
        axes.imshow(
            lost,
            cmap=ListedColormap(["none", OURS]),
            origin="lower",
            extent=(1.5, 64.5, 1.5, 64.5),
            interpolation="none",
        )
        axes.set(title=f"{title}:\n{lost.mean():.1%} of sizes lose an edge", xlabel="crop size", ylabel="image size")
    return figure


def _lost_by_tensorflow(sizes: np.ndarray) -> np.ndarray:
    """Whether TensorFlow fills samples of whole images of ones, ``[image size, crop size]``."""

    def lost(size, n):
        return bool(
            (tf.image.crop_and_resize(np.ones((1, size, 1, 1), np.float32), WHOLE, [0], [n, 1]).numpy() == 0).any()
        )

    return np.array([[lost(size, n) for n in sizes] for size in sizes])


def _lost_by_plain_jnp(sizes: np.ndarray) -> np.ndarray:
    """The same of its formula, written in jnp."""

    def lost(n, y1, y2):
        def beyond(size):
            y = y1 * (size - 1) + jnp.arange(n) * ((y2 - y1) * (size - 1) / (n - 1))
            return jnp.any((y < 0) | (y > size - 1))

        return jnp.stack([beyond(size) for size in sizes.tolist()])

    return np.stack([jax.jit(lost, static_argnums=0)(n, 0.0, 1.0) for n in sizes.tolist()], axis=1)


def derivatives() -> plt.Figure:
    """A row of six pixels, the surface between them, and its slope."""
    row = jnp.array([1.0, 3.0, 2.0, 2.5, 0.5, 1.5])
    last, fill = row.size - 1, 0.0
    image = row[None, :, None]

    def sample(position):
        x = position / last
        return jax_crop.crop_and_resize(
            image, jnp.array([[0, 0, 0, 0]]) + x * jnp.array([[0, 1, 0, 1]]), None, (1, 1), extrapolation_value=fill
        )[0, 0, 0, 0]

    positions = np.linspace(-0.8, last + 0.8, 2000, dtype=np.float32)
    pixels = np.arange(last + 1, dtype=np.float32)
    values, slopes = jax.vmap(jax.value_and_grad(sample))(positions)
    at_pixels = jax.vmap(jax.grad(sample))(pixels)

    boxes = tf.constant(np.stack([0 * pixels, pixels / last, 0 * pixels, pixels / last], axis=1))
    with tf.GradientTape() as tape:
        tape.watch(boxes)
        crops = tf.image.crop_and_resize(image[None], boxes, np.zeros(len(pixels), np.int32), (1, 1))
    theirs = tape.gradient(crops, boxes).numpy()[:, [1, 3]].sum(axis=1) / last

    figure, (upper, lower) = plt.subplots(2, 1, figsize=(7, 5.4), sharex=True, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    upper.set(title="the surface: the pixels of a row, and what is read between them", ylabel="value")
    lower.set(
        title="its slope, with respect to the position of a sample",
        ylabel="slope",
        xlabel="position (pixel)",
    )
    pieces = [(-1, 0), *((i, i + 1) for i in range(last)), (last, last + 1)]
    for start, stop in pieces:
        within = (positions > start) & (positions < stop)
        upper.plot(positions[within], values[within], color=OURS, linewidth=2)
        lower.plot(positions[within], slopes[within], color=OURS, linewidth=2)
    upper.plot(pixels, row, "o", color=OURS, markersize=9)
    upper.annotate("outside:\nthe fill value", (-0.75, 0.25), color=INK)
    lower.plot(
        pixels,
        at_pixels,
        "o",
        color=OURS,
        markersize=9,
        label="jax_crop on a pixel: toward\nhigher indices, at the last inward",
    )
    lower.plot(pixels, theirs, "x", color=THEIRS, markersize=10, markeredgewidth=2.5, label="TensorFlow on a pixel: 0")
    lower.set_ylim(-2.6, 4.6)
    lower.legend(loc="upper right", frameon=False)
    return figure


def alignment() -> plt.Figure:
    """The samples of four calls on the same object, four by four pixels of an image of six by six."""
    size, n = 6, 3
    ramps = jnp.stack(jnp.meshgrid(jnp.arange(6.0), jnp.arange(6.0), indexing="ij"), axis=-1)  # (y, x) of every pixel
    object_ = [[1.0, 1.0, 5.0, 5.0]]  # its outer edges
    centres = jax_crop.boxes.normalize([[1.0, 1.0, 4.0, 4.0]], (size, size))
    edges = jax_crop.boxes.normalize(object_, (size, size), align_corners=False)

    def samples_of_bins(aligned):  # two samples a bin and axis are one in bins of half the size
        return jax_crop.roi_align(ramps, object_, None, (2 * n, 2 * n), sampling_ratio=1, aligned=aligned)[0]

    panels = {
        "crop_and_resize,\nalign_corners=True:\nthrough pixel centres": (
            jax_crop.crop_and_resize(ramps, centres, None, (n, n))[0],
            (1, 4),
        ),
        "crop_and_resize,\nalign_corners=False:\nalong pixel edges": (
            jax_crop.crop_and_resize(ramps, edges, None, (n, n), align_corners=False)[0],
            (0.5, 4.5),
        ),
        "roi_align,\naligned=True:\nalong edges, averaged": (samples_of_bins(True), (0.5, 4.5)),
        "roi_align,\naligned=False:\nhalf a pixel off": (samples_of_bins(False), (1, 5)),
    }
    figure, every = plt.subplots(2, 2, figsize=(7, 8.2), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.15)
    colours = plt.get_cmap("tab10").colors
    for axes, (title, (samples, (start, stop))) in zip(every.flat, panels.items(), strict=True):
        axes.set(title=title, xlim=(-0.6, 5.6), ylim=(5.6, -0.6), xticks=range(6), yticks=range(6), aspect="equal")
        for line in np.arange(-0.5, 6):
            axes.plot([line, line], [-0.5, 5.5], color=INK, linewidth=0.5)
            axes.plot([-0.5, 5.5], [line, line], color=INK, linewidth=0.5)
        axes.fill([0.5, 4.5, 4.5, 0.5], [0.5, 0.5, 4.5, 4.5], color=OURS, alpha=0.2, linewidth=0)
        y, x = np.mgrid[:6, :6]
        axes.plot(x.ravel(), y.ravel(), ".", color=INK, markersize=5)
        axes.plot([start, stop, stop, start, start], [start, start, stop, stop, start], color=INK, linewidth=2.5)
        per_bin = samples.shape[0] // n
        if per_bin > 1:
            for line in np.linspace(start, stop, n + 1)[1:-1]:
                axes.plot([line, line], [start, stop], color=INK, linewidth=1.2, linestyle=":")
                axes.plot([start, stop], [line, line], color=INK, linewidth=1.2, linestyle=":")
        for i in range(n):
            for j in range(n):
                own = np.asarray(samples)[i * per_bin : (i + 1) * per_bin, j * per_bin : (j + 1) * per_bin].reshape(
                    -1, 2
                )
                axes.plot(own[:, 1], own[:, 0], "o", color=colours[n * i + j], markersize=9 if per_bin == 1 else 6)
    return figure


def tutorial() -> None:
    """Pictures that the tutorial's code saves."""
    sys.path.insert(0, str(ROOT))
    from tests.test_documentation import EXAMPLE

    namespace = {}
    with contextlib.chdir(FIGURES), contextlib.redirect_stdout(None):
        for code, _ in EXAMPLE.findall((ROOT / "docs/tutorial.md").read_text()):
            exec(code, namespace)


def examples() -> None:
    """Pictures of the examples; not that of the detector, which trains for minutes and is drawn on black."""
    for path in sorted((ROOT / "examples").glob("*.py")):
        if path.stem == "detector":
            continue
        with tempfile.TemporaryDirectory() as folder:
            drawn = Path(folder) / "drawn.png"
            sys.argv = [str(path), "--output", str(drawn)]
            with plt.rc_context({"axes.spines.right": True, "axes.spines.top": True, "font.size": 10}):
                runpy.run_path(str(path), run_name="__main__")
            suffix = "png" if path.stem == "quickstart" else "webp"  # README's is shown where WebP may not be
            Image.open(drawn).save(FIGURES / f"{path.stem}.{suffix}", quality=88, method=6, optimize=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or ["geometry", "derivatives", "alignment", "tutorial", "examples"]:
        with plt.style.context(STYLE):
            figure = globals()[name]()
            if figure:
                figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
        print(f"drew {name}")
