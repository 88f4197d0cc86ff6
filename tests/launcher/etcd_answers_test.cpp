// What etcd's answers mean, and that nothing that may come in their place does any harm.
#include "launcher/etcd_answers.h"

#include <gtest/gtest.h>

#include "runtime/base/random.h"
#include "tests/launcher/sample_answers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace muster::launcher {
namespace {

void survive(const std::string& text) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(text.data()), text.size());
}

TEST(EtcdAnswers, AreRead) {
  const auto samples = sample_answers();
  const auto entries = entries_in(samples[0]);
  ASSERT_TRUE(entries.ok()) << entries.error().message;
  ASSERT_EQ(entries->size(), 2u);
  const EtcdEntry& leader = entries->at("/muster/t/leader");
  EXPECT_EQ(leader.created, 40u);
  EXPECT_EQ(leader.modified, 41u);
  EXPECT_EQ(leader.value, (ByteBuffer{std::byte{0}, std::byte{1}, std::byte{2}, std::byte{3}}));
  EXPECT_TRUE(entries_in(samples[1])->empty()) << "the gateway leaves out what is empty";
  const auto outcome = outcome_in(samples[2]);
  ASSERT_TRUE(outcome.ok());
  EXPECT_TRUE(outcome->written);
  EXPECT_EQ(outcome->revision, 43u);
  EXPECT_FALSE(outcome_in(samples[1])->written);
  EXPECT_EQ(*lease_in(samples[3]), 7587);
  EXPECT_EQ(*seconds_left_in(samples[4]), 5);
  EXPECT_EQ(*token_in(samples[5]), "abc.12");
}

TEST(EtcdAnswers, OfAnotherKindAreErrors) {
  const auto samples = sample_answers();
  EXPECT_FALSE(lease_in(samples[1]).ok()) << "no lease";
  EXPECT_FALSE(seconds_left_in(samples[3]).ok());
  EXPECT_FALSE(token_in(samples[0]).ok());
  for (const char* text : {"", "null", "[]", "{", "7", "\"text\"", "<html>a proxy's page</html>"}) {
    EXPECT_FALSE(entries_in(text).ok()) << text;
    EXPECT_FALSE(outcome_in(text).ok()) << text;
    EXPECT_FALSE(lease_in(text).ok()) << text;
    EXPECT_FALSE(seconds_left_in(text).ok()) << text;
    EXPECT_FALSE(token_in(text).ok()) << text;
  }
  for (const char* text :
       {R"({"kvs":{}})", R"({"kvs":[7]})", R"({"kvs":[{"key":7}]})", R"({"kvs":[{"key":"!"}]})",
        R"({"kvs":[{"create_revision":"-1"}]})", R"({"kvs":[{"mod_revision":"1e3"}]})",
        R"({"kvs":[{"mod_revision":"99999999999999999999"}]})"})
    EXPECT_FALSE(entries_in(text).ok()) << text;
}

TEST(EtcdAnswers, WhateverComesInTheirPlaceIsSurvived) {
  SeededRandom random(5);
  for (const std::string& sample : sample_answers()) {
    for (size_t length = 0; length <= sample.size(); ++length) survive(sample.substr(0, length));
    for (int round = 0; round < 500; ++round) {
      std::string text = sample;
      for (uint64_t flips = 1 + random.below(4); flips > 0; --flips)
        text[random.below(text.size())] = static_cast<char>(random.below(256));
      survive(text);
    }
  }
  survive(std::string(100'000, '['));
  std::string deep;
  for (int i = 0; i < 20'000; ++i) deep += "{\"kvs\":";
  survive(deep);
}

}  // namespace
}  // namespace muster::launcher
