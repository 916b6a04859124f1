"""What the compilers of TPUs and GPUs make of a function, where there is no such device; they execute nothing.

``look(crop, jax.ShapeDtypeStruct(...), ..., platform="v5e")`` is the view of a program. What to install is in
`benchmarks/accelerators_page.py`. Import this before JAX, which reads the environment made here.
"""

import functools
import importlib.util
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is there to be locked
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}
if importlib.util.find_spec("jax_cuda12_plugin"):
    _NVCC = importlib.util.find_spec("nvidia.cuda_nvcc").submodule_search_locations[0]
    os.environ["PATH"] = f"{_NVCC}/bin{os.pathsep}{os.environ['PATH']}"  # for its ptxas
    os.environ["XLA_FLAGS"] = (  # nothing can be timed here
        f"--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false --xla_gpu_cuda_data_dir={_NVCC}"
    )

import jax
from jax._src import xla_bridge
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

_H100 = Path(__file__).with_name("h100.txtpb")


class Platform(NamedTuple):
    """The compiler, what that calls the devices, and a TPU's clock in GHz."""

    compiler: str
    topology: str
    clock: float | None


# The clocks are the peaks of bfloat16 operations over those of a cycle, two in each cell of four matrix units:
# 197e12 / (4 * 128**2 * 2), and 918e12 / (4 * 256**2 * 2). A large product's estimate is 88 % and 70 % of these peaks.
PLATFORMS = {
    "v5e": Platform("tpu", "v5e:2x2", 1.5),
    "v6e": Platform("tpu", "v6e:2x2", 1.75),
    "pod": Platform("tpu", "v5e:16x16", 1.5),
    "h100": Platform("cuda", "1x1x1", None),
}


class View(NamedTuple):
    """A program: everything is counted as often as it runs, so with all steps of each loop.

    Attributes:
        cycles: the compiler's estimate; there is none of native gathers and scatters, nor for GPUs.
        milliseconds: the same at the platform's clock.
        longest_loop: steps.
        gathers: of a TPU, native ones; of a GPU, those within kernels.
        scatters: of a TPU, native ones; of a GPU, atomic additions.
        kernels: launched, on a GPU.
        temporaries: bytes.
        collectives: how many of each kind.
    """

    cycles: int
    milliseconds: float | None
    longest_loop: int
    gathers: int
    scatters: int
    kernels: int
    temporaries: int
    collectives: dict[str, int]


def look(function: Callable[..., Any], *shapes: Any, platform: str = "v5e") -> View:
    """Compile and view. Shapes are trees of `jax.ShapeDtypeStruct`; those without a sharding are on one device."""
    return view(compiled(function, *shapes, platform=platform), platform)


def compiled(function: Callable[..., Any], *shapes: Any, platform: str = "v5e") -> jax.stages.Compiled:
    """The program; its `as_text()` shows everything."""
    one = SingleDeviceSharding(devices(platform)[0])
    shapes = jax.tree.map(lambda s: s if s.sharding else jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=one), shapes)
    return jax.jit(function).trace(*shapes).lower(lowering_platforms=(PLATFORMS[platform].compiler,)).compile()


@functools.cache
def devices(platform: str) -> list[Any]:
    compiler, topology, _ = PLATFORMS[platform]
    if compiler == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    # Without a device JAX does not know which kind of GPU is meant.
    known = xla_bridge.canonicalize_platform
    xla_bridge.canonicalize_platform = lambda name: "cuda" if name == "gpu" else known(name)
    return topologies.get_topology_desc(platform="cuda", topology=topology, target_config=_H100.read_text()).devices


# ---- reading the optimised program

_OPCODE = re.compile(r" = .*? ([a-z][a-z0-9-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply)=%([^\s,)]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
_NOT_A_KERNEL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}
Program = Mapping[str, list[str]]  # the instructions of each computation


def view(program: jax.stages.Compiled, platform: str) -> View:
    text = program.as_text()
    computations = {
        name: body.splitlines() for name, body in re.findall(r"^(?:ENTRY )?%(\S+) .*\{\n((?:  .*\n)*)\}", text, re.M)
    }
    entry = re.search(r"^ENTRY %(\S+)", text, re.M)[1]
    runs = list(_runs(computations, entry))
    cycles = _cycles(runs)
    clock = PLATFORMS[platform].clock
    opcodes = Counter()
    for line, times in runs:
        for inner in _within(computations, line):
            opcodes[_opcode(inner).removesuffix("-start")] += times
    return View(
        cycles=cycles,
        milliseconds=cycles / clock / 1e6 if clock else None,
        longest_loop=max((_steps(computations, line) for line, _ in runs if _opcode(line) == "while"), default=0),
        gathers=opcodes["gather"],
        scatters=opcodes["scatter"],
        kernels=sum(times for line, times in runs if _opcode(line) not in _NOT_A_KERNEL),
        temporaries=program.memory_analysis().temp_size_in_bytes,
        collectives={name: opcodes[name] for name in _COLLECTIVES if name in opcodes},
    )


def _runs(program: Program, computation: str, times: int = 1) -> Iterator[tuple[str, int]]:
    """Each instruction, and how often it runs; of a conditional's branches the quickest: that of finite pixels."""
    for line in program[computation]:
        yield line, times
        opcode = _opcode(line)
        if opcode == "while":
            body = re.search(r"body=%([^\s,]+)", line)[1]
            yield from _runs(program, body, times * _steps(program, line))
        elif opcode == "conditional":
            names = re.findall(r"%([^\s,}]+)", re.search(r"(branch_computations=|true_computation=).*", line)[0])
            branches = [list(_runs(program, name, times)) for name in names if name in program]
            yield from min(branches, key=_cycles)
        elif opcode in ("call", "async-start"):
            yield from _runs(program, _CALLED.search(line)[1], times)


def _within(program: Program, line: str) -> Iterator[str]:
    """An instruction, and if it is a fusion all that are in it."""
    yield line
    if _opcode(line) == "fusion":
        for inner in program[_CALLED.search(line)[1]]:
            yield from _within(program, inner)


def _opcode(line: str) -> str:
    return _OPCODE.search(line)[1]


def _cycles(runs: Any) -> int:
    return sum(int(match[1]) * times for line, times in runs if (match := _CYCLES.search(line)))


def _steps(program: Program, line: str) -> int:
    """Of a loop: what the compiler says of it, else what its condition compares with; 1 if neither is known."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    condition = program[re.search(r"condition=%([^\s,]+)", line)[1]]
    everything = [inner for each in condition for inner in _within(program, each)]
    return max((int(n) for each in everything for n in re.findall(r" constant\((\d+)\)", each)), default=1)
