/* Inner loops of convolutions. Same bits with and without the DSP extension of Cortex-M4, M7, M33 and M55.

   Columns: the inputs of four output pixels as int16, interleaved so that one load gives pairs for all four. Element k
   of pixel t is columns[QC_AT(k) + 2 * t].
   Planes: single channels of an image as int16, with their padding. */
#ifndef QC_DOT_H
#define QC_DOT_H

#include <stdint.h>

#if defined(__GNUC__) && defined(__ARM_FEATURE_DSP) && defined(__ARM_ARCH_PROFILE) && !defined(QC_PORTABLE)
#if __ARM_FEATURE_DSP && __ARM_ARCH_PROFILE == 'M'
#define QC_DSP
#endif
#endif

#define QC_AT(k) (((k) / 4) * 16 + ((k) % 2) * 8 + ((k) / 2) % 2)

#ifdef QC_DSP
#include <arm_acle.h>

/* Four bytes or two halfwords; these cores read and write unaligned words. */
static inline uint32_t qc_load(const void *from) {
  uint32_t word;
  __builtin_memcpy(&word, from, sizeof word);
  return word;
}

static inline void qc_store(void *to, uint32_t word) { __builtin_memcpy(to, &word, sizeof word); }

/* Bytes 1 and 3, extended. The rotation is part of the instruction, which compilers do not find by themselves. */
static inline uint32_t qc_odd_u8(uint32_t word) {
  uint32_t odd;
  __asm__("uxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(word));
  return odd;
}

static inline uint32_t qc_odd_s8(uint32_t word) {
  uint32_t odd;
  __asm__("sxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(word));
  return odd;
}

static inline uint32_t qc_even_u8(uint32_t word) { return (uint32_t)__uxtb16((uint8x4_t)word); }
static inline uint32_t qc_even_s8(uint32_t word) { return (uint32_t)__sxtb16((int8x4_t)word); }

static inline int32_t qc_mac(uint32_t a, uint32_t b, int32_t sum) { return __smlad((int16x2_t)a, (int16x2_t)b, sum); }

/* One word of x (even and odd halves) times a word of w. */
static inline int32_t qc_mac4(uint32_t even, uint32_t odd, uint32_t weights, int32_t sum) {
  return qc_mac(odd, qc_odd_s8(weights), qc_mac(even, qc_even_s8(weights), sum));
}
#endif

/* sums[t] += sum over i < run of x[i] * w[t * panel + i], t = 0..3 */
static inline void qc_dot_u8s8_x4(const uint8_t *restrict x, const int8_t *restrict w, int32_t run, int32_t panel,
                                  int32_t *restrict sums) {
  int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
  const int8_t *w1 = w + panel, *w2 = w1 + panel, *w3 = w2 + panel;
  int32_t i = 0;
#ifdef QC_DSP
  for (; i + 4 <= run; i += 4) {
    const uint32_t word = qc_load(x + i), even = qc_even_u8(word), odd = qc_odd_u8(word);
    s0 = qc_mac4(even, odd, qc_load(w + i), s0);
    s1 = qc_mac4(even, odd, qc_load(w1 + i), s1);
    s2 = qc_mac4(even, odd, qc_load(w2 + i), s2);
    s3 = qc_mac4(even, odd, qc_load(w3 + i), s3);
  }
#endif
  for (; i < run; ++i) {
    const int32_t value = (int32_t)x[i];
    s0 += value * (int32_t)w[i];
    s1 += value * (int32_t)w1[i];
    s2 += value * (int32_t)w2[i];
    s3 += value * (int32_t)w3[i];
  }
  sums[0] = s0;
  sums[1] = s1;
  sums[2] = s2;
  sums[3] = s3;
}

/* Elements from..behind-1 of a pixel's column = value. */
static inline void qc_column_fill(int16_t *column, int32_t from, int32_t behind, int32_t value) {
  for (int32_t k = from; k < behind; ++k) column[QC_AT(k)] = (int16_t)value;
}

/* A pixel's column: `lead` times zero, x[0..count-1], `tail` times zero. */
#ifdef QC_DSP
#define QC_COLUMN_WORD(even, odd)                    \
  {                                                  \
    const uint32_t word = qc_load(x + i);            \
    qc_store(at, even(word));                        \
    qc_store(at + 8, odd(word));                     \
    at += 16;                                        \
    i += 4;                                          \
  }
#define QC_COLUMN_WORDS(even, odd)                                   \
  if (lead % 4 == 0) {                                               \
    int16_t *at = column + lead * 4;                                 \
    while (i + 8 <= count) {                                         \
      QC_COLUMN_WORD(even, odd)                                      \
      QC_COLUMN_WORD(even, odd)                                      \
    }                                                                \
    if (i + 4 <= count) QC_COLUMN_WORD(even, odd)                    \
  }
#else
#define QC_COLUMN_WORDS(even, odd)
#endif

static inline void qc_column_u8(int16_t *restrict column, const uint8_t *restrict x, int32_t lead, int32_t count,
                                int32_t tail, int32_t zero) {
  int32_t i = 0;
  qc_column_fill(column, 0, lead, zero);
  QC_COLUMN_WORDS(qc_even_u8, qc_odd_u8)
  for (; i < count; ++i) column[QC_AT(lead + i)] = (int16_t)x[i];
  qc_column_fill(column, lead + count, lead + count + tail, zero);
}

static inline void qc_column_s8(int16_t *restrict column, const int8_t *restrict x, int32_t lead, int32_t count,
                                int32_t tail, int32_t zero) {
  int32_t i = 0;
  qc_column_fill(column, 0, lead, zero);
  QC_COLUMN_WORDS(qc_even_s8, qc_odd_s8)
  for (; i < count; ++i) column[QC_AT(lead + i)] = (int16_t)x[i];
  qc_column_fill(column, lead + count, lead + count + tail, zero);
}

/* sums[4 * c + t] = bias[c] + sum over k < 4 * steps of (element k of pixel t) * w[c * 4 * steps + k], t = 0..3,
   c < channels */
static inline void qc_dot_x4(const int16_t *restrict columns, const int8_t *restrict w, int32_t steps,
                             const int32_t *restrict bias, int32_t channels, int32_t *restrict sums) {
  for (; channels > 0; --channels, sums += 4) {
    const int16_t *x = columns;
    int32_t s0 = *bias++, s1 = s0, s2 = s0, s3 = s0, n = steps;
#ifdef QC_DSP
    uint32_t word, half;
#define QC_STEP                         \
  "ldr %[word], [%[w]], #4\n\t"         \
  "ldmia %[x]!, {r4, r5, r6, r8}\n\t"   \
  "sxtb16 %[half], %[word]\n\t"         \
  "smlad %[s0], r4, %[half], %[s0]\n\t" \
  "smlad %[s1], r5, %[half], %[s1]\n\t" \
  "smlad %[s2], r6, %[half], %[s2]\n\t" \
  "smlad %[s3], r8, %[half], %[s3]\n\t" \
  "ldmia %[x]!, {r4, r5, r6, r8}\n\t"   \
  "sxtb16 %[half], %[word], ror #8\n\t" \
  "smlad %[s0], r4, %[half], %[s0]\n\t" \
  "smlad %[s1], r5, %[half], %[s1]\n\t" \
  "smlad %[s2], r6, %[half], %[s2]\n\t" \
  "smlad %[s3], r8, %[half], %[s3]\n\t"
    __asm__ volatile(
        ".syntax unified\n\t"
        "subs %[n], %[n], #8\n\t"
        "blo 2f\n"
        "1:\n\t" QC_STEP QC_STEP QC_STEP QC_STEP QC_STEP QC_STEP QC_STEP QC_STEP
        "subs %[n], %[n], #8\n\t"
        "bhs 1b\n"
        "2:\n\t"
        "adds %[n], %[n], #8\n\t"
        "beq 5f\n\t"
        "subs %[n], %[n], #4\n\t" /* a step leaves the flags as they are */
        "blo 3f\n\t" QC_STEP QC_STEP QC_STEP QC_STEP
        "beq 5f\n\t"
        "b 4f\n"
        "3:\n\t"
        "adds %[n], %[n], #4\n"
        "4:\n\t" QC_STEP
        "subs %[n], %[n], #1\n\t"
        "bne 4b\n"
        "5:\n"
        : [s0] "+r"(s0), [s1] "+r"(s1), [s2] "+r"(s2), [s3] "+r"(s3), [x] "+r"(x), [w] "+r"(w), [n] "+r"(n),
          [word] "=&r"(word), [half] "=&r"(half)
        :
        : "r4", "r5", "r6", "r8", "cc", "memory");
#undef QC_STEP
#else
    for (; n > 0; --n, x += 16) {
      for (int32_t k = 0; k < 4; ++k) {
        const int16_t *const at = x + QC_AT(k);
        const int32_t weight = (int32_t)*w++;
        s0 += (int32_t)at[0] * weight;
        s1 += (int32_t)at[2] * weight;
        s2 += (int32_t)at[4] * weight;
        s3 += (int32_t)at[6] * weight;
      }
    }
#endif
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
  }
}

/* Weights of fewer bits, packed: four of them as the upper bits of four bytes, the rest zero, so that sums are larger by a
   power of two. A block of w4 is a word for two such steps, of w2 a word for four; of w3 two words of upper bits for four
   steps each and a word of the lowest bits for all eight. */
static inline uint32_t qc_word(const uint8_t *from) {
#ifdef QC_DSP
  return qc_load(from);
#else
  return (uint32_t)from[0] | ((uint32_t)from[1] << 8) | ((uint32_t)from[2] << 16) | ((uint32_t)from[3] << 24);
#endif
}

static inline uint32_t qc_four_w4(const uint8_t *w, int32_t step) {
  return (qc_word(w + 4 * (step / 2)) << (4 * (step % 2))) & 0xF0F0F0F0u;
}

static inline uint32_t qc_four_w3(const uint8_t *w, int32_t step) {
  const uint8_t *const block = w + 12 * (step / 8);
  const uint32_t upper = (qc_word(block + 4 * (step / 4 % 2)) << (2 * (step % 4))) & 0xC0C0C0C0u;
  return upper | (((qc_word(block + 8) << (step % 8)) & 0x80808080u) >> 2);
}

static inline uint32_t qc_four_w2(const uint8_t *w, int32_t step) {
  return (qc_word(w + 4 * (step / 4)) << (2 * (step % 4))) & 0xC0C0C0C0u;
}

/* sums[t] += a step: four elements of four pixels times four weights. */
static inline const int16_t *qc_step_x4(const int16_t *x, uint32_t word, int32_t *sums) {
#ifdef QC_DSP
  uint32_t half;
  __asm__ volatile(
      "ldmia %[x]!, {r4, r5, r6, r8}\n\t"
      "sxtb16 %[half], %[word]\n\t"
      "smlad %[s0], r4, %[half], %[s0]\n\t"
      "smlad %[s1], r5, %[half], %[s1]\n\t"
      "smlad %[s2], r6, %[half], %[s2]\n\t"
      "smlad %[s3], r8, %[half], %[s3]\n\t"
      "ldmia %[x]!, {r4, r5, r6, r8}\n\t"
      "sxtb16 %[half], %[word], ror #8\n\t"
      "smlad %[s0], r4, %[half], %[s0]\n\t"
      "smlad %[s1], r5, %[half], %[s1]\n\t"
      "smlad %[s2], r6, %[half], %[s2]\n\t"
      "smlad %[s3], r8, %[half], %[s3]\n\t"
      : [s0] "+r"(sums[0]), [s1] "+r"(sums[1]), [s2] "+r"(sums[2]), [s3] "+r"(sums[3]), [x] "+r"(x), [half] "=&r"(half)
      : [word] "r"(word)
      : "r4", "r5", "r6", "r8", "memory");
  return x;
#else
  for (int32_t k = 0; k < 4; ++k, word >>= 8) {
    const int32_t weight = (int32_t)(int8_t)(uint8_t)(word & 0xFFu);
    const int16_t *const at = x + QC_AT(k);
    for (int32_t t = 0; t < 4; ++t) sums[t] += (int32_t)at[2 * t] * weight;
  }
  return x + 16;
#endif
}

/* qc_dot_x4 and, for one pixel that lies in bytes, sum = bias + sum over i < count of x[i] * w[i]. */
#define QC_PACKED(BITS, STEPS, BYTES)                                                                                  \
  static inline void qc_dot_x4_w##BITS(const int16_t *restrict columns, const uint8_t *restrict w, int32_t steps,      \
                                       const int32_t *restrict bias, int32_t channels, int32_t *restrict sums) {       \
    for (; channels > 0; --channels, sums += 4, w += (steps + STEPS - 1) / STEPS * BYTES) {                            \
      const int16_t *x = columns;                                                                                      \
      int32_t s[4] = {*bias, *bias, *bias, *bias};                                                                     \
      ++bias;                                                                                                          \
      for (int32_t step = 0; step < steps; ++step) x = qc_step_x4(x, qc_four_w##BITS(w, step), s);                     \
      for (int32_t t = 0; t < 4; ++t) sums[t] = s[t];                                                                  \
    }                                                                                                                  \
  }                                                                                                                    \
  QC_PACKED_LINE(BITS, u8, uint8_t)                                                                                    \
  QC_PACKED_LINE(BITS, s8, int8_t)

#ifdef QC_DSP
#define QC_LINE_STEP(KIND)                                                  \
  const uint32_t four = qc_load(x + 4 * step);                              \
  s = qc_mac4(qc_even_##KIND(four), qc_odd_##KIND(four), word, s);
#else
#define QC_LINE_STEP(KIND) \
  for (int32_t k = 0; k < 4; ++k) s += (int32_t)x[4 * step + k] * (int32_t)(int8_t)(uint8_t)((word >> (8 * k)) & 0xFFu);
#endif
#define QC_PACKED_LINE(BITS, KIND, TYPE)                                                                              \
  static inline void qc_line_##KIND##_w##BITS(const TYPE *restrict x, const uint8_t *restrict w, int32_t count,       \
                                              int32_t bias, int32_t *restrict sum) {                                  \
    int32_t s = bias, step = 0;                                                                                       \
    for (; 4 * step + 4 <= count; ++step) {                                                                           \
      const uint32_t word = qc_four_w##BITS(w, step);                                                                 \
      QC_LINE_STEP(KIND)                                                                                              \
    }                                                                                                                 \
    for (int32_t k = 4 * step; k < count; ++k)                                                                        \
      s += (int32_t)x[k] * (int32_t)(int8_t)(uint8_t)((qc_four_w##BITS(w, step) >> (8 * (k % 4))) & 0xFFu);           \
    *sum = s;                                                                                                         \
  }
QC_PACKED(4, 2, 4)
QC_PACKED(3, 8, 12)
QC_PACKED(2, 4, 4)

/* One row of four neighbouring channels into their planes: planes[t * plane + j] = x[j * step + t] */
#ifdef QC_DSP
#define QC_PLANE_WORDS(EXTEND)                                                                                \
  const int32_t pairs = count / 2, second = 2 * plane, fourth = 6 * plane;                                    \
  int32_t n = pairs;                                                                                          \
  uint32_t a, b, c, d;                                                                                        \
  if (n > 0) {                                                                                                \
    int16_t *to = planes;                                                                                     \
    __asm__ volatile(                                                                                         \
        "1:\n\t"                                                                                              \
        "ldr %[a], [%[x]]\n\t"                                                                                \
        "ldr %[b], [%[x], %[step]]\n\t"                                                                       \
        "add %[x], %[x], %[step], lsl #1\n\t" EXTEND " %[c], %[a]\n\t" EXTEND " %[d], %[b]\n\t" EXTEND        \
        " %[a], %[a], ror #8\n\t" EXTEND                                                                      \
        " %[b], %[b], ror #8\n\t"                                                                             \
        "str %[c], [%[to]]\n\t"                                                                               \
        "strh %[d], [%[to], #2]\n\t"                                                                          \
        "pkhtb %[d], %[d], %[c], asr #16\n\t"                                                                 \
        "str %[d], [%[to], %[second], lsl #1]\n\t"                                                            \
        "pkhbt %[c], %[a], %[b], lsl #16\n\t"                                                                 \
        "str %[c], [%[to], %[second]]\n\t"                                                                    \
        "pkhtb %[b], %[b], %[a], asr #16\n\t"                                                                 \
        "str %[b], [%[to], %[fourth]]\n\t"                                                                    \
        "add %[to], %[to], #4\n\t"                                                                            \
        "subs %[n], %[n], #1\n\t"                                                                             \
        "bne 1b\n"                                                                                            \
        : [a] "=&r"(a), [b] "=&r"(b), [c] "=&r"(c), [d] "=&r"(d), [x] "+r"(x), [to] "+r"(to), [n] "+r"(n)     \
        : [step] "r"(step), [second] "r"(second), [fourth] "r"(fourth)                                        \
        : "cc", "memory");                                                                                    \
    j = 2 * pairs;                                                                                            \
  }
#else
#define QC_PLANE_WORDS(EXTEND)
#endif

/* elements 0..count-1 = value; `to` lies at a multiple of four bytes and count is even */
static inline void qc_planes_fill(int16_t *restrict to, int32_t count, int32_t value) {
#ifdef QC_DSP
  const uint32_t word = ((uint32_t)value << 16) | ((uint32_t)value & 0xFFFFu);
  for (int32_t i = 0; i < count; i += 2) qc_store(to + i, word);
#else
  for (int32_t i = 0; i < count; ++i) to[i] = (int16_t)value;
#endif
}

static inline void qc_planes_u8(int16_t *restrict planes, int32_t plane, const uint8_t *restrict x, int32_t step,
                                int32_t count) {
  int32_t j = 0;
  QC_PLANE_WORDS("uxtb16")
  for (; j < count; ++j, x += step) {
    planes[j] = (int16_t)x[0];
    planes[plane + j] = (int16_t)x[1];
    planes[2 * plane + j] = (int16_t)x[2];
    planes[3 * plane + j] = (int16_t)x[3];
  }
}

static inline void qc_planes_s8(int16_t *restrict planes, int32_t plane, const int8_t *restrict x, int32_t step,
                                int32_t count) {
  int32_t j = 0;
  QC_PLANE_WORDS("sxtb16")
  for (; j < count; ++j, x += step) {
    planes[j] = (int16_t)x[0];
    planes[plane + j] = (int16_t)x[1];
    planes[2 * plane + j] = (int16_t)x[2];
    planes[3 * plane + j] = (int16_t)x[3];
  }
}

static inline uint32_t qc_pair(int32_t low, int32_t high) {
#ifdef QC_DSP
  uint32_t both;
  __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(both) : "r"(low), "r"(high));
  return both;
#else
  return ((uint32_t)low & 0xFFFFu) | ((uint32_t)high << 16);
#endif
}

/* The nine weights of a 3x3 window as words of two halfwords: for each row w0 w1, w1 w2. */
static inline void qc_taps_3x3(const int8_t *restrict w, uint32_t *restrict taps) {
  taps[0] = qc_pair(w[0], w[1]);
  taps[1] = qc_pair(w[1], w[2]);
  taps[2] = qc_pair(w[3], w[4]);
  taps[3] = qc_pair(w[4], w[5]);
  taps[4] = qc_pair(w[6], w[7]);
  taps[5] = qc_pair(w[7], w[8]);
}

/* Four neighbouring 3x3 windows: sums[t] = start + the window at x + t * stride; rows of the plane lie `pitch` apart. In
   the order of `block`: six words of taps, start, multiplier, shift, 2 * zero point + 1 and the distance of outputs. */
#ifdef QC_DSP
#define QC_ROW_S1(at, first, a, b, c, d)                   \
  "ldrd %[w0], %[w1], [%[block], #" at "]\n\t"              \
  "ldr %[x0], " first "\n\t"                               \
  "ldr %[x1], [%[x], #-4]\n\t"                             \
  "smlad %[s0], %[x0], %[w0], " a "\n\t"                   \
  "smlatb %[s1], %[x0], %[w0], " b "\n\t"                  \
  "ldr %[x0], [%[x]]\n\t"                                  \
  "smlad %[s2], %[x1], %[w0], " c "\n\t"                   \
  "smlatb %[s3], %[x1], %[w0], " d "\n\t"                  \
  "smlabt %[s0], %[x1], %[w1], %[s0]\n\t"                  \
  "smlad %[s1], %[x1], %[w1], %[s1]\n\t"                   \
  "smlabt %[s2], %[x0], %[w1], %[s2]\n\t"                  \
  "smlad %[s3], %[x0], %[w1], %[s3]\n\t"
#define QC_ROW_S2(at, first, a, b, c, d)                   \
  "ldrd %[w0], %[w1], [%[block], #" at "]\n\t"              \
  "ldr %[x0], " first "\n\t"                               \
  "ldr %[x1], [%[x], #-12]\n\t"                            \
  "smlad %[s0], %[x0], %[w0], " a "\n\t"                   \
  "ldr %[x0], [%[x], #-8]\n\t"                             \
  "smlad %[s1], %[x1], %[w0], " b "\n\t"                   \
  "smlabt %[s0], %[x1], %[w1], %[s0]\n\t"                  \
  "ldr %[x1], [%[x], #-4]\n\t"                             \
  "smlad %[s2], %[x0], %[w0], " c "\n\t"                   \
  "smlabt %[s1], %[x0], %[w1], %[s1]\n\t"                  \
  "ldrh %[x0], [%[x]]\n\t"                                 \
  "smlad %[s3], %[x1], %[w0], " d "\n\t"                   \
  "smlabt %[s2], %[x1], %[w1], %[s2]\n\t"                  \
  "smlabt %[s3], %[x0], %[w1], %[s3]\n\t"
#define QC_FOUR(ROW, STEP)                                                                              \
  "ldr %[s3], [%[block], #24]\n\t" ROW("0", "[%[x]], #" STEP, "%[s3]", "%[s3]", "%[s3]", "%[s3]")       \
  "add %[x], %[x], %[pitch]\n\t" ROW("8", "[%[x], #-" STEP "]", "%[s0]", "%[s1]", "%[s2]", "%[s3]")     \
  "add %[x], %[x], %[pitch]\n\t" ROW("16", "[%[x], #-" STEP "]", "%[s0]", "%[s1]", "%[s2]", "%[s3]")
#define QC_TEMPORARIES                                                                                       \
  [s0] "=&r"(s0), [s1] "=&r"(s1), [s2] "=&r"(s2), [s3] "=&r"(s3), [w0] "=&r"(w0), [w1] "=&r"(w1),             \
      [x0] "=&r"(x0), [x1] "=&r"(x1), [x] "+r"(x)
#define QC_WINDOWS(ROW, STEP)                                                                                      \
  int32_t s0, s1, s2, s3;                                                                                    \
  uint32_t w0, w1, x0, x1;                                                                                   \
  __asm__ volatile(QC_FOUR(ROW, STEP) : QC_TEMPORARIES : [block] "r"(block), [pitch] "r"(2 * pitch) : "memory");   \
  sums[0] = s0;                                                                                              \
  sums[1] = s1;                                                                                              \
  sums[2] = s2;                                                                                              \
  sums[3] = s3;
/* Requantized and stored as well: code = saturate((((upper word of sum * multiplier) >> shift) + zero) >> 1). */
#define QC_ONE(s) "smmul " s ", " s ", %[w0]\n\tasr " s ", " s ", %[w1]\n\tadd " s ", " s ", %[x0]\n\t"
#define QC_ROW_OF_FOURS(ROW, STEP, SATURATE)                                                                 \
  if (fours > 0) {                                                                                           \
    int32_t s0, s1, s2, s3, n = fours;                                                                       \
    uint32_t w0, w1, x0, x1;                                                                                 \
    __asm__ volatile(                                                                                        \
        "1:\n\t" QC_FOUR(ROW, STEP)                                                                                \
        "sub %[x], %[x], %[pitch], lsl #1\n\t"                                                               \
        "ldrd %[w0], %[w1], [%[block], #28]\n\t"                                                             \
        "ldr %[x0], [%[block], #36]\n\t"                                                                     \
        "ldr %[x1], [%[block], #40]\n\t" QC_ONE("%[s0]") QC_ONE("%[s1]") QC_ONE("%[s2]") QC_ONE("%[s3]")      \
        SATURATE " %[s0], #8, %[s0], asr #1\n\t" SATURATE " %[s1], #8, %[s1], asr #1\n\t"                     \
        SATURATE " %[s2], #8, %[s2], asr #1\n\t" SATURATE " %[s3], #8, %[s3], asr #1\n\t"                     \
        "strb %[s0], [%[y]]\n\t"                                                                             \
        "strb %[s1], [%[y], %[x1]]\n\t"                                                                      \
        "add %[y], %[y], %[x1], lsl #1\n\t"                                                                  \
        "strb %[s2], [%[y]]\n\t"                                                                             \
        "strb %[s3], [%[y], %[x1]]\n\t"                                                                      \
        "add %[y], %[y], %[x1], lsl #1\n\t"                                                                  \
        "subs %[n], %[n], #1\n\t"                                                                            \
        "bne 1b\n"                                                                                           \
        : QC_TEMPORARIES, [y] "+r"(y), [n] "+r"(n)                                                           \
        : [block] "r"(block), [pitch] "r"(2 * pitch)                                                         \
        : "cc", "memory");                                                                                   \
  }
#define QC_FOURS (count / 4)
#else
#define QC_ROW_OF_FOURS(ROW, STEP, SATURATE)
#define QC_FOURS 0

static inline int32_t qc_low_half(uint32_t word) { return (int32_t)(int16_t)(uint16_t)(word & 0xFFFFu); }
static inline int32_t qc_high_half(uint32_t word) { return (int32_t)(int16_t)(uint16_t)(word >> 16); }
#endif

/* One window. */
static inline int32_t qc_window_3x3(const int16_t *restrict x, int32_t pitch, const uint32_t *restrict block) {
  int32_t sum = (int32_t)block[6];
#ifdef QC_DSP
  sum = __smlabt((int32_t)x[2], (int32_t)block[1], qc_mac(qc_load(x), block[0], sum));
  x += pitch;
  sum = __smlabt((int32_t)x[2], (int32_t)block[3], qc_mac(qc_load(x), block[2], sum));
  x += pitch;
  sum = __smlabt((int32_t)x[2], (int32_t)block[5], qc_mac(qc_load(x), block[4], sum));
#else
  for (int32_t row = 0; row < 3; ++row, x += pitch, block += 2)
    sum += (int32_t)x[0] * qc_low_half(block[0]) + (int32_t)x[1] * qc_high_half(block[0]) +
           (int32_t)x[2] * qc_high_half(block[1]);
#endif
  return sum;
}

static inline void qc_window_3x3_x1(const int16_t *restrict x, int32_t pitch, const uint32_t *restrict block,
                                    int32_t *restrict sums) {
  sums[0] = qc_window_3x3(x, pitch, block);
}

static inline void qc_window_3x3_s1_x4(const int16_t *restrict x, int32_t pitch, const uint32_t *restrict block,
                                       int32_t *restrict sums) {
#ifdef QC_DSP
  QC_WINDOWS(QC_ROW_S1, "8")
#else
  for (int32_t t = 0; t < 4; ++t) sums[t] = qc_window_3x3(x + t, pitch, block);
#endif
}

static inline void qc_window_3x3_s2_x4(const int16_t *restrict x, int32_t pitch, const uint32_t *restrict block,
                                       int32_t *restrict sums) {
#ifdef QC_DSP
  QC_WINDOWS(QC_ROW_S2, "16")
#else
  for (int32_t t = 0; t < 4; ++t) sums[t] = qc_window_3x3(x + 2 * t, pitch, block);
#endif
}

/* A row of such windows, requantized to 8 bits: the arithmetic of `fixed` for shifts of 33 and more (see `shift`). */
static inline int32_t qc_code(int32_t sum, const uint32_t *restrict block, int32_t low, int32_t high) {
  const int32_t upper = (int32_t)(((int64_t)sum * (int64_t)(int32_t)block[7]) >> 32);
  const int32_t code = ((upper >> block[8]) + (int32_t)block[9]) >> 1;
  return code < low ? low : (code > high ? high : code);
}

static inline void qc_row_3x3_s1_u8(const int16_t *restrict x, int32_t pitch, const uint32_t *restrict block,
                                    uint8_t *y, int32_t count) {
  const int32_t fours = QC_FOURS, step = (int32_t)block[10];
  QC_ROW_OF_FOURS(QC_ROW_S1, "8", "usat")
  for (int32_t i = 4 * fours; i < count; ++i, ++x, y += step)
    *y = (uint8_t)qc_code(qc_window_3x3(x, pitch, block), block, 0, 255);
}

static inline void qc_row_3x3_s2_u8(const int16_t *restrict x, int32_t pitch, const uint32_t *restrict block,
                                    uint8_t *y, int32_t count) {
  const int32_t fours = QC_FOURS, step = (int32_t)block[10];
  QC_ROW_OF_FOURS(QC_ROW_S2, "16", "usat")
  for (int32_t i = 4 * fours; i < count; ++i, x += 2, y += step)
    *y = (uint8_t)qc_code(qc_window_3x3(x, pitch, block), block, 0, 255);
}

static inline void qc_row_3x3_s1_s8(const int16_t *restrict x, int32_t pitch, const uint32_t *restrict block,
                                    int8_t *y, int32_t count) {
  const int32_t fours = QC_FOURS, step = (int32_t)block[10];
  QC_ROW_OF_FOURS(QC_ROW_S1, "8", "ssat")
  for (int32_t i = 4 * fours; i < count; ++i, ++x, y += step)
    *y = (int8_t)qc_code(qc_window_3x3(x, pitch, block), block, -128, 127);
}

static inline void qc_row_3x3_s2_s8(const int16_t *restrict x, int32_t pitch, const uint32_t *restrict block,
                                    int8_t *y, int32_t count) {
  const int32_t fours = QC_FOURS, step = (int32_t)block[10];
  QC_ROW_OF_FOURS(QC_ROW_S2, "16", "ssat")
  for (int32_t i = 4 * fours; i < count; ++i, x += 2, y += step)
    *y = (int8_t)qc_code(qc_window_3x3(x, pitch, block), block, -128, 127);
}

#endif
