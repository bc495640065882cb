"""Files that commands cannot read, and outputs that are whole or not there at all."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers import COMMANDS, error_of, readme_parts, run_python, write_zarr

import rmac
from rmac import cli
from rmac.cli import files, main


def write(path, array):
    np.save(path, array)
    return path


def truncated(path):
    np.save(path, np.ones((4, 3, 5, 5), "float32"))
    path.write_bytes(path.read_bytes()[:-10])
    return path


def with_header(text, data=b""):
    """A file of format 1.0 whose header is any text."""

    def write_it(path):
        header = text.encode()
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data)
        return path

    return write_it


def npy_header(descr="'<f4'", shape="(1, 2, 3, 4)"):
    return with_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n")


BAD_FILES = {
    "header cut short": (with_header("{'descr': ("), "not a .npy file"),
    "header of brackets": (with_header("[" * 200), "not a .npy file"),
    "header with a list as key": (with_header("{[]: 1}"), "not a .npy file"),
    "dtype in a tuple": (npy_header(descr="('<f4',)"), "not a .npy file"),
    "negative shape": (npy_header(shape="(-1, 2, 3, 4)"), "its shape is (-1, 2, 3, 4)"),
    "huge shape": (npy_header(shape=f"(0, {2**64}, 3, 4)"), "not a .npy file"),
    "bfloat16": (npy_header(descr="'|V2'"), "bfloat16, perhaps"),
    "unknown version": (
        lambda path: path.write_bytes(b"\x93NUMPY\x07\x00" + bytes(200)) and path,
        "its format has version (7, 0)",
    ),
    "truncated": (truncated, "truncated: 1200 bytes of data expected, 1190 there"),
    "headless": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v") and path, "not a .npy file"),
    "text": (lambda path: path.write_text("hello") and path, "not a .npy file"),
    "empty": (lambda path: path.write_bytes(b"") or path, "not a .npy file"),
    "missing": (lambda path: path, "No such file"),
    "folder": (lambda path: path.mkdir() or path, "not a Zarr folder that can be read"),
    "3-d": (
        lambda path: write(path, np.ones((3, 5, 5))),
        "expected 4 axes (N, C, H, W), got shape (3, 5, 5)",
    ),
    "complex": (lambda path: write(path, np.ones((1, 3, 5, 5), complex)), "got complex128"),
    "objects": (lambda path: write(path, np.full((1, 1, 1, 1), None)), "got Python objects"),
    "no cells": (
        lambda path: write(path, np.ones((2, 3, 0, 5))),
        "expected at least one cell, got 0x5",
    ),
}


@pytest.mark.parametrize("case", sorted(BAD_FILES))
def test_describe_a_bad_file(tmp_path, case, capsys):
    make, message = BAD_FILES[case]
    path = make(tmp_path / "x.npy")
    assert main(["describe", str(path), "-o", str(tmp_path / "d.npy")]) == 2
    error = error_of(capsys, "describe")
    assert message in error
    assert str(path) in error
    assert not (tmp_path / "d.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--levels", "0"], "--levels: expected an integer of at least 1, got 0"),
        (["--overlap", "2"], "--overlap: expected a number with 0 <= overlap < 1, got 2.0"),
        (["--workers", "0"], "--workers: expected an integer of at least 1, got 0"),
    ],
)
def test_describe_with_a_bad_option(features, tmp_path, capsys, arguments, message):
    assert main(["describe", str(features), "-o", str(tmp_path / "d.npy"), *arguments]) == 2
    assert error_of(capsys, "describe") == message
    assert os.listdir(tmp_path) == ["features.npy"]


@pytest.mark.parametrize("output", ["nowhere/d", "folder", "pipe", "x" * 300])
def test_an_unwritable_path_is_found_before_the_work(
    command, suffix, tmp_path, monkeypatch, capsys, output
):
    monkeypatch.setattr(files, "progress", None)
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    before = sorted(os.listdir(tmp_path))
    path = str(tmp_path / output) + suffix
    assert main([*command, "-o", path]) == 2
    assert path in error_of(capsys, command[0])
    assert sorted(os.listdir(tmp_path)) == before


def test_the_output_does_not_replace_the_input(command, suffix, tmp_path, capsys):
    path = Path(command[-1]).rename(tmp_path / f"x{suffix}")
    before = path.read_bytes()
    assert main([*command[:-1], str(path), "-o", str(path)]) == 2
    assert "would replace the input" in error_of(capsys, command[0])
    assert path.read_bytes() == before


def test_the_output_does_not_get_into_the_input(features, tmp_path, capsys):
    path = tmp_path / "x.zarr"
    write_zarr(path, np.load(features))
    assert main(["describe", str(path), "--key", "x", "-o", str(path / "x" / "d.npy")]) == 2
    assert "would replace the input" in error_of(capsys, "describe")
    assert not (path / "x" / "d.npy").exists()


@pytest.mark.parametrize("output", ["", "-", "d", "d.zarr", "npy"])
def test_an_output_of_another_kind(command, capsys, output):
    assert main([*command, "-o", output]) == 2
    taken = " or ".join(COMMANDS[command[0]][0])
    expected = f"--output: expected a name that ends in {taken}, got {output!r}"
    assert error_of(capsys, command[0]) == expected


def test_describe_byte_swapped_maps(features, tmp_path):
    x = np.load(features)
    np.save(features, x.astype(">f4"))
    assert main(["describe", str(features), "-o", str(tmp_path / "d.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), rmac.rmac(x))


def test_an_output_that_is_replaced_keeps_its_mode(features, tmp_path):
    path = tmp_path / "d.npy"
    path.touch(mode=0o600)
    assert main(["describe", str(features), "-o", str(path)]) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size


def test_a_full_disk_is_told_of_by_name(command, suffix, tmp_path):
    code = "import resource, sys; from rmac.cli import main; "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); sys.exit(main(sys.argv[1:]))"
    path = tmp_path / f"output{suffix}"
    result = subprocess.run(
        [sys.executable, "-P", "-c", code, *command, "-o", path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.endswith(f"error: {path}: cannot be written: File too large\n")
    assert os.listdir(tmp_path) == [Path(command[-1]).name]


def test_describe_follows_a_link(features, tmp_path):
    (tmp_path / "link.npy").symlink_to(tmp_path / "d.npy")
    assert main(["describe", str(features), "-o", str(tmp_path / "link.npy")]) == 0
    assert (tmp_path / "link.npy").is_symlink()
    assert np.load(tmp_path / "d.npy").shape == (5, 8)


def test_describe_leaves_nothing_behind_when_it_fails_half_way(features, tmp_path, monkeypatch):
    (tmp_path / "d.npy").write_text("from before")
    monkeypatch.setattr(files, "_BATCH", 1)
    calls = []

    def fail_at_last(x, **options):
        calls.append(len(x))
        if len(calls) == 4:
            raise MemoryError("no more")
        return rmac_function(x, **options)

    rmac_function = rmac.rmac
    monkeypatch.setattr(rmac, "rmac", fail_at_last)
    assert main(["describe", str(features), "-o", str(tmp_path / "d.npy")]) == 2
    assert (tmp_path / "d.npy").read_text() == "from before"
    assert sorted(os.listdir(tmp_path)) == ["d.npy", "features.npy"]


STUCK = """
import signal, sys, time, rmac
from rmac.cli import program

# where the tests run in the background, children begin with these ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

def stuck(function, place=-1):
    def call(*args, **options):
        if len(args[place]):
            print("stuck", flush=True)
            time.sleep(60)
        return function(*args, **options)
    return call

rmac.rmac = stuck(rmac.rmac)
rmac.localize = stuck(rmac.localize, 0)
rmac.Whitening.partial_fit = stuck(rmac.Whitening.partial_fit)
rmac.Whitening.apply = stuck(rmac.Whitening.apply)
program()
"""


def end_half_way(command, output, kind):
    """Return the exit status of a command that was sent a signal with its output under way."""
    arguments = [sys.executable, "-P", "-c", STUCK, *command, "-o", output]
    folder = output.parent
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(arguments, cwd=folder, **streams) as process:
        while not list(folder.glob(".rmac-*.part")) and process.poll() is None:
            time.sleep(0.01)
        if kind == signal.SIGKILL:  # else at any time
            assert process.stdout.readline() == b"stuck\n"
        while process.poll() is None:
            # Once more where Python was in a callback of a weak reference, which loses exceptions.
            process.send_signal(kind)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
        return process.wait()


def test_a_killed_command_has_no_output_and_runs_again(command, suffix, tmp_path):
    output = tmp_path / f"output{suffix}"
    assert end_half_way(command, output, signal.SIGKILL) == -signal.SIGKILL
    assert not output.exists()
    assert main([*command, "-o", str(output)]) == 0
    np.load(output)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_ended_command_leaves_nothing_behind(command, suffix, tmp_path, kind):
    assert end_half_way(command, tmp_path / f"output{suffix}", kind) == 128 + kind
    assert os.listdir(tmp_path) == [Path(command[-1]).name]


def test_a_command_started_with_nohup_outlives_the_terminal(features, tmp_path):
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    code += "from rmac.cli import program; program(); "
    code += "assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN"
    command = [sys.executable, "-P", "-c", code, "describe", features, "-o", tmp_path / "d.npy"]
    subprocess.run(command, cwd=tmp_path, check=True)


def save_files(path, **maps):
    """A folder of .npy files."""
    path.mkdir()
    for name, one in maps.items():
        np.save(path / f"{name}.npy", one)


MEASURED = """if True:
    import sys, tracemalloc
    from rmac.cli import main

    tracemalloc.start()
    status = main({})
    print(tracemalloc.get_traced_memory()[1])
    sys.exit(status)
"""


LARGE = [
    (["describe"], (1024, 64, 16, 16), "d.npy", False),
    (["describe"], (1024, 64, 16, 16), "d.npy", True),
    (["describe"], (4096, 64, 8, 8), "d.npy", True),
    (["whiten", "--eps", "1"], (16384, 16, 64), "w.npz", False),
    (["apply"], (131072, 16, 8), "o.npy", False),
    (["locate"], (1024, 512, 8, 4), "o.npy", False),
    (["rerank"], (1024, 512, 8, 4), "o.npy", False),
]


def test_every_command_is_tested_here_and_in_the_readme():
    (commands,) = [one.choices for one in cli._parser()._actions if isinstance(one.choices, dict)]
    writing = {
        name
        for name, command in commands.items()
        if any(one.dest == "output" and one.required for one in command._actions)
    }
    assert writing == set(COMMANDS) == {command[0] for command, *_ in LARGE}
    readme = "".join(readme_parts().values())
    assert all(f"rmac {name} " in readme for name in commands)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "shape", "output", "fortran"), LARGE)
def test_memory_does_not_grow_with_the_file(
    tmp_path, whitening_file, beside, command, shape, output, fortran
):
    """A file of 256 MB takes less than 160 MB, and hardly more than a file of 64 MB does."""
    # What Python and NumPy allocate. A limit of address space would also count what is only
    # reserved: in some runs 64 MB more, for the heap of the progress bar's thread.
    peaks = []
    for count in (shape[0], 4 * shape[0]):
        path = tmp_path / f"{count}.npy"
        shape = (count, *shape[1:])
        np.lib.format.open_memmap(path, "w+", "float32", shape, fortran_order=fortran).flush()
        before = [whitening_file] if command == ["apply"] else []
        after = []
        if command[0] in ("locate", "rerank"):
            after += [beside(np.ones((2, shape[1], 4, 5), np.float32))]
        if command == ["rerank"]:
            after += [beside(np.zeros((count, shape[1]), np.float32))]
        sources = map(str, [*before, path, *after])
        arguments = [*command, *sources, "-o", str(tmp_path / output)]
        code = MEASURED.format(arguments)
        result = run_python(code, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stdout))
    assert path.stat().st_size > 1 << 28
    assert peaks[1] < 160 << 20
    assert peaks[1] < peaks[0] + (1 << 25)  # the results of the batch before


@pytest.mark.slow
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, save_files])
def test_memory_does_not_grow_with_the_number_of_maps(tmp_path, save):
    peaks = []
    for count in (1024, 4096):
        maps = {f"{i}": np.ones((64, 15 + i % 3, 16), "float32") for i in range(count)}
        path = tmp_path / f"{count}.npz"
        save(path, **maps)
        arguments = ["describe", str(path), "-o", str(tmp_path / "d.npz")]
        result = run_python(MEASURED.format(arguments))
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stdout))
    assert peaks[1] < 100 << 20
    assert peaks[1] < peaks[0] + (1 << 25)


@pytest.mark.slow
def test_a_corrupt_zarr_ends_in_one_line(tmp_path):
    path = tmp_path / "x.zarr"
    options = {"shape": (64, 32, 4, 4), "chunks": (1, 1, 4, 4), "dtype": "float32"}
    zarr.create_array(path, **options)[...] = 1
    for chunk in (path / "c" / "1").glob("*/0/0"):
        chunk.write_bytes(b"nonsense")
    command = [sys.executable, "-P", "-m", "rmac", "describe", path, "-o", tmp_path / "d.npy"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(f"rmac describe: error: {path}: not a Zarr folder that can be")
    assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["x.zarr"]
