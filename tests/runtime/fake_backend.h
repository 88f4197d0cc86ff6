// What computes on the fake CUDA device: the host's loops, late, on the program's stream.
#pragma once

#include <algorithm>

#include "tests/fakes/codec_kernels.h"
#include "tests/runtime/device_training.h"
#include "tests/runtime/fake_device.h"

namespace muster {

class FakeBackend final : public Backend {
 public:
  explicit FakeBackend(size_t count, bool default_stream = false)
      : Backend(count), weights_(count), gradients_(count) {
    fakes::register_sum_kernels();
    fakes::register_fold_kernels();
    fakes::register_codec_kernels();
    if (!default_stream) stream_ = std::make_unique<Stream>();
  }
  muster_memory memory() const override { return MUSTER_CUDA; }
  void* stream() const override { return stream_ ? stream_->get() : nullptr; }
  float* weights() override { return weights_.data(); }
  float* gradients() override { return gradients_.data(); }
  void zero_gradients() override {
    enqueue([g = gradients(), n = count()] { std::fill(g, g + n, 0.0F); });
  }
  void backward(const std::vector<int64_t>& samples) override {
    enqueue([w = weights(), g = gradients(), n = count(), samples] { backward_on_host(w, g, n, samples); });
  }
  void update() override {
    enqueue([w = weights(), g = gradients(), n = count()] { update_on_host(w, g, n); });
  }
  std::vector<float> final_weights() override {
    Stream::drain(stream());
    return {weights(), weights() + count()};
  }
  // Its kernels take so long from now on; the host does not.
  void become_slow(Duration late) { late_ = late; }
  void break_down(int code) {
    fakes::cuda_enqueue(stream(), [code] { return code; });
  }

 private:
  void enqueue(std::function<void()> kernel) { Stream::enqueue_on(stream(), std::move(kernel), late_); }

  OnDevice<float> weights_, gradients_;
  std::unique_ptr<Stream> stream_;
  Duration late_ = 50 * kMicrosecond;
};

}  // namespace muster
