// Internal: what is known of one operation while it runs, and its identity on the wire.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "collectives/lane_tree.h"
#include "collectives/reduce.h"
#include "collectives/schedule.h"
#include "collectives/work.h"
#include "runtime/base/bytes.h"

namespace muster {

class Core;

constexpr int kMaxRanks = 4095;  // of a group; a message's tag names them in 12 bits

// Names a view's group: the store's incarnation and a counter (PROTOCOL 9).
struct Generation {
  uint64_t nonce = 0;
  uint64_t counter = 0;
  friend bool operator==(const Generation&, const Generation&) = default;
};
std::string to_string(const Generation& generation);

// Why a group, or one operation, came to a bad end.
struct Failure {
  ErrorCode code = ErrorCode::kReconfigure;
  std::string reason;
  std::vector<int> suspects;
};

// All fields but `done` are guarded by the core's mutex until `done`, and constant afterwards.
struct Operation {
  virtual ~Operation() = default;
  std::shared_ptr<Core> core;  // null where the operation was refused at once
  std::atomic<bool> done{false};
  Status result = ok();
  std::vector<int> suspects;
};

// On the wire: never reuse a number.
enum class Collective : uint8_t {
  kAllReduce = 0,
  kReduceScatter = 1,
  kAllGather = 2,
  kBroadcast = 3,
  kBarrier = 4,
  kCanonicalAllReduce = 5,
  kReduce = 6,
  kGather = 7,
  kScatter = 8,
  kAllToAll = 9,
  kAllToAllV = 10,
  kProbe = 11,  // measures links; between engines that choose by cost only
};
std::string_view to_string(Collective kind);

// What must be equal on all ranks. No padding: compared and hashed as bytes.
struct Signature {
  uint64_t sequence = 0;  // position in the issue order of the group
  uint64_t history = 0;   // hash of all signatures before, so that an unnoticed difference is noticed later
  uint64_t count = 0;     // with kAllToAllV 0, or that of the block between two ranks
  uint64_t extra = 0;     // hash of: counts, factor, agreement; or canonical microbatches, lanes,
                          // assignment, scale; or a ProbeKind
  int32_t root = 0;
  Collective kind = Collective::kBarrier;
  DType dtype = DType::kFloat32;
  ReduceOp op = ReduceOp::kSum;
  uint8_t reserved = 0;
  friend bool operator==(const Signature&, const Signature&) = default;
};
static_assert(sizeof(Signature) == 40);

// "all_reduce #7 (float32 × 100, sum)". Safe for signatures from a peer.
std::string describe(const Signature& signature);

// Both sides of a difference, and what to do about it. `theirs` is what came from the peer.
Failure mismatch(int my_rank, const Signature& mine, int peer, const Signature& theirs);

// What a probe exchanges, all ranks alike: rounds of messages with a mate, with a rank of another node, or
// both.
struct ProbeKind {
  bool on_node = false;
  bool between = false;
  uint16_t rounds = 1;
  uint16_t messages = 1;

  uint64_t pack() const {
    return uint64_t{on_node} | uint64_t{between} << 1 | uint64_t{rounds} << 16 | uint64_t{messages} << 32;
  }
  static ProbeKind unpack(uint64_t packed) {
    return {(packed & 1) != 0, (packed & 2) != 0, static_cast<uint16_t>(packed >> 16),
            static_cast<uint16_t>(packed >> 32)};
  }
};

// A rank that looks at a deadline so much after it was itself held up: stopped, or without a processor. What
// its peers have sent meanwhile it has not seen, and what they wait for it has not sent, so it may not blame
// them before they had a fresh bound. That is given once where it was stopped, so that it names itself the
// next time, and a few times where it may only lack a processor, which is no fault: then who is blamed are
// those that have not answered.
constexpr Duration kHeldUp = 100 * kMillisecond;
constexpr Duration kStopped = 500 * kMillisecond;
constexpr int kFreshBoundsMax = 3;
constexpr Duration fresh_bound(Duration held_up) {
  return std::clamp<Duration>(held_up, 250 * kMillisecond, 5 * kSecond);
}

// Whether one that was given so many of them gets another.
constexpr bool gets_fresh_bound(Duration late, int given) {
  return late >= kHeldUp && (given == 0 || (late < kStopped && given < kFreshBoundsMax));
}

struct CollectiveOperation : Operation {
  Signature signature;
  uint64_t digest = 0;  // of the signature
  Instant issued = 0;
  Instant deadline = kNever;
  bool asked = false;                    // who is alive
  int fresh_bounds = 0;                  // that it was given
  Duration held_up = 0;                  // this rank was, for so long in all, when these were given
  std::vector<const std::byte*> inputs;  // one, or one for each aligned node of this rank
  std::byte* output = nullptr;
  double factor = 1;             // premul_sum
  std::vector<uint64_t> counts;  // of each rank's block, where they differ; signature.count is the largest
  // kAllToAllV only: what comes from each rank. `counts` is what goes to each; both are this rank's own.
  std::vector<uint64_t> received;
  // Canonical only.
  CombinePlan plan;
  std::vector<int> partials;  // of each rank
  float scale = 1;

  size_t element() const { return size_of(signature.dtype); }

  // As new, but with the memory that it has.
  void clear();

  // A rank's block in the larger buffer of operations that scatter or gather.
  Slice block(int rank) const {
    const auto index = static_cast<size_t>(rank);
    if (counts.empty()) return {index * signature.count, signature.count};
    return block_of(counts, rank);
  }
  // kAllToAllV: the block of the output that comes from this rank.
  Slice arriving(int rank) const { return block_of(received, rank); }
  // What is to agree with a peer about what goes to it, or comes from it.
  Signature signature_with(int peer, bool sends) const {
    Signature both = signature;
    if (signature.kind == Collective::kAllToAllV)
      both.count = (sends ? counts : received)[static_cast<size_t>(peer)];
    return both;
  }
  // Elements of the largest block, or of the whole where there are no blocks.
  uint64_t largest() const {
    if (signature.kind != Collective::kAllToAllV) return signature.count;
    return std::max(*std::ranges::max_element(counts), *std::ranges::max_element(received));
  }
  uint64_t blocks_count(int ranks) const {
    return counts.empty() ? static_cast<uint64_t>(ranks) * signature.count
                          : std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  }

 private:
  static Slice block_of(const std::vector<uint64_t>& counts, int rank) {
    return {std::accumulate(counts.begin(), counts.begin() + rank, uint64_t{0}),
            counts[static_cast<size_t>(rank)]};
  }
};
using CollectivePtr = std::shared_ptr<CollectiveOperation>;

}  // namespace muster
