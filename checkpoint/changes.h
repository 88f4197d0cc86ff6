// Which tensors have changed since the save before: the guard against a save that silently repeats old bytes.
//
// A program that trains a copy of what it registered, or a cache that is never filled anew, saves and
// restores without any error, and every checkpoint holds the first one's values. So each participant digests
// its pieces while it stages them, compares them with those of the save before and says with its vote which
// have changed; who publishes has all votes, and judges. Nothing of this is on disk: the first save of a
// process, and the first after the world has changed, compare nothing.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/expectation.h"
#include "checkpoint/shard_format.h"

namespace muster::checkpoint {

// What one participant found about its pieces, in the order of its layout.
struct PieceChanges {
  uint64_t since = 0;         // the version compared with
  std::vector<bool> changed;  // by piece
  friend bool operator==(const PieceChanges&, const PieceChanges&) = default;
};

// On the wire, behind the vote; little-endian, with a digest.
ByteBuffer encode(const PieceChanges& changes);
// Errors: kMisuse; the sentence says what is wrong with the bytes.
Result<PieceChanges> decode_piece_changes(ByteSpan bytes);

// One participant's memory of the newest save that it has staged.
class PieceHistory {
 public:
  // The digests of what was staged now. Empty: there is nothing to compare with, because it is the first
  // save, of the same or an earlier version, or of another layout.
  std::optional<PieceChanges> note(const std::shared_ptr<const ShardTemplate>& shape, uint64_t version,
                                   std::vector<Digest> digests);

 private:
  std::shared_ptr<const ShardTemplate> shape_;
  uint64_t version_ = 0;
  std::vector<Digest> digests_;
};

// What should not be, each in one sentence that names the tensors; empty: all is well, or it cannot be told.
struct Judgement {
  std::string news;      // what is told
  std::string standing;  // the same, and what was told before and has not changed yet
};

// Judges each save by all participants' votes. Not for concurrent use.
class ChangeGuard {
 public:
  // One expectation for each tensor.
  explicit ChangeGuard(std::vector<Expectation> expectations);

  //  - nothing has changed: no watched or changing tensor has, and there are some;
  //  - a watched tensor has not changed that had in all comparisons before, of which there was one;
  //  - a changing one has not; a constant one has.
  // A watched tensor is news once: whether one that stays is frozen or forgotten nobody can tell.
  // REQUIRES: `votes` are by participant of the plan; empty where one compared nothing.
  Judgement judge(const SavePlan& plan, uint64_t version,
                  const std::vector<std::optional<PieceChanges>>& votes);

 private:
  struct History {
    uint64_t changes = 0;
    bool always = true;    // it changed in every comparison
    bool stopped = false;  // it did, up to one from which on it has not
  };
  std::vector<Expectation> expectations_;
  std::vector<History> history_;
};

}  // namespace muster::checkpoint
