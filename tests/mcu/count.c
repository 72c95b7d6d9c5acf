/* A plugin of the emulator: instructions executed from one entry of a marked function to the next.

   gcc -shared -fPIC -O2 count.c -o count.so
   qemu-system-arm ... -plugin ./count.so,out=FILE,mark=0x..,mark=0x..

   FILE gets a line "address instructions" for every time a marked address was reached, where instructions counts all
   that the processor had executed by then, and a last line with address 0. Declarations are ours: Debian ships the
   emulator without the plugin header. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t;
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int, void *, uint64_t);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), int, void *);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);

int qemu_plugin_version = 1;

static uint64_t executed, marks[256];
static int marked;
static FILE *out;

static void reached(unsigned cpu, void *address) {
  (void)cpu;
  fprintf(out, "%" PRIx64 " %" PRIu64 "\n", (uint64_t)(uintptr_t)address, executed);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
  (void)id;
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
    struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
    uint64_t address = qemu_plugin_insn_vaddr(instruction);
    for (int m = 0; m < marked; m++)
      if (marks[m] == address)
        qemu_plugin_register_vcpu_insn_exec_cb(instruction, reached, 0, (void *)(uintptr_t)address);
    qemu_plugin_register_vcpu_insn_exec_inline(instruction, 0, &executed, 1);
  }
}

static void finished(qemu_plugin_id_t id, void *unused) {
  (void)id;
  (void)unused;
  fprintf(out, "0 %" PRIu64 "\n", executed);
  fclose(out);
}

int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc, char **argv) {
  (void)info;
  for (int i = 0; i < argc; i++) {
    if (!strncmp(argv[i], "out=", 4)) out = fopen(argv[i] + 4, "w");
    if (!strncmp(argv[i], "mark=", 5) && marked < 256) marks[marked++] = strtoull(argv[i] + 5, 0, 0);
  }
  if (!out) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, finished, 0);
  return 0;
}
