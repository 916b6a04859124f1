"""Every Python block of README and docs runs, and does what the text block after it shows."""

import contextlib
import doctest
import io
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
EXAMPLE = re.compile(r"^```python\n(?!--8<--)(.*?)^```$(?:\n+^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
SNIPPET = re.compile(r'^```python\n--8<-- "(.*)"\n```$', re.MULTILINE)  # a whole file, shown by the site


def of_each(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def output_of(code, name, namespace):
    """What the code prints, and the error that it ends with, if any."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            exec(compile(code, name, "exec"), namespace)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
    return output.getvalue()


@of_each([page for page in PAGES if EXAMPLE.search(page.read_text())])
def test_code_does_what_the_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where blocks may write files
    text, namespace = page.read_text(), {"__name__": "__main__"}
    with np.printoptions():  # what a page sets is its own
        for match in EXAMPLE.finditer(text):
            lines_before = text.count("\n", 0, match.start(1))
            got = output_of("\n" * lines_before + match[1], str(page), namespace)
            if not doctest.OutputChecker().check_output(match[2] or "", got, doctest.ELLIPSIS):
                pytest.fail(f"line {lines_before + 1} of {page.name} shows\n{match[2]}\nbut does\n{got}")


@of_each(PAGES)
def test_no_block_goes_untested(page):
    text = page.read_text()
    assert set(re.findall(r"^ *```([^\n]+)$", text, re.MULTILINE)) <= {"python", "text", "bash"}
    files = SNIPPET.findall(text)
    assert text.count("```python") == len(EXAMPLE.findall(text)) + len(files)
    assert [file for file in files if not re.fullmatch(r"examples/\w+\.py", file)] == []  # .ci/run runs those


def test_site_shows_every_example():
    shown = SNIPPET.findall((ROOT / "docs/examples.md").read_text())
    assert sorted(shown) == sorted(f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py"))


def test_links_of_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_commands_of_readme_are_those_of_ci():
    readme = (ROOT / "README.md").read_text()
    commands = "".join(re.findall(r"^```bash\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"'\.\[(\w+)\]'", commands)) == {"examples", "test"} <= set(extras)
    assert "/python -m pytest -n 2\n" in commands
    assert "peers -m pytest -n 2\n" in (ROOT / ".ci/run").read_text()
    assert all((ROOT / script).exists() for script in re.findall(r"examples/\w+\.py", commands))
