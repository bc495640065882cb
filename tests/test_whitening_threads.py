"""One whitening used by many threads: nothing is lost, nothing is stale, nothing is done twice."""

import copy
import pickle
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import VECTORS, assert_same_whitening, mixed

import rmac
from rmac import Whitening, descriptors
from rmac.whitening import Moments, state

THREADS = 64
PATIENCE = 20  # seconds until a thread that waits is taken for one that hangs


@pytest.fixture(autouse=True)
def _hasty_switches():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(function, arguments):
    """Call a function in as many threads as there are arguments, all at a time."""
    start = threading.Barrier(len(arguments))

    def call(argument):
        start.wait(PATIENCE)
        return function(argument)

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(call, arguments))


@pytest.fixture
def solved(monkeypatch):
    """The moments whose eigenproblem was solved."""
    moments = []
    learn = state.learn
    monkeypatch.setattr(state, "learn", lambda m, *args: moments.append(m) or learn(m, *args))
    return moments


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_apply_from_many_threads(rng, solved, dtype):
    vectors = mixed(rng, 3000, 64)
    some = [vectors[i : i + 40].astype(dtype) for i in range(THREADS)]
    serial = Whitening(24).fit(vectors)
    expected = [serial.apply(one) for one in some]
    solved.clear()
    w = Whitening(24).fit(vectors)
    results = together(w.apply, some)
    assert len(solved) == 1
    for result, one in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, one)


@pytest.mark.parametrize("size", [1, 5, 50])
def test_partial_fit_from_many_threads(rng, monkeypatch, size):
    """In both forms of the moments, and from one to the other."""
    chunks = rng.standard_normal((THREADS, size, 40)) + 3
    w = Whitening()
    add = state.State.with_moments

    def add_slowly(*args):
        result = add(*args)
        time.sleep(1e-3)  # so that others come in between, if they can
        return result

    monkeypatch.setattr(state.State, "with_moments", add_slowly)
    assert all(result is w for result in together(w.partial_fit, chunks))
    assert w.count == THREADS * size
    assert_same_whitening(w, Whitening().fit(chunks), 1e-9)


def test_everything_at_once(rng):
    """Each result is of one time: before or after a change, never of both."""
    chunks = rng.standard_normal((8, 100, 12)) * np.linspace(3, 1, 12) + 5
    w = Whitening(4).fit(chunks[0])

    def use(i):
        w.partial_fit(chunks[i])
        for twin in (copy.copy(w), pickle.loads(pickle.dumps(w)), w.merge(Whitening())):
            assert twin.count % 100 == 0
            moments = twin._state.moments
            clean = Whitening(4)
            clean._state = clean._state.with_moments(moments)
            np.testing.assert_allclose(twin.projection, clean.projection, rtol=1e-9)
            np.testing.assert_array_equal(twin.mean, moments.mean)
        return w.apply(chunks[i]).shape

    assert together(use, range(1, 8)) == [(100, 4)] * 7
    assert w.count == 800


def held_up(monkeypatch, w, use):
    """Start `use` in a thread, which stops inside of `learn`; return how to let it go on."""
    inside, go_on, results = threading.Event(), threading.Event(), []
    learn = state.learn

    def slow(*args):
        inside.set()
        assert go_on.wait(PATIENCE)
        return learn(*args)

    monkeypatch.setattr(state, "learn", slow)
    thread = threading.Thread(target=lambda: results.append(use(w)))
    thread.start()
    assert inside.wait(PATIENCE)
    monkeypatch.setattr(state, "learn", learn)

    def finish():
        go_on.set()
        thread.join(PATIENCE)
        return results[0]

    return finish


def test_no_projection_of_old_moments_is_kept(monkeypatch):
    """The case that apply begins, partial_fit comes in between, and apply ends."""
    first, more = VECTORS[:70], VECTORS[70:] * 9 + 5
    w = Whitening(3).fit(first)
    finish = held_up(monkeypatch, w, lambda w: w.apply(first))
    w.partial_fit(more)  # does not wait for the eigenproblem
    np.testing.assert_array_equal(finish(), Whitening(3).fit(first).apply(first))
    assert_same_whitening(w, Whitening(3).fit(np.concatenate([first, more])), 1e-9)


def test_who_needs_the_same_projection_waits_and_others_do_not(monkeypatch, solved):
    w = Whitening(3).fit(VECTORS)
    ready = Whitening(2).fit(VECTORS)
    ready.apply(VECTORS)
    solved.clear()
    finish = held_up(monkeypatch, w, lambda w: w.apply(VECTORS))
    waiting = ThreadPoolExecutor(1).submit(w.apply, VECTORS)
    assert ready.apply(VECTORS).shape == (150, 2)
    assert not waiting.done()
    np.testing.assert_array_equal(finish(), waiting.result(PATIENCE))
    assert len(solved) == 1


def test_readers_do_not_wait_for_a_change():
    w = Whitening(3).fit(VECTORS)
    expected = w.apply(VECTORS)
    with w._changing:  # as partial_fit holds it
        results = ThreadPoolExecutor(1).submit(
            lambda: (w.apply(VECTORS), w.projection, w.count, repr(w), copy.copy(w), w.dim)
        )
        np.testing.assert_array_equal(results.result(PATIENCE)[0], expected)


def test_vectors_that_do_not_fit_any_more(monkeypatch):
    """Another thread may refit to other channels while moments are computed."""
    w = Whitening().fit(VECTORS)
    of = Moments.of
    monkeypatch.setattr(Moments, "of", lambda *args, **options: refit() or of(*args, **options))

    def refit():
        monkeypatch.setattr(Moments, "of", of)
        w.fit(VECTORS[:, :4])

    with pytest.raises(ValueError, match="vectors: expected 4 channels, got 6"):
        w.partial_fit(VECTORS)
    assert_same_whitening(w, Whitening().fit(VECTORS[:, :4]), 0)


@pytest.mark.parametrize("when", ["Output", "_WhitenedPipeline"])
@pytest.mark.parametrize("channels", [2, 6, 9])
def test_rmac_takes_one_snapshot(rng, monkeypatch, when, channels):
    """The case that another thread refits during the call, even to other channels."""
    x = rng.random((3, 6, 12, 9), dtype=np.float32)
    w = Whitening(2).fit(VECTORS)
    expected = rmac.rmac(x, whitening=w)
    function = getattr(descriptors, when)

    def refit(*args):
        w.fit(rng.standard_normal((50, channels)), dim=min(channels, 4))
        return function(*args)

    monkeypatch.setattr(descriptors, when, refit)
    np.testing.assert_array_equal(rmac.rmac(x, whitening=w), expected)


def test_merging_each_other_does_not_deadlock(rng):
    a, b = (Whitening().fit(rng.standard_normal((30, 5))) for _ in range(2))
    results = together(lambda i: (a, b)[i % 2].merge((a, b)[i // 2 % 2]), range(THREADS))
    assert {result.count for result in results} == {60}


def test_a_projection_that_failed_is_tried_again(monkeypatch):
    w = Whitening(3).fit(VECTORS)
    with monkeypatch.context() as broken:
        broken.setattr(state, "learn", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            w.apply(VECTORS)
    assert w.apply(VECTORS).shape == (150, 3)


@pytest.fixture
def cut():
    """A whitening that warns when its projection is computed: two of its variances are 0."""
    return Whitening().fit(np.concatenate([VECTORS, VECTORS[:, :2]], axis=1))


def in_time(function):
    return ThreadPoolExecutor(1).submit(function).result(PATIENCE)


@pytest.mark.filterwarnings("always")
def test_a_hook_of_warnings_may_use_the_whitening(cut, monkeypatch):
    x, found = np.ones((3, 8)), []

    def show(message, *_args, **_options):
        others = ThreadPoolExecutor(1).submit(cut.apply, x)
        found.extend([str(message), cut.apply(x), others.result(PATIENCE), cut.dim])
        cut.partial_fit(np.ones((1, 8)))

    monkeypatch.setattr(warnings, "showwarning", show)
    result = in_time(lambda: cut.apply(x))
    message, again, elsewhere, dim = found
    assert message.startswith("2 of 8 variances are zero to rounding")
    np.testing.assert_array_equal(again, result)
    np.testing.assert_array_equal(elsewhere, result)
    assert (dim, cut.count) == (6, 151)


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error_comes_once(cut):
    with pytest.raises(UserWarning, match="2 of 8 variances"):
        in_time(lambda: cut.apply(np.ones((3, 8))))
    assert cut.apply(np.ones((3, 8))).shape == (3, 6)


def test_a_change_inside_a_change_is_not_lost(monkeypatch):
    """A signal handler, or the constructor of a subclass, may change the same whitening."""
    w = Whitening().fit(VECTORS)
    add = state.State.with_moments

    def add_and_be_interrupted(*args):
        monkeypatch.setattr(state.State, "with_moments", add)
        w.partial_fit(VECTORS[:10])
        return add(*args)

    monkeypatch.setattr(state.State, "with_moments", add_and_be_interrupted)
    in_time(lambda: w.partial_fit(VECTORS[:5]))
    assert w.count == len(VECTORS) + 15


class Nested(Whitening):
    """A subclass whose constructor uses another one that exists already."""

    first = None

    def __init__(self, dim=None, *, eps=0.0, kind=None):
        super().__init__(dim, eps=eps, kind=kind)
        if self.first is not None:
            Nested.first, w = None, self.first
            w.partial_fit(VECTORS)


def test_options_that_are_set_inside_a_change_do_not_wait_for_it():
    w = Nested().fit(VECTORS)
    Nested.first = w
    in_time(lambda: w.set_params(dim=2))
    assert (w.count, w.dim) == (2 * len(VECTORS), 2)
