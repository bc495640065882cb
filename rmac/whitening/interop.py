"""Linear transforms of scikit-learn and FAISS, from and to a mean and a projection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rmac._checks import ask, type_name
from rmac._floats import default_floats

if TYPE_CHECKING:
    from rmac._backend import Array


def projection_of_pca(pca: Any) -> tuple[Array, Array, Array]:
    """Return the mean, projection and variances of a fitted `sklearn.decomposition.PCA`."""
    found = ask("pca", pca, _attributes, "a sklearn.decomposition.PCA")
    if found is None:
        raise ValueError("pca: expected a fitted PCA; call its fit first")
    return found


@default_floats()
def _attributes(pca: Any) -> tuple[Array, Array, Array] | None:
    """Return the mean, projection and variances of a PCA, None if it is not fitted."""
    whiten = pca.whiten  # other objects have none
    if not hasattr(pca, "components_"):
        return None
    rows, variances = pca.components_, pca.explained_variance_
    if whiten:
        scale = np.sqrt(variances)
        rows = rows / np.maximum(scale, np.finfo(scale.dtype).eps)[:, None]
    return pca.mean_, rows, variances


def projection_of_faiss(transform: Any) -> tuple[Array, Array]:
    """Return the mean and projection of a trained `faiss.LinearTransform`."""
    faiss = _faiss()
    linear = transform  # `transform` owns the memory, so it must outlive `linear`
    if isinstance(transform, faiss.VectorTransform):
        linear = faiss.downcast_VectorTransform(transform)
    if not isinstance(linear, faiss.LinearTransform):
        kind = type_name(linear)
        raise TypeError(f"transform: expected a faiss.LinearTransform, got {kind}")
    if not linear.is_trained:
        raise ValueError("transform: expected a trained transform; call its train first")
    rows = faiss.vector_to_array(linear.A).reshape(linear.d_out, linear.d_in)
    if isinstance(linear, faiss.PCAMatrix):
        return faiss.vector_to_array(linear.mean), rows
    if not linear.have_bias:
        return np.zeros(linear.d_in), rows
    return _mean_of(faiss.vector_to_array(linear.b), rows), rows


@default_floats()
def faiss_transform(mean: Array, rows: Array) -> Any:
    """Return a mean and a projection as a `faiss.LinearTransform`."""
    faiss = _faiss()
    transform = faiss.LinearTransform(rows.shape[1], rows.shape[0], True)
    faiss.copy_array_to_vector(rows.astype(np.float32).ravel(), transform.A)
    faiss.copy_array_to_vector((rows @ -mean).astype(np.float32), transform.b)
    transform.is_trained = True
    transform.set_is_orthonormal()
    return transform


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError("FAISS transforms need FAISS: pip install faiss-cpu") from error
    return faiss


@default_floats()
def _mean_of(bias: Array, rows: Array) -> Array:
    """Return the shortest vector m with rows @ -m == bias, or raise if there is none."""
    rows, bias = rows.astype(np.float64), bias.astype(np.float64)
    mean = np.linalg.lstsq(rows, -bias, rcond=None)[0]
    if np.abs(rows @ mean + bias).max() > 1e-5 * np.abs(bias).max():
        raise ValueError("transform: expected a bias that some mean gives, got one that none gives")
    return mean
