// Where the model is computed: on the CPU, or on a CUDA device. The training loop sees no more of it than
// this. Start at make_backend().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "examples/gpt/adamw.h"
#include "examples/gpt/model.h"

namespace gpt {

enum class DeviceKind { kCpu, kCuda };

// The loss of a microbatch, then of the step, is averaged with the gradients. It is far larger than they are:
// in elements of its own no codec gives it one scale with them.
constexpr size_t kLossElements = 1024;

// What is trained, flat and in one layout. In device memory where the backend computes there.
struct Buffers {
  float *weights, *gradients, *m, *v;  // [layout.size()]; no moments where somebody else keeps them
  float* losses;                       // [kLossElements]; the first is the loss
};

// Holds buffers and activations. On a device all work is enqueued on one stream, in the order of the calls,
// and only the functions that return numbers wait for it. One thread at a time. Throws std::runtime_error
// where the device fails.
class Backend {
 public:
  explicit Backend(const Config& config) : config_(config), layout_(config) {}
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  const Config& config() const { return config_; }
  const Layout& layout() const { return layout_; }
  const Buffers& buffers() const { return buffers_; }
  virtual DeviceKind device() const = 0;
  virtual void* stream() const = 0;  // a cudaStream_t; null on the CPU

  // As Model::forward_backward; the loss goes to losses[0].
  virtual void forward_backward(std::span<const uint8_t> windows, const Model::Final& final) = 0;
  // As adamw() with the gradients, clipped by their norm, for the step with this number (from 0). REQUIRES:
  // the moments are here.
  virtual void update(const AdamWOptions& options, size_t step, float learning_rate) = 0;
  // Sets gradients and losses to zero, but for losses[0], which the next pass assigns.
  virtual void clear() = 0;

  // As Model::loss and Model::next_logits.
  virtual double loss(std::span<const uint8_t> windows) = 0;
  virtual std::span<const float, kVocabulary> next_logits(std::span<const uint8_t> history) = 0;

  // Copies a part of a buffer to the host, or from it.
  virtual void read(const float* from, std::span<float> to) = 0;
  virtual void write(std::span<const float> from, float* to) = 0;

  // The weights as gpt::initialise() draws them. All other buffers begin as zeros.
  void initialise(uint64_t seed) {
    std::vector<float> weights(layout_.size());
    gpt::initialise(config_, layout_, seed, weights);
    write(weights, buffers_.weights);
  }
  float training_loss() {
    float value = 0;
    read(buffers_.losses, {&value, 1});
    return value;
  }

 protected:
  Buffers buffers_{};

 private:
  Config config_;
  Layout layout_;
};

// For microbatches of up to `sequences_max` windows. On a CUDA device: the one whose number is the process's
// on its node, counted around. Errors: kMisuse for a shape that cannot be; kEnvironment where the host cannot
// run the model, where there is no device, or where the program was built without CUDA. Throws as a backend
// does, where a device lacks memory. Without `moments` on the CPU only.
muster::Result<std::unique_ptr<Backend>> make_backend(DeviceKind device, const Config& config,
                                                      size_t sequences_max, bool moments = true);

}  // namespace gpt
