// A worker's connection to the control plane, whatever started the process. Start at ControlClient::connect.
//
//   by `muster run`    the socket that the agent left open: an elastic world
//   by mpirun, srun    rank 0 holds the leader; a fixed world, in which any loss ends the job as requeue
//   by nobody          leader, node and member in this process: a world of one, no network involved
//
// INVARIANTS
//  - Callbacks run on the client's own thread, one at a time, and none after the destructor has returned. One
//    may still be at work while the destructor runs: from its call on callbacks must leave the client alone.
//    They must return soon: heartbeats are sent from the same thread.
//  - on_lost comes once at most; after it no message comes and send() refuses.
//  - In a forked child the client is dead: send() refuses, and the destructor touches nothing.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "runtime/agent/place.h"
#include "runtime/base/events.h"
#include "runtime/base/result.h"
#include "runtime/control/member.h"

namespace muster::agent {

struct ControlOptions {
  Duration connect_timeout = 120 * kSecond;
  bool ignore_environment = false;  // a world of one, whatever started the process
};

struct ControlCallbacks {
  std::function<void(const control::Message&)> on_message;
  // kRetry: the agent is gone, and with it whoever could end or readmit this process. kEnded: the job is
  // over.
  std::function<void(Error)> on_lost;
  // Of the leader and node within this process (kFixed, kAlone). May be null.
  EventSink on_event;
};

class ControlClient {
 public:
  // Errors: kMisuse (variables), kEnvironment, kRetry (nobody answered within connect_timeout).
  static Result<std::unique_ptr<ControlClient>> connect(ControlOptions options, ControlCallbacks callbacks);
  // Sends what was queued, waiting for at most a few seconds. After Leaving was sent it first waits for the
  // job's end, where this process holds the leader that others still need.
  ~ControlClient();

  // Any thread; queued. Errors: kRetry: lost, or the queue is full.
  Status send(control::Message message);

  // What to say in MemberHello; its local_rank is the slot on its node, which is not always local_rank().
  control::Member as_member(ByteBuffer contact) const;

  // By the agent's options, which reach its workers as MUSTER_* variables.
  control::MemberLimits limits() const;

  control::MemberId member() const;
  control::NodeId node() const;
  const std::string& node_name() const;
  uint32_t local_rank() const;  // among the processes on this host
  uint32_t world_size() const;  // kFixed and kAlone; 0 where it changes
  World world() const;
  // "worker 1 of node a, by its agent", for messages.
  const std::string& description() const;

 private:
  struct State;
  explicit ControlClient(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace muster::agent
