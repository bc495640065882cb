/* How this thread's processor treats subnormals and rounds. A library may change it for a thread, and
   new threads have the mode of the thread that starts them; results must depend on neither. */

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#define DEFAULT_FLOATS 0x1F80u /* nearest, subnormals as they are, no exception raised */
#define FLOATS_MODE 0xFFC0u    /* without the marks of exceptions in the past */
#define READ_FLOATS(mode) mode = _mm_getcsr()
#define WRITE_FLOATS(mode) _mm_setcsr((unsigned)(mode))
#elif defined(__aarch64__)
#define DEFAULT_FLOATS 0u
#define FLOATS_MODE UINT64_MAX
#define READ_FLOATS(mode) __asm__ volatile("mrs %0, fpcr" : "=r"(mode))
#define WRITE_FLOATS(mode) __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)(mode)))
#else /* other processors keep the mode that they have */
#define DEFAULT_FLOATS 0u
#define FLOATS_MODE 0u
#define READ_FLOATS(mode) mode = 0
#define WRITE_FLOATS(mode) ((void)(mode))
#endif

/* Compilers leave reads and writes of memory, and so all computation, on their side of this. */
#define MEMORY_FENCE() __asm__ volatile("" : : : "memory")

/* Set the default mode; return the one before. */
static inline uint64_t set_default_floats(void)
{
    uint64_t before;
    READ_FLOATS(before);
    if ((before & FLOATS_MODE) != DEFAULT_FLOATS)
        WRITE_FLOATS(DEFAULT_FLOATS);
    MEMORY_FENCE();
    return before;
}

static inline void restore_floats(uint64_t before)
{
    MEMORY_FENCE();
    if ((before & FLOATS_MODE) != DEFAULT_FLOATS)
        WRITE_FLOATS(before);
}
