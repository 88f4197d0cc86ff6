#include "runtime/error_feedback.h"

#include <gmock/gmock.h>

#include <algorithm>

namespace muster {
namespace {

using testing::HasSubstr;

constexpr size_t kElements = 2500;
constexpr int kLanes = 4;

// Ranks 0 and 1 of a view; the shards of lanes 0 and 2, and of 1 and 3.
class ErrorFeedbackTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(ErrorFeedback::check_state(state, kElements).ok());
    ASSERT_TRUE(ErrorFeedback::add_tensors(state, kElements, kLanes).ok());
    state.seal();
    state.sharded().cut(kLanes);
    for (uint32_t shard = 0; shard < kLanes; ++shard)
      state.sharded().put(shard, state.sharded().initial_block(shard).value());
  }
  // What a reduction does: lane i, and its part of the mean, become what they are and one more.
  static void encode(LaneFeedback& view, uint64_t step) {
    view.begin_step(step);
    size_t of_means = 0;
    for (size_t i = 0; i < view.mine().size(); ++i) {
      float* const lane = view.begin_lane(i, {0, kElements});
      for (size_t e = 0; e < kElements; ++e) lane[e] += 1;
      const ElementRange part = mean_part(kElements, view.mine()[i], kLanes);
      float* const mean = view.begin_mean(i, part);
      for (size_t e = 0; e < part.size(); ++e) mean[e] += 1;
      of_means += part.size();
    }
    view.note_encoded(kElements * view.mine().size(), of_means);
  }
  // All elements of lane `lane` have this value, and those of its part of the mean.
  void expect_values(int lane, float value) {
    const uint32_t shard[] = {static_cast<uint32_t>(lane)};
    for (size_t tensor = 0; tensor < 2; ++tensor) {
      const size_t count = tensor == 0 ? kElements : mean_part(kElements, lane, kLanes).size();
      for (const ShardPiece& piece : state.sharded().pieces(tensor, shard)) {
        const std::span values(reinterpret_cast<const float*>(piece.data), count);
        EXPECT_TRUE(std::ranges::all_of(values, [&](float x) { return x == value; })) << lane << tensor;
      }
    }
  }
  State state;
  ErrorFeedback feedback{state.sharded(), kElements};
};

TEST_F(ErrorFeedbackTest, AnUpdateMakesWhatTheReductionLeftCount) {
  const std::vector<uint32_t> shards = {0, 2};
  auto view = feedback.begin_view({{0, 2}, {1, 3}}, 0);
  ASSERT_TRUE(view.ok());
  for (uint64_t step = 10; step < 13; ++step) {
    encode(**view, step);
    encode(**view, step);  // repeated
    expect_values(0, static_cast<float>(step - 10));
    ASSERT_TRUE(feedback.has(static_cast<int64_t>(step), shards));
    feedback.commit(static_cast<int64_t>(step), shards);
    for (const int lane : {0, 2}) expect_values(lane, static_cast<float>(step - 9));
    for (const int lane : {1, 3}) expect_values(lane, 0);
  }
}

TEST_F(ErrorFeedbackTest, OnlyAWholeReductionOfThatStepAndThoseLanesCounts) {
  const std::vector<uint32_t> mine = {0, 2}, more = {0, 1, 2}, none;
  EXPECT_FALSE(feedback.has(10, mine));
  EXPECT_TRUE(feedback.has(10, none));
  auto view = feedback.begin_view({{0, 2}, {1, 3}}, 0);
  ASSERT_TRUE(view.ok());
  encode(**view, 10);
  EXPECT_TRUE(feedback.has(10, mine));
  EXPECT_FALSE(feedback.has(9, mine));
  EXPECT_FALSE(feedback.has(10, more)) << "a lane that another rank has encoded";
  (*view)->note_encoded(2 * kElements - 1, kElements);
  EXPECT_FALSE(feedback.has(10, mine));
}

// In another view what was not updated is not there, and what was is.
TEST_F(ErrorFeedbackTest, AnotherViewReadsWhatCounts) {
  auto view = feedback.begin_view({{0, 2}, {1, 3}}, 0);
  ASSERT_TRUE(view.ok());
  encode(**view, 10);
  feedback.commit(10, std::vector<uint32_t>{0, 2});
  encode(**view, 11);
  view = feedback.begin_view({{1, 3}, {0}, {2}}, 1);
  ASSERT_TRUE(view.ok());
  EXPECT_FALSE(feedback.has(11, std::vector<uint32_t>{0}));
  encode(**view, 11);
  feedback.commit(11, std::vector<uint32_t>{0});
  expect_values(0, 2);
  expect_values(2, 1);
}

TEST(ErrorFeedbackStates, HaveNoOtherShards) {
  State state;
  ASSERT_TRUE(state.add_sharded("rows", nullptr, DType::kFloat32, {5}).ok());
  const Status checked = ErrorFeedback::check_state(state, 10);
  ASSERT_FALSE(checked.ok());
  EXPECT_THAT(checked.error().message, HasSubstr("tensor 'rows' is sharded"));
  State named;
  float value = 0;
  ASSERT_TRUE(named.add_replicated("muster.error_feedback.mean", &value, DType::kFloat32, {1}).ok());
  EXPECT_THAT(ErrorFeedback::add_tensors(named, 10, 2).error().message, HasSubstr("two tensors are named"));
}

TEST(ErrorFeedbackLanes, AreWhereTheirShardsAre) {
  const control::ShardMap map{1, {2, 0, 2, 0, 1}};
  EXPECT_EQ(lanes_by_holder(map, 4), (LaneLists{{1, 3}, {4}, {0, 2}, {}}));
}

}  // namespace
}  // namespace muster
