/* Reads of many pieces of a file. In Python each would give up the lock of the interpreter, and wait
   for it again while other threads have it: that takes as long as to read 50 kB. */

#include <stddef.h>
#include <stdint.h>

#include "checksum.h"

#ifdef _WIN32

static ptrdiff_t rmac_read_rows(int descriptor, const int64_t *offsets, uint8_t *rows,
    ptrdiff_t count, size_t size, uint32_t *crcs)
{
    (void)descriptor, (void)offsets, (void)rows, (void)count, (void)size, (void)crcs;
    return 0;
}

#else

#include <unistd.h>

/* Fill rows of a size with the bytes of a file from an offset each, and add them to a checksum each
   unless `crcs` is null, while they are in the cache. Return of how many rows; it ends at the first
   read that fails or is short. */
static ptrdiff_t rmac_read_rows(int descriptor, const int64_t *offsets, uint8_t *rows,
    ptrdiff_t count, size_t size, uint32_t *crcs)
{
    for (ptrdiff_t i = 0; i < count; ++i, rows += size) {
        if (pread(descriptor, rows, size, offsets[i]) != (ssize_t)size)
            return i;
        if (crcs)
            crcs[i] = rmac_crc32(crcs[i], rows, size);
    }
    return count;
}

#endif
