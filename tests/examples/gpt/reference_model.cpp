#include "tests/examples/gpt/reference_model.h"

#include <cmath>
#include <stdexcept>

namespace gpt {
namespace {

using Row = std::vector<double>;
using Rows = std::vector<Row>;

// Hands out the tensors of a flat buffer by name.
class Tensors {
 public:
  Tensors(const Config& config, const std::vector<double>& values) : layout_(config), values_(values) {}

  const double* operator()(const std::string& name) const {
    for (const Tensor& t : layout_.tensors()) {
      if (t.name == name) return values_.data() + t.offset;
    }
    throw std::out_of_range(name);
  }

 private:
  Layout layout_;
  const std::vector<double>& values_;
};

Row normalised(const Row& x, const double* gain, const double* bias) {
  double mean = 0, variance = 0;
  for (double value : x) mean += value / static_cast<double>(x.size());
  for (double value : x) variance += (value - mean) * (value - mean) / static_cast<double>(x.size());
  Row out;
  for (size_t i = 0; i < x.size(); ++i)
    out.push_back((x[i] - mean) / std::sqrt(variance + 1e-5) * gain[i] + bias[i]);
  return out;
}

Row linear(const Row& x, const double* weight, const double* bias, size_t to) {
  Row out(to);
  for (size_t j = 0; j < to; ++j) {
    out[j] = bias == nullptr ? 0 : bias[j];
    for (size_t i = 0; i < x.size(); ++i) out[j] += x[i] * weight[i * to + j];
  }
  return out;
}

// What position t of one head takes from positions 0…t.
void attend(const Rows& qkv, size_t t, size_t width, size_t begin, size_t size, Row& out) {
  Row weights;
  double total = 0;
  for (size_t s = 0; s <= t; ++s) {
    double score = 0;
    for (size_t i = begin; i < begin + size; ++i) score += qkv[t][i] * qkv[s][width + i];
    weights.push_back(std::exp(score / std::sqrt(static_cast<double>(size))));
    total += weights.back();
  }
  for (size_t i = begin; i < begin + size; ++i) {
    out[i] = 0;
    for (size_t s = 0; s <= t; ++s) out[i] += weights[s] / total * qkv[s][2 * width + i];
  }
}

void add(Row& x, const Row& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

void block(const Config& c, const Tensors& tensor, const std::string& name, Rows& stream) {
  Rows qkv;
  for (const Row& x : stream) {
    const Row n = normalised(x, tensor(name + "norm1.gain"), tensor(name + "norm1.bias"));
    qkv.push_back(linear(n, tensor(name + "qkv.weight"), tensor(name + "qkv.bias"), 3 * c.width));
  }
  for (size_t t = 0; t < stream.size(); ++t) {
    Row attended(c.width);
    const size_t size = c.width / c.heads;
    for (size_t h = 0; h < c.heads; ++h) attend(qkv, t, c.width, h * size, size, attended);
    add(stream[t], linear(attended, tensor(name + "out.weight"), tensor(name + "out.bias"), c.width));
    const Row n = normalised(stream[t], tensor(name + "norm2.gain"), tensor(name + "norm2.bias"));
    Row up = linear(n, tensor(name + "up.weight"), tensor(name + "up.bias"), 4 * c.width);
    for (double& x : up)
      x = 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    add(stream[t], linear(up, tensor(name + "down.weight"), tensor(name + "down.bias"), c.width));
  }
}

}  // namespace

std::vector<double> reference_logits(const Config& c, const std::vector<double>& parameters,
                                     std::span<const uint8_t> inputs) {
  const Tensors tensor(c, parameters);
  Rows stream;
  for (size_t t = 0; t < inputs.size(); ++t) {
    Row x(c.width);
    for (size_t i = 0; i < c.width; ++i)
      x[i] =
          tensor("embedding.byte")[inputs[t] * c.width + i] + tensor("embedding.position")[t * c.width + i];
    stream.push_back(x);
  }
  for (size_t l = 0; l < c.layers; ++l) block(c, tensor, "block" + std::to_string(l) + ".", stream);
  std::vector<double> logits;
  for (const Row& x : stream) {
    const Row n = normalised(x, tensor("norm.gain"), tensor("norm.bias"));
    const Row row = linear(n, tensor("head.weight"), nullptr, kVocabulary);
    logits.insert(logits.end(), row.begin(), row.end());
  }
  return logits;
}

double reference_loss(const Config& c, const std::vector<double>& parameters,
                      std::span<const uint8_t> windows) {
  const size_t window = c.context + 1;
  double sum = 0;
  for (size_t at = 0; at < windows.size(); at += window) {
    const auto logits = reference_logits(c, parameters, windows.subspan(at, c.context));
    for (size_t t = 0; t < c.context; ++t) {
      double total = 0;
      for (size_t v = 0; v < kVocabulary; ++v) total += std::exp(logits[t * kVocabulary + v]);
      sum += std::log(total) - logits[t * kVocabulary + windows[at + t + 1]];
    }
  }
  return sum / (static_cast<double>(windows.size() / window) * static_cast<double>(c.context));
}

}  // namespace gpt
