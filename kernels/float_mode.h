// The floating-point mode that the codecs' bits assume: nearest even, denormals kept, no traps. A program
// built with fast-math flushes denormals in all its threads, and would otherwise encode other bits than its
// peers.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace muster {

class ScopedFloatMode {
 public:
#if defined(__x86_64__)
  ScopedFloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(kDefault); }
  ~ScopedFloatMode() { _mm_setcsr(saved_); }

 private:
  static constexpr uint32_t kDefault = 0x1F80;  // all exceptions masked, nearest even, no FTZ, no DAZ
  uint32_t saved_;
#elif defined(__aarch64__)
  ScopedFloatMode() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(uint64_t{0}) : "memory");
  }
  ~ScopedFloatMode() { asm volatile("msr fpcr, %0" ::"r"(saved_) : "memory"); }

 private:
  uint64_t saved_;
#else
  ScopedFloatMode() {}
  ~ScopedFloatMode() {}

 private:
#endif
  ScopedFloatMode(const ScopedFloatMode&) = delete;
  ScopedFloatMode& operator=(const ScopedFloatMode&) = delete;
};

}  // namespace muster
