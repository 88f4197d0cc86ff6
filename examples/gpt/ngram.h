// The baseline that a language model must beat: interpolated byte n-grams.
//
// p_n(c | h) = w_n count(h c) / count(h) + (1 - w_n) p_(n-1)(c | shorter h), down to 1/256; where h was never
// seen, p_(n-1) alone (Jelinek and Mercer 1980). The weights are found by expectation maximisation on the
// last tenth of each training text, with counts of the rest; then all training text is counted. Validation
// text is not looked at.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace gpt {

class Ngram {
 public:
  using Text = std::span<const uint8_t>;
  static constexpr size_t kOrderMax = 3;

  // `order`: 1 to 3 bytes, the predicted one included: 2 is the bigram.
  static Ngram fit(const std::vector<Text>& training, size_t order);

  // The probability of `next` after `history`, of which the last order - 1 bytes count.
  double probability(Text history, uint8_t next) const;

  // Mean nats a byte over windows of context + 1 bytes, predicting what the model predicts from the same
  // bytes: nothing before the window is seen.
  double loss(Text windows, size_t context) const;

  double weight(size_t length) const { return weights_[length]; }  // for a history of this many bytes

 private:
  using Counts = std::unordered_map<uint32_t, uint32_t>;

  void count(const std::vector<Text>& texts);
  void maximise(const std::vector<Text>& held_out);
  double share(Text history, size_t length, uint8_t next) const;  // count(h c) / count(h), or -1: h unseen

  size_t order_ = 0;
  double weights_[kOrderMax] = {};
  Counts with_next_, histories_;  // by key(): history and its length
};

}  // namespace gpt
