/* The C side of a cpu bundle: opens a model, runs it on one or more threads. */
#ifndef QC_RUNTIME_H
#define QC_RUNTIME_H

#include <stdint.h>

typedef struct qc_model qc_model;
typedef struct qc_pool qc_pool;

/* Weights must stay alive and be 64-byte aligned. Returns NULL when memory or threads cannot be had. */
qc_model *qc_open(const void *weights, int32_t threads);
/* One inference. Inputs and outputs are dense float32 in graph order. Not re-entrant for one model. */
void qc_run(qc_model *model, const void *const *inputs, void *const *outputs);
void qc_close(qc_model *model);

/* Used by the generated entry function. */
void qc_barrier(qc_pool *pool);

/* Defined by the generated entry. */
extern const int64_t qc_arena_bytes;
void qc_entry(int32_t thread, int32_t threads, qc_pool *pool, uint8_t *arena, const uint8_t *weights,
              const void *const *inputs, void *const *outputs);

#endif
