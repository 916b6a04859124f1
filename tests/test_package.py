"""What the package promises as a whole: its names, its weight, its versions, one form for every public function."""

import ast
import importlib.resources
import inspect
import json
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.extend.core import Primitive

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


def test_nothing_private_of_jax_is_imported():
    """``import jax._src``, ``from jax._src import`` and ``from jax import _src``."""
    imported = set()
    for path in (ROOT / "jax_crop").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    of_jax = {name for name in imported if name.split(".")[0] in ("jax", "jaxlib")}
    assert of_jax
    assert [name for name in of_jax if "._" in name] == []


IMAGES, BOXES, SIZE = np.ones((3, 6, 9, 2), np.float32), np.zeros((3, 5, 4), np.float32), (4, 5)
FORMS = {
    "indices": (IMAGES, BOXES[0], np.zeros(5, np.int32)),
    "one image": (IMAGES[0], BOXES[0], None),
    "boxes of each image": (IMAGES, BOXES, None),
}


def primitives(jaxpr):
    """Of all equations, and of those within their parameters."""
    for equation in jaxpr.eqns:
        yield equation.primitive
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(value, "eqns"):
                yield from primitives(value)


def pool_of_pyramid(features, *arguments):
    return jax_crop.multilevel_roi_align([features, features[..., ::2, ::2, :]], *arguments)


def antialiased(*arguments):
    return jax_crop.crop_and_resize(*arguments, antialias=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("operation", [jax_crop.crop_and_resize, antialiased, jax_crop.roi_align, pool_of_pyramid])
def test_results_are_of_primitives_that_jax_defines(operation, form):
    """So all that JAX, its exporters and other interpreters of jaxprs know to do with its primitives works.

    On one device, as most processes have: here there are eight, which may be on a mesh that only a lowering knows.
    """
    image, boxes, indices = FORMS[form]
    with jax.set_mesh(jax.make_mesh((1,), ("one",))):
        jaxpr = jax.make_jaxpr(lambda *arguments: operation(*arguments, SIZE))(image, boxes, indices)
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "jax"]
    of_jax = {id(value) for module in modules for value in vars(module).values() if isinstance(value, Primitive)}
    found = set(primitives(jaxpr))
    within_branches = "while" if operation is antialiased else "gather"
    assert {primitive.name for primitive in found} >= {within_branches, "jit"}
    assert [primitive.name for primitive in found if id(primitive) not in of_jax] == []


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
