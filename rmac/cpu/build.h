/* What the compiler and the build made of a kernel module, and what this machine has. */

#ifdef _OPENMP
#include <omp.h>
#define RMAC_OPENMP _OPENMP
#else
#define RMAC_OPENMP 0
#define omp_get_max_threads() 1
#endif

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 18 : __GNUC__ >= 12)
static int rmac_vector_level(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("x86-64-v4") ? 2 : !!__builtin_cpu_supports("x86-64-v3");
}
#else
#define rmac_vector_level() 0
#endif

#if defined(__clang__)
#define RMAC_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define RMAC_COMPILER "gcc " __VERSION__
#else
#define RMAC_COMPILER "unknown"
#endif
