#include "checkpoint/sharing.h"

#include <algorithm>
#include <set>

namespace muster::checkpoint {

void ShardHistory::wrote(const std::shared_ptr<const ShardTemplate>& shape, const EarlierShard& shard,
                         const std::vector<Digest>& piece_digests) {
  if (shape_ != shape || piece_digests_ != piece_digests) same_.clear();
  shape_ = shape;
  piece_digests_ = piece_digests;
  same_.push_back({shard, false});
  // Enough to find what the newest versions do not have; saves that are still open are among them.
  const size_t remembered = 2 * keep_ + 2;
  if (same_.size() > remembered) same_.pop_front();
}

void ShardHistory::closed(const VersionId& id, bool durable) {
  const auto found = std::find_if(same_.begin(), same_.end(),
                                  [&](const Entry& entry) { return entry.shard.record.identity.id == id; });
  if (found == same_.end()) return;
  found->durable = durable;
  if (!durable) same_.erase(found);
}

std::optional<EarlierShard> ShardHistory::to_link(const std::shared_ptr<const ShardTemplate>& shape) const {
  if (shape_ != shape) return std::nullopt;
  std::set<VersionId> taken;  // files of the newest versions, by the save that wrote them
  size_t newer = 0;
  for (auto entry = same_.rbegin(); entry != same_.rend(); ++entry) {
    if (!entry->durable) {
      taken.insert(entry->shard.written_by());  // it may still become one of them
    } else if (newer + 1 < std::max<size_t>(keep_, 1)) {
      taken.insert(entry->shard.written_by());
      ++newer;
    } else if (!taken.contains(entry->shard.written_by())) {
      return entry->shard;
    }
  }
  return std::nullopt;
}

}  // namespace muster::checkpoint
