// The model of model.h on a CUDA device: the same layers in the same order, as tasks on the device's stream.
// Parameters, gradients and the loss are device memory.
#pragma once

#include <span>
#include <vector>

#include "examples/gpt/cuda/device.h"
#include "examples/gpt/cuda/layers.h"
#include "examples/gpt/model.h"

namespace gpt::cuda {

class DeviceModel {
 public:
  // REQUIRES: check_shape(config, sequences_max). `device` outlives the model.
  DeviceModel(Device& device, const Config& config, size_t sequences_max);

  // Enqueues what Model::forward_backward does. `final` is called when the work on a stretch has been
  // enqueued: what it enqueues on the stream finds the stretch finished.
  void forward_backward(const float* parameters, std::span<const uint8_t> windows, float* gradients,
                        float* loss, const Model::Final& final);
  // As Model::loss and Model::next_logits; wait for the stream.
  double loss(const float* parameters, std::span<const uint8_t> windows);
  std::span<const float, kVocabulary> next_logits(const float* parameters, std::span<const uint8_t> history);

 private:
  struct Block {  // activations of one block, as in Model::Block
    float *input, *normal1, *mean1, *inverse1;
    float *qkv, *attention, *attended, *middle;
    float *normal2, *mean2, *inverse2, *up, *activated;
  };
  size_t take(std::span<const uint8_t> windows);
  void forward(const float* parameters, size_t sequences, size_t length);
  void forward_block(size_t index, const float* parameters, float* output);
  void cross_entropy(bool gradient, float* mean);
  void backward(const float* parameters, float* gradients, const Model::Final& final);
  void backward_block(size_t index, const float* parameters, float* gradients);

  // Takes the tasks of a layer.
  auto on_device() {
    return [this](const auto& task) { device_.run(task); };
  }
  size_t offset(size_t tensor) const { return layout_.tensors()[tensor].offset; }
  uint32_t rows() const { return static_cast<uint32_t>(shape_.sequences * shape_.length); }
  uint32_t width() const { return static_cast<uint32_t>(config_.width); }
  Linear linear_of(size_t from, size_t to) const {
    return {rows(), static_cast<uint32_t>(from), static_cast<uint32_t>(to)};
  }

  Device& device_;
  Config config_;
  Layout layout_;
  size_t sequences_max_;
  AttentionShape shape_{};      // of the pass in progress
  std::vector<uint8_t> bytes_;  // [2, R] inputs, then targets, on the host
  uint8_t *inputs_, *targets_;  // [R] each
  std::vector<Block> blocks_;
  float *last_, *normal_, *mean_, *inverse_, *logits_;
  float *dstream_, *dnarrow_, *dwide_, *dattention_;
  double *losses_, *loss_sum_;  // [R], one
  std::vector<float> next_;     // [256] on the host
};

}  // namespace gpt::cuda
