/* Runs kernels on a processor: every thread of a block is a fiber, and what threads do together (barriers, fragments,
   asynchronous copies) is done when all of them have come to it. A copy that nobody waited for is not there. */
#ifndef QC_EMULATE_H
#define QC_EMULATE_H

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#define __global__
#define __launch_bounds__(...)
#define __restrict__
#define __syncthreads() qc_emulate_sync()
#define QC_FN static inline
#define QC_SHARED(name) unsigned char *name = qc_shared_start()

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct qc_index { int x, y, z; };
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
template <class T> static inline T min(T a, T b) { return a < b ? a : b; }
template <class T> static inline T max(T a, T b) { return a > b ? a : b; }

struct qc_copy { void *to; const void *from; int bytes; };
struct qc_fiber {
  void *stack_pointer = nullptr;
  qc_index thread = {0, 0, 0};
  int lane = 0, warp = 0;
  bool done = false;
  unsigned barriers = 0, collectives = 0;
  std::vector<qc_copy> open;
  std::deque<std::vector<qc_copy>> groups;
  std::vector<char> stack;
};
struct qc_given { unsigned words[8]; };
struct qc_warp {
  qc_given given[2][32];
  int arrived[2] = {0, 0}, left[2] = {0, 0};
};

extern std::vector<unsigned char> qc_shared_memory;
static inline unsigned char *qc_shared_start() {
  return (unsigned char *)(((uintptr_t)qc_shared_memory.data() + 1023) & ~(uintptr_t)1023);
}
extern qc_index blockIdx;
extern qc_fiber *qc_self;
extern std::vector<qc_warp> qc_warps;
#define threadIdx (qc_self->thread)

void qc_emulate_yield();
void qc_emulate_sync();
/* What the lanes of this warp gave, once all have; `qc_emulate_leave` when it has been read. */
const qc_given *qc_emulate_meet(const void *mine, int bytes);
void qc_emulate_leave();

static inline void qc_emulate_async(void *to, const void *from, int bytes) {
  if ((uintptr_t)to % bytes || (uintptr_t)from % bytes) {
    std::fprintf(stderr, "qc_async%d: an address is not aligned\n", bytes);
    std::abort();
  }
  qc_self->open.push_back({to, from, bytes});
}
static inline void qc_emulate_commit() {
  qc_self->groups.push_back(std::move(qc_self->open));
  qc_self->open.clear();
}
static inline void qc_emulate_wait(int pending) {
  while ((int)qc_self->groups.size() > pending) {
    for (const qc_copy &copy : qc_self->groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    qc_self->groups.pop_front();
  }
}
static inline void qc_emulate_ldmatrix4(unsigned *r, const void *row) {
  const qc_given *rows = qc_emulate_meet(&row, sizeof row);
  int lane = qc_self->lane;
  for (int i = 0; i < 4; ++i) {
    const char *from;
    std::memcpy(&from, rows[8 * i + lane / 4].words, sizeof from);
    if ((uintptr_t)from % 16) {
      std::fprintf(stderr, "qc_ldmatrix4: an address is not aligned\n");
      std::abort();
    }
    std::memcpy(r + i, from + 4 * (lane % 4), 4);
  }
  qc_emulate_leave();
}
static inline int64_t qc_emulate_sum(int64_t mine, int lanes = 32) {
  const qc_given *all = qc_emulate_meet(&mine, sizeof mine);
  int64_t sum = 0;
  int first = qc_self->lane / lanes * lanes;
  for (int lane = first; lane < first + lanes; ++lane) {
    int64_t one;
    std::memcpy(&one, all[lane].words, sizeof one);
    sum += one;
  }
  qc_emulate_leave();
  return sum;
}
static inline int qc_emulate_max(int mine, int lanes = 32) {
  const qc_given *all = qc_emulate_meet(&mine, sizeof mine);
  int first = qc_self->lane / lanes * lanes, most = (int)all[first].words[0];
  for (int lane = first + 1; lane < first + lanes; ++lane) most = max(most, (int)all[lane].words[0]);
  qc_emulate_leave();
  return most;
}
/* product(x, w): of a byte of a and a byte of b. */
template <class T> static inline void qc_emulate_fragments(int *c, const unsigned *a, const unsigned *b, T product) {
  unsigned mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const qc_given *all = qc_emulate_meet(mine, sizeof mine);
  int row = qc_self->lane / 4, column = qc_self->lane % 4 * 2;
  for (int half = 0; half < 2; ++half)      /* upper and lower eight rows */
    for (int j = 0; j < 2; ++j) {           /* column, column + 1 */
      int sum = 0;
      for (int part = 0; part < 2; ++part)  /* bytes 0..15, 16..31 of the inner dimension */
        for (int t = 0; t < 4; ++t) {
          const unsigned char *x = (const unsigned char *)(all[row * 4 + t].words + half + 2 * part);
          const unsigned char *w = (const unsigned char *)(all[(column + j) * 4 + t].words + 4 + part);
          for (int i = 0; i < 4; ++i) sum += product(x[i], w[i]);
        }
      c[2 * half + j] += sum;
    }
  qc_emulate_leave();
}
static inline void qc_emulate_mma(int *c, const unsigned *a, const unsigned *b, bool x_signed, bool w_signed) {
  qc_emulate_fragments(c, a, b, [=](int x, int w) {
    return (x_signed ? (int)(signed char)x : x) * (w_signed ? (int)(signed char)w : w);
  });
}
static inline int qc_emulate_nibble(int bits) { return bits & 8 ? bits - 16 : bits; }
static inline void qc_emulate_mma4(int *c, const unsigned *a, const unsigned *b, bool x_signed) {
  qc_emulate_fragments(c, a, b, [=](int x, int w) {
    int low = x & 15, high = x >> 4;
    if (x_signed) low = qc_emulate_nibble(low), high = qc_emulate_nibble(high);
    return low * qc_emulate_nibble(w & 15) + high * qc_emulate_nibble(w >> 4);
  });
}

/* -- launches (qc_emulate.cpp) ---------------------------------------------------------------------------------- */

struct qc_kernel {
  const char *name;
  void (*call)(void **arguments);
  bool together; /* whether threads of a block meet */
  int count;
  const int *sizes; /* bytes of its arguments */
};
extern const qc_kernel qc_kernels[];
extern const int qc_kernel_count;
void qc_emulate_launch(const qc_kernel &kernel, qc_index grid, int threads, int shared, void **arguments);

#endif
