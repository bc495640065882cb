/* CUDA on the CPU, for tests: one fiber for each thread of a block.

   Fibers run one after the other. Each runs until it waits for others: at a barrier for its block,
   or in a shuffle for its warp. The caller seeds their random order, and shared memory holds noise
   before a block begins. So a kernel that lacks a barrier gives a wrong result. A barrier that some
   threads never reach is an error. */

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>
#include <xmmintrin.h>

#define __global__
#define __device__
#define __shared__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __noinline__ __attribute__((noinline))

using std::ceil, std::fabs, std::floor, std::fma, std::fmax, std::round, std::sqrt;

struct Dim {
    unsigned x, y, z;
};

static Dim threadIdx, blockIdx, blockDim, gridDim;
alignas(16) long long shared_memory[(48 << 10) / 8];

template <typename T> static T min(T a, T b) { return b < a ? b : a; }
template <typename T> static T max(T a, T b) { return a < b ? b : a; }

/* Return a number in float64, even if it is subnormal, and these are 0 in arithmetic. */
static double widen_exactly(float value)
{
    unsigned bits;
    memcpy(&bits, &value, sizeof(bits));
    if (bits & 0x7F800000)
        return value;
    const double magnitude = (bits & 0x7FFFFF) * 1.401298464324817e-45; /* 2**-149 */
    return bits >> 31 ? -magnitude : magnitude;
}

/* What the instruction of PTX does. */
static unsigned prmt(unsigned low, unsigned high, unsigned selector)
{
    const unsigned long long bytes = (unsigned long long)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned choice = selector >> 4 * i & 15;
        const unsigned byte = bytes >> 8 * (choice & 7) & 255;
        result |= (choice & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return result;
}

static unsigned __viaddmax_s16x2(unsigned a, unsigned b, unsigned c)
{
    unsigned result = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        const short sum = (a >> shift) + (b >> shift);
        result |= (unsigned)(unsigned short)std::max(sum, (short)(c >> shift)) << shift;
    }
    return result;
}

template <typename T> static void atomicMax(T *at, T value) { *at = max(*at, value); }

static unsigned atomicInc(unsigned *at, unsigned most)
{
    const unsigned before = *at;
    *at = before >= most ? 0 : before + 1;
    return before;
}

static void __threadfence() {} /* blocks run one after the other */

enum State { READY, AT_BARRIER, IN_SHUFFLE, FINISHED };

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    Dim thread;
    State state;
    int shuffles;
    long long slot[2]; /* the bits that the lane gave in its last even and its last odd shuffle */
};

static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static size_t current;

static void wait(State state)
{
    fibers[current].state = state;
    const size_t me = current;
    swapcontext(&fibers[me].context, &scheduler);
}

static void __syncthreads() { wait(AT_BARRIER); }

template <typename T> static T __shfl_xor_sync(unsigned, T value, int distance)
{
    const size_t me = current;
    const int turn = fibers[me].shuffles++ % 2;
    memcpy(&fibers[me].slot[turn], &value, sizeof(value));
    wait(IN_SHUFFLE);
    memcpy(&value, &fibers[me ^ distance].slot[turn], sizeof(value));
    return value;
}

static void (*body)(void **);
static void **arguments;

static void enter()
{
    body(arguments);
    fibers[current].state = FINISHED;
    swapcontext(&fibers[current].context, &scheduler);
}

static void start(size_t count)
{
    if (fibers.size() < count)
        fibers.resize(count);
    for (size_t i = 0; i < count; i++) {
        Fiber &fiber = fibers[i];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
        fiber.thread = {unsigned(i % blockDim.x), unsigned(i / blockDim.x), 0};
        fiber.state = READY;
        fiber.shuffles = 0;
    }
}

static bool all(size_t begin, size_t end, State state)
{
    return std::all_of(fibers.begin() + begin, fibers.begin() + end,
                       [&](const Fiber &fiber) { return fiber.state == state; });
}

static void release(size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++)
        fibers[i].state = READY;
}

static const char *run_block(const std::vector<size_t> &order)
{
    const size_t count = order.size();
    start(count);
    while (!all(0, count, FINISHED)) {
        bool ran = false;
        for (size_t i : order)
            if (fibers[i].state == READY) {
                ran = true;
                current = i;
                threadIdx = fibers[i].thread;
                swapcontext(&scheduler, &fibers[i].context);
            }
        for (size_t warp = 0; warp + 32 <= count; warp += 32)
            if (all(warp, warp + 32, IN_SHUFFLE)) {
                release(warp, warp + 32);
                ran = true;
            }
        if (all(0, count, AT_BARRIER)) {
            release(0, count);
            ran = true;
        }
        if (!ran)
            return "some threads wait at a barrier or in a shuffle that others never reach";
    }
    return nullptr;
}

template <auto kernel, typename... Args, size_t... index>
static void call(void (*)(Args...), void **args, std::index_sequence<index...>)
{
    kernel(*(std::remove_const_t<Args> *)args[index]...);
}

template <auto kernel> static void call_kernel(void **args)
{
    [&]<typename... Args>(void (*function)(Args...)) {
        call<kernel>(function, args, std::index_sequence_for<Args...>());
    }(kernel);
}

/* CuPy compiles kernels whose arithmetic takes subnormals as 0 in float32, but not in float64. The
   CPU has one switch for both: tests/shim/__init__.py sets it for kernels without float64. */
struct Flushed {
    unsigned before = _mm_getcsr();
    Flushed(bool flushed) { _mm_setcsr(flushed ? before | 0x8040 : before); }
    ~Flushed() { _mm_setcsr(before); }
};

/* Run a kernel; return what went wrong, or null. */
template <auto kernel, bool flushed>
static const char *launch(unsigned blocks, unsigned x, unsigned y, unsigned seed, void **args)
{
    const Flushed mode(flushed);
    body = call_kernel<kernel>;
    arguments = args;
    gridDim = {blocks, 1, 1};
    blockDim = {x, y, 1};
    if (x * y == 0 || x * y > 1024)
        return "a block has 1 to 1024 threads";
    std::mt19937 random(seed);
    std::vector<size_t> order(x * y);
    std::iota(order.begin(), order.end(), 0);
    std::vector<unsigned> blocks_in_turn(blocks);
    std::iota(blocks_in_turn.begin(), blocks_in_turn.end(), 0);
    std::shuffle(blocks_in_turn.begin(), blocks_in_turn.end(), random);
    for (unsigned block : blocks_in_turn) {
        std::shuffle(order.begin(), order.end(), random);
        for (long long &word : shared_memory)
            word = ((long long)random() << 32) ^ random();
        blockIdx = {block, 0, 0};
        if (const char *wrong = run_block(order))
            return wrong;
    }
    return nullptr;
}
