// Float32 arithmetic on a device with the bits of a CPU.
#pragma once

#include "kernels/codec_math.h"
#include "kernels/simt.h"

namespace muster {

// NVIDIA's devices answer every NaN with 0x7FFFFFFF; a CPU keeps what it got.
MUSTER_HD float with_host_nan(float result, float left, float right) {
  constexpr uint32_t kQuiet = 0x00400000u, kMade = 0xFFC00000u;
  if (result == result) return result;
  if (left != left) return float_of(bits_of(left) | kQuiet);
  if (right != right) return float_of(bits_of(right) | kQuiet);
  return float_of(kMade);
}
MUSTER_HD float add_as_host(float left, float right) { return with_host_nan(left + right, left, right); }
MUSTER_HD float multiply_as_host(float left, float right) { return with_host_nan(left * right, left, right); }

MUSTER_DEVICE float4 add_as_host(float4 left, float4 right) {
  return {add_as_host(left.x, right.x), add_as_host(left.y, right.y), add_as_host(left.z, right.z),
          add_as_host(left.w, right.w)};
}

}  // namespace muster
