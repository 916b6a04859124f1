"""Eight devices, quiet logs and Keras on JAX, set before any of them is imported; which cases run; modes of JAX."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["KERAS_BACKEND"] = "jax"  # TensorFlow imports Keras
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# A twentieth of the time each: programs do not say which lines they come from, and processes that are started from here
# keep their memory.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.update(MALLOC_TRIM_THRESHOLD_=str(2**34), MALLOC_TOP_PAD_=str(2**26))

import collections
import contextlib

import jax
import pytest
from hypothesis import HealthCheck, settings
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests import garbage
from tests.covering import few

settings.register_profile(
    "tests",
    deadline=None,  # an example may have to compile
    max_examples=40,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tests")


OPTIMIZED = pytest.mark.optimized
EACH, PAIRS = pytest.mark.covering(1), pytest.mark.covering(2)
STRICT = {  # each can only raise errors: who passes under all of them passes under each
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_enable_checks": True,
    "jax_check_tracer_leaks": True,
}


def pytest_addoption(parser):
    parser.addoption("--every-combination", action="store_true", help="run all cases of tests marked as covering")


def pytest_collection_modifyitems(config, items):
    """The longest first, so that no process waits for another at the end; of covering tests, some combinations."""
    items.sort(key=lambda item: item.path.name not in ("test_small_programs.py", "test_strict.py"))
    if not config.getoption("every_combination"):
        others = _others(items)
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def pytest_sessionstart():
    garbage.search_nothing()  # of all that is imported now


def pytest_collection_finish():
    garbage.search_less()


def _others(items):
    """Those of covering tests that may stay away. Under each JAX, as in CI's environments, they are different ones."""
    tests = collections.defaultdict(list)
    for item in items:
        if marker := item.get_closest_marker("covering"):
            tests[item.path, item.originalname, *marker.args].append(item)
    others = []
    for (_, test, strength), cases in tests.items():
        # By identity, for not all values can be compared.
        combinations = [{name: id(value) for name, value in case.callspec.params.items()} for case in cases]
        chosen = few(combinations, strength, f"{test}, JAX {jax.__version__}")
        others += [case for place, case in enumerate(cases) if place not in chosen]
    return others


@contextlib.contextmanager
def jax_config(**options):
    """JAX under other options for a while."""
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def on_a_mesh(arrays):
    """On two devices that XLA shares the work between: a program has no loops of a CPU there, but runs as on a GPU."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))


@pytest.fixture(autouse=True, scope="module")
def compiled_programs(request):
    """Those of one file of tests at a time: all of them together fill gigabytes.

    XLA's passes are always those of users. The machine code that LLVM makes afterwards, half of the tests' time, is
    optimised only in files that say so, by ``pytestmark = OPTIMIZED``: where rounding and fusing could change a result.
    """
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("optimized") is None)
    yield
    jax.clear_caches()


@pytest.fixture
def strict_jax():
    with jax_config(**STRICT):
        yield


@pytest.fixture
def x64():
    with jax_config(jax_enable_x64=True):
        yield


@pytest.fixture(params=[False, True], ids=["x32", "x64"])
def with_and_without_x64(request):
    with jax_config(jax_enable_x64=request.param):
        yield request.param
