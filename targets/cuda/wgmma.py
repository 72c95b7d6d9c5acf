"""Device functions around wgmma (sm_90a), written out: an instruction names every register that it adds to."""

from __future__ import annotations

import re

_HEAD = """/* Products of four warps together, operands in shared memory: sm_90a. Rows of 128 bytes, chunks of 16 turned
   by the row (the 128-byte swizzle of the hardware), tiles at multiples of 1024 bytes. */
#ifdef QC_EMULATE
QC_FN void qc_wgmma_fence() {}
QC_FN void qc_wgmma_commit() {}
QC_FN void qc_proxy_fence() {}
QC_FN const unsigned char *qc_turned(const void *p) {
  uintptr_t at = (uintptr_t)p;
  return (const unsigned char *)(at ^ (at >> 7 & 7) << 4);
}
QC_FN void qc_wgmma_emulated(int *c, const void *a, const void *b, int n, bool is_signed) {
  int lane = qc_self->thread.x % 32, warp = qc_self->thread.x / 32 % 4;
  for (int j = 0; j < n / 8; ++j)
    for (int i = 0; i < 4; ++i) {
      int row = 16 * warp + lane / 4 + 8 * (i / 2), column = 8 * j + 2 * (lane % 4) + i % 2, sum = 0;
      for (int k = 0; k < 32; ++k) {
        unsigned char x = *qc_turned((const char *)a + 128 * row + k);
        signed char w = (signed char)*qc_turned((const char *)b + 128 * column + k);
        sum += (is_signed ? (int)(signed char)x : (int)x) * w;
      }
      c[4 * j + i] += sum;
    }
}
#else
QC_FN void qc_wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
QC_FN void qc_wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
QC_FN void qc_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/* Rows of 128 bytes, 1024 bytes from eight rows to the next, 128-byte swizzle. */
QC_FN uint64_t qc_descriptor(const void *p) {
  return (uint64_t)((qc_shared_address(p) & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
}
#endif
"""


def wgmma_header(source: str) -> str:
    """What a text of kernels needs of these, '' if nothing."""
    used = sorted(set(re.findall(r"\bqc_wgmma(\d+)_(u8s8|s8s8)\(", source)))
    waits = sorted({int(count) for count in re.findall(r"\bqc_wgmma_finish_(\d+)\(", source)})
    if not used:
        return ""
    parts = [_HEAD, *(_product(int(n), kind) for n, kind in used), *(_waits(count) for count in waits)]
    return "\n".join(parts)


def _product(n: int, kind: str) -> str:
    count = n // 2
    registers = ", ".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"+r"(c[{i}])' for i in range(count))
    signed = "true" if kind == "s8s8" else "false"
    return f"""QC_FN void qc_wgmma{n}_{kind}(int *c, const void *a, const void *b) {{
#ifdef QC_EMULATE
  qc_wgmma_emulated(c, a, b, {n}, {signed});
#else
  asm volatile("{{.reg .pred p; setp.ne.b32 p, 1, 0;"
               "wgmma.mma_async.sync.aligned.m64n{n}k32.s32.{kind[:2]}.{kind[2:]} "
               "{{{registers}}}, %{count}, %{count + 1}, p;}}"
               : {outputs}
               : "l"(qc_descriptor(a)), "l"(qc_descriptor(b)));
#endif
}}
"""


def _waits(count: int) -> str:
    def wait(name: str, groups: int) -> str:
        return f"""QC_FN void {name}_{count}(int *c) {{
#ifndef QC_EMULATE
  asm volatile("wgmma.wait_group.sync.aligned {groups};" ::: "memory");
#pragma unroll
  for (int i = 0; i < {count}; ++i) asm volatile("" : "+r"(c[i])::"memory");
#endif
}}
"""

    return wait("qc_wgmma_wait1", 1) + wait("qc_wgmma_finish", 0)
