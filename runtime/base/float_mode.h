// The processor's float mode while the library computes: rounding to nearest, subnormal numbers kept, no
// traps.
//
// A program may set its threads otherwise (flush to zero is common in training, and comes with some
// compilers' fast-math start-up code). Which thread adds up what is a matter of timing, so the library's own
// arithmetic must not depend on it: the same numbers have the same bits on every thread and host.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

namespace muster {

// Sets the default mode for as long as it lives, on this thread. Costs some cycles where it is set already.
class DefaultFloatMode {
 public:
#if defined(__SSE__)
  DefaultFloatMode() : saved_(_mm_getcsr()) {
    if ((saved_ & ~kFlags) != kDefault) _mm_setcsr(kDefault);
  }
  ~DefaultFloatMode() {
    if ((saved_ & ~kFlags) != kDefault) _mm_setcsr(saved_);
  }
#else
  DefaultFloatMode() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatMode() { std::fesetenv(&saved_); }
#endif
  DefaultFloatMode(const DefaultFloatMode&) = delete;
  DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

 private:
#if defined(__SSE__)
  static constexpr unsigned kDefault = 0x1f80;  // all exceptions masked
  static constexpr unsigned kFlags = 0x003f;    // that happened before, which change nothing
  unsigned saved_;
#else
  std::fenv_t saved_;
#endif
};

}  // namespace muster
