"""What the package promises as a whole: its names, its weight, its versions, one form for every public function."""

import importlib.resources
import inspect
import json
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

import jax_crop

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
OPERATIONS = {name: value for name, value in vars(jax_crop).items() if isinstance(value, types.FunctionType)}
FUNCTIONS = OPERATIONS | {
    f"{module.__name__}.{name}": value
    for module in vars(jax_crop).values()
    if isinstance(module, types.ModuleType) and re.match(r"jax_crop\.[a-z]", module.__name__)
    for name, value in vars(module).items()
    if isinstance(value, types.FunctionType) and value.__module__ == module.__name__ and not name.startswith("_")
}


def of_each(functions):
    return pytest.mark.parametrize("function", functions.values(), ids=functions)


def versions(requirements):
    """`["jax>=1.2", "torch==3.4"]` to `{("jax", "1.2"), ("torch", "3.4")}`."""
    parts = [(text, re.fullmatch(r"([\w-]+)(?:\[\w+\])?[>=]=([\d.]+)", text)) for text in requirements]
    assert all(match for _, match in parts), f"a requirement says no version: {parts}"
    return {match.groups() for _, match in parts}


@pytest.fixture(scope="module")
def fresh_import():
    """What a fresh process sees of `from jax_crop import *`: the names, and the modules loaded beyond JAX's."""
    program = """if True:
        import json, sys, jax
        before = set(sys.modules)
        names = {}
        exec("from jax_crop import *", names)
        packages = {module.partition(".")[0] for module in set(sys.modules) - before}
        print(json.dumps([sorted(set(names) - {"__builtins__"}), sorted(packages - sys.stdlib_module_names)]))
    """
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_public_names(fresh_import):
    assert fresh_import[0] == ["boxes", "crop_and_resize", "multilevel_roi_align", "roi_align"]


def test_import_loads_nothing_but_jax_and_numpy(fresh_import):
    assert set(fresh_import[1]) <= {"jax_crop", "jax", "jaxlib", "numpy"}


def test_runtime_dependencies():
    assert {name for name, _ in versions(PROJECT["dependencies"])} == {"jax", "jaxlib", "numpy"}


def test_type_hints_are_shipped():
    assert importlib.resources.files("jax_crop").joinpath("py.typed").is_file()


def test_lower_bounds_are_what_ci_installs():
    extras = [text for extra in PROJECT["optional-dependencies"].values() for text in extra if "jax_crop[" not in text]
    stated = versions(PYPROJECT["build-system"]["requires"] + PROJECT["dependencies"] + extras)
    assert len(stated) == len(dict(stated)), "a package has two bounds"
    lines = (ROOT / ".ci/oldest.txt").read_text().splitlines()
    oldest = versions(line.split()[0] for line in lines if not line.startswith("#"))
    assert dict(versions(PROJECT["dependencies"])).keys() <= dict(oldest).keys()
    assert {name for name, _ in oldest - stated} == {"editables"}  # which no bound of ours names


def test_version_is_the_same_everywhere():
    version = PROJECT["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()


@of_each(OPERATIONS)
def test_operations_take_arrays_first_and_options_by_keyword(function):
    parameters = inspect.signature(function).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty]
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    tensorflows = ["method", "extrapolation_value"] if function is jax_crop.crop_and_resize else []
    assert required in (
        ["image", "boxes", "box_indices", "crop_size"],
        ["features", "boxes", "box_indices", "output_size"],
    )
    assert positional == required + tensorflows


@of_each(OPERATIONS)
def test_operations_are_documented_in_full(function):
    text = inspect.getdoc(function)
    sections = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert {"Convention", "Args", "Returns", "Raises", "Examples", "Source"} <= set(sections)  # "Example" shows no code
    arguments = re.search(r"^Args:\n((?: .*\n|\n)+)", text, re.MULTILINE)[1]
    assert re.findall(r"^    (\w+):", arguments, re.MULTILINE) == list(inspect.signature(function).parameters)


@of_each(FUNCTIONS)
def test_functions_have_types_and_an_example(function):
    signature = inspect.signature(function)
    assert signature.return_annotation is not signature.empty
    assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())
    assert ">>> " in function.__doc__


@of_each(FUNCTIONS)
def test_switches_are_keyword_only(function):
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.annotation is not bool or parameter.kind is parameter.KEYWORD_ONLY, parameter
