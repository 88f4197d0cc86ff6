#include "kernels/philox.h"

#include <gtest/gtest.h>

namespace muster {
namespace {

void expect_words(PhiloxWords actual, PhiloxWords expected) {
  for (int i = 0; i < 4; ++i) EXPECT_EQ(actual.word[i], expected.word[i]) << "word " << i;
}

// The known answers that Random123 publishes for philox4x32-10.
TEST(Philox, KnownAnswers) {
  expect_words(philox4x32_10({{0, 0, 0, 0}}, {0, 0}), {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  const uint32_t ones = 0xffffffff;
  expect_words(philox4x32_10({{ones, ones, ones, ones}}, {ones, ones}),
               {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect_words(philox4x32_10({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, {0xa4093822, 0x299f31d0}),
               {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST(Philox, CounterFollowsTheFormat) {
  const RandomSlot slot{
      .seed = 0x1122334455667788, .step = 0x1'0000'0007, .tensor = 5, .lane = 0xABCD, .stage = 3};
  const PhiloxWords counter = counter_of(slot, 0x1234'89ABCDEF);
  EXPECT_EQ(counter.word[0], 0x89ABCDEFu);
  EXPECT_EQ(counter.word[1], 0x1234ABCDu);
  EXPECT_EQ(counter.word[2], 7u);
  EXPECT_EQ(counter.word[3], 23u);
  EXPECT_EQ(key_of(slot).low, 0x55667788u);
  EXPECT_EQ(key_of(slot).high, 0x11223344u);
}

TEST(Philox, HalfwordsComeLowHalfFirst) {
  const PhiloxWords words{{0x00010000, 0x00030002, 0x00050004, 0x00070006}};
  for (uint32_t i = 0; i < 8; ++i) EXPECT_EQ(halfword_of(words, i), i);
}

}  // namespace
}  // namespace muster
