"""Each fact stands in one table, and what repeats it, such as a type or a text, agrees with it."""

import ast
import inspect
import re
from pathlib import Path
from typing import get_args

import pytest
from test_docs import DOCUMENTED

import rmac
from rmac import _arrays, _backend, _dtypes, _options, _typing, operators, regions
from rmac.cpu import isa

PACKAGE = Path(__file__).parent.parent / "rmac"
MODULES = [path for path in PACKAGE.rglob("*.py") if "\n__all__ = " in path.read_text("utf-8")]
INSTALLED = {".py", ".pyi", ".cu", ".npz", ".typed"}


def test_every_file_is_named_in_the_build():
    text = (PACKAGE / "meson.build").read_text()
    files = [path for path in PACKAGE.rglob("*") if path.suffix in INSTALLED]
    assert len(files) > 40
    missing = [
        name for path in files if f"'{(name := path.relative_to(PACKAGE).as_posix())}'" not in text
    ]
    assert missing == []


def names_of(tree):
    """All names of a module; and the documented functions and classes, or imports without any."""
    definitions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    documented = {
        node.name
        for node in definitions
        if not node.name.startswith("_") and "\n---" in (ast.get_docstring(node) or "")
    }
    known = imported | assigned | {node.name for node in definitions}
    return known, documented if definitions else imported


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_lists_what_it_documents(path):
    """In `__all__`, read from the source: frameworks may be missing."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (listed,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    known, documented = names_of(tree)
    assert known >= set(listed)
    if path != PACKAGE / "__init__.py":  # test_package.py has its names
        assert documented <= set(listed)


def test_results_do_not_depend_on_the_flags_of_the_compiler():
    """All kernels are compiled with those that meson.build requires."""
    text = (PACKAGE.parent / "meson.build").read_text()
    needed = re.search(r"foreach needed : \[(.*?)\]", text)[1].split(", ")
    assert needed == ["'-fwrapv'", "'-ffp-contract=off'"]
    arguments = re.search(r"^kernel_args = .*?^\]", text, re.MULTILINE | re.DOTALL)[0]
    assert all(flag in arguments for flag in needed)
    text = (PACKAGE / "meson.build").read_text()
    compiled = re.findall(r"^ *c_args: (\w+)", text, re.MULTILINE)
    assert compiled == ["kernel_args"] * len(re.findall(r"py\.extension_module\(", text))


def test_the_build_has_the_instruction_sets_that_python_chooses_among():
    text = (PACKAGE / "meson.build").read_text()
    built = re.findall(r"'([\w-]+)': \[", text)
    assert built == list(isa.ISAS)
    text = (PACKAGE.parent / ".ci" / "check_wheels.py").read_text()
    names = re.search(r'^ISAS = .*"x86_64": \[(.*?)\]', text, re.MULTILINE)[1]
    assert re.findall(r'"(.*?)"', names) == [name.replace("-", "_") for name in isa.ISAS]
    text = (PACKAGE.parent / "README.md").read_text()
    named = re.search(r"^`RMAC_ISA=(.*?) chooses another", text, re.MULTILINE)[1]
    assert re.findall(r"([\w-]+)`", named) == list(isa.ISAS)


def test_names_that_users_write_are_those_of_the_code():
    assert tuple(pool.value for pool in _options.Pool) == _options.POOLS
    names = {aggregate.name.lower() for aggregate in _options.Aggregate}
    assert set(_options.AGGREGATES) == names
    assert tuple(regions.PRESETS) == _options.PRESETS
    assert tuple(_arrays.MAP_AXES) == _options.LAYOUTS
    assert set(_options.MAP_LAYOUTS) == {
        name for name, axes in _arrays.MAP_AXES.items() if len(axes) == 4
    }


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_choices_in_docstrings_are_all_that_there_are(name):
    documented = re.findall(
        r"^ *(\w+)(?:, \w+)* : \{(.*?)\}", DOCUMENTED[name].__doc__, re.MULTILINE
    )
    for parameter, choices in documented:
        annotation = inspect.signature(DOCUMENTED[name]).parameters[parameter].annotation
        if annotation in vars(_options):
            expected = get_args(getattr(_options, annotation))
            assert tuple(re.findall(r'"(.*?)"', choices)) == expected, parameter


def test_every_option_with_names_is_documented_with_them():
    for function in (
        rmac.rmac,
        rmac.region_pool,
        rmac.roi_pool,
        rmac.region_grid,
        rmac.sequence_grid,
    ):
        for parameter in inspect.signature(function).parameters.values():
            if parameter.annotation in ("PoolName", "AggregateName", "Layout", "MapLayout"):
                assert re.search(rf"^ *{parameter.name}\b.* : \{{", function.__doc__, re.MULTILINE)


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_dtypes_in_docstrings_are_all_that_there_are(name):
    for listed in re.findall(
        r"(?:float16, .*?)[.,] in any\s+strides", DOCUMENTED[name].__doc__, re.DOTALL
    ):
        assert " ".join(listed.split()).startswith(_dtypes.DTYPE_NAMES)


@pytest.mark.parametrize(
    ("function", "keywords"),
    [
        (rmac.rmac, _typing.RMACKeywords),
        (rmac.region_pool, _typing.RegionPoolKeywords),
        (rmac.roi_pool, _typing.RoIPoolKeywords),
        (rmac.region_grid, _typing.GridKeywords),
    ],
)
def test_type_checkers_know_every_option(function, keywords):
    parameters = inspect.signature(function).parameters.values()
    options = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert options - {"whitening"} == set(keywords.__annotations__)


def test_backends_are_twins():
    """They have all that the seam asks for, under the same names, and say so."""
    members = {name for name in vars(_backend.Backend) if not name.startswith("_")}
    members |= set(_backend.Backend.__annotations__)
    for backend in _backend.BACKENDS.values():
        assert set(backend.__all__) == set(_backend.HOST.__all__) >= members
        for name in backend.__all__:
            assert hasattr(backend, name)
    devices = [one for backend in _backend.BACKENDS.values() for one in backend.DLPACK_DEVICES]
    assert len(devices) == len(set(devices))


def test_users_can_name_every_backend():
    for device, backend in _backend.BACKENDS.items():
        library = backend.ARRAY.partition(".")[0]
        assert f"register_{device}_operator" in operators.__all__
        assert f'"{device}"' in operators.run_on_device.__doc__
        assert callable(getattr(rmac.Whitening, f"to_{library}"))


def test_nothing_but_the_seam_knows_the_backends():
    """A third one is a folder, and a line in the seam."""
    known, backends = {"_backend.py", "_config.py", "_floats.py"}, "|".join(_backend.BACKENDS)
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE)
        if inside.parts[0] in _backend.BACKENDS or inside.name in known:
            continue
        imports = re.findall(
            r"^ *(?:from|import) .*", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        assert not [
            line for line in imports if re.search(rf"rmac[. ].*\b({backends})\b|\bcupy\b", line)
        ], path
