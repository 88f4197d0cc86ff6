#include "checkpoint/sharing.h"

#include <algorithm>
#include <set>

namespace muster::checkpoint {

void for_each_run(std::span<const Digest> table, std::span<const Digest> earlier, uint64_t first,
                  uint64_t count, const std::function<void(Range slabs, bool same)>& run) {
  const uint64_t end = first + count;
  uint64_t different_from = first;  // not told yet
  for (uint64_t slab = first; slab < end;) {
    uint64_t same_to = slab;
    while (same_to < end && table[1 + same_to] == earlier[1 + same_to]) ++same_to;
    if (same_to - slab >= kClonedSlabsMin) {
      if (different_from < slab) run({different_from, slab}, false);
      run({slab, same_to}, true);
      different_from = same_to;
    }
    slab = same_to + 1;
  }
  if (different_from < end) run({different_from, end}, false);
}

void ShardHistory::wrote(const std::shared_ptr<const ShardTemplate>& shape, const EarlierShard& shard,
                         const std::vector<Digest>& piece_digests) {
  if (shape_ != shape) saves_.clear();
  shape_ = shape;
  piece_digests_ = piece_digests;
  table_ = shard.table;
  saves_.push_back({shard, piece_digests, false});
  // Enough to find what the newest versions do not have; saves that are still open are among them.
  const size_t remembered = 2 * keep_ + 2;
  if (saves_.size() > remembered) saves_.pop_front();
}

void ShardHistory::closed(const VersionId& id, bool durable) {
  const auto found = std::find_if(saves_.begin(), saves_.end(),
                                  [&](const Entry& entry) { return entry.shard.record.identity.id == id; });
  if (found == saves_.end()) return;
  found->durable = durable;
  if (!durable) saves_.erase(found);
}

std::optional<EarlierShard> ShardHistory::to_share(const std::shared_ptr<const ShardTemplate>& shape) const {
  if (shape_ != shape) return std::nullopt;
  std::set<VersionId> taken;  // the origins of the newest versions' files
  size_t newer = 0;
  for (auto entry = saves_.rbegin(); entry != saves_.rend(); ++entry) {
    const VersionId origin = entry->shard.record.origin();
    if (!entry->durable) {
      taken.insert(origin);  // it may still become one of them
    } else if (newer + 1 < std::max<size_t>(keep_, 1)) {
      taken.insert(origin);
      ++newer;
    } else if (!taken.contains(origin)) {
      return if_worth_it(*entry);
    }
  }
  return std::nullopt;
}

// What has changed little since then will, as it seems, not change much more. Where more than half is new,
// the file is better one of its own, which others can share bytes with.
std::optional<EarlierShard> ShardHistory::if_worth_it(const Entry& entry) const {
  EarlierShard shard = entry.shard;
  shard.seems_same = entry.piece_digests == piece_digests_;
  if (shard.seems_same) return shard;
  if (!table_ || !shard.table || table_->size() != shard.table->size()) return std::nullopt;
  const uint64_t slabs = shard.record.geometry.slab_count();
  uint64_t same_slabs = 0;
  for_each_run(*table_, *shard.table, 0, slabs,
               [&](Range run, bool same) { same_slabs += same ? run.size() : 0; });
  return 2 * same_slabs >= slabs ? std::optional(shard) : std::nullopt;
}

}  // namespace muster::checkpoint
