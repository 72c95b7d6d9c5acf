/* Reset and faults of the emulated Cortex-M boards. The C library's own _start clears .bss and calls main; what main
   returns leaves through semihosting as the exit code of the emulator. */
#include <stdint.h>

extern uint32_t __StackTop;
extern void _start(void);
void Reset_Handler(void);

void Reset_Handler(void) {
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
  *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: float unit and vectors on */
  __asm volatile("dsb\n isb");
#endif
  _start();
}

/* A fault must end the emulator, or a broken model would look like a slow one: SYS_EXIT_EXTENDED with code 99. */
static void Fault_Handler(void) {
  static const uint32_t block[2] = {0x20026u, 99u};
  register uint32_t r0 __asm("r0") = 0x20u;
  register const void *r1 __asm("r1") = block;
  __asm volatile("bkpt 0xab" : : "r"(r0), "r"(r1) : "memory");
  for (;;) {
  }
}

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))&__StackTop, Reset_Handler, Fault_Handler, Fault_Handler,
    Fault_Handler,               Fault_Handler, Fault_Handler,
};
