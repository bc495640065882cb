# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=True
"""One-pass regional maxima, and descriptors from them.

Keys
    Maxima are taken over integer keys that order as the values do, so that one integer instruction
    is a maximum, whatever the dtype. For the bits b of a value, its key is
    ``(b ^ (b >> top & flip)) - shift``, wrapping: `flip` puts negative floats in order, and `shift`
    turns the scale so that -inf is the least key and NaNs of either sign are above +inf. Integers
    have flip 0. A key is undone exactly: the result is one of the inputs, bit for bit.
NaN
    A region that holds a NaN gives a NaN. +0 is greater than -0.
Accumulation
    Maxima do not round. Norms are summed in float64, regional vectors in the dtype of the result,
    both in an order that depends on the shape alone.
Memory
    `x` is read where it lies, once, in any strides. A task is one image and one block of channels.
    The common inner form is `cells`: pixels that are contiguous vectors of LANES or more channels.
    Where the map is not stored so, it is brought there a block at a time (see `Path`).
Threads
    Tasks in equal runs over the workers; none writes what another reads.
"""

from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport sqrt
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
    #if defined(__clang__)
    #define RMAC_COMPILER "clang " __clang_version__
    #elif defined(__GNUC__)
    #define RMAC_COMPILER "gcc " __VERSION__
    #elif defined(_MSC_VER)
    #define RMAC_COMPILER "msvc"
    #else
    #define RMAC_COMPILER "unknown"
    #endif
    """
    const long RMAC_OPENMP
    const char* RMAC_COMPILER
    const char* RMAC_VERSION  # defined by the build
    int omp_get_max_threads() nogil

# Bytes of one vector of keys: the widest register in use, and a cache line.
cdef enum:
    LINE = 64

cpdef enum Path:
    """How a block of channels becomes pixels that are contiguous vectors of channels."""
    CHANNELS = 0  # it is stored so
    ROWS = 1      # rows are contiguous: reduce them to the regions' intervals, transpose those
    PLANES = 2    # planes are contiguous and small: transpose them whole
    GATHER = 3    # any strides: collect one row of pixels after the other

cpdef enum Aggregate:
    """What becomes of an image's regional vectors."""
    CONCAT = 0
    SUM = 1
    MEAN = 2

cpdef enum Kind:
    """What the bits of a value mean."""
    UINT8 = 0
    INT8 = 1
    FLOAT16 = 2
    BFLOAT16 = 3
    FLOAT32 = 4
    FLOAT64 = 5

ctypedef fused key_t:
    int8_t
    int16_t
    int32_t
    int64_t

cdef struct Program:
    Py_ssize_t n_segments
    Py_ssize_t n_steps
    Py_ssize_t n_results
    Py_ssize_t n_slots
    const Py_ssize_t* segments
    const Py_ssize_t* steps
    const Py_ssize_t* result

cdef struct Cells:
    Py_ssize_t n_bands
    const Py_ssize_t* bands
    Program columns
    const Py_ssize_t* band_end
    const Py_ssize_t* region
    const Py_ssize_t* slot

cdef struct Map:
    # A batch of feature maps in memory; strides in bytes.
    const char* data
    Py_ssize_t images, channels, height, width
    Py_ssize_t image_stride, channel_stride, row_stride, pixel_stride

cdef struct Pixels:
    # A map of contiguous channel vectors; strides in bytes.
    const char* data
    Py_ssize_t row_stride, pixel_stride


cdef class Plan:
    """The tables of `rmac.cpu.plan`, as the kernels read them."""

    cdef readonly Py_ssize_t height, width, n_regions, n_row_intervals, bins
    cdef Program rows
    cdef Cells map_cells, row_cells
    cdef const Py_ssize_t* target
    cdef list _tables

    def __init__(self, height, width, map_cells, rows, target, bins):
        self._tables = []
        self.height = height
        self.width = width
        self.bins = bins
        self.n_regions = len(target)
        self.target = self._table(target)
        self.map_cells = self._cells(map_cells)
        self.rows = self._program(rows.program)
        self.row_cells = self._cells(rows.cells)
        self.n_row_intervals = self.rows.n_results

    cdef const Py_ssize_t* _table(self, table) except? NULL:
        cdef const Py_ssize_t[::1] flat = table.ravel()
        self._tables.append(flat)
        return &flat[0] if flat.shape[0] else NULL

    cdef Program _program(self, program) except *:
        cdef Program out
        out.n_segments = len(program.segments)
        out.n_steps = len(program.steps)
        out.n_results = len(program.result)
        out.n_slots = program.slots
        out.segments = self._table(program.segments)
        out.steps = self._table(program.steps)
        out.result = self._table(program.result)
        return out

    cdef Cells _cells(self, cells) except *:
        cdef Cells out
        out.n_bands = len(cells.bands)
        out.bands = self._table(cells.bands)
        out.columns = self._program(cells.columns)
        out.band_end = self._table(cells.band_end)
        out.region = self._table(cells.region)
        out.slot = self._table(cells.slot)
        return out


cdef inline key_t encode(key_t bits, key_t flip, key_t shift) noexcept nogil:
    return <key_t>((bits ^ ((bits >> (8 * sizeof(key_t) - 1)) & flip)) - shift)


cdef inline key_t decode(key_t key, key_t flip, key_t shift) noexcept nogil:
    cdef key_t bits = <key_t>(key + shift)
    return <key_t>(bits ^ ((bits >> (8 * sizeof(key_t) - 1)) & flip))


cdef inline key_t least_key(key_t like) noexcept nogil:
    return <key_t>((<int64_t>-1) << (8 * sizeof(key_t) - 1))


cdef inline void fill(key_t* out, key_t value, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = value


cdef inline void maximum(
    key_t* out, const key_t* a, const key_t* b, Py_ssize_t n
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = a[i] if a[i] > b[i] else b[i]


cdef inline void maximum_encoded(
    key_t* out, const key_t* values, key_t flip, key_t shift, Py_ssize_t n
) noexcept nogil:
    cdef Py_ssize_t i
    cdef key_t key
    for i in range(n):
        key = encode(values[i], flip, shift)
        out[i] = key if key > out[i] else out[i]


cdef void run_program(const Program* program, key_t* slots, Py_ssize_t n) noexcept nogil:
    """Combine the segments' slots, each of n keys, into those of the intervals."""
    cdef Py_ssize_t i
    cdef const Py_ssize_t* step
    for i in range(program.n_steps):
        step = program.steps + 3 * i
        maximum(slots + step[0] * n, slots + step[1] * n, slots + step[2] * n, n)


cdef void pool_band(
    const Program* columns, Pixels pixels, Py_ssize_t top, Py_ssize_t bottom,
    key_t flip, key_t shift, key_t* slots, Py_ssize_t n,
) noexcept nogil:
    """Reduce rows top..bottom of a map to one maximum per segment of columns."""
    cdef Py_ssize_t segment, x, y
    cdef const char* row
    for y in range(top, bottom):
        row = pixels.data + y * pixels.row_stride
        for segment in range(columns.n_segments):
            for x in range(columns.segments[2 * segment], columns.segments[2 * segment + 1]):
                maximum_encoded(
                    slots + segment * n, <const key_t*>(row + x * pixels.pixel_stride),
                    flip, shift, n,
                )


cdef void close_band(
    const Cells* cells, Py_ssize_t band, key_t* slots, key_t* regions, Py_ssize_t n
) noexcept nogil:
    """Combine a band's segments of columns, and take them into the regions that cross it."""
    cdef Py_ssize_t i, begin = cells.band_end[band - 1] if band else 0
    cdef key_t* region
    run_program(&cells.columns, slots, n)
    for i in range(begin, cells.band_end[band]):
        region = regions + cells.region[i] * n
        maximum(region, region, slots + cells.slot[i] * n, n)


cdef void pool_cells(
    const Cells* cells, Pixels pixels, key_t flip, key_t shift,
    key_t* slots, key_t* regions, Py_ssize_t n,
) noexcept nogil:
    """Maxima of n channels in every region, from pixels in the layout of `Path.CHANNELS`."""
    cdef Py_ssize_t band
    cdef key_t least = least_key(flip)
    for band in range(cells.n_bands):
        fill(slots, least, cells.columns.n_segments * n)
        pool_band(
            &cells.columns, pixels, cells.bands[2 * band], cells.bands[2 * band + 1],
            flip, shift, slots, n,
        )
        close_band(cells, band, slots, regions, n)


cdef void gather_row(
    const Map* x, const char* row, Py_ssize_t lanes, key_t* out, Py_ssize_t n
) noexcept nogil:
    """Collect one row of `lanes` channels into pixels of n."""
    cdef Py_ssize_t lane, i
    cdef const char* channel
    for lane in range(lanes):
        channel = row + lane * x.channel_stride
        for i in range(x.width):
            out[i * n + lane] = (<const key_t*>(channel + i * x.pixel_stride))[0]


cdef void pool_gathered(
    const Cells* cells, const Map* x, const char* block, Py_ssize_t lanes,
    key_t flip, key_t shift, key_t* row, key_t* slots, key_t* regions, Py_ssize_t n,
) noexcept nogil:
    """As `pool_cells`, for a map in any strides."""
    cdef Py_ssize_t band, y
    cdef key_t least = least_key(flip)
    cdef Pixels pixels
    pixels.data = <const char*>row
    pixels.row_stride = 0
    pixels.pixel_stride = n * sizeof(key_t)
    for band in range(cells.n_bands):
        fill(slots, least, cells.columns.n_segments * n)
        for y in range(cells.bands[2 * band], cells.bands[2 * band + 1]):
            gather_row(x, block + y * x.row_stride, lanes, row, n)
            pool_band(&cells.columns, pixels, y, y + 1, flip, shift, slots, n)
        close_band(cells, band, slots, regions, n)


cdef void pool_rows(
    const Program* rows, const Map* x, const char* block, Py_ssize_t lanes,
    key_t flip, key_t shift, key_t* slots, Py_ssize_t n,
) noexcept nogil:
    """Reduce the rows of `lanes` planes to the program's intervals: (slot, plane, column)."""
    cdef Py_ssize_t lane, segment, y, slot_size = n * x.width
    cdef const char* plane
    cdef key_t* out
    fill(slots, least_key(flip), rows.n_segments * slot_size)
    for lane in range(lanes):
        plane = block + lane * x.channel_stride
        for segment in range(rows.n_segments):
            out = slots + segment * slot_size + lane * x.width
            for y in range(rows.segments[2 * segment], rows.segments[2 * segment + 1]):
                maximum_encoded(
                    out, <const key_t*>(plane + y * x.row_stride), flip, shift, x.width
                )
    run_program(rows, slots, slot_size)


cdef inline void interleave(const key_t* src, key_t* out, Py_ssize_t half) noexcept nogil:
    """Shuffle the two halves of `src` like a deck of cards."""
    cdef Py_ssize_t i
    for i in range(half):
        out[2 * i] = src[i]
        out[2 * i + 1] = src[half + i]


cdef key_t* transpose(
    const key_t* src, key_t* out, key_t* spare, Py_ssize_t lanes, Py_ssize_t columns
) noexcept nogil:
    """Transpose (lanes, columns) into (columns, lanes); return which of the two buffers has it.

    Element (lane, column) stands at i = lane * columns + column. One shuffle of all lanes * columns
    elements takes i to 2 * i modulo their number less one, so log2(lanes) of them take it to
    column * lanes + lane.
    """
    cdef Py_ssize_t half = lanes * columns // 2
    interleave(src, out, half)
    while lanes > 2:
        interleave(out, spare, half)
        out, spare = spare, out
        lanes //= 2
    return out


cdef void pool_block(
    const Map* x, Plan plan, int path, Py_ssize_t image, Py_ssize_t first, Py_ssize_t lanes,
    key_t flip, key_t shift, key_t* scratch, Py_ssize_t n,
) noexcept nogil:
    """Leave the keys of one image's regions and `lanes` channels in `scratch`: (region, n)."""
    cdef key_t* slots = scratch + plan.n_regions * n
    cdef key_t* tile
    cdef key_t* out
    cdef Py_ssize_t i, size
    cdef Pixels pixels
    cdef const char* block = x.data + image * x.image_stride + first * x.channel_stride
    fill(scratch, least_key(flip), plan.n_regions * n)
    if path == Path.CHANNELS:
        pixels.data = block
        pixels.row_stride = x.row_stride
        pixels.pixel_stride = x.pixel_stride
        pool_cells(&plan.map_cells, pixels, flip, shift, slots, scratch, lanes)
        return
    tile = slots + plan.map_cells.columns.n_slots * n
    if path == Path.GATHER or (path == Path.PLANES and lanes < n):
        pool_gathered(
            &plan.map_cells, x, block, lanes, flip, shift, tile, slots, scratch, n
        )
        return
    pixels.pixel_stride = n * sizeof(key_t)
    pixels.row_stride = n * x.width * sizeof(key_t)
    if path == Path.PLANES:
        size = n * x.height * x.width
        pixels.data = <const char*>transpose(
            <const key_t*>block, tile, tile + size, n, x.height * x.width
        )
        pool_cells(&plan.map_cells, pixels, flip, shift, slots, scratch, n)
        return
    size = n * x.width
    out = tile + 2 * plan.rows.n_results * size
    pool_rows(&plan.rows, x, block, lanes, flip, shift, out, n)
    for i in range(plan.rows.n_results):
        pixels.data = <const char*>transpose(
            out + plan.rows.result[i] * size, tile + i * size,
            tile + (plan.rows.n_results + i) * size, n, x.width,
        ) - i * size * sizeof(key_t)
    pool_cells(&plan.row_cells, pixels, <key_t>0, <key_t>0, slots, scratch, n)


cdef void store_block(
    Plan plan, const key_t* regions, Py_ssize_t n, key_t flip, key_t shift, key_t* out,
    Py_ssize_t channels, Py_ssize_t first, Py_ssize_t lanes,
) noexcept nogil:
    """Decode a block's maxima to their places in the output."""
    cdef Py_ssize_t region, i, row, step = plan.bins
    cdef const key_t* keys
    cdef key_t* place
    for region in range(plan.n_regions):
        keys = regions + region * n
        row = plan.target[region] // step
        place = out + (row * channels + first) * step + plan.target[region] % step
        for i in range(lanes):
            place[i * step] = decode(keys[i], flip, shift)


cdef Py_ssize_t scratch_keys(Plan plan, int path, Py_ssize_t n) noexcept nogil:
    """Keys of scratch memory that `pool_block` needs for n channels."""
    cdef Py_ssize_t keys = plan.n_regions + plan.map_cells.columns.n_slots
    if path == Path.GATHER:
        keys += plan.width
    elif path == Path.PLANES:
        keys += 2 * plan.height * plan.width
    elif path == Path.ROWS:
        keys += (2 * plan.rows.n_results + plan.rows.n_slots) * plan.width
    return keys * n


def scratch_bytes(Plan plan, int path, Py_ssize_t n, Py_ssize_t itemsize, int workers):
    """Return the size of the scratch buffer that `pool` needs, in bytes."""
    cdef Py_ssize_t one = scratch_keys(plan, path, n) * itemsize
    return workers * ((one + LINE - 1) // LINE * LINE) + LINE


cdef inline void pool_task(
    Py_ssize_t task, Py_ssize_t blocks, const Map* x, Plan plan, int path, Py_ssize_t n,
    key_t flip, key_t shift, key_t* scratch, key_t* out,
) noexcept nogil:
    cdef Py_ssize_t image = task // blocks, first = task % blocks * n
    cdef Py_ssize_t lanes = min(n, x.channels - first)
    cdef key_t* rows = out + image * plan.n_regions * x.channels
    cdef Py_ssize_t pitch = lanes if path == Path.CHANNELS else n
    pool_block(x, plan, path, image, first, lanes, flip, shift, scratch, n)
    store_block(plan, scratch, pitch, flip, shift, rows, x.channels, first, lanes)


def pool(
    const key_t[:, :, :, :] x, Plan plan, int path, Py_ssize_t n, key_t flip, key_t shift,
    unsigned char[::1] scratch, key_t[::1] out, int workers,
):
    """Write the maximum of every region, channel and image of x (N, C, H, W).

    Parameters
    ----------
    x : IN, bits of the values
    plan : IN, the regions
    path : IN, see `Path`
    n : IN, channels of a task; a whole number of lines but for `Path.CHANNELS`
    flip, shift : IN, the dtype's key
    scratch : TEMP, `scratch_bytes`
    out : OUT, bits of the maxima, (N, R, C) unless the plan has bins
    workers : IN, threads
    """
    cdef Map m
    cdef Py_ssize_t blocks, tasks, task, one
    cdef uintptr_t base = (<uintptr_t>&scratch[0] + LINE - 1) & ~<uintptr_t>(LINE - 1)
    cdef key_t* target = &out[0]
    m.data = <const char*>&x[0, 0, 0, 0]
    m.images, m.channels, m.height, m.width = x.shape[0], x.shape[1], x.shape[2], x.shape[3]
    m.image_stride, m.channel_stride = x.strides[0], x.strides[1]
    m.row_stride, m.pixel_stride = x.strides[2], x.strides[3]
    blocks = (m.channels + n - 1) // n
    tasks = m.images * blocks
    one = (scratch_keys(plan, path, n) * sizeof(key_t) + LINE - 1) // LINE * LINE
    if workers == 1:
        with nogil:
            for task in range(tasks):
                pool_task(
                    task, blocks, &m, plan, path, n, flip, shift, <key_t*>base, target
                )
    else:
        for task in prange(tasks, nogil=True, schedule="static", num_threads=workers):
            pool_task(
                task, blocks, &m, plan, path, n, flip, shift,
                <key_t*>(base + threadid() * one), target,
            )


cdef inline floating float16_value(uint16_t bits, floating like) noexcept nogil:
    """Widen a float16 exactly: shift its fields into a float32, whose exponent is 112 more."""
    cdef uint32_t magnitude = <uint32_t>(bits & 0x7FFF) << 13
    cdef uint32_t sign = <uint32_t>(bits & 0x8000) << 16
    cdef float value
    memcpy(&value, &magnitude, 4)
    value = value * <float>5.192296858534828e33  # 2**112
    memcpy(&magnitude, &value, 4)
    if magnitude >= 0x47800000:  # 2**16, where float16 has inf and NaN
        magnitude |= 0x7F800000
    magnitude |= sign
    memcpy(&value, &magnitude, 4)
    return value


cdef inline floating bfloat16_value(uint16_t bits, floating like) noexcept nogil:
    cdef uint32_t wide = <uint32_t>bits << 16
    cdef float value
    memcpy(&value, &wide, 4)
    return value


cdef void widen(const key_t* bits, int kind, floating* out, Py_ssize_t n) noexcept nogil:
    """Convert values, given as bits, to the dtype of the descriptor."""
    cdef Py_ssize_t i
    if key_t is int8_t:
        if kind == Kind.UINT8:
            for i in range(n):
                out[i] = <uint8_t>bits[i]
        else:
            for i in range(n):
                out[i] = bits[i]
    elif key_t is int16_t:
        if kind == Kind.FLOAT16:
            for i in range(n):
                out[i] = float16_value(<uint16_t>bits[i], <floating>0)
        else:
            for i in range(n):
                out[i] = bfloat16_value(<uint16_t>bits[i], <floating>0)
    else:
        memcpy(out, bits, n * sizeof(key_t))


cdef double sum_of_squares(const floating* values, Py_ssize_t n) noexcept nogil:
    """Sum in 16 interleaved parts, an order that fills vectors and does not depend on them."""
    cdef double parts[16]
    cdef Py_ssize_t i, part, whole = n // 16 * 16
    cdef double value
    for part in range(16):
        parts[part] = 0
    for i in range(0, whole, 16):
        for part in range(16):
            value = values[i + part]
            parts[part] = parts[part] + value * value
    for part in range(n - whole):
        value = values[whole + part]
        parts[part] = parts[part] + value * value
    for part in range(8):
        parts[part] = parts[part] + parts[part + 8]
    for part in range(4):
        parts[part] = parts[part] + parts[part + 4]
    return (parts[0] + parts[2]) + (parts[1] + parts[3])


cdef void l2(floating* values, Py_ssize_t n, double eps) noexcept nogil:
    """Divide by the norm plus eps; with eps 0 a zero vector stays zero."""
    cdef double length = sqrt(sum_of_squares(values, n)) + eps
    cdef Py_ssize_t i
    if length == 0:
        return
    for i in range(n):
        values[i] = <floating>(values[i] / length)


cdef void describe_image(
    const key_t* maxima, int kind, Py_ssize_t regions, Py_ssize_t channels,
    bint normalize_regions, int aggregate, bint normalize, double eps,
    floating* row, floating* out,
) noexcept nogil:
    """Turn one image's regional maxima (R, C) into its descriptor."""
    cdef Py_ssize_t region, i, size = channels
    cdef floating* vector
    if aggregate == Aggregate.CONCAT:
        size = regions * channels
    else:
        for i in range(channels):
            out[i] = 0
    for region in range(regions):
        vector = out + region * channels if aggregate == Aggregate.CONCAT else row
        widen(maxima + region * channels, kind, vector, channels)
        if normalize_regions:
            l2(vector, channels, eps)
        if aggregate != Aggregate.CONCAT:
            for i in range(channels):
                out[i] += vector[i]
    if aggregate == Aggregate.MEAN:
        for i in range(channels):
            out[i] /= regions
    if normalize:
        l2(out, size, eps)


def describe(
    const key_t[:, :, ::1] maxima, int kind, bint normalize_regions, int aggregate,
    bint normalize, double eps, floating[:, ::1] rows, floating[:, ::1] out, int workers,
):
    """Write each image's descriptor.

    Parameters
    ----------
    maxima : IN, bits of the regional maxima, (N, R, C)
    kind : IN, what the bits mean, see `Kind`
    normalize_regions, aggregate, normalize, eps : IN, as in `rmac.rmac`, see `Aggregate`
    rows : TEMP, (workers, C)
    out : OUT, (N, D)
    workers : IN, threads
    """
    cdef Py_ssize_t image
    cdef Py_ssize_t regions = maxima.shape[1], channels = maxima.shape[2]
    for image in prange(maxima.shape[0], nogil=True, schedule="static", num_threads=workers):
        describe_image(
            &maxima[image, 0, 0], kind, regions, channels, normalize_regions, aggregate,
            normalize, eps, &rows[threadid(), 0], &out[image, 0],
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
        "openmp": RMAC_OPENMP,
    }


def max_threads():
    """Return how many threads OpenMP would start, 1 without it."""
    return omp_get_max_threads()
