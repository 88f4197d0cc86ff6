// The codec that is left open: all ranks choose alike, sums are right whatever is chosen, and the choice
// follows the link and what the codecs lose.
#include "collectives/codec_controller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <thread>

#include "tests/collectives/world.h"
#include "tests/forwarding_transport.h"

namespace muster {
namespace {

using codec::CodecId;

// Gaussian, the same in each run.
std::vector<float> gradient(size_t count, int rank, int step) {
  uint64_t state = mix64(static_cast<uint64_t>(rank * 1000 + step + 1));
  const auto uniform = [&] {
    state = mix64(state + 0x9e37'79b9'7f4a'7c15U);
    return (static_cast<double>(state >> 11) + 0.5) * 0x1p-53;
  };
  std::vector<float> values(count);
  for (float& value : values)
    value = static_cast<float>(std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307179586 * uniform()));
  return values;
}

// A link of so many bytes a second, in one direction: whoever sends holds everything up meanwhile.
class SlowTransport final : public testing_support::ForwardingTransport {
 public:
  SlowTransport(std::unique_ptr<Transport> inner, double bytes_per_second)
      : ForwardingTransport(std::move(inner)), bytes_per_second_(bytes_per_second) {}
  TransferId send(TransportPeer peer, uint64_t tag, MessagePtr message) override {
    // Reason for the wait: it is the simulated link, whose speed is what the choice is tested with.
    std::this_thread::sleep_for(
        std::chrono::duration<double>(static_cast<double>(message->size) / bytes_per_second_));
    return ForwardingTransport::send(peer, tag, std::move(message));
  }

 private:
  const double bytes_per_second_;
};

WorldOptions link_of(double bytes_per_second) {
  return {.wrap = [=](std::unique_ptr<Transport> inner) {
    return std::make_unique<SlowTransport>(std::move(inner), bytes_per_second);
  }};
}

struct Made {
  std::vector<std::optional<CodecId>> codecs;  // of each call
  std::vector<std::string> whys;
  std::vector<float> last;
};

// What each rank has chosen, over some calls of one tensor.
std::vector<Made> run(const WorldOptions& options, int ranks, size_t count, int calls, bool feedback,
                      codec::ChoiceLimits limits = {}) {
  std::vector<Made> made(static_cast<size_t>(ranks));
  run_world(
      Medium::kInProcess, ranks,
      [&](Member& member) {
        CompressedCollectives collectives(member.group);
        CodecController controller(member.group, limits);
        Feedback kept(Residuals(count, member.rank, member.size));
        Made& mine = made[static_cast<size_t>(member.rank)];
        for (int step = 0; step < calls; ++step) {
          const std::vector<float> in = gradient(count, member.rank, step);
          mine.last.assign(count, 0.0F);
          std::vector<int> suspects;
          const Status status = controller.all_reduce(
              collectives, {.step = static_cast<uint64_t>(step), .tensor = 5}, in.data(), mine.last.data(),
              count, feedback ? &kept : nullptr, member.soon(), suspects);
          if (!status.ok()) return member.fail(status.error().message);
          if (feedback) member.expect_ok(kept.commit(), "commit");
          const codec::Choice* const choice = controller.chosen(5);
          if (choice == nullptr) return member.fail("nothing chosen");
          mine.codecs.push_back(choice->codec);
          mine.whys.push_back(choice->why);
        }
        member.expect(controller.chosen(6) == nullptr, "another tensor");
      },
      options);
  return made;
}

// ‖mean − true mean‖ / ‖true mean‖ of the last call.
double error_of(const std::vector<Made>& made, int calls) {
  const size_t count = made[0].last.size();
  std::vector<double> wanted(count);
  for (size_t rank = 0; rank < made.size(); ++rank) {
    const std::vector<float> in = gradient(count, static_cast<int>(rank), calls - 1);
    for (size_t i = 0; i < count; ++i) wanted[i] += in[i] / static_cast<double>(made.size());
  }
  double off = 0, norm = 0;
  for (size_t i = 0; i < count; ++i) {
    off += std::pow(made[0].last[i] - wanted[i], 2);
    norm += wanted[i] * wanted[i];
  }
  return std::sqrt(off / norm);
}

void expect_alike(const std::vector<Made>& made) {
  for (const Made& one : made) {
    EXPECT_EQ(one.codecs, made[0].codecs);
    EXPECT_EQ(one.whys, made[0].whys);
    EXPECT_EQ(one.last, made[0].last) << "other bits";
  }
}

TEST(CodecController, AllRanksChooseAlikeAndEndWithTheSameBits) {
  for (const bool feedback : {false, true}) {
    for (const size_t count : {size_t{0}, size_t{1}, size_t{5000}, size_t{200'003}}) {
      const std::vector<Made> made = run({}, 3, count, 12, feedback);
      expect_alike(made);
      if (count > 1) {
        EXPECT_LT(error_of(made, 12), 0.5) << count;
      }
    }
  }
}

TEST(CodecController, TheFirstCallsAreOfSomethingSafe) {
  EXPECT_EQ(run({}, 2, 100'000, 1, false)[0].codecs[0], std::nullopt);
  EXPECT_EQ(run({}, 2, 100'000, 1, true)[0].codecs[0], CodecId::kBf16);
}

// 8 MB/s, where float32 takes a second: no codec is as slow, under sanitizers either.
TEST(CodecController, OnASlowLinkFewerBytesAreSent) {
  constexpr size_t kCount = 1 << 20;
  for (const bool feedback : {false, true}) {
    const std::vector<Made> made = run(link_of(8e6), 2, kCount, 8, feedback);
    expect_alike(made);
    ASSERT_TRUE(made[0].codecs.back().has_value()) << made[0].whys.back();
    const codec::Shape shape = codec::shape_of(*made[0].codecs.back());
    EXPECT_LE(shape.payload_bits, 8U) << made[0].whys.back();
    // What turns out slower than predicted gives way to another first.
    EXPECT_THAT(made[0].whys, ::testing::Contains(::testing::HasSubstr("measured")));
    EXPECT_LT(error_of(made, 8), 0.5) << "not one that loses more than was allowed";
  }
}

TEST(CodecController, ACodecThatLosesTooMuchIsNotTaken) {
  // Gaussian values lose about 0.2 % in bf16, 0.9 % and more in all that is smaller.
  const std::vector<Made> made = run(link_of(4e6), 2, 1 << 18, 4, false, {.error_ppm_max = 4000});
  for (const std::optional<CodecId>& codec : made[0].codecs) EXPECT_TRUE(!codec || *codec == CodecId::kBf16);
  EXPECT_EQ(made[0].codecs.back(), CodecId::kBf16) << made[0].whys.back();
  EXPECT_THAT(made[0].whys.back(), ::testing::HasSubstr("not int8: its error of 0.9 % is above 0.4 %"));
}

// What error feedback holds would be left out.
TEST(CodecController, WithFeedbackItIsNeverFloat32) {
  const std::vector<Made> made = run({}, 2, 3000, 40, true);
  for (const std::optional<CodecId>& codec : made[0].codecs) EXPECT_TRUE(codec.has_value());
}

TEST(CodecController, AnotherCountBeginsAnew) {
  run_world(Medium::kInProcess, 2, [](Member& member) {
    CompressedCollectives collectives(member.group);
    CodecController controller(member.group);
    std::vector<int> suspects;
    for (const size_t count : {size_t{70'000}, size_t{70'000}, size_t{1000}}) {
      std::vector<float> values = gradient(count, member.rank, 0);
      member.expect_ok(controller.all_reduce(collectives, {}, values.data(), values.data(), count, nullptr,
                                             member.soon(), suspects),
                       "in place");
    }
    member.expect(controller.chosen(0)->why.find("the first call") != std::string::npos,
                  controller.chosen(0)->why);
  });
}

// A step of zeros, or one that overflowed, says nothing of the codecs: what they lose stays known.
TEST(CodecController, ASampleThatTellsNothingLetsNoCodecIn) {
  constexpr size_t kCount = 1 << 17;
  for (const float odd : {0.0F, std::numeric_limits<float>::infinity()}) {
    run_world(
        Medium::kInProcess, 2,
        [&](Member& member) {
          CompressedCollectives collectives(member.group);
          CodecController controller(member.group);
          Feedback kept(Residuals(kCount, member.rank, member.size));
          std::vector<int> suspects;
          for (int step = 0; step < 5; ++step) {
            std::vector<float> values =
                step < 3 ? gradient(kCount, member.rank, step) : std::vector<float>(kCount, odd);
            member.expect_ok(
                controller.all_reduce(collectives, {.step = static_cast<uint64_t>(step)}, values.data(),
                                      values.data(), kCount, &kept, member.soon(), suspects),
                "step");
            const std::optional<CodecId> codec = controller.chosen(0)->codec;
            member.expect(codec && *codec != CodecId::kOneBit && *codec != CodecId::kTopK,
                          controller.chosen(0)->why);
          }
        },
        link_of(4e6));
  }
}

// Each of the two sums by itself would be of numbers that belong to different vectors.
TEST(CodecController, RanksThatDifferAreTold) {
  const auto differ = [](CompressedCall first, CompressedCall second) {
    run_world(Medium::kInProcess, 2, [&](Member& member) {
      CompressedCollectives collectives(member.group);
      CodecController controller(member.group);
      std::vector<float> values(5000, 1.0F);
      std::vector<int> suspects;
      const Status status =
          controller.all_reduce(collectives, member.rank == 0 ? first : second, values.data(), values.data(),
                                values.size(), nullptr, member.soon(), suspects);
      member.expect(!status.ok() && status.error().code == ErrorCode::kMisuse, "not refused");
      member.expect(!member.group.barrier(member.soon()).wait().ok(), "the group is over");
    });
  };
  differ({.tensor = 1}, {.tensor = 2});
  differ({.step = 1}, {.step = 2});
  differ({.seed = 1}, {.seed = 2});
  differ({.average = true}, {.average = false});
}

TEST(CodecController, MisuseIsToldAtOnceAndNothingIsSent) {
  run_world(Medium::kInProcess, 2, [](Member& member) {
    CompressedCollectives collectives(member.group);
    CodecController controller(member.group);
    std::vector<float> values(1000, 1.0F);
    std::vector<int> suspects;
    Feedback other(Residuals(999, member.rank, member.size));
    const auto refused = [&](const CompressedCall& call, const float* in, Feedback* feedback) {
      const Status status = controller.all_reduce(collectives, call, in, values.data(), values.size(),
                                                  feedback, member.soon(), suspects);
      member.expect(!status.ok() && status.error().code == ErrorCode::kMisuse, "not refused");
    };
    refused({}, nullptr, nullptr);
    refused({}, values.data(), &other);
    refused({.tensor = 1U << 30}, values.data(), nullptr);
    member.expect(controller.chosen(0) == nullptr, "nothing was chosen");
    member.expect_ok(member.group.barrier(member.soon()).wait(), "the group is as before");
  });
}

TEST(CodecController, ARevokedGroupEndsIt) {
  run_world(Medium::kInProcess, 2, [](Member& member) {
    CompressedCollectives collectives(member.group);
    CodecController controller(member.group);
    std::vector<float> values(100'000, 1.0F);
    std::vector<int> suspects;
    if (member.rank == 1) return member.group.revoke({ErrorCode::kReconfigure, "over"}, Group::Tell::kPeers);
    const Status status = controller.all_reduce(collectives, {}, values.data(), values.data(), values.size(),
                                                nullptr, member.soon(), suspects);
    member.expect(!status.ok() && status.error().code == ErrorCode::kReconfigure, "it ended otherwise");
  });
}

}  // namespace
}  // namespace muster
