"""The R-MAC descriptor: the pipeline of the paper, in its order."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from rmac._arrays import Array, deliver, descriptor_dtype, feature_batches, output
from rmac._checks import choice, flag, optional_workers, real, remembered
from rmac.operators import Backend, public_operator
from rmac.pooling import checked_pool
from rmac.regions import RegionGrid, region_grid

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["rmac"]

AGGREGATES = ("sum", "mean", "concat", "none")


@public_operator("RMAC")
def rmac(
    backend: Backend,
    x: Array,
    /,
    *,
    pool: str = "max",
    p: float = 3.0,
    levels: int = 3,
    overlap: float = 0.4,
    preset: str = "caffe2",
    layout: str = "NCHW",
    normalize_regions: bool = True,
    aggregate: str = "sum",
    normalize: bool = True,
    eps: float = 0.0,
    workers: int | None = None,
    out: Array | None = None,
) -> Array:
    r"""Describe each feature map by one vector: regional maximum activation of convolutions.

    With :math:`f_r` the channels' maxima, or means, in region r of the grid, the descriptor is

    .. math:: L2\left(\sum_r L2(f_r)\right), \qquad L2(v) = v / (\lVert v \rVert + eps)

    Parameters
    ----------
    x : array, shape (N, C, H, W), or (N, H, W, C) with ``layout="NHWC"``
        Feature maps: float16, bfloat16, float32, float64, uint8 or int8, in any strides. Or a list
        of N maps of their own sizes, (C, H, W) or (H, W, C) each, of one dtype.
    pool, p : {"max", "mean", "gem"}, float
        How a region's values become one, as in `region_pool`.
    levels, overlap, preset : int, float, str
        The grid, see `region_grid`.
    layout : {"NCHW", "NHWC"}, default "NCHW"
        The meaning of the axes of `x`, as in `region_pool`.
    normalize_regions : bool, default True
        Whether to L2-normalise each region's vector.
    aggregate : {"sum", "mean", "concat", "none"}, default "sum"
        What becomes of the R regional vectors: their sum; that divided by R; one after the other,
        D = R * C; or left as they are.
    normalize : bool, default True
        Whether to L2-normalise the descriptor. With ``aggregate="none"`` there is none to
        normalise, and the regional vectors stay as `normalize_regions` makes them.
    eps : float, default 0.0
        What is added to a norm before it divides. With 0, a zero vector stays zero, as in the
        paper's MATLAB code; 1e-6 is cnnimageretrieval-pytorch's.
    workers : int, optional
        Threads to use on the CPU, as in `region_pool`.
    out : array, shape (N, D), optional
        Where to put the result.

    Returns
    -------
    array, shape (N, D), or (N, R, D) with ``aggregate="none"``
        The descriptors: float64 for a float64 `x`, else float32. `out` if given.

    Raises
    ------
    TypeError
        If an array or option is of the wrong type, or `x` of a dtype not listed.
    ValueError
        If a shape or value is wrong.

    See Also
    --------
    region_pool : The regional maxima alone.

    Notes
    -----
    A NaN in a region makes its vector, and so a normalised descriptor, NaN. The descriptor of an
    image does not depend, bit for bit, on the batch it came in or on `workers`.

    References
    ----------
    .. [1] G. Tolias, R. Sicre and H. Jégou, "Particular object retrieval with integral
       max-pooling of CNN activations", ICLR 2016, arXiv:1511.05879, section 3.

    Examples
    --------
    >>> x = np.random.default_rng(0).random((8, 512, 24, 32), dtype=np.float32)
    >>> descriptors = rmac.rmac(x)
    >>> descriptors.shape
    (8, 512)
    >>> similarity = descriptors @ descriptors.T
    """
    options = _checked_options(pool, p, normalize_regions, aggregate, normalize, eps, workers)
    batches = feature_batches(x, layout)
    grids = [
        region_grid(*maps.shape[2:], levels=levels, overlap=overlap, preset=preset)
        for maps in batches
    ]
    shape = _shape(batches, grids, aggregate)
    result = output(out, x, shape, descriptor_dtype(batches[0].dtype), backend.empty)
    if result.size:
        backend.rmac(batches, [grid.boxes for grid in grids], result, **options)
    return deliver(result, out)


def _shape(
    batches: Sequence[Array], grids: Sequence[RegionGrid], aggregate: str
) -> tuple[int, ...]:
    images, channels = sum(maps.shape[0] for maps in batches), batches[0].shape[1]
    if aggregate in ("sum", "mean"):
        return images, channels
    regions = {len(grid) for grid in grids}
    if len(regions) > 1:
        raise ValueError(
            f'x: expected maps with equally many regions, as aggregate="{aggregate}" needs, '
            f"got {min(regions)} to {max(regions)}"
        )
    count = regions.pop()
    return (images, count * channels) if aggregate == "concat" else (images, count, channels)


class _Options(TypedDict):
    pool: str
    p: float
    normalize_regions: bool
    aggregate: str
    normalize: bool
    eps: float
    workers: int | None


@remembered
def _checked_options(
    pool: str,
    p: float,
    normalize_regions: bool,
    aggregate: str,
    normalize: bool,
    eps: float,
    workers: int | None,
) -> _Options:
    pool, p = checked_pool(pool, p)
    return {
        "pool": pool,
        "p": p,
        "normalize_regions": flag("normalize_regions", normalize_regions),
        "aggregate": choice("aggregate", aggregate, AGGREGATES),
        "normalize": flag("normalize", normalize),
        "eps": real("eps", eps, low=0),
        "workers": optional_workers(workers),
    }
