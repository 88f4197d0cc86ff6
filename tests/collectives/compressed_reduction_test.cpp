// Reductions with a codec: every world against a sum that is computed here in plain loops, by the codecs'
// reference implementation, over whole vectors and without messages.
#include "collectives/compressed_reduction.h"

#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <limits>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "collectives/reducer.h"
#include "collectives/slice_exchange.h"
#include "tests/collectives/world.h"
#include "tests/forwarding_transport.h"

namespace muster {
namespace {

using codec::CodecId;

constexpr uint64_t kSeed = 0x1234'5678'9ABC'DEF0;
constexpr CodecId kOffered[] = {CodecId::kBf16, CodecId::kFp16, CodecId::kInt8, CodecId::kInt4,
                                CodecId::kMxfp8};
constexpr size_t kGrain = 256;  // of all of them

struct Problem {
  CodecId codec;
  int microbatches;
  int lanes;
  size_t count;
  uint64_t step = 0;
  size_t bucket = 1 << 20;
  float (*gradient)(int microbatch, size_t i) = nullptr;
};

std::string text_of(const Problem& problem) {
  return std::string(codec::codec_of(problem.codec).name) + ", " + std::to_string(problem.microbatches) +
         "/" + std::to_string(problem.lanes) + ", " + std::to_string(problem.count) +
         " elements in buckets of " + std::to_string(problem.bucket);
}

float usual(int microbatch, size_t i) {
  const uint64_t bits = mix64(static_cast<uint64_t>(microbatch) * 1'000'003 + i);
  const double fraction = static_cast<double>(bits >> 40) * 0x1.0p-24 - 0.5;
  return static_cast<float>(fraction * std::exp2(static_cast<double>(bits % 8) - 10));
}

// What no arithmetic likes; each kind in blocks of its own, and some side by side.
float special(int microbatch, size_t i) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const size_t kind = i / kGrain % 8;
  switch (kind) {
    case 0:
      return -0.0F;
    case 1:
      return 1e-40F * static_cast<float>(i % 7);  // subnormal
    case 2:
      return i % kGrain == 3 && microbatch == 1 ? kNan : usual(microbatch, i);
    case 3:
      return i % kGrain == 200 ? (microbatch % 2 == 0 ? kInfinity : -kInfinity) : usual(microbatch, i);
    case 4:
      return i % kGrain == 9 ? -kInfinity : -0.0F;
    case 5:
      return std::numeric_limits<float>::max() * (i % 2 == 0 ? 1.0F : -0.5F);
    case 6:
      return 1e-37F * usual(microbatch, i);
    default:
      return std::bit_cast<float>(0xFF8ABCDEU + static_cast<uint32_t>(microbatch));  // NaNs of many kinds
  }
}

using Vector = std::vector<float>;

Vector tree_sum(const std::vector<Vector>& terms, size_t begin, size_t end) {
  if (end - begin == 1) return terms[begin];
  const size_t middle = begin + (end - begin + 1) / 2;
  Vector left = tree_sum(terms, begin, middle);
  const Vector right = tree_sum(terms, middle, end);
  for (size_t i = 0; i < left.size(); ++i) left[i] += right[i];
  return left;
}

// Encoded and decoded by the reference, as one range.
Vector through(const Problem& problem, const Vector& values, int lane) {
  const codec::Codec& codec = codec::reference_of(problem.codec);
  const RandomSlot slot{kSeed, problem.step, 0, static_cast<uint16_t>(lane),
                        lane == problem.lanes ? uint8_t{1} : uint8_t{0}};
  std::vector<uint8_t> scales(codec::scales_bytes_of(codec.shape, values.size()) + 1);
  std::vector<uint8_t> payload(codec::payload_bytes_of(codec.shape, values.size()) + 1);
  codec.encode({values.data(), nullptr, scales.data(), payload.data(), values.size(), 0, true, slot});
  Vector decoded(values.size());
  codec.decode(codec::decode_one({scales.data(), payload.data()}, decoded.data(), values.size(), 0, slot));
  return decoded;
}

Vector gradient_of(const Problem& problem, int microbatch) {
  Vector values(problem.count);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = (problem.gradient != nullptr ? problem.gradient : usual)(microbatch, i);
  return values;
}

Vector expected(const Problem& problem) {
  const int per_lane = problem.microbatches / problem.lanes;
  std::vector<Vector> lanes;
  for (int lane = 0; lane < problem.lanes; ++lane) {
    std::vector<Vector> terms;
    for (int m = lane * per_lane; m < (lane + 1) * per_lane; ++m) terms.push_back(gradient_of(problem, m));
    lanes.push_back(through(problem, tree_sum(terms, 0, terms.size()), lane));
  }
  Vector mean = tree_sum(lanes, 0, lanes.size());
  for (float& value : mean) value *= 1.0F / static_cast<float>(problem.microbatches);
  return through(problem, mean, problem.lanes);
}

Reducer make_reducer(const Member& member, const Problem& problem) {
  return {member.group,
          {problem.microbatches, problem.lanes, assign_lanes(problem.lanes, member.size)},
          problem.count,
          problem.bucket,
          Compression{problem.codec, kSeed}};
}

// A microbatch's gradient in two parts, the last elements first on some ranks.
Status add_all(const Member& member, const Problem& problem, Reducer& reducer) {
  const LaneRange mine = assign_lanes(problem.lanes, member.size)[static_cast<size_t>(member.rank)];
  const int per_lane = problem.microbatches / problem.lanes;
  for (int m = mine.begin * per_lane; m < mine.end * per_lane; ++m) {
    Vector values = gradient_of(problem, m);
    const size_t cut = values.size() / 3;
    const bool backward = member.rank % 2 == 0;
    for (const bool tail : {backward, !backward}) {
      const std::span<float> piece = tail ? std::span(values).subspan(cut) : std::span(values).first(cut);
      if (piece.empty() && !values.empty()) continue;
      MUSTER_TRY(reducer.add(m, tail ? cut : 0, piece, member.soon()));
      if (values.empty()) break;
    }
  }
  return ok();
}

Status reduce(const Member& member, const Problem& problem, Reducer& reducer) {
  reducer.begin(problem.step);
  MUSTER_TRY(add_all(member, problem, reducer));
  MUSTER_TRY(reducer.begin_rest(member.soon(), 20 * kSecond));
  std::vector<int> suspects;
  return reducer.wait(member.soon(), suspects);
}

void expect_equal(const Member& member, const Problem& problem, std::span<const float> out,
                  const Vector& wanted) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (std::bit_cast<uint32_t>(out[i]) != std::bit_cast<uint32_t>(wanted[i]))
      return member.fail(text_of(problem) + ": other bits at " + std::to_string(i) + ": " +
                         std::to_string(out[i]) + ", not " + std::to_string(wanted[i]));
  }
}

void test_world(Medium medium, int ranks, const std::vector<Problem>& problems,
                const std::vector<Vector>& wanted) {
  run_world(medium, ranks, [&](Member& member) {
    for (size_t p = 0; p < problems.size(); ++p) {
      Reducer reducer = make_reducer(member, problems[p]);
      member.expect_ok(reduce(member, problems[p], reducer), text_of(problems[p]));
      expect_equal(member, problems[p], reducer.mean(), wanted[p]);
    }
  });
}

std::vector<Vector> expected_of(const std::vector<Problem>& problems) {
  std::vector<Vector> wanted;
  wanted.reserve(problems.size());
  for (const Problem& problem : problems) wanted.push_back(expected(problem));
  return wanted;
}

class Compressed : public testing::TestWithParam<CodecId> {};

TEST_P(Compressed, SameBitsOnEveryWorldAsTheReference) {
  std::vector<Problem> problems;
  for (const size_t count : {size_t{0}, size_t{1}, kGrain - 1, kGrain, kGrain + 1, size_t{1023}, size_t{1024},
                             size_t{1025}, size_t{5003}})
    problems.push_back({GetParam(), 8, 8, count, 3});
  for (const auto& [microbatches, lanes] : {std::pair{1, 1}, {16, 8}, {12, 12}, {24, 3}, {4, 2}})
    problems.push_back({GetParam(), microbatches, lanes, 1500, uint64_t{1} << 33});
  for (const size_t bucket : {size_t{1}, size_t{256}, size_t{700}, size_t{5000}})
    problems.push_back({GetParam(), 16, 8, 3001, 7, bucket});
  problems.push_back({GetParam(), 16, 16, 100'003, 8, 30'000});
  const std::vector<Vector> wanted = expected_of(problems);
  for (int ranks = 1; ranks <= 8; ++ranks) test_world(Medium::kInProcess, ranks, problems, wanted);
  for (const int ranks : {1, 2, 5, 8}) test_world(Medium::kNodeThreads, ranks, problems, wanted);
}

TEST_P(Compressed, SameBitsBetweenProcesses) {
  const std::vector<Problem> problems = {{GetParam(), 8, 8, 1025, 3}, {GetParam(), 6, 6, 70'001, 4, 20'000}};
  const std::vector<Vector> wanted = expected_of(problems);
  test_world(Medium::kNodeProcesses, 3, problems, wanted);
  test_world(Medium::kUcxProcesses, 3, problems, wanted);
}

TEST_P(Compressed, SpecialValues) {
  const std::vector<Problem> problems = {{GetParam(), 8, 4, 8 * kGrain + 5, 2, 1024, special}};
  const std::vector<Vector> wanted = expected_of(problems);
  for (const int ranks : {1, 2, 3, 5}) test_world(Medium::kInProcess, ranks, problems, wanted);
  // What is not finite is still to be seen.
  EXPECT_FALSE(std::isfinite(wanted[0][2 * kGrain + 3]));
  EXPECT_TRUE(std::isnan(wanted[0][3 * kGrain + 200]));
  EXPECT_FALSE(std::isfinite(wanted[0][4 * kGrain + 9]));
  EXPECT_TRUE(std::isnan(wanted[0][7 * kGrain + 1]));
}

// Steps that follow each other in one reducer, the second one twice, as after a view change.
TEST_P(Compressed, EachStepHasItsOwnRounding) {
  const Problem first{GetParam(), 4, 4, 2000, 5, 512}, second{GetParam(), 4, 4, 2000, 6, 512};
  const Vector wanted[] = {expected(first), expected(second)};
  EXPECT_NE(wanted[0], wanted[1]);
  run_world(Medium::kInProcess, 3, [&](Member& member) {
    Reducer reducer = make_reducer(member, first);
    for (const Problem* problem : {&first, &second, &second}) {
      member.expect_ok(reduce(member, *problem, reducer), "reduce");
      expect_equal(member, *problem, reducer.mean(), wanted[problem == &second]);
    }
  });
}

#if defined(__SSE__)
TEST_P(Compressed, TheProgramsFloatModeDoesNotCount) {
  const Problem problem{GetParam(), 6, 3, 2100, 1, 1024, special};
  const Vector wanted = expected(problem);
  run_world(Medium::kInProcess, 3, [&](Member& member) {
    Reducer reducer = make_reducer(member, problem);
    const unsigned before = _mm_getcsr(), own = 0x1f80 | 0x8000 | 0x0040 | 0x6000;  // to zero, truncated
    std::vector<std::pair<int, Vector>> gradients;  // made in the ordinary mode
    const LaneRange mine = assign_lanes(3, 3)[static_cast<size_t>(member.rank)];
    for (int m = mine.begin * 2; m < mine.end * 2; ++m) gradients.emplace_back(m, gradient_of(problem, m));
    reducer.begin(problem.step);
    _mm_setcsr(own);
    Status status = ok();
    for (auto& [m, values] : gradients)
      if (status.ok()) status = reducer.add(m, 0, values, member.soon());
    if (status.ok()) status = reducer.begin_rest(member.soon(), 20 * kSecond);
    std::vector<int> suspects;
    if (status.ok()) status = reducer.wait(member.soon(), suspects);
    const bool kept = (_mm_getcsr() & ~0x3FU) == own;
    _mm_setcsr(before);
    member.expect(kept, "the program's mode was changed");
    member.expect_ok(status, "reduce");
    expect_equal(member, problem, reducer.mean(), wanted);
  });
}
#endif

std::string codec_name(const testing::TestParamInfo<CodecId>& info) {
  return std::string(codec::codec_of(info.param).name);
}
INSTANTIATE_TEST_SUITE_P(All, Compressed, testing::ValuesIn(kOffered), codec_name);

TEST(Compression, IsOfferedWhereItNeedsNoFeedback) {
  for (const CodecId id : codec::kCodecIds) {
    const bool offered = std::count(std::begin(kOffered), std::end(kOffered), id) > 0;
    EXPECT_EQ(reduces_without_feedback(id), offered) << codec::codec_of(id).name;
    if (offered) {
      EXPECT_EQ(codec::shape_of(id).grain, kGrain);
    }
  }
}

// A bucket is encoded and on its way while the rest of the last microbatch is still computed.
TEST(Compression, BeginsBeforeTheBackwardPassEnds) {
  const Problem problem{CodecId::kInt8, 2, 2, 1000, 1, 256};
  const Vector wanted = expected(problem);
  run_world(Medium::kInProcess, 3, [&](Member& member) {
    Reducer reducer = make_reducer(member, problem);
    reducer.begin(problem.step);
    if (member.rank < 2) {
      Vector values = gradient_of(problem, member.rank);
      const auto add = [&](size_t begin, size_t end) {
        member.expect_ok(
            reducer.add(member.rank, begin, std::span(values).subspan(begin, end - begin), member.soon()),
            "accumulate");
      };
      add(769, 1000);
      member.expect(reducer.buckets_begun() == 0, "a bucket is begun without its first element");
      add(768, 769);
      member.expect(reducer.buckets_begun() == 1, "the last bucket is not begun on time");
      add(0, 768);
      member.expect(reducer.buckets_begun() == 4, "not all buckets are begun");
    }
    member.expect_ok(reducer.begin_rest(member.soon(), 20 * kSecond), "begin");
    std::vector<int> suspects;
    member.expect_ok(reducer.wait(member.soon(), suspects), "reduce");
    expect_equal(member, problem, reducer.mean(), wanted);
  });
}

// Rank 1 of 2 sends rank 0 the message of its lane by hand, so that the test can do to it what a network
// does.
void test_forged(const std::function<void(const LaneCodec&, ElementRange, const Vector&, ByteBuffer&)>& forge,
                 ErrorCode code, const std::string& said) {
  const Problem problem{CodecId::kInt8, 2, 2, 1000, 4};
  run_world(Medium::kInProcess, 2, [&](Member& member) {
    if (member.rank == 0) {
      Reducer reducer = make_reducer(member, problem);
      reducer.begin(problem.step);
      member.expect_ok(add_all(member, problem, reducer), "accumulate");
      member.expect_ok(reducer.begin_rest(member.soon(), 20 * kSecond), "begin");
      std::vector<int> suspects;
      const Status status = reducer.wait(member.soon(), suspects);
      if (status.ok()) return member.fail("a forged message was taken: " + said);
      member.expect(status.error().code == code, "another kind of error: " + status.error().message);
      member.expect(status.error().message.find(said) != std::string::npos &&
                        status.error().message.find("rank 1") != std::string::npos,
                    "says '" + status.error().message + "', not '" + said + "'");
      member.expect(suspects == std::vector<int>{1}, "the sender is not named");
      return;
    }
    const LaneCodec codec({problem.codec, kSeed}, problem.microbatches, problem.lanes);
    const ElementRange whole{0, problem.count}, theirs = codec.slice(whole, 0, 2),
                                                own = codec.slice(whole, 1, 2);
    const Vector values = gradient_of(problem, 1);
    ByteBuffer message(codec.message_bytes(theirs.size())), incoming(codec.message_bytes(own.size()));
    forge(codec, theirs, values, message);
    const Work sent =
        member.group.send(message.data(), message.size(), DType::kUInt8, 0, kLaneMessageTag, member.soon());
    const Work received =
        member.group.recv(incoming.data(), incoming.size(), DType::kUInt8, 0, kLaneMessageTag, member.soon());
    (void)sent.wait();
    (void)received.wait();
    // Told at once, not at its deadline.
    const Status next = member.group.barrier(now() + 60 * kSecond).wait(member.soon());
    member.expect(!next.ok() && next.error().code == ErrorCode::kReconfigure &&
                      next.error().message.find(said) != std::string::npos,
                  "the other rank is not told of it");
  });
}

TEST(Compression, ADamagedMessageEndsTheReduction) {
  for (const size_t byte : {size_t{0}, size_t{9}, size_t{60}, size_t{66}, size_t{400}}) {
    test_forged(
        [byte](const LaneCodec& codec, ElementRange range, const Vector& values, ByteBuffer& message) {
          codec.encode_lane(4, 1, range, values.data() + range.begin, nullptr, message);
          message[byte] ^= std::byte{0x10};
        },
        ErrorCode::kReconfigure, "is unusable");
  }
}

TEST(Compression, AMessageOfAnotherStepOrLaneEndsTheReduction) {
  test_forged(
      [](const LaneCodec& codec, ElementRange range, const Vector& values, ByteBuffer& message) {
        codec.encode_lane(5, 1, range, values.data() + range.begin, nullptr, message);
      },
      ErrorCode::kReconfigure, "the ranks are at different steps");
  test_forged(
      [](const LaneCodec& codec, ElementRange range, const Vector& values, ByteBuffer& message) {
        codec.encode_lane(4, 0, range, values.data() + range.begin, nullptr, message);
      },
      ErrorCode::kMisuse, "sent lane 0");
  test_forged(
      [](const LaneCodec& codec, ElementRange range, const Vector& values, ByteBuffer& message) {
        codec.encode_lane(4, 2, range, values.data() + range.begin, nullptr, message);
      },
      ErrorCode::kMisuse, "sent the mean");
}

// Ranks that disagree about their gradients are told.
TEST(Compression, TellsOtherSizes) {
  run_world(Medium::kInProcess, 2, [](Member& member) {
    const Problem problem{CodecId::kInt8, 2, 2, member.rank == 0 ? size_t{2000} : size_t{2600}};
    Reducer reducer = make_reducer(member, problem);
    const Status status = reduce(member, problem, reducer);
    member.expect(!status.ok() && status.error().code == ErrorCode::kMisuse, "other sizes were not told");
  });
}

// Bytes that one rank of four sends in a step, on average, for each element; none: float32.
double bytes_sent(std::optional<CodecId> codec, int lanes) {
  constexpr int kRanks = 4;
  constexpr size_t kCount = 500'000, kBucket = 262'144;
  std::atomic<uint64_t> bytes = 0;
  const auto wrap = [&](std::unique_ptr<Transport> inner) {
    return std::make_unique<testing_support::CountingTransport>(std::move(inner), bytes);
  };
  run_world(Medium::kInProcess, kRanks,
            [&](Member& member) {
              std::optional<Compression> compression;
              if (codec) compression = {*codec, kSeed};
              Reducer reducer(member.group, {lanes, lanes, assign_lanes(lanes, kRanks)}, kCount, kBucket,
                              compression);
              member.expect_ok(member.group.barrier(member.soon()).wait(), "barrier");
              if (member.rank == 0) bytes = 0;
              member.expect_ok(member.group.barrier(member.soon()).wait(), "barrier");
              const LaneRange mine = assign_lanes(lanes, kRanks)[static_cast<size_t>(member.rank)];
              for (int m = mine.begin; m < mine.end; ++m) {
                std::vector<float> ones(kCount, 1.0F);
                member.expect_ok(reducer.add(m, 0, ones, member.soon()), "accumulate");
              }
              member.expect_ok(reducer.begin_rest(member.soon(), 20 * kSecond), "begin");
              std::vector<int> suspects;
              member.expect_ok(reducer.wait(member.soon(), suspects), "reduce");
            },
            {.wrap = wrap});
  return static_cast<double>(bytes) / kRanks / kCount;
}

// What docs/guides/compression.md says of the traffic.
TEST(Compression, SendsAsManyBytesAsTheGuideSays) {
  constexpr double kOthers = 3.0 / 4;  // the part of everything that goes to other ranks
  for (const int lanes : {4, 8, 16}) {
    EXPECT_NEAR(bytes_sent(std::nullopt, lanes), 8 * kOthers, 0.1);
    for (const auto& [codec, width] : {std::pair{CodecId::kBf16, 2.0},
                                       {CodecId::kFp16, 2.0},
                                       {CodecId::kInt8, 1.016},
                                       {CodecId::kInt4, 0.516},
                                       {CodecId::kMxfp8, 1.031}}) {
      const double expected = (lanes / 4 + 1) * width * kOthers;
      EXPECT_NEAR(bytes_sent(codec, lanes), expected, 0.03 * expected)
          << codec::codec_of(codec).name << lanes;
    }
  }
}

TEST(Compression, SlicesAreWholeGrains) {
  const LaneCodec codec({CodecId::kInt4, 0}, 4, 4);
  for (const ElementRange bucket : {ElementRange{0, 0}, {512, 1537}, {256, 10'000}}) {
    for (int ranks = 1; ranks <= 50; ++ranks) {
      size_t covered = bucket.begin, most = 0, least = SIZE_MAX;
      for (int rank = 0; rank < ranks; ++rank) {
        const ElementRange slice = codec.slice(bucket, rank, ranks);
        EXPECT_EQ(slice.begin % codec.grain(), 0U);
        EXPECT_EQ(slice.begin, slice.size() > 0 ? covered : bucket.begin);
        const size_t grains = (slice.size() + codec.grain() - 1) / codec.grain();
        most = std::max(most, grains);
        least = std::min(least, grains);
        covered = std::max(covered, slice.end);
      }
      EXPECT_EQ(covered, bucket.end);
      EXPECT_LE(most, least + 1);
    }
  }
}

}  // namespace
}  // namespace muster
