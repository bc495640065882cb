/* What the compiler and the build made of a kernel module, and what this machine has. */

#include <string.h>

#ifdef _OPENMP
#define RMAC_OPENMP _OPENMP
#else
#define RMAC_OPENMP 0
#endif

/* Whether this machine has the instruction set of that name. */
static int rmac_machine_has(const char *isa)
{
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 18 : __GNUC__ >= 12)
    __builtin_cpu_init();
    if (strcmp(isa, "x86-64-v3") == 0)
        return !!__builtin_cpu_supports("x86-64-v3");
    if (strcmp(isa, "x86-64-v4") == 0)
        return !!__builtin_cpu_supports("x86-64-v4");
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
