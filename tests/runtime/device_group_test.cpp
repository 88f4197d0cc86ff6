// The devices of a group joined by NCCL, over the fakes: what is kept from view to view, what is given up,
// and what is said where the host reduces.
#include "runtime/device_group.h"

#include <gmock/gmock.h>

#include <latch>
#include <string>

#include "runtime/device_gradients.h"
#include "tests/collectives/world.h"
#include "tests/fakes/sum_kernels.h"
#include "tests/runtime/fake_device.h"

namespace muster {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr size_t kCount = 700, kBucket = 128;

class DeviceGroupTest : public FakeDevice {
 protected:
  DeviceGroupTest() {
    fakes::nccl_reset();
    fakes::register_sum_kernels();
    fakes::register_fold_kernels();
  }
  ~DeviceGroupTest() override {
    fakes::nccl_inject({});
    EXPECT_TRUE(wait_until([] { return fakes::nccl_live() == 0; }));
    EXPECT_EQ(fakes::nccl_violations(), 0);
  }
};

// What a rank of a run has through all of its views.
struct Rank {
  Member& member;
  OnDevice<float> gradients{kCount};
  std::unique_ptr<Device> device;
  std::unique_ptr<DeviceGradients> memory;
  std::shared_ptr<DevicePool> pool;
  std::shared_ptr<ReducedMean> kept;  // the mean of the view before

  explicit Rank(Member& the_member) : member(the_member) {
    device = std::move(Device::open(nullptr)).value();
    memory = std::move(DeviceGradients::make(*device)).value();
    pool = std::make_shared<DevicePool>(*device);
  }
  ~Rank() { Stream::drain(nullptr); }

  DeviceGroup::Formed form(DeviceGroup::FormOptions options = {}) const {
    options.pool = pool;
    std::vector<int> suspects;
    auto formed = DeviceGroup::form(member.group, options, suspects);
    member.expect_ok(formed.ok() ? ok() : Status(formed.error()), "form");
    return formed.ok() ? std::move(*formed) : DeviceGroup::Formed{};
  }

  // A view of one step, of which a member may lack the mean in the next one.
  void live(
      DeviceGroup::FormOptions options = {}, const std::function<void()>& at_end = [] {}) {
    constexpr int lanes = 2;
    DeviceGroup::Formed formed = form(std::move(options));
    if (!formed.devices) return member.fail("not joined: " + formed.why_not);
    const CanonicalLayout layout{lanes, lanes, assign_lanes(lanes, member.size)};
    const LaneRange mine = layout.assignment[static_cast<size_t>(member.rank)];
    auto sums = memory->make_sums(Reducer::accumulation(layout, member.rank, false), kCount,
                                  formed.devices->stream());
    auto reducer =
        std::move(formed.devices->make_reducer(layout, kCount, kBucket, std::nullopt, std::move(*sums), 0))
            .value();
    reducer->begin(0);
    for (int m = mine.begin; m < mine.end; ++m) {
      Stream::enqueue_on(
          nullptr, [g = gradients.data(), m] { std::fill(g, g + kCount, 1.0F + static_cast<float>(m)); });
      member.expect_ok(reducer->add(m, 0, {gradients.data(), kCount}, member.soon()), "add");
    }
    std::vector<int> suspects;
    member.expect_ok(reducer->begin_rest(member.soon(), 20 * kSecond), "begin_rest");
    member.expect_ok(reducer->wait(member.soon(), suspects), "wait");
    member.expect_ok(reducer->shared_mean()->wait_on_host(member.soon()), "the mean");
    const float wanted = static_cast<float>(lanes + 1) / 2;
    member.expect(reducer->mean()[0] == wanted && reducer->mean()[kCount - 1] == wanted, "another mean");
    kept = reducer->shared_mean();
    at_end();
  }
};

TEST_F(DeviceGroupTest, ViewsAllocateOnceWhatTheyNeed) {
  std::latch two_views(2);
  std::atomic<int> calls = 0;
  run_world(Medium::kInProcess, 2, [&](Member& member) {
    Rank rank(member);
    rank.live();
    rank.live();  // the mean of the view before is kept beside it
    two_views.arrive_and_wait();
    if (member.rank == 0) calls = fakes::cuda_memory_calls();
    int told = 0;
    member.expect_ok(
        member.group.broadcast(&told, &told, sizeof told, DType::kUInt8, 0, member.soon()).wait(), "told");
    for (int view = 0; view < 5; ++view) rank.live();
    std::vector<int> all(2);
    member.expect_ok(
        member.group.all_gather(&told, all.data(), sizeof told, DType::kUInt8, member.soon()).wait(), "done");
    if (member.rank == 0) {
      EXPECT_EQ(fakes::cuda_memory_calls(), calls) << "a view change allocated or freed, or made a stream";
    }
    member.expect_ok(
        member.group.all_gather(&told, all.data(), sizeof told, DType::kUInt8, member.soon()).wait(),
        "looked");
  });
}

// A call that does not come back keeps what it may write to, and the next view has other memory.
TEST_F(DeviceGroupTest, WhatNcclDoesNotLetGoOfIsGivenUp) {
  run_world(Medium::kInProcess, 1, [](Member& member) {
    Rank rank(member);
    const DeviceGroup::FormOptions soon{.end_timeout = 200 * kMillisecond};
    rank.live(soon);
    rank.live(soon, [] {
      const int next = fakes::nccl_calls() + 1;
      fakes::nccl_inject({.call = next, .blocked = true});  // the watcher's look
      EXPECT_TRUE(wait_until([&] { return fakes::nccl_calls() >= next; }));
    });
    const float* const given_up = rank.kept->target();
    rank.live(soon);
    EXPECT_NE(rank.kept->target(), given_up);
    fakes::nccl_release();
  });
  EXPECT_TRUE(wait_until([] { return fakes::nccl_live() == 0; }));
  EXPECT_EQ(fakes::cuda_abandon(), 3) << "a stream, the mean, the scratch";
}

std::string why_the_host_reduces(const std::function<void(Member&, DeviceGroup::FormOptions&)>& prepare,
                                 int ranks = 2) {
  std::string why[8];
  run_world(Medium::kInProcess, ranks, [&](Member& member) {
    const Rank rank(member);
    DeviceGroup::FormOptions options;
    prepare(member, options);
    const DeviceGroup::Formed formed = rank.form(std::move(options));
    member.expect(!formed.devices, "joined");
    why[member.rank] = formed.why_not;
  });
  for (int rank = 1; rank < ranks; ++rank) EXPECT_EQ(why[rank], why[0]) << "all say the same";
  return why[0];
}

TEST_F(DeviceGroupTest, OneThatWillNotIsNotToldAsAFailure) {
  for (const int unwilling : {0, 1}) {
    const std::string why =
        why_the_host_reduces([&](const Member& member, DeviceGroup::FormOptions& options) {
          if (member.rank == unwilling)
            options.why_not = "2 reductions failed: a reason; wait for the next view";
        });
    EXPECT_EQ(
        why, "rank " + std::to_string(unwilling) + " does not try NCCL, since 2 reductions failed: a reason");
  }
}

// The others wait for it in vain, and say so too; that is not the reason.
TEST_F(DeviceGroupTest, TheRankThatFailedIsNamedNotThoseThatWaited) {
  int failed = 0;
  for (int after = 1; after <= 6;
       ++after) {  // the id is call 1, then each asks for the version, and initialises
    std::string why;
    run_world(Medium::kInProcess, 2, [&](Member& member) {
      const Rank rank(member);
      int nothing = 0, all[2];
      member.expect_ok(
          member.group.all_gather(&nothing, all, sizeof nothing, DType::kUInt8, member.soon()).wait(),
          "both");
      if (member.rank == 0) fakes::nccl_inject({.call = fakes::nccl_calls() + after, .code = 3});
      DeviceGroup::FormOptions options;
      options.timeout = 2 * kSecond;
      const DeviceGroup::Formed formed = rank.form(std::move(options));
      if (member.rank == 0) why = formed.why_not;
    });
    fakes::nccl_inject({});
    if (why.empty()) continue;
    ++failed;
    EXPECT_THAT(why, AllOf(HasSubstr("could not be joined by NCCL: "), Not(HasSubstr("not all ranks came")),
                           Not(HasSubstr("new id"))));
  }
  EXPECT_GE(failed, 2);
}

}  // namespace
}  // namespace muster
