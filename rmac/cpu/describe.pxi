# From an image's regional maxima to its descriptor.

cdef inline double plus_square(double total, double value) noexcept nogil:
    """Add a square, which is exact for a float32; for others, fused, it rounds once less."""
    return fma(value, value, total) if RMAC_FMA else total + value * value


cdef double sum_of_squares(const floating* values, Py_ssize_t n) noexcept nogil:
    """Sum in 16 interleaved parts, an order that fills vectors and does not depend on them."""
    cdef double parts[16]
    cdef Py_ssize_t i, part, whole = n // 16 * 16
    for part in range(16):
        parts[part] = 0
    for i in range(0, whole, 16):
        for part in range(16):
            parts[part] = plus_square(parts[part], values[i + part])
    for part in range(n - whole):
        parts[part] = plus_square(parts[part], values[whole + part])
    for part in range(8):
        parts[part] = parts[part] + parts[part + 8]
    for part in range(4):
        parts[part] = parts[part] + parts[part + 4]
    return (parts[0] + parts[2]) + (parts[1] + parts[3])


cdef inline floating quotient(floating value, floating norm, floating inverse) noexcept nogil:
    """Divide a finite value, with two roundings put right where a machine fuses them.

    That is several times as fast as a division and as exact, but for the last bit where the value
    is next to the least there are: a lone value becomes exactly 1.
    """
    cdef floating guess
    if not RMAC_FMA:
        return value / norm
    guess = value * inverse
    if floating is float:
        return fmaf(fmaf(-guess, norm, value), inverse, guess)
    else:
        return fma(fma(-guess, norm, value), inverse, guess)


cdef floating norm_of(floating* values, Py_ssize_t n, double eps) noexcept nogil:
    """Return what a vector is to be divided by: its norm plus eps.

    Where that, its inverse or its square could be out of range, the vector is divided here; 1
    remains to do.
    """
    cdef double squares = sum_of_squares(values, n)
    if 1e-60 < squares < 1e60 and eps < 1e30:
        return <floating>(sqrt(squares) + eps)
    l2_extreme(values, n, eps)
    return 1


cdef void l2(floating* values, Py_ssize_t n, double eps) noexcept nogil:
    """Divide by the norm plus eps; with eps 0 a zero vector stays zero."""
    cdef floating norm = norm_of(values, n, eps)
    cdef floating inverse = 1 / norm
    cdef Py_ssize_t i
    if norm == 1:
        return
    for i in range(n):
        values[i] = quotient(values[i], norm, inverse)


cdef void l2_extreme(floating* values, Py_ssize_t n, double eps) noexcept nogil:
    """Divide a vector by its norm plus eps where squares of its values are out of range."""
    cdef double peak = 0, squares = 0, length
    cdef Py_ssize_t i
    for i in range(n):
        peak = max(peak, fabs(<double>values[i]))
    if peak == 0 or peak == INFINITY:
        peak = 1
    for i in range(n):
        length = values[i] / peak
        squares += length * length
    length = sqrt(squares) + eps / peak
    if length == 0:
        length = 1
    for i in range(n):
        values[i] = <floating>(values[i] / peak / length)


cdef void add_quotients(
    const floating* values, floating norm, floating* out, Py_ssize_t n
) noexcept nogil:
    cdef Py_ssize_t i
    cdef floating inverse = 1 / norm
    if norm == 1:
        for i in range(n):
            out[i] = out[i] + values[i]
    else:
        for i in range(n):
            out[i] = out[i] + quotient(values[i], norm, inverse)


cdef void describe_image(
    floating* maxima, const Recipe* recipe, Py_ssize_t regions, Py_ssize_t channels, floating* out
) noexcept nogil:
    """Turn one image's regional maxima (R, C), which are overwritten, into its descriptor.

    They are its descriptor already if regions are neither summed nor averaged.
    """
    cdef Py_ssize_t region, i, size = channels
    cdef floating* vector
    cdef floating norm = 1
    if recipe.aggregate == Aggregate.CONCAT:
        size = regions * channels
    else:
        for i in range(channels):
            out[i] = 0
    for region in range(regions):
        vector = maxima + region * channels
        if recipe.aggregate == Aggregate.CONCAT:
            if recipe.normalize_regions:
                l2(vector, channels, recipe.eps)
            continue
        if recipe.normalize_regions:
            norm = norm_of(vector, channels, recipe.eps)
        add_quotients(vector, norm, out, channels)
    if recipe.aggregate == Aggregate.MEAN:
        for i in range(channels):
            out[i] /= regions
    if recipe.normalize:
        l2(out, size, recipe.eps)
