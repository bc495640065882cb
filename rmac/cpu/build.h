/* What the compiler and the build made of a kernel module, and what this machine has. */

#include <string.h>

#ifdef _OPENMP
#define RMAC_OPENMP _OPENMP
#else
#define RMAC_OPENMP 0
#endif

/* Asked for one by one, as gcc 11 and clang 17 do not know the names of levels. Processors that have
   these have the rest of a level too. */
#define HAS(feature) (!!__builtin_cpu_supports(feature))

/* Whether this machine has the instruction set of that name. */
static int rmac_machine_has(const char *isa)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    const int v3 = HAS("popcnt") && HAS("avx2") && HAS("bmi") && HAS("bmi2") && HAS("fma");
    const int v4 = v3 && HAS("avx512f") && HAS("avx512bw") && HAS("avx512cd") && HAS("avx512dq")
        && HAS("avx512vl");
    if (strcmp(isa, "x86-64-v3") == 0)
        return v3;
    if (strcmp(isa, "x86-64-v4") == 0)
        return v4;
#endif
    return strcmp(isa, "baseline") == 0;
}

#if defined(__clang__)
#define RMAC_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define RMAC_COMPILER "gcc " __VERSION__
#else
#define RMAC_COMPILER "unknown"
#endif
