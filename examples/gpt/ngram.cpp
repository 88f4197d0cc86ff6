#include "examples/gpt/ngram.h"

#include <algorithm>

#include "examples/gpt/kernels.h"
#include "runtime/base/check.h"

namespace gpt {
namespace {

constexpr double kUniform = 1.0 / 256;

// The last `length` bytes, and the length above them, so that keys of all lengths share one table.
uint32_t key(Ngram::Text bytes, size_t length) {
  uint32_t result = 0;
  for (uint8_t byte : bytes.last(length)) result = result << 8 | byte;
  return static_cast<uint32_t>(length) << 24 | result;
}

std::vector<Ngram::Text> parts(const std::vector<Ngram::Text>& texts, bool held_out) {
  std::vector<Ngram::Text> out;
  for (Ngram::Text text : texts) {
    const size_t tail = text.size() / 10;
    out.push_back(held_out ? text.last(tail) : text.first(text.size() - tail));
  }
  return out;
}

}  // namespace

Ngram Ngram::fit(const std::vector<Text>& training, size_t order) {
  MUSTER_CHECK(order >= 1 && order <= kOrderMax, "an n-gram has 1 to 3 bytes");
  Ngram model;
  model.order_ = order;
  std::fill_n(model.weights_, kOrderMax, 0.5);
  model.count(parts(training, false));
  model.maximise(parts(training, true));
  model.count(training);
  return model;
}

void Ngram::count(const std::vector<Text>& texts) {
  with_next_.clear();
  histories_.clear();
  for (Text text : texts) {
    for (size_t i = 0; i < text.size(); ++i) {
      for (size_t length = 0; length < std::min(order_, i + 1); ++length) {
        ++histories_[key(text.first(i), length)];
        // A history of two with its successor fills 24 bits; the length of 1 to 3 stands above.
        ++with_next_[key(text.first(i + 1), length + 1)];
      }
    }
  }
}

double Ngram::share(Text history, size_t length, uint8_t next) const {
  const uint32_t before = key(history, length);
  const auto seen = histories_.find(before);
  if (seen == histories_.end()) return -1;
  const auto hits =
      with_next_.find(((before & 0xffffff) << 8 | next) | static_cast<uint32_t>(length + 1) << 24);
  return hits == with_next_.end() ? 0 : static_cast<double>(hits->second) / seen->second;
}

double Ngram::probability(Text history, uint8_t next) const {
  double p = kUniform;
  for (size_t length = 0; length < order_ && length <= history.size(); ++length) {
    const double s = share(history, length, next);
    if (s >= 0) p = weights_[length] * s + (1 - weights_[length]) * p;
  }
  return p;
}

// One byte's path goes from the longest history down and stops at a length with its weight. The new weight of
// a length is the expected number of stops there, over the expected number of arrivals.
void Ngram::maximise(const std::vector<Text>& held_out) {
  constexpr int kRounds = 30;
  for (int round = 0; round < kRounds; ++round) {
    double stops[kOrderMax] = {}, arrivals[kOrderMax] = {};
    for (Text text : held_out) {
      for (size_t i = 0; i < text.size(); ++i) {
        double below[kOrderMax + 1] = {kUniform}, shares[kOrderMax] = {};  // below[k]: p of lengths under k
        const size_t lengths = std::min(order_, i + 1);
        for (size_t k = 0; k < lengths; ++k) {
          shares[k] = share(text.first(i), k, text[i]);
          below[k + 1] = shares[k] < 0 ? below[k] : weights_[k] * shares[k] + (1 - weights_[k]) * below[k];
        }
        double arrived = 1;
        for (size_t k = lengths; k-- > 0;) {
          if (shares[k] < 0) continue;
          const double stopped = arrived * weights_[k] * shares[k] / below[k + 1];
          stops[k] += stopped;
          arrivals[k] += arrived;
          arrived -= stopped;
        }
      }
    }
    for (size_t k = 0; k < order_; ++k) {
      // Never quite 1: a byte that was never seen keeps a probability above 0.
      if (arrivals[k] > 0) weights_[k] = std::min(stops[k] / arrivals[k], 0.9999);
    }
  }
}

double Ngram::loss(Text windows, size_t context) const {
  const size_t window = context + 1, count = windows.size() / window;
  double sum = 0;
  for (size_t w = 0; w < count; ++w) {
    const Text text = windows.subspan(w * window, window);
    for (size_t i = 1; i < window; ++i) sum -= log_of(probability(text.first(i), text[i]));
  }
  return sum / static_cast<double>(count * context);
}

}  // namespace gpt
