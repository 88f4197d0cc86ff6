#include "tests/fakes/nccl_clique.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

namespace muster::fakes {
namespace {

constexpr size_t kSlots = 64;     // collectives of a communicator that may be in flight
constexpr size_t kMessages = 64;  // of a channel; more wait until the first are taken
constexpr size_t kHeaderBytes = size_t{8} << 20;

[[noreturn]] void give_up(const char* what) {
  std::perror(what);
  std::abort();
}

}  // namespace

// As it is in the memory; all zero at first, which is the initial state.
struct Clique::Layout {
  struct Rank {
    std::atomic<uint32_t> here;
    Slot slots[kSlots];
    Message sent[kRanks][kMessages];  // by receiver
  };
  std::atomic<uint64_t> nonce;
  std::atomic<int> world;  // 0: nobody has come
  Rank ranks[kRanks];
};

Clique::Layout* Clique::map(int descriptor) {
  static_assert(sizeof(Layout) <= kHeaderBytes && std::atomic<uint64_t>::is_always_lock_free);
  constexpr size_t kBytes = kHeaderBytes + kRanks * kRankBytes;
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, descriptor, 0);
  if (memory == MAP_FAILED) give_up("the fake NCCL's memory");
  (void)madvise(memory, kBytes, MADV_DONTDUMP);
  return static_cast<Layout*>(memory);
}

Clique::~Clique() {
  const UniqueFd closed(descriptor_.exchange(-1));
  munmap(memory_, kHeaderBytes + kRanks * kRankBytes);
}

std::shared_ptr<Clique> Clique::make() {
  UniqueFd descriptor(memfd_create("muster fake nccl", MFD_CLOEXEC));
  if (!descriptor || ftruncate(descriptor.get(), kHeaderBytes + kRanks * kRankBytes) != 0)
    give_up("the fake NCCL's memory");
  std::random_device random;
  const CliqueId id{uint64_t{random()} << 32 | random() | 1, getpid(), descriptor.get()};
  Layout* const memory = map(descriptor.get());
  memory->nonce = id.nonce;
  return std::shared_ptr<Clique>(new Clique(memory, id, descriptor.release()));
}

// What has the maker's number may be another process, and what the descriptor's, another file.
std::shared_ptr<Clique> Clique::open(const CliqueId& id) {
  const std::string path = "/proc/" + std::to_string(id.process) + "/fd/" + std::to_string(id.descriptor);
  char target[64] = {};
  if (readlink(path.c_str(), target, sizeof target - 1) < 0 ||
      std::string(target).find("muster fake nccl") == std::string::npos)
    return nullptr;
  const UniqueFd descriptor(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!descriptor) return nullptr;
  std::shared_ptr<Clique> opened(new Clique(map(descriptor.get()), id, -1));
  return opened->memory_->nonce == id.nonce ? opened : nullptr;
}

int Clique::world() const { return memory_->world; }

bool Clique::enter(int world, int rank) {
  int before = 0;
  if (world > kRanks || rank < 0 || rank >= world) return false;
  if (!memory_->world.compare_exchange_strong(before, world) && before != world) return false;
  return memory_->ranks[rank].here.exchange(1) == 0;
}

bool Clique::all_here() {
  const int world = memory_->world;
  for (int rank = 0; rank < world; ++rank) {
    if (memory_->ranks[rank].here == 0) return false;
  }
  if (world == 0) return false;
  const UniqueFd closed(descriptor_.exchange(-1));
  return true;
}

Slot& Clique::slot(int rank, uint64_t number) const { return memory_->ranks[rank].slots[number % kSlots]; }

Message& Clique::message(int from, int to, uint64_t number) const {
  return memory_->ranks[from].sent[to][number % kMessages];
}

std::byte* Clique::data(int rank) const {
  return reinterpret_cast<std::byte*>(memory_) + kHeaderBytes + static_cast<size_t>(rank) * kRankBytes;
}

}  // namespace muster::fakes
