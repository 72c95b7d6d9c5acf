/* The emulator: fibers, launches, and as much of the CUDA driver's interface as loaders call, so that a loader given
   this library in place of libcuda runs kernels that were compiled into it. */
#include "qc_emulate.h"

#include <map>
#include <time.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

std::vector<unsigned char> qc_shared_memory;
qc_index blockIdx;
qc_fiber *qc_self;
std::vector<qc_warp> qc_warps;

/* -- fibers ---------------------------------------------------------------------------------------------------- */

namespace {

constexpr int STACK = 64 * 1024;
std::vector<qc_fiber> fibers;
int alive, current, waiting;
unsigned barrier;
const qc_kernel *running;
void **running_arguments;

#if defined(__x86_64__)
void *main_stack;
extern "C" void qc_switch(void **from, void *to);
asm(R"(
.text
.globl qc_switch
.type qc_switch, @function
qc_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size qc_switch, .-qc_switch
)");
#else
ucontext_t main_context;
std::vector<ucontext_t> contexts;
#endif

void resume(int next) {
  int from = current;
  current = next;
  qc_self = next < 0 ? nullptr : &fibers[next];
#if defined(__x86_64__)
  qc_switch(from < 0 ? &main_stack : &fibers[from].stack_pointer, next < 0 ? main_stack : fibers[next].stack_pointer);
#else
  swapcontext(from < 0 ? &main_context : &contexts[from], next < 0 ? &main_context : &contexts[next]);
#endif
}

int following() {
  int next = current;
  do next = next + 1 == (int)fibers.size() ? 0 : next + 1;
  while (fibers[next].done && next != current);
  return next;
}

void enter() {
  running->call(running_arguments);
  qc_emulate_commit();
  fibers[current].done = true;
  if (--alive == 0) resume(-1);
  int next = following();
  resume(next);
  std::abort();
}

void prepare(int i) {
  qc_fiber &fiber = fibers[i];
  if (fiber.stack.empty()) fiber.stack.resize(STACK);
  fiber.done = false;
  fiber.barriers = fiber.collectives = 0;
  fiber.open.clear();
  fiber.groups.clear();
#if defined(__x86_64__)
  uintptr_t top = ((uintptr_t)fiber.stack.data() + STACK) & ~(uintptr_t)15;
  void **stack = (void **)top - 8; /* six registers, where to return to, and what an ABI wants below it */
  stack[6] = (void *)enter;
  fiber.stack_pointer = stack;
#else
  getcontext(&contexts[i]);
  contexts[i].uc_stack.ss_sp = fiber.stack.data();
  contexts[i].uc_stack.ss_size = STACK;
  contexts[i].uc_link = nullptr;
  makecontext(&contexts[i], enter, 0);
#endif
}

} // namespace

void qc_emulate_yield() {
  int next = following();
  if (next != current) resume(next);
}

void qc_emulate_sync() {
  unsigned mine = barrier;
  if (++waiting == alive) {
    waiting = 0;
    ++barrier;
    return;
  }
  while (barrier == mine) qc_emulate_yield();
}

const qc_given *qc_emulate_meet(const void *mine, int bytes) {
  qc_warp &warp = qc_warps[qc_self->warp];
  int which = qc_self->collectives & 1;
  std::memcpy(warp.given[which][qc_self->lane].words, mine, bytes);
  ++warp.arrived[which];
  while (warp.arrived[which] < 32) qc_emulate_yield();
  return warp.given[which];
}

void qc_emulate_leave() {
  qc_warp &warp = qc_warps[qc_self->warp];
  int which = qc_self->collectives++ & 1;
  if (++warp.left[which] == 32) warp.left[which] = warp.arrived[which] = 0;
}

void qc_emulate_launch(const qc_kernel &kernel, qc_index grid, int threads, int shared, void **arguments) {
  running = &kernel;
  running_arguments = arguments;
  qc_shared_memory.assign(shared + 1024, 0xa5);
  size_t needed = kernel.together ? threads : 1;
  while (fibers.size() > needed) fibers.pop_back();
  fibers.resize(needed);
#if !defined(__x86_64__)
  contexts.resize(needed);
#endif
  for (int z = 0; z < grid.z; ++z)
    for (int y = 0; y < grid.y; ++y)
      for (int x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        if (!kernel.together) {
          current = 0;
          qc_self = &fibers[0];
          for (int t = 0; t < threads; ++t) {
            qc_self->thread = {t, 0, 0};
            kernel.call(arguments);
          }
          current = -1;
          continue;
        }
        qc_warps.assign((threads + 31) / 32, qc_warp());
        for (int t = 0; t < threads; ++t) {
          prepare(t);
          fibers[t].thread = {t, 0, 0};
          fibers[t].lane = t % 32;
          fibers[t].warp = t / 32;
        }
        alive = threads;
        waiting = 0;
        current = -1;
        resume(0);
      }
}

/* -- the driver's interface ------------------------------------------------------------------------------------ */

namespace {

typedef int CUresult;
struct recorded {
  const qc_kernel *kernel;
  qc_index grid;
  int threads, shared;
  std::vector<std::vector<char>> arguments;
};
struct graph { std::vector<recorded> launches; };
struct function { const qc_kernel *kernel; int allowed; };
graph *capturing;
size_t allocated, limit = (size_t)4 << 30;
std::map<void *, size_t> sizes;

CUresult perform(const qc_kernel *kernel, qc_index grid, int threads, int shared, void **arguments) {
  if (capturing) {
    recorded one = {kernel, grid, threads, shared, {}};
    for (int i = 0; i < kernel->count; ++i)
      one.arguments.emplace_back((char *)arguments[i], (char *)arguments[i] + kernel->sizes[i]);
    capturing->launches.push_back(std::move(one));
    return 0;
  }
  qc_emulate_launch(*kernel, grid, threads, shared, arguments);
  return 0;
}

} // namespace

#define API extern "C" __attribute__((visibility("default"))) CUresult
extern "C" __attribute__((visibility("default"))) const int qc_has_kernels = 1;
API cuInit(unsigned) { return std::getenv("QC_EMULATE_NO_DEVICE") ? 100 : 0; }
API cuDriverGetVersion(int *version) { *version = 12000; return 0; }
API cuDeviceGetCount(int *count) { *count = 1; return 0; }
API cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal == 0 ? 0 : 101; }
API cuDeviceGetName(char *name, int length, int) { std::snprintf(name, length, "emulator"); return 0; }
constexpr int room(int arch) { /* KiB of shared memory of a block */
  return arch < 70 ? 48 : arch < 75 ? 96 : arch < 80 ? 64 : arch == 80 || arch == 87 ? 163 : arch < 90 ? 99 : 227;
}
API cuDeviceGetAttribute(int *value, int attribute, int) {
  const int arch = QC_EMULATE_ARCH;
  *value = attribute == 75 ? arch / 10 : attribute == 76 ? arch % 10 : attribute == 97 ? room(arch) * 1024 : 0;
  return 0;
}
API cuDevicePrimaryCtxRetain(void **context, int) { *context = &allocated; return 0; }
API cuDevicePrimaryCtxRelease_v2(int) { return 0; }
API cuCtxSetCurrent(void *) { return 0; }
API cuCtxGetCurrent(void **context) { *context = nullptr; return 0; }
API cuMemGetInfo_v2(size_t *free, size_t *total) { *total = limit; *free = limit - allocated; return 0; }
API cuMemAlloc_v2(void **pointer, size_t bytes) {
  const char *given = std::getenv("QC_EMULATE_MEMORY");
  if (allocated + bytes > (given ? (size_t)std::atoll(given) : limit)) return 2;
  if (posix_memalign(pointer, 256, bytes ? bytes : 1)) return 2;
  std::memset(*pointer, 0xa5, bytes);
  sizes[*pointer] = bytes;
  allocated += bytes;
  return 0;
}
API cuMemFree_v2(void *pointer) {
  allocated -= sizes[pointer];
  sizes.erase(pointer);
  std::free(pointer);
  return 0;
}
API cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *) { std::memcpy(to, from, bytes); return 0; }
API cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, void *) { std::memcpy(to, from, bytes); return 0; }
API cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, void *) { std::memcpy(to, from, bytes); return 0; }
API cuMemcpyHtoD_v2(void *to, const void *from, size_t bytes) { std::memcpy(to, from, bytes); return 0; }
API cuMemsetD8Async(void *to, unsigned char value, size_t bytes, void *) { std::memset(to, value, bytes); return 0; }
API cuMemHostAlloc(void **pointer, size_t bytes, unsigned) { *pointer = std::malloc(bytes ? bytes : 1); return 0; }
API cuMemFreeHost(void *pointer) { std::free(pointer); return 0; }
API cuStreamCreate(void **stream, unsigned) { *stream = &sizes; return 0; }
API cuStreamDestroy_v2(void *) { return 0; }
API cuStreamSynchronize(void *) { return 0; }
API cuModuleLoadData(void **module, const void *image) { *module = (void *)image; return image ? 0 : 200; }
API cuModuleUnload(void *) { return 0; }
API cuModuleGetFunction(void **found, void *, const char *name) {
  for (int i = 0; i < qc_kernel_count; ++i)
    if (!std::strcmp(qc_kernels[i].name, name)) {
      *found = new function{&qc_kernels[i], 48 * 1024};
      return 0;
    }
  return 500;
}
API cuFuncSetAttribute(void *f, int attribute, int value) {
  if (attribute == 8) ((function *)f)->allowed = value;
  return value > room(QC_EMULATE_ARCH) * 1024 ? 1 : 0;
}
API cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *, void **arguments, void **) {
  const function *one = (const function *)f;
  if ((int)shared > one->allowed || by != 1 || bz != 1 || bx > 1024 || !gx || !gy || !gz || gy > 65535 || gz > 65535) return 1;
  return perform(one->kernel, {(int)gx, (int)gy, (int)gz}, (int)bx, (int)shared, arguments);
}
struct launch_configuration { unsigned grid[3], block[3], shared; void *stream, *attributes; unsigned count; };
API cuLaunchKernelEx(const launch_configuration *c, void *f, void **arguments, void **extra) {
  const int *attribute = (const int *)c->attributes;
  if (c->count != 1 || attribute[0] != 6 || attribute[2] != 1) return 1;
  return cuLaunchKernel(f, c->grid[0], c->grid[1], c->grid[2], c->block[0], c->block[1], c->block[2], c->shared,
                        c->stream, arguments, extra);
}
API cuStreamBeginCapture_v2(void *, int) { capturing = new graph; return 0; }
API cuStreamEndCapture(void *, void **made) { *made = capturing; capturing = nullptr; return 0; }
API cuGraphInstantiateWithFlags(void **made, void *given, unsigned long long) {
  *made = new graph(*(graph *)given);
  return 0;
}
API cuGraphLaunch(void *given, void *) {
  for (const recorded &one : ((graph *)given)->launches) {
    std::vector<void *> arguments;
    for (const std::vector<char> &bytes : one.arguments) arguments.push_back((void *)bytes.data());
    qc_emulate_launch(*one.kernel, one.grid, one.threads, one.shared, arguments.data());
  }
  return 0;
}
API cuGraphDestroy(void *given) { delete (graph *)given; return 0; }
API cuGraphExecDestroy(void *given) { delete (graph *)given; return 0; }
API cuEventCreate(void **event, unsigned) { *event = new timespec(); return 0; }
API cuEventRecord(void *event, void *) { return clock_gettime(CLOCK_MONOTONIC, (timespec *)event); }
API cuEventSynchronize(void *) { return 0; }
API cuEventElapsedTime(float *milliseconds, void *from, void *to) {
  const timespec *a = (timespec *)from, *b = (timespec *)to;
  *milliseconds = (float)((b->tv_sec - a->tv_sec) * 1e3 + (b->tv_nsec - a->tv_nsec) * 1e-6);
  return 0;
}
API cuEventDestroy_v2(void *event) { delete (timespec *)event; return 0; }
API cuGetErrorName(CUresult error, const char **text) { *text = error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : error == 100 ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR"; return 0; }
API cuGetErrorString(CUresult error, const char **text) { *text = error == 2 ? "out of memory" : error == 100 ? "no CUDA-capable device is detected" : "an error"; return 0; }
