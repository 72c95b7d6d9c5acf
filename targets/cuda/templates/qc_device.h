/* Device functions that kernels call. Each has a body for the card and one for the emulator (QC_EMULATE), which runs
   kernels on a processor thread by thread. Integers in, integers out: the float of a requantization is inside, written
   with intrinsics that no compiler contracts. */
#ifndef QC_DEVICE_H
#define QC_DEVICE_H

#ifdef QC_EMULATE
#include "qc_emulate.h"
#elif defined(__CUDACC_RTC__)
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <cstdint>
#endif

#ifndef QC_EMULATE
#define QC_FN static __device__ __forceinline__
#define QC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;

/* First of all in every kernel: wait for the kernels before it, which cards from sm_90 on need not do by themselves
   (programmatic dependent launches); then let the next one be made ready. Nothing is read or written before. */
QC_FN void qc_begin() {
#if !defined(QC_EMULATE) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* -- codes ---------------------------------------------------------------------------------------------------- */

QC_FN int qc_clip(int code, int low, int high, int zero) { return min(max(code, low), high) + zero; }

#ifdef QC_EMULATE
QC_FN int qc_round(float x) { return x >= 2147483648.0f ? 2147483647 : x < -2147483648.0f ? -2147483647 - 1 : (int)nearbyintf(x); }
QC_FN float qc_scaled(int acc, float scale) { return (float)acc * scale; }
QC_FN float qc_scaled_wide(int64_t acc, float scale) { return (float)acc * scale; }
QC_FN int qc_high(int a, int b) { return (int)(((int64_t)a * b) >> 32); }
#else
QC_FN int qc_round(float x) { return __float2int_rn(x); }
QC_FN float qc_scaled(int acc, float scale) { return __fmul_rn(__int2float_rn(acc), scale); }
QC_FN float qc_scaled_wide(int64_t acc, float scale) { return __fmul_rn(__ll2float_rn(acc), scale); }
QC_FN int qc_high(int a, int b) { return __mulhi(a, b); }
#endif

/* clip(rint(float32(acc) * scale), low, high) + zero: rounding to an integer saturates beyond every format. */
QC_FN int qc_requantize(int acc, float scale, int low, int high, int zero) {
  return qc_clip(qc_round(qc_scaled(acc, scale)), low, high, zero);
}
QC_FN int qc_requantize_wide(int64_t acc, float scale, int low, int high, int zero) {
  return qc_clip(qc_round(qc_scaled_wide(acc, scale)), low, high, zero);
}
/* clip((acc * multiplier + 2^(shift-1)) >> shift, low, high) + zero, 1 <= shift <= 62. With a shift of 33 or more the
   upper word of the product decides: floor((p + 2^(s-1)) / 2^s) = floor((floor(p / 2^(s-1)) + 1) / 2). */
QC_FN int qc_requantize_fixed_wide(int64_t acc, int multiplier, int shift, int low, int high, int zero) {
  int64_t code = (acc * multiplier + ((int64_t)1 << (shift - 1))) >> shift;
  code = code < low ? (int64_t)low : code > high ? (int64_t)high : code;
  return (int)code + zero;
}
QC_FN int qc_requantize_fixed(int acc, int multiplier, int shift, int low, int high, int zero) {
  if (shift < 33) return qc_requantize_fixed_wide(acc, multiplier, shift, low, high, zero);
  return qc_clip(((qc_high(acc, multiplier) >> (shift - 33)) + 1) >> 1, low, high, zero);
}

/* The level of a minifloat nearest to acc * scale, half to even, saturated: levels are 2^k apart, where k comparisons
   with powers of two say so, as many as it has binades. */
QC_FN int qc_levels(int64_t acc, float scale, int low, int high, int mantissa) {
  float ratio = fminf(fmaxf(qc_scaled_wide(acc, scale), (float)low), (float)high);
  int k = 0;
  for (int i = 1; (high >> (mantissa + i)) != 0; ++i)
    if (fabsf(ratio) >= (float)(1 << (mantissa + i))) k = i;
  return qc_round(ratio * (1.0f / (float)(1 << k))) * (1 << k);
}
QC_FN int qc_levels_fixed(int64_t acc, int multiplier, int shift, int low, int high, int mantissa) {
  int64_t product = acc * multiplier, size = product < 0 ? -product : product;
  int k = 0;
  for (int i = 1; (high >> (mantissa + i)) != 0; ++i)
    if (size >= (int64_t)1 << min(shift + mantissa + i, 62)) k = i;
  int below = shift + k;
  int64_t level = ((size + ((int64_t)1 << (below - 1)) - 1 + (size >> below & 1)) >> below) << k;
  level = level > high ? (int64_t)high : level;
  return product >= 0 ? (int)level : low < 0 ? -(int)level : 0;
}
/* clip(((a - za) ma + (b - zb) mb + 2^(shift-1)) >> shift, low, high) + zero; sums of bytes fit int32. */
QC_FN int qc_add(int a, int b, int za, int zb, int ma, int mb, int shift, int low, int high, int zero) {
  return qc_clip(((a - za) * ma + (b - zb) * mb + (1 << (shift - 1))) >> shift, low, high, zero);
}
QC_FN int qc_add_wide(int a, int b, int za, int zb, int ma, int mb, int shift, int low, int high, int zero) {
  int64_t sum = ((int64_t)(a - za) * ma + (int64_t)(b - zb) * mb + ((int64_t)1 << (shift - 1))) >> shift;
  return (int)(sum < low ? (int64_t)low : sum > high ? (int64_t)high : sum) + zero;
}

/* -- addresses and moves --------------------------------------------------------------------------------------- */

QC_FN int qc_low_half(int pair) { return (int)(short)(pair & 0xffff); }
QC_FN int qc_inside(int row, int column, int height, int width) {
  return (uint)row < (uint)height && (uint)column < (uint)width;
}
QC_FN const void *qc_choose(int inside, const void *x, int at, const void *line) {
  return inside ? (const void *)((const uchar *)x + at) : line;
}

template <int N> struct qc_bytes;
template <> struct qc_bytes<1> { typedef uchar type; };
template <> struct qc_bytes<2> { typedef ushort type; };
template <> struct qc_bytes<4> { typedef uint type; };
template <> struct qc_bytes<8> { typedef uint2 type; };
template <> struct qc_bytes<16> { typedef uint4 type; };
template <int N> QC_FN void qc_move(void *to, const void *from) {
  typedef typename qc_bytes<N>::type type;
  *(type *)to = *(const type *)from;
}
QC_FN void qc_move1(void *to, const void *from) { qc_move<1>(to, from); }
QC_FN void qc_move2(void *to, const void *from) { qc_move<2>(to, from); }
QC_FN void qc_move4(void *to, const void *from) { qc_move<4>(to, from); }
QC_FN void qc_move8(void *to, const void *from) { qc_move<8>(to, from); }
QC_FN void qc_move16(void *to, const void *from) { qc_move<16>(to, from); }
/* Two codes side by side, of one or two bytes. */
QC_FN void qc_put2_1(void *to, int a, int b) { *(ushort *)to = (ushort)((a & 255) | (b & 255) << 8); }
QC_FN void qc_put2_2(void *to, int a, int b) { *(uint *)to = ((uint)a & 65535u) | (uint)b << 16; }
/* Four codes side by side. */
QC_FN void qc_put4_1(void *to, int a, int b, int c, int d) {
  *(uint *)to = (uint)(a & 255) | (uint)(b & 255) << 8 | (uint)(c & 255) << 16 | (uint)d << 24;
}
QC_FN void qc_put4_2(void *to, int a, int b, int c, int d) {
  qc_put2_2(to, a, b);
  qc_put2_2((uint *)to + 1, c, d);
}
QC_FN void qc_put_word(void *to, int word) { *(int *)to = word; }
QC_FN void qc_put_byte(void *to, int byte) { *(uchar *)to = (uchar)byte; }
QC_FN int qc_get_uint8(const void *from) { return *(const uchar *)from; }
QC_FN int qc_get_int8(const void *from) { return *(const signed char *)from; }
QC_FN int qc_get_uint16(const void *from) { return *(const ushort *)from; }
QC_FN int qc_get_int16(const void *from) { return *(const short *)from; }
/* Four bytes at one distance as a word, of which the first `valid` are there; of `fill` the rest. */
QC_FN int qc_word_if(const void *x, int, int valid, int fill) { return valid > 0 ? *(const int *)x : fill; }
QC_FN int qc_bytes_if(const void *x, int step, int valid, int fill) {
  uint word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    word |= (i < valid ? (uint)((const uchar *)x)[i * step] : (uint)fill >> 8 * i & 255) << 8 * i;
  return (int)word;
}
/* The first `valid` bytes of a word by a table that begins with the byte `start`; 0 for the rest. */
QC_FN int qc_table4(const void *table, int word, int start, int valid) {
  uint found = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < valid) found |= (uint)((const uchar *)table)[(word >> 8 * i & 255) ^ start] << 8 * i;
  return (int)found;
}
QC_FN int qc_word_or(int there, const void *x, int fill) { return there ? *(const int *)x : fill; }
/* Four words of four bytes, rows and columns exchanged. */
QC_FN void qc_turn4(int *to, int a, int b, int c, int d) {
#ifdef QC_EMULATE
  for (int i = 0; i < 4; ++i)
    to[i] = (int)((uint)(a >> 8 * i & 255) | (uint)(b >> 8 * i & 255) << 8 | (uint)(c >> 8 * i & 255) << 16 |
                  (uint)(d >> 8 * i & 255) << 24);
#else
  uint ab = __byte_perm(a, b, 0x5140), cd = __byte_perm(c, d, 0x5140);
  uint ef = __byte_perm(a, b, 0x7362), gh = __byte_perm(c, d, 0x7362);
  to[0] = __byte_perm(ab, cd, 0x5410);
  to[1] = __byte_perm(ab, cd, 0x7632);
  to[2] = __byte_perm(ef, gh, 0x5410);
  to[3] = __byte_perm(ef, gh, 0x7632);
#endif
}
/* c + the sum of four products of bytes. */
template <bool XS, bool WS> QC_FN int qc_dp4a(uint x, uint w, int c) {
#ifdef QC_EMULATE
  for (int i = 0; i < 4; ++i) {
    int p = x >> 8 * i & 255, q = w >> 8 * i & 255;
    c += (XS ? (int)(signed char)p : p) * (WS ? (int)(signed char)q : q);
  }
  return c;
#else
  int sum;
  if (XS && WS) asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(x), "r"(w), "r"(c));
  else if (XS) asm("dp4a.s32.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(x), "r"(w), "r"(c));
  else if (WS) asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(x), "r"(w), "r"(c));
  else asm("dp4a.u32.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(x), "r"(w), "r"(c));
  return sum;
#endif
}
QC_FN int qc_dp4a_u8s8(int a, int b, int c) { return qc_dp4a<false, true>(a, b, c); }
QC_FN int qc_dp4a_s8s8(int a, int b, int c) { return qc_dp4a<true, true>(a, b, c); }
/* Sixteen bytes from sixteen places to one, if `there`. */
template <class... T> QC_FN void qc_bytes16(int there, void *to, T... from) {
  if (!there) return;
  const void *places[16] = {from...};
  uint words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint word = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) word |= (uint) * (const uchar *)places[4 * i + j] << (8 * j);
    words[i] = word;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) ((uint *)to)[i] = words[i];
}

/* -- what lanes of a warp, or eight neighbours, find together ------------------------------------------------------------------- */

#ifdef QC_EMULATE
QC_FN int64_t qc_warp_sum64(int64_t x) { return qc_emulate_sum(x); }
QC_FN int qc_warp_max(int x) { return qc_emulate_max(x); }
QC_FN int64_t qc_eight_sum64(int64_t x) { return qc_emulate_sum(x, 8); }
QC_FN int qc_eight_max(int x) { return qc_emulate_max(x, 8); }
#else
QC_FN int64_t qc_warp_sum64(int64_t x) {
#pragma unroll
  for (int step = 16; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, (long long)x, step);
  return x;
}
QC_FN int qc_warp_max(int x) {
#pragma unroll
  for (int step = 16; step; step /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}
QC_FN int64_t qc_eight_sum64(int64_t x) {
#pragma unroll
  for (int step = 4; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, (long long)x, step);
  return x;
}
QC_FN int qc_eight_max(int x) {
#pragma unroll
  for (int step = 4; step; step /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}
#endif

/* -- asynchronous copies to shared memory, if `there` ------------------------------------------------------------ */

#if defined(QC_EMULATE)
QC_FN void qc_async16(int there, void *to, const void *from) { if (there) qc_emulate_async(to, from, 16); }
QC_FN void qc_async8(int there, void *to, const void *from) { if (there) qc_emulate_async(to, from, 8); }
QC_FN void qc_async4(int there, void *to, const void *from) { if (there) qc_emulate_async(to, from, 4); }
QC_FN void qc_async_commit() { qc_emulate_commit(); }
#define QC_WAIT(n) QC_FN void qc_async_wait##n() { qc_emulate_wait(n); }
#elif __CUDA_ARCH__ >= 800
QC_FN uint qc_shared_address(const void *p) { return (uint)__cvta_generic_to_shared(p); }
QC_FN void qc_async16(int there, void *to, const void *from) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p cp.async.cg.shared.global [%0], [%1], 16;}" ::
               "r"(qc_shared_address(to)), "l"(from), "r"(there) : "memory");
}
QC_FN void qc_async8(int there, void *to, const void *from) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p cp.async.ca.shared.global [%0], [%1], 8;}" ::
               "r"(qc_shared_address(to)), "l"(from), "r"(there) : "memory");
}
QC_FN void qc_async4(int there, void *to, const void *from) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p cp.async.ca.shared.global [%0], [%1], 4;}" ::
               "r"(qc_shared_address(to)), "l"(from), "r"(there) : "memory");
}
QC_FN void qc_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
#define QC_WAIT(n) QC_FN void qc_async_wait##n() { asm volatile("cp.async.wait_group " #n ";" ::: "memory"); }
#else
QC_FN uint qc_shared_address(const void *p) { return (uint)__cvta_generic_to_shared(p); }
QC_FN void qc_async16(int there, void *to, const void *from) { if (there) qc_move<16>(to, from); }
QC_FN void qc_async8(int there, void *to, const void *from) { if (there) qc_move<8>(to, from); }
QC_FN void qc_async4(int there, void *to, const void *from) { if (there) qc_move<4>(to, from); }
QC_FN void qc_async_commit() {}
#define QC_WAIT(n) QC_FN void qc_async_wait##n() {}
#endif
QC_WAIT(0)
QC_WAIT(1)
QC_WAIT(2)
QC_WAIT(3)
QC_WAIT(4)

/* -- sums that several blocks have parts of ---------------------------------------------------------------------- */

QC_FN void qc_put_sums(int *to, const int *c) {
#ifdef QC_EMULATE
  for (int i = 0; i < 4; ++i) to[i] = c[i];
#else
  *(int4 *)to = make_int4(c[0], c[1], c[2], c[3]);
#endif
}
/* Read where other blocks' writes are seen, in the second-level cache. */
QC_FN void qc_add_sums(int *c, const int *from) {
#ifdef QC_EMULATE
  for (int i = 0; i < 4; ++i) c[i] += from[i];
#else
  int4 sums = __ldcg((const int4 *)from);
  c[0] += sums.x;
  c[1] += sums.y;
  c[2] += sums.z;
  c[3] += sums.w;
#endif
}
/* Whether this block is the last of `parts` that come here; what the others wrote before can be read then. The counter
   is 0 before the first and after the last. `shared`: a word that the block does not need. */
QC_FN int qc_comes_last(int *counter, int parts, void *shared) {
#ifdef QC_EMULATE
  __syncthreads();
  if (threadIdx.x == 0) {
    *(int *)shared = *counter == parts - 1;
    *counter = *counter == parts - 1 ? 0 : *counter + 1;
  }
#else
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *(int *)shared = atomicInc((uint *)counter, (uint)parts - 1) == (uint)parts - 1;
#endif
  __syncthreads();
  int last = *(const volatile int *)shared;
#ifndef QC_EMULATE
  __threadfence();
#endif
  __syncthreads();
  return last;
}

/* -- fragments ------------------------------------------------------------------------------------------------- */

/* Four 8 x 16 byte matrices: lane l gives the address of row l % 8 of matrix l / 8, and gets four bytes of each. */
QC_FN void qc_ldmatrix4(uint *r, const void *row) {
#ifdef QC_EMULATE
  qc_emulate_ldmatrix4(r, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(qc_shared_address(row))
               : "memory");
#endif
}

/* c[16 x 8] += a[16 x 32] b[32 x 8]. Lane l has rows l / 4 and l / 4 + 8 of a and column l / 4 of b, four bytes from
   4 (l % 4) on in each half; of c columns 2 (l % 4) and the next, of both rows. Cards before sm_80 have m8n8k16, of
   which this is four, with the same registers. The same of codes of 4 bits, two a byte, is c[16 x 8] += a[16 x 64]
   b[64 x 8]: m16n8k64, or four m8n8k32. Kernels for cards before sm_75 have neither this nor ldmatrix. */
#ifdef QC_EMULATE
#define QC_MMA(name, x, w)                                                                                        \
  QC_FN void name(int *c, const uint *a, const uint *b) { qc_emulate_mma(c, a, b, *#x == 's', *#w == 's'); }
QC_FN void qc_mma_u4s4(int *c, const uint *a, const uint *b) { qc_emulate_mma4(c, a, b, false); }
QC_FN void qc_mma_s4s4(int *c, const uint *a, const uint *b) { qc_emulate_mma4(c, a, b, true); }
#elif __CUDA_ARCH__ >= 800
#define QC_MMA16(name, shape, x, w)                                                                               \
  QC_FN void name(int *c, const uint *a, const uint *b) {                                                         \
    asm volatile("mma.sync.aligned." shape ".row.col.s32." #x "." #w                                              \
                 ".s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                           \
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                             \
  }
#define QC_MMA(name, x, w) QC_MMA16(name, "m16n8k32", x, w)
QC_MMA16(qc_mma_u4s4, "m16n8k64", u4, s4)
QC_MMA16(qc_mma_s4s4, "m16n8k64", s4, s4)
#else
#define QC_MMA8(c, a, b, shape, x, w)                                                                             \
  asm volatile("mma.sync.aligned." shape ".row.col.s32." #x "." #w ".s32 {%0, %1}, {%2}, {%3}, {%0, %1};"         \
               : "+r"((c)[0]), "+r"((c)[1])                                                                       \
               : "r"(a), "r"(b))
#define QC_MMA_OF_FOUR(name, shape, x, w)                                                                         \
  QC_FN void name(int *c, const uint *a, const uint *b) {                                                         \
    QC_MMA8(c, a[0], b[0], shape, x, w);                                                                          \
    QC_MMA8(c, a[2], b[1], shape, x, w);                                                                          \
    QC_MMA8(c + 2, a[1], b[0], shape, x, w);                                                                      \
    QC_MMA8(c + 2, a[3], b[1], shape, x, w);                                                                      \
  }
#define QC_MMA(name, x, w) QC_MMA_OF_FOUR(name, "m8n8k16", x, w)
QC_MMA_OF_FOUR(qc_mma_u4s4, "m8n8k32", u4, s4)
QC_MMA_OF_FOUR(qc_mma_s4s4, "m8n8k32", s4, s4)
#endif
QC_MMA(qc_mma_u8s8, u8, s8)
QC_MMA(qc_mma_s8s8, s8, s8)
QC_MMA(qc_mma_u8u8, u8, u8)
QC_MMA(qc_mma_s8u8, s8, u8)

/* The low halves of the bytes of a word, and behind each that of the same byte of another one. */
QC_FN uint qc_nibbles(uint low, uint high) { return (low & 0x0f0f0f0fu) | (high << 4 & 0xf0f0f0f0u); }

/* -- products without tensor cores (dp4a: sm_61 and newer) ------------------------------------------------------ */

/* Where a chunk of a row of SIZE bytes lies (staging.py). */
template <int SIZE> QC_FN const uint4 *qc_chunk(const void *tile, int row, int chunk) {
  const int chunks = SIZE / 16;
  int turn = chunks == 1 ? 0 : chunks >= 8 ? row % 8 : row / (8 / chunks) % chunks;
  return (const uint4 *)((const uchar *)tile + row * SIZE + (chunk ^ turn) * 16);
}
/* Codes 16 i to 16 i + 15 of a row of w: bytes; of packed codes, such that count 16 or 64 fold. */
template <int STEP, int BITS> QC_FN uint4 qc_codes(const void *w, int row, int i) {
  uint4 found = *qc_chunk<STEP * BITS / 8>(w, row, i * BITS / 8);
  if (BITS < 8) {
    const uint mask = BITS == 4 ? 0xf0f0f0f0u : 0xc0c0c0c0u;
    int shift = 8 - BITS - BITS * (i % (8 / BITS));
    found.x = found.x << shift & mask;
    found.y = found.y << shift & mask;
    found.z = found.z << shift & mask;
    found.w = found.w << shift & mask;
  }
  return found;
}
template <bool XS, bool WS> QC_FN int qc_dot16(uint4 x, uint4 w, int c) {
  c = qc_dp4a<XS, WS>(x.x, w.x, c);
  c = qc_dp4a<XS, WS>(x.y, w.y, c);
  c = qc_dp4a<XS, WS>(x.z, w.z, c);
  return qc_dp4a<XS, WS>(x.w, w.w, c);
}
/* c += x w of a tile of STEP bytes of the inner dimension: of M x N fragments what a thread has of them. row, column:
   its first ones. */
template <int M, int N, int STEP, int BITS, bool XS, bool WS>
QC_FN void qc_dots(int *c, const void *x, const void *w, int row, int column) {
#pragma unroll
  for (int i = 0; i < STEP / 16; ++i) {
    uint4 rows[2 * M];
#pragma unroll
    for (int m = 0; m < 2 * M; ++m) rows[m] = *qc_chunk<STEP>(x, row + 8 * m, i);
#pragma unroll
    for (int n = 0; n < 2 * N; ++n) {
      uint4 codes = qc_codes<STEP, BITS>(w, column + 8 * (n / 2) + n % 2, i);
#pragma unroll
      for (int m = 0; m < 2 * M; ++m) {
        int *sum = c + (m / 2 * N + n / 2) * 4 + m % 2 * 2 + n % 2;
        *sum = qc_dot16<XS, WS>(rows[m], codes, *sum);
      }
    }
  }
}
/* Sums of rows of x, and of w, where products with a fragment of ones have them. */
template <int M, int STEP, bool XS> QC_FN void qc_dots_rows(int *sums, const void *x, int row) {
  const uint4 ones = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
#pragma unroll
  for (int i = 0; i < STEP / 16; ++i)
#pragma unroll
    for (int m = 0; m < 2 * M; ++m) sums[2 * m] = qc_dot16<XS, false>(*qc_chunk<STEP>(x, row + 8 * m, i), ones, sums[2 * m]);
}
template <int N, int STEP, bool WS> QC_FN void qc_dots_columns(int *sums, const void *w, int column) {
  const uint4 ones = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
#pragma unroll
  for (int i = 0; i < STEP / 16; ++i)
#pragma unroll
    for (int n = 0; n < 2 * N; ++n) {
      int at = n / 2 * 4 + n % 2;
      sums[at] = qc_dot16<WS, false>(*qc_chunk<STEP>(w, column + 8 * (n / 2) + n % 2, i), ones, sums[at]);
    }
}

/* -- tiles of two activations ------------------------------------------------------------------------------------- */

/* To shared memory, if `there`: sixteen bytes at one distance, of which the first `valid` are there; 0 for the rest. */
QC_FN void qc_strided16(int there, void *to, const void *from, int step, int valid) {
  if (!there) return;
  uint words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 16; ++i)
    if (i < valid) words[i / 4] |= (uint)((const uchar *)from)[i * step] << 8 * (i % 4);
#pragma unroll
  for (int i = 0; i < 4; ++i) ((uint *)to)[i] = words[i];
}
/* The same of four rows, whose bytes lie beside each other: a word is one byte of each. */
QC_FN void qc_columns16(int there, void *to0, void *to1, void *to2, void *to3, const void *from, int step, int valid) {
  if (!there) return;
  int rows[4][4];
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    int words[4], turned[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = 4 * q + i < valid ? *(const int *)((const uchar *)from + (4 * q + i) * step) : 0;
    qc_turn4(turned, words[0], words[1], words[2], words[3]);
#pragma unroll
    for (int r = 0; r < 4; ++r) rows[r][q] = turned[r];
  }
  void *to[4] = {to0, to1, to2, to3};
#pragma unroll
  for (int r = 0; r < 4; ++r) *(uint4 *)to[r] = {(uint)rows[r][0], (uint)rows[r][1], (uint)rows[r][2], (uint)rows[r][3]};
}

#endif
