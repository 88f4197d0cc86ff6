#include "kernels/simt_fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "runtime/base/check.h"

// A switch of our own is about twelve times as fast as swapcontext, which makes a system call each time.
#if !defined(__x86_64__) && !defined(MUSTER_SIMT_UCONTEXT)
#define MUSTER_SIMT_UCONTEXT 1
#endif
#if defined(MUSTER_SIMT_UCONTEXT)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#if !defined(MUSTER_SIMT_UCONTEXT)
extern "C" void muster_simt_switch(void** save_stack_pointer, void* load_stack_pointer);
// System V ABI: the callee keeps rbx, rbp, r12–r15. Floating-point modes are the same in all fibers.
asm(R"(
.text
.p2align 4
.globl muster_simt_switch
.hidden muster_simt_switch
.type muster_simt_switch, @function
muster_simt_switch:
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
.size muster_simt_switch, .-muster_simt_switch
)");
#endif

// The functions around a switch enter on one stack and leave on the other; ThreadSanitizer keeps a call stack
// for each fiber and would lose count.
#define MUSTER_AROUND_SWITCH __attribute__((no_sanitize("thread")))

namespace muster::simt {
namespace {

// Sanitizers pad stack frames several times over.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

}  // namespace

struct Fiber::Implementation {
  std::byte* mapping = nullptr;
  size_t guard_bytes = 0;
  void (*entry)(void*) = nullptr;
  void* argument = nullptr;
  bool finished = true;
#if defined(MUSTER_SIMT_UCONTEXT)
  ucontext_t fiber{};
  ucontext_t scheduler{};
#else
  void* fiber = nullptr;  // saved stack pointers
  void* scheduler = nullptr;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fiber_fake_stack = nullptr;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_bytes = 0;
#endif
#if defined(__SANITIZE_THREAD__)
  void* fiber_tsan = nullptr;
  void* scheduler_tsan = nullptr;
#endif

  std::byte* stack() const { return mapping + guard_bytes; }
  void lay_first_frame();
  void switch_to_fiber();
  void switch_to_scheduler();
  void before_resume();
  void after_resume();
  void before_suspend(bool last);
  void after_suspend();
};

namespace {

// How the first frame of a fiber learns who it is: no argument can be passed through a return address.
thread_local Fiber::Implementation* starting = nullptr;

MUSTER_AROUND_SWITCH void first_frame() {
  Fiber::Implementation* self = starting;
  self->after_suspend();
  self->entry(self->argument);
  self->finished = true;
  self->before_suspend(true);
  self->switch_to_scheduler();
  __builtin_unreachable();
}

}  // namespace

#if defined(MUSTER_SIMT_UCONTEXT)

void Fiber::Implementation::lay_first_frame() {
  getcontext(&fiber);
  fiber.uc_stack.ss_sp = stack();
  fiber.uc_stack.ss_size = kStackBytes;
  fiber.uc_link = nullptr;
  makecontext(&fiber, &first_frame, 0);
}
MUSTER_AROUND_SWITCH void Fiber::Implementation::switch_to_fiber() { swapcontext(&scheduler, &fiber); }
MUSTER_AROUND_SWITCH void Fiber::Implementation::switch_to_scheduler() { swapcontext(&fiber, &scheduler); }

#else

void Fiber::Implementation::lay_first_frame() {
  constexpr size_t kSavedRegisters = 6;
  auto* top = reinterpret_cast<uint64_t*>(stack() + kStackBytes);
  // After the switch's `ret` the stack pointer is 8 below a multiple of 16, as the ABI has it at a function's
  // first instruction; the zero above the return address ends back-traces.
  top[-1] = 0;
  top[-2] = reinterpret_cast<uint64_t>(&first_frame);
  std::memset(top - 2 - kSavedRegisters, 0, kSavedRegisters * sizeof(uint64_t));
  fiber = top - 2 - kSavedRegisters;
}
MUSTER_AROUND_SWITCH void Fiber::Implementation::switch_to_fiber() { muster_simt_switch(&scheduler, fiber); }
MUSTER_AROUND_SWITCH void Fiber::Implementation::switch_to_scheduler() {
  muster_simt_switch(&fiber, scheduler);
}

#endif

MUSTER_AROUND_SWITCH void Fiber::Implementation::before_resume() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, stack(), kStackBytes);
#endif
#if defined(__SANITIZE_THREAD__)
  scheduler_tsan = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(fiber_tsan, 0);
#endif
}

MUSTER_AROUND_SWITCH void Fiber::Implementation::after_resume() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

MUSTER_AROUND_SWITCH void Fiber::Implementation::before_suspend([[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &fiber_fake_stack, scheduler_bottom, scheduler_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(scheduler_tsan, 0);
#endif
}

MUSTER_AROUND_SWITCH void Fiber::Implementation::after_suspend() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber_fake_stack, &scheduler_bottom, &scheduler_bytes);
#endif
}

Fiber::Fiber() : implementation_(std::make_unique<Implementation>()) {
  Implementation& self = *implementation_;
  self.guard_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t bytes = kStackBytes + 2 * self.guard_bytes;
  void* mapping = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  MUSTER_CHECK(mapping != MAP_FAILED, "no address space for a fiber's stack");
  self.mapping = static_cast<std::byte*>(mapping);
  const int rc = mprotect(self.stack(), kStackBytes, PROT_READ | PROT_WRITE);
  MUSTER_CHECK(rc == 0, "a fiber's stack cannot be made writable: too many mappings");
}

Fiber::~Fiber() {
  Implementation& self = *implementation_;
#if defined(__SANITIZE_THREAD__)
  if (self.fiber_tsan != nullptr) __tsan_destroy_fiber(self.fiber_tsan);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(self.stack(), kStackBytes);
#endif
  munmap(self.mapping, kStackBytes + 2 * self.guard_bytes);
}

void Fiber::start(void (*entry)(void*), void* argument) {
  Implementation& self = *implementation_;
  [[maybe_unused]] const bool abandoned = !self.finished;
  self.entry = entry;
  self.argument = argument;
  self.finished = false;
#if defined(__SANITIZE_ADDRESS__)
  // Frames of a fiber that was abandoned left red zones behind.
  __asan_unpoison_memory_region(self.stack(), kStackBytes);
  self.fiber_fake_stack = nullptr;
#endif
#if defined(__SANITIZE_THREAD__)
  // Making one is slow; one that has finished can begin again.
  if (abandoned && self.fiber_tsan != nullptr) __tsan_destroy_fiber(std::exchange(self.fiber_tsan, nullptr));
  if (self.fiber_tsan == nullptr) self.fiber_tsan = __tsan_create_fiber(0);
#endif
  self.lay_first_frame();
}

MUSTER_AROUND_SWITCH void Fiber::resume() {
  Implementation& self = *implementation_;
  starting = &self;
  self.before_resume();
  self.switch_to_fiber();
  self.after_resume();
}

MUSTER_AROUND_SWITCH void Fiber::suspend() {
  Implementation& self = *implementation_;
  self.before_suspend(false);
  self.switch_to_scheduler();
  self.after_suspend();
}

bool Fiber::finished() const { return implementation_->finished; }

}  // namespace muster::simt
