"""Compile every operation for TPUs and a GPU, none of which need be there: the tables of docs/accelerators.md.

``python -m benchmarks accelerators [PLATFORM...] [TEXT...]``: v5e, v6e, h100, or pod (what 256 TPUs communicate); by
default those that this environment has the compiler for. Texts choose the lines that have them all, say ``"8×224" "box
gradient"``, and then nothing is written. A line takes about half a minute for a TPU.

The TPUs' compiler goes along with other packages: ``pip install --editable '.[accelerators]'``. The GPU's wants an
environment of its own, since most of CUDA, on which its packages depend, is of no use without a GPU::

    python -m venv .venv-gpu
    .venv-gpu/bin/pip install --editable . jax==0.10.2
    .venv-gpu/bin/pip install --no-deps jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2 nvidia-cuda-nvcc-cu12
    .venv-gpu/bin/python -m benchmarks accelerators h100
"""

import functools
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accelerators import PLATFORMS, View, devices, look  # sets what JAX reads when imported

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_crop
from benchmarks.cases import CROPS, ROIS, Case, abstract, edges
from benchmarks.memory import MIB, OPERATIONS
from benchmarks.peers import jax_function, ours, plain

PAGE = Path(__file__).parent.parent / "docs" / "accelerators.md"
TITLES = {"v5e": "TPU v5e", "v6e": "TPU v6e", "h100": "H100", "pod": "256 TPUs"}
_PACKAGE = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}
_INDICES, _EACH_IMAGE, _EACH_BOX = "", "[B, N, 4]", "vmap over boxes"
SETTINGS = (
    (Case(((8, 64, 64, 256),), 512, (14, 14), strides=(16,)), _EACH_IMAGE),
    (CROPS[0], _EACH_IMAGE),
    (ROIS[1], _EACH_BOX),
    (CROPS[4], _EACH_BOX),
    *((case, _INDICES) for case in (*ROIS, *CROPS)),
)


def products(case: Case, maps: Any, boxes: jax.Array, box_indices: jax.Array, levels: jax.Array) -> jax.Array:
    """Interpolation as two matrix products in float32's precision, images below each other."""
    crops = 0
    for level, image in enumerate(maps):
        batch, height, width, channels = image.shape
        y1, x1, y2, x2 = edges(case, boxes, level)
        of_image = jax.nn.one_hot(box_indices, batch) * (levels == level)[:, None]
        rows = of_image[:, None, :, None] * _hats(y1, y2, height, case.size[0], case.samples)[:, :, None, :]
        rows = rows.reshape(*rows.shape[:2], batch * height)
        columns = _hats(x1, x2, width, case.size[1], case.samples)
        tall = image.reshape(batch * height, width, channels).astype(jnp.float32)
        crops += jnp.einsum("nhy,nwx,yxc->nhwc", rows, columns, tall, precision="highest")
    return crops.astype(case.crops_dtype)


def _hats(first: jax.Array, last: jax.Array, pixels: int, bins: int, samples: int) -> jax.Array:
    """What each pixel weighs in the mean of each bin's samples, ``[N, bins, pixels]``."""
    fractions = jnp.linspace(0, 1, bins * samples)
    positions = (first[:, None] + (last - first)[:, None] * fractions) * (pixels - 1)
    inside = (positions >= 0) & (positions <= pixels - 1)
    weights = jnp.maximum(0, 1 - jnp.abs(positions[..., None] - jnp.arange(pixels))) * inside[..., None]
    return weights.reshape(-1, bins, samples, pixels).mean(2)


IMPLEMENTATIONS = {"jax_crop": ours, "matrix products": products, "jnp gather": plain}


def in_form(crop: Callable[..., jax.Array], form: str) -> Callable[..., jax.Array]:
    """The same crops asked for in another way. Only we take images without indices: else a batch of one is mapped."""

    def of_image(case: Case, maps: Any, boxes: jax.Array, levels: jax.Array) -> jax.Array:
        if crop is ours:
            return ours(case, maps, boxes, None, levels)
        indices = jnp.zeros(len(boxes), jnp.int32)
        return crop(case._replace(boxes=len(boxes)), [m[None] for m in maps], boxes, indices, levels)

    def each_image(case: Case, maps: Any, boxes: jax.Array, _: jax.Array, levels: jax.Array) -> jax.Array:
        boxes, levels = (x.reshape(len(maps[0]), -1, *x.shape[1:]) for x in (boxes, levels))
        images = functools.partial(of_image, case) if crop is ours else jax.vmap(functools.partial(of_image, case))
        return images(maps, boxes, levels).reshape(case.crops_shape)

    def each_box(case: Case, maps: Any, boxes: jax.Array, _: jax.Array, levels: jax.Array) -> jax.Array:
        image = [m[0] for m in maps]
        return jax.vmap(lambda box, level: of_image(case, image, box[None], level[None])[0])(boxes, levels)

    return {_INDICES: crop, _EACH_IMAGE: each_image, _EACH_BOX: each_box}[form]


class Row(NamedTuple):
    """One line of a table; a view is None where the compiler finds that a program needs more memory than there is."""

    setting: str
    operation: str
    views: dict[str, View | None]


def single(platform: str, texts: Sequence[str]) -> Iterator[Row]:
    """All settings on one device."""
    for case, form in SETTINGS:
        setting = f"{case.name}{form and ', '}{form}"
        for operation in OPERATIONS:
            if operation in case.operations and all(text in f"{setting}, {operation}" for text in texts):
                views = {
                    name: _view(jax_function(in_form(crop, form), case, operation), platform, abstract(case))
                    for name, crop in IMPLEMENTATIONS.items()
                }
                yield Row(setting, operation, views)


def _view(function: Callable[..., Any], platform: str, *shapes: Any) -> View | None:
    try:
        return look(function, *shapes, platform=platform)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


# ---- a pod

LAYOUTS = {  # the mesh, and how images, boxes and what belongs to channels are sharded
    "batch": ((256,), P("data"), P("data"), P()),
    "batch and boxes": ((64, 4), P("data"), P("data", "model"), P()),
    "batch and channels": ((64, 4), P("data", None, None, "model"), P("data"), P("model")),
}
DETECTORS: dict[str, Callable[..., jax.Array]] = {
    "crop_and_resize": lambda maps, boxes: jax_crop.crop_and_resize(maps, boxes / 1024, None, (7, 7)),
    "roi_align": lambda maps, boxes: jax_crop.roi_align(maps, boxes, None, (7, 7), spatial_scale=1 / 16),
    "multilevel_roi_align": lambda maps, boxes: jax_crop.multilevel_roi_align(
        (maps, maps[:, ::2, ::2]), boxes, None, (7, 7), strides=(16, 32)
    ),
}


def pod(platform: str, texts: Sequence[str]) -> Iterator[Row]:
    """Training steps of a detector's head, 64 boxes in each of 256 maps."""
    for name, crop in DETECTORS.items():
        for layout in LAYOUTS:
            if all(text in f"{name}, {layout}" for text in texts):
                kinds = (AxisType.Auto, AxisType.Explicit)
                views = {f"{kind.name} mesh": _step_on_pod(crop, layout, kind, platform) for kind in kinds}
                yield Row(f"{name}, {layout}", "training step", views)


def _step_on_pod(crop: Callable[..., jax.Array], layout: str, kind: AxisType, platform: str) -> View | None:
    shape, of_maps, of_boxes, of_channels = LAYOUTS[layout]
    axes = ("data", "model")[: len(shape)]
    mesh = Mesh(np.array(devices(platform)).reshape(shape), axes, axis_types=(kind,) * len(shape))

    def struct(shape: tuple[int, ...], spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    def loss(scale: jax.Array, shift: jax.Array, head: jax.Array, maps: jax.Array, boxes: jax.Array) -> jax.Array:
        crops = crop(maps * scale, boxes + shift)  # so that there are gradients in both
        return jnp.mean(jnp.sum(crops * head, (2, 3, 4)) ** 2)

    parameters = struct((256,), of_channels), struct((4,), P()), struct((7, 7, 256), P(None, None, *of_channels))
    data = struct((256, 64, 64, 256), of_maps), struct((256, 64, 4), of_boxes)
    with jax.set_mesh(mesh):
        return _view(jax.value_and_grad(loss, (0, 1, 2)), platform, *parameters, *data)


# ---- the page


def write(platform: str, rows: Sequence[Row]) -> None:
    """The platform's section, in place of the one before."""
    heading = f"## {TITLES[platform]}\n"
    before, _, after = PAGE.read_text().partition(heading)
    package = _PACKAGE[PLATFORMS[platform].compiler]
    parts = [heading, f"\njax {jax.__version__}, {package} {importlib.metadata.version(package)}.\n"]
    for operation in dict.fromkeys(row.operation for row in rows):
        here = [row for row in rows if row.operation == operation]
        table = [["", *here[0].views], ["---"] + ["---:"] * len(here[0].views)]
        table += [[row.setting, *(cell(view, platform) for view in row.views.values())] for row in here]
        parts.append(f"\n### {operation.capitalize()}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in table))
    rest = after.partition("\n## ")
    PAGE.write_text(before + "".join(parts) + rest[1] + rest[2])


def cell(view: View | None, platform: str) -> str:
    if view is None:
        return "needs more memory than there is"
    if platform == "pod":
        return ", ".join(_count(n, kind) for kind, n in view.collectives.items()) or "nothing"
    parts = [
        _count(view.kernels, "kernel") if view.milliseconds is None else f"{_number(view.milliseconds)} ms",
        _count(view.gathers, "gather") if view.gathers and platform != "h100" else "",
        _count(view.scatters, "scatter") if view.scatters else "",
        f"loop of {view.longest_loop:,}" if view.longest_loop else "",
    ]
    return f"{', '.join(filter(None, parts))}; {_number(view.temporaries / MIB)} MiB"


def _number(value: float) -> str:
    return f"{value:,.{0 if value >= 10 else 2}f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def main(names: Sequence[str]) -> None:
    here = [name for name, kind in PLATFORMS.items() if importlib.util.find_spec(_PACKAGE[kind.compiler])]
    platforms = [name for name in names if name in PLATFORMS] or here
    if missing := [name for name in platforms or PLATFORMS if name not in here]:
        sys.exit(f"no compiler here for {', '.join(missing)}.\n\n{__doc__}")
    texts = [name for name in names if name not in PLATFORMS]
    for platform in platforms:
        rows = []
        for row in (pod if platform == "pod" else single)(platform, texts):
            cells = "; ".join(f"{name}: {cell(view, platform)}" for name, view in row.views.items())
            print(f"{platform}, {row.setting}, {row.operation}: {cells}", flush=True)
            rows.append(row)
            if not texts:  # at once, for all of them take long
                write(platform, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
