#include "kernels/codec_choice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace muster::codec {
namespace {

constexpr int64_t kMega = 1'000'000, kGiga = 1'000'000'000;

std::vector<CodecRecord> records() {
  return {{CodecId::kBf16, 8 * kGiga, 8 * kGiga},
          {CodecId::kInt8, 6 * kGiga, 7 * kGiga},
          {CodecId::kInt4, 2 * kGiga, 2 * kGiga},
          {CodecId::kOneBit, 6 * kGiga, 6 * kGiga}};
}

struct Scene {
  std::vector<CodecRecord> all = records();
  ChoiceInput input;
  ChoiceLimits limits;

  explicit Scene(int64_t link_bytes_per_s) {
    input.elements = 16 << 20;
    input.world = 4;
    input.link_bytes_per_s = link_bytes_per_s;
    input.step = 1000;
  }
  Choice decide() {
    input.records = all;
    return choose_codec(input, limits);
  }
  CodecRecord& record(CodecId id) {
    for (auto& each : all) {
      if (each.id == id) return each;
    }
    return all.front();
  }
};

TEST(CodecChoice, SlowLinksGetFewerBits) {
  Scene scene(12 * kMega);  // 100 Mbit/s
  EXPECT_EQ(scene.decide().codec, CodecId::kInt4);
  scene.input.feedback = true;
  EXPECT_EQ(scene.decide().codec, CodecId::kOneBit);
}

// It sends a third of 1-bit's bytes, which is worth a slower encoder where the link is slow enough.
TEST(CodecChoice, TopkIsForTheSlowestLinksAndFeedback) {
  Scene scene(12 * kMega);
  scene.all.push_back({CodecId::kTopK, 3 * kGiga, 9 * kGiga});
  EXPECT_EQ(scene.decide().codec, CodecId::kInt4);
  EXPECT_NE(scene.decide().why.find("topk: it needs error feedback"), std::string::npos);
  scene.input.feedback = true;
  EXPECT_EQ(scene.decide().codec, CodecId::kTopK);
}

TEST(CodecChoice, FastLinksGetNoCodecThatIsSlowerThanThem) {
  EXPECT_EQ(Scene(kGiga).decide().codec, CodecId::kInt8);      // int4 would wait for its encoder
  EXPECT_EQ(Scene(100 * kGiga).decide().codec, std::nullopt);  // memory is slower than such a link
}

TEST(CodecChoice, AWorldOfOneNeedsNone) {
  Scene scene(kMega);
  scene.input.world = 1;
  const Choice choice = scene.decide();
  EXPECT_EQ(choice.codec, std::nullopt);
  EXPECT_EQ(choice.predicted, 0);
}

TEST(CodecChoice, GainsBelowTheLimitStayWithBf16) {
  Scene scene(2 * kGiga);
  scene.all = {{CodecId::kBf16, 100 * kGiga, 100 * kGiga}, {CodecId::kInt8, 9 * kGiga, 9 * kGiga}};
  const Duration bf16 = [&] {
    scene.input.records = scene.all;
    return predicted_time(scene.input, &scene.all[0]);
  }();
  const Duration int8 = predicted_time(scene.input, &scene.all[1]);
  scene.limits.gain_percent_min = 10000;
  EXPECT_EQ(scene.decide().codec, CodecId::kBf16);
  scene.limits.gain_percent_min = 0;
  EXPECT_EQ(scene.decide().codec, int8 < bf16 ? CodecId::kInt8 : CodecId::kBf16);
}

TEST(CodecChoice, ErrorGuardFallsBackAndBars) {
  Scene scene(12 * kMega);
  scene.input.previous = CodecId::kInt4;
  scene.record(CodecId::kInt4).error_ppm = 500'000;
  const Choice choice = scene.decide();
  EXPECT_EQ(choice.codec, CodecId::kInt8);
  ASSERT_TRUE(choice.bar.has_value());
  EXPECT_EQ(choice.bar->id, CodecId::kInt4);
  EXPECT_EQ(choice.bar->until_step, 1200);
  EXPECT_NE(choice.why.find("not int4: its error of 50.0 % is above 40.0 %"), std::string::npos)
      << choice.why;
  // Barred, it stays out although its old error is forgotten, until its time is over.
  scene.record(CodecId::kInt4) = {CodecId::kInt4, 2 * kGiga, 2 * kGiga, 0, 0, choice.bar->until_step};
  scene.input.previous = CodecId::kInt8;
  EXPECT_EQ(scene.decide().codec, CodecId::kInt8);
  EXPECT_NE(scene.decide().why.find("until step 1200"), std::string::npos);
  scene.input.step = 1200;
  EXPECT_EQ(scene.decide().codec, CodecId::kInt4);
}

TEST(CodecChoice, ResidualGuardLeavesNothingButBf16) {
  Scene scene(12 * kMega);
  for (auto& record : scene.all) record.residual_ppm = record.id == CodecId::kBf16 ? 0 : 5'000'000;
  EXPECT_EQ(scene.decide().codec, CodecId::kBf16);
}

TEST(CodecChoice, PinnedIsPinned) {
  Scene scene(100 * kGiga);
  scene.input.pinned = CodecId::kInt4;
  scene.record(CodecId::kInt4).error_ppm = 900'000;
  const Choice choice = scene.decide();
  EXPECT_EQ(choice.codec, CodecId::kInt4);
  EXPECT_EQ(choice.why, "int4: pinned");
}

// A link whose rate wavers around the point where two codecs are level does not make them alternate.
TEST(CodecChoice, WaveringLinksDoNotMakeItAlternate) {
  Scene scene(kGiga);
  int changes = 0;
  std::optional<CodecId> last;
  // Around where int4's encoder and int8's bytes take the same time.
  int64_t level = 0;
  for (int64_t rate = 50 * kMega; rate < 2 * kGiga && level == 0; rate += 5 * kMega) {
    scene.input.link_bytes_per_s = rate;
    if (scene.decide().codec == CodecId::kInt8) level = rate;
  }
  ASSERT_GT(level, 0);
  for (int step = 0; step < 100; ++step) {
    scene.input.link_bytes_per_s = level + (step % 2 == 0 ? 1 : -1) * level / 40;
    scene.input.previous = last;
    const auto now = scene.decide().codec;
    changes += step > 0 && now != last ? 1 : 0;
    last = now;
  }
  EXPECT_LE(changes, 1);
}

TEST(CodecChoice, UnmeasuredCodecsAreNotChosen) {
  Scene scene(12 * kMega);
  for (auto& record : scene.all) record.encode_bytes_per_s = 0;
  const Choice choice = scene.decide();
  EXPECT_EQ(choice.codec, std::nullopt);
  EXPECT_NE(choice.why.find("speed is not measured"), std::string::npos);
}

TEST(CodecChoice, HugeNumbersDoNotOverflow) {
  Scene scene(1);
  scene.input.elements = uint64_t{1} << 50;
  scene.input.world = 1 << 20;
  const Choice choice = scene.decide();
  EXPECT_GT(choice.predicted, 0);
}

// The order of records is no part of the decision.
TEST(CodecChoice, OrderOfRecordsDoesNotMatter) {
  for (const int64_t rate : {12 * kMega, 125 * kMega, 400 * kMega, kGiga, 10 * kGiga}) {
    Scene scene(rate);
    const auto first = scene.decide().codec;
    std::reverse(scene.all.begin(), scene.all.end());
    EXPECT_EQ(scene.decide().codec, first) << rate;
  }
}

}  // namespace
}  // namespace muster::codec
