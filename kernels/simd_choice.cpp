#include "kernels/simd_choice.h"

#include <atomic>

namespace muster::codec {
namespace {

// Everything that Highway lets the compiler use for a target, but F16C, for which not every compiler can ask:
// no processor has AVX2 without it. What the system does not save for a process does not count as there.
int64_t detect() {
  int64_t targets = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("ssse3")) return targets;
  targets |= HWY_SSSE3;
  if (!__builtin_cpu_supports("sse4.1") || !__builtin_cpu_supports("sse4.2") ||
      !__builtin_cpu_supports("pclmul") || !__builtin_cpu_supports("aes"))
    return targets;
  targets |= HWY_SSE4;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2") ||
      !__builtin_cpu_supports("fma"))
    return targets;
  targets |= HWY_AVX2;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512bw"))
    return targets;
  targets |= HWY_AVX3;
#endif
  return targets;
}

std::atomic<int64_t> limit{-1};

}  // namespace

int64_t simd_targets() {
  static const int64_t detected = detect();
  return detected & limit.load(std::memory_order_relaxed);
}

void limit_simd_targets(int64_t targets) { limit = targets; }

}  // namespace muster::codec
