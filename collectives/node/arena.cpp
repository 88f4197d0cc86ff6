#include "collectives/node/arena.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace muster {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kHugePage = 2 << 20;

// All ranks of a node share its memory, but one may need more of it than others.
constexpr uint64_t kTimesTheHost = 4;

// What each may take of the whole, and no more than the host has; where address space is limited, of an
// eighth of it.
uint64_t arena_bytes(int given_ranks) {
  const auto ranks = static_cast<uint64_t>(std::max(given_ranks, 1));
  const uint64_t host = Arena::host_bytes();
  uint64_t bytes = std::min(host, host / ranks * kTimesTheHost);
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
    bytes = std::min<uint64_t>(bytes, limit.rlim_cur / 8 / ranks);
  return std::max(bytes / kHugePage, uint64_t{1}) * kHugePage;
}

}  // namespace

ArenaView::ArenaView(SharedMemory memory) : memory_(std::move(memory)) {
  // Wishes only. A mate's buffers do not belong into this process's core dump.
  madvise(base(), bytes(), MADV_HUGEPAGE);
  madvise(base(), bytes(), MADV_DONTDUMP);
}

Result<ArenaView> ArenaView::map(int fd) {
  MUSTER_ASSIGN(SharedMemory memory, SharedMemory::map(fd, SharedMemory::Access::kWrite));
  return ArenaView(std::move(memory));
}

std::byte* ArenaView::at(uint64_t offset, uint64_t bytes) const {
  return offset <= memory_.bytes() && bytes <= memory_.bytes() - offset ? base() + offset : nullptr;
}

Result<std::shared_ptr<Arena>> Arena::create(int ranks) {
  std::shared_ptr<Arena> arena(new Arena);
  MUSTER_ASSIGN(SharedMemory memory, SharedMemory::create("muster-arena", arena_bytes(ranks)));
  arena->view_ = ArenaView(std::move(memory));
  return arena;
}

uint64_t Arena::host_bytes() {
  const auto pages = static_cast<uint64_t>(std::max(sysconf(_SC_PHYS_PAGES), 1L));
  return pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// First fit. Large buffers begin on huge pages, so that they can have such.
Result<MutableByteSpan> Arena::allocate(size_t bytes) {
  const uint64_t alignment = bytes >= kHugePage ? kHugePage : kPage;
  const uint64_t size = round_up(std::max<uint64_t>(bytes, 1), kPage);
  const std::lock_guard lock(mutex_);
  uint64_t offset = 0;
  for (const auto& [begin, used] : used_) {
    if (begin >= offset && begin - offset >= size) break;
    offset = round_up(begin + used, alignment);
  }
  std::byte* data = view_.at(offset, size);
  if (data == nullptr) {
    return Error{ErrorCode::kEnvironment, "no room for a shared buffer of " + human_bytes(bytes) +
                                              " in an arena of " + human_bytes(view_.bytes())};
  }
  used_[offset] = size;
  return MutableByteSpan(data, bytes);
}

void Arena::release(std::byte* data) {
  const std::lock_guard lock(mutex_);
  const auto found = used_.find(static_cast<uint64_t>(data - view_.base()));
  if (found == used_.end()) return;
  // Whoever gets it next gets zeros, also where it cannot be taken out, as of a process that has locked its
  // pages.
  if (madvise(data, found->second, MADV_REMOVE) != 0) std::memset(data, 0, found->second);
  used_.erase(found);
}

std::optional<uint64_t> Arena::offset_of(const std::byte* data, size_t bytes) const {
  if (data < view_.base() || data > view_.base() + view_.bytes()) return std::nullopt;
  const auto offset = static_cast<uint64_t>(data - view_.base());
  if (bytes > view_.bytes() - offset) return std::nullopt;
  return offset;
}

}  // namespace muster
