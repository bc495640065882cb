"""Each fact stands in one table, and what repeats it, such as a type or a text, agrees with it."""

import inspect
import re
from pathlib import Path
from typing import get_args

import pytest
from test_docs import DOCUMENTED

import rmac
from rmac import _arrays, _backend, _dtypes, _options, _typing, regions

PACKAGE = Path(__file__).parent.parent / "rmac"
INSTALLED = {".py", ".pyi", ".cu", ".npz", ".typed"}


def test_every_file_is_named_in_the_build():
    text = (PACKAGE / "meson.build").read_text()
    files = [path for path in PACKAGE.rglob("*") if path.suffix in INSTALLED]
    assert len(files) > 40
    missing = [
        name for path in files if f"'{(name := path.relative_to(PACKAGE).as_posix())}'" not in text
    ]
    assert missing == []


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
