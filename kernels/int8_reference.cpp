#include <cstring>

#include "kernels/float_mode.h"
#include "kernels/int8_codec.h"
#include "kernels/int8_math.h"

namespace muster::int8 {
namespace {

struct Range {
  uint64_t first;
  uint64_t last;
};

Range block_range(uint64_t block, uint64_t count) {
  const uint64_t first = block * kBlock;
  return {first, first + kBlock < count ? first + kBlock : count};
}

float combined(const Encode& task, uint64_t i) {
  return task.residual != nullptr ? task.values[i] + task.residual[i] : task.values[i];
}

int32_t code_of(const Encode& task, uint64_t i, float scaled) {
  if (!task.stochastic) return code_nearest(scaled);
  const uint64_t index = task.first_index + i;
  const PhiloxWords words =
      philox4x32_10(counter_of(task.slot, index / kHalfwordsPerCounter), key_of(task.slot));
  return code_stochastic(scaled, halfword_of(words, static_cast<uint32_t>(index % kHalfwordsPerCounter)));
}

void encode_block(const Encode& task, uint64_t block) {
  const auto [first, last] = block_range(block, task.count);
  uint32_t max_bits = 0;
  for (uint64_t i = first; i < last; ++i) {
    const uint32_t bits = magnitude_bits(combined(task, i));
    max_bits = bits > max_bits ? bits : max_bits;
  }
  const Scale scale = scale_of(max_bits);
  std::memcpy(task.scales + 4 * block, &scale.decode, 4);
  for (uint64_t i = first; i < last; ++i) {
    const float c = scale.finite ? combined(task, i) : 0.0f;
    const int32_t code = code_of(task, i, c * scale.encode);
    task.payload[i] = static_cast<uint8_t>(code);
    if (task.residual != nullptr && scale.finite) task.residual[i] = c - decoded(code, scale.decode);
  }
}

}  // namespace

void encode_reference(const Encode& task) {
  const ScopedFloatMode mode;
  for (uint64_t block = 0; block < blocks_of(task.count); ++block) encode_block(task, block);
}

void decode_reference(const Decode& task) {
  const ScopedFloatMode mode;
  for (uint64_t block = 0; block < blocks_of(task.count); ++block) {
    const auto [first, last] = block_range(block, task.count);
    float scale;
    std::memcpy(&scale, task.scales + 4 * block, 4);
    for (uint64_t i = first; i < last; ++i) {
      const float value = decoded(static_cast<int8_t>(task.payload[i]), scale);
      task.values[i] = task.accumulate ? canonical(task.values[i] + value) : value;
    }
  }
}

}  // namespace muster::int8
