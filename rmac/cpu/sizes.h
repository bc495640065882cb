/* Sizes of memory, from sizes that the user may choose freely: a map of stride 0 can have 2**62 cells.
   What is too large for an index becomes the largest index, which no memory has. */

#include <stddef.h>
#include <stdint.h>

#define MOST_SIZE PTRDIFF_MAX

/* Of sizes of at least 0. */
static inline ptrdiff_t size_product(ptrdiff_t a, ptrdiff_t b)
{
    ptrdiff_t product;
    return __builtin_mul_overflow(a, b, &product) ? MOST_SIZE : product;
}

static inline ptrdiff_t size_sum(ptrdiff_t a, ptrdiff_t b)
{
    ptrdiff_t sum;
    return __builtin_add_overflow(a, b, &sum) ? MOST_SIZE : sum;
}
