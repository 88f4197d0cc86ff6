// From which save a run starts, out of what its ranks have found in the shared folder and in the nodes' own.
// Pure: all ranks compute the same from the same words.
//
// INVARIANT: a save in a node's own folder counts only where the shared folder's branch record says so
// (PROTOCOL 25). Without a record none does: each start of a job that saves locally writes one, so those
// saves are of another job. Nor does any beside a shared save of a history that the record does not know: a
// launch made it that wrote no record, and that launch has left what the record says.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "checkpoint/store.h"
#include "runtime/base/result.h"
#include "runtime/base/tier.h"
#include "runtime/control/types.h"

namespace muster {

// A save as its manifest names it.
struct FoundSave {
  checkpoint::VersionId id;
  checkpoint::Lineage lineage;
  bool verified = false;  // it was read back whole, once
  friend bool operator==(const FoundSave&, const FoundSave&) = default;
};

// What one rank knows. The shared folder's part counts as rank 0 has it, who owns that folder.
struct FoundByRank {
  bool saves_locally = false;
  uint64_t shared_rejected = 0;  // checkpoints that cannot be used
  checkpoint::Lineage branch;    // of the shared folder's record; empty: none
  std::vector<FoundSave> shared;
  std::vector<FoundSave> local;
  uint64_t local_rejected = 0;  // as the first rank of its node counts them
  bool unjudged = false;        // what is in its node's folder cannot be told
  friend bool operator==(const FoundByRank&, const FoundByRank&) = default;
};
std::vector<FoundSave> found_saves(std::span<const checkpoint::Candidate> usable);
ByteBuffer encode(const FoundByRank& found);
Result<FoundByRank> decode_found(ByteSpan bytes);

// One save to try: `readers` read it, each one part, and send the others what they have read.
struct Proposal {
  Tier tier = Tier::kShared;
  FoundSave save;
  std::vector<int> readers;  // ranks, ascending
  friend bool operator==(const Proposal&, const Proposal&) = default;
};

struct RestoreChoice {
  std::vector<Proposal> proposals;  // in the order in which they are tried
  uint64_t shared_rejected = 0, local_rejected = 0;
  std::vector<int> unjudged;  // ranks whose node may have saves that count
  // The next start must know where this one begins: the record would name what this one leaves, or a node's
  // save would have none to go by.
  bool needs_record = false;

  // The newest version that the shared folder has for sure where the run goes on from `taken`, by what was
  // read now or verified when it was saved; kNoVersion: none. Never the version of a node's own save: a
  // shared one beside it was not looked at, and is made anew.
  control::Version durable_at(const Proposal& taken) const;
  size_t count(Tier tier) const;
  // The job has checkpoints, whether they can be used or not, or may have some: it is not at its beginning.
  bool has_any() const {
    return shared_rejected + local_rejected > 0 || !unjudged.empty() || !proposals.empty();
  }
};

// Whether all these ranks, of one node, have what was taken in their node's folder, so that it need not save
// that anew: each node's save of a version has an id of its own. `refused`: were found damaged.
bool node_has(std::span<const FoundByRank> by_rank, std::span<const int> ranks, const FoundSave& taken,
              std::span<const checkpoint::VersionId> refused);

// Nodes' saves that could not be read for want of memory or descriptors, which says nothing about them.
// Another save of the version may stand in for one. An older version may not: to go on from that would
// abandon this one.
class UnreadSaves {
 public:
  void add(const Proposal& proposal, const Error& why);
  // Errors: why a newer one was not read.
  Status may_try(const Proposal& proposal) const;
  // No save is left to try. Errors: the same.
  Status none() const;

 private:
  uint64_t newest_ = 0;
  std::optional<Error> why_;
};

// Newest version first; at equal versions those of nodes, which are nearer. REQUIRES: by_rank is not empty.
RestoreChoice choose_restore(std::span<const FoundByRank> by_rank);

}  // namespace muster
