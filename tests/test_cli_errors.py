"""Whatever fails is one line of bearable length with status 2, and outputs stay private."""

import os
import re
import stat
import subprocess
import sys

import numpy as np
import pytest
from helpers import error_of

import rmac
from rmac.cli import demo, main

PROGRAMS = {
    "python -m": [sys.executable, "-P", "-m", "rmac"],
    "script": [os.path.join(os.path.dirname(sys.executable), "rmac")],
}


def run(*command, **options):
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, cwd="/", **options
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_import_that_fails_is_one_line(program):
    if not os.path.exists(PROGRAMS[program][0]):
        pytest.skip("needs the script installed")
    result = run(*PROGRAMS[program], "demo", env=os.environ | {"RMAC_ISA": "x\n" * 400})
    assert result.returncode == 2
    assert result.stderr.startswith("rmac: error: RMAC_ISA: expected one of baseline")
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 550


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_import_that_is_interrupted_is_one_line(program, tmp_path):
    if not os.path.exists(PROGRAMS[program][0]):
        pytest.skip("needs the script installed")
    tmp_path.joinpath("numpy.py").write_text("raise KeyboardInterrupt")
    result = run(*PROGRAMS[program], "demo", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (result.returncode, result.stderr) == (130, "rmac: interrupted\n")


def test_an_import_that_fails_is_an_exception_elsewhere():
    code = "try: import rmac\nexcept ImportError as error: print(error)"
    result = run(sys.executable, "-P", "-c", code, env=os.environ | {"RMAC_ISA": "x"})
    assert result.stdout.startswith("RMAC_ISA: expected one of")


def test_threads_that_are_no_number_are_one_line_of_rmac():
    environment = os.environ | {"OMP_NUM_THREADS": "1" * 5000}
    result = run(*PROGRAMS["python -m"], "demo", env=environment)
    lines = [line for line in result.stderr.splitlines() if line and "libgomp" not in line]
    assert "Traceback" not in result.stderr
    assert result.returncode in (0, 2)
    assert len(lines) == (result.returncode == 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe"], "the following arguments are required: FEATURES, -o/--output"),
        (["demo", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["describe", "x", "-o", "y", "--levels", "a" * 5000], "argument --levels: invalid int"),
        (["describe", "x", "-o", "y", "--pool", "median"], "argument --pool: invalid choice"),
        (["nothing"], "argument command: invalid choice"),
    ],
)
def test_usage_errors_are_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert re.match(r"rmac( \w+)?: error: ", error)
    assert message in error
    assert error.endswith(" --help\n")
    assert error.count("\n") == 1
    assert len(error) < 550


FLAGS = {
    "describe": [
        ["--levels", "0"],
        ["--overlap", "2"],
        ["--workers", "0"],
        ["--p", "nan"],
        ["--eps", "-1"],
    ],
    "whiten": [["--dim", "0"], ["--dim", "9"], ["--eps", "-1"]],
    "apply": [["--key", "x"]],
    "locate": [["--step", "0"], ["--tolerance", "0"], ["--aspect", "0"], ["--workers", "0"]],
    "rerank": [["--levels", "0"], ["--top", "0"], ["--expand", "0"], ["--sweeps", "-1"]],
}


def test_errors_about_options_name_the_flag(command, suffix, tmp_path, capsys):
    for flag, value in FLAGS[command[0]]:
        assert main([*command, "-o", str(tmp_path / f"o{suffix}"), flag, value]) == 2
        assert error_of(capsys, command[0]).startswith(f"{flag}: expected ")


def test_a_long_header_is_cut_from_its_error(tmp_path, capsys):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1, " * 20_000 + b"), }"
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
    assert main(["describe", str(path), "-o", str(tmp_path / "d.npy")]) == 2
    error = error_of(capsys, "describe")
    assert error.startswith(f"{path}: not a .npy file")
    assert len(error) <= 500


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    path = tmp_path / "\x1b[31m\u202e\udcff.npy"
    assert main(["describe", str(path), "-o", str(tmp_path / "d.npy")]) == 2
    assert r"\x1b[31m\u202e\udcff.npy: No such file" in error_of(capsys, "describe")


@pytest.mark.parametrize("error", [KeyError("secret"), RecursionError("deep"), ZeroDivisionError()])
def test_an_error_of_rmac_itself_is_one_line(monkeypatch, capsys, error):
    def fail():
        raise error

    monkeypatch.setattr(demo, "feature_maps", fail)
    assert main(["demo"]) == 2
    said = error_of(capsys, "demo")
    assert said.startswith(f"unexpected {type(error).__name__}: ")
    assert said.endswith("; please report it")


def test_an_output_that_cannot_be_printed_is_an_error():
    with open("/dev/full", "w") as full:
        command = [*PROGRAMS["python -m"], "demo"]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        result = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd="/",
            env=environment,
        )
    assert result.returncode == 2
    assert result.stderr == "rmac demo: error: [Errno 28] No space left on device\n"


def test_messages_do_not_get_into_the_output(tmp_path):
    """Where a descriptor of the standard streams is closed, the next file would get its number."""
    x = np.ones((3, 8, 9, 12), "float32")
    x[1] = 0  # which is told
    np.save(tmp_path / "x.npy", x)
    command = [*PROGRAMS["python -m"], "describe", tmp_path / "x.npy", "-o", tmp_path / "d.npy"]
    closed = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash"]
    assert run(*closed, *command).returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), rmac.rmac(x))
    code = "import os, sys; from rmac.cli import _open_standard_streams as open_them; open_them(); "
    code += "sys.exit(os.open(os.devnull, os.O_RDONLY))"
    assert run(*closed, sys.executable, "-P", "-c", code).returncode > 2


@pytest.fixture
def warned(tmp_path):
    """A command that warns, and its output."""
    x = np.ones((3, 8, 9, 12), "float32")
    x[1] = 0
    np.save(tmp_path / "x.npy", x)
    command = [*PROGRAMS["python -m"], "describe", tmp_path / "x.npy", "-o", tmp_path / "d.npy"]
    return [*map(str, command)], tmp_path / "d.npy"


@pytest.mark.parametrize("stderr", ["closed", "full", "a pipe that nobody reads"])
@pytest.mark.parametrize("buffering", ["1", None])
def test_a_warning_that_nobody_can_hear_stops_nothing(warned, stderr, buffering):
    command, output = warned
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    if buffering:
        environment["PYTHONUNBUFFERED"] = buffering
    if stderr == "closed":
        result = run("bash", "-c", 'exec "$@" 2>&-', "bash", *command, env=environment)
    elif stderr == "full":
        result = run("bash", "-c", 'exec "$@" 2>/dev/full', "bash", *command, env=environment)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        result = subprocess.run(command, stderr=writer, check=False, cwd="/", env=environment)
        os.close(writer)
    assert result.returncode == 0
    assert len(np.load(output)) == 3


@pytest.mark.filterwarnings("default")
def test_main_with_a_closed_stderr(warned, monkeypatch):
    command, output = warned
    with open(os.devnull, "w") as closed:
        monkeypatch.setattr(sys, "stderr", closed)
    assert main(command[command.index("describe") :]) == 0
    assert output.exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_a_help_that_cannot_be_printed_is_an_error(flag, unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*PROGRAMS["python -m"], flag],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 2
    assert result.stderr == "rmac: error: [Errno 28] No space left on device\n"


@pytest.mark.filterwarnings("default")
def test_a_command_that_fails_says_no_warning(tmp_path, monkeypatch, capsys):
    """It would be a second line."""
    rmac.Whitening(7, kind="descriptors").fit(np.eye(8)).save(tmp_path / "w.npz")
    np.save(tmp_path / "x.npy", np.ones((2, 8, 1, 1), "complex64"))
    command = ["describe", "x.npy", "-o", "d.npy", "--whitening", "w.npz"]
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert "got complex64" in error_of(capsys, "describe")


def modes_of(monkeypatch, folder):
    """The modes of the part file, when it is created and at its end."""
    modes, create, replace = [], os.open, os.replace

    def note(path):
        modes.append(stat.S_IMODE(os.stat(path).st_mode))

    def creating(path, *arguments):
        descriptor = create(path, *arguments)
        if str(path).startswith(f"{folder}/.rmac-"):
            note(path)
        return descriptor

    def replacing(path, *arguments):
        note(path)
        replace(path, *arguments)

    monkeypatch.setattr(os, "open", creating)
    monkeypatch.setattr(os, "replace", replacing)
    return modes


@pytest.mark.parametrize(
    ("before", "umask", "expected"),
    [
        (0o600, 0o000, [0o600, 0o600]),
        (0o600, 0o022, [0o600, 0o600]),
        (0o666, 0o022, [0o644, 0o666]),
        (0o400, 0o022, [0o400, 0o400]),
        (None, 0o022, [0o644, 0o644]),
        (None, 0o077, [0o600, 0o600]),
    ],
)
def test_an_output_is_never_open_to_more_than_at_its_end(
    command, suffix, tmp_path, monkeypatch, before, umask, expected
):
    path = tmp_path / f"o{suffix}"
    if before is not None:
        path.touch()
        path.chmod(before)
    modes = modes_of(monkeypatch, tmp_path)
    mask = os.umask(umask)
    try:
        assert main([*command, "-o", str(path)]) == 0
    finally:
        os.umask(mask)
    assert modes == expected
    assert stat.S_IMODE(path.stat().st_mode) == expected[1]


# Files with more than fits memory, by the command that reads them whole.
TOO_LARGE = {
    "ranks": ((2, 1 << 27), "i8", "evaluate large.npy truth.json", "1073741824 bytes"),
    "ranks of maps": ((2, 1 << 27), "i8", "rerank maps.npy maps.npy large.npy", "1073741824 bytes"),
    "boxes": ((2, 1 << 28), "i4", "locate maps.npy maps.npy --boxes large.npy", "shape (2, 4)"),
    "descriptors": (
        (1 << 26, 3),
        "f4",
        "evaluate large.npy truth.json --queries vectors.npy",
        "1073741824 bytes, since the rank of each image",
    ),
    "vectors": ((1 << 19, 600), "f4", "locate maps.npy large.npy", "1073741824 bytes"),
    "queries": (((1 << 20) + 1, 3), "f4", "locate maps.npy large.npy", "1048576 queries"),
    "channels": ((2, (1 << 18) + 1), "f4", "whiten large.npy", "262144 channels"),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_what_does_not_fit_memory_is_refused_before_it_is_read(case, tmp_path, monkeypatch, capsys):
    shape, dtype, command, message = TOO_LARGE[case]
    monkeypatch.chdir(tmp_path)
    np.lib.format.open_memmap("large.npy", "w+", dtype, shape)  # takes no room on the disk
    np.save("maps.npy", np.ones((2, 3, 4, 4), np.float32))
    np.save("vectors.npy", np.ones((3, 3), np.float32))
    tmp_path.joinpath("truth.json").write_text("[]")
    output = {"evaluate": "o.json", "whiten": "o.npz"}.get(command.split()[0], "o.npy")
    assert main([*command.split(), "-o", output]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "large.npy: expected " in error
    assert message in error
    assert not tmp_path.joinpath(output).exists()
