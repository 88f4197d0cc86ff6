// Which file of an earlier save a shard may become a link to, when its bytes have not changed. PURE.
//
// A link costs nothing and is as good as a copy, except that damage to the file is damage to both versions.
// So the newest `keep` versions never share a file: what is linked is a file that none of the newest
// `keep - 1` has. With keep = 2 an unchanging shard is written twice, and then the two files take turns. A
// file has all bytes of its shard: there is no chain, and versions can be removed in any order.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "checkpoint/shard_file.h"

namespace muster::checkpoint {

// A file that has, as it seems, what is to be saved; save_shard makes sure.
struct EarlierShard {
  ShardRecord record;                                // of the newest save that has the file
  std::shared_ptr<const std::vector<Digest>> table;  // of its slabs, metadata first
  VersionId written_by() const {
    return record.written_by.nonce != 0 ? record.written_by : record.identity.id;
  }
};

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

  // For a save that is about to begin: what it may link if nothing has changed since the save before.
  std::optional<EarlierShard> to_link(const std::shared_ptr<const ShardTemplate>& shape) const;
  // The slab that was different when it was last looked for a link in vain: the first to look at.
  uint64_t suspect = 0;

 private:
  struct Entry {
    EarlierShard shard;
    bool durable = false;
  };
  size_t keep_;
  std::shared_ptr<const ShardTemplate> shape_;
  std::vector<Digest> piece_digests_;
  std::deque<Entry> same_;  // saves with these bytes, newest last
};

}  // namespace muster::checkpoint
