// PROTOCOL 4 on the real classes: "two laggards overwrite their state in place and the only advanced rank
// dies". The advanced rank dies after each possible number of messages; its death is the transport's.
#include "runtime/state_transfer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "collectives/transport/in_process.h"
#include "runtime/control/coordinator.h"

namespace muster {
namespace {

constexpr size_t kFloats = 300'000;  // five messages of point_to_point.cpp
constexpr control::MemberId kAdvanced = 100;
constexpr control::MemberId kLaggards[] = {200, 300};

// Lets `left` messages out, then its process dies.
class DyingTransport final : public Transport {
 public:
  DyingTransport(std::shared_ptr<InProcessNetwork> network, std::atomic<int>& left)
      : network_(std::move(network)), inner_(network_->make_transport()), left_(left) {}

  std::string_view name() const override { return inner_->name(); }
  ByteBuffer address() const override { return inner_->address(); }
  Result<TransportPeer> connect(ByteSpan address) override { return inner_->connect(address); }
  void disconnect(TransportPeer peer) override { inner_->disconnect(peer); }
  TransferId send(TransportPeer peer, uint64_t tag, MessagePtr message) override {
    if (left_-- == 0) network_->kill(0);
    return inner_->send(peer, tag, std::move(message));
  }
  TransferId receive(uint64_t tag, MessagePtr message) override {
    return inner_->receive(tag, std::move(message));
  }
  void cancel(TransferId id) override { inner_->cancel(id); }
  void discard(uint64_t value, uint64_t mask) override { inner_->discard(value, mask); }
  size_t progress(TransportSink& sink) override { return inner_->progress(sink); }
  int event_fd() const override { return inner_->event_fd(); }
  bool arm() override { return inner_->arm(); }

 private:
  std::shared_ptr<InProcessNetwork> network_;
  std::unique_ptr<Transport> inner_;
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
    message.digest = state.digest();
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
    install.digest = decision.digest;
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
    std::optional<ByteBuffer> staged;
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

TEST_F(OneAdvanced, WhatArrivesIsStagedAndVerified) {
  const auto ends = transfer();
  for (size_t i : {1, 2}) {
    ASSERT_TRUE(ends[i].status.ok()) << ends[i].status.error().message;
    ASSERT_TRUE(ends[i].staged);
    EXPECT_EQ(ranks[i]->state.digest(), digest_of_4) << "not installed before the program enters the view";
    ASSERT_TRUE(ranks[i]->state.install(*ends[i].staged, kNever).ok());
    EXPECT_EQ(ranks[i]->state.digest(), install.digest);
  }
}

TEST_F(OneAdvanced, WrongBytesAreRefusedAndTouchNothing) {
  ranks[0]->weights[kFloats / 2] += 1;  // memory that changed after its report
  const auto ends = transfer();
  for (size_t i : {1, 2}) {
    ASSERT_FALSE(ends[i].status.ok());
    EXPECT_EQ(ends[i].status.error().code, ErrorCode::kRetry);
    EXPECT_FALSE(ends[i].staged);
    EXPECT_EQ(ranks[i]->state.digest(), digest_of_4);
  }
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
  EXPECT_EQ(decision.digest, digest_of_4);
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

INSTANTIATE_TEST_SUITE_P(AfterMessages, OneAdvancedDies, ::testing::Range(0, 10));

}  // namespace
}  // namespace muster
