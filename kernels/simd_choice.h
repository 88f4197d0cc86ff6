// Which of the instruction sets that a text was compiled for by Highway's means is used: the best one that
// this processor has. Highway's own library would choose, too; libmuster does without it, since a program may
// link it in another version.
#pragma once

#include <hwy/detect_targets.h>

#include <cstdint>

namespace muster::codec {

// Highway's bits of those that this processor has, of the ones that MUSTER_CHOOSE knows.
int64_t simd_targets();

// For tests: from now on only these, if the processor has them; −1: all again.
void limit_simd_targets(int64_t targets);

}  // namespace muster::codec

// MUSTER_CHOOSE(f): a pointer to the best f. Within #if HWY_ONCE, where HWY_NAMESPACE is the set that every
// processor of this kind has.
#if (HWY_TARGETS & HWY_AVX3) != 0 && HWY_STATIC_TARGET != HWY_AVX3
#define MUSTER_CHOOSE_AVX3(f) (simd_targets() & HWY_AVX3) != 0 ? &N_AVX3::f:
#else
#define MUSTER_CHOOSE_AVX3(f)
#endif
#if (HWY_TARGETS & HWY_AVX2) != 0 && HWY_STATIC_TARGET != HWY_AVX2
#define MUSTER_CHOOSE_AVX2(f) (simd_targets() & HWY_AVX2) != 0 ? &N_AVX2::f:
#else
#define MUSTER_CHOOSE_AVX2(f)
#endif
#if (HWY_TARGETS & HWY_SSE4) != 0 && HWY_STATIC_TARGET != HWY_SSE4
#define MUSTER_CHOOSE_SSE4(f) (simd_targets() & HWY_SSE4) != 0 ? &N_SSE4::f:
#else
#define MUSTER_CHOOSE_SSE4(f)
#endif
#if (HWY_TARGETS & HWY_SSSE3) != 0 && HWY_STATIC_TARGET != HWY_SSSE3
#define MUSTER_CHOOSE_SSSE3(f) (simd_targets() & HWY_SSSE3) != 0 ? &N_SSSE3::f:
#else
#define MUSTER_CHOOSE_SSSE3(f)
#endif
#define MUSTER_CHOOSE(f)                                                                      \
  (MUSTER_CHOOSE_AVX3(f) MUSTER_CHOOSE_AVX2(f) MUSTER_CHOOSE_SSE4(f) MUSTER_CHOOSE_SSSE3(f) & \
   HWY_NAMESPACE::f)
