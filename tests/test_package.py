"""What a user sees of the package before calling anything."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import run_python

import rmac

ROOT = Path(__file__).parent.parent


def test_version():
    assert rmac.__version__ == importlib.metadata.version("rmac")
    assert re.search(
        rf"version: '{re.escape(rmac.__version__)}'", (ROOT / "meson.build").read_text()
    )
    assert f"\nversion: {rmac.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_import_is_light():
    """Nothing but itself and the standard library, once NumPy is there."""
    code = (
        "import numpy, sys; before = set(sys.modules)\n"
        "import rmac; print(*set(sys.modules) - before)"
    )
    new = {name.partition(".")[0] for name in run_python(code).stdout.split()}
    foreign = {name for name in new - sys.stdlib_module_names if "cython" not in name}
    assert foreign <= {"rmac", "numpy"}
    assert "rmac" in new


def test_numpy_is_the_one_dependency():
    required = importlib.metadata.requires("rmac")
    always = [line for line in required if "extra ==" not in line]
    assert [re.split(r"[<>=~ ]", line)[0] for line in always] == ["numpy"]


def test_the_source_tree_says_how_to_build_it(tmp_path):
    """Python started at the root of the repository imports the source, which has no kernels."""
    source = tmp_path / "rmac"
    for path in (ROOT / "rmac").rglob("*.py"):
        copy = source / path.relative_to(ROOT / "rmac")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    # -S: without site-packages no editable install of rmac can step in
    code = f"import sys; sys.path[1:1] = {[p for p in sys.path if p]!r}; import rmac"
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: this is the source tree of rmac, without its compiled ")
    assert "pip install ." in last
    assert "ModuleNotFoundError" not in result.stderr


def test_show_config(capsys):
    config = rmac.show_config("dicts")
    assert rmac.show_config() is None
    printed = capsys.readouterr().out
    for name, value in config.items():
        assert f"{name}: {value}\n" in printed
    assert config["rmac"] == rmac.__version__
    assert config["threads"] >= 1
    with pytest.raises(ValueError, match="mode: expected one of 'stdout', 'dicts', got 'json'"):
        rmac.show_config("json")


def test_openmp_is_in_the_build():
    """The wheel is built with it unless -Dopenmp=disabled says otherwise."""
    if os.environ.get("RMAC_TEST_OPENMP") == "disabled":
        assert rmac.show_config("dicts")["OpenMP"] == "not in this build"
    else:
        assert rmac.show_config("dicts")["OpenMP"] >= 201107


PUBLIC_NAMES = [
    "RegionGrid",
    "Whitening",
    "__version__",
    "average_precision",
    "branch_pool",
    "evaluate",
    "expand",
    "localize",
    "merge_scales",
    "operators",
    "quantize",
    "region_grid",
    "region_pool",
    "rerank",
    "rmac",
    "rmac_regions",
    "roi_pool",
    "sequence_grid",
    "show_config",
]
OPERATOR_NAMES = [
    "GradientNotDefinedError",
    "RMACRegionsOp",
    "gradient",
    "register_cpu_operator",
    "register_cuda_operator",
    "run_on_device",
    "should_not_do_gradient",
]


def test_the_public_names_are_exactly_these():
    assert sorted(rmac.__all__) == PUBLIC_NAMES
    assert sorted(rmac.operators.__all__) == OPERATOR_NAMES
    for name in OPERATOR_NAMES:
        assert hasattr(rmac.operators, name)


def test_the_package_holds_public_names_and_submodules():
    """Nothing else that a user could take for public."""
    submodules = {name for name in dir(rmac) if f"rmac.{name}" in sys.modules}
    others = {name for name in dir(rmac) if not name.startswith("_")} - submodules
    public = {name for name in PUBLIC_NAMES if not name.startswith("_")}
    assert others | {"operators"} == public


def test_commands_are_modules_of_the_command_line_alone():
    """`rmac.evaluate` is a function and no command."""
    names = run_python("import rmac.cli, sys; print(*sys.modules)").stdout.split()
    modules = {path.stem for path in (ROOT / "rmac" / "cli").glob("*.py")} - {"__init__"}
    assert "describe" in modules
    assert "rmac.cli" in names
    assert not {f"rmac.{name}" for name in modules} & set(names)
