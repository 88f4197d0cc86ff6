#include "collectives/node/message_blocks.h"

#include <atomic>
#include <new>

#include "runtime/base/random.h"

namespace muster {
namespace {

constexpr size_t kPage = 4096;

// What this rank has from one mate.
struct alignas(64) Row {
  std::atomic<uint64_t> mapped;                  // 1: its memory
  std::atomic<uint64_t> copied[kMessageBlocks];  // of each of its blocks, the last use
};

// At the beginning of a rank's memory, before a row for each rank of the node. Written by that rank alone.
struct alignas(64) Head {
  static constexpr uint32_t kMagic = 0x3142'4d4dU;  // "MMB1": layout version 1
  uint32_t magic;
  int32_t rank;
  Generation generation;
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

size_t blocks_offset(size_t ranks) { return round_up(sizeof(Head) + ranks * sizeof(Row), kPage); }

Row& row_of(const SharedMemory& memory, size_t place) {
  return reinterpret_cast<Row*>(memory.base() + sizeof(Head))[place];
}

std::byte* block_of(const SharedMemory& memory, uint32_t block) {
  return memory.base() + memory.bytes() - (kMessageBlocks - block) * kBlockBytes;
}

uint64_t tag_of(const Generation& generation) {
  constexpr uint64_t kKind = Head::kMagic;  // apart from feeds
  return mix64(generation.nonce ^ mix64(generation.counter ^ mix64(kKind)));
}

}  // namespace

std::unique_ptr<MessageBlocks> MessageBlocks::open(LocalListener& listener, uint64_t nonce,
                                                   const Generation& generation, int rank,
                                                   std::vector<Rank> mates) {
  const size_t ranks = mates.size() + 1;
  auto memory = SharedMemory::create("muster-blocks", blocks_offset(ranks) + kMessageBlocks * kBlockBytes);
  if (!memory.ok()) return nullptr;
  std::unique_ptr<MessageBlocks> blocks(new MessageBlocks(listener, nonce, generation));
  blocks->memory_ = std::move(*memory);
  new (blocks->memory_.base()) Head{Head::kMagic, rank, generation};
  for (size_t place = 0; place < ranks; ++place) new (&row_of(blocks->memory_, place)) Row{};
  for (Rank& other : mates) {
    const size_t place = blocks->mates_.size() + (other.rank > rank ? 1 : 0);
    if (other.rank < rank) blocks->place_ = place + 1;
    blocks->by_rank_.resize(static_cast<size_t>(other.rank) + 1, nullptr);
    blocks->mates_.push_back(std::make_unique<Mate>());
    Mate& mate = *blocks->mates_.back();
    mate.self = std::move(other);
    mate.place = place;
    blocks->by_rank_.back() = &mate;
    blocks->hand_over_to(mate);
  }
  return blocks;
}

// A mate that is not reached gets its messages whole.
void MessageBlocks::hand_over_to(Mate& mate) {
  auto connection = hand_over(mate.self.contact, nonce_, tag_of(generation_), memory_.fd());
  if (connection.ok()) mate.handing_over = std::move(*connection);
}

void MessageBlocks::map(Mate& mate) {
  const auto handover = listener_.claim_handover(mate.self.contact.nonce, tag_of(generation_));
  if (!handover) return;
  auto memory = SharedMemory::map(handover->memory.get(), SharedMemory::Access::kRead);
  if (!memory.ok() || memory->bytes() != memory_.bytes()) return;
  Head head;
  std::memcpy(&head, memory->base(), sizeof head);
  if (head.magic != Head::kMagic || head.rank != mate.self.rank || !(head.generation == generation_)) return;
  mate.memory = std::move(*memory);
  row_of(memory_, mate.place).mapped.store(1, std::memory_order_release);
}

void MessageBlocks::link() {
  if (linked_ == mates_.size()) return;
  linked_ = 0;
  for (const auto& mate : mates_) {
    if (!mate->memory) map(*mate);
    if (!has_mapped_ours(*mate)) continue;
    mate->handing_over.reset();
    ++linked_;
  }
}

MessageBlocks::Mate* MessageBlocks::mate_of(int rank) const {
  return static_cast<size_t>(rank) < by_rank_.size() ? by_rank_[static_cast<size_t>(rank)] : nullptr;
}

bool MessageBlocks::has_mapped_ours(const Mate& mate) const {
  return mate.memory && row_of(mate.memory, place_).mapped.load(std::memory_order_acquire) == 1;
}

bool MessageBlocks::is_free(uint32_t block) const {
  const Use& use = uses_[block];
  return use.receiver == nullptr ||
         row_of(use.receiver->memory, place_).copied[block].load(std::memory_order_acquire) == use.count;
}

// The first free one is the one used last, if any was given back: its lines are still in a cache.
std::optional<BlockName> MessageBlocks::put(int rank, ByteSpan bytes) {
  const Mate* const mate = mate_of(rank);
  if (mate == nullptr || bytes.size() < kBlockFromBytes || bytes.size() > kBlockBytes) return std::nullopt;
  if (!has_mapped_ours(*mate)) return std::nullopt;
  for (uint32_t block = 0; block < kMessageBlocks; ++block) {
    if (!is_free(block)) continue;
    std::memcpy(block_of(memory_, block), bytes.data(), bytes.size());
    uses_[block].receiver = mate;
    return BlockName{.use = ++uses_[block].count, .block = block};
  }
  return std::nullopt;
}

const std::byte* MessageBlocks::find(int rank, const BlockName& name, size_t bytes) const {
  const Mate* const mate = mate_of(rank);
  const bool known = mate != nullptr && mate->memory && name.block < kMessageBlocks && bytes <= kBlockBytes;
  return known ? block_of(mate->memory, name.block) : nullptr;
}

void MessageBlocks::release(int rank, const BlockName& name) {
  const Mate* const mate = mate_of(rank);
  if (mate == nullptr || name.block >= kMessageBlocks) return;
  row_of(memory_, mate->place).copied[name.block].store(name.use, std::memory_order_release);
}

}  // namespace muster
