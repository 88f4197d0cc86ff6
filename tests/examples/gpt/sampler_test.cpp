#include "examples/gpt/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace gpt {
namespace {

constexpr Config kTiny{.layers = 1, .width = 8, .heads = 1, .context = 8};

// A model without blocks' influence: the head alone decides, through the last norm's bias.
std::vector<float> always(uint8_t byte, float by) {
  const Layout layout(kTiny);
  std::vector<float> parameters(layout.size());
  for (const Tensor& t : layout.tensors()) {
    if (t.name == "norm.bias") parameters[t.offset] = 1;
    if (t.name == "head.weight") parameters[t.offset + byte] = by;
  }
  return parameters;
}

std::string sample(const std::vector<float>& parameters, SampleOptions options) {
  Model model = Model::create(kTiny, 1).value();
  return sample_text(model, parameters, options);
}

TEST(Sampler, TakesTheLikeliestByteWithoutTemperature) {
  EXPECT_EQ(sample(always('x', 0.5f), {.bytes = 20, .temperature = 0}), std::string(20, 'x'));
  EXPECT_EQ(sample(always('x', 40), {.bytes = 20, .temperature = 1}), std::string(20, 'x'));
}

TEST(Sampler, DrawsByTemperatureAndSeed) {
  const auto flat = always('x', 3);
  const std::string one = sample(flat, {.bytes = 300, .temperature = 1, .seed = 1});
  EXPECT_EQ(one, sample(flat, {.bytes = 300, .temperature = 1, .seed = 1}));
  EXPECT_NE(one, sample(flat, {.bytes = 300, .temperature = 1, .seed = 2}));
  const auto share = static_cast<double>(std::count(one.begin(), one.end(), 'x')) / 300;
  EXPECT_NEAR(share, 20.1 / (20.1 + 255), 0.06);
  const std::string cold = sample(flat, {.bytes = 300, .temperature = 0.3f, .seed = 1});
  EXPECT_GT(std::count(cold.begin(), cold.end(), 'x'), 280);
}

TEST(Sampler, TakesAnyPrompt) {
  const auto x = always('x', 40);
  EXPECT_EQ(sample(x, {.bytes = 3, .prompt = ""}), "xxx");
  EXPECT_EQ(sample(x, {.bytes = 3, .prompt = std::string(100, '\xff')}), "xxx");
  EXPECT_EQ(sample(x, {.bytes = 0}), "");
}

TEST(KnownWords, CountsWholeWordsWithoutCase) {
  const std::string text = "The LICENSE of this software, licensed.";
  const std::vector<std::span<const uint8_t>> texts = {
      {reinterpret_cast<const uint8_t*>(text.data()), text.size()}};
  const WordCount count = count_known_words("license THIS softwares; the licens_License of soft", texts);
  EXPECT_EQ(count.words, 5u);  // license this softwares licens license; soft is cut off
  EXPECT_EQ(count.known, 3u);
  EXPECT_EQ(count_known_words("", texts).words, 0u);
}

}  // namespace
}  // namespace gpt
