#include "examples/gpt/sampler.h"

#include <algorithm>
#include <string_view>
#include <unordered_set>

#include "examples/gpt/kernels.h"
#include "runtime/base/random.h"

namespace gpt {
namespace {

uint8_t draw(std::span<const float, kVocabulary> logits, float temperature, double uniform) {
  const auto top = std::max_element(logits.begin(), logits.end());
  if (temperature <= 0) return static_cast<uint8_t>(top - logits.begin());
  float weights[kVocabulary];
  for (size_t i = 0; i < kVocabulary; ++i) weights[i] = (logits[i] - *top) / temperature;
  exp_each(weights, weights, kVocabulary);
  double total = 0;
  for (float weight : weights) total += weight;
  double left = uniform * total;
  for (size_t i = 0; i + 1 < kVocabulary; ++i) {
    left -= weights[i];
    if (left < 0) return static_cast<uint8_t>(i);
  }
  return kVocabulary - 1;
}

bool is_letter(uint8_t byte) { return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z'); }

// Calls f with each run of four letters or more, in lower case, that a byte other than a letter ends.
template <typename F>
void each_word(std::span<const uint8_t> text, F f) {
  constexpr size_t kLettersMin = 4;
  std::string word;
  for (uint8_t byte : text) {
    if (is_letter(byte)) {
      word.push_back(static_cast<char>(byte | 0x20));
      continue;
    }
    if (word.size() >= kLettersMin) f(word);
    word.clear();
  }
}

}  // namespace

std::string sample_text(const NextLogits& next_logits, const SampleOptions& options) {
  std::vector<uint8_t> text(options.prompt.begin(), options.prompt.end());
  if (text.empty()) text.push_back('\n');
  const size_t begin = text.size();
  muster::SeededRandom random(options.seed);
  while (text.size() < begin + options.bytes)
    text.push_back(draw(next_logits(text), options.temperature, random.uniform()));
  return {text.begin() + static_cast<ptrdiff_t>(begin), text.end()};
}

std::string sample_text(Model& model, std::span<const float> parameters, const SampleOptions& options) {
  return sample_text([&](std::span<const uint8_t> history) { return model.next_logits(parameters, history); },
                     options);
}

WordCount count_known_words(const std::string& sample, const std::vector<std::span<const uint8_t>>& texts) {
  std::unordered_set<std::string> known;
  for (std::span<const uint8_t> text : texts) each_word(text, [&](const std::string& w) { known.insert(w); });
  WordCount count;
  each_word({reinterpret_cast<const uint8_t*>(sample.data()), sample.size()}, [&](const std::string& word) {
    ++count.words;
    count.known += known.count(word);
  });
  return count;
}

}  // namespace gpt
