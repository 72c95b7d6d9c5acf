/* Runs of u8 x s8 products for four output channels. Same bits with and without the DSP extension. */
#ifndef QC_DOT_H
#define QC_DOT_H

#include <stdint.h>

#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP && defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#include <arm_acle.h>

/* Four bytes; these cores read unaligned words. */
static inline uint32_t qc_load4(const void *bytes) {
  uint32_t word;
  __builtin_memcpy(&word, bytes, sizeof word);
  return word;
}

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

/* One word of x (even and odd halves, centred) times a word of w. */
static inline int32_t qc_mac4(uint32_t even, uint32_t odd, uint32_t weights, int32_t sum) {
  sum = __smlad((int16x2_t)even, __sxtb16((int8x4_t)weights), sum);
  return __smlad((int16x2_t)odd, (int16x2_t)qc_odd_s8(weights), sum);
}
#endif

/* sums[t] += sum over i < run of (x[i] - zero) * w[t * panel + i], t = 0..3 */
static inline void qc_dot_u8s8_x4(const uint8_t *restrict x, const int8_t *restrict w, int32_t run, int32_t panel,
                                  int32_t zero, int32_t *restrict sums) {
  int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
  const int8_t *w1 = w + panel, *w2 = w1 + panel, *w3 = w2 + panel;
  int32_t i = 0;
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP && defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
  if (zero == 0) {
    for (; i + 4 <= run; i += 4) {
      const uint32_t word = qc_load4(x + i);
      const uint32_t even = (uint32_t)__uxtb16((uint8x4_t)word), odd = qc_odd_u8(word);
      s0 = qc_mac4(even, odd, qc_load4(w + i), s0);
      s1 = qc_mac4(even, odd, qc_load4(w1 + i), s1);
      s2 = qc_mac4(even, odd, qc_load4(w2 + i), s2);
      s3 = qc_mac4(even, odd, qc_load4(w3 + i), s3);
    }
  } else {
    const int16x2_t zeros = (int16x2_t)(((uint32_t)zero << 16) | ((uint32_t)zero & 0xFFFFu));
    for (; i + 4 <= run; i += 4) {
      const uint32_t word = qc_load4(x + i);
      const uint32_t even = (uint32_t)__ssub16((int16x2_t)__uxtb16((uint8x4_t)word), zeros);
      const uint32_t odd = (uint32_t)__ssub16((int16x2_t)qc_odd_u8(word), zeros);
      s0 = qc_mac4(even, odd, qc_load4(w + i), s0);
      s1 = qc_mac4(even, odd, qc_load4(w1 + i), s1);
      s2 = qc_mac4(even, odd, qc_load4(w2 + i), s2);
      s3 = qc_mac4(even, odd, qc_load4(w3 + i), s3);
    }
  }
#endif
  for (; i < run; ++i) {
    const int32_t value = (int32_t)x[i] - zero;
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

#endif
