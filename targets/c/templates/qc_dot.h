/* Inner loops of convolutions and products.

   Columns: the inputs of four output pixels as int16, interleaved so that one load gives pairs for all four. Element k
   of pixel t is columns[QC_AT(k) + 2 * t]. */
#ifndef QC_DOT_H
#define QC_DOT_H

#include "qc_dsp.h"

#define QC_AT(k) (((k) / 4) * 16 + ((k) % 2) * 8 + ((k) / 2) % 2)

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

/* Four codes of a minifloat, as the upper bits of four bytes, to four levels: all bytes at once. Sizes first, with the
   mantissa and the exponent's bits in bit 0 of each byte; then the sign, as two's complement. There is no code of -0, so
   no byte carries into the next. */
#define QC_BIT(codes, place) (((codes) >> (place)) & 0x01010101u)
#define QC_ALL(bits) (((bits) << 8) - (bits))

static inline uint32_t qc_signed(uint32_t size, uint32_t sign) {
  return (size ^ QC_ALL(sign)) + sign;
}

static inline uint32_t qc_four_we2m1(const uint8_t *w, int32_t step) {
  const uint32_t codes = qc_four_w4(w, step), low = QC_BIT(codes, 5), high = QC_BIT(codes, 6);
  uint32_t size = QC_BIT(codes, 4) | ((low | high) << 1);
  size += size & QC_ALL(high);
  size += size & QC_ALL(low & high);
  return (qc_signed(size, QC_BIT(codes, 7)) << 3) & 0xF8F8F8F8u;
}

static inline uint32_t qc_four_we3m0(const uint8_t *w, int32_t step) {
  const uint32_t codes = qc_four_w4(w, step);
  uint32_t size = 0x01010101u;
  size += size & QC_ALL(QC_BIT(codes, 4));
  size += 3u * (size & QC_ALL(QC_BIT(codes, 5)));
  size += 15u * (size & QC_ALL(QC_BIT(codes, 6)));
  return qc_signed((size >> 1) & 0x7F7F7F7Fu, QC_BIT(codes, 7));
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
QC_PACKED(e2m1, 2, 4)
QC_PACKED(e3m0, 2, 4)

#endif
