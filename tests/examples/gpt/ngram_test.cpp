#include "examples/gpt/ngram.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "runtime/base/random.h"

namespace gpt {
namespace {

Ngram::Text text_of(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::string babble(size_t bytes, uint64_t seed) {
  muster::SeededRandom random(seed);
  std::string text = "a";
  while (text.size() < bytes)
    text.push_back(
        static_cast<char>('a' + (static_cast<size_t>(text.back() - 'a') * 3 + random.below(4)) % 26));
  return text;
}

TEST(Ngram, SumsToOneAfterAnyHistory) {
  const std::string training = babble(5000, 1);
  const std::vector<std::string> kHistories = {"", "a", "ab", "zz", "xyza", "\xff\xfe", std::string(2, '\0')};
  for (size_t order : {1, 2, 3}) {
    const Ngram model = Ngram::fit({text_of(training)}, order);
    for (const std::string& history : kHistories) {
      double sum = 0;
      for (int next = 0; next < 256; ++next) {
        const double p = model.probability(text_of(history), static_cast<uint8_t>(next));
        ASSERT_GT(p, 0);
        sum += p;
      }
      EXPECT_NEAR(sum, 1, 1e-12) << order << " '" << history << "'";
    }
  }
}

TEST(Ngram, CountsWithTheWeightsThatItFound) {
  const std::string training = "abababababac" + std::string(3, 'b') + "ababababab";
  const Ngram model = Ngram::fit({text_of(training)}, 2);
  double singles = 0, after_a = 0, b_after_a = 0;
  for (size_t i = 0; i < training.size(); ++i) {
    singles += training[i] == 'b';
    after_a += i > 0 && training[i - 1] == 'a';
    b_after_a += i > 0 && training[i - 1] == 'a' && training[i] == 'b';
  }
  const double w0 = model.weight(0), w1 = model.weight(1);
  const double lower = w0 * singles / static_cast<double>(training.size()) + (1 - w0) / 256;
  const double last_b = w1 * b_after_a / after_a + (1 - w1) * lower;
  EXPECT_NEAR(model.probability(text_of("xa"), 'b'), last_b, 1e-12);
}

TEST(Ngram, LongerHistoriesHelpWhereTheTextHasThem) {
  const std::string training = babble(40000, 2), held_out = babble(4004, 3);
  double loss[4];
  for (size_t order : {1, 2, 3})
    loss[order] = Ngram::fit({text_of(training)}, order).loss(text_of(held_out), 12);
  EXPECT_LT(loss[2], loss[1] - 1);
  EXPECT_NEAR(loss[2], std::log(4.0), 0.2);  // the entropy, and a little for the first byte of each window
  EXPECT_LT(loss[3], loss[2] + 0.02);
}

TEST(Ngram, WeightsAreTheBestOnTheHeldOutTenth) {
  // The held-out tenth is noise to the counts of the rest, so nothing is to be gained from a history.
  const Ngram noise = Ngram::fit({text_of(babble(900, 4) + std::string(100, 'Q'))}, 2);
  EXPECT_LT(noise.weight(0), 0.01);
  const std::string regular = babble(20000, 5);
  EXPECT_GT(Ngram::fit({text_of(regular)}, 2).weight(1), 0.95);
}

// In noise a history of two tells nothing; on the text that was counted it would seem to tell nearly all.
TEST(Ngram, FindsItsWeightsOnTextThatItDidNotCount) {
  muster::SeededRandom random(7);
  std::string noise(2000, 0);
  for (char& letter : noise) letter = static_cast<char>('a' + random.below(16));
  EXPECT_LT(Ngram::fit({text_of(noise)}, 3).weight(2), 0.3);
}

TEST(Ngram, SeesNothingBeforeTheWindow) {
  const std::string training = babble(5000, 6);
  const Ngram model = Ngram::fit({text_of(training)}, 3);
  const std::string window = "adj";
  const double expected =
      -std::log(model.probability(text_of("a"), 'd')) - std::log(model.probability(text_of("ad"), 'j'));
  EXPECT_NEAR(model.loss(text_of(window + window), 2), expected / 2, 1e-9);
}

}  // namespace
}  // namespace gpt
