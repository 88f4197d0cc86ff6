// How an agent comes to its leader where leaders change: when it asks, and what an answer does to a
// connection that is there or under way. The leaders here are plain listeners: it is the calls that count.
#include "runtime/agent/node_agent.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include "runtime/agent/leader_host.h"
#include "tests/support/run_until.h"

namespace muster::agent {
namespace {

class NoWorkers final : public Workers {
 public:
  void start(Handlers) override {}
  void spawn(uint32_t) override {}
  void signal(uint32_t, int) override {}
  void send(uint32_t, const control::Envelope&) override {}
  bool any_alive() const override { return false; }
};

class NodeAgentTest : public testing::Test {
 protected:
  using Answer = std::function<void(Result<LeaderPlace>)>;

  NodeAgentTest() {
    NodeOptions options;
    options.id = 7;
    options.name = "n7";
    options.job = "t";
    options.limits.leader_changes = true;
    options.secret = secret_;
    options.find_leader = [this](uint64_t, Answer answer) { asked_.push_back(std::move(answer)); };
    NodeCallbacks callbacks;
    callbacks.on_event = [](const Event&) {};
    callbacks.on_finish = [](int, const std::string&) {};
    agent_.emplace(loop_, std::move(options), std::make_unique<NoWorkers>(), std::move(callbacks));
    EXPECT_TRUE(until([&] { return asked_.size() == 1; })) << "it asks by itself first";
  }

  template <typename F>
  bool until(F condition) {
    return run_until(loop_, std::move(condition));
  }

  // What has been posted and is due is done.
  void settle() {
    for (int i = 0; i < 5; ++i) {
      loop_.post([this] { loop_.stop(); });
      loop_.run();
    }
  }

  // A leader that counts who comes to it, and keeps them waiting.
  struct Place {
    explicit Place(Loop& loop) {
      int error_number = 0;
      listener = std::move(Listener::open(loop, resolve_now("127.0.0.1", 0)->front(), &error_number)).value();
      listener->start([this](UniqueFd socket, const std::string&) { callers.push_back(std::move(socket)); });
    }
    bool has_left(size_t caller) const {
      char byte = 0;
      ssize_t got = 1;
      while (got > 0) got = recv(callers[caller].get(), &byte, 1, MSG_DONTWAIT);
      return got == 0;
    }
    std::unique_ptr<Listener> listener;
    std::vector<UniqueFd> callers;
  };
  Result<LeaderPlace> at(const Place& place) const {
    LeaderPlace found;
    found.address = {"127.0.0.1", place.listener->port(), secret_};
    return found;
  }
  static Result<LeaderPlace> nobody() { return Error{ErrorCode::kRetry, "nobody leads"}; }

  void answer(Result<LeaderPlace> place) { std::exchange(asked_.back(), nullptr)(std::move(place)); }

  Loop loop_;
  TlsSecret secret_{"t", ByteBuffer(32)};
  std::vector<Answer> asked_;  // the newest is open
  std::optional<NodeAgent> agent_;
};

TEST_F(NodeAgentTest, AsksAtOnceWhenItIsTold) {
  answer(nobody());
  agent_->look_again();  // the loop has not run: no time has come
  EXPECT_EQ(asked_.size(), 2u);
}

TEST_F(NodeAgentTest, AsksOnceMoreIfItIsToldWhileItAsks) {
  for (int i = 0; i < 3; ++i) agent_->look_again();
  EXPECT_EQ(asked_.size(), 1u);
  answer(nobody());
  EXPECT_EQ(asked_.size(), 2u) << "what was on its way may be older than what it was told";
}

TEST_F(NodeAgentTest, StaysWithItsLeaderIfTheAnswerIsTheSameOrNone) {
  Place leader(loop_);
  answer(at(leader));
  ASSERT_TRUE(until([&] { return leader.callers.size() == 1; }));
  for (const auto& place : {at(leader), nobody()}) {
    agent_->look_again();
    answer(place);
    settle();
    EXPECT_EQ(leader.callers.size(), 1u);
    EXPECT_FALSE(leader.has_left(0));
  }
}

TEST_F(NodeAgentTest, LeavesALeaderThatSaysNothingForTheOneThatLeads) {
  Place former(loop_), next(loop_);
  answer(at(former));
  ASSERT_TRUE(until([&] { return former.callers.size() == 1; }));
  agent_->look_again();
  answer(at(next));
  ASSERT_TRUE(until([&] { return next.callers.size() == 1; }));
  EXPECT_TRUE(until([&] { return former.has_left(0); }));
}

TEST_F(NodeAgentTest, AnAddressThatComesTooLateIsNotGoneTo) {
  Place former(loop_), next(loop_);
  answer(at(former));  // its name is being looked up
  agent_->look_again();
  answer(at(next));
  ASSERT_TRUE(until([&] { return next.callers.size() == 1; }));
  settle();
  EXPECT_TRUE(former.callers.empty() || former.has_left(0));
}

}  // namespace
}  // namespace muster::agent
