// Which of Layout::tensors() is which, for the models that compute with them.
#pragma once

#include <cstddef>

#include "examples/gpt/model.h"

namespace gpt {

// Positions of the tensors in Layout: two embeddings, kBlockTensors for each block, then the last three.
enum BlockTensor : size_t {
  kNorm1Gain,
  kNorm1Bias,
  kQkvWeight,
  kQkvBias,
  kOutWeight,
  kOutBias,
  kNorm2Gain,
  kNorm2Bias,
  kUpWeight,
  kUpBias,
  kDownWeight,
  kDownBias,
  kBlockTensors
};
constexpr size_t kBytes = 0, kPositions = 1, kFirstBlock = 2;

inline size_t block_tensor(size_t block, BlockTensor tensor) {
  return kFirstBlock + block * kBlockTensors + tensor;
}
inline size_t norm_gain(const Config& config) { return kFirstBlock + config.layers * kBlockTensors; }
inline size_t norm_bias(const Config& config) { return norm_gain(config) + 1; }
inline size_t head_weight(const Config& config) { return norm_gain(config) + 2; }

}  // namespace gpt
