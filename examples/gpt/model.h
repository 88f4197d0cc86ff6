// The GPT: bytes in, logits of the next byte out. Start at Model::forward_backward.
//
// Pre-norm transformer with learned positions (Radford et al. 2019): embedding, `layers` blocks of causal
// attention and a GELU network four times as wide, a last layer norm, and an output matrix of its own.
// The parameters and their gradients are flat float32 buffers that the caller owns, with one layout.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/result.h"

namespace gpt {

constexpr size_t kVocabulary = 256;  // one entry for each byte

struct Config {
  size_t layers = 4;
  size_t width = 96;  // a multiple of 8 and of `heads`
  size_t heads = 4;
  size_t context = 64;  // bytes; a multiple of 8
};

// One named tensor: where it lies in the flat buffer.
struct Tensor {
  std::string name;
  std::vector<size_t> shape;
  size_t offset;  // in elements
  size_t size;    // in elements
  bool decays;    // weight decay applies: matrices only
};

// All tensors in the order of their use in the forward pass, without gaps.
class Layout {
 public:
  explicit Layout(const Config& config);

  const std::vector<Tensor>& tensors() const { return tensors_; }
  size_t size() const;  // elements of the flat buffer

 private:
  void add(std::string name, std::vector<size_t> shape);

  std::vector<Tensor> tensors_;
};

// The initial weights for a seed: the same bits on every host.
void initialise(const Config& config, const Layout& layout, uint64_t seed, std::span<float> parameters);

// Whether a model of this shape can be, for microbatches of so many windows. Errors: kMisuse; the message
// says which number to change.
muster::Status check_shape(const Config& config, size_t sequences_max);

// Holds the activations of up to `sequences_max` windows, allocated once. One thread at a time.
// A window is context + 1 bytes: each byte but the last is an input, and its successor the target.
// In each call `windows` is a whole number of windows, from 1 to sequences_max, one after the other.
class Model {
 public:
  // Errors: those of check_shape().
  static muster::Result<Model> create(const Config& config, size_t sequences_max);

  const Config& config() const { return config_; }
  const Layout& layout() const { return layout_; }

  // Sets `gradients` (whatever they held) to the gradient of the mean loss over all targets, and returns that
  // loss in nats a byte. ENSURES: the bits of both depend on `parameters` and `windows` only.
  // `final` hears of each stretch [begin, end) of `gradients` that is not touched any more, the last layer's
  // first; it may overwrite it.
  using Final = std::function<void(size_t begin, size_t end)>;
  float forward_backward(std::span<const float> parameters, std::span<const uint8_t> windows,
                         std::span<float> gradients, const Final& final = {});

  // The mean loss over any number of windows, in nats a byte.
  double loss(std::span<const float> parameters, std::span<const uint8_t> windows);

  // Logits of the byte that follows `history`, of which the last `context` bytes count. Valid until the next
  // call. REQUIRES: history is not empty.
  std::span<const float, kVocabulary> next_logits(std::span<const float> parameters,
                                                  std::span<const uint8_t> history);

 private:
  struct Block {                                  // activations of one block; R = rows, C = width
    std::vector<float> input;                     // [R, C] the residual stream that enters
    std::vector<float> normal1, mean1, inverse1;  // [R, C], [R], [R]
    std::vector<float> qkv, attention, attended;  // [R, 3C], [sequences, heads, T, T], [R, C]
    std::vector<float> middle;                    // [R, C] the residual stream after attention
    std::vector<float> normal2, mean2, inverse2, up, activated;  // [R, C], [R], [R], [R, 4C], [R, 4C]
  };

  Model(const Config& config, size_t sequences_max);
  size_t take(std::span<const uint8_t> windows);
  void forward(const float* parameters, size_t sequences, size_t length);
  void forward_block(size_t index, const float* parameters, float* output);
  void backward(const float* parameters, float* gradients, const Final& final);
  void backward_block(size_t index, const float* parameters, float* gradients);
  void embed(const float* parameters, float* out) const;
  void embed_backward(float* gradients) const;
  size_t offset(size_t tensor) const { return layout_.tensors()[tensor].offset; }

  Config config_;
  Layout layout_;
  size_t sequences_max_;
  size_t sequences_ = 0, length_ = 0, rows_ = 0;  // of the pass in progress
  std::vector<uint8_t> inputs_, targets_;         // [R]
  std::vector<Block> blocks_;
  std::vector<float> last_, normal_, mean_, inverse_, logits_;  // [R, C], [R, C], [R], [R], [R, 256]
  std::vector<float> dstream_, dnarrow_, dwide_, scratch_;      // [R, C], [R, C], [R, 4C], [T, T]
};

}  // namespace gpt
