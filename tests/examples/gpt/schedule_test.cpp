#include "examples/gpt/schedule.h"

#include <gtest/gtest.h>

namespace gpt {
namespace {

TEST(Schedule, WarmsUpThenFallsAlongHalfACosine) {
  const Schedule s{.steps = 110, .warmup_steps = 10, .peak = 2.0, .floor_share = 0.1};
  EXPECT_FLOAT_EQ(learning_rate(s, 0), 0.2f);
  EXPECT_FLOAT_EQ(learning_rate(s, 9), 2.0f);
  EXPECT_FLOAT_EQ(learning_rate(s, 10), 2.0f);
  EXPECT_FLOAT_EQ(learning_rate(s, 60), 0.2f + 1.8f / 2);
  EXPECT_NEAR(learning_rate(s, 109), 0.2f, 1e-3);
  EXPECT_FLOAT_EQ(learning_rate(s, 5000), 0.2f);
  for (size_t step = 10; step < 120; ++step) EXPECT_GE(learning_rate(s, step), learning_rate(s, step + 1));
}

TEST(Schedule, BearsRunsWithoutWarmUpAndRunsThatAreAllWarmUp) {
  EXPECT_FLOAT_EQ(learning_rate({.steps = 5, .warmup_steps = 0, .peak = 1}, 0), 1.0f);
  EXPECT_FLOAT_EQ(learning_rate({.steps = 5, .warmup_steps = 10, .peak = 1}, 4), 0.5f);
  EXPECT_FLOAT_EQ(learning_rate({.steps = 0, .warmup_steps = 0, .peak = 1, .floor_share = 0.5}, 0), 0.5f);
}

}  // namespace
}  // namespace gpt
