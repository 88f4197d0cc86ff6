// Helpers of the control tests: look into actions, and drive a Coordinator with hand-made messages.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <initializer_list>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "runtime/control/coordinator.h"

namespace muster::control {

// What one message to several members of a node is to each of them.
inline void add_each(const Send& send, std::vector<Send>& to) {
  to.push_back({send.node, Envelope{send.envelope.member, send.envelope.message, {}}});
  for (const MemberId other : send.envelope.others)
    to.push_back({send.node, Envelope{other, send.envelope.message, {}}});
}

// Also the Sends that a SendMany stands for, one to each member.
template <typename T, typename ActionVector>
std::vector<T> all_of_kind(const ActionVector& actions) {
  std::vector<T> found;
  for (const auto& action : actions) {
    if (const T* value = std::get_if<T>(&action)) found.push_back(*value);
    if constexpr (std::is_same_v<T, Send> && std::is_same_v<ActionVector, Actions>) {
      if (const auto* many = std::get_if<SendMany>(&action)) {
        for_each_node(*many, [&](const Send& send) { add_each(send, found); });
      }
    }
  }
  return found;
}

// Messages of type T among the Sends, with their addressee.
template <typename T, typename ActionVector>
std::vector<std::pair<MemberId, T>> sent(const ActionVector& actions) {
  std::vector<std::pair<MemberId, T>> found;
  for (const Send& send : all_of_kind<Send>(actions)) {
    if (const T* message = std::get_if<T>(&send.envelope.message)) {
      found.emplace_back(send.envelope.member, *message);
    }
  }
  return found;
}

// As a member of `view` reads it.
inline std::vector<MemberId> participants_of(const SaveOpen& open, const View& view) {
  if (open.all_of.counter == 0) return open.participants;
  EXPECT_EQ(open.all_of, view.generation);
  std::vector<MemberId> ids;
  for (const Member& member : view.members) ids.push_back(member.id);
  return ids;
}

// Of the newest view that was told, by target: each node is told what concerns it.
template <typename Part>
std::vector<Part> told_parts(const Actions& actions, std::vector<Part> Install::*parts) {
  std::vector<Part> found;
  Generation newest;
  for (const auto& [member, install] : sent<Install>(actions)) {
    if (install.view.generation > newest) found.clear();
    newest = install.view.generation;
    for (const Part& part : install.*parts) {
      const bool known = std::ranges::any_of(found, [&](const Part& other) {
        if constexpr (std::is_same_v<Part, ShardMove>)
          return other == part;
        else
          return other.source == part.source && other.target == part.target;
      });
      if (!known) found.push_back(part);
    }
  }
  std::ranges::stable_sort(found, {}, &Part::target);
  return found;
}
inline std::vector<Transfer> told_transfers(const Actions& actions) {
  return told_parts(actions, &Install::transfers);
}
inline std::vector<ShardMove> told_moves(const Actions& actions) {
  return told_parts(actions, &Install::moves);
}

inline bool has_event(const Actions& actions, EventKind kind) {
  for (const Event& event : all_of_kind<Event>(actions)) {
    if (event.kind == kind) return true;
  }
  return false;
}

constexpr Generation gen(uint64_t counter) { return Generation{77, counter}; }

inline Digest digest_at(Version version) { return Digest{static_cast<uint64_t>(version) + 1000, 7}; }

// A leader with nodes 1…n of w workers; member ids are node * 100 + local rank. Members obey: they answer
// Install with Ready, and Go with Started in a view without a base, else with its digest; what else they say
// is each test's.
class LeaderTest : public ::testing::Test {
 protected:
  Limits limits;
  Instant now = kSecond;
  std::unique_ptr<Coordinator> leader;
  Actions last;              // of the newest call
  Actions all;               // of all calls
  bool answer_store = true;  // the store writes at once
  std::set<MemberId> mute;   // members that do not answer
  Version start = 0;
  Lineage restored;                   // of the save that `start` was read from
  Version saved_before = kNoVersion;  // newest in the shared folder then
  bool paces_saves = false, paces_local_saves = false, drains_saves = false;
  Sharding sharding;
  StateSize size;

  static MemberId id(NodeId node, uint32_t local_rank) { return node * 100 + local_rank; }

  void begin(uint32_t nodes_min, uint32_t nodes_max, uint32_t workers) {
    limits.nodes_min = nodes_min;
    limits.nodes_max = nodes_max;
    limits.workers_per_node = workers;
    leader = std::make_unique<Coordinator>(limits, "job", 77, now);
  }

  // Carries out the actions and obeys for the members, until nothing is left to answer.
  void carry(Actions actions) {
    last.insert(last.end(), actions.begin(), actions.end());
    all.insert(all.end(), actions.begin(), actions.end());
    for (const Action& action : actions) {
      if (const auto* store = std::get_if<StoreView>(&action); store != nullptr && answer_store) {
        carry(leader->stored(now, store->attempt, true, store->view));
      }
      for (const Send& send : all_of_kind<Send>(Actions{action})) obey(send);
    }
  }
  void obey(const Send& send) {
    const MemberId member = send.envelope.member;
    if (member == 0 || mute.contains(member)) return;
    if (const auto* install = std::get_if<Install>(&send.envelope.message)) {
      bases[member] = install->view.base;
      had[member] = std::exchange(given[member], leader->view().shards_of(member));
      inbox(send.node, member, Ready{install->view.generation, install->attempt});
    }
    if (const auto* go = std::get_if<Go>(&send.envelope.message)) {
      const Version base = bases[member];
      if (base == kNoVersion)
        inbox(send.node, member, Started{go->generation, start, digest_at(start), restored, saved_before});
      if (base == kNoVersion && sharding.copies == 0) return;
      if (!undigested.contains(member)) tell_base(send.node, member, go->generation);
    }
  }
  void tell_base(NodeId node, MemberId member, const Generation& generation) {
    const Version base = std::max(bases[member], start);
    BaseDigest told{generation, digest_at(flipped.contains(member) ? -base : base), {}};
    std::set<uint32_t> shards(given[member].begin(), given[member].end());
    shards.insert(had[member].begin(), had[member].end());
    for (uint32_t shard : shards) {
      const bool wrong = flipped_shards.contains({shard, member});
      told.shards.push_back({shard, digest_at(wrong ? -1 : static_cast<Version>(shard))});
    }
    inbox(node, member, std::move(told));
  }
  std::map<MemberId, Version> bases;
  std::map<MemberId, std::vector<uint32_t>> given, had;  // shards, by the newest Install and the one before
  std::set<std::pair<uint32_t, MemberId>> flipped_shards;
  std::set<MemberId> undigested;  // members that do not tell their digests
  std::set<MemberId> flipped;     // members whose states are others

  void inbox(NodeId node, MemberId member, Message message) {
    carry(leader->receive(now, node, Envelope{member, std::move(message)}));
  }
  void say(NodeId node, MemberId member, Message message) {
    last.clear();
    inbox(node, member, std::move(message));
  }
  // With a heartbeat from every living node on the way: a leader that is not called notices its own absence.
  void tick_at(Instant at) {
    last.clear();
    while (now < at) {
      now = std::min(at, now + limits.heartbeat_every);
      for (NodeId node : alive) inbox(node, 0, Heartbeat{});
      carry(leader->tick(now));
    }
  }
  void cut_off(std::initializer_list<NodeId> nodes) {
    for (const NodeId node : nodes) {
      alive.erase(node);
      carry(leader->disconnected(now, node, "connection reset"));
    }
  }

  std::set<NodeId> alive;

  void node_comes(NodeId node, uint32_t workers) {
    alive.insert(node);
    NodeHello hello;
    hello.node = node;
    hello.name = "n" + std::to_string(node);
    hello.job = "job";
    hello.workers = workers;
    hello.nodes_min = limits.nodes_min;
    hello.nodes_max = limits.nodes_max;
    say(node, 0, hello);
  }
  void member_comes(NodeId node, uint32_t local_rank, MemberId as = 0) {
    const MemberId who = as == 0 ? id(node, local_rank) : as;
    MemberHello hello;
    hello.member = Member{who, node, local_rank, "n" + std::to_string(node), {}};
    hello.description = "a state";
    hello.paces_saves = paces_saves;
    hello.paces_local_saves = paces_local_saves;
    hello.drains_saves = drains_saves;
    hello.sharding = sharding;
    hello.size = size;
    say(node, who, hello);
  }
  // MAX nodes come with all their workers: the first view runs.
  void form(uint32_t nodes, uint32_t workers) {
    begin(1, nodes, workers);
    for (NodeId node = 1; node <= nodes; ++node) {
      node_comes(node, workers);
      for (uint32_t local_rank = 0; local_rank < workers; ++local_rank) member_comes(node, local_rank);
    }
    ASSERT_EQ(leader->phase(), "running");
  }
  void gone(NodeId node, MemberId member, int code = 137, bool orderly = false) {
    MemberGone message;
    message.member = member;
    message.proven = true;
    message.orderly = orderly;
    message.exit_code = code;
    message.local_rank = static_cast<uint32_t>(member % 100);
    message.why = "killed by signal 9";
    say(node, 0, message);
  }
  void report(NodeId node, MemberId member, Version version, bool torn = false) {
    Report message;
    message.generation = leader->view().generation;
    message.attempt = asked();
    message.version = torn ? kNoVersion : version;
    message.torn = torn;
    message.installed = message.knows = leader->view().generation;
    if (message.version > leader->view().base) message.gradient_in = message.installed;
    say(node, member, message);
  }
  Report known_report(Version version) const {
    Report message;
    message.generation = message.installed = message.knows = leader->view().generation;
    message.attempt = asked();
    message.version = version;
    return message;
  }
  uint32_t asked() const {
    const auto agrees = sent<Agree>(all);
    return agrees.empty() ? 0 : agrees.back().second.attempt;
  }
  void progress_all(Version version) {
    for (const Member& member : leader->view().members) {
      say(member.node, member.id, Progress{leader->view().generation, version});
    }
  }
  std::vector<MemberId> world() const {
    std::vector<MemberId> ids;
    for (const Member& member : leader->view().members) ids.push_back(member.id);
    return ids;
  }
};

}  // namespace muster::control
