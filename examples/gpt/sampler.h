// Text from the model, and how much of it is words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "examples/gpt/model.h"

namespace gpt {

struct SampleOptions {
  size_t bytes = 400;
  float temperature = 0.8f;  // 0: always the likeliest byte
  uint64_t seed = 1;
  std::string prompt = "\n";
};

// Logits of the byte that follows a history, as Model::next_logits gives them.
using NextLogits = std::function<std::span<const float, kVocabulary>(std::span<const uint8_t> history)>;

// The text that follows the prompt (which is not part of it).
std::string sample_text(const NextLogits& next_logits, const SampleOptions& options);
std::string sample_text(Model& model, std::span<const float> parameters, const SampleOptions& options);

// Runs of four ASCII letters or more, compared without case. The word that the end of the sample cuts off
// does not count.
struct WordCount {
  size_t words = 0;
  size_t known = 0;  // of these, how many are whole words of the texts
};
WordCount count_known_words(const std::string& sample, const std::vector<std::span<const uint8_t>>& texts);

}  // namespace gpt
