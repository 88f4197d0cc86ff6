// Residuals as values: what a change of ranks conserves, what bytes are refused, when a commit counts.
#include "collectives/residuals.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "kernels/codec.h"

namespace muster {
namespace {

using Random = std::mt19937;

// Of many magnitudes, so that roundings show; now and then 0, subnormal, or large.
float any_residual(Random& random) {
  const int kind = static_cast<int>(random() % 16);
  if (kind == 0) return 0.0F;
  if (kind == 1) return std::bit_cast<float>(static_cast<uint32_t>(random() % 0x0080'0000));
  const float unit = static_cast<float>(random()) * 0x1p-32F - 0.5F;
  return std::ldexp(unit, static_cast<int>(random() % 60) - 40);
}

std::vector<Residuals> any_set(Random& random, size_t count, int ranks) {
  std::vector<Residuals> all;
  for (int rank = 0; rank < ranks; ++rank) {
    Residuals& one = all.emplace_back(count, rank, ranks);
    for (float& value : one.contribution) value = any_residual(random);
    for (float& value : one.mean) value = any_residual(random);
  }
  return all;
}

// Some stay, in any order, some leave, some are new.
std::vector<int> any_origins(Random& random, int before, int after) {
  std::vector<int> origins;
  for (int rank = 0; rank < std::max(before, after); ++rank) origins.push_back(rank < before ? rank : -1);
  std::shuffle(origins.begin(), origins.end(), random);
  origins.resize(static_cast<size_t>(after));
  for (int& origin : origins) {
    if (random() % 4 == 0) origin = -1;
  }
  return origins;
}

std::vector<Residuals> merged(const std::vector<Residuals>& all, const std::vector<int>& origins,
                              bool average) {
  std::vector<const Residuals*> given;
  for (const Residuals& one : all) given.push_back(&one);
  std::vector<Residuals> result;
  for (int rank = 0; rank < static_cast<int>(origins.size()); ++rank) {
    auto one = merge_residuals(given, origins, rank, average);
    EXPECT_TRUE(one.ok()) << one.error().message;
    if (one.ok()) result.push_back(std::move(*one));
  }
  return result;
}

// The sum, and the sum of magnitudes, in more digits than residuals have.
struct Total {
  long double sum = 0, magnitude = 0;
};
Total total_of(const std::vector<Residuals>& all, size_t i) {
  Total total;
  for (const Residuals& one : all) {
    total.sum += static_cast<long double>(one.contribution[i]);
    total.magnitude += std::abs(static_cast<long double>(one.contribution[i]));
  }
  return total;
}

std::vector<float> whole_mean(const std::vector<Residuals>& all) {
  std::vector<float> whole;
  for (const Residuals& one : all) whole.insert(whole.end(), one.mean.begin(), one.mean.end());
  return whole;
}

// As residuals.h states it, with 1/W and 1/W' where it is a mean.
void expect_conserved(const std::vector<Residuals>& before, const std::vector<Residuals>& after,
                      bool average) {
  for (size_t i = 0; i < before[0].count(); ++i) {
    const Total old = total_of(before, i), merged = total_of(after, i);
    const long double w = average ? static_cast<long double>(before.size()) : 1;
    const long double w2 = average ? static_cast<long double>(after.size()) : 1;
    const long double bound = 0x1p-24L * merged.magnitude / w2 + 0x1p-52L * old.magnitude +
                              0x1p-149L * static_cast<long double>(after.size()) / w2;
    ASSERT_LE(std::abs(merged.sum / w2 - old.sum / w), bound) << "element " << i;
  }
  const std::vector<float> left = whole_mean(before), right = whole_mean(after);
  ASSERT_EQ(left.size(), right.size());
  for (size_t i = 0; i < left.size(); ++i)
    ASSERT_EQ(std::bit_cast<uint32_t>(left[i]), std::bit_cast<uint32_t>(right[i])) << "mean of element " << i;
}

TEST(Residuals, AMergeConservesTheDebt) {
  Random random(7);
  for (int round = 0; round < 300; ++round) {
    const size_t count = round % 10 == 0 ? random() % 3 : random() % 6000;
    const int before = 1 + static_cast<int>(random() % 9), after = 1 + static_cast<int>(random() % 9);
    const bool average = random() % 3 != 0;
    const std::vector<Residuals> all = any_set(random, count, before);
    const std::vector<int> origins = any_origins(random, before, after);
    SCOPED_TRACE(std::to_string(round) + ": " + std::to_string(before) + " to " + std::to_string(after) +
                 ", " + std::to_string(count) + " elements");
    expect_conserved(all, merged(all, origins, average), average);
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(Residuals, WhoStaysAmongAsManyKeepsItsBits) {
  Random random(8);
  const std::vector<Residuals> all = any_set(random, 5001, 4);
  EXPECT_EQ(merged(all, {0, 1, 2, 3}, true), all);
  const std::vector<Residuals> turned = merged(all, {3, 0, 1, 2}, true);
  EXPECT_EQ(turned[0].contribution, all[3].contribution);
  // One of three leaves: its part goes to the first that stays, and all are scaled.
  const std::vector<Residuals> three = any_set(random, 10, 3), two = merged(three, {0, 2}, true);
  for (size_t i = 0; i < 10; ++i) {
    const double both = static_cast<double>(three[0].contribution[i]) + three[1].contribution[i];
    EXPECT_EQ(two[0].contribution[i], static_cast<float>(both * (2.0 / 3)));
    EXPECT_EQ(two[1].contribution[i], static_cast<float>(three[2].contribution[i] * (2.0 / 3)));
  }
}

TEST(Residuals, StayFinite) {
  std::vector<Residuals> all = {Residuals(1, 0, 2), Residuals(1, 1, 2)};
  all[0].contribution[0] = all[1].contribution[0] = std::numeric_limits<float>::max();
  EXPECT_EQ(merged(all, {0}, false)[0].contribution[0], std::numeric_limits<float>::max());
}

void expect_refused(const Result<Residuals>& result, const std::string& said) {
  ASSERT_FALSE(result.ok()) << said;
  EXPECT_EQ(result.error().code, ErrorCode::kMisuse);
  EXPECT_NE(result.error().message.find(said), std::string::npos) << result.error().message;
}

TEST(Residuals, AMergeRefusesWhatIsNoSet) {
  const Residuals first(100, 0, 2), second(100, 1, 2), other(101, 1, 2);
  const Residuals* set[] = {&first, &second};
  const auto merge = [](std::span<const Residuals* const> all, std::vector<int> origins, int rank) {
    return merge_residuals(all, origins, rank, true);
  };
  EXPECT_TRUE(merge(set, {0, 1}, 0).ok());
  expect_refused(merge({}, {0}, 0), "none to merge");
  expect_refused(merge(std::span(set).first(1), {0}, 0), "is of rank 0 of 2");
  const Residuals* turned[] = {&second, &first};
  expect_refused(merge(turned, {0, 1}, 0), "number 0 of 2 is of rank 1 of 2");
  const Residuals* sizes[] = {&first, &other};
  expect_refused(merge(sizes, {0, 1}, 0), "rank 0 has 100 elements, rank 1 101");
  expect_refused(merge(set, {0, 0}, 0), "rank 1 is said to have been rank 0 of 2");
  expect_refused(merge(set, {2}, 0), "to have been rank 2");
  expect_refused(merge(set, {-2}, 0), "to have been rank -2");
  expect_refused(merge(set, {0, 1}, 2), "rank 2 is not a new rank");
  expect_refused(merge(set, {}, 0), "rank 0 is not a new rank");
}

TEST(Residuals, SlicesCoverTheVectorAtGrains) {
  for (const size_t count :
       {size_t{0}, size_t{1}, size_t{1023}, size_t{1024}, size_t{1025}, size_t{70'001}}) {
    for (int ranks = 1; ranks <= 9; ++ranks) {
      size_t covered = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const ElementRange slice = owned_slice(count, rank, ranks);
        EXPECT_EQ(slice.begin % codec::kGrainMax, 0U);
        EXPECT_EQ(slice.begin, slice.size() > 0 ? covered : 0);
        covered += slice.size();
      }
      EXPECT_EQ(covered, count);
    }
  }
}

ByteBuffer bytes_of_residuals(const Residuals& residuals) {
  ByteBuffer bytes(residual_bytes(residuals));
  write_residuals(residuals, bytes);
  return bytes;
}

TEST(Residuals, ComeBackFromTheirBytes) {
  Random random(9);
  for (const size_t count : {size_t{0}, size_t{1}, size_t{3001}}) {
    for (const Residuals& one : any_set(random, count, 3)) {
      const auto read = read_residuals(bytes_of_residuals(one));
      ASSERT_TRUE(read.ok()) << read.error().message;
      EXPECT_EQ(*read, one);
    }
  }
}

TEST(Residuals, DamagedBytesAreRefused) {
  Random random(10);
  const ByteBuffer good = bytes_of_residuals(any_set(random, 20, 2)[0]);
  for (size_t byte = 0; byte < good.size(); ++byte) {
    ByteBuffer bad = good;
    bad[byte] ^= std::byte{0x40};
    const auto read = read_residuals(bad);
    ASSERT_FALSE(read.ok()) << byte;
    EXPECT_EQ(read.error().code, ErrorCode::kDropCheckpoint);
  }
  for (size_t bytes = 0; bytes < good.size(); ++bytes)
    EXPECT_FALSE(read_residuals(ByteSpan(good).first(bytes)).ok()) << bytes;
  ByteBuffer longer = good;
  longer.resize(good.size() + 4);
  EXPECT_FALSE(read_residuals(longer).ok());
  Residuals infinite(20, 0, 2);
  infinite.contribution[7] = std::numeric_limits<float>::infinity();
  EXPECT_FALSE(read_residuals(bytes_of_residuals(infinite)).ok());
}

TEST(Feedback, ACommitCountsOnceAndOnlyWhatEndedWell) {
  Feedback feedback(Residuals(2000, 0, 2));
  const Residuals zeros = feedback.residuals();
  EXPECT_FALSE(feedback.commit().ok()) << "nothing was done";

  const auto change = [&](bool well, float value) {
    ASSERT_TRUE(feedback.begin({.contribution = true, .mean = true}).ok());
    EXPECT_FALSE(feedback.begin({.contribution = true}).ok()) << "in use";
    EXPECT_FALSE(feedback.commit().ok()) << "under way";
    std::fill_n(feedback.contribution({0, 2000}), 2000, value);
    std::fill_n(feedback.mean(feedback.residuals().owned()), feedback.residuals().mean.size(), value);
    feedback.end(well);
  };
  change(false, 1);
  EXPECT_EQ(feedback.residuals(), zeros);
  EXPECT_FALSE(feedback.commit().ok()) << "it failed";
  change(true, 2);
  change(false, 3);
  EXPECT_FALSE(feedback.commit().ok()) << "what ended well was begun again since";
  change(true, 4);
  EXPECT_EQ(feedback.residuals(), zeros);
  EXPECT_TRUE(feedback.commit().ok());
  EXPECT_EQ(feedback.residuals().contribution, std::vector<float>(2000, 4));
  EXPECT_EQ(feedback.residuals().mean, std::vector<float>(1024, 4));
  EXPECT_FALSE(feedback.commit().ok()) << "twice";

  // What an operation finds is what counts, not what one that failed has left.
  change(false, 5);
  ASSERT_TRUE(feedback.begin({.contribution = true}).ok());
  EXPECT_EQ(feedback.contribution({10, 11})[10], 4);
  feedback.end(true);
  EXPECT_TRUE(feedback.commit().ok());
  EXPECT_EQ(feedback.residuals().mean, std::vector<float>(1024, 4)) << "no operation changed it";
}

}  // namespace
}  // namespace muster
