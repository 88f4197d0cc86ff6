// The nouns of the protocol: who, which view, which version. Values only; no clock, socket, thread or log.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/base/bytes.h"
#include "runtime/base/clock.h"

namespace muster::control {

// Exit codes of a run, of agents and workers alike. Any other but 0 is the program's own failure.
constexpr int kExitFailed = 1;    // states differ that must be equal
constexpr int kExitRequeue = 75;  // start the same job again: it resumes
constexpr int kExitMisuse = 78;   // starting again would fail again

// Incarnations, not places: a restarted process or agent has a new one. Random, never 0.
using NodeId = uint64_t;
using MemberId = uint64_t;

// Version s is the state before step s. kNoVersion: a process that holds none (fresh, or returned: rule 5).
using Version = int64_t;
constexpr Version kNoVersion = -1;

// (store incarnation nonce, counter): an emptied and restarted store cannot reissue one (rule 9).
struct Generation {
  uint64_t incarnation = 0;
  uint64_t counter = 0;
  friend auto operator<=>(const Generation&, const Generation&) = default;
};
std::string to_string(const Generation& generation);

// One entry for each installed view and resume. Version v of lineage P is on the branch of Q if P is a prefix
// of Q and no later entry of Q has a base below v.
struct LineageEntry {
  Generation generation;
  Version base = kNoVersion;
  friend auto operator<=>(const LineageEntry&, const LineageEntry&) = default;
};
using Lineage = std::vector<LineageEntry>;
bool on_branch(const Lineage& of_version, Version version, const Lineage& branch);

struct Member {
  MemberId id = 0;
  NodeId node = 0;
  uint32_t local_rank = 0;  // its slot on the node
  std::string node_name;
  ByteBuffer contact;  // opaque to the control plane: the data plane's address, a few hundred bytes
  friend bool operator==(const Member&, const Member&) = default;
};

// A state may be cut into shards, of which each member holds some (rule 3). Who holds one applies every
// update to it, so that its copies stay equal without being sent. Holders are named by rank in the view that
// has the map.
struct Sharding {
  static constexpr uint32_t kShardsMax = 1 << 16;
  static constexpr uint32_t kCopiesMax = 16;
  uint32_t shards = 0;  // fixed for the run; 0: all members hold all of the state
  uint32_t copies = 0;  // of each shard, where there are as many members
  friend bool operator==(const Sharding&, const Sharding&) = default;
};
// In bytes.
struct StateSize {
  uint64_t replicated = 0;  // of what all hold, or of a gradient where that is larger
  uint64_t shard = 0;       // of the largest
};
struct ShardMap {
  static constexpr uint32_t kNobody = UINT32_MAX;
  uint32_t copies = 0;
  std::vector<uint32_t> ranks;  // copy c of shard s at s × copies + c; kNobody after the last holder
  friend bool operator==(const ShardMap&, const ShardMap&) = default;

  uint32_t shards() const { return copies == 0 ? 0 : static_cast<uint32_t>(ranks.size() / copies); }
  std::vector<uint32_t> holders(uint32_t shard) const;  // REQUIRES: shard < shards()
  std::vector<uint32_t> held_by(uint32_t rank) const;   // shards, ascending
};

// Immutable once installed by compare-and-swap. Members stand in rank order: by node (in order of joining),
// then by local rank, so that neighbours in rank are neighbours in topology.
struct View {
  Generation generation;
  std::vector<Member> members;
  Version base = kNoVersion;  // all members start from this version; kNoVersion in the first view of a run
  Lineage lineage;            // ends with this view's own entry
  ShardMap shards;            // empty where nothing is sharded
  friend bool operator==(const View&, const View&) = default;

  std::optional<uint32_t> rank_of(MemberId id) const;
  std::vector<uint32_t> shards_of(MemberId id) const;
};

}  // namespace muster::control
