// Error feedback in the canonical mode: means and residuals of every world, division of lanes and cut in
// buckets against what plain loops compute here by the codecs' reference implementation, over whole vectors.
#include "collectives/lane_feedback.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "collectives/reducer.h"
#include "tests/collectives/world.h"

namespace muster {
namespace {

using codec::CodecId;
using Vector = std::vector<float>;

constexpr uint64_t kSeed = 77;
constexpr int kMicrobatches = 10, kLanes = 5;
constexpr CodecId kCodecs[] = {CodecId::kBf16,  CodecId::kFp16,   CodecId::kInt8, CodecId::kInt4,
                               CodecId::kMxfp8, CodecId::kOneBit, CodecId::kTopK};

float gradient(uint64_t step, int microbatch, size_t i) {
  const uint64_t bits = mix64((step * 1000 + static_cast<uint64_t>(microbatch)) * 1'000'003 + i);
  return static_cast<float>(bits >> 40) * 0x1p-24F - 0.45F;
}

Vector gradient_of(uint64_t step, int microbatch, size_t count) {
  Vector values(count);
  for (size_t i = 0; i < count; ++i) values[i] = gradient(step, microbatch, i);
  return values;
}

// All that there is of a vector's residuals, whoever has it, and what a step makes of it.
struct Memory {
  explicit Memory(size_t count) {
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes.emplace_back(count);
      means.emplace_back(mean_part(count, lane, kLanes).size());
    }
    next_lanes = lanes;
    next_means = means;
  }
  LaneResiduals of(int lane) {
    const auto i = static_cast<size_t>(lane);
    return {lanes[i].data(), next_lanes[i].data(), means[i].data(), next_means[i].data()};
  }
  void commit() {
    lanes.swap(next_lanes);
    means.swap(next_means);
  }
  Vector mean() const {
    Vector whole;
    for (const Vector& part : means) whole.insert(whole.end(), part.begin(), part.end());
    return whole;
  }
  std::vector<Vector> lanes, means, next_lanes, next_means;
};

Vector tree_sum(const std::vector<Vector>& terms, size_t begin, size_t end) {
  if (end - begin == 1) return terms[begin];
  const size_t middle = begin + (end - begin + 1) / 2;
  Vector left = tree_sum(terms, begin, middle);
  const Vector right = tree_sum(terms, middle, end);
  for (size_t i = 0; i < left.size(); ++i) left[i] += right[i];
  return left;
}

// The same by the definition: one rank, whole vectors, no messages.
class Reference {
 public:
  Reference(CodecId codec, size_t count) : codec_(codec), mean_(count), lanes_(kLanes, Vector(count)) {}

  Vector step(uint64_t step) {
    constexpr int kPerLane = kMicrobatches / kLanes;
    std::vector<Vector> decoded;
    for (int lane = 0; lane < kLanes; ++lane) {
      std::vector<Vector> terms;
      for (int m = lane * kPerLane; m < (lane + 1) * kPerLane; ++m)
        terms.push_back(gradient_of(step, m, mean_.size()));
      decoded.push_back(
          through(step, tree_sum(terms, 0, terms.size()), lane, lanes_[static_cast<size_t>(lane)]));
    }
    Vector mean = tree_sum(decoded, 0, decoded.size());
    for (float& value : mean) value *= 1.0F / kMicrobatches;
    return through(step, mean, kLanes, mean_);
  }

  const Vector& mean_residual() const { return mean_; }
  const std::vector<Vector>& lane_residuals() const { return lanes_; }

 private:
  Vector through(uint64_t step, const Vector& values, int lane, Vector& residual) const {
    const codec::Codec& codec = codec::reference_of(codec_);
    const RandomSlot slot{kSeed, step, 0, static_cast<uint16_t>(lane),
                          lane == kLanes ? uint8_t{1} : uint8_t{0}};
    std::vector<uint8_t> scales(codec::scales_bytes_of(codec.shape, values.size()) + 1);
    std::vector<uint8_t> payload(codec::payload_bytes_of(codec.shape, values.size()) + 1);
    codec.encode(
        {values.data(), residual.data(), scales.data(), payload.data(), values.size(), 0, false, slot});
    Vector decoded(values.size());
    codec.decode(codec::decode_one({scales.data(), payload.data()}, decoded.data(), values.size(), 0, slot));
    return decoded;
  }

  CodecId codec_;
  Vector mean_;
  std::vector<Vector> lanes_;
};

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return std::ranges::equal(
      a, b, {}, [](float x) { return std::bit_cast<uint32_t>(x); },
      [](float x) { return std::bit_cast<uint32_t>(x); });
}

// Lanes dealt out in turn, from lane `turn` on: neighbours are with different ranks.
LaneLists dealt_out(int ranks, int turn) {
  LaneLists lists(static_cast<size_t>(ranks));
  for (int lane = 0; lane < kLanes; ++lane) lists[static_cast<size_t>((lane + turn) % ranks)].push_back(lane);
  return lists;
}

struct Task {
  CodecId codec;
  size_t count;
  size_t bucket;
};

struct Rank {
  Rank(Member& member_of_world, const Task& task, const LaneLists& lists, Memory& memory)
      : member(member_of_world),
        feedback(task.count, lists, member.rank),
        reducer(member.group, layout(lists), task.count, task.bucket, Compression{task.codec, kSeed},
                host_sums(Reducer::accumulation(layout(lists), feedback), task.count), 0, &feedback) {
    point(memory);
  }
  static CanonicalLayout layout(const LaneLists& lists) {
    return {kMicrobatches, kLanes, assign_lanes(kLanes, static_cast<int>(lists.size()))};
  }
  void point(Memory& memory) {
    std::vector<LaneResiduals> mine;
    for (const int lane : feedback.mine()) mine.push_back(memory.of(lane));
    feedback.set(std::move(mine));
  }
  Status begin(uint64_t step) {
    reducer.begin(step);
    for (const int lane : feedback.mine()) {
      for (int m = lane * 2; m < lane * 2 + 2; ++m) {
        Vector values = gradient_of(step, m, feedback.count());
        MUSTER_TRY(reducer.add(m, 0, values, member.soon()));
      }
    }
    return reducer.begin_rest(member.soon(), 20 * kSecond);
  }
  Status wait() {
    std::vector<int> suspects;
    return reducer.wait(member.soon(), suspects);
  }
  Status step(uint64_t step) {
    MUSTER_TRY(begin(step));
    return wait();
  }

  Member& member;
  LaneFeedback feedback;
  Reducer reducer;
};

class LaneFeedbackOf : public testing::TestWithParam<CodecId> {};

// A world of another size and division for each step or two, every step made twice, as after a view change.
TEST_P(LaneFeedbackOf, SameBitsOnEveryWorldAsTheReference) {
  for (const Task& task :
       {Task{GetParam(), 6000, 1 << 20}, Task{GetParam(), 7001, 1500}, Task{GetParam(), 900, 1}}) {
    Memory memory(task.count);
    Reference reference(task.codec, task.count);
    uint64_t step = 0;
    for (const int ranks : {3, 1, 5, 2, 6, 4}) {
      const LaneLists lists = dealt_out(ranks, static_cast<int>(step));
      const Vector wanted = reference.step(step);
      run_world(Medium::kInProcess, ranks, [&](Member& member) {
        Rank rank(member, task, lists, memory);
        for (const char* round : {"first", "again"}) {
          member.expect_ok(rank.step(step), round);
          member.expect(same_bits(rank.reducer.mean(), wanted), std::string("other bits, ") + round);
          member.expect(rank.feedback.complete(step), "not all residuals are there");
        }
      });
      memory.commit();
      ++step;
      for (size_t lane = 0; lane < kLanes; ++lane)
        EXPECT_TRUE(same_bits(memory.lanes[lane], reference.lane_residuals()[lane])) << ranks << lane;
      EXPECT_TRUE(same_bits(memory.mean(), reference.mean_residual())) << ranks;
    }
  }
}

TEST_P(LaneFeedbackOf, SameBitsOverSharedMemory) {
  const Task task{GetParam(), 6000, 2048};
  Memory memory(task.count);
  Reference reference(task.codec, task.count);
  const Vector wanted[] = {reference.step(0), reference.step(1)};
  for (const Medium medium : {Medium::kNodeThreads, Medium::kNodesThreads}) {
    Memory own = memory;
    for (uint64_t step = 0; step < 2; ++step) {
      run_world(medium, 4, [&](Member& member) {
        Rank rank(member, task, dealt_out(4, 1), own);
        member.expect_ok(rank.step(step), "reduce");
        member.expect(same_bits(rank.reducer.mean(), wanted[step]), "other bits");
      });
      own.commit();
    }
  }
}

// What was applied, and what is still owed, are what was to be applied.
TEST_P(LaneFeedbackOf, NothingIsLost) {
  constexpr size_t kCount = 3000;
  constexpr uint64_t kSteps = 40;
  const Task task{GetParam(), kCount, 1 << 20};
  Memory memory(kCount);
  std::vector<double> applied(kCount), due(kCount);
  for (uint64_t step = 0; step < kSteps; ++step) {
    Vector mean;
    run_world(Medium::kInProcess, 2, [&](Member& member) {
      Rank rank(member, task, dealt_out(2, 0), memory);
      member.expect_ok(rank.step(step), "reduce");
      if (member.rank == 0) mean.assign(rank.reducer.mean().begin(), rank.reducer.mean().end());
    });
    memory.commit();
    for (size_t i = 0; i < kCount; ++i) applied[i] += static_cast<double>(mean[i]);
    for (int m = 0; m < kMicrobatches; ++m) {
      for (size_t i = 0; i < kCount; ++i) due[i] += static_cast<double>(gradient(step, m, i)) / kMicrobatches;
    }
  }
  const Vector owed = memory.mean();
  double worst = 0, worst_without = 0;
  for (size_t i = 0; i < kCount; ++i) {
    double debt = static_cast<double>(owed[i]);
    for (const Vector& lane : memory.lanes) debt += static_cast<double>(lane[i]) / kMicrobatches;
    worst = std::max(worst, std::abs(applied[i] + debt - due[i]));
    worst_without = std::max(worst_without, std::abs(applied[i] - due[i]));
  }
  // Magnitudes up to 2^7 (residuals of topk after 40 steps), some ten roundings to float32 a step, of each of
  // 5 lanes, which count a tenth.
  EXPECT_LT(worst, static_cast<double>(kSteps) * 10 * 0x1p-24 * 0x1p4);
  if (GetParam() != CodecId::kFp16) {
    EXPECT_GT(worst_without, worst * 10);
  }
}

std::string codec_name(const testing::TestParamInfo<CodecId>& info) {
  std::string name(codec::codec_of(info.param).name);
  std::erase(name, '-');
  return name;
}
INSTANTIATE_TEST_SUITE_P(All, LaneFeedbackOf, testing::ValuesIn(kCodecs), codec_name);

// Parts of all lanes are the vector, in order, cut where every codec's blocks end.
TEST(LaneFeedbackTest, PartsOfTheMeanAreWholeGrains) {
  for (const size_t count : {size_t{1}, size_t{1024}, size_t{5000}, size_t{12'345}}) {
    size_t covered = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const ElementRange part = mean_part(count, lane, kLanes);
      if (part.size() == 0) continue;
      EXPECT_EQ(part.begin, covered);
      EXPECT_EQ(part.begin % codec::kGrainMax, 0U);
      covered = part.end;
    }
    EXPECT_EQ(covered, count);
  }
}

// Who has encoded all of its part can make the update without having seen the reduction's end; who has not
// cannot, since nobody can have seen it.
TEST(LaneFeedbackTest, ResidualsAreCompleteOnceAllIsEncoded) {
  const Task task{CodecId::kInt8, 4000, 1024};
  Memory memory(task.count);
  run_world(Medium::kInProcess, 3, [&](Member& member) {
    Rank rank(member, task, dealt_out(3, 0), memory);
    member.expect(!rank.feedback.complete(0), "complete before the first step");
    member.expect_ok(rank.begin(5), "begin");
    member.expect(!rank.feedback.complete(5), "complete before the mean is encoded");
    member.expect_ok(rank.wait(), "wait");
    member.expect(rank.feedback.complete(5) && !rank.feedback.complete(4), "of another step");
    rank.reducer.begin(5);
    member.expect(!rank.feedback.complete(5), "complete when the step has begun again");
  });
}

// Two ranks do all but the end; the third is gone before it sends its lanes.
TEST(LaneFeedbackTest, AReductionThatFailsLeavesTheResidualsAsTheyWere) {
  const Task task{CodecId::kOneBit, 4000, 1024};
  Memory memory(task.count);
  Reference reference(task.codec, task.count);
  const Vector first = reference.step(0);
  const std::vector<Vector> before = reference.lane_residuals();
  const Vector second = reference.step(1);
  run_world(Medium::kInProcess, 3, [&](Member& member) {
    Rank rank(member, task, dealt_out(3, 0), memory);
    member.expect_ok(rank.step(0), "step 0");
  });
  memory.commit();
  run_world(Medium::kInProcess, 3, [&](Member& member) {
    Rank rank(member, task, dealt_out(3, 0), memory);
    if (member.rank == 2) {
      member.group.revoke(Error{ErrorCode::kReconfigure, "gone"}, Group::Tell::kPeers);
      return;
    }
    const bool ended_well = rank.begin(1).ok() && rank.wait().ok();
    member.expect(!ended_well, "a reduction without all lanes has ended well");
    member.expect(!rank.feedback.complete(1), "complete without all lanes");
  });
  for (size_t lane = 0; lane < kLanes; ++lane)
    EXPECT_TRUE(same_bits(memory.lanes[lane], before[lane])) << lane;
  run_world(Medium::kInProcess, 2, [&](Member& member) {
    Rank rank(member, task, dealt_out(2, 1), memory);
    member.expect_ok(rank.step(1), "step 1, again");
    member.expect(same_bits(rank.reducer.mean(), second), "other bits");
  });
}

}  // namespace
}  // namespace muster
