"""R-MAC descriptors: the pipeline of the paper, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from rmac import _hints
from rmac._arrays import (
    BOX_BYTES,
    Output,
    axes_of,
    boxes_of_batches,
    feature_maps,
    require_zero_point,
)
from rmac._checks import cached_check, choice, optional_workers, type_name, warn
from rmac._options import (
    LAYOUTS,
    MAP_LAYOUTS,
    Aggregate,
    AggregateName,
    AggregationOptions,
    GridOptions,
    Layout,
    PoolingOptions,
    PoolName,
    PresetName,
    aggregation_options,
    grid_options,
    pooling_options,
)
from rmac.operators import public_operator
from rmac.whitening import Whitening

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Unpack

    from rmac._backend import Array, Backend
    from rmac._maps import Batch
    from rmac._typing import ArrayT, NumPyArray, RMACKeywords
    from rmac.pooling import Regions
    from rmac.whitening.state import State

__all__ = ["rmac"]

_BLOCK = 1 << 25  # bytes in one block: regional vectors before and after whitening


@overload
def rmac(
    x: NumPyArray | Sequence[NumPyArray],
    /,
    *,
    whitening: Whitening | None = None,
    **options: Unpack[RMACKeywords],
) -> NumPyArray: ...
@overload
def rmac(
    x: ArrayT | Sequence[ArrayT],
    /,
    *,
    whitening: Whitening | None = None,
    **options: Unpack[RMACKeywords],
) -> ArrayT: ...
@public_operator("RMAC")
def rmac(
    backend: Backend,
    x: Array,
    /,
    *,
    pool: PoolName = "max",
    p: float = 3.0,
    zero_point: int = 0,
    levels: int = 3,
    overlap: float = 0.4,
    preset: PresetName = "caffe2",
    layout: Layout = "NCHW",
    regions: Regions = None,
    normalize_regions: bool = True,
    whitening: Whitening | None = None,
    aggregate: AggregateName = "sum",
    normalize: bool = True,
    eps: float = 0.0,
    workers: int | None = None,
    out: Array | None = None,
) -> Array:
    r"""Describe each feature map by one vector: regional maximum activation of convolutions.

    With :math:`f_r` the maxima, or means, of all channels in region r, the descriptor is

    .. math:: L2\left(\sum_r L2(f_r)\right), \qquad L2(v) = v / (\lVert v \rVert + eps)

    or, with a whitening w, :math:`L2\left(\sum_r L2(w(L2(f_r)))\right)`.

    Parameters
    ----------
    x : array, shape (N, C, H, W), or as `layout` says
        Feature maps: float16, bfloat16, float32, float64, uint8 or int8, in any strides. Or a list
        of N maps of one dtype and different sizes, without the axis N.
    pool, p : {"max", "mean", "gem"}, float
        How the values of a region become one, as in `region_pool`.
    zero_point : int, default 0
        The value of a quantised int8 or uint8 `x` that stands for 0. The descriptors are those of
        ``x.astype(np.float32) - zero_point``. The scale of the quantisation does not matter, if it
        is the same for all channels.
    levels, overlap, preset : int, float, str
        The grid, see `region_grid`. `overlap` is ignored for sequences, see `sequence_grid`.
    layout : {"NCHW", "NHWC", "NCT", "NTC"}, default "NCHW"
        The order of the axes of `x`, as in `region_pool`; T are the positions of a sequence.
    regions : RegionGrid or array_like of int, shape (R, 4), optional
        Boxes to describe instead of the grid, at least one, as in `region_pool`.
    normalize_regions : bool, default True
        Whether to L2-normalise the vector of each region, before and after it is whitened.
    whitening : Whitening, optional
        A whitening of the regional vectors, on the device of `x`. It is a matrix product, on the
        threads of NumPy's BLAS. A whitening of `kind` "descriptors" gives a `UserWarning`.
    aggregate : {"sum", "mean", "concat", "none"}, default "sum"
        How the vectors of the R regions become a descriptor: their sum; their mean; all in one
        vector, one region after the other; or, with "none", they stay separate: (N, R, D).
    normalize : bool, default True
        Whether to L2-normalise the descriptor. It has no effect with ``aggregate="none"``.
    eps : float, default 0.0
        A number that is added to each norm before the division. With 0 a zero vector stays zero, as
        in the paper's MATLAB code. cnnimageretrieval-pytorch has 1e-6.
    workers : int, optional
        Threads to use on the CPU, as in `region_pool`.
    out : array, shape (N, D), optional
        Array for the result, of its dtype.

    Returns
    -------
    array, shape (N, D), or (N, R, D) with ``aggregate="none"``
        The descriptors, float64 for a float64 `x`, else float32. D is C, the `dim` of `whitening`,
        or R times that with ``aggregate="concat"``. It is `out` if that is given.

    Raises
    ------
    TypeError
        If an array or option is of the wrong type, or `x` of a dtype not listed.
    ValueError
        If a shape or value is wrong.

    See Also
    --------
    region_pool : The maxima of regions, without the rest of the pipeline.
    Whitening : It is learned from regional vectors, the result of ``aggregate="none"``.

    Notes
    -----
    A NaN in a region makes its normalised vector NaN, and then the descriptor is NaN too. The
    descriptor of an image has the same bits in every batch and with any number of `workers`. With
    `whitening` it is the same to rounding, since the matrix product may round differently for other
    batches.

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

    One region, the whole map, gives the descriptor that is known as MAC:

    >>> rmac.rmac(x, regions=[[0, 0, 31, 23]]).shape
    (8, 512)
    """
    layout, pooling, grid, aggregation, workers = _checked_options(
        layout,
        pool,
        p,
        zero_point,
        levels,
        overlap,
        preset,
        normalize_regions,
        aggregate,
        normalize,
        eps,
        workers,
    )
    batches, info = feature_maps(backend, x, layout)
    require_zero_point(pooling.zero_point, info)
    boxes = boxes_of_batches(batches, regions, grid, sequence=layout not in MAP_LAYOUTS)
    if regions is not None and not boxes[0]:
        raise ValueError("regions: expected at least one box, got none")
    _, (images, dim, _, _), _ = batches[0]
    state = None
    if whitening is not None:
        state = _state_of(whitening, backend.view(batches[0], axes_of(x, layout)))
        dim = len(state.learned().projection)
    shape = _result_shape(images + len(batches) - 1, boxes, dim, aggregation.aggregate)
    result = Output(backend, out, [array for array, _, _ in batches], shape, info.descriptor)
    if state is not None:
        pipeline = _WhitenedPipeline(backend, pooling, state, aggregation, workers)
        pipeline.run(batches, boxes, dim, result.array)
    elif result.array.size:
        backend.rmac(batches, boxes, result.array, pooling, aggregation, workers=workers)
    return result.finish()


@cached_check
def _checked_options(
    layout: Layout,
    pool: PoolName,
    p: float,
    zero_point: int,
    levels: int,
    overlap: float,
    preset: PresetName,
    normalize_regions: bool,
    aggregate: AggregateName,
    normalize: bool,
    eps: float,
    workers: int | None,
) -> tuple[Layout, PoolingOptions, GridOptions, AggregationOptions, int | None]:
    return (
        choice("layout", layout, LAYOUTS),
        pooling_options(pool, p, zero_point),
        grid_options(levels, overlap, preset),
        aggregation_options(normalize_regions, aggregate, normalize, eps),
        optional_workers(workers),
    )


def _result_shape(
    images: int,
    boxes: Sequence[bytes],
    dim: int,
    aggregate: Aggregate,
) -> tuple[int, ...]:
    """Return the shape of the result from vectors of `dim` elements, or raise if there is none."""
    if aggregate is Aggregate.SUM or aggregate is Aggregate.MEAN:
        return images, dim
    regions = [len(one) // BOX_BYTES for one in boxes]
    count = regions[0]
    if min(regions) < max(regions):
        raise ValueError(
            "x: expected maps with equally many regions, as "
            f'aggregate="{aggregate.name.lower()}" needs, '
            f"got {min(regions)} to {max(regions)}"
        )
    return (images, count * dim) if aggregate is Aggregate.CONCAT else (images, count, dim)


def _state_of(whitening: Whitening, maps: Array) -> State:
    """Return what the whitening knows now, for all of this call; or raise."""
    state = _fitting_state(whitening, maps, "x")
    if state.kind == "descriptors":
        warn(
            "whitening: expected one of regions, got one that was learned from descriptors, which "
            "whitens regional vectors here; call its apply on the descriptors instead, or "
            'learn one from rmac.rmac(x, aggregate="none")'
        )
    return state


def frozen_whitening(whitening: Whitening, maps: Array, name: str) -> Whitening:
    """Return a whitening that nobody changes, of what is known now; or raise."""
    frozen = Whitening()
    frozen._state = _fitting_state(whitening, maps, name)
    return frozen


def _fitting_state(whitening: Whitening, maps: Array, name: str) -> State:
    """Return what the whitening knows now; raise if it does not fit the maps, of this name."""
    if not issubclass(type(whitening), Whitening):
        hint = _hints.for_whitening(whitening)
        raise TypeError(f"whitening: expected a Whitening, got {type_name(whitening)}{hint}")
    return whitening._state_for(maps, maps.shape[1], name)


@dataclass(frozen=True)
class _WhitenedPipeline:
    """The pipeline with whitening. It works on a block of images at a time."""

    backend: Backend
    pooling: PoolingOptions
    whitening: State
    aggregation: AggregationOptions
    workers: int | None

    def run(self, batches: Sequence[Batch], boxes: Sequence[bytes], dim: int, out: Array) -> None:
        """Write the descriptors of all images: (N, D), or (N, R, D) unaggregated.

        `dim` is that of `out`. The shape of the projection is not read again: whoever has its
        memory may have changed it.
        """
        channels = batches[0][1][1]
        rows = max(1, _BLOCK // ((channels + dim) * out.itemsize))
        for block in _blocks(batches, boxes, rows):
            vectors = self._regional_vectors(block, channels, out.dtype)
            descriptors = self._describe(vectors, out.shape[1:], dim)
            done = 0
            for place, (_, (images, *_), _) in zip(block.places, block.batches, strict=True):
                out[place] = descriptors[done : done + images]
                done += images

    def _regional_vectors(self, block: _Block, channels: int, dtype: Any) -> Array:
        """Return the vectors (N, R, C) of a block's regions, before they are whitened."""
        arrays = [array for array, _, _ in block.batches]
        images = sum(shape[0] for _, shape, _ in block.batches)
        shape = (images, len(block.boxes[0]) // BOX_BYTES, channels)
        vectors = self.backend.empty(shape, dtype, arrays[0])
        size = sum(array.nbytes for array in arrays)
        unaggregated = self.aggregation._replace(aggregate=Aggregate.NONE, normalize=False)
        self.backend.rmac(
            block.batches,
            block.boxes,
            vectors,
            self.pooling,
            unaggregated,
            workers=self.backend.workers_before_product(self.workers, size),
        )
        return vectors

    def _describe(self, vectors: Array, shape: tuple[int, ...], dim: int) -> Array:
        """Return the descriptors (N, *shape) of regional vectors, which are overwritten."""
        images, regions, channels = vectors.shape
        descriptors = self.backend.empty((images, *shape), vectors.dtype, vectors)
        if self.aggregation.aggregate in (Aggregate.SUM, Aggregate.MEAN):
            whitened = self.backend.empty((images, regions, dim), vectors.dtype, vectors)
        else:
            whitened = descriptors.reshape(images, regions, dim)
        self.whitening.apply_to(vectors.reshape(-1, channels), whitened.reshape(-1, dim))
        self.backend.describe(whitened, descriptors, self.aggregation)
        return descriptors


class _Block(NamedTuple):
    """Some images with equally many regions."""

    places: list[slice]  # in the output, one for each batch
    batches: Sequence[Batch]
    boxes: Sequence[bytes]


def _blocks(batches: Sequence[Batch], boxes: Sequence[bytes], rows: int) -> Iterator[_Block]:
    """Yield blocks of images that have about `rows` regions in all."""
    if len(batches) == 1:
        ((array, shape, strides),) = batches
        step = max(1, rows * BOX_BYTES // len(boxes[0]))
        for first in range(0, shape[0], step):
            place = slice(first, min(first + step, shape[0]))
            part = array if step >= shape[0] else array[place]  # that of a list has no axis N
            batch = part, (place.stop - first, *shape[1:]), strides
            yield _Block([place], [batch], boxes)
        return
    alike: dict[int, list[int]] = {}
    for image, of_image in enumerate(boxes):
        alike.setdefault(len(of_image), []).append(image)
    for size, images in alike.items():
        step = max(1, rows * BOX_BYTES // size)
        for first in range(0, len(images), step):
            some = images[first : first + step]
            places = [slice(image, image + 1) for image in some]
            yield _Block(places, [batches[i] for i in some], [boxes[i] for i in some])
