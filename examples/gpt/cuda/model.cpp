#include "examples/gpt/cuda/model.h"

#include <algorithm>
#include <cstring>

#include "examples/gpt/tensors.h"
#include "runtime/base/check.h"

namespace gpt::cuda {

DeviceModel::DeviceModel(Device& device, const Config& config, size_t sequences_max)
    : device_(device),
      config_(config),
      layout_(config),
      sequences_max_(sequences_max),
      bytes_(2 * sequences_max * config.context),
      blocks_(config.layers),
      next_(kVocabulary) {
  const size_t rows = sequences_max * config.context, width = config.width;
  const size_t weights = rows * config.heads * config.context;
  const auto floats = [&](size_t count) { return device.allocate<float>(count); };
  inputs_ = device.allocate<uint8_t>(2 * rows);
  for (Block& b : blocks_) {
    for (float** narrow : {&b.input, &b.normal1, &b.attended, &b.middle, &b.normal2})
      *narrow = floats(rows * width);
    for (float** column : {&b.mean1, &b.inverse1, &b.mean2, &b.inverse2}) *column = floats(rows);
    for (float** wide : {&b.up, &b.activated}) *wide = floats(rows * 4 * width);
    b.qkv = floats(rows * 3 * width);
    b.attention = floats(weights);
  }
  for (float** narrow : {&last_, &normal_, &dstream_, &dnarrow_}) *narrow = floats(rows * width);
  for (float** column : {&mean_, &inverse_}) *column = floats(rows);
  logits_ = floats(rows * kVocabulary);
  dwide_ = floats(rows * 4 * width);
  dattention_ = floats(weights);
  losses_ = device.allocate<double>(rows);
  loss_sum_ = device.allocate<double>(1);
}

void DeviceModel::forward_backward(const float* parameters, std::span<const uint8_t> windows,
                                   float* gradients, float* loss, const Model::Final& final) {
  forward(parameters, take(windows), config_.context);
  cross_entropy(true, loss);
  backward(parameters, gradients, final);
}

double DeviceModel::loss(const float* parameters, std::span<const uint8_t> windows) {
  const size_t window = config_.context + 1, count = windows.size() / window;
  MUSTER_CHECK(count > 0, "there is no window to take the loss of");
  double sum = 0;
  for (size_t i = 0; i < count; i += sequences_max_) {
    const size_t part = std::min(sequences_max_, count - i);
    forward(parameters, take(windows.subspan(i * window, part * window)), config_.context);
    cross_entropy(false, nullptr);
    double part_sum = 0;
    device_.download(loss_sum_, &part_sum, sizeof part_sum);
    sum += part_sum;
  }
  return sum / static_cast<double>(count * config_.context);
}

std::span<const float, kVocabulary> DeviceModel::next_logits(const float* parameters,
                                                             std::span<const uint8_t> history) {
  MUSTER_CHECK(!history.empty(), "no history");
  const auto recent = history.last(std::min(history.size(), config_.context));
  // Zeros fill up the last eight rows: they come later, so no row before them sees them.
  const size_t length = (recent.size() + kLanes - 1) / kLanes * kLanes;
  std::fill(std::copy(recent.begin(), recent.end(), bytes_.begin()),
            bytes_.begin() + static_cast<ptrdiff_t>(length), uint8_t{0});
  device_.upload(bytes_.data(), inputs_, length);
  forward(parameters, 1, length);
  device_.download(logits_ + (recent.size() - 1) * kVocabulary, next_.data(), kVocabulary * sizeof(float));
  return std::span<const float, kVocabulary>(next_.data(), kVocabulary);
}

// Splits windows into inputs and targets, and uploads both; returns their number.
size_t DeviceModel::take(std::span<const uint8_t> windows) {
  const size_t window = config_.context + 1, count = windows.size() / window, rows = count * config_.context;
  MUSTER_CHECK(count > 0 && count <= sequences_max_ && windows.size() == count * window,
               "windows are not a whole number from 1 to sequences_max");
  for (size_t s = 0; s < count; ++s) {
    const uint8_t* from = windows.data() + s * window;
    std::memcpy(bytes_.data() + s * config_.context, from, config_.context);
    std::memcpy(bytes_.data() + rows + s * config_.context, from + 1, config_.context);
  }
  device_.upload(bytes_.data(), inputs_, 2 * rows);
  targets_ = inputs_ + rows;
  return count;
}

void DeviceModel::forward(const float* parameters, size_t sequences, size_t length) {
  shape_ = {sequences, length, config_.width, config_.heads};
  device_.run(Embed{inputs_, parameters + offset(kBytes), parameters + offset(kPositions),
                    blocks_.front().input, rows(), width(), static_cast<uint32_t>(length)});
  for (size_t i = 0; i < blocks_.size(); ++i)
    forward_block(i, parameters, i + 1 < blocks_.size() ? blocks_[i + 1].input : last_);
  device_.run(Norm{last_, parameters + offset(norm_gain(config_)), parameters + offset(norm_bias(config_)),
                   normal_, mean_, inverse_, rows(), width()});
  linear(linear_of(config_.width, kVocabulary), normal_, parameters + offset(head_weight(config_)), nullptr,
         nullptr, logits_, on_device());
}

void DeviceModel::forward_block(size_t index, const float* parameters, float* output) {
  const Block& b = blocks_[index];
  const size_t w = config_.width;
  const auto weight = [&](BlockTensor t) { return parameters + offset(block_tensor(index, t)); };

  device_.run(
      Norm{b.input, weight(kNorm1Gain), weight(kNorm1Bias), b.normal1, b.mean1, b.inverse1, rows(), width()});
  linear(linear_of(w, 3 * w), b.normal1, weight(kQkvWeight), weight(kQkvBias), nullptr, b.qkv, on_device());
  attention(shape_, b.qkv, b.attention, b.attended, on_device());
  linear(linear_of(w, w), b.attended, weight(kOutWeight), weight(kOutBias), b.input, b.middle, on_device());

  device_.run(Norm{b.middle, weight(kNorm2Gain), weight(kNorm2Bias), b.normal2, b.mean2, b.inverse2, rows(),
                   width()});
  linear(linear_of(w, 4 * w), b.normal2, weight(kUpWeight), weight(kUpBias), nullptr, b.up, on_device());
  device_.run(Gelu{b.up, b.activated, uint64_t{rows()} * 4 * w});
  linear(linear_of(4 * w, w), b.activated, weight(kDownWeight), weight(kDownBias), b.middle, output,
         on_device());
}

void DeviceModel::cross_entropy(bool gradient, float* mean) {
  device_.run(CrossEntropy{logits_, targets_, losses_, rows(), gradient});
  device_.run(LossSum{losses_, loss_sum_, mean, rows()});
}

// dstream_ holds the gradient of the residual stream as it goes back through the blocks.
void DeviceModel::backward(const float* parameters, float* gradients, const Model::Final& final) {
  size_t end = layout_.size();
  const auto final_from = [&](size_t begin) {
    if (final) final(begin, end);
    end = begin;
  };
  const size_t head = offset(head_weight(config_));
  linear_backward(linear_of(config_.width, kVocabulary), normal_, parameters + head, logits_, dnarrow_,
                  gradients + head, nullptr, on_device());
  const size_t gain = offset(norm_gain(config_)), bias = offset(norm_bias(config_));
  device_.run(NormBackward{last_, parameters + gain, mean_, inverse_, dnarrow_, dstream_, gradients + gain,
                           gradients + bias, rows(), width(), false});
  final_from(gain);
  for (size_t i = blocks_.size(); i-- > 0;) {
    backward_block(i, parameters, gradients);
    final_from(offset(block_tensor(i, kNorm1Gain)));
  }
  device_.run(EmbedBackward{inputs_, dstream_, gradients + offset(kBytes), gradients + offset(kPositions),
                            rows(), width(), static_cast<uint32_t>(shape_.length), kVocabulary,
                            static_cast<uint32_t>(config_.context)});
  final_from(0);
}

void DeviceModel::backward_block(size_t index, const float* parameters, float* gradients) {
  const Block& b = blocks_[index];
  const size_t w = config_.width;
  const auto weight = [&](BlockTensor t) { return parameters + offset(block_tensor(index, t)); };
  const auto gradient = [&](BlockTensor t) { return gradients + offset(block_tensor(index, t)); };
  const auto norm_backward = [&](const float* x, const float* mean, const float* inverse, BlockTensor gain,
                                 BlockTensor bias) {
    device_.run(NormBackward{x, weight(gain), mean, inverse, dnarrow_, dstream_, gradient(gain),
                             gradient(bias), rows(), width(), true});
  };

  linear_backward(linear_of(4 * w, w), b.activated, weight(kDownWeight), dstream_, dwide_,
                  gradient(kDownWeight), gradient(kDownBias), on_device());
  device_.run(GeluBackward{b.up, dwide_, dwide_, uint64_t{rows()} * 4 * w});
  linear_backward(linear_of(w, 4 * w), b.normal2, weight(kUpWeight), dwide_, dnarrow_, gradient(kUpWeight),
                  gradient(kUpBias), on_device());
  norm_backward(b.middle, b.mean2, b.inverse2, kNorm2Gain, kNorm2Bias);

  linear_backward(linear_of(w, w), b.attended, weight(kOutWeight), dstream_, dnarrow_, gradient(kOutWeight),
                  gradient(kOutBias), on_device());
  attention_backward(shape_, b.qkv, b.attention, dnarrow_, dwide_, dattention_, on_device());
  linear_backward(linear_of(w, 3 * w), b.normal1, weight(kQkvWeight), dwide_, dnarrow_, gradient(kQkvWeight),
                  gradient(kQkvBias), on_device());
  norm_backward(b.input, b.mean1, b.inverse1, kNorm1Gain, kNorm1Bias);
}

}  // namespace gpt::cuda
