"""A `Whitening` is a transformer of scikit-learn."""

import numpy as np
import pytest
from helpers import VECTORS, assert_same_whitening, optional_module

import rmac
from rmac import Whitening

optional_module("sklearn")
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.decomposition import PCA  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.pipeline import Pipeline, make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

# The checks of scikit-learn that do not apply, and why.
NOT_APPLICABLE = {
    "check_do_not_raise_errors_in_init_or_set_params": "options are checked at once",
    "check_estimators_dtypes": "int64 is refused, since float32 does not hold it",
    "check_transformer_data_not_an_array": "lists and data frames are refused: np.asarray",
    "check_complex_data": "a TypeError says so, and not a ValueError",
    "check_dtype_object": "objects are refused",
    "check_fit2d_predict1d": "one vector (C,) is whitened too",
    # These errors are raised, in other words than those that are looked for.
    "check_estimators_empty_data_messages": "words",
    "check_estimators_nan_inf": "words",
    "check_fit2d_1sample": "words",
    "check_n_features_in_after_fitting": "words",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_check_estimator():
    results = check_estimator(
        Whitening(), expected_failed_checks=NOT_APPLICABLE, on_skip=None, on_fail=None
    )
    assert [one["check_name"] for one in results if one["status"] == "failed"] == []
    assert sum(one["status"] == "passed" for one in results) >= 30


def test_options():
    whitening = Whitening(4, eps=0.5, kind="regions")
    assert whitening.get_params() == {"dim": 4, "eps": 0.5, "kind": "regions"}
    copy = clone(whitening.fit(VECTORS))
    assert copy.get_params() == whitening.get_params()
    assert copy.count == 0
    assert whitening.set_params(dim=2, eps=0.0) is whitening
    assert_same_whitening(whitening, Whitening(2).fit(VECTORS))
    assert_same_whitening(whitening.set_params(), Whitening(2).fit(VECTORS))
    with pytest.raises(ValueError, match="params: expected dim, eps, kind, got dims"):
        whitening.set_params(dims=3)
    with pytest.raises(ValueError, match="dim: expected at most the 6 channels, got 7"):
        whitening.set_params(dim=7)
    with pytest.raises(TypeError, match="dim: expected an integer"):
        whitening.set_params(dim="3")
    assert whitening.get_params() == {"dim": 2, "eps": 0.0, "kind": "regions"}


def test_a_projection_keeps_its_options_apart():
    fitted = Whitening(3).fit(VECTORS)
    whitening = Whitening.from_projection(fitted.mean, fitted.projection).set_params(eps=1.0)
    np.testing.assert_array_equal(whitening.transform(VECTORS), fitted.apply(VECTORS))


def test_transform_is_apply_and_labels_are_ignored():
    labels = np.arange(len(VECTORS))
    expected = Whitening(3).fit(VECTORS)
    whitening = Whitening(3)
    np.testing.assert_array_equal(whitening.fit_transform(VECTORS, labels), expected.apply(VECTORS))
    np.testing.assert_array_equal(whitening.transform(VECTORS), expected.apply(VECTORS))
    assert_same_whitening(Whitening(3).fit(VECTORS, labels), expected)
    assert_same_whitening(Whitening(3).partial_fit(VECTORS, labels), expected)
    with pytest.raises(TypeError, match="y: expected labels, which are ignored, got 3; dim=3"):
        Whitening().fit(VECTORS, 3)


def test_the_search_of_a_pipeline_finds_what_it_finds_with_pca():
    digits, labels = load_digits(return_X_y=True)
    options = {"first__dim": [2, 8, 16, 32]}
    neighbours = KNeighborsClassifier(3)
    search = GridSearchCV(
        Pipeline([("first", Whitening()), ("last", neighbours)]), options, error_score="raise"
    ).fit(digits, labels)
    pca = GridSearchCV(
        Pipeline([("first", PCA(whiten=True, svd_solver="full")), ("last", neighbours)]),
        {"first__n_components": options["first__dim"]},
    ).fit(digits, labels)
    scores, expected = (one.cv_results_["mean_test_score"] for one in (search, pca))
    np.testing.assert_allclose(scores, expected, atol=0.002)  # a tie or two of the neighbours
    assert search.best_params_["first__dim"] == pca.best_params_["first__n_components"] == 16
    assert search.best_score_ > 0.9
    assert search.best_estimator_[0].dim == 16


def test_a_pipeline_from_maps_to_classes(rng):
    labels = np.repeat([0, 1], 40)
    maps = rng.random((80, 32, 7, 9), dtype=np.float32)
    maps[labels == 1, ::2] *= 1.2
    pipeline = make_pipeline(FunctionTransformer(rmac.rmac), Whitening(8), KNeighborsClassifier())
    assert cross_val_score(pipeline, maps, labels, error_score="raise").mean() > 0.9
