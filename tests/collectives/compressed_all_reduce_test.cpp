// The fast mode's compressed operations: every world against one that is computed here by the codecs'
// reference implementation, over whole slices and without messages; what error feedback conserves; what
// failures leave as it was.
#include "collectives/compressed_all_reduce.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>

#include "tests/collectives/world.h"
#include "tests/forwarding_transport.h"
#include "tests/support/failing_new.h"

namespace muster {
namespace {

using codec::CodecId;
using Vector = std::vector<float>;

constexpr uint64_t kSeed = 0x0FED'CBA9'8765'4321;
constexpr CodecId kCodecs[] = {CodecId::kBf16,  CodecId::kFp16,   CodecId::kInt8, CodecId::kInt4,
                               CodecId::kMxfp8, CodecId::kOneBit, CodecId::kTopK};

struct Problem {
  CodecId codec;
  size_t count;
  bool feedback = true;
  bool average = true;
  int steps = 3;
  float (*gradient)(int rank, int step, size_t i) = nullptr;
};

std::string text_of(const Problem& problem) {
  return std::string(codec::codec_of(problem.codec).name) + " × " + std::to_string(problem.count) +
         (problem.feedback ? ", with" : ", without") + " feedback, " + (problem.average ? "avg" : "sum");
}

float usual(int rank, int step, size_t i) {
  const uint64_t bits =
      mix64(static_cast<uint64_t>(rank) * 1'000'003 + static_cast<uint64_t>(step) * 7919 + i);
  const double fraction = static_cast<double>(bits >> 40) * 0x1.0p-24 - 0.4;
  return static_cast<float>(fraction * std::exp2(static_cast<double>(bits % 8) - 10));
}

// What no arithmetic likes, in blocks of its own.
float special(int rank, int step, size_t i) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  switch (i / codec::kGrainMax % 5) {
    case 0:
      return -0.0F;
    case 1:
      return i % codec::kGrainMax == 3 && rank == 0 ? std::numeric_limits<float>::quiet_NaN()
                                                    : usual(rank, step, i);
    case 2:
      return i % codec::kGrainMax == 200 ? (rank % 2 == 0 ? kInfinity : -kInfinity) : usual(rank, step, i);
    case 3:
      return 1e-39F * static_cast<float>(i % 7);  // subnormal
    default:
      return std::numeric_limits<float>::max() * (i % 2 == 0 ? 0.9F : -0.5F);
  }
}

Vector gradient_of(const Problem& problem, int rank, int step) {
  Vector values(problem.count);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = (problem.gradient != nullptr ? problem.gradient : usual)(rank, step, i);
  return values;
}

CompressedCall call_of(const Problem& problem, int step) {
  return {.codec = problem.codec,
          .average = problem.average,
          .seed = kSeed,
          .step = static_cast<uint64_t>(step),
          .tensor = 5};
}

// One range, encoded by the reference.
struct Encoded {
  std::vector<uint8_t> scales, payload;
  codec::Planes planes() const { return {scales.data(), payload.data()}; }
};
Encoded encode(const Problem& problem, ElementRange range, const float* values, float* residual,
               const RandomSlot& slot) {
  const codec::Codec& codec = codec::reference_of(problem.codec);
  Encoded encoded;
  encoded.scales.resize(codec::scales_bytes_of(codec.shape, range.size()) + 1);
  encoded.payload.resize(codec::payload_bytes_of(codec.shape, range.size()) + 1);
  codec.encode({values, problem.feedback ? residual : nullptr, encoded.scales.data(), encoded.payload.data(),
                range.size(), range.begin, !problem.feedback, slot});
  return encoded;
}

// What a world does, in plain loops: results and residuals of each step, and the sums before the second
// encoding.
struct Model {
  std::vector<Residuals> residuals;
  std::vector<Vector> results, sums;
};

void model_slice(const Problem& problem, int step, int owner, const std::vector<Vector>& gradients,
                 Model& model, Vector& result, Vector& sum) {
  const int ranks = static_cast<int>(gradients.size());
  const ElementRange range = owned_slice(problem.count, owner, ranks);
  const uint8_t stage = problem.average ? 0 : 2;
  const auto slot = [&](int lane, uint8_t which) {
    return RandomSlot{kSeed, static_cast<uint64_t>(step), 5, static_cast<uint16_t>(lane), which};
  };
  std::vector<Encoded> parts;
  for (int rank = 0; rank < ranks; ++rank) {
    const auto r = static_cast<size_t>(rank);
    parts.push_back(encode(problem, range, gradients[r].data() + range.begin,
                           model.residuals[r].contribution.data() + range.begin, slot(rank, stage)));
  }
  codec::Decode all =
      codec::decode_one({}, sum.data() + range.begin, range.size(), range.begin, slot(0, stage));
  for (size_t r = 0; r < parts.size(); ++r) all.sources[r] = parts[r].planes();
  all.source_count = static_cast<uint32_t>(ranks);
  all.factor = problem.average ? 1.0F / static_cast<float>(ranks) : 1.0F;
  const codec::Codec& codec = codec::reference_of(problem.codec);
  codec.decode(all);
  const RandomSlot back = slot(ranks, static_cast<uint8_t>(stage + 1));
  const Encoded mean = encode(problem, range, sum.data() + range.begin,
                              model.residuals[static_cast<size_t>(owner)].mean.data(), back);
  codec.decode(
      codec::decode_one(mean.planes(), result.data() + range.begin, range.size(), range.begin, back));
}

Model model_of(const Problem& problem, int ranks) {
  Model model;
  for (int rank = 0; rank < ranks; ++rank) model.residuals.emplace_back(problem.count, rank, ranks);
  for (int step = 0; step < problem.steps; ++step) {
    std::vector<Vector> gradients;
    for (int rank = 0; rank < ranks; ++rank) gradients.push_back(gradient_of(problem, rank, step));
    Vector result(problem.count), sum(problem.count);
    for (int owner = 0; owner < ranks; ++owner)
      model_slice(problem, step, owner, gradients, model, result, sum);
    model.results.push_back(std::move(result));
    model.sums.push_back(std::move(sum));
  }
  return model;
}

bool equal_bits(std::span<const float> a, std::span<const float> b) {
  return std::ranges::equal(
      a, b, {}, [](float x) { return std::bit_cast<uint32_t>(x); },
      [](float x) { return std::bit_cast<uint32_t>(x); });
}

// One step, in place, committed.
Status reduce(const Member& member, const Problem& problem, int step, CompressedCollectives& collectives,
              Feedback* feedback, Vector& values) {
  std::vector<int> suspects;
  MUSTER_TRY(collectives.all_reduce(call_of(problem, step), values.data(), values.data(), values.size(),
                                    feedback, member.soon()));
  MUSTER_TRY(collectives.wait(member.soon(), suspects));
  return feedback != nullptr ? feedback->commit() : ok();
}

void expect_model(const Member& member, const Problem& problem, const Model& model) {
  Feedback feedback(Residuals(problem.count, member.rank, member.size));
  CompressedCollectives collectives(member.group);
  for (int step = 0; step < problem.steps; ++step) {
    Vector values = gradient_of(problem, member.rank, step);
    member.expect_ok(
        reduce(member, problem, step, collectives, problem.feedback ? &feedback : nullptr, values),
        text_of(problem));
    member.expect(equal_bits(values, model.results[static_cast<size_t>(step)]),
                  text_of(problem) + ": other bits in step " + std::to_string(step));
  }
  const Residuals& wanted = model.residuals[static_cast<size_t>(member.rank)];
  member.expect(equal_bits(feedback.residuals().contribution, wanted.contribution) &&
                    equal_bits(feedback.residuals().mean, wanted.mean),
                text_of(problem) + ": other residuals");
}

void test_worlds(Medium medium, std::initializer_list<int> worlds, const std::vector<Problem>& problems) {
  for (const int ranks : worlds) {
    std::vector<Model> models;
    for (const Problem& problem : problems) models.push_back(model_of(problem, ranks));
    run_world(medium, ranks, [&](Member& member) {
      for (size_t p = 0; p < problems.size(); ++p) expect_model(member, problems[p], models[p]);
    });
  }
}

class CompressedAllReduce : public testing::TestWithParam<CodecId> {};

TEST_P(CompressedAllReduce, SameBitsOnAllRanksAsTheReference) {
  std::vector<Problem> problems;
  for (const size_t count : {size_t{0}, size_t{1}, size_t{255}, size_t{1023}, size_t{1024}, size_t{1025},
                             size_t{5003}, size_t{9217}}) {
    problems.push_back({GetParam(), count});
    problems.push_back({GetParam(), count, true, false});
    if (!reduces_without_feedback(GetParam())) continue;
    problems.push_back({GetParam(), count, false});
    problems.push_back({GetParam(), count, false, false});
  }
  test_worlds(Medium::kInProcess, {1, 2, 3, 4, 5}, problems);
  test_worlds(Medium::kNodeThreads, {1, 2, 3, 4, 5}, problems);
  test_worlds(Medium::kNodesThreads, {4}, problems);
}

TEST_P(CompressedAllReduce, SpecialValues) {
  std::vector<Problem> problems = {{GetParam(), 5 * codec::kGrainMax + 77, true, true, 3, special}};
  if (reduces_without_feedback(GetParam())) {
    problems.push_back(problems[0]);
    problems.back().feedback = false;
  }
  test_worlds(Medium::kInProcess, {1, 2, 3, 5}, problems);
  const Model model = model_of(problems[0], 3);
  const Vector& result = model.results.back();
  EXPECT_TRUE(std::isnan(result[codec::kGrainMax + 3]));
  EXPECT_TRUE(std::isnan(result[2 * codec::kGrainMax + 200]));
  for (const Residuals& residuals : model.residuals) {
    EXPECT_TRUE(std::ranges::all_of(residuals.contribution, [](float e) { return std::isfinite(e); }));
    EXPECT_TRUE(std::ranges::all_of(residuals.mean, [](float e) { return std::isfinite(e); }));
  }
}

// What was to be applied minus what was applied is the debt: (1/W)·Σe + E, or Σe + E.
TEST_P(CompressedAllReduce, FeedbackConservesWhatIsRoundedOff) {
  constexpr int kRanks = 3, kSteps = 40;
  constexpr size_t kCount = 3000;
  for (const bool average : {true, false}) {
    const Problem problem{GetParam(), kCount, true, average, kSteps};
    const Model model = model_of(problem, kRanks);
    test_worlds(Medium::kNodeThreads, {kRanks}, {problem});
    std::vector<double> missing(kCount), magnitude(kCount);
    for (int step = 0; step < kSteps; ++step) {
      for (int rank = 0; rank < kRanks; ++rank) {
        const Vector gradient = gradient_of(problem, rank, step);
        for (size_t i = 0; i < kCount; ++i) missing[i] += gradient[i] / (average ? double{kRanks} : 1.0);
        for (size_t i = 0; i < kCount; ++i)
          magnitude[i] = std::max<double>(magnitude[i], std::abs(gradient[i]));
      }
      for (size_t i = 0; i < kCount; ++i) missing[i] -= model.results[static_cast<size_t>(step)][i];
    }
    double largest_debt = 0, largest_gradient = 0;
    for (size_t i = 0; i < kCount; ++i) {
      double debt = 0, scale = 0;
      for (const Residuals& one : model.residuals) {
        debt += one.contribution[i] / (average ? double{kRanks} : 1.0);
        scale += std::abs(one.contribution[i]) + magnitude[i];
        const ElementRange own = one.owned();
        if (i >= own.begin && i < own.end) debt += one.mean[i - own.begin];
      }
      // Each step rounds a few numbers of about this magnitude; blocks may hold ones that are 2^8 larger.
      ASSERT_NEAR(missing[i], debt, kSteps * 0x1p-22 * (scale + 0x1p-3)) << i << (average ? " avg" : " sum");
      largest_debt = std::max(largest_debt, std::abs(debt));
      largest_gradient = std::max(largest_gradient, magnitude[i]);
    }
    // It does not grow with the steps: their sum would be forty gradients.
    EXPECT_LT(largest_debt, 12 * largest_gradient);
  }
}

TEST_P(CompressedAllReduce, HalvesAreTheWhole) {
  const Problem problem{GetParam(), 7001};
  const Model model = model_of(problem, 3);
  for (const Medium medium : {Medium::kInProcess, Medium::kNodeThreads}) {
    run_world(medium, 3, [&](Member& member) {
      Feedback feedback(Residuals(problem.count, member.rank, member.size));
      CompressedCollectives collectives(member.group);
      const ElementRange own = owned_slice(problem.count, member.rank, member.size);
      for (int step = 0; step < problem.steps; ++step) {
        const Vector in = gradient_of(problem, member.rank, step);
        Vector sum(own.size()), out(problem.count);
        std::vector<int> suspects;
        member.expect_ok(collectives.reduce_scatter(call_of(problem, step), in.data(), sum.data(),
                                                    problem.count, &feedback, member.soon()),
                         "reduce_scatter");
        member.expect_ok(collectives.wait(member.soon(), suspects), "reduce_scatter");
        member.expect(
            equal_bits(sum, std::span(model.sums[static_cast<size_t>(step)]).subspan(own.begin, own.size())),
            "another sum");
        member.expect_ok(collectives.all_gather(call_of(problem, step), sum.data(), out.data(), problem.count,
                                                &feedback, member.soon()),
                         "all_gather");
        member.expect_ok(collectives.wait(member.soon(), suspects), "all_gather");
        member.expect_ok(feedback.commit(), "commit");
        member.expect(equal_bits(out, model.results[static_cast<size_t>(step)]), "another result");
      }
      member.expect(feedback.residuals() == model.residuals[static_cast<size_t>(member.rank)],
                    "other residuals");
    });
  }
}

std::string codec_name(const testing::TestParamInfo<CodecId>& info) {
  std::string name(codec::codec_of(info.param).name);
  std::erase_if(name, [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; });
  return name;
}
INSTANTIATE_TEST_SUITE_P(All, CompressedAllReduce, testing::ValuesIn(kCodecs), codec_name);

TEST(CompressedFailures, AnEmptyVectorHasEmptyHalves) {
  run_world(Medium::kInProcess, 3, [](Member& member) {
    CompressedCollectives collectives(member.group);
    std::vector<int> suspects;
    const CompressedCall call{.codec = CodecId::kInt8};
    member.expect_ok(collectives.reduce_scatter(call, nullptr, nullptr, 0, nullptr, member.soon()), "begin");
    member.expect_ok(collectives.wait(member.soon(), suspects), "reduce_scatter");
    // One grain: rank 0 has it all, and the others nothing to write to.
    Vector values(700, 1.0F);
    float* const out = member.rank == 0 ? values.data() : nullptr;
    member.expect_ok(collectives.reduce_scatter(call, values.data(), out, 700, nullptr, member.soon()),
                     "begin");
    member.expect_ok(collectives.wait(member.soon(), suspects), "reduce_scatter");
    member.expect_ok(collectives.all_gather(call, out, values.data(), 700, nullptr, member.soon()), "begin");
    member.expect_ok(collectives.wait(member.soon(), suspects), "all_gather");
    member.expect(values == Vector(700, 1.0F), "another mean");
  });
}

// Rank 1 of 3 stops before its second operation; the others' residuals are those after the first.
void test_lost(Medium medium, const std::function<void(Member&)>& stop, const std::vector<int>& blamed,
               const WorldOptions& options = {}) {
  const Problem problem{CodecId::kInt4, 300'000};
  run_world(
      medium, 3,
      [&](Member& member) {
        Feedback feedback(Residuals(problem.count, member.rank, member.size));
        CompressedCollectives collectives(member.group);
        Vector values = gradient_of(problem, member.rank, 0);
        member.expect_ok(reduce(member, problem, 0, collectives, &feedback, values), "the first one");
        const Residuals before = feedback.residuals();
        Vector in = gradient_of(problem, member.rank, 1), out(problem.count);
        member.expect_ok(collectives.all_reduce(call_of(problem, 1), in.data(), out.data(), problem.count,
                                                &feedback, member.soon()),
                         "begin");
        if (member.rank == 1) return stop(member);
        std::vector<int> suspects;
        const Status status = collectives.wait(member.soon(), suspects);
        member.expect(!status.ok() && status.error().message.find("rank 1") != std::string::npos,
                      "rank 1 is not named: " + (status.ok() ? "ok" : status.error().message));
        member.expect(suspects == blamed, "other suspects: " + status.error().message);
        member.expect(feedback.residuals() == before, "the residuals have changed");
        member.expect(!feedback.commit().ok(), "what failed can be committed");
        // Nor is the object of use to a dead group; it says so.
        member.expect_ok(collectives.all_reduce(call_of(problem, 2), in.data(), out.data(), problem.count,
                                                &feedback, member.soon()),
                         "begin again");
        member.expect(!collectives.wait(member.soon(), suspects).ok(), "a dead group works");
      },
      options);
}

TEST(CompressedFailures, AKilledRankLeavesTheResidualsAlone) {
  WorldOptions options;
  options.spawn.expect_killed = {1};
  test_lost(
      Medium::kNodeProcesses, [](Member&) { kill(getpid(), SIGKILL); }, {1}, options);
}

TEST(CompressedFailures, ARevokedGroupLeavesTheResidualsAlone) {
  for (const Medium medium : {Medium::kInProcess, Medium::kNodeThreads}) {
    test_lost(
        medium,
        [](Member& member) {
          member.group.revoke({ErrorCode::kReconfigure, "rank 1 was told to stop"}, Group::Tell::kPeers);
        },
        {});
  }
}

// After the lanes are exchanged rank 1 does not come for the rest, which needs it.
TEST(CompressedFailures, ADeadlineNamesWhoDidNotCome) {
  const Problem problem{CodecId::kInt8, 10'000};
  run_world(Medium::kInProcess, 2, [&](Member& member) {
    Feedback feedback(Residuals(problem.count, member.rank, member.size));
    CompressedCollectives collectives(member.group);
    Vector values = gradient_of(problem, member.rank, 0);
    std::vector<int> suspects;
    member.expect_ok(collectives.all_reduce(call_of(problem, 0), values.data(), values.data(), values.size(),
                                            &feedback, member.soon()),
                     "begin");
    if (member.rank == 1) {
      while (!member.group.failure()) usleep(1000);
      return;
    }
    const Status status = collectives.wait(now() + kSecond / 5, suspects);
    member.expect(!status.ok() && status.error().message.find("rank 1") != std::string::npos,
                  "rank 1 is not named: " + (status.ok() ? "ok" : status.error().message));
    member.expect(suspects == std::vector<int>{1}, "other suspects");
    member.expect(feedback.residuals() == Residuals(problem.count, 0, 2), "the residuals have changed");
  });
}

// Rank 1 has no memory for its second chunk, while the first is on its way: the other is told at once.
TEST(CompressedFailures, ARankWithoutMemoryTellsTheOthers) {
  const Problem problem{CodecId::kInt8, 2'400'000, false};
  run_world(Medium::kNodeThreads, 2, [&](Member& member) {
    CompressedCollectives collectives(member.group);
    Vector values = gradient_of(problem, member.rank, 0);
    const auto begin = [&] {
      return collectives.all_reduce(call_of(problem, 0), values.data(), values.data(), values.size(), nullptr,
                                    member.soon());
    };
    std::vector<int> suspects;
    if (member.rank == 1) {
      large_allocations_left = 3;
      EXPECT_THROW((void)begin(), std::bad_alloc);
      large_allocations_left = -1;
      member.expect(!collectives.wait(member.soon(), suspects).ok(), "it is still under way");
      return;
    }
    const Instant begun = now();
    member.expect_ok(begin(), "begin");
    const Status status = collectives.wait(member.soon(), suspects);
    member.expect(!status.ok() && status.error().code == ErrorCode::kReconfigure &&
                      status.error().message.find("rank 1 could not go on") != std::string::npos,
                  "not told: " + (status.ok() ? "ok" : status.error().message));
    member.expect(now() - begun < 15 * kSecond, "it waited for the deadline");
  });
}

// The only chunk that was begun ends well; the operation must not.
TEST(CompressedFailures, ChunksThatADeadlineLeavesOutAreTold) {
  constexpr size_t kCount = 1'200'000;
  run_world(Medium::kInProcess, 1, [](Member& member) {
    Feedback feedback(Residuals(kCount, 0, 1));
    CompressedCollectives collectives(member.group);
    Vector in(kCount, 1.0F), out(kCount);
    std::vector<int> suspects;
    member.expect_ok(collectives.reduce_scatter({}, in.data(), out.data(), kCount, &feedback, now()),
                     "begin");
    const Status status = collectives.wait(member.soon(), suspects);
    member.expect(!status.ok() && status.error().message.find("the deadline passed") != std::string::npos,
                  "not told: " + (status.ok() ? "ok" : status.error().message));
    member.expect(!feedback.commit().ok(), "what was left out can be committed");
  });
}

// Changes a byte in the middle of a long message, the `which`-th of those.
class DamagingTransport final : public testing_support::ForwardingTransport {
 public:
  DamagingTransport(std::unique_ptr<Transport> inner, std::atomic<int>& countdown)
      : ForwardingTransport(std::move(inner)), countdown_(countdown) {}
  TransferId send(TransportPeer peer, uint64_t tag, MessagePtr message) override {
    if (message->size > 3000 && countdown_.fetch_sub(1) == 1) {
      auto damaged = std::make_shared<Message>(message->size);
      std::copy_n(message->data, message->size, damaged->data);
      damaged->data[message->size / 2] ^= std::byte{4};
      message = std::move(damaged);
    }
    return ForwardingTransport::send(peer, tag, std::move(message));
  }

 private:
  std::atomic<int>& countdown_;
};

// A message of the way there, or of the way back, is damaged: who gets it says whose it is, and the other
// rank is told.
TEST(CompressedFailures, ADamagedMessageIsNamedAndEndsIt) {
  const Problem problem{CodecId::kInt8, 20'000};
  for (const int which : {1, 3}) {
    std::atomic<int> countdown = which, named = 0, told = 0;
    const auto wrap = [&](std::unique_ptr<Transport> inner) {
      return std::make_unique<DamagingTransport>(std::move(inner), countdown);
    };
    run_world(Medium::kInProcess, 2,
              [&](Member& member) {
                Feedback feedback(Residuals(problem.count, member.rank, member.size));
                CompressedCollectives collectives(member.group);
                Vector values = gradient_of(problem, member.rank, 0);
                std::vector<int> suspects;
                member.expect_ok(collectives.all_reduce(call_of(problem, 0), values.data(), values.data(),
                                                        values.size(), &feedback, member.soon()),
                                 "begin");
                Status status = collectives.wait(member.soon(), suspects);
                if (status.ok()) status = member.group.barrier(member.soon()).wait();
                const std::string said = status.ok() ? "ok" : status.error().message;
                member.expect(said.find("is unusable") != std::string::npos &&
                                  said.find("ask its sender again") != std::string::npos,
                              "says " + said);
                const std::string sender = "what rank " + std::to_string(1 - member.rank) + " sent";
                (said.find(sender) != std::string::npos ? named : told) += 1;
                if (said.find(sender) != std::string::npos)
                  member.expect(suspects == std::vector<int>{1 - member.rank},
                                "the sender is not the suspect");
              },
              {.wrap = wrap});
    EXPECT_EQ(named, 1);
    EXPECT_EQ(told, 1);
    EXPECT_LE(countdown, 0);
  }
}

// What ranks disagree about ends it on both, at once, with a sentence that names both and says what this one
// asked for.
TEST(CompressedFailures, WhatDiffersBetweenRanksIsTold) {
  struct Difference {
    const char* what;
    CompressedCall call;
    size_t count = 3000;
    bool feedback = true;
  };
  const CompressedCall base{.codec = CodecId::kBf16};
  CompressedCall codec = base, op = base, seed = base, step = base, tensor = base;
  codec.codec = CodecId::kFp16;  // as many bytes
  op.average = false;
  seed.seed = 1;
  step.step = 1;
  tensor.tensor = 1;
  const Difference differences[] = {{"fp16", codec},
                                    {"sum", op},
                                    {"seed 1", seed},
                                    {"step 1", step},
                                    {"tensor 1", tensor},
                                    {"3001 elements", base, 3001},
                                    {"without error feedback", base, 3000, false}};
  for (const Difference& difference : differences) {
    for (const Medium medium : {Medium::kInProcess, Medium::kNodeThreads}) {
      for (const bool second_half : {false, true}) {
        run_world(medium, 2, [&](Member& member) {
          const bool differs = member.rank == 1;
          const size_t count = differs ? difference.count : 3000;
          Feedback own(Residuals(count, member.rank, member.size));
          CompressedCollectives collectives(member.group);
          Feedback* const feedback = !differs || difference.feedback ? &own : nullptr;
          Vector values(count, 1.0F);
          std::vector<int> suspects;
          const CompressedCall& call = differs ? difference.call : base;
          member.expect_ok(second_half ? collectives.all_gather(call, values.data(), values.data(), count,
                                                                feedback, member.soon())
                                       : collectives.all_reduce(call, values.data(), values.data(), count,
                                                                feedback, member.soon()),
                           "begin");
          const Status status = collectives.wait(member.soon(), suspects);
          if (status.ok()) return member.fail(std::string(difference.what) + " was not told");
          const std::string& said = status.error().message;
          member.expect(
              status.error().code == ErrorCode::kMisuse && said.find("ranks 0 and 1") != std::string::npos,
              "says " + said);
          member.expect(!differs || said.find(difference.what) != std::string::npos,
                        std::string(difference.what) + " is not in: " + said);
        });
      }
    }
  }
}

// Another operation of the group in its place.
TEST(CompressedFailures, AnotherOperationInItsPlaceIsTold) {
  run_world(Medium::kNodeThreads, 2, [](Member& member) {
    Vector values(3000, 1.0F);
    Status status = ok();
    if (member.rank == 0) {
      status =
          member.group
              .all_reduce(values.data(), values.data(), 3000, DType::kFloat32, ReduceOp::kAvg, member.soon())
              .wait();
    } else {
      CompressedCollectives collectives(member.group);
      std::vector<int> suspects;
      member.expect_ok(collectives.all_reduce({}, values.data(), values.data(), 3000, nullptr, member.soon()),
                       "begin");
      status = collectives.wait(member.soon(), suspects);
    }
    member.expect(
        !status.ok() && status.error().code == ErrorCode::kMisuse &&
            status.error().message.find("ranks 0 and 1 called different operations") != std::string::npos,
        "not told");
  });
}

TEST(CompressedFailures, WrongCallsBeginNothing) {
  run_world(Medium::kInProcess, 2, [](Member& member) {
    Vector values(3000, 1.0F);
    Feedback right(Residuals(3000, member.rank, 2)), short_one(Residuals(2999, member.rank, 2)),
        of_three(Residuals(3000, member.rank, 3)), of_the_other(Residuals(3000, 1 - member.rank, 2));
    CompressedCollectives collectives(member.group);
    const auto refused = [&](CompressedCall call, float* out, Feedback* feedback, const std::string& said) {
      const Status status = collectives.all_reduce(call, values.data(), out, 3000, feedback, member.soon());
      member.expect(!status.ok() && status.error().code == ErrorCode::kMisuse &&
                        status.error().message.find(said) != std::string::npos,
                    said + ": " + (status.ok() ? "taken" : status.error().message));
    };
    float* const out = values.data();
    std::vector<int> suspects;
    member.expect(!collectives.wait(member.soon(), suspects).ok(), "a wait for nothing");
    refused({.codec = CodecId::kOneBit}, out, nullptr, "needs error feedback");
    refused({.codec = CodecId::kTopK}, out, nullptr, "needs error feedback");
    refused({.codec = CodecId::kShared16}, out, &right, "is not for it");
    refused({.codec = static_cast<CodecId>(0)}, out, &right, "unknown codec 0");
    refused({.tensor = uint32_t{1} << 30}, out, &right, "below 2^30");
    refused({}, nullptr, &right, "a buffer is null");
    refused({}, out, &short_one, "2999 elements");
    refused({}, out, &of_three, "of 3, the vector");
    refused({}, out, &of_the_other, "make new ones");
    member.expect_ok(collectives.all_reduce({}, out, out, 3000, &right, member.soon()), "begin");
    refused({}, out, nullptr, "was not waited for");
    CompressedCollectives second(member.group);
    member.expect(!second.all_reduce({}, out, out, 3000, &right, member.soon()).ok(),
                  "residuals are used twice at a time");
    member.expect_ok(collectives.wait(member.soon(), suspects), "what was right");
    member.expect(values == Vector(3000, 1.0F), "another mean");
  });
}

// The step again, as after a view change: the same bits, from the same residuals.
TEST(CompressedFailures, WhatIsNotCommittedIsRepeated) {
  const Problem problem{CodecId::kOneBit, 5000};
  run_world(Medium::kNodeThreads, 3, [&](Member& member) {
    Feedback feedback(Residuals(problem.count, member.rank, member.size));
    CompressedCollectives collectives(member.group);
    Vector first = gradient_of(problem, member.rank, 0);
    member.expect_ok(reduce(member, problem, 0, collectives, &feedback, first), "step 0");
    Vector results[2];
    for (Vector& result : results) {
      result = gradient_of(problem, member.rank, 1);
      std::vector<int> suspects;
      member.expect_ok(collectives.all_reduce(call_of(problem, 1), result.data(), result.data(),
                                              result.size(), &feedback, member.soon()),
                       "begin");
      member.expect_ok(collectives.wait(member.soon(), suspects), "wait");
    }
    member.expect(equal_bits(results[0], results[1]), "a repeated step has other bits");
    member.expect_ok(feedback.commit(), "commit");
  });
}

// Two at a time, each with its own residuals, begun and ended in the same order.
TEST(CompressedFailures, SeveralUnderWay) {
  const Problem problems[] = {{CodecId::kInt8, 40'000, true, true, 1},
                              {CodecId::kInt4, 9'000, true, true, 1}};
  const Model models[] = {model_of(problems[0], 3), model_of(problems[1], 3)};
  run_world(Medium::kInProcess, 3, [&](Member& member) {
    Vector a = gradient_of(problems[0], member.rank, 0), b = gradient_of(problems[1], member.rank, 0);
    Feedback of_a(Residuals(a.size(), member.rank, 3)), of_b(Residuals(b.size(), member.rank, 3));
    CompressedCollectives first(member.group), second(member.group);
    std::vector<int> suspects;
    member.expect_ok(
        first.all_reduce(call_of(problems[0], 0), a.data(), a.data(), a.size(), &of_a, member.soon()),
        "begin");
    member.expect_ok(
        second.all_reduce(call_of(problems[1], 0), b.data(), b.data(), b.size(), &of_b, member.soon()),
        "begin");
    member.expect_ok(first.wait(member.soon(), suspects), "first");
    member.expect_ok(second.wait(member.soon(), suspects), "second");
    member.expect(equal_bits(a, models[0].results[0]) && equal_bits(b, models[1].results[0]), "other bits");
  });
}

TEST(CompressedTraffic, GoesInSeveralChunks) {
  test_worlds(Medium::kInProcess, {3}, {{CodecId::kInt8, 2'400'003, true, true, 1}});
  test_worlds(Medium::kNodeThreads, {2}, {{CodecId::kOneBit, 1'300'001, true, true, 1}});
  test_worlds(Medium::kNodeThreads, {2}, {{CodecId::kTopK, 1'300'001, true, true, 2}});
}

// More ranks than one decoding takes: small whole numbers, so that the sum is exact in any order.
TEST(CompressedSums, AreOfAnyNumberOfRanks) {
  constexpr size_t kCount = 2500;
  for (const int ranks : {1, 63, 64, 65, 130}) {
    const LaneCodec codec({.compression = {CodecId::kBf16, kSeed}, .ranks = ranks, .average = false});
    const ElementRange range{1024, 1024 + kCount};
    std::vector<ByteBuffer> messages;
    std::vector<codec::Planes> planes;
    Vector wanted(kCount), sum(kCount, -1.0F);
    for (int rank = 0; rank < ranks; ++rank) {
      Vector values(kCount);
      for (size_t i = 0; i < kCount; ++i)
        values[i] = static_cast<float>((i + static_cast<size_t>(rank)) % 100);
      for (size_t i = 0; i < kCount; ++i) wanted[i] += values[i];
      ByteBuffer& message = messages.emplace_back(codec.message_bytes(kCount));
      codec.encode_lane(1, rank, range, values.data(), nullptr, message);
      planes.push_back(codec.open(1, rank, range, rank, message).value());
    }
    codec.sum_lanes(1, range, planes, sum.data());
    EXPECT_EQ(sum, wanted) << ranks;
  }
}

// Twice an encoded vector, but for what stays on its rank.
TEST(CompressedTraffic, IsTwiceTheEncodedVector) {
  constexpr int kRanks = 4;
  constexpr size_t kCount = 1'500'000;
  for (const auto& [codec, width] : {std::pair{CodecId::kBf16, 2.0},
                                     {CodecId::kInt8, 1.016},
                                     {CodecId::kInt4, 0.516},
                                     {CodecId::kMxfp8, 1.031},
                                     {CodecId::kOneBit, 0.129},
                                     {CodecId::kTopK, 0.043}}) {
    std::atomic<uint64_t> bytes = 0;
    run_world(Medium::kInProcess, kRanks,
              [&, which = codec](Member& member) {
                const Problem problem{which, kCount};
                Feedback feedback(Residuals(kCount, member.rank, kRanks));
                CompressedCollectives collectives(member.group);
                Vector values(kCount, 1.0F);
                member.expect_ok(reduce(member, problem, 0, collectives, &feedback, values), "reduce");
              },
              {.wrap = [&](std::unique_ptr<Transport> inner) {
                return std::make_unique<testing_support::CountingTransport>(std::move(inner), bytes);
              }});
    const double each = static_cast<double>(bytes) / kRanks / kCount;
    const double around = 6000.0 / kCount;  // headers, and frames of the transport
    EXPECT_NEAR(each, 2 * width * (kRanks - 1) / kRanks, std::max(0.03 * width, around))
        << codec::codec_of(codec).name;
  }
}

}  // namespace
}  // namespace muster
