/* Reads of many pieces of a file. In Python each would give up the lock of the interpreter, and wait
   for it again while other threads have it: that takes as long as to read 50 kB. */

#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32

static ptrdiff_t rmac_read_rows(
    int descriptor, const int64_t *offsets, uint8_t *rows, ptrdiff_t count, size_t size)
{
    (void)descriptor, (void)offsets, (void)rows, (void)count, (void)size;
    return 0;
}

#else

#include <unistd.h>

/* Fill rows of a size with the bytes of a file from an offset each; return how many are full. It ends
   at the first read that fails or is short. */
static ptrdiff_t rmac_read_rows(
    int descriptor, const int64_t *offsets, uint8_t *rows, ptrdiff_t count, size_t size)
{
    ptrdiff_t i = 0;
    while (i < count && pread(descriptor, rows + i * size, size, offsets[i]) == (ssize_t)size)
        ++i;
    return i;
}

#endif
