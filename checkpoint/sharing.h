// Which file of an earlier save a shard may share bytes with, when they have not changed: all of them, as a
// link to the file, or some of its slabs, cloned into a new one. PURE.
//
// Shared bytes cost nothing and are as good as a copy, except that damage to them is damage to both versions.
// So the newest `keep` versions never share any: what is linked to, or cloned from, is a file whose origin is
// none of those of the newest `keep - 1`. The origin of a file that was written whole is the save that wrote
// it; one that took slabs from another has that one's. With keep = 2 an unchanging shard is written twice,
// and then the two files take turns. A file has all bytes of its shard, and the file system keeps cloned ones
// as long as any file has them: there is no chain, and versions can be removed in any order.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "checkpoint/shard_file.h"

namespace muster::checkpoint {

// As few slabs as are worth a place of their own in a file: a clone waits for the writes before it, and each
// makes the file one piece more.
constexpr uint64_t kClonedSlabsMin = 4;

// A file that has, as it seems, what is to be saved, or much of it; save_shard makes sure.
struct EarlierShard {
  ShardRecord record;                                // of the newest save that has the file
  std::shared_ptr<const std::vector<Digest>> table;  // of its slabs, metadata first
  bool seems_same = true;                            // all of it
};

// The slabs [first, first + count) in runs: of at least kClonedSlabsMin that have the same digest in both
// tables, and of the others between them. In order.
void for_each_run(std::span<const Digest> table, std::span<const Digest> earlier, uint64_t first,
                  uint64_t count, const std::function<void(Range slabs, bool same)>& run);

// One participant's memory of what it saved in this process.
class ShardHistory {
 public:
  explicit ShardHistory(size_t keep) : keep_(keep) {}

  // A save that this participant has written, or linked. `piece_digests` tell whether it has the same bytes
  // as the one before.
  void wrote(const std::shared_ptr<const ShardTemplate>& shape, const EarlierShard& shard,
             const std::vector<Digest>& piece_digests);
  // What became of it. Of one that failed nothing is linked.
  void closed(const VersionId& id, bool durable);

  // For a save that is about to begin: what it may link to if nothing has changed since the save before, or
  // clone slabs from, if at least half of what was saved then is in it.
  std::optional<EarlierShard> to_share(const std::shared_ptr<const ShardTemplate>& shape) const;
  // The slab that was different when it was last looked for a link in vain: the first to look at.
  uint64_t suspect = 0;

 private:
  struct Entry {
    EarlierShard shard;
    std::vector<Digest> piece_digests;
    bool durable = false;
  };
  std::optional<EarlierShard> if_worth_it(const Entry& entry) const;
  size_t keep_;
  std::shared_ptr<const ShardTemplate> shape_;
  // Of the newest save, whatever became of it.
  std::vector<Digest> piece_digests_;
  std::shared_ptr<const std::vector<Digest>> table_;
  std::deque<Entry> saves_;  // of this shape, newest last
};

}  // namespace muster::checkpoint
