/* Inner loops of depthwise 3x3 convolutions.

   Planes: single channels of an image as int16, with their padding, four of them one behind the other. */
#ifndef QC_PLANES_H
#define QC_PLANES_H

#include "qc_dsp.h"

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

#define QC_ROW_FUNCTION(NAME, ROW, STRIDE, STEP, SATURATE, TYPE, LOW, HIGH)                                    \
  static inline void NAME(const int16_t *restrict x, int32_t pitch, const uint32_t *restrict block, TYPE *y,     \
                          int32_t count) {                                                                     \
    const int32_t fours = QC_FOURS, step = (int32_t)block[10];                                                 \
    QC_ROW_OF_FOURS(ROW, STEP, SATURATE)                                                                       \
    for (int32_t i = 4 * fours; i < count; ++i, x += STRIDE, y += step)                                        \
      *y = (TYPE)qc_code(qc_window_3x3(x, pitch, block), block, LOW, HIGH);                                    \
  }
QC_ROW_FUNCTION(qc_row_3x3_s1_u8, QC_ROW_S1, 1, "8", "usat", uint8_t, 0, 255)
QC_ROW_FUNCTION(qc_row_3x3_s2_u8, QC_ROW_S2, 2, "16", "usat", uint8_t, 0, 255)
QC_ROW_FUNCTION(qc_row_3x3_s1_s8, QC_ROW_S1, 1, "8", "ssat", int8_t, -128, 127)
QC_ROW_FUNCTION(qc_row_3x3_s2_s8, QC_ROW_S2, 2, "16", "ssat", int8_t, -128, 127)

#endif
