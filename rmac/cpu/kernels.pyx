# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=True
"""One-pass regional maxima and means, and descriptors from them.

Keys
    Maxima are taken over integer keys that order as the values do, so that one integer instruction
    is a maximum, whatever the dtype. For the bits b of a value, its key is
    ``(b ^ (b >> top & most)) - shift``, wrapping, with `most` the largest key: that puts negative
    floats in order, and `shift` turns the scale so that -inf is the least key and NaNs of either
    sign are above +inf. Integers of 8 bits are only shifted. A key is undone exactly: the result is
    one of the inputs, bit for bit.
    What is summed, values or their powers, is its own key, in float32 or float64; so that the same
    code combines maxima and sums.
NaN
    A region that holds a NaN gives a NaN. +0 is greater than -0.
Accumulation
    Maxima do not round. Means are summed in the type of their keys, norms in float64, regional
    vectors in the dtype of the result, all in an order that depends on shape and strides alone.
Memory
    `x` is read where it lies, once, in any strides, by tasks of one image and one block of
    channels. What a task makes of it stays in scratch memory of its thread, so little that most is
    in the cache when it is read again; `Path` tells how it gets at vectors of channels. What is
    summed is copied there first, widened and raised.
Threads
    A task runs on one thread. None reads what another writes; where the blocks of two overlap,
    both write the same.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, fabs, fma, fmaf, sqrt
from libc.stdint cimport (
    int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uintptr_t
)
from libc.string cimport memcpy

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define RMAC_OPENMP _OPENMP
    #else
    #define RMAC_OPENMP 0
    #define omp_get_max_threads() 1
    #endif
    #if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 18 : __GNUC__ >= 12)
    static int rmac_vector_level(void) {
        __builtin_cpu_init();
        return __builtin_cpu_supports("x86-64-v4") ? 2 : !!__builtin_cpu_supports("x86-64-v3");
    }
    #else
    #define rmac_vector_level() 0
    #endif
    #if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    #define RMAC_FMA 1
    #else
    #define RMAC_FMA 0
    #endif
    #if defined(__clang__)
    #define RMAC_COMPILER "clang " __clang_version__
    #elif defined(__GNUC__)
    #define RMAC_COMPILER "gcc " __VERSION__
    #else
    #define RMAC_COMPILER "unknown"
    #endif
    """
    const long RMAC_OPENMP
    const bint RMAC_FMA
    const char* RMAC_COMPILER
    const char* RMAC_VERSION  # this one and the next are defined by the build
    const char* RMAC_ISA
    int rmac_vector_level()
    int omp_get_max_threads() nogil

cdef extern from "lines.h" nogil:
    enum: LINE  # bytes of a line, and of a cache line
    ctypedef struct Line:
        pass
    Line load_line(const void* keys)
    void store_line(void* keys, Line line)
    void prefetch_line(const void* data)
    # Keys and bits are of the type of the last argument.
    int64_t encode(int64_t bits, int64_t shift)
    Line encode_line(Line bits, int64_t shift)
    Line decode_line(Line keys, int64_t shift)
    Line larger(Line a, Line b, int64_t like)
    Line add_lines(Line a, Line b, double like)

cdef extern from "transpose.h" nogil:
    # Keys are of the type of the last argument.
    void transpose(
        const void* rows, void* out, Py_ssize_t columns, Py_ssize_t stride, double like
    )

cdef extern from "powers.h" nogil:
    void raise_float(float* values, Py_ssize_t n, double p)
    void raise_double(double* values, Py_ssize_t n, double p)
    void take_root_float(float* values, Py_ssize_t n, double p)
    void take_root_double(double* values, Py_ssize_t n, double p)

cpdef enum Path:
    """How a block of channels becomes pixels that are contiguous vectors of channels."""
    CHANNELS = 0  # it is stored so
    ROWS = 1      # rows are contiguous: reduce them to segments, transpose those
    PLANES = 2    # planes are contiguous and small: transpose them whole
    GATHER = 3    # any strides: collect one row of pixels after the other

cpdef enum Aggregate:
    """What becomes of an image's regional vectors."""
    NONE = 0
    SUM = 1
    MEAN = 2
    CONCAT = 3

cpdef enum Kind:
    """What numbers are, in memory."""
    BITS = 0  # no matter which
    UINT8 = 1
    INT8 = 2
    FLOAT16 = 3
    BFLOAT16 = 4
    FLOAT32 = 5
    FLOAT64 = 6

ctypedef fused bits_t:
    int8_t
    int16_t
    int32_t
    int64_t

ctypedef fused key_t:
    int8_t
    int16_t
    int32_t
    int64_t
    float
    double

include "tables.pxi"
include "keys.pxi"
include "values.pxi"
include "stores.pxi"
include "paths.pxi"
include "describe.pxi"


cdef inline Py_ssize_t whole_lines(Py_ssize_t size) noexcept nogil:
    return (size + LINE - 1) // LINE * LINE


def scratch_bytes(Plan plan, int path, Py_ssize_t lanes, Py_ssize_t itemsize, bint sums):
    """Return the bytes that a thread needs to pool a block of channels, keys of `itemsize`."""
    return scratch_keys(&plan.tables, path, lanes, LINE // itemsize, sums) * itemsize


cdef Map map_of(const bits_t[:, :, :, :] x, int kind, double p) except *:
    cdef Map out
    out.data = <const char*>&x[0, 0, 0, 0]
    out.images, out.channels, out.height, out.width = x.shape[0], x.shape[1], x.shape[2], x.shape[3]
    out.image_stride, out.channel_stride = x.strides[0], x.strides[1]
    out.row_stride, out.pixel_stride = x.strides[2], x.strides[3]
    out.itemsize = sizeof(bits_t)
    out.kind = kind
    out.p = p
    return out


cdef Job job_of(x, Route route, int kind, double p) except *:
    cdef Job job
    if kind <= Kind.INT8:
        job.x = map_of[int8_t](x, kind, p)
    elif kind <= Kind.BFLOAT16:
        job.x = map_of[int16_t](x, kind, p)
    elif kind == Kind.FLOAT32:
        job.x = map_of[int32_t](x, kind, p)
    else:
        job.x = map_of[int64_t](x, kind, p)
    job.plan = &route.plan.tables
    job.path, job.lanes = route.path, route.lanes
    job.blocks = (job.x.channels + job.lanes - 1) // job.lanes
    return job


cdef inline Py_ssize_t pooling_bytes(const Job* job, key_t like) noexcept nogil:
    """Bytes that a thread needs to pool a block of channels: whole lines."""
    return whole_lines(sizeof(key_t) * scratch_keys(
        job.plan, job.path, job.lanes, lanes_of(like), key_t in floating
    ))


cdef bytes uninitialised(Py_ssize_t size):
    """Return memory that nobody else has seen, and that may therefore be written."""
    return PyBytes_FromStringAndSize(NULL, size)


cdef void share_scratch(Job* jobs, Py_ssize_t n, bytes memory, Py_ssize_t size) noexcept:
    """Tell jobs of the memory that holds `size` bytes, whole lines, for each worker, and a line."""
    cdef Py_ssize_t i
    for i in range(n):
        jobs[i].scratch = <uintptr_t>whole_lines(<uintptr_t>PyBytes_AS_STRING(memory))
        jobs[i].scratch_size = size


cdef inline void pool_task(
    const Job* job, Py_ssize_t image, Py_ssize_t block, int thread, key_t shift,
    const Target* target,
) noexcept nogil:
    """Write the regional vectors of one image and one block of channels."""
    cdef Py_ssize_t lanes = min(job.lanes, job.x.channels)
    # The last block is a whole one too: it begins where it must, over channels of the one before,
    # for which both write the same.
    cdef Py_ssize_t first = min(block * lanes, job.x.channels - lanes)
    pool_block(
        job, image, first, lanes, shift, <key_t*>(job.scratch + thread * job.scratch_size), target
    )


cdef inline void pool_image_block(
    const Job* job, Py_ssize_t task, int thread, key_t shift, Py_ssize_t itemsize, char* out
) noexcept nogil:
    cdef Py_ssize_t image = task // job.blocks
    cdef Target target
    target.itemsize, target.channels, target.kind = itemsize, job.x.channels, Kind.BITS
    target.data = out + image * job.plan.n_regions * job.x.channels * itemsize
    pool_task(job, image, task % job.blocks, thread, shift, &target)


def pool(
    x, Route route, int kind, double p, key_t shift, Py_ssize_t itemsize, unsigned char[::1] out,
    int workers,
):
    """Write what every region, channel and image of x (N, C, H, W) is pooled to.

    Parameters
    ----------
    x : IN, bits of the values
    route : IN, how to go through it
    kind : IN, what the values are
    p : IN, the power of generalised means, 0 for plain ones and for maxima
    shift : IN, the dtype's key; or, by its type, the one that is summed in
    itemsize : IN, bytes of a result
    out : OUT, bits of the results, (N, R, C) unless the plan has bins
    workers : IN, threads at most
    """
    cdef Job job = job_of(x, route, kind, p)
    cdef Py_ssize_t task, tasks = job.x.images * job.blocks, size = pooling_bytes(&job, shift)
    cdef char* target = <char*>&out[0]
    workers = min(workers, tasks)
    cdef bytes scratch = uninitialised(workers * size + LINE)
    share_scratch(&job, 1, scratch, size)
    if workers == 1:
        with nogil:
            for task in range(tasks):
                pool_image_block(&job, task, 0, shift, itemsize, target)
    else:
        for task in prange(tasks, nogil=True, schedule="static", num_threads=workers):
            pool_image_block(&job, task, threadid(), shift, itemsize, target)


cdef inline Py_ssize_t regional_bytes(const Job* job, Py_ssize_t itemsize) noexcept nogil:
    """Bytes of an image's regional vectors: whole lines."""
    return whole_lines(job.plan.n_regions * job.x.channels * itemsize)


cdef inline Target target_of(
    const Job* job, int thread, key_t like, const Recipe* recipe, floating* out
) noexcept nogil:
    """Where an image's regional vectors go: its row of the output, or a thread's scratch memory."""
    cdef Target target
    target.itemsize, target.channels = sizeof(floating), job.x.channels
    target.kind = job.x.kind if job.x.kind < Kind.FLOAT32 else Kind.BITS
    target.data = <char*>out
    if recipe.aggregate != Aggregate.CONCAT:
        target.data = <char*>(
            job.scratch + thread * job.scratch_size + pooling_bytes(job, like)
        )
    return target


cdef void rmac_image(
    const Job* job, Py_ssize_t image, int thread, key_t shift, const Recipe* recipe, floating* out
) noexcept nogil:
    cdef Py_ssize_t block
    cdef Target target = target_of(job, thread, shift, recipe, out)
    for block in range(job.blocks):
        pool_task(job, image, block, thread, shift, &target)
    describe_image(<floating*>target.data, recipe, job.plan.n_regions, job.x.channels, out)


def rmac(
    list maps, list routes, int kind, double p, key_t shift, bint normalize_regions,
    int aggregate, bint normalize, double eps,
    const Py_ssize_t[::1] order, floating[:, ::1] out, int workers,
):
    """Write the descriptor of every image, of one batch or of several batches of one image each.

    An image's regional vectors stay with the thread that pools them until they are its descriptor.
    With fewer images than workers, all workers pool each image together.

    Parameters
    ----------
    maps, routes : IN, of each batch, as `x` and `route` in `pool`
    kind, p, shift : as in `pool`
    normalize_regions, aggregate, normalize, eps : IN, see `Aggregate` and `rmac.rmac`
    order : IN, (N,) the batches in the order to take them in, None for one batch
    out : OUT, (N, D)
    workers : IN, threads at most
    """
    cdef Recipe recipe
    cdef Target target
    cdef Py_ssize_t i, image, block, images = out.shape[0], tasks = 0, size = 0
    cdef bint ragged = len(maps) > 1
    cdef bytes scratch, memory = uninitialised(len(maps) * sizeof(Job))
    cdef Job* jobs = <Job*>PyBytes_AS_STRING(memory)
    cdef Job* job
    for i in range(len(maps)):
        job = &jobs[i]
        job[0] = job_of(maps[i], routes[i], kind, p)
        tasks += job.x.images * job.blocks
        size = max(size, pooling_bytes(job, shift) + regional_bytes(job, sizeof(floating)))
    workers = min(workers, tasks)
    scratch = uninitialised(workers * size + LINE)
    share_scratch(jobs, len(maps), scratch, size)
    recipe.aggregate, recipe.eps = aggregate, eps
    recipe.normalize_regions, recipe.normalize = normalize_regions, normalize
    if workers == 1:
        with nogil:
            for image in range(images):
                rmac_image(
                    &jobs[image if ragged else 0], 0 if ragged else image, 0, shift, &recipe,
                    &out[image, 0],
                )
    elif images >= workers:
        for i in prange(images, nogil=True, schedule="dynamic", num_threads=workers):
            image = order[i] if ragged else i
            rmac_image(
                &jobs[image if ragged else 0], 0 if ragged else image, threadid(), shift, &recipe,
                &out[image, 0],
            )
    else:
        for image in range(images):
            job = &jobs[image if ragged else 0]
            target = target_of(job, 0, shift, &recipe, &out[image, 0])
            for block in prange(job.blocks, nogil=True, schedule="static", num_threads=workers):
                pool_task(job, 0 if ragged else image, block, threadid(), shift, &target)
            describe_image(
                <floating*>target.data, &recipe, job.plan.n_regions, job.x.channels,
                &out[image, 0],
            )


def describe(
    floating[:, :, ::1] vectors, bint normalize_regions, int aggregate, bint normalize, double eps,
    floating[:, ::1] out,
):
    """Turn regional vectors into descriptors, on one thread.

    They come from a matrix product, beside which this is little, and whose threads wait busily for
    another one for longer than this takes.

    Parameters
    ----------
    vectors : TEMP, (N, R, D), overwritten; where they are neither summed nor averaged, the memory
        of `out`
    normalize_regions, aggregate, normalize, eps : IN, see `Aggregate` and `rmac.rmac`
    out : OUT, (N, D)
    """
    cdef Recipe recipe
    cdef Py_ssize_t image
    recipe.aggregate, recipe.eps = aggregate, eps
    recipe.normalize_regions, recipe.normalize = normalize_regions, normalize
    with nogil:
        for image in range(out.shape[0]):
            describe_image(
                &vectors[image, 0, 0], &recipe, vectors.shape[1], vectors.shape[2], &out[image, 0]
            )


cdef int64_t xor_of(const int64_t* words, Py_ssize_t n) noexcept nogil:
    cdef int64_t total = 0
    cdef Py_ssize_t i
    for i in range(n):
        total ^= words[i]
    return total


def read(const int64_t[::1] words, int workers):
    """Read memory once, as fast as the workers can: the floor of every kernel here."""
    cdef int64_t total = 0
    cdef Py_ssize_t block, size = 1 << 13
    cdef Py_ssize_t blocks = (words.shape[0] + size - 1) // size
    for block in prange(blocks, nogil=True, schedule="static", num_threads=workers):
        total ^= xor_of(&words[block * size], min(size, words.shape[0] - block * size))
    return total


def build_info():
    """Return what the compiler made of this module."""
    return {
        "version": RMAC_VERSION.decode(),
        "compiler": RMAC_COMPILER.decode(),
        "isa": RMAC_ISA.decode(),
        "openmp": RMAC_OPENMP,
    }


def vector_level():
    """Return how many levels of x86-64 vector instructions above the baseline this machine has."""
    return rmac_vector_level()


def max_threads():
    """Return how many threads OpenMP would start, 1 without it."""
    return omp_get_max_threads()
