/* Threads run the same entry function and share each kernel's units of work; a barrier stands between kernels.
 * Every unit writes its own outputs and nothing is reduced across threads, so the bits do not depend on their number. */
#define _GNU_SOURCE
#include "qc_runtime.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__)
#define QC_PAUSE() __builtin_ia32_pause()
#else
#define QC_PAUSE() ((void)0)
#endif

/* Spin this often before giving the processor away: about 10 us. */
enum { QC_SPINS = 2000, QC_YIELDS = 200 };

struct qc_pool {
    int32_t threads;
    pthread_t *workers;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    _Atomic uint32_t generation; /* a new inference */
    _Atomic int32_t arrived;
    _Atomic uint32_t phase; /* of the barrier */
    _Atomic int32_t sleepers;
    int stop;
};

struct qc_model {
    qc_pool pool;
    uint8_t *arena;
    const uint8_t *weights;
    const void *const *inputs;
    void *const *outputs;
};

typedef struct {
    qc_model *model;
    int32_t index;
} qc_worker;

/* Sleep until the phase is over. Spinning on would hold the processor that the others may be waiting for. */
static void qc_sleep(qc_pool *pool, uint32_t phase) {
#if defined(__linux__)
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->phase) == phase)
        syscall(SYS_futex, (uint32_t *)&pool->phase, FUTEX_WAIT_PRIVATE, phase, NULL, NULL, 0);
    atomic_fetch_sub(&pool->sleepers, 1);
#else
    while (atomic_load(&pool->phase) == phase) sched_yield();
#endif
}

void qc_barrier(qc_pool *pool) {
    if (pool->threads == 1) return;
    uint32_t phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == pool->threads - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store(&pool->phase, phase + 1);
#if defined(__linux__)
        if (atomic_load(&pool->sleepers))
            syscall(SYS_futex, (uint32_t *)&pool->phase, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
#endif
        return;
    }
    for (int32_t i = 0; i < QC_SPINS; ++i) {
        if (atomic_load_explicit(&pool->phase, memory_order_acquire) != phase) return;
        QC_PAUSE();
    }
    qc_sleep(pool, phase);
}

static void qc_work(qc_model *model, int32_t index) {
    qc_entry(index, model->pool.threads, &model->pool, model->arena, model->weights, model->inputs, model->outputs);
    qc_barrier(&model->pool);
}

static void *qc_worker_main(void *argument) {
    qc_worker worker = *(qc_worker *)argument;
    free(argument);
    qc_pool *pool = &worker.model->pool;
    uint32_t seen = 0;
    for (;;) {
        for (int32_t i = 0; i < QC_SPINS + QC_YIELDS; ++i) {
            if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen) break;
            if (i < QC_SPINS) QC_PAUSE();
            else sched_yield();
        }
        pthread_mutex_lock(&pool->mutex);
        while (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen)
            pthread_cond_wait(&pool->wake, &pool->mutex);
        seen = atomic_load_explicit(&pool->generation, memory_order_acquire);
        int stop = pool->stop;
        pthread_mutex_unlock(&pool->mutex);
        if (stop) return NULL;
        qc_work(worker.model, worker.index);
    }
}

static void qc_announce(qc_pool *pool, int stop) {
    pthread_mutex_lock(&pool->mutex);
    pool->stop = stop;
    atomic_fetch_add_explicit(&pool->generation, 1, memory_order_acq_rel);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

qc_model *qc_open(const void *weights, int32_t threads) {
    qc_model *model = calloc(1, sizeof *model);
    if (!model) return NULL;
    qc_pool *pool = &model->pool;
    model->weights = weights;
    if (posix_memalign((void **)&model->arena, 64, (size_t)(qc_arena_bytes > 64 ? qc_arena_bytes : 64))) {
        free(model);
        return NULL;
    }
    pool->threads = 1;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    if (threads > 1) {
        pool->workers = calloc((size_t)threads - 1, sizeof *pool->workers);
        for (int32_t i = 1; pool->workers && i < threads; ++i) {
            qc_worker *worker = malloc(sizeof *worker);
            if (worker) *worker = (qc_worker){model, i};
            if (!worker || pthread_create(&pool->workers[i - 1], NULL, qc_worker_main, worker)) {
                free(worker);
                qc_close(model);
                return NULL;
            }
            pool->threads = i + 1;
        }
    }
    return model;
}

void qc_run(qc_model *model, const void *const *inputs, void *const *outputs) {
    model->inputs = inputs;
    model->outputs = outputs;
    if (model->pool.threads > 1) qc_announce(&model->pool, 0);
    qc_work(model, 0);
}

void qc_close(qc_model *model) {
    if (!model) return;
    qc_pool *pool = &model->pool;
    if (pool->threads > 1) qc_announce(pool, 1);
    for (int32_t i = 1; i < pool->threads; ++i) pthread_join(pool->workers[i - 1], NULL);
    free(pool->workers);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(model->arena);
    free(model);
}
