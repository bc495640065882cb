"""How work is split over launches of the kernels, and their structs filled.

The current device must be that of the arrays. Launches go to the current stream. Nothing here waits
for the device or reads from it.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmac._caches import cached
from rmac._options import AggregationOptions
from rmac.cuda.arrays import ALLOCATION, namespace, temporary_memory
from rmac.cuda.plan import chunk_width
from rmac.cuda.route import (
    DESCRIBE_SHARED,
    DESCRIBE_THREADS,
    MANY_IMAGES,
    MOST_BLOCKS,
    NORM_GROUP,
    WIDEST_LOAD,
    KernelSpec,
    Path,
    Route,
    block_shape,
    kernel_name,
    leaves_in_place,
    region_routes,
)
from rmac.cuda.source import kernel
from rmac.cuda.structs import (
    BATCHES,
    COUNTS,
    DESCRIBE_LAUNCH,
    PLAN_WORDS,
    POOL_LAUNCH,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rmac._maps import Batch

Array = Any  # cupy.ndarray
Struct = npt.NDArray[Any]  # of no dimensions: one struct
Address = tuple[int, int]  # the number of a pointer, and bytes to add

INT_MAX = (1 << 31) - 1
_MOST_SIDE = INT_MAX - 8191  # kernels count in int, to less than 8192 beyond the last
_BOX_BYTES = 4 * np.dtype(np.int64).itemsize
# The pointers of a call, by number: its result, its workspace, then its inputs.
_OUT, _WORKSPACE, _FIRST_INPUT = range(3)
_DESCRIBE = {4: "describe<float>", 8: "describe<double>"}  # by the bytes of an element


def _by_value(struct: Struct) -> Any:
    """Return a struct as an argument of launches, which points to the memory of the struct.

    If CuPy gets the array itself, it makes such an argument at each launch. That takes 20 us for an
    array with fields, and 1.2 us for one without.
    """
    return namespace().cuda.function.CNumpyArray(struct.view(f"V{struct.nbytes}"))


def launch_struct(
    name: str, blocks: int, threads: int, struct: Struct, *arrays: Array, shared: int = 0
) -> None:
    """Launch a kernel whose arguments are a copy of a struct, and arrays."""
    arguments = (_by_value(struct.copy()), *arrays)
    launched = kernel(name, namespace().cuda.runtime.getDevice())
    launched((blocks,), (threads,), arguments, shared_mem=shared)


class _Maps(NamedTuple):
    """The properties of a batch that decide how it is pooled."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    misalignment: int  # the address modulo `WIDEST_LOAD`


class _Job(NamedTuple):
    """Images of a batch, and how the kernels reach some of its regions."""

    batch: int  # its number
    maps: _Maps
    images: int
    offset: int  # bytes from the batch's address to the first of the images
    first_image: int  # its number in the output
    route: Route


class _Launch(NamedTuple):
    """What a launch of a kernel needs; only the addresses in it are still missing."""

    name: str
    grid: tuple[int]
    threads: tuple[int, ...]
    shared: int
    words: npt.NDArray[np.int64]  # the struct, and the address of the result
    addresses: list[tuple[int, int, int]]  # a place in words; the number of a pointer; bytes to add
    # By device, what no call uses now: a copy of the words, and the kernel with the arguments that
    # point to the copy. A call takes one and puts it back.
    unused: dict[int, list[tuple[npt.NDArray[np.int64], Any, tuple[Any, Any]]]]


class _Call(NamedTuple):
    """The launches of a call, one after the other, and its temporary memory."""

    launches: list[_Launch]
    workspace: int  # bytes
    counters: int  # of these bytes, how many of the first must be 0 before the launches


def launch_pooling(
    batches: Sequence[Batch], boxes: Sequence[bytes], out: Array, spec: KernelSpec
) -> None:
    """Write regional vectors (N, most regions, C) to `out`.

    A map with fewer regions leaves its last rows as they are.
    """
    pointers, key = _pointers_and_key(batches, boxes)
    _run(_pooling_call(*key, spec), out, pointers)


def launch_descriptors(
    batches: Sequence[Batch],
    boxes: Sequence[bytes],
    out: Array,
    spec: KernelSpec,
    aggregation: AggregationOptions,
) -> None:
    """Pool the regional vectors of all images, and describe these."""
    pointers, key = _pointers_and_key(batches, boxes)
    _run(_descriptors_call(*key, spec, aggregation), out, pointers)


def launch_description(vectors: Array, out: Array, aggregation: AggregationOptions) -> None:
    """Describe images by their regional vectors (N, R, D), which are overwritten."""
    call = _description_call(vectors.shape, vectors.itemsize, aggregation)
    _run(call, out, [vectors.data.ptr])


def _pointers_and_key(
    batches: Sequence[Batch], boxes: Sequence[bytes]
) -> tuple[list[int], tuple[tuple[tuple[Any, ...], ...], tuple[bytes, ...]]]:
    """Return the address of each batch; and the fields of `_Maps` of each, and all boxes."""
    pointers = [x.data.ptr for x, _, _ in batches]
    maps = [
        (shape, strides, pointers[i] % WIDEST_LOAD) for i, (_, shape, strides) in enumerate(batches)
    ]
    return pointers, (tuple(maps), tuple(boxes))


def _run(call: _Call, out: Array, inputs: Sequence[int]) -> None:
    """Launch the kernels of a call on inputs at these addresses."""
    pointers = [out.data.ptr, 0, *inputs]
    if call.workspace:
        workspace = temporary_memory(call.workspace)
        pointers[_WORKSPACE] = workspace.ptr
        if call.counters:
            workspace.memset_async(0, call.counters)
    device = namespace().cuda.runtime.getDevice()
    for launch in call.launches:
        unused = launch.unused.setdefault(device, [])
        try:
            ready = unused.pop()
        except IndexError:
            copy = launch.words.copy()
            arguments = _by_value(copy[:-1]), _by_value(copy[-1:])
            ready = copy, kernel(launch.name, device), arguments
        words, launched, arguments = ready
        for place, number, offset in launch.addresses:
            words[place] = pointers[number] + offset
        launched(launch.grid, launch.threads, arguments, launch.shared)
        unused.append(ready)


# Twice, since each launch has a copy of its words: more only with calls at the same time, or on
# several devices.
_cached_call = cached(lambda call: sum(2 * launch.words.nbytes for launch in call.launches))


@_cached_call
def _pooling_call(
    batches: tuple[tuple[Any, ...], ...], boxes: tuple[bytes, ...], spec: KernelSpec
) -> _Call:
    """Return the launches that pool."""
    maps = [_Maps(*one) for one in batches]
    regions = max(len(grid) // _BOX_BYTES for grid in boxes)
    routes, struct = _routes(maps, boxes, spec), _pool_struct(maps, regions, spec)
    return _Call(_pool_launches(maps, routes, struct, (_OUT, 0), [], spec), workspace=0, counters=0)


@_cached_call
def _descriptors_call(
    batches: tuple[tuple[Any, ...], ...],
    boxes: tuple[bytes, ...],
    spec: KernelSpec,
    aggregation: AggregationOptions,
) -> _Call:
    """Return the launches that pool, and then launches that describe if the first do not."""
    maps = [_Maps(*one) for one in batches]
    counts = [len(grid) // _BOX_BYTES for grid in boxes]
    routes = _routes(maps, boxes, spec)
    shape = sum(one.shape[0] for one in maps), max(counts), maps[0].shape[1]
    in_place = leaves_in_place(aggregation.aggregate)
    squares_too = shape[0] <= INT_MAX and all(_sums_squares(one, spec) for one in routes)
    describes_too = squares_too and shape[0] >= MANY_IMAGES and not in_place

    counters = shape[0] * np.dtype(np.uint32).itemsize if describes_too else 0
    size = 0 if in_place else math.prod(shape) * spec.out.itemsize
    finished, first, squares, workspace = _places(counters, size, _bytes_of_squares(shape))
    vectors = (_OUT, 0) if in_place else (_WORKSPACE, first)

    struct = _pool_struct(maps, shape[1], spec)
    addresses = []
    if squares_too:
        _set_options(struct["description"]["options"], aggregation)
        addresses.append(_address(POOL_LAUNCH, "description.squares", (_WORKSPACE, squares)))
    if describes_too:
        addresses.append(_address(POOL_LAUNCH, "description.finished", (_WORKSPACE, finished)))
        addresses.append(_address(POOL_LAUNCH, "description.descriptors", (_OUT, 0)))
    launches = _pool_launches(maps, routes, struct, vectors, addresses, spec)
    if not describes_too:
        struct = _describe_struct(shape, aggregation, are_squared=squares_too)
        addresses = _describe_addresses(vectors, (_WORKSPACE, squares))
        launches += _describe_launches(shape, counts, struct, addresses, spec.out.itemsize)
    return _Call(launches, workspace, counters)


@_cached_call
def _description_call(
    shape: tuple[int, int, int], itemsize: int, aggregation: AggregationOptions
) -> _Call:
    """Return the launches that describe regional vectors. They also sum the squares."""
    struct = _describe_struct(shape, aggregation, are_squared=False)
    addresses = _describe_addresses((_FIRST_INPUT, 0), (_WORKSPACE, 0))
    launches = _describe_launches(shape, [shape[1]], struct, addresses, itemsize)
    return _Call(launches, _bytes_of_squares(shape), 0)


def _sums_squares(routes: tuple[Route, ...], spec: KernelSpec) -> bool:
    """Return whether blocks that pool can sum squares: each has whole groups, of all regions.

    PowerMean never does: see `describes` in operations.cu.
    """
    whole = len(routes) == 1 and routes[0].channels % NORM_GROUP == 0
    return whole and not spec.is_arithmetic


def _bytes_of_squares(shape: tuple[int, int, int]) -> int:
    """Return the bytes of the sums of squares of regional vectors, one sum for each group."""
    images, regions, channels = shape
    return images * regions * -(-channels // NORM_GROUP) * np.dtype(np.float64).itemsize


def _places(*sizes: int) -> list[int]:
    """Return where pieces of memory begin, each aligned as an allocation, and where all end."""
    starts = list(accumulate((-(-size // ALLOCATION) * ALLOCATION for size in sizes), initial=0))
    return [*starts[:-1], starts[-2] + sizes[-1]]


def _address(struct: np.dtype[Any], field: str, address: Address) -> tuple[int, int, int]:
    """Return where a field of a struct is, in words, and the address that is written there.

    `field` may name a field of an inner struct, after a dot.
    """
    offset = 0
    for name in field.split("."):
        struct, start = struct.fields[name][:2]  # type: ignore[index]
        offset += start
    return (offset // 8, *address)


def _routes(maps: list[_Maps], boxes: Sequence[bytes], spec: KernelSpec) -> list[tuple[Route, ...]]:
    """Return how the kernels reach the regions of each batch."""
    for one in maps:
        require_32_bits(one.shape)
    images = sum(one.shape[0] for one in maps)
    # A power of 2, so that calls of about as many images have one cached route.
    least = 1 << min(images, 256).bit_length() >> 1
    return [region_routes(*one, grid, least, spec) for one, grid in zip(maps, boxes, strict=True)]


def _pool_launches(
    maps: list[_Maps],
    routes: list[tuple[Route, ...]],
    struct: Struct,
    vectors: Address,
    addresses: list[tuple[int, int, int]],
    spec: KernelSpec,
) -> list[_Launch]:
    """Return the launches that pool batches to `vectors`, each of as many jobs as it has room for.

    `struct` and `addresses` are what all launches have in common.
    """
    launches = []
    for jobs in _jobs_by_kernel(maps, routes):
        while jobs:
            launch, done = _launch_of_first_jobs(jobs, struct.copy(), vectors, addresses, spec)
            launches.append(launch)
            del jobs[:done]
    return launches


def _jobs_by_kernel(batches: list[_Maps], routes: list[tuple[Route, ...]]) -> Iterable[list[_Job]]:
    """Return a list of jobs for each kernel and shape of its blocks."""
    jobs_of_kernel: dict[tuple[Path, int, int], list[_Job]] = {}
    first_image = 0
    for batch, (maps, of_batch) in enumerate(zip(batches, routes, strict=True)):
        images, channels = maps.shape[:2]
        for route in of_batch:
            jobs = jobs_of_kernel.setdefault((route.path, route.vector, route.channels), [])
            most = max(1, MOST_BLOCKS // max(1, -(-channels // route.channels)))
            for first in range(0, images, most):
                some, offset = min(most, images - first), first * maps.strides[0]
                jobs.append(_Job(batch, maps, some, offset, first_image + first, route))
        first_image += images
    return jobs_of_kernel.values()


def require_32_bits(shape: tuple[int, ...]) -> None:
    """Raise if a side of maps is too large for the kernels, which count in int."""
    if max(shape[1:]) <= _MOST_SIDE:
        return
    for axis, size in zip(("channels", "rows", "columns"), shape[1:], strict=True):
        if size > _MOST_SIDE:
            raise ValueError(f"x: expected at most {_MOST_SIDE} {axis} on the GPU, got {size}")


def _pool_struct(maps: list[_Maps], regions: int, spec: KernelSpec) -> Struct:
    """Return the struct PoolLaunch without its batches and addresses."""
    struct = np.zeros((), POOL_LAUNCH)
    struct["channels"], struct["regions"] = maps[0].shape[1], regions
    struct["zero_point"], struct["p"], struct["factors"] = spec.zero_point, spec.p, spec.factors
    return struct


def _launch_of_first_jobs(
    jobs: list[_Job],
    struct: Struct,
    vectors: Address,
    addresses: list[tuple[int, int, int]],
    spec: KernelSpec,
) -> tuple[_Launch, int]:
    """Return one launch for the first jobs, and how many of them it has room for."""
    blocks = words = 0
    # Fields of the struct. To write them all at once takes a third of the time.
    batches: list[tuple[Any, ...]] = []
    plans: list[npt.NDArray[np.int32]] = []
    for job in jobs[:BATCHES]:
        plan = job.route.plan.words
        more_blocks = job.images * -(-job.maps.shape[1] // job.route.channels)
        if plans and (words + len(plan) > PLAN_WORDS or blocks + more_blocks > MOST_BLOCKS):
            break
        width = job.maps.shape[3]
        fields = (0, job.maps.strides, job.first_image, width, chunk_width(width), blocks, words)
        batches.append(fields)
        plans.append(plan)
        blocks, words = blocks + more_blocks, words + len(plan)
    taken = jobs[: len(plans)]
    struct["batch"][: len(batches)] = batches
    struct["words"][:words] = np.concatenate(plans)
    struct["batches"] = len(batches)
    shared = max(DESCRIBE_SHARED, *(job.route.shared for job in taken))
    height, width = (max(job.maps.shape[axis] for job in taken) for axis in (2, 3))
    name = kernel_name(taken[0].route, spec)
    threads = block_shape(taken[0].route, spec, height, width)
    place = POOL_LAUNCH.fields["batch"][1] // 8  # type: ignore[index]
    step = struct["batch"].itemsize // 8
    of_maps = [
        (place + i * step, _FIRST_INPUT + job.batch, job.offset) for i, job in enumerate(taken)
    ]
    addresses = [*addresses, *of_maps]
    return _launch(name, blocks, threads, shared, struct, vectors, addresses), len(taken)


def _launch(
    name: str,
    blocks: int,
    threads: tuple[int, ...],
    shared: int,
    struct: Struct,
    out: Address,
    addresses: list[tuple[int, int, int]],
) -> _Launch:
    words = np.append(struct.reshape(1).view(np.int64), 0)
    addresses = [*addresses, (len(words) - 1, *out)]
    return _Launch(name, (blocks,), threads, shared, words, addresses, unused={})


def _set_options(options: Struct, aggregation: AggregationOptions) -> None:
    """Fill the struct AggregationOptions."""
    options["in_place"] = leaves_in_place(aggregation.aggregate)
    for name in AggregationOptions._fields:
        options[name] = getattr(aggregation, name)


def _describe_struct(
    shape: tuple[int, int, int], aggregation: AggregationOptions, *, are_squared: bool
) -> Struct:
    """Return the struct DescribeLaunch without its images and addresses."""
    struct = np.zeros((), DESCRIBE_LAUNCH)
    _, struct["most_regions"], struct["channels"] = shape
    struct["are_squared"] = are_squared
    _set_options(struct["options"], aggregation)
    return struct


def _describe_addresses(vectors: Address, squares: Address) -> list[tuple[int, int, int]]:
    addresses = {"vectors": vectors, "squares": squares}
    return [_address(DESCRIBE_LAUNCH, *one) for one in addresses.items()]


def _describe_launches(
    shape: tuple[int, int, int],
    counts: list[int],
    struct: Struct,
    addresses: list[tuple[int, int, int]],
    itemsize: int,
) -> list[_Launch]:
    """Return launches that describe all images.

    `counts` holds each image's number of regions, or one number for all images.
    """
    same = len(set(counts)) == 1
    struct["same_count"] = counts[0] if same else 0
    launches = []
    most = MOST_BLOCKS if same else COUNTS
    for first in range(0, shape[0], most):
        struct["first_image"], blocks = first, min(most, shape[0] - first)
        if not same:
            struct["counts"][:blocks] = counts[first : first + blocks]
        launches.append(
            _launch(
                _DESCRIBE[itemsize],
                blocks,
                (DESCRIBE_THREADS,),
                DESCRIBE_SHARED,
                struct.copy(),
                (_OUT, 0),
                addresses,
            )
        )
    return launches
