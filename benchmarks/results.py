"""Results on disk, so that pages can be written anew, and show several machines."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.measure import Quartiles, Row

FOLDER = Path(__file__).parent / "results"
_PACKAGES = "jax_crop jax jaxlib numpy tensorflow tensorflow-cpu onnxruntime torch torchvision pillow"
_PACKAGES += " opencv-python opencv-python-headless"
KEEP = {  # one arena whose memory is neither mapped anew nor given back
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
}


class Result(NamedTuple):
    """What one part found, and where."""

    machine: dict[str, Any]
    rows: list[dict[str, Any]]


def save(part: str, rows: Sequence[Any]) -> None:
    """Rows are named tuples; what was not measured is left out."""
    path = FOLDER / jax.default_backend() / f"{part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{name: value for name, value in row._asdict().items() if value is not None} for row in rows]
    text = ",\n".join(json.dumps(line, ensure_ascii=False) for line in lines)  # a row is a line
    path.write_text(f'{{"machine": {json.dumps(machine())}, "rows": [\n{text}\n]}}\n')


def load(backend: str, part: str) -> Result | None:
    path = FOLDER / backend / f"{part}.json"
    return Result(**json.loads(path.read_text())) if path.exists() else None


def rows(backend: str, part: str) -> list[Row]:
    result = load(backend, part)
    found = [Row(**row) for row in result.rows] if result else []
    return [row._replace(times=row.times and Quartiles(*row.times)) for row in found]


def machine() -> dict[str, Any]:
    installed = {package.name.lower(): package.version for package in importlib.metadata.distributions()}
    versions = {name: installed[name] for name in _PACKAGES.split() if name in installed}
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "system": f"{platform.system()} {' '.join(platform.libc_ver())}".strip(),
        "versions": {"Python": platform.python_version()} | versions,
        "date": datetime.date.today().isoformat(),
    }


def keeps_freed_memory() -> bool:
    """Whether this process was started with `KEEP`."""
    return os.environ.items() >= KEEP.items()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return model[1] if model else platform.processor()
