"""What only the search of boxes on a GPU does. tests/test_localization.py checks what it finds."""

import re

import numpy as np
import pytest
from boxes_reference import boxes as all_boxes
from helpers import DTYPES, forget_kernels, random_map, to_host

import rmac
from rmac._candidates import candidates
from rmac._dtypes import DTYPES as DTYPE_TABLE
from rmac.cuda import search, source
from rmac.cuda.route import SHARED_MEMORY


def test_a_query_or_a_search_on_the_host_is_an_error(gpu):
    x, query = gpu.zeros((1, 4, 5, 5), np.uint8), np.ones(4, np.float32)
    with pytest.raises(TypeError, match="queries: expected an array where x is, got numpy"):
        rmac.localize(x, query)
    with pytest.raises(TypeError, match="queries: expected an array where x is, got "):
        rmac.localize(np.zeros((1, 4, 5, 5), np.uint8), gpu.asarray(query))
    with pytest.raises(TypeError, match=r'expected a numpy\.ndarray for search="aml"'):
        rmac.localize(x, gpu.asarray(query), search="aml")


@pytest.mark.parametrize("aspects", [((0.0, 1),), ((0.75, 1),), ((0.0, 2), (0.3, 1), (2.0, 3))])
@pytest.mark.parametrize("step", [0, 3])
def test_tables_have_each_box_once(aspects, step):
    """In its stage, each box is the maximum of four cells."""
    height, width = 17, 23
    table = search.boxes_of(height, width, aspects, 1.1, step)
    found = []
    for stage in table.stages:
        for run in table.runs[stage["first_run"] : stage["stop_run"]]:
            for size, span in (("height", "rows"), ("width", "columns")):
                assert stage[span] <= run[size] < 2 * stage[span]
            found += [
                (x * table.step, y * table.step, run["width"], run["height"], query)
                for y in range(run["rows"])
                for x in range(run["columns"])
                for query in range(run["first_query"], run["first_query"] + run["queries"])
            ]
    assert len(found) == len(set(found))
    assert table.sums_before[-1] == candidates(height, width, aspects, 1.1, step, False).sums
    if not step:
        wanted = [aspect or None for aspect, count in aspects for _ in range(count)]
        assert set(found) == {
            (x1, y1, x2 - x1 + 1, y2 - y1 + 1, query)
            for query, aspect in enumerate(wanted)
            for x1, y1, x2, y2 in all_boxes((height, width), aspect, 1.1)
        }


def test_cells_only_grow_within_an_aspect():
    """Else stages would read the map again, since cells cannot become smaller."""
    stages = search.boxes_of(24, 32, ((0.75, 1),), 1.1, 0).stages
    assert len(stages) >= 7
    assert (np.diff(stages["rows"]) >= 0).all()
    assert (np.diff(stages["columns"]) >= 0).all()


def test_cells_of_fewer_rows_and_more_columns(gpu, rng):
    """After boxes of 1 x 4 cells come those of 2 x 1."""
    x, queries = random_map(rng, (1, 20, 4, 3), DTYPES["uint8"]), rng.standard_normal((2, 20))
    stages = search.boxes_of(4, 3, ((0.5, 1), (4.0, 1)), 1, 0).stages
    assert stages["rows"].tolist() == [4, 1]
    assert stages["columns"].tolist() == [1, 2]
    expected = rmac.localize(x, queries, aspect=[0.5, 4], tolerance=1)
    found = rmac.localize(gpu.asarray(x), gpu.asarray(queries), aspect=[0.5, 4], tolerance=1)
    assert to_host(found.boxes).tolist() == expected.boxes.tolist()
    np.testing.assert_allclose(to_host(found.scores), expected.scores, atol=1e-6)


def test_channel_blocks_have_all_channels_and_fit():
    for shape in [(1, 0, 5, 5), (1, 1, 1, 1), (2, 512, 24, 32), (1, 300, 48, 64), (1, 7, 200, 99)]:
        for info in DTYPE_TABLE.values():
            for split in search.channel_splits(shape, info):
                assert split.channel_block * max(split.channel_blocks - 1, 0) < max(shape[1], 1)
                assert split.channel_block * split.channel_blocks >= shape[1]
                assert split.shared <= SHARED_MEMORY
                assert (split.shared == 0) == (split.workspace > 0) or not shape[1]


def test_jobs_have_each_run_once():
    sums = np.append(0, np.cumsum([5, 1, 1, 9, 2, 2]))
    assert list(search.jobs_of(sums, 4)) == [(0, 1), (1, 3), (3, 4), (4, 6)]
    assert list(search.jobs_of(sums, 100)) == [(0, 6)]
    assert list(search.jobs_of(sums[:1], 4)) == [(0, 0)]


@pytest.mark.parametrize("name", ["best", "grid"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_memory_that_is_short_changes_no_bit(gpu, rng, monkeypatch, name, dtype):
    """Few images and boxes at a time, on maps of which some are summed in float64."""
    x = random_map(rng, (5, 40, 9, 7), DTYPES[dtype])
    if dtype == "float32":
        x[1:3] *= np.float32(1e30)
    x, queries = gpu.asarray(x), gpu.asarray(rng.standard_normal((3, 40)))
    options = {"search": name, "aspect": [1, 0.5, 0.8], "tolerance": 1.3}
    expected = rmac.localize(x, queries, **options)
    for size in (1, 1 << 13, 1 << 15):
        monkeypatch.setattr(search, "_MOST_BYTES", size)
        for one, other in zip(rmac.localize(x, queries, **options), expected, strict=True):
            assert to_host(one).tobytes() == to_host(other).tobytes()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_maps_that_shared_memory_has_no_room_for(gpu, rng, monkeypatch, layout):
    """If device memory for cells is short too, a block searches several channel blocks in turn."""
    x = random_map(rng, (1, 9, 80, 90), DTYPES["float64"])
    query = rng.standard_normal(9)
    expected = rmac.localize(x, query, aspect=8, tolerance=1)
    (split,) = search.channel_splits(x.shape, DTYPE_TABLE["float64"])
    assert split.workspace
    assert split.channel_blocks == 3
    stored = gpu.asarray(x if layout == "NCHW" else x.transpose(0, 2, 3, 1).copy())
    for size in (search._MOST_BYTES, 2 * split.workspace):
        monkeypatch.setattr(search, "_MOST_BYTES", size)
        found = rmac.localize(stored, gpu.asarray(query), aspect=8, tolerance=1, layout=layout)
        assert to_host(found.boxes).tolist() == expected.boxes.tolist()
        np.testing.assert_allclose(to_host(found.scores), expected.scores, rtol=1e-12)


def test_a_deleted_barrier_is_found(gpu, rng, monkeypatch):
    """If any one of the barriers is missing, the shim gives another result or an error."""
    if gpu.__name__ != "shim":
        pytest.skip("a device runs threads in an order of its own")
    x = gpu.asarray(random_map(rng, (1, 64, 9, 9), DTYPES["uint8"]))
    # The best boxes of such queries are of all sizes: some are the last before the map is
    # loaded again, and some are in the second of two parts.
    spread = np.array([[0.1], [0.2], [0.5], [1], [1.5], [2], [4]])
    queries = gpu.asarray(1 + spread * rng.standard_normal((7, 64)))
    code, barrier = source.kernel_source(), "__syncthreads();"

    def results(code):
        forget_kernels()
        with monkeypatch.context() as patch:
            patch.setattr(source, "kernel_source", lambda: code)
            try:
                found = [
                    rmac.localize(x, queries, search=name, step=1) for name in ("best", "grid")
                ]
            except RuntimeError:  # some threads wait for others that have finished
                return None
        forget_kernels()
        return [to_host(array).tobytes() for one in found for array in one]

    expected = results(code)
    start = code.index('#line 1 "boxes.cu"')
    places = [start + match.start() for match in re.finditer(re.escape(barrier), code[start:])]
    assert len(places) == 8
    for place in places:
        mutated = code[:place] + code[place + len(barrier) :]
        assert results(mutated) != expected, code[:place][-300:]
    assert results(code) == expected


def test_a_captured_search_replays_with_new_data(gpu, rng):
    if gpu.__name__ != "cupy":
        pytest.skip("needs a device")
    first, second = (random_map(rng, (2, 64, 24, 32), DTYPES["float32"]) for _ in range(2))
    x, queries = gpu.asarray(first), gpu.asarray(rng.random((2, 64)))
    stream = gpu.cuda.Stream(non_blocking=True)
    with stream:
        rmac.localize(x, queries, aspect=0.75)
        stream.synchronize()
        stream.begin_capture()
        found = rmac.localize(x, queries, aspect=0.75)
        graph = stream.end_capture()
        x.set(second)
        graph.launch(stream)
    stream.synchronize()
    for one, other in zip(found, rmac.localize(x, queries, aspect=0.75), strict=True):
        np.testing.assert_array_equal(to_host(one), to_host(other))
