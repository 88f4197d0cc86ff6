#include "examples/gpt/backend.h"

#include <algorithm>

#include "examples/gpt/host.h"
#if defined(MUSTER_GPT_CUDA)
#include "examples/gpt/cuda/backend.h"
#endif

namespace gpt {
namespace {

class CpuBackend final : public Backend {
 public:
  CpuBackend(Model model, bool moments)
      : Backend(model.config()), model_(std::move(model)), losses_(kLossElements) {
    for (auto* buffer : {&weights_, &gradients_}) buffer->resize(layout().size());
    for (auto* buffer : {&m_, &v_}) buffer->resize(moments ? layout().size() : 0);
    buffers_ = {weights_.data(), gradients_.data(), m_.data(), v_.data(), losses_.data()};
  }

  DeviceKind device() const override { return DeviceKind::kCpu; }
  void* stream() const override { return nullptr; }
  void forward_backward(std::span<const uint8_t> windows, const Model::Final& final) override {
    losses_[0] = model_.forward_backward(weights_, windows, gradients_, final);
  }
  void update(const AdamWOptions& options, size_t step, float learning_rate) override {
    adamw(options, layout(), step, learning_rate, weights_, gradients_, m_, v_);
  }
  void clear() override {
    std::fill(losses_.begin() + 1, losses_.end(), 0.0f);
    std::fill(gradients_.begin(), gradients_.end(), 0.0f);
  }
  double loss(std::span<const uint8_t> windows) override { return model_.loss(weights_, windows); }
  std::span<const float, kVocabulary> next_logits(std::span<const uint8_t> history) override {
    return model_.next_logits(weights_, history);
  }
  void read(const float* from, std::span<float> to) override { std::copy_n(from, to.size(), to.begin()); }
  void write(std::span<const float> from, float* to) override { std::copy(from.begin(), from.end(), to); }

 private:
  Model model_;
  std::vector<float> weights_, gradients_, m_, v_, losses_;
};

}  // namespace

muster::Result<std::unique_ptr<Backend>> make_backend(DeviceKind device, const Config& config,
                                                      size_t sequences_max, bool moments) {
  MUSTER_TRY(require_processor());
  if (device == DeviceKind::kCuda) {
#if defined(MUSTER_GPT_CUDA)
    return make_cuda_backend(config, sequences_max);
#else
    return muster::Error{muster::ErrorCode::kEnvironment,
                         "this program was built without CUDA; build it where CUDA is found, or use "
                         "--device cpu"};
#endif
  }
  MUSTER_ASSIGN(Model model, Model::create(config, sequences_max));
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(std::move(model), moments));
}

}  // namespace gpt
