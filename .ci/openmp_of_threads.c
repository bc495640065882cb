/* The part of OpenMP's runtime that the kernels use, made of POSIX threads alone.

   ThreadSanitizer does not know how the threads of GNU's runtime wait for each other, and reports
   races where there are none. It knows POSIX threads, so that with this library before GNU's every
   report is about the kernels. Threads are started anew for each parallel region. */

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

typedef struct {
    void (*function)(void *);
    void *data;
    unsigned threads;
    pthread_barrier_t barrier;
    pthread_mutex_t lock; /* of what follows: the loop that threads share */
    bool begun;
    unsigned ended;
    long next, end, step, chunk;
} Team;

typedef struct {
    Team *team;
    unsigned number;
} Member;

static __thread Member self;

static void *work(void *member)
{
    self = *(Member *)member;
    self.team->function(self.team->data);
    return NULL;
}

void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags)
{
    (void)flags;
    Team team = {.function = function, .data = data, .threads = threads ? threads : 1};
    pthread_barrier_init(&team.barrier, NULL, team.threads);
    pthread_mutex_init(&team.lock, NULL);
    pthread_t *started = calloc(team.threads, sizeof(pthread_t));
    Member *members = calloc(team.threads, sizeof(Member)), outer = self;
    for (unsigned i = 0; i < team.threads; i++) {
        members[i] = (Member){&team, i};
        if (i && pthread_create(&started[i], NULL, work, &members[i]))
            abort();
    }
    work(&members[0]);
    for (unsigned i = 1; i < team.threads; i++)
        pthread_join(started[i], NULL);
    self = outer;
    free(members);
    free(started);
    pthread_mutex_destroy(&team.lock);
    pthread_barrier_destroy(&team.barrier);
}

bool GOMP_loop_nonmonotonic_dynamic_next(long *first, long *last)
{
    Team *team = self.team;
    pthread_mutex_lock(&team->lock);
    *first = team->next;
    bool more = *first < team->end;
    team->next += team->chunk * team->step;
    *last = team->next < team->end ? team->next : team->end;
    pthread_mutex_unlock(&team->lock);
    return more;
}

bool GOMP_loop_nonmonotonic_dynamic_start(
    long start, long end, long step, long chunk, long *first, long *last)
{
    Team *team = self.team;
    pthread_mutex_lock(&team->lock);
    if (!team->begun) {
        team->begun = true;
        team->next = start;
        team->end = end;
        team->step = step;
        team->chunk = chunk;
    }
    pthread_mutex_unlock(&team->lock);
    return GOMP_loop_nonmonotonic_dynamic_next(first, last);
}

void GOMP_loop_end_nowait(void)
{
    Team *team = self.team;
    pthread_mutex_lock(&team->lock);
    if (++team->ended == team->threads) {
        team->begun = false;
        team->ended = 0;
    }
    pthread_mutex_unlock(&team->lock);
}

void GOMP_barrier(void)
{
    if (self.team)
        pthread_barrier_wait(&self.team->barrier);
}

int omp_get_thread_num(void)
{
    return (int)self.number;
}

int omp_get_num_threads(void)
{
    return self.team ? (int)self.team->threads : 1;
}

int omp_get_max_threads(void)
{
    return 4;
}

int omp_get_num_procs(void)
{
    return 4;
}
