// Who is said to differ, and in what.
#include "runtime/probe/verdict.h"

#include <gmock/gmock.h>

namespace muster::probe {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Answer answer(uint64_t libm, uint64_t program = 0) {
  Answer made;
  made.host.fill(1);
  made.host[static_cast<size_t>(Part::kFunctions32)] = libm;
  made.program = program;
  return made;
}

TEST(Verdict, NobodyDiffersFromTheSame) {
  EXPECT_FALSE(find_difference({}));
  const Answer one = answer(1);
  EXPECT_FALSE(find_difference(std::vector{one}));
  EXPECT_FALSE(find_difference(std::vector{one, one, one}));
}

TEST(Verdict, TheFewDifferFromTheMany) {
  const auto found = find_difference(std::vector{answer(2), answer(1), answer(1), answer(1, 7), answer(1)});
  ASSERT_TRUE(found);
  EXPECT_EQ(found->reference, 1U);
  EXPECT_THAT(found->others, ElementsAre(0, 3));
  EXPECT_EQ(found->how[0], "float32 functions of the C library");
  EXPECT_EQ(found->how[3], "the program's own results");
  EXPECT_THAT(found->how[4], IsEmpty());
}

TEST(Verdict, OfTwoHalvesTheFirstIsRight) {
  const auto found = find_difference(std::vector{answer(1), answer(2), answer(2), answer(1)});
  ASSERT_TRUE(found);
  EXPECT_THAT(found->others, ElementsAre(1, 2));
}

TEST(Verdict, PartsAreListed) {
  Answer other = answer(1, 3);
  other.host[static_cast<size_t>(Part::kDenormals)] = 5;
  other.host[static_cast<size_t>(Part::kFunctions32)] = 5;
  const auto found = find_difference(std::vector{answer(1), answer(1), other});
  ASSERT_TRUE(found);
  EXPECT_EQ(found->how[2], "denormals, float32 functions of the C library and the program's own results");
}

// As many ways to compute as ranks: the worst that counting can meet.
TEST(Verdict, AllMayDiffer) {
  std::vector<Answer> answers;
  for (uint64_t i = 0; i < 200; ++i) answers.push_back(answer(i));
  const auto found = find_difference(answers);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->reference, 0U);
  EXPECT_EQ(found->others.size(), 199U);
}

}  // namespace
}  // namespace muster::probe
