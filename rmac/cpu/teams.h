/* How many threads a call can have. OpenMP ends the process if it cannot start a thread, as under a
   limit of processes or of address space. So threads that OpenMP does not have yet are started here
   first, and only as many are used as start. */

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_max_threads() 1
#define omp_get_num_procs() 1
#endif

#ifdef _WIN32
static int rmac_started(int threads) { return threads; }
#else
#include <ctype.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
#ifdef __linux__
#include <signal.h>
#include <sys/syscall.h>
#endif

#define MOST_YIELDS 1000 /* while a thread ends, which takes the system some microseconds */

typedef struct {
    pthread_t thread;
    pthread_mutex_t *gate;
    long number; /* of the thread, as the system knows it */
} Probe;

static void *rmac_pass_gate(void *probe)
{
#ifdef __linux__
    ((Probe *)probe)->number = syscall(SYS_gettid);
#endif
    pthread_mutex_lock(((Probe *)probe)->gate);
    pthread_mutex_unlock(((Probe *)probe)->gate);
    return NULL;
}

/* The bytes of stack that GNU OpenMP gives a thread: 0 is what the system gives. */
static size_t rmac_stack_bytes(void)
{
    const char *text = getenv("OMP_STACKSIZE");
    char *unit;
    int shift = 10;
    if (!text)
        return 0;
    unsigned long long count = strtoull(text, &unit, 10);
    while (isspace((unsigned char)*unit))
        unit++;
    switch (tolower((unsigned char)*unit)) {
    case 'b': shift = 0; break;
    case 'm': shift = 20; break;
    case 'g': shift = 30; break;
    }
    return count <= SIZE_MAX >> shift ? (size_t)count << shift : 0;
}

/* A thread that was joined still counts until the system has removed it. */
static void rmac_wait_until_gone(const Probe *probe)
{
#ifdef __linux__
    for (int i = 0; i < MOST_YIELDS; i++) {
        if (syscall(SYS_tgkill, getpid(), probe->number, 0))
            return;
        sched_yield();
    }
#else
    (void)probe;
#endif
}

/* Start so many threads at once, end them, and return how many started. */
static int rmac_started(int threads)
{
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_attr_t attributes;
    int started = 0;
    Probe *probes = calloc(threads, sizeof(Probe));
    if (!probes || pthread_attr_init(&attributes)) {
        free(probes);
        return 0;
    }
    size_t stack = rmac_stack_bytes();
    if (stack)
        pthread_attr_setstacksize(&attributes, stack); /* if it fails, it changes nothing */
    pthread_mutex_lock(&gate);
    while (started < threads) {
        Probe *probe = &probes[started];
        probe->gate = &gate;
        if (pthread_create(&probe->thread, &attributes, rmac_pass_gate, probe))
            break;
        started++;
    }
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < started; i++)
        pthread_join(probes[i].thread, NULL);
    for (int i = 0; i < started; i++)
        rmac_wait_until_gone(&probes[i]);
    pthread_attr_destroy(&attributes);
    free(probes);
    return started;
}
#endif

/* Return how many threads, with the caller, a parallel region can have: `workers`, or fewer.

   Each thread that calls OpenMP has a team of its own, which keeps the threads of its last region.
   Those that a smaller region does not need end. */
static int rmac_team(int workers)
{
#ifdef _OPENMP
    static _Thread_local int team = 1;
    if (workers <= 1)
        return workers;
    if (workers > team)
        workers = team + rmac_started(workers - team);
    team = workers;
#endif
    return workers;
}
