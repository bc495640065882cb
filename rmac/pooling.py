"""Regional pooling: one value for each channel and each region of a feature map."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from rmac._arrays import (
    BOX_BYTES,
    Output,
    boxes_of_batches,
    feature_map,
    feature_maps,
    region_rois,
    require_one,
    require_zero_point,
)
from rmac._checks import (
    cached_check,
    choice,
    is_list,
    one_or_two_ints,
    optional_workers,
    positive_int,
    real,
    shown,
)
from rmac._maps import require_axes
from rmac._options import (
    LAYOUTS,
    MAP_LAYOUTS,
    GridOptions,
    Layout,
    MapLayout,
    Pool,
    PoolingOptions,
    PoolName,
    PresetName,
    grid_options,
    pooling_options,
)
from rmac.operators import public_operator
from rmac.regions import RegionGrid, grid_windows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    import numpy.typing as npt

    from rmac._backend import Array, Backend
    from rmac._typing import ArrayT, NumPyArray, RegionPoolKeywords, RoIPoolKeywords

    Regions = RegionGrid | npt.ArrayLike | None

__all__ = ["region_pool", "rmac_regions", "roi_pool"]

_FLOAT32_MAX = 3.4e38  # a little less: the factor is rounded to float32, and must not become inf


@overload
def rmac_regions(x: NumPyArray, /, *, scales: int = 3, overlap: float = 0.4) -> NumPyArray: ...
@overload
def rmac_regions(x: ArrayT, /, *, scales: int = 3, overlap: float = 0.4) -> ArrayT: ...
@public_operator("RMACRegions")
def rmac_regions(backend: Backend, x: Array, /, *, scales: int = 3, overlap: float = 0.4) -> Array:
    """Return the R-MAC windows of a batch of feature maps as RoIs, as Caffe2's operator does.

    Only the shape of `x` matters. The windows are those of
    ``region_grid(H, W, levels=scales, overlap=overlap)``. The result is input for `roi_pool`.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        Feature maps, any dtype.
    scales : int, default 3
        Number of window sizes, at least 1.
    overlap : float, default 0.4
        Overlap to aim for between neighbouring windows along the longer side, in [0, 1).

    Returns
    -------
    array of float32, shape (N * R, 5)
        ``batch_index, x1, y1, x2, y2`` of each region in cells, inclusive on both ends: all regions
        of the first image, then those of the next. (0, 5) if `x` has no elements.

    Raises
    ------
    TypeError
        If `x` is not an array or an option is of the wrong type.
    ValueError
        If `x` does not have 4 axes or an option is out of range.

    See Also
    --------
    region_grid : The windows on a map of one size, as an object.
    """
    scales = positive_int("scales", scales)
    overlap = real("overlap", overlap, low=0, high=1)
    require_one(x)
    x = backend.plain(x, "x")
    require_axes(x, "NCHW")
    if x.size == 0:
        return backend.empty((0, 5), "float32", x)
    options = GridOptions(scales, overlap, "caffe2")
    windows = grid_windows(x.shape[2], x.shape[3], options, sequence=False)
    return backend.rmac_regions(windows.boxes, x.shape[0], x)


@overload
def region_pool(
    x: NumPyArray, /, regions: Regions = None, **options: Unpack[RegionPoolKeywords]
) -> NumPyArray: ...
@overload
def region_pool(
    x: Sequence[NumPyArray], /, regions: Regions = None, **options: Unpack[RegionPoolKeywords]
) -> list[NumPyArray]: ...
@overload
def region_pool(
    x: ArrayT, /, regions: Regions = None, **options: Unpack[RegionPoolKeywords]
) -> ArrayT: ...
@overload
def region_pool(
    x: Sequence[ArrayT], /, regions: Regions = None, **options: Unpack[RegionPoolKeywords]
) -> list[ArrayT]: ...
@public_operator("RegionPool")
def region_pool(
    backend: Backend,
    x: Array,
    /,
    regions: Regions = None,
    *,
    pool: PoolName = "max",
    p: float = 3.0,
    zero_point: int = 0,
    levels: int = 3,
    overlap: float = 0.4,
    preset: PresetName = "caffe2",
    layout: Layout = "NCHW",
    workers: int | None = None,
    out: Array | None = None,
) -> Array:
    r"""Pool each channel of each feature map, or sequence, over regions.

    `x` is read once, whatever the number of regions that overlap.

    Parameters
    ----------
    x : array, shape (N, C, H, W), or as `layout` says
        Feature maps: float16, bfloat16, float32, float64, uint8 or int8, in any strides. Or a list
        of maps of different sizes, without the axis N.
    regions : RegionGrid or array_like of int, shape (R, 4), optional
        Boxes ``x1, y1, x2, y2`` inside the map, in cells, inclusive on both ends; on the host. On
        sequences also (R, 2): the first and the last position of each region. The default is the
        R-MAC grid of `levels`, `overlap` and `preset`, which are ignored if boxes are given.
    pool : {"max", "mean", "gem"}, default "max"
        How the values of a region become one: their maximum, their mean, or their generalised mean.
        The maximum is exact. A region that holds a NaN gives NaN, as in `numpy.max`. (Caffe2 and
        torchvision skip NaN, as a side effect of their comparisons.)
    p : float, default 3.0
        The power of the generalised mean, at least 0.001 and less than 50. A power of 1 gives
        nearly the mean, and a large power nearly the maximum. Other pools ignore it.
    zero_point : int, default 0
        The value of a quantised int8 or uint8 `x` that stands for 0: means are those of
        ``x.astype(np.float32) - zero_point``. It must be 0 with ``pool="max"``, since maxima keep
        the values of `x`.
    levels, overlap, preset : int, float, str
        The grid, see `region_grid`. `overlap` is ignored for sequences, see `sequence_grid`.
    layout : {"NCHW", "NHWC", "NCT", "NTC"}, default "NCHW"
        The order of the axes of `x`: N images, C channels, H and W the height and width of a map,
        T the positions of a sequence. Speed depends on strides alone: an NCHW view of NHWC memory
        is as fast as NHWC.
    workers : int, optional
        Threads to use on the CPU; fewer if the system cannot start so many. The default is what
        OpenMP would use at this call (``OMP_NUM_THREADS`` at its start, or set later with
        threadpoolctl), and without ``OMP_NUM_THREADS`` no more than the CPUs that the process may
        use. The result does not depend on it.
    out : array, shape (N, R, C), optional
        Array for the result, of its dtype.

    Returns
    -------
    array, shape (N, R, C)
        Maxima in the dtype of `x`; means in float64 for a float64 `x`, else in float32. It is `out`
        if that is given. For a list of maps it is a list of arrays (R, C).

    Raises
    ------
    TypeError
        If an array or option is of the wrong type, or `x` of a dtype not listed.
    ValueError
        If a shape or value is wrong: a map without cells, a box outside the map, an `out` of
        another shape.

    See Also
    --------
    rmac : The descriptors of images, from their regional vectors.
    sequence_grid : The regions of a sequence.
    roi_pool : Pooling over other regions for each image.

    Notes
    -----
    The generalised mean [1]_ of n values is

    .. math:: \left(\frac{1}{n} \sum_i \max(x_i, 10^{-6})^p\right)^{1/p}

    as in cnnimageretrieval-pytorch. Means, and powers of 1 to 5, accumulate in float32; other
    powers, and float64 maps, accumulate in float64. A sum overflows to inf when
    ``n * max(x)**p`` exceeds 3e38 (float32) or 1e308 (float64). A million values of up to a million
    do not overflow.

    References
    ----------
    .. [1] F. Radenović, G. Tolias and O. Chum, "Fine-tuning CNN image retrieval with no human
       annotation", TPAMI 2019, arXiv:1711.02512, section 3.2.

    Examples
    --------
    >>> x = np.random.default_rng(0).random((2, 512, 24, 32), dtype=np.float32)
    >>> rmac.region_pool(x).shape
    (2, 20, 512)
    >>> bool(rmac.region_pool(x, [[0, 0, 31, 23]])[0, 0, 7] == x[0, 7].max())
    True

    The tokens of a vision transformer, behind a class token, without a copy:

    >>> tokens = np.random.default_rng(0).random((2, 1 + 14 * 14, 768), dtype=np.float32)
    >>> maps = tokens[:, 1:].reshape(2, 14, 14, 768)
    >>> rmac.region_pool(maps, layout="NHWC").shape
    (2, 14, 768)
    """
    layout, pooling, options, workers = _checked_options(
        layout, pool, p, zero_point, levels, overlap, preset, workers
    )
    if pooling.pool is Pool.MAX and pooling.zero_point:
        raise ValueError(
            f'zero_point: expected 0 with pool="max", got {shown(pooling.zero_point)}; maxima keep '
            "the values of x: subtract it from the result"
        )
    ragged = is_list(x)
    if ragged and out is not None:
        raise TypeError("out: expected None with a list of maps, whose results are a list")
    batches, info = feature_maps(backend, x, layout)
    require_zero_point(pooling.zero_point, info)
    boxes = boxes_of_batches(batches, regions, options, sequence=layout not in MAP_LAYOUTS)
    dtype = batches[0][0].dtype if pooling.pool is Pool.MAX else info.descriptor
    pooled = []
    for i, batch in enumerate(batches):
        array, (images, channels, _, _), _ = batch
        count = len(boxes[i]) // BOX_BYTES
        shape = (count, channels) if ragged else (images, count, channels)
        result = Output(backend, out, [array], shape, dtype)
        if result.array.size:
            backend.region_pool(batch, boxes[i], result.array, pooling, workers=workers)
        pooled.append(result.finish())
    return pooled if ragged else pooled[0]


@cached_check
def _checked_options(
    layout: Layout,
    pool: PoolName,
    p: float,
    zero_point: int,
    levels: int,
    overlap: float,
    preset: PresetName,
    workers: int | None,
) -> tuple[Layout, PoolingOptions, GridOptions, int | None]:
    return (
        choice("layout", layout, LAYOUTS),
        pooling_options(pool, p, zero_point),
        grid_options(levels, overlap, preset),
        optional_workers(workers),
    )


@overload
def roi_pool(
    x: NumPyArray, /, rois: NumPyArray | Sequence[NumPyArray], **options: Unpack[RoIPoolKeywords]
) -> NumPyArray: ...
@overload
def roi_pool(
    x: ArrayT, /, rois: ArrayT | Sequence[ArrayT], **options: Unpack[RoIPoolKeywords]
) -> ArrayT: ...
@public_operator("RoIPool")
def roi_pool(
    backend: Backend,
    x: Array,
    /,
    rois: Array | Sequence[Array],
    *,
    output_size: int | Sequence[int] = 1,
    spatial_scale: float = 1.0,
    layout: MapLayout = "NCHW",
    workers: int | None = None,
    out: Array | None = None,
) -> Array:
    """Max-pool each RoI into a grid of bins, in the arithmetic of Caffe2 and torchvision.

    The coordinates of a RoI are scaled and rounded half away from zero, and the RoI is at least one
    cell high and wide. Bin i of n along a side of length s has the cells from ``floor(i * s / n)``
    to ``ceil((i + 1) * s / n)``, exclusive, computed in float32. Bins are clipped to the map, and
    may overlap.

    Parameters
    ----------
    x : array, shape (N, C, H, W), or (N, H, W, C) with ``layout="NHWC"``
        Feature maps: float16, bfloat16, float32, float64, uint8 or int8, in any strides.
    rois : array of real numbers, shape (K, 5), or list of N arrays, shape (L, 4)
        ``batch_index, x1, y1, x2, y2`` of each RoI, inclusive on both ends, on the device of `x`.
        Or ``x1, y1, x2, y2`` of each RoI of each image, as torchvision takes them. Coordinates are
        rounded to float32.
    output_size : int or (int, int), default 1
        Bins along the height and along the width of a RoI.
    spatial_scale : float, default 1.0
        The factor from coordinates to cells, such as 1/16.
    layout : {"NCHW", "NHWC"}, default "NCHW"
        The order of the axes of `x`.
    workers : int, optional
        Threads to use on the CPU, as in `region_pool`.
    out : array, shape (K, C, ph, pw), optional
        Array for the result, of the dtype of `x`.

    Returns
    -------
    array, shape (K, C, ph, pw)
        The maxima in the dtype of `x`. A bin that holds a NaN gives NaN, and a bin without cells
        gives 0. It is `out` if that is given.

    Raises
    ------
    IndexError
        If a batch index is not in 0..N-1.
    TypeError
        If an array or option is of the wrong type, or `x` of a dtype not listed.
    ValueError
        If a shape or value is wrong, or a RoI is not finite.

    See Also
    --------
    rmac_regions : RoIs of the R-MAC grid.
    """
    ph, pw = one_or_two_ints("output_size", output_size)
    spatial_scale = real("spatial_scale", spatial_scale, low=0, high=_FLOAT32_MAX, strict=True)
    workers = optional_workers(workers)
    layout = choice("layout", layout, MAP_LAYOUTS)
    maps, _ = feature_map(backend, x, layout)
    rois = region_rois(rois, maps)
    result = Output(backend, out, [maps, rois], (len(rois), maps.shape[1], ph, pw), maps.dtype)
    backend.roi_pool(
        maps,
        rois,
        result.array,
        output_size=(ph, pw),
        spatial_scale=spatial_scale,
        workers=workers,
    )
    return result.finish()
