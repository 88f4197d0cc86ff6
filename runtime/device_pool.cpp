#include "runtime/device_pool.h"

#include <utility>

namespace muster {

Result<DeviceStream> DevicePool::take_stream() {
  {
    const std::lock_guard lock(mutex_);
    if (!streams_.empty()) {
      DeviceStream stream = std::move(streams_.back());
      streams_.pop_back();
      return stream;
    }
  }
  return device_.make_stream();
}

// Not under the lock: the device may have much to do.
Result<DevicePool::Block> DevicePool::take(Use use, size_t bytes) {
  Block block;
  {
    const std::lock_guard lock(mutex_);
    block = std::exchange(blocks_[static_cast<size_t>(use)], {});
  }
  if (block.memory && block.bytes >= bytes) return block;
  block = {};
  MUSTER_ASSIGN(block.memory, device_.allocate(bytes));
  block.bytes = bytes;
  return block;
}

Result<DevicePool::Pinned> DevicePool::take_pinned(size_t bytes) {
  Pinned pinned;
  {
    const std::lock_guard lock(mutex_);
    if (!pinned_.empty()) {
      pinned = std::move(pinned_.back());
      pinned_.pop_back();
    }
  }
  if (pinned.memory && pinned.bytes >= bytes) return pinned;
  pinned = {};
  MUSTER_ASSIGN(pinned.copied, device_.make_event());
  MUSTER_ASSIGN(pinned.memory, device_.allocate_pinned(bytes));
  pinned.bytes = bytes;
  return pinned;
}

void DevicePool::give(DeviceStream stream) {
  const std::lock_guard lock(mutex_);
  if (stream && streams_.size() < kKeptMax) streams_.push_back(std::move(stream));
}

void DevicePool::give(Use use, Block block) {
  const std::lock_guard lock(mutex_);
  Block& kept = blocks_[static_cast<size_t>(use)];
  if (block.memory && (!kept.memory || block.bytes > kept.bytes))
    std::swap(kept, block);  // what is left in `block` goes when the lock has gone
}

void DevicePool::give(Pinned pinned) {
  const std::lock_guard lock(mutex_);
  if (pinned.memory && pinned_.size() < kKeptMax) pinned_.push_back(std::move(pinned));
}

}  // namespace muster
