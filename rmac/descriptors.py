"""The R-MAC descriptor: the pipeline of the paper, in its order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rmac._arrays import Array, default_grid, deliver, descriptor_dtype, feature_batches, output
from rmac._checks import choice, flag, optional_workers, real, remembered
from rmac._recipe import Pooling, Recipe
from rmac.cpu.threads import workers_before_product
from rmac.operators import Backend, public_operator
from rmac.pooling import checked_pooling
from rmac.regions import check_grid_options
from rmac.whitening import Whitening

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rmac.regions import RegionGrid

__all__ = ["rmac"]

AGGREGATES = ("sum", "mean", "concat", "none")

_BLOCK = 1 << 25  # bytes of regional vectors that are whitened at a time


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
    whitening: Whitening | None = None,
    aggregate: str = "sum",
    normalize: bool = True,
    eps: float = 0.0,
    workers: int | None = None,
    out: Array | None = None,
) -> Array:
    r"""Describe each feature map by one vector: regional maximum activation of convolutions.

    With :math:`f_r` the channels' maxima, or means, in region r of the grid, the descriptor is

    .. math:: L2\left(\sum_r L2(f_r)\right), \qquad L2(v) = v / (\lVert v \rVert + eps)

    or, with whitening w, :math:`L2\left(\sum_r L2(w(L2(f_r)))\right)`.

    Parameters
    ----------
    x : array, shape (N, C, H, W), or as `layout` says
        Feature maps: float16, bfloat16, float32, float64, uint8 or int8, in any strides. Or a list
        of N maps of their own sizes, without the axis N, of one dtype.
    pool, p : {"max", "mean", "gem"}, float
        How a region's values become one, as in `region_pool`.
    levels, overlap, preset : int, float, str
        The grid, see `region_grid`; for sequences `sequence_grid`, which has no use for `overlap`.
    layout : {"NCHW", "NHWC", "NCT", "NTC"}, default "NCHW"
        The meaning of the axes of `x`, as in `region_pool`; T are the positions of a sequence.
    normalize_regions : bool, default True
        Whether to L2-normalise each region's vector, before it is whitened and after.
    whitening : Whitening, optional
        What to whiten the regional vectors with, on the device of `x`. It is a matrix product,
        whose threads are those of NumPy's BLAS.
    aggregate : {"sum", "mean", "concat", "none"}, default "sum"
        What becomes of the R regional vectors, of C elements or of those that `whitening` leaves:
        their sum; that divided by R; one after the other, D = R * C; or left as they are.
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
    Whitening : Learned from regional vectors, as ``aggregate="none"`` gives them.

    Notes
    -----
    A NaN in a region makes its vector, and so a normalised descriptor, NaN. The descriptor of an
    image does not depend, bit for bit, on the batch it came in or on `workers`; with `whitening`,
    whose matrix product may, it does so to rounding.

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
    pooling = checked_pooling(pool, p)
    recipe = _checked_recipe(normalize_regions, aggregate, normalize, eps)
    workers = optional_workers(workers)
    options = check_grid_options(levels, overlap, preset)
    batches = feature_batches(x, layout)
    grids = [default_grid(maps, layout, *options) for maps in batches]
    channels = batches[0].shape[1]
    if whitening is not None:
        channels = _whitened_channels(whitening, batches[0])
    shape = _shape(batches, grids, aggregate, channels)
    result = output(out, x, shape, descriptor_dtype(batches[0].dtype), backend.empty)
    boxes = [grid.boxes for grid in grids]
    if whitening is not None:
        _write_whitened(
            backend, batches, boxes, result, pooling, whitening, recipe, workers=workers
        )
    elif result.size:
        backend.rmac(batches, boxes, result, pooling, recipe, workers=workers)
    return deliver(result, out)


def _whitened_channels(whitening: Whitening, maps: Array) -> int:
    """Return how many channels regional vectors of such maps have once they are whitened."""
    if not isinstance(whitening, Whitening):
        raise TypeError(f"whitening: expected a Whitening, got {type(whitening).__name__}")
    whitening._require_fits(maps, maps.shape[1], "x")
    return len(whitening.projection)


def _shape(
    batches: Sequence[Array], grids: Sequence[RegionGrid], aggregate: str, channels: int
) -> tuple[int, ...]:
    images = len(batches) if len(batches) > 1 else batches[0].shape[0]
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


def _write_whitened(
    backend: Backend,
    batches: Sequence[Array],
    boxes: Sequence[Any],
    out: Array,
    pooling: Pooling,
    whitening: Whitening,
    recipe: Recipe,
    *,
    workers: int | None,
) -> None:
    """Write descriptors of whitened regional vectors, a block of images at a time."""
    unaggregated = recipe._replace(aggregate="none")
    before, after = whitening.projection.shape[::-1]
    rows = max(1, _BLOCK // ((before + after) * out.itemsize))
    for places, maps, some in _blocks(batches, boxes, rows):
        count, regions = sum(len(one) for one in maps), len(some[0])
        vectors = backend.empty((count, regions, before), out.dtype, maps)
        poolers = workers
        if isinstance(out, np.ndarray):
            poolers = workers_before_product(workers, sum(one.nbytes for one in maps))
        backend.rmac(maps, some, vectors, pooling, unaggregated, workers=poolers)
        block = whitened = backend.empty((count, *out.shape[1:]), out.dtype, maps)
        if recipe.aggregate in ("sum", "mean"):
            whitened = backend.empty((count, regions, after), out.dtype, maps)
        whitened = whitened.reshape(count, regions, after)
        whitening._apply_to(vectors.reshape(-1, before), whitened.reshape(-1, after))
        backend.describe(whitened, block, recipe)
        done = 0
        for place, one in zip(places, maps, strict=True):
            out[place] = block[done : done + len(one)]
            done += len(one)


def _blocks(
    batches: Sequence[Array], boxes: Sequence[Any], rows: int
) -> Iterator[tuple[list[slice], list[Array], Sequence[Any]]]:
    """Yield images with equally many regions, `rows` or so in all: their places, maps and boxes."""
    if len(batches) == 1:
        step = max(1, rows // len(boxes[0]))
        for first in range(0, len(batches[0]), step):
            place = slice(first, first + step)
            yield [place], [batches[0][place]], boxes
        return
    alike: dict[int, list[int]] = {}
    for image, of_image in enumerate(boxes):
        alike.setdefault(len(of_image), []).append(image)
    for regions, images in alike.items():
        step = max(1, rows // regions)
        for first in range(0, len(images), step):
            some = images[first : first + step]
            places = [slice(image, image + 1) for image in some]
            yield places, [batches[i] for i in some], [boxes[i] for i in some]


@remembered
def _checked_recipe(normalize_regions: bool, aggregate: str, normalize: bool, eps: float) -> Recipe:
    """Return what becomes of regional vectors, or raise."""
    return Recipe(
        flag("normalize_regions", normalize_regions),
        choice("aggregate", aggregate, AGGREGATES),
        flag("normalize", normalize),
        real("eps", eps, low=0),
    )
