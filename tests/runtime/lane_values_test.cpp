// Values per lane: the copies, what travels, and that a run which was killed, joined and resumed ends with
// the values of one that nobody touched.
#include "runtime/lane_values.h"

#include <gmock/gmock.h>

#include <array>
#include <cstdlib>
#include <numeric>

#include "runtime/state.h"
#include "tests/runtime/worker_runs.h"

namespace muster {
namespace {

using testing::HasSubstr;

class LaneValuesTest : public ::testing::Test {
 protected:
  LaneValues values;
  std::array<uint32_t, 6> pairs{1, 2, 3, 4, 5, 6};  // two for each of three lanes
  std::array<uint8_t, 3> small{7, 8, 9};

  void SetUp() override {
    values.add(reinterpret_cast<std::byte*>(pairs.data()), sizeof pairs, 3);
    values.add(reinterpret_cast<std::byte*>(small.data()), sizeof small, 3);
    values.commit();
  }
};

TEST_F(LaneValuesTest, WhatWasNotCommittedIsForgotten) {
  pairs[3] = 40;
  small[2] = 90;
  values.reset();
  EXPECT_EQ(pairs[3], 4u);
  EXPECT_EQ(small[2], 9);
  pairs[3] = 40;
  values.commit();
  pairs[3] = 0;
  values.reset();
  EXPECT_EQ(pairs[3], 40u);
}

TEST_F(LaneValuesTest, RowsOfEachLaneTravelTogether) {
  EXPECT_EQ(values.lane_bytes(), 9u);
  EXPECT_EQ(values.words(), 7u) << "27 bytes";
  std::vector<float> rows(values.words());
  auto* const bytes = reinterpret_cast<std::byte*>(rows.data());
  for (const int lane : {2, 0, 1}) values.take(lane, bytes + 9 * lane);
  pairs.fill(0);
  small.fill(0);
  values.put(rows);
  EXPECT_EQ(pairs, (std::array<uint32_t, 6>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(small, (std::array<uint8_t, 3>{7, 8, 9}));
}

TEST_F(LaneValuesTest, RowsAreAsManyAsLanes) {
  EXPECT_TRUE(values.check(3).ok());
  EXPECT_FALSE(values.check(4).ok());
  EXPECT_TRUE(LaneValues().check(5).ok());
}

TEST(LaneState, IsATensorOfItsOwnThatTheProgramCannotReach) {
  State state;
  std::array<float, 8> program{};
  std::array<float, 8> other{};
  ASSERT_TRUE(state.add_per_lane("hidden", program.data(), DType::kFloat32, {2, 4}).ok());
  ASSERT_TRUE(state.add_replicated("w", other.data(), DType::kFloat32, {8}).ok());
  program[5] = 1;
  EXPECT_EQ(state.contents()[0][5 * sizeof(float) + 3], std::byte{0}) << "not committed";
  state.lane_values().commit();
  EXPECT_NE(state.contents()[0][5 * sizeof(float) + 3], std::byte{0});
  EXPECT_EQ(state.tensors()[0].shape, (std::vector<int64_t>{2, 4}));
}

TEST(LaneState, MisuseIsNamed) {
  State state;
  std::array<float, 8> memory{};
  const auto refused = [&](Status status, const char* sentence) {
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, ErrorCode::kMisuse);
    EXPECT_THAT(status.error().message, HasSubstr(sentence));
  };
  refused(state.add_per_lane("a", memory.data(), DType::kFloat32, {}), "begins with the number of lanes");
  refused(state.add_per_lane("a", memory.data(), DType::kFloat32, {0, 8}), "begins with the number of lanes");
  refused(state.add_per_lane("a", memory.data(), DType::kFloat32, {2, 0}), "one element or more");
  refused(state.add_per_lane("a", nullptr, DType::kFloat32, {2, 4}), "null pointer");
  ASSERT_TRUE(state.add_per_lane("a", memory.data(), DType::kFloat32, {2, 4}).ok());
  refused(state.add_per_lane("a", memory.data(), DType::kFloat32, {2, 4}), "two tensors are named 'a'");
  refused(state.add_replicated("b", &memory[7], DType::kFloat32, {1}), "share memory");
  refused(state.add_per_lane("c", &memory[1], DType::kFloat32, {1, 1}), "share memory");
  float more = 0;
  refused(state.add_per_lane("c", &more, DType::kFloat32, {1, 1}),
          "has 1 rows, and the value per lane before it 2");
  State plain;
  ASSERT_TRUE(plain.add_replicated("a", memory.data(), DType::kFloat32, {2, 4}).ok());
  EXPECT_NE(plain.fingerprint(), state.fingerprint()) << "who registers it otherwise is no member";
  EXPECT_NE(plain.description(), state.description()) << "and is told why";
  std::array<float, 8> other{};
  State one, another;
  ASSERT_TRUE(one.add_per_lane("a", memory.data(), DType::kFloat32, {2, 4}).ok());
  ASSERT_TRUE(one.add_replicated("b", other.data(), DType::kFloat32, {2, 4}).ok());
  ASSERT_TRUE(another.add_replicated("a", memory.data(), DType::kFloat32, {2, 4}).ok());
  ASSERT_TRUE(another.add_per_lane("b", other.data(), DType::kFloat32, {2, 4}).ok());
  EXPECT_NE(one.fingerprint(), another.fingerprint());
}

// ---- whole runs

class LaneRuns : public testing_agents::WorkerRuns {};

constexpr const char* kSteps = "100";

// What lane_worker's generators are when each lane has drawn what it had to: 2 microbatches of 1000 in 100
// steps.
std::string generators_at_the_end() {
  std::string text = "generators";
  for (uint64_t lane = 0; lane < 4; ++lane) {
    uint64_t state = 88172645463325252ULL + lane;
    for (int i = 0; i < 100 * 2 * 1000; ++i) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
    }
    text += " " + std::to_string(state);
  }
  return text;
}

TEST_F(LaneRuns, KilledWorkersLeaveTheValuesOfAnUntouchedRun) {
  const std::string untouched = run("alone", 1, {kSteps, "1"});
  ASSERT_THAT(untouched, HasSubstr(generators_at_the_end()));
  const std::string killed = run("killed", 3, {kSteps, "3", "step:5", "update:20", "step:33", "update:50"});
  for (const char* place : {"step:5", "update:20", "step:33", "update:50"})
    EXPECT_TRUE(std::filesystem::exists(folder_ + "/killed/died." + place)) << place;
  EXPECT_THAT(said_, HasSubstr("learner level")) << "one joined";
  size_t lines = 0;
  std::istringstream text(killed);
  for (std::string line; std::getline(text, line); ++lines) EXPECT_EQ(line + "\n", untouched);
  EXPECT_GE(lines, 2u) << said_;
}

TEST_F(LaneRuns, AResumedRunGoesOnWithTheValuesThatWereSaved) {
  const std::string untouched = run("alone", 1, {kSteps, "1"});
  run("resumed", 2, {"40", "2"});
  const std::string halfway = testing_agents::file_text(folder_ + "/resumed/results");
  // Started again though it was done: it makes no step, and has the values all the same.
  EXPECT_EQ(run("resumed", 2, {"40", "2"}), halfway + halfway);
  std::filesystem::remove(folder_ + "/resumed/results");
  const std::string resumed = run("resumed", 3, {kSteps, "3"});
  EXPECT_THAT(said_, HasSubstr("version 40"));
  EXPECT_EQ(resumed, untouched + untouched + untouched);
}

}  // namespace
}  // namespace muster
