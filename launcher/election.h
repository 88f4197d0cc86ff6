// Who leads, where the store is etcd: one key under a lease names the leader, another the run. Agents that
// have lost their leader look here for the next, and the first that finds the place vacant takes it.
//
//   /muster/JOB/leader  under the leader's lease: node, host, port, term, incarnation
//   /muster/JOB/run     incarnation, term and node of the newest leader, and the end, once it is decided
//   /muster/JOB/view    the newest view (LeaderHost's)
//
// INVARIANTS
//  - Of two leaders the one with the lower term can write nothing: each write needs its key `leader` as it
//  made it
//    (rule 14).
//  - A leader's lease counts from when it was asked for, on this machine's clock, and ends a margin before
//  etcd's.
//  - Whoever was not in a run takes it over only if nobody of the run did for `fresh_wait`, and then as a new
//  run
//    with a new incarnation (rule 9).
// Lives on a Loop's thread; what waits for etcd runs on threads of its own. Answers come on the loop's
// thread, in bounded time, and none after the election is destroyed.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launcher/etcd.h"
#include "runtime/agent/loop.h"
#include "runtime/agent/store.h"
#include "runtime/control/messages.h"

namespace muster::launcher {

// The address of this machine on the way to `there`: where other agents reach it, as they reach etcd. Blocks
// while it looks the name up.
Result<std::string> own_address_toward(const std::vector<agent::HostPort>& members);

struct ElectionOptions {
  EtcdAccess etcd;
  std::string job;
  control::NodeId node = 0;
  std::string node_name;
  uint32_t agents_max = 1;
  Duration lease = 5 * kSecond;  // whole seconds
  Duration fresh_wait = 30 * kSecond;
  // Who has not looked for so long does not know that the place was vacant meanwhile. Agents look once a
  // second, and etcd may be slow.
  Duration look_gap_max = 3 * kSecond;
};

// What is known of a leader, and of a run, by their keys.
struct LeaderKey {
  control::NodeId node = 0;
  std::string node_name;
  std::string host;
  uint16_t port = 0;
  uint64_t term = 0;
  uint64_t incarnation = 0;
  uint64_t nonce = 0;  // of the campaign
};
struct RunKey {
  uint64_t incarnation = 0;
  uint64_t term = 0;
  std::optional<control::EndJob> ended;
  control::NodeId leader = 0;  // the newest leader's node; 0: not told, as once the end is
};
ByteBuffer encode(const LeaderKey& key);
ByteBuffer encode(const RunKey& key);
Result<LeaderKey> read_leader_key(ByteSpan bytes);
Result<RunKey> read_run_key(ByteSpan bytes);

struct Standing {
  enum What { kLed, kVacant, kEnded, kWait } what = kWait;
  LeaderKey leader;
  control::EndJob ended;
  std::string why;  // kWait
};

struct Won {
  uint64_t token = 0;  // the revision at which the key `leader` was made
  uint64_t term = 0;
  uint64_t incarnation = 0;
  control::NodeId former = 0;  // the node of the leader before, in this run; 0: not known, or there was none
  ByteBuffer view;             // empty: none is stored
};

class Election {
 public:
  Election(agent::Loop& loop, ElectionOptions options);
  ~Election();  // gives a lease back that it holds; waits a second for that at most

  // `incarnation`: of the run that this agent is part of; 0: of none.
  void look(uint64_t incarnation, std::function<void(Result<Standing>)> answer);
  // For a leader that would listen at `port`. nullopt: another was faster.
  void campaign(uint16_t port, uint64_t incarnation, std::function<void(Result<std::optional<Won>>)> answer);
  // Renews the lease until resign() or the end of this.
  std::unique_ptr<agent::Store> store_of(const Won& won);
  // Once: watches the key `leader`, and says when a look() may be worth its while: it has changed, or may
  // have. Each agent says so at a moment of its own, so that not all of them read, and ask for a lease, at
  // once. `trouble` gets words for people.
  void watch(std::function<void()> changed, std::function<void(std::string)> trouble);
  // Gives the lease back, and stands for no other election for a while: one who could not go on leaves it to
  // others.
  void resign(Duration hold_off);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace muster::launcher
