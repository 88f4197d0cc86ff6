// PROTOCOL 4 on the real classes: "two laggards overwrite their state in place and the only advanced rank
// dies". The advanced rank dies after each possible number of messages; its death is the transport's.
//
// Then, over each way that the state can take: that it arrives, and that nothing is staged of what is not
// what it should be.
#include "runtime/state_transfer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <thread>

#include "collectives/feed.h"
#include "collectives/transport/in_process.h"
#include "collectives/transport/ucx.h"
#include "runtime/control/coordinator.h"
#include "tests/forwarding_transport.h"

namespace muster {
namespace {

constexpr size_t kFloats = 300'000;  // five messages of point_to_point.cpp, and one for either note
constexpr control::MemberId kAdvanced = 100;
constexpr control::MemberId kLaggards[] = {200, 300};

// Lets `left` messages out, then its process dies.
class DyingTransport final : public testing_support::ForwardingTransport {
 public:
  DyingTransport(std::shared_ptr<InProcessNetwork> network, std::atomic<int>& left)
      : ForwardingTransport(network->make_transport()), network_(std::move(network)), left_(left) {}

  TransferId send(TransportPeer peer, uint64_t tag, MessagePtr message) override {
    if (left_-- == 0) network_->kill(0);
    return ForwardingTransport::send(peer, tag, std::move(message));
  }

 private:
  const std::shared_ptr<InProcessNetwork> network_;
  std::atomic<int>& left_;
};

struct Rank {
  control::MemberId id = 0;
  control::Version version = 0;
  std::vector<float> weights = std::vector<float>(kFloats);
  State state;
  std::unique_ptr<Endpoint> endpoint;

  Rank(control::MemberId member, control::Version at, std::unique_ptr<Transport> transport)
      : id(member), version(at) {
    for (size_t i = 0; i < kFloats; ++i)
      weights[i] = static_cast<float>(i % 1000) + 0.25F * static_cast<float>(at);
    EXPECT_TRUE(state.add_replicated("w", weights.data(), DType::kFloat32, {kFloats}).ok());
    EndpointOptions options;
    options.transport = std::move(transport);
    options.shared_memory = false;
    endpoint = Endpoint::create(std::move(options)).value();
  }
  control::Report report() const {
    control::Report message;
    message.version = version;
    message.installed = {77, 1};
    return message;
  }
};

// Versions 5, 4, 4; a loss made them report, and version 5 goes to those behind.
class OneAdvanced : public ::testing::Test {
 protected:
  std::shared_ptr<InProcessNetwork> network = InProcessNetwork::create();
  std::atomic<int> messages_left = INT32_MAX;
  std::vector<std::unique_ptr<Rank>> ranks;
  control::Install install;
  control::RuleSwitches rules;
  const control::Lineage lineage = {{{77, 1}, 0}};
  Digest digest_of_4;

  OneAdvanced() {
    ranks.push_back(
        std::make_unique<Rank>(kAdvanced, 5, std::make_unique<DyingTransport>(network, messages_left)));
    for (const control::MemberId id : kLaggards)
      ranks.push_back(std::make_unique<Rank>(id, 4, network->make_transport()));
    digest_of_4 = ranks[1]->state.digest();
    const control::BaseDecision decision = decide({0, 1, 2});
    EXPECT_EQ(decision.base, 5);
    EXPECT_EQ(decision.behind.size(), 2u);
    install.view.generation = {77, 2};
    install.view.base = decision.base;
    for (const auto& rank : ranks) {
      control::Member member;
      member.id = rank->id;
      member.contact = rank->endpoint->contact();
      install.view.members.push_back(std::move(member));
    }
    for (const control::MemberId behind : decision.behind) install.transfers.push_back({kAdvanced, behind});
  }
  control::BaseDecision decide(std::vector<size_t> living) const {
    std::vector<std::pair<control::MemberId, control::Report>> reports;
    for (const size_t i : living) reports.emplace_back(ranks[i]->id, ranks[i]->report());
    return decide_base(reports, lineage);
  }

  struct Ended {
    Status status = ok();
    std::vector<control::MemberId> suspects;
    std::optional<LargeBuffer> staged;
  };
  std::vector<Ended> transfer() {
    // What a dead process would wait for is not waited for here.
    const bool dies = messages_left != INT32_MAX;
    const Instant deadlines[] = {now() + (dies ? 200 * kMillisecond : 30 * kSecond), now() + 30 * kSecond};
    std::vector<Ended> ends(ranks.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < ranks.size(); ++i) {
      threads.emplace_back([&, i] {
        StateTransfer one{*ranks[i]->endpoint,       ranks[i]->state, ranks[i]->id,
                          deadlines[i == 0 ? 0 : 1], rules,           {}};
        ends[i].status = one.run(install, ends[i].suspects);
        ends[i].staged = std::move(one.staged);
      });
    }
    for (std::thread& thread : threads) thread.join();
    return ends;
  }
};

// Of a device that does not work any more.
class BrokenMirror final : public StateMirror {
 public:
  MutableByteSpan host() const override { return {}; }
  Status note_written() override { return ok(); }
  Status begin_fetch() override { return Error{ErrorCode::kEnvironment, "the device is gone"}; }
  Status finish_fetch(Instant) override { return ok(); }
  Status order_update() override { return ok(); }
  Status store(ByteSpan, Instant) override { return ok(); }
};

TEST_F(OneAdvanced, ASourceThatCannotReadItsStateBlamesItselfAndKeepsNobodyWaiting) {
  BrokenMirror mirror;
  ranks[0]->state.set_mirror(&mirror);
  const Instant began = now();
  const auto ends = transfer();
  ranks[0]->state.set_mirror(nullptr);
  EXPECT_LT(now() - began, 20 * kSecond) << "of 30 that they would wait";
  ASSERT_FALSE(ends[0].status.ok());
  EXPECT_EQ(ends[0].status.error().code, ErrorCode::kEnvironment);
  EXPECT_THAT(ends[0].suspects, ::testing::ElementsAre(kAdvanced));
  for (const size_t behind : {1, 2}) {
    EXPECT_FALSE(ends[behind].status.ok());
    EXPECT_FALSE(ends[behind].staged);
  }
}

// A lease for an older version, which a save may hold for as long as a disk takes, is given up after a while.
TEST_F(OneAdvanced, AnOlderVersionsReaderIsInTheWayForAGraceOnly) {
  State& state = ranks[0]->state;
  class Quiet final : public StateMirror {
   public:
    explicit Quiet(std::vector<float>& values) : values_(values) {}
    MutableByteSpan host() const override { return std::as_writable_bytes(std::span(values_)); }
    Status note_written() override { return ok(); }
    Status begin_fetch() override { return ok(); }
    Status finish_fetch(Instant) override { return ok(); }
    Status order_update() override { return ok(); }
    Status store(ByteSpan, Instant) override { return ok(); }

   private:
    std::vector<float>& values_;
  } mirror(ranks[0]->weights);
  state.set_mirror(&mirror);
  ASSERT_TRUE(state.acquire_read(now()).ok());
  ASSERT_TRUE(state.begin_write(now()).ok());
  state.end_write();
  int asked = 0;
  const auto unblock = [&] {
    ++asked;
    state.release_read();
  };
  EXPECT_TRUE(state.older_is_read());
  EXPECT_TRUE(acquire_for_view(state, 5 * kMillisecond, now() + 30 * kSecond, unblock).ok());
  EXPECT_EQ(asked, 1);
  EXPECT_FALSE(state.older_is_read());
  // Of a wait for the program's update nobody is to blame.
  state.release_read();
  ASSERT_TRUE(state.begin_write(now()).ok());
  EXPECT_FALSE(acquire_for_view(state, 5 * kMillisecond, now() + 10 * kMillisecond, unblock).ok());
  state.end_write();
  EXPECT_EQ(asked, 1);
  state.set_mirror(nullptr);
}

TEST_F(OneAdvanced, WhatArrivesIsStagedAndVerified) {
  const auto ends = transfer();
  for (size_t i : {1, 2}) {
    ASSERT_TRUE(ends[i].status.ok()) << ends[i].status.error().message;
    ASSERT_TRUE(ends[i].staged);
    EXPECT_EQ(ranks[i]->state.digest(), digest_of_4) << "not installed before the program enters the view";
    ASSERT_TRUE(ranks[i]->state.install(*ends[i].staged, kNever).ok());
    EXPECT_EQ(ranks[i]->state.digest(), ranks[0]->state.digest());
  }
}

// The last update's gradient in place of the state, to one of the two.
class OneUpdateBehind : public OneAdvanced {
 protected:
  std::vector<float> gradient = std::vector<float>(300'000, 0.5F);

  std::vector<Ended> transfer(control::Version held) {
    install.transfers[0].gradient = true;
    const ByteSpan bytes{reinterpret_cast<const std::byte*>(gradient.data()),
                         gradient.size() * sizeof(float)};
    std::vector<Ended> ends(ranks.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < ranks.size(); ++i) {
      threads.emplace_back([&, i] {
        StateTransfer one{*ranks[i]->endpoint,
                          ranks[i]->state,
                          ranks[i]->id,
                          now() + 2 * kSecond,
                          rules,
                          {},
                          bytes.size(),
                          {}};
        if (i == 0) one.held = {held, bytes};
        ends[i].status = one.run(install, ends[i].suspects);
        ends[i].staged = std::move(one.staged);
      });
    }
    for (std::thread& thread : threads) thread.join();
    return ends;
  }
};

TEST_F(OneUpdateBehind, TheGradientGoesToOneAndTheStateToTheOther) {
  const auto ends = transfer(4);
  for (const size_t i : {0, 1, 2}) ASSERT_TRUE(ends[i].status.ok()) << ends[i].status.error().message;
  ASSERT_EQ(ends[1].staged->size(), gradient.size() * sizeof(float));
  EXPECT_EQ(std::memcmp(ends[1].staged->data(), gradient.data(), ends[1].staged->size()), 0);
  EXPECT_EQ(ends[2].staged->size(), ranks[0]->state.bytes());
}

TEST_F(OneUpdateBehind, AnotherStepsGradientIsNotSent) {
  const auto ends = transfer(5);
  ASSERT_FALSE(ends[0].status.ok());
  EXPECT_NE(ends[0].status.error().message.find("gradient of step 4 is not held"), std::string::npos);
  ASSERT_FALSE(ends[1].status.ok());
  EXPECT_NE(ends[1].status.error().message.find("was due"), std::string::npos)
      << "it is told, and does not wait for its deadline: " << ends[1].status.error().message;
  EXPECT_TRUE(ends[1].suspects.empty());
  EXPECT_FALSE(ends[1].staged);
}

class OneAdvancedDies : public OneAdvanced, public ::testing::WithParamInterface<int> {};

TEST_P(OneAdvancedDies, VersionFourSurvives) {
  messages_left = GetParam();
  const auto ends = transfer();
  EXPECT_FALSE(ends[1].status.ok() && ends[2].status.ok()) << "it died before its last message";
  for (size_t i : {1, 2}) {
    EXPECT_EQ(ranks[i]->state.digest(), digest_of_4) << "laggard " << i << " lost what it held";
    if (ends[i].status.ok()) continue;
    EXPECT_EQ(ends[i].suspects, (std::vector<control::MemberId>{kAdvanced}));
    EXPECT_FALSE(ends[i].staged);
  }
  const control::BaseDecision decision = decide({1, 2});
  EXPECT_EQ(decision.base, 4);
  EXPECT_EQ(decision.error, "");
}

TEST_P(OneAdvancedDies, WithTheRuleOffNoVersionIsLeft) {
  messages_left = GetParam();
  rules.transfers_are_staged = false;
  transfer();
  for (size_t i : {1, 2}) {
    const Digest left = ranks[i]->state.digest();
    EXPECT_NE(left, digest_of_4) << "laggard " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(AfterMessages, OneAdvancedDies, ::testing::Range(0, 14));

// ---- over each way

enum class Way { kNode, kNodeAlone, kInProcess, kUcx };  // kNodeAlone: without a transport

std::string name_of(const ::testing::TestParamInfo<Way>& info) {
  static constexpr const char* kNames[] = {"Node", "NodeAlone", "InProcess", "Ucx"};
  return kNames[static_cast<int>(info.param)];
}

constexpr control::MemberId kSource = 1;
constexpr size_t kMany = (5 << 20) / sizeof(float) + 3;  // more than the ring has slabs, and no multiple

// Tensors of several sizes, one of none among them.
struct Holder {
  std::vector<std::vector<float>> tensors;
  State state;
  std::unique_ptr<Endpoint> endpoint;

  Holder(const std::vector<size_t>& floats, float value, EndpointOptions options) {
    for (const size_t count : floats) tensors.emplace_back(count, value);
    for (size_t i = 0; i < floats.size(); ++i) {
      for (size_t j = 0; j < floats[i]; ++j) tensors[i][j] += static_cast<float>(j % 997 + i);
      EXPECT_TRUE(state
                      .add_replicated("t" + std::to_string(i), tensors[i].data(), DType::kFloat32,
                                      {static_cast<int64_t>(floats[i])})
                      .ok());
    }
    endpoint = Endpoint::create(std::move(options)).value();
  }
};

class OverEachWay : public ::testing::TestWithParam<Way> {
 protected:
  std::shared_ptr<InProcessNetwork> network = InProcessNetwork::create();
  std::vector<std::unique_ptr<Holder>> holders;
  control::Install install;

  EndpointOptions options(Way way) {
    EndpointOptions made;
    made.shared_memory = way == Way::kNode || way == Way::kNodeAlone;
    if (way == Way::kUcx) {
      made.transport = open_ucx().value();
    } else if (way != Way::kNodeAlone) {
      made.transport = network->make_transport();
    }
    return made;
  }
  // Member 1 holds version 5, the others get it. `apart`: a target that shares no memory with them.
  void open(const std::vector<size_t>& floats, int targets, int apart = 0) {
    const Way way = GetParam();
    install.view.generation = {77, 2};
    install.view.base = 5;
    for (int i = 0; i <= targets; ++i) {
      EndpointOptions its = options(way);
      its.shared_memory = its.shared_memory && (i == 0 || i != apart);
      holders.push_back(std::make_unique<Holder>(floats, i == 0 ? 5.0F : 4.0F, std::move(its)));
      control::Member member;
      member.id = kSource + static_cast<control::MemberId>(i);
      member.contact = holders.back()->endpoint->contact();
      install.view.members.push_back(std::move(member));
      if (i > 0) install.transfers.push_back({kSource, kSource + static_cast<control::MemberId>(i)});
    }
  }

  // The first `sources` hold version 5, and two others get a part from each.
  void open_parts(uint32_t sources) {
    holders.clear();
    install = {};
    open({3, kMany, 0, 70'001}, static_cast<int>(sources) + 1);
    install.transfers.clear();
    for (uint32_t part = 0; part < sources; ++part) {
      holders[part]->tensors = holders[0]->tensors;
      for (const control::MemberId target : {sources, sources + 1})
        install.transfers.push_back({kSource + part, kSource + target, false, part, sources});
    }
  }

  struct Ended {
    Status status = ok();
    std::vector<control::MemberId> suspects;
    std::optional<LargeBuffer> staged;
  };
  Ended one(size_t index, Duration patience = 30 * kSecond) {
    Holder& holder = *holders[index];
    Ended ended;
    StateTransfer transfer{*holder.endpoint, holder.state, install.view.members[index].id,
                           now() + patience, {},           {}};
    ended.status = transfer.run(install, ended.suspects);
    ended.staged = std::move(transfer.staged);
    return ended;
  }
  std::vector<Ended> all() {
    std::vector<Ended> ends(holders.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < holders.size(); ++i) threads.emplace_back([&, i] { ends[i] = one(i); });
    for (std::thread& thread : threads) thread.join();
    return ends;
  }
  void expect_all_arrived() {
    const auto ends = all();
    EXPECT_TRUE(ends[0].status.ok()) << ends[0].status.error().message;
    EXPECT_FALSE(ends[0].staged);
    for (size_t i = 1; i < ends.size(); ++i) {
      ASSERT_TRUE(ends[i].status.ok()) << ends[i].status.error().message;
      ASSERT_TRUE(ends[i].staged);
      ASSERT_TRUE(holders[i]->state.install(*ends[i].staged, kNever).ok());
      EXPECT_EQ(holders[i]->tensors, holders[0]->tensors) << "target " << i;
    }
  }

  // What a source says, where it is not StateTransfer's.
  struct Story {
    TransferHeader header;
    TransferTrailer trailer;
    std::vector<ByteSpan> contents;
  };
  Story truth() {
    State& state = holders[0]->state;
    DigestStream digest;
    for (const ByteSpan tensor : state.contents()) digest.add(tensor);
    return {{5, state.bytes()}, {5, state.bytes(), digest.digest()}, state.contents()};
  }
  Ended hear(const Story& story) {
    Ended ended;
    std::thread target([&] { ended = one(1); });
    // What is refused at its header nobody receives, which a transport may wait for.
    FeedSource feed(*holders[0]->endpoint, transfer_tag(install.view.generation), now() + 2 * kSecond);
    const auto& members = install.view.members;
    feed.add(members[1].contact);
    feed.note(bytes_of(story.header));
    feed.run(story.contents, [](ByteSpan) {});
    feed.note(bytes_of(story.trailer));
    (void)feed.finish();
    target.join();
    return ended;
  }
  void expect_refused(const Story& story, const std::string& why) {
    const Digest before = holders[1]->state.digest();
    const Ended ended = hear(story);
    ASSERT_FALSE(ended.status.ok());
    EXPECT_EQ(ended.status.error().code, ErrorCode::kRetry);
    EXPECT_THAT(ended.status.error().message, ::testing::HasSubstr(why));
    EXPECT_FALSE(ended.staged);
    EXPECT_THAT(ended.suspects, ::testing::IsEmpty()) << "nobody died";
    EXPECT_EQ(holders[1]->state.digest(), before);
  }
};

TEST_P(OverEachWay, AStateOfManySlabsReachesEveryTarget) {
  open({3, kMany, 0, 70'001}, 3);
  expect_all_arrived();
}

TEST_P(OverEachWay, AStateOfWholeSlabsArrives) {
  open({kSlabBytes / sizeof(float), 0}, 1);
  expect_all_arrived();
}

TEST_P(OverEachWay, AStateOfNothingArrives) {
  open({0}, 2);
  expect_all_arrived();
}

TEST_P(OverEachWay, SeveralSourcesSendAPartEach) {
  for (const uint32_t sources : {2U, 3U, control::kPartsMax}) {
    SCOPED_TRACE(sources);
    open_parts(sources);
    const auto ends = all();
    for (size_t i = 0; i < ends.size(); ++i) {
      ASSERT_TRUE(ends[i].status.ok()) << ends[i].status.error().message;
      ASSERT_EQ(ends[i].staged.has_value(), i >= sources);
      if (i < sources) continue;
      ASSERT_TRUE(holders[i]->state.install(*ends[i].staged, kNever).ok());
      EXPECT_EQ(holders[i]->tensors, holders[0]->tensors);
    }
  }
}

TEST_P(OverEachWay, PartsThatAreNoWholeAreNotWaitedFor) {
  open_parts(2);
  std::erase_if(install.transfers, [](const control::Transfer& one) { return one.part == 1; });
  const Ended ended = one(2);
  ASSERT_FALSE(ended.status.ok());
  EXPECT_THAT(ended.status.error().message, ::testing::HasSubstr("no whole"));
  EXPECT_FALSE(ended.staged);
  EXPECT_TRUE(ended.suspects.empty());
}

TEST_P(OverEachWay, OneOfSeveralSourcesThatIsGoneIsSuspectedAndNothingIsStaged) {
  open_parts(3);
  holders[1]->endpoint.reset();
  std::vector<Ended> ends(holders.size());
  std::vector<std::thread> threads;
  for (const size_t i : {0, 2, 3, 4}) threads.emplace_back([&, i] { ends[i] = one(i, 5 * kSecond); });
  for (std::thread& thread : threads) thread.join();
  for (const size_t target : {3, 4}) {
    ASSERT_FALSE(ends[target].status.ok());
    EXPECT_EQ(ends[target].suspects, (std::vector<control::MemberId>{kSource + 1}));
    EXPECT_FALSE(ends[target].staged);
  }
}

TEST_P(OverEachWay, TheTruthOfAnotherSourceIsTaken) {  // or what follows would show nothing
  open({3, kMany}, 1);
  const Ended ended = hear(truth());
  ASSERT_TRUE(ended.status.ok()) << ended.status.error().message;
  EXPECT_TRUE(ended.staged);
}

TEST_P(OverEachWay, AByteThatChangedOnItsWayIsNoticed) {
  open({3, kMany}, 1);
  const Story story = truth();
  holders[0]->tensors[1][kMany - 1] += 1;
  expect_refused(story, "does not match the digest");
}

TEST_P(OverEachWay, AnotherVersionIsRefused) {
  open({3, kMany}, 1);
  Story story = truth();
  story.header.version = 4;
  expect_refused(story, "sends version 4");
}

TEST_P(OverEachWay, AnotherVersionAtTheEndIsRefused) {
  open({3, kMany}, 1);
  Story story = truth();
  story.trailer.version = 6;
  expect_refused(story, "sends version 6");
}

TEST_P(OverEachWay, AnotherSizeIsRefused) {
  open({3, kMany}, 1);
  Story story = truth();
  story.header.bytes += 4;
  expect_refused(story, "was due");
}

TEST_P(OverEachWay, AnotherSizeAtTheEndIsRefused) {
  open({3, kMany}, 1);
  Story story = truth();
  story.trailer.bytes -= 4;
  expect_refused(story, "was due");
}

// Where the death of a process is its connections'.
TEST_P(OverEachWay, ASourceThatEndsInTheMiddleIsSuspected) {
  open({3, kMany}, 1);
  Ended ended;
  std::thread target([&] { ended = one(1); });
  {
    FeedSource feed(*holders[0]->endpoint, transfer_tag(install.view.generation), now() + 5 * kSecond);
    const auto& members = install.view.members;
    feed.add(members[1].contact);
    feed.note(bytes_of(truth().header));
    const std::vector<ByteSpan> contents = truth().contents;
    feed.run({contents[0], contents[1].first((2 << 20) - contents[0].size())}, [](ByteSpan) {});
  }
  holders[0]->endpoint.reset();
  target.join();
  ASSERT_FALSE(ended.status.ok());
  EXPECT_EQ(ended.status.error().code, ErrorCode::kReconfigure);
  EXPECT_EQ(ended.suspects, (std::vector<control::MemberId>{kSource}));
  EXPECT_FALSE(ended.staged);
}

INSTANTIATE_TEST_SUITE_P(Ways, OverEachWay,
                         ::testing::Values(Way::kNode, Way::kNodeAlone, Way::kInProcess, Way::kUcx), name_of);

using BothWays = OverEachWay;

TEST_P(BothWays, OneSourceServesItsNodeAndAnother) {
  open({3, kMany}, 3, 2);
  expect_all_arrived();
}

TEST_P(BothWays, ATargetThatIsGoneIsSuspectedAndCostsTheOthersNothing) {
  open({3, kMany}, 2);
  holders[2]->endpoint.reset();
  std::vector<Ended> ends(2);
  std::thread target([&] { ends[1] = one(1); });
  ends[0] = one(0);
  target.join();
  EXPECT_EQ(ends[0].suspects, (std::vector<control::MemberId>{kSource + 2}));
  EXPECT_TRUE(ends[1].status.ok());
  EXPECT_TRUE(ends[1].staged);
}

INSTANTIATE_TEST_SUITE_P(Ways, BothWays, ::testing::Values(Way::kNode), name_of);

}  // namespace
}  // namespace muster
