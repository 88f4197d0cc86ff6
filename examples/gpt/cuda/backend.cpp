#include "examples/gpt/cuda/backend.h"

#include "examples/gpt/cuda/device.h"
#include "examples/gpt/cuda/model.h"

namespace gpt {
namespace {

class CudaBackend final : public Backend {
 public:
  CudaBackend(const Config& config, size_t sequences_max)
      : Backend(config), model_(device_, config, sequences_max) {
    const size_t size = layout().size();
    for (float** buffer : {&buffers_.weights, &buffers_.gradients, &buffers_.m, &buffers_.v})
      *buffer = device_.allocate<float>(size);
    buffers_.losses = device_.allocate<float>(kLossElements);
    factor_ = device_.allocate<float>(1);
    partials_ = device_.allocate<double>((size + cuda::kSquaresEach - 1) / cuda::kSquaresEach);
    for (float* buffer : {buffers_.gradients, buffers_.m, buffers_.v})
      device_.run(cuda::Fill{buffer, size, 0.0f});
    device_.run(cuda::Fill{buffers_.losses, kLossElements, 0.0f});
  }

  DeviceKind device() const override { return DeviceKind::kCuda; }
  void* stream() const override { return device_.stream(); }

  void forward_backward(std::span<const uint8_t> windows, const Model::Final& final) override {
    model_.forward_backward(buffers_.weights, windows, buffers_.gradients, buffers_.losses, final);
  }

  void update(const AdamWOptions& options, size_t step, float learning_rate) override {
    if (options.norm_max > 0) {
      device_.run(cuda::ClipFactor{buffers_.gradients, layout().size(), partials_, factor_,
                                   static_cast<double>(options.norm_max)});
    } else {
      device_.run(cuda::Fill{factor_, 1, 1.0f});
    }
    for (const Tensor& tensor : layout().tensors()) {
      const size_t at = tensor.offset;
      device_.run(cuda::AdamW{buffers_.weights + at, buffers_.m + at, buffers_.v + at,
                              buffers_.gradients + at, factor_, tensor.size,
                              coefficients(options, step, learning_rate, 1, tensor.decays)});
    }
  }

  void clear() override {
    device_.run(cuda::Fill{buffers_.losses + 1, kLossElements - 1, 0.0f});
    device_.run(cuda::Fill{buffers_.gradients, layout().size(), 0.0f});
  }

  double loss(std::span<const uint8_t> windows) override { return model_.loss(buffers_.weights, windows); }
  std::span<const float, kVocabulary> next_logits(std::span<const uint8_t> history) override {
    return model_.next_logits(buffers_.weights, history);
  }
  void read(const float* from, std::span<float> to) override {
    device_.download(from, to.data(), to.size_bytes());
  }
  void write(std::span<const float> from, float* to) override {
    device_.upload(from.data(), to, from.size_bytes());
  }

 private:
  cuda::Device device_;
  cuda::DeviceModel model_;
  float* factor_;     // one: that clips the gradients
  double* partials_;  // of their squares
};

}  // namespace

muster::Result<std::unique_ptr<Backend>> make_cuda_backend(const Config& config, size_t sequences_max) {
  MUSTER_TRY(check_shape(config, sequences_max));
  MUSTER_TRY(cuda::choose_device());
  return std::unique_ptr<Backend>(std::make_unique<CudaBackend>(config, sequences_max));
}

}  // namespace gpt
