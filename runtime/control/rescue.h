// Rule 12: the embedded store's node is lost, and with it the leader. The agents that still reach each other
// save the newest version that is complete among their members; the first of them, in the order of joining,
// collects the votes. Without a lease: members are frozen meanwhile, nothing is overwritten, and a resume
// takes the save only on its branch. Pure, as everything here; runtime/agent/rescue.h is around it.
//
// INVARIANTS
//  - Only members of one lineage take part in one save, and only such whose digests agree.
//  - It ends in bounded time of the collector's running, with or without a save, and tells every agent which.
//  Who comes while it saves, or later,
//    may bring a newer version than that: all are asked once more then. Each agent comes once.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <utility>

#include "runtime/control/actions.h"
#include "runtime/control/rules.h"

namespace muster::control {

struct RescueLimits {
  Duration gather = 2 * kSecond;           // for the other agents to come
  Duration report_timeout = 60 * kSecond;  // a member may be inside its update
  Duration save_timeout = 600 * kSecond;
  // A deadline that comes so much too late was slept over by the collector's agent, which was stopped or
  // starved: what others sent meanwhile waits to be read. They have the time again that was left.
  Duration absence = kSecond;
  RuleSwitches rules;  // test-only
};

struct RescueDecision {
  Version version = kNoVersion;
  std::vector<MemberId> holders;  // who save it; empty: nothing to do, or nothing that can be done
  std::vector<uint32_t> writers;  // by shard: which of the holders writes it
  std::string why;
};
// The newest view counts first, then the newest version: what was done in an older view is on the newer one's
// branch only up to its base, which the newer view's members hold (rules 3, 5). A version of which nobody
// holds some shard is passed over: the frozen do not catch up with each other.
RescueDecision decide_rescue(const std::vector<std::pair<MemberId, RescueReport>>& reports);

class RescueCore {
 public:
  // `others`: agents that may come. `nonce`: for the names of saves, random.
  RescueCore(size_t others, RescueLimits limits, uint64_t nonce, Instant now);

  // An agent and its frozen members; the collector's own first.
  Actions joined(Instant now, NodeId node, const std::vector<MemberId>& members);
  Actions left(Instant now, NodeId node);
  // RescueReport, SaveVote and SavePublished of members, MemberGone of agents; the rest is ignored.
  Actions receive(Instant now, NodeId from, const Envelope& envelope);
  Actions tick(Instant now);
  Instant next_deadline() const;

  // Set once RescueOver was sent to every agent that was asked, until another comes.
  const std::optional<RescueOver>& over() const { return over_; }

 private:
  enum class Phase { kGathering, kAsking, kSaving, kOver };

  void send(NodeId node, MemberId member, Message message);
  void to_participants(const Message& message);
  void ask();
  void conclude();
  void open_save();
  void check_votes();
  void publish();
  void members_lost(const std::vector<MemberId>& lost);
  void save_failed(const std::vector<MemberId>& by, const std::string& why);
  void end(Version version, std::string why);
  Actions take() { return std::exchange(out_, {}); }

  const RescueLimits limits_;
  uint64_t nonce_;
  Instant now_ = 0;
  Actions out_;
  Phase phase_ = Phase::kGathering;
  Instant deadline_;
  size_t awaited_;
  std::set<NodeId> nodes_;
  std::set<NodeId> late_;  // came while the others' version was being saved, and was not asked
  std::map<MemberId, NodeId> members_;
  std::map<MemberId, RescueReport> reports_;
  RescueDecision decision_;
  uint64_t save_ = 0;
  std::map<MemberId, ByteBuffer> records_;
  MemberId publisher_ = 0;
  std::optional<RescueOver> over_;
};

}  // namespace muster::control
