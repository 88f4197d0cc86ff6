#include "collectives/node/message_blocks.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "runtime/base/clock.h"
#include "runtime/base/random.h"

namespace muster {
namespace {

constexpr size_t kPage = 4096;

// What a mate was handed may not get there: its queue of comers is full, or the system has no descriptor
// left, which passes when others have taken theirs.
constexpr int kTriesMax = 8;
constexpr Duration kFirstPause = 10 * kMillisecond;  // before the second try; then twice as long each time
constexpr Duration kPatience = 5 * kSecond;          // with all mates, who were there when the group formed

// What this rank has from one mate.
struct alignas(64) Row {
  std::atomic<uint64_t> mapped;                  // 1: its memory
  std::atomic<uint64_t> copied[kMessageBlocks];  // of each of its blocks, the last use
};

// At the beginning of a rank's memory, before a row for each rank of the node, which are zeros at first.
// Written by that rank alone.
struct alignas(64) Head {
  static constexpr uint32_t kMagic = 0x3142'4d4dU;  // "MMB1": layout version 1
  uint32_t magic = kMagic;
  int32_t rank = 0;
  Generation generation;
  std::atomic<uint64_t> uses[kMessageBlocks] = {};  // whose bytes are whole
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

std::atomic<uint64_t> puts = 0;

size_t blocks_offset(size_t ranks) { return round_up(sizeof(Head) + ranks * sizeof(Row), kPage); }

Head& head_of(const SharedMemory& memory) { return *reinterpret_cast<Head*>(memory.base()); }

Row& row_of(const SharedMemory& memory, size_t place) {
  return reinterpret_cast<Row*>(memory.base() + sizeof(Head))[place];
}

std::byte* block_of(const SharedMemory& memory, uint32_t block) {
  return memory.base() + memory.bytes() - (kMessageBlocks - block) * kBlockBytes;
}

}  // namespace

uint64_t MessageBlocks::put_in_all() { return puts; }

uint64_t MessageBlocks::tag_of(const Generation& generation) {
  constexpr uint64_t kKind = Head::kMagic;  // apart from feeds
  return mix64(generation.nonce ^ mix64(generation.counter ^ mix64(kKind)));
}

std::unique_ptr<MessageBlocks> MessageBlocks::open(Core& core, LocalListener& listener, uint64_t nonce,
                                                   const Generation& generation, int rank,
                                                   std::vector<Rank> mates) {
  const size_t ranks = mates.size() + 1;
  auto memory = SharedMemory::create("muster-blocks", blocks_offset(ranks) + kMessageBlocks * kBlockBytes);
  if (!memory.ok()) return nullptr;
  std::unique_ptr<MessageBlocks> blocks(new MessageBlocks(core, listener, nonce, generation));
  blocks->memory_ = std::move(*memory);
  auto* const head = new (blocks->memory_.base()) Head;
  head->rank = rank;
  head->generation = generation;
  blocks->by_rank_.resize(static_cast<size_t>(std::max(rank, mates.empty() ? 0 : mates.back().rank)) + 1);
  for (Rank& other : mates) {
    auto mate = std::make_unique<Mate>();
    mate->place = blocks->mates_.size() + (other.rank > rank ? 1 : 0);
    if (other.rank < rank) blocks->place_ = mate->place + 1;
    mate->self = std::move(other);
    blocks->by_rank_[static_cast<size_t>(mate->self.rank)] = mate.get();
    blocks->hand_over_to(*mate);
    blocks->mates_.push_back(std::move(mate));
  }
  blocks->given_up_at_ = now() + kPatience;
  const std::lock_guard lock(core.mutex());
  for (const auto& mate : blocks->mates_) blocks->watch(*mate);
  return blocks;
}

MessageBlocks::~MessageBlocks() { let_go(); }

// Of what was handed over and not taken, on either side.
void MessageBlocks::let_go() {
  for (const auto& mate : mates_) {
    if (mate->handing_over) core_.unwatch(mate->handing_over.get());
    mate->handing_over.reset();
    if (!mate->memory) (void)listener_.claim_handover(mate->self.contact.nonce, tag_of(generation_));
  }
}

void MessageBlocks::hand_over_to(Mate& mate) {
  auto connection = hand_over(mate.self.contact, nonce_, tag_of(generation_), memory_.fd());
  mate.handed_over = connection.ok();
  if (connection.ok()) mate.handing_over = std::move(*connection);
  mate.next_try = now() + (kFirstPause << mate.tries++);
}

void MessageBlocks::watch(Mate& mate) {
  if (mate.handing_over) core_.watch_end(mate.handing_over.get(), this);
}

void MessageBlocks::readable(int fd) {
  for (const auto& mate : mates_) {
    if (mate->handing_over.get() != fd) continue;
    core_.unwatch(fd);
    mate->handing_over.reset();
    return;
  }
}

bool MessageBlocks::map(Mate& mate) {
  const auto handover = listener_.claim_handover(mate.self.contact.nonce, tag_of(generation_));
  if (!handover) return false;
  auto memory = SharedMemory::map(handover->memory.get(), SharedMemory::Access::kRead);
  if (!memory.ok() || memory->bytes() != memory_.bytes()) return true;
  const Head& head = head_of(*memory);
  if (head.magic != Head::kMagic || head.rank != mate.self.rank || !(head.generation == generation_))
    return true;
  mate.memory = std::move(*memory);
  row_of(memory_, mate.place).mapped.store(1, std::memory_order_release);
  return true;
}

size_t MessageBlocks::advance(Mate& mate) {
  size_t moved = 0;
  if (!mate.memory) moved += map(mate) ? 1 : 0;
  if (mate.memory && row_of(mate.memory, place_).mapped.load(std::memory_order_acquire) == 1) {
    mate.has_ours = true;
    return moved + 1;
  }
  // A mate that let go of the connection may have mapped ours: that is seen in its memory, once that is here.
  if (mate.handing_over || (mate.handed_over && !mate.memory)) return moved;
  if (mate.tries == kTriesMax || now() < mate.next_try) return moved;
  hand_over_to(mate);
  watch(mate);
  return moved + 1;
}

size_t MessageBlocks::link() {
  if (settled_) return 0;
  size_t moved = 0;
  bool all = true;
  for (const auto& mate : mates_) {
    if (!mate->has_ours) moved += advance(*mate);
    all = all && mate->has_ours;
  }
  settled_ = all || now() >= given_up_at_;
  if (!settled_) return moved;
  let_go();
  memory_.close_descriptor();
  return moved;
}

MessageBlocks::Mate* MessageBlocks::mate_of(int rank) const {
  return static_cast<size_t>(rank) < by_rank_.size() ? by_rank_[static_cast<size_t>(rank)] : nullptr;
}

bool MessageBlocks::is_free(uint32_t block) const {
  const Use& use = uses_[block];
  return use.receiver == nullptr ||
         row_of(use.receiver->memory, place_).copied[block].load(std::memory_order_acquire) == use.count;
}

// Low numbers first, so that as little memory as can be is touched, and again while it is in the caches.
std::optional<BlockName> MessageBlocks::put(int rank, ByteSpan bytes) {
  const Mate* const mate = mate_of(rank);
  if (mate == nullptr || !mate->has_ours || bytes.size() < kBlockFromBytes || bytes.size() > kBlockBytes)
    return std::nullopt;
  for (uint32_t block = 0; block < kMessageBlocks; ++block) {
    if (!is_free(block)) continue;
    std::memcpy(block_of(memory_, block), bytes.data(), bytes.size());
    uses_[block].receiver = mate;
    const BlockName name{.use = ++uses_[block].count, .block = block};
    head_of(memory_).uses[block].store(name.use, std::memory_order_release);
    puts.fetch_add(1, std::memory_order_relaxed);
    return name;
  }
  return std::nullopt;
}

const std::byte* MessageBlocks::find(int rank, const BlockName& name, size_t bytes) const {
  const Mate* const mate = mate_of(rank);
  if (mate == nullptr || !mate->memory || name.block >= kMessageBlocks || bytes > kBlockBytes) return nullptr;
  if (head_of(mate->memory).uses[name.block].load(std::memory_order_acquire) != name.use) return nullptr;
  return block_of(mate->memory, name.block);
}

void MessageBlocks::release(int rank, const BlockName& name) {
  const Mate* const mate = mate_of(rank);
  if (mate == nullptr || name.block >= kMessageBlocks) return;
  row_of(memory_, mate->place).copied[name.block].store(name.use, std::memory_order_release);
}

}  // namespace muster
