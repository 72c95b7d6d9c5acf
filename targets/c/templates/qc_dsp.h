/* Words of bytes and of halfwords, on cores with the DSP extension (Cortex-M4, M7, M33 and M55): QC_DSP is defined. Without
   it, or with QC_PORTABLE, the loops of qc_dot.h and qc_planes.h are plain C; the bits are the same. */
#ifndef QC_DSP_H
#define QC_DSP_H

#include <stdint.h>

#if defined(__GNUC__) && defined(__ARM_FEATURE_DSP) && defined(__ARM_ARCH_PROFILE) && !defined(QC_PORTABLE)
#if __ARM_FEATURE_DSP && __ARM_ARCH_PROFILE == 'M'
#define QC_DSP
#endif
#endif

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

#endif
