/* What the compiler and the build made of a kernel module, and what this machine has. */

#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#define RMAC_OPENMP _OPENMP
#else
#define RMAC_OPENMP 0
#define omp_get_max_threads() 1
#endif

#ifdef __x86_64__
#include <cpuid.h>

/* The registers whose contents the system saves when it switches threads: its bits of XCR0. */
enum { SAVES_256_BITS = 0x06, SAVES_512_BITS = 0xe6 };

static int has_all(unsigned long long bits, unsigned long long needed)
{
    return (bits & needed) == needed;
}

/* Whether all features of x86-64-v3 or v4 are there. They are asked for one by one, since gcc
   before 12 and clang before 18 do not know the levels by their names. */
static int has_level(int level)
{
    unsigned a, b, c, d, ext_b, ext_c, saved, saved_high;
    if (!__get_cpuid(1, &a, &b, &c, &d)
        || !has_all(c, bit_FMA | bit_MOVBE | bit_OSXSAVE | bit_AVX | bit_F16C))
        return 0;
    if (!__get_cpuid_count(7, 0, &a, &ext_b, &ext_c, &d)
        || !has_all(ext_b, bit_BMI | bit_AVX2 | bit_BMI2))
        return 0;
    if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !has_all(c, bit_LZCNT))
        return 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(saved_high) : "c"(0));
    if (level == 3)
        return has_all(saved, SAVES_256_BITS);
    return has_all(saved, SAVES_512_BITS)
        && has_all(ext_b, bit_AVX512F | bit_AVX512DQ | bit_AVX512CD | bit_AVX512BW | bit_AVX512VL);
}
#endif

/* Whether this machine has the instruction set of that name. */
static int rmac_machine_has(const char *isa)
{
#ifdef __x86_64__
    if (strcmp(isa, "x86-64-v3") == 0)
        return has_level(3);
    if (strcmp(isa, "x86-64-v4") == 0)
        return has_level(4);
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
