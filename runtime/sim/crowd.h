// What the leader alone costs in a world of many ranks. The production Coordinator leads nodes whose members
// answer all that they are asked, at once: what is counted is messages, and what is timed is the processor
// time of the leader's decisions. Learners, shards and a change of the leader are not looked at.
//
// Nothing is sent or stored for real, and nothing goes wrong here but what is asked for: that the protocol is
// right is simulation.h's affair.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/control/coordinator.h"

namespace muster::sim {

class Crowd {
 public:
  struct Cost {
    uint64_t sent = 0;      // messages from the leader to nodes
    uint64_t received = 0;  // and to it
    double leader_ms = 0;   // processor time
  };
  // Called with each message that the leader sends to a node.
  using Heard = std::function<void(const control::Envelope&)>;

  Crowd(uint32_t nodes, uint32_t ranks_per_node, Heard heard = {});
  ~Crowd();

  // Nodes and members say hello, and the first view begins.
  Cost form();
  // The last nodes' agents are gone with their workers: their connections end, one after the other, which is
  // silence. The others' answers come when all of them were asked.
  Cost lose(uint32_t nodes);
  // One save, from the member that says it is due to the publisher's answer. `lost`: so many nodes go while
  // it is open, before their members vote; their parts are written by others, who still hold the version, or
  // (`refused`) do not any more, so that the save fails.
  Cost save(uint32_t lost = 0, bool refused = false);
  // Each node saves for itself.
  Cost save_locally();
  // The last nodes are told to leave, and do so at a boundary.
  Cost drain(uint32_t nodes);
  // Each member tells that it has made a step.
  Cost progress();
  // The last version is reached: all members leave, and their processes end.
  Cost end();

  uint64_t ranks() const { return uint64_t{nodes_} * ranks_per_node_; }
  // A view of all of them runs.
  bool running() const;
  bool ended() const;
  uint64_t saves_durable() const { return saves_durable_; }

 private:
  control::MemberId id(control::NodeId node, uint32_t slot) const;
  void hear(control::NodeId node, control::MemberId member, control::Message message);
  template <typename Call>
  void timed(Call&& call);
  template <typename Say>
  void all_say(Say&& say);
  void disconnect(uint32_t nodes);
  void deliver(control::NodeId node, const control::Envelope& envelope);
  void drain_inbox();
  void answer(control::NodeId node, control::MemberId member, const control::Message& message);
  bool votes_now(control::NodeId node) const { return node <= voting_; }

  uint32_t nodes_;
  const uint32_t ranks_per_node_;
  const Heard heard_;
  Instant now_ = kSecond;
  std::unique_ptr<control::Coordinator> leader_;
  control::Version version_ = 10;
  control::Version base_ = control::kNoVersion;
  control::NodeId voting_ = 0;  // the nodes above it keep their votes to themselves
  bool refuses_ = false;        // to write parts of others
  uint64_t saves_durable_ = 0;
  Cost cost_;
  std::deque<control::StoreView> stores_;
  std::deque<std::pair<control::NodeId, control::Envelope>> inbox_;
};

}  // namespace muster::sim
