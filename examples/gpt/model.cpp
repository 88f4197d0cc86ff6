#include "examples/gpt/model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "examples/gpt/kernels.h"
#include "examples/gpt/tensors.h"
#include "runtime/base/check.h"
#include "runtime/base/random.h"

namespace gpt {
namespace {

// A number from the normal distribution, nearly: the sum of twelve uniform numbers (Irwin and Hall 1927).
// Only exact operations, so that every host draws the same.
float normal(uint64_t key, uint64_t counter) {
  int64_t sum = 0;
  for (uint64_t part = 0; part < 3; ++part) {
    const uint64_t bits = muster::mix64(muster::mix64(key + counter) + part);
    for (int shift = 0; shift < 64; shift += 16) sum += static_cast<int64_t>((bits >> shift) & 0xffff);
  }
  return static_cast<float>(sum - 6 * 0xffff) * (1.0f / 65536);
}

// Large embeddings leave the plateau of byte frequencies sooner: 400 steps of 1,024 bytes end at 2.30 nats
// with 0.3, at 2.42 with 0.1 and at 2.55 with 0.02. A small head starts at the uniform distribution.
float initial_deviation(const Config& config, const Tensor& tensor) {
  if (tensor.name.starts_with("embedding")) return 0.3f;
  if (tensor.name.starts_with("head")) return 0.02f;
  const float preserving = 1.0f / std::sqrt(static_cast<float>(tensor.shape[0]));
  // Both outputs of a block are added to the stream: smaller by the number of additions.
  const bool added = tensor.name.ends_with("out.weight") || tensor.name.ends_with("down.weight");
  return added ? preserving / std::sqrt(2.0f * static_cast<float>(config.layers)) : preserving;
}

// out = in * weight + bias
void linear(const float* in, const float* weight, const float* bias, float* out, size_t rows, size_t from,
            size_t to) {
  fill_rows(bias, out, rows, to);
  multiply({in, rows, from, from}, {weight, from, to, to}, {out, rows, to, to}, Store::kAdd);
}

// The three gradients of linear(); din is set, and may be null where nobody needs it.
void linear_backward(const float* in, const float* weight, const float* dout, float* din, float* dweight,
                     float* dbias, size_t rows, size_t from, size_t to) {
  multiply_at({in, rows, from, from}, {dout, rows, to, to}, {dweight, from, to, to});
  if (dbias != nullptr) sum_rows(dout, dbias, rows, to);
  multiply_bt({dout, rows, to, to}, {weight, from, to, to}, {din, rows, from, from});
}

muster::Error misuse(std::string message) { return {muster::ErrorCode::kMisuse, std::move(message)}; }

}  // namespace

muster::Status check_shape(const Config& c, size_t sequences_max) {
  if (c.layers == 0 || c.width == 0 || c.heads == 0 || c.context == 0 || sequences_max == 0)
    return misuse("layers, width, heads, context and sequences of a microbatch must each be at least 1");
  if (c.width % kLanes != 0 || c.context % kLanes != 0)
    return misuse("width (" + std::to_string(c.width) + ") and context (" + std::to_string(c.context) +
                  ") must be multiples of " + std::to_string(kLanes));
  if (c.width % c.heads != 0)
    return misuse("width (" + std::to_string(c.width) + ") must be a multiple of heads (" +
                  std::to_string(c.heads) + ")");
  return muster::ok();
}

Layout::Layout(const Config& c) {
  const size_t w = c.width;
  add("embedding.byte", {kVocabulary, w});
  add("embedding.position", {c.context, w});
  for (size_t block = 0; block < c.layers; ++block) {
    const std::string prefix = "block" + std::to_string(block) + ".";
    add(prefix + "norm1.gain", {w});
    add(prefix + "norm1.bias", {w});
    add(prefix + "qkv.weight", {w, 3 * w});
    add(prefix + "qkv.bias", {3 * w});
    add(prefix + "out.weight", {w, w});
    add(prefix + "out.bias", {w});
    add(prefix + "norm2.gain", {w});
    add(prefix + "norm2.bias", {w});
    add(prefix + "up.weight", {w, 4 * w});
    add(prefix + "up.bias", {4 * w});
    add(prefix + "down.weight", {4 * w, w});
    add(prefix + "down.bias", {w});
  }
  add("norm.gain", {w});
  add("norm.bias", {w});
  add("head.weight", {w, kVocabulary});
}

void Layout::add(std::string name, std::vector<size_t> shape) {
  size_t elements = 1;
  for (size_t extent : shape) elements *= extent;
  const bool decays = shape.size() > 1;
  tensors_.push_back({std::move(name), std::move(shape), size(), elements, decays});
}

size_t Layout::size() const { return tensors_.empty() ? 0 : tensors_.back().offset + tensors_.back().size; }

void initialise(const Config& config, const Layout& layout, uint64_t seed, std::span<float> parameters) {
  MUSTER_CHECK(parameters.size() == layout.size(), "the buffer does not have the size of the layout");
  for (size_t t = 0; t < layout.tensors().size(); ++t) {
    const Tensor& tensor = layout.tensors()[t];
    float* out = parameters.data() + tensor.offset;
    if (!tensor.decays) {
      std::fill_n(out, tensor.size, tensor.name.ends_with("gain") ? 1.0f : 0.0f);
      continue;
    }
    const float deviation = initial_deviation(config, tensor);
    const uint64_t key = muster::mix64(muster::mix64(seed) + t);
    for (size_t i = 0; i < tensor.size; ++i) out[i] = normal(key, i) * deviation;
  }
}

muster::Result<Model> Model::create(const Config& config, size_t sequences_max) {
  MUSTER_TRY(check_shape(config, sequences_max));
  return Model(config, sequences_max);
}

Model::Model(const Config& config, size_t sequences_max)
    : config_(config), layout_(config), sequences_max_(sequences_max), blocks_(config.layers) {
  const size_t rows = sequences_max * config.context, width = config.width;
  inputs_.resize(rows);
  targets_.resize(rows);
  for (Block& b : blocks_) {
    for (auto* narrow : {&b.input, &b.normal1, &b.attended, &b.middle, &b.normal2})
      narrow->resize(rows * width);
    for (auto* column : {&b.mean1, &b.inverse1, &b.mean2, &b.inverse2}) column->resize(rows);
    for (auto* wide : {&b.up, &b.activated}) wide->resize(rows * 4 * width);
    b.qkv.resize(rows * 3 * width);
    b.attention.resize(rows * config.heads * config.context);
  }
  for (auto* narrow : {&last_, &normal_, &dstream_, &dnarrow_}) narrow->resize(rows * width);
  for (auto* column : {&mean_, &inverse_}) column->resize(rows);
  dwide_.resize(rows * 4 * width);
  logits_.resize(rows * kVocabulary);
  scratch_.resize(config.context * config.context);
}

float Model::forward_backward(std::span<const float> parameters, std::span<const uint8_t> windows,
                              std::span<float> gradients, const Final& final) {
  MUSTER_CHECK(parameters.size() == layout_.size() && gradients.size() == layout_.size(),
               "a buffer does not have the size of the layout");
  const FixedFloatMode mode;
  const size_t sequences = take(windows);
  forward(parameters.data(), sequences, config_.context);
  const double mean = cross_entropy_backward(logits_.data(), targets_.data(), rows_, kVocabulary);
  backward(parameters.data(), gradients.data(), final);
  return static_cast<float>(mean);
}

double Model::loss(std::span<const float> parameters, std::span<const uint8_t> windows) {
  MUSTER_CHECK(parameters.size() == layout_.size(), "the buffer does not have the size of the layout");
  const FixedFloatMode mode;
  const size_t window = config_.context + 1, count = windows.size() / window;
  MUSTER_CHECK(count > 0, "there is no window to take the loss of");
  double sum = 0;
  for (size_t i = 0; i < count; i += sequences_max_) {
    const size_t part = std::min(sequences_max_, count - i);
    take(windows.subspan(i * window, part * window));
    forward(parameters.data(), part, config_.context);
    sum += cross_entropy_sum(logits_.data(), targets_.data(), rows_, kVocabulary);
  }
  return sum / static_cast<double>(count * config_.context);
}

std::span<const float, kVocabulary> Model::next_logits(std::span<const float> parameters,
                                                       std::span<const uint8_t> history) {
  MUSTER_CHECK(parameters.size() == layout_.size() && !history.empty(), "no parameters, or no history");
  const FixedFloatMode mode;
  const auto recent = history.last(std::min(history.size(), config_.context));
  // Zeros fill up the last eight rows: they come later, so no row before them sees them.
  const size_t length = (recent.size() + kLanes - 1) / kLanes * kLanes;
  std::fill(std::copy(recent.begin(), recent.end(), inputs_.begin()), inputs_.begin() + length, uint8_t{0});
  forward(parameters.data(), 1, length);
  return std::span<const float, kVocabulary>(logits_.data() + (recent.size() - 1) * kVocabulary, kVocabulary);
}

// Splits windows into inputs_ and targets_; returns their number.
size_t Model::take(std::span<const uint8_t> windows) {
  const size_t window = config_.context + 1, count = windows.size() / window;
  MUSTER_CHECK(count > 0 && count <= sequences_max_ && windows.size() == count * window,
               "windows are not a whole number from 1 to sequences_max");
  for (size_t s = 0; s < count; ++s) {
    const uint8_t* from = windows.data() + s * window;
    std::memcpy(inputs_.data() + s * config_.context, from, config_.context);
    std::memcpy(targets_.data() + s * config_.context, from + 1, config_.context);
  }
  return count;
}

void Model::forward(const float* parameters, size_t sequences, size_t length) {
  sequences_ = sequences;
  length_ = length;
  rows_ = sequences * length;
  embed(parameters, blocks_.front().input.data());
  for (size_t i = 0; i < blocks_.size(); ++i)
    forward_block(i, parameters, i + 1 < blocks_.size() ? blocks_[i + 1].input.data() : last_.data());
  layer_norm(last_.data(), parameters + offset(norm_gain(config_)), parameters + offset(norm_bias(config_)),
             normal_.data(), mean_.data(), inverse_.data(), rows_, config_.width);
  multiply({normal_.data(), rows_, config_.width, config_.width},
           {parameters + offset(head_weight(config_)), config_.width, kVocabulary, kVocabulary},
           {logits_.data(), rows_, kVocabulary, kVocabulary});
}

void Model::forward_block(size_t index, const float* parameters, float* output) {
  Block& b = blocks_[index];
  const size_t width = config_.width;
  const auto weight = [&](BlockTensor t) { return parameters + offset(block_tensor(index, t)); };

  layer_norm(b.input.data(), weight(kNorm1Gain), weight(kNorm1Bias), b.normal1.data(), b.mean1.data(),
             b.inverse1.data(), rows_, width);
  linear(b.normal1.data(), weight(kQkvWeight), weight(kQkvBias), b.qkv.data(), rows_, width, 3 * width);
  attention({sequences_, length_, width, config_.heads}, b.qkv.data(), b.attention.data(), b.attended.data());
  linear(b.attended.data(), weight(kOutWeight), weight(kOutBias), b.middle.data(), rows_, width, width);
  add_to(b.middle.data(), b.input.data(), rows_ * width);

  layer_norm(b.middle.data(), weight(kNorm2Gain), weight(kNorm2Bias), b.normal2.data(), b.mean2.data(),
             b.inverse2.data(), rows_, width);
  linear(b.normal2.data(), weight(kUpWeight), weight(kUpBias), b.up.data(), rows_, width, 4 * width);
  gelu(b.up.data(), b.activated.data(), rows_ * 4 * width);
  linear(b.activated.data(), weight(kDownWeight), weight(kDownBias), output, rows_, 4 * width, width);
  add_to(output, b.middle.data(), rows_ * width);
}

// dstream_ holds the gradient of the residual stream as it goes back through the blocks.
void Model::backward(const float* parameters, float* gradients, const Final& final) {
  size_t end = layout_.size();
  const auto final_from = [&](size_t begin) {
    if (final) final(begin, end);
    end = begin;
  };
  const size_t width = config_.width, head = offset(head_weight(config_));
  linear_backward(normal_.data(), parameters + head, logits_.data(), dnarrow_.data(), gradients + head,
                  nullptr, rows_, width, kVocabulary);
  std::fill_n(dstream_.data(), rows_ * width, 0.0f);
  const size_t gain = offset(norm_gain(config_)), bias = offset(norm_bias(config_));
  layer_norm_backward(last_.data(), parameters + gain, mean_.data(), inverse_.data(), dnarrow_.data(),
                      dstream_.data(), gradients + gain, gradients + bias, rows_, width);
  final_from(gain);
  for (size_t i = blocks_.size(); i-- > 0;) {
    backward_block(i, parameters, gradients);
    final_from(offset(block_tensor(i, kNorm1Gain)));
  }
  embed_backward(gradients);
  final_from(0);
}

void Model::backward_block(size_t index, const float* parameters, float* gradients) {
  Block& b = blocks_[index];
  const size_t width = config_.width;
  const auto weight = [&](BlockTensor t) { return parameters + offset(block_tensor(index, t)); };
  const auto gradient = [&](BlockTensor t) { return gradients + offset(block_tensor(index, t)); };
  float* dnarrow = dnarrow_.data();
  float* dwide = dwide_.data();

  linear_backward(b.activated.data(), weight(kDownWeight), dstream_.data(), dwide, gradient(kDownWeight),
                  gradient(kDownBias), rows_, 4 * width, width);
  gelu_backward(b.up.data(), dwide, dwide, rows_ * 4 * width);
  linear_backward(b.normal2.data(), weight(kUpWeight), dwide, dnarrow, gradient(kUpWeight), gradient(kUpBias),
                  rows_, width, 4 * width);
  layer_norm_backward(b.middle.data(), weight(kNorm2Gain), b.mean2.data(), b.inverse2.data(), dnarrow,
                      dstream_.data(), gradient(kNorm2Gain), gradient(kNorm2Bias), rows_, width);

  linear_backward(b.attended.data(), weight(kOutWeight), dstream_.data(), dnarrow, gradient(kOutWeight),
                  gradient(kOutBias), rows_, width, width);
  attention_backward({sequences_, length_, width, config_.heads}, b.qkv.data(), b.attention.data(), dnarrow,
                     dwide, scratch_.data());
  linear_backward(b.normal1.data(), weight(kQkvWeight), dwide, dnarrow, gradient(kQkvWeight),
                  gradient(kQkvBias), rows_, width, 3 * width);
  layer_norm_backward(b.input.data(), weight(kNorm1Gain), b.mean1.data(), b.inverse1.data(), dnarrow,
                      dstream_.data(), gradient(kNorm1Gain), gradient(kNorm1Bias), rows_, width);
}

void Model::embed(const float* parameters, float* out) const {
  const size_t width = config_.width;
  for (size_t r = 0; r < rows_; ++r) {
    std::memcpy(out + r * width, parameters + offset(kBytes) + inputs_[r] * width, width * sizeof(float));
    add_to(out + r * width, parameters + offset(kPositions) + (r % length_) * width, width);
  }
}

void Model::embed_backward(float* gradients) const {
  const size_t width = config_.width;
  float* bytes = gradients + offset(kBytes);
  float* positions = gradients + offset(kPositions);
  std::fill_n(bytes, kVocabulary * width, 0.0f);
  std::fill_n(positions, config_.context * width, 0.0f);
  for (size_t r = 0; r < rows_; ++r) {
    add_to(bytes + inputs_[r] * width, dstream_.data() + r * width, width);
    add_to(positions + (r % length_) * width, dstream_.data() + r * width, width);
  }
}

}  // namespace gpt
