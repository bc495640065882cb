"""The documentation is complete, and what it shows is what happens."""

import contextlib
import doctest
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from helpers import readme_parts

import rmac

ROOT = Path(__file__).parent.parent
PUBLIC = {f"rmac.{name}": getattr(rmac, name) for name in rmac.__all__}
PUBLIC |= {
    f"rmac.operators.{name}": getattr(rmac.operators, name) for name in rmac.operators.__all__
}
PUBLIC |= {
    f"rmac.RegionGrid.{name}": getattr(rmac.RegionGrid, name)
    for name in ("coverage", "to_image", "plot")
}
PUBLIC |= {
    f"rmac.Whitening.{name}": getattr(rmac.Whitening, name)
    for name in dir(rmac.Whitening)
    if not name.startswith("_")
}
for framework in ("torch", "jax"):
    with contextlib.suppress(ImportError):
        importlib.import_module(framework)
        module = importlib.import_module(f"rmac.{framework}")
        PUBLIC |= {f"rmac.{framework}.{name}": getattr(module, name) for name in module.__all__}
DOCUMENTED = {
    name: thing
    for name, thing in PUBLIC.items()
    if inspect.isroutine(thing) or inspect.isclass(thing)
}


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_docstrings_are_numpydoc(name):
    validate = pytest.importorskip("numpydoc.validate")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    left_out = settings["tool"]["numpydoc_validation"]["checks"]
    assert left_out[0] == "all"
    errors = validate.validate(name)["errors"]
    assert [error for error in errors if error[0] not in left_out] == []


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_examples_in_docstrings(name):
    names = {"np": np, "rmac": rmac}
    for example in doctest.DocTestFinder(recurse=False).find(DOCUMENTED[name], name, globs=names):
        results = doctest.DocTestRunner().run(example)
        assert results.failed == 0


def readme_python(*, gpu):
    text = "".join(part for heading, part in readme_parts().items() if heading != "Recipes")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [block for block in blocks if ("import cupy" in block) == gpu]


def test_python_in_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where it draws a picture
    blocks = readme_python(gpu=False)
    assert len(blocks) >= 2
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["descriptors"].shape == (8, 512)
    assert names["regions"].shape == (8, 20, 512)
    assert names["grid"].coverage == 1


def test_python_in_the_documentation_of_retrieval_runs():
    text = (ROOT / "docs" / "retrieval.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(block, names)
    assert names["order"][0] == 0
    assert names["ranks"][0] == 7


def test_the_readme_has_no_links_into_the_repository():
    """A package page shows neither pictures nor files of the repository."""
    links = re.findall(r"\]\((.+?)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not link.startswith("https://")] == []


def test_python_in_the_readme_for_a_gpu_runs(xp):
    if xp.__name__ != "cupy":
        pytest.skip("needs a device")
    names = {"rmac": rmac}
    for block in readme_python(gpu=True):
        exec(block, names)
    assert type(names["descriptors"]) is xp.ndarray
    assert names["descriptors"].shape == (8, 2048)
