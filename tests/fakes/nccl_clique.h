// What the ranks of one communicator of the fake NCCL share, be they threads or processes: memory without a
// name, where each rank writes its own part alone and reads the others'. Start at Clique::make.
//
// There are no locks in it: a rank that is killed or frozen, wherever it is, holds up only those who need
// what it has not done, and they look again and again until it has, or they are aborted. The unique id names
// the memory by its maker's process and descriptor. So nothing stays behind, whoever dies; and who comes when
// the maker is gone, or has let go, finds nobody, as with NCCL's bootstrap.
#pragma once

#include <nccl.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>

#include "runtime/base/handle.h"

namespace muster::fakes {

enum class Kind : uint8_t { kAllReduce, kReduceScatter, kReduce, kAllGather, kBroadcast, kSend, kReceive };

// An operator of ncclRedOpCreatePreMulSum, whose scalar is in the operation's type, or one that NCCL has.
struct Operator {
  ncclRedOp_t id = ncclSum;
  bool has_scalar = false;
  std::array<char, 8> scalar{};
  bool operator==(const Operator&) const = default;
};

// What all ranks have to agree on.
struct Shape {
  Kind kind = Kind::kAllReduce;
  size_t count = 0;
  ncclDataType_t type = ncclFloat32;
  Operator op;
  int root = 0;  // of a send or receive: the other side
  bool operator==(const Shape&) const = default;
};

// A rank's part in a collective. Its writer is that rank; numbers are those of the collectives, from 1.
struct Slot {
  std::atomic<uint64_t> given;  // of whose input is there; 0: none
  std::atomic<uint64_t> done;   // the last one that this rank needs nobody's input for any more
  Shape shape;
  size_t offset;
};

// A send on its way. Numbers are those of the channel's messages, from 1.
struct Message {
  std::atomic<uint64_t> offered;  // by the sender; 0: the place is free
  std::atomic<uint64_t> taken;    // by the receiver
  size_t offset, bytes;
};

struct CliqueId {
  uint64_t nonce;
  int32_t process;
  int32_t descriptor;
};

class Clique {
 public:
  static constexpr int kRanks = 16;
  static constexpr size_t kRankBytes = size_t{1} << 30;  // of each rank's data; pages are taken when written

  static std::shared_ptr<Clique> make();
  // Null where it is not there any more.
  static std::shared_ptr<Clique> open(const CliqueId& id);
  ~Clique();
  Clique(const Clique&) = delete;
  Clique& operator=(const Clique&) = delete;

  const CliqueId& id() const { return id_; }
  int world() const;
  // False where the rank is there already, or others came with another world.
  bool enter(int world, int rank);
  // Then nobody else can come, and the descriptor is closed.
  bool all_here();

  Slot& slot(int rank, uint64_t number) const;
  Message& message(int from, int to, uint64_t number) const;
  std::byte* data(int rank) const;

 private:
  struct Layout;
  Clique(Layout* memory, const CliqueId& id, int descriptor)
      : memory_(memory), id_(id), descriptor_(descriptor) {}
  static Layout* map(int descriptor);

  Layout* const memory_;
  const CliqueId id_;
  std::atomic<int> descriptor_;  // of the maker, until all have come; else −1
};

// Looks again and again: another process tells nobody.
template <typename Done>
void look_until(Done done) {
  constexpr int kYields = 200;
  for (int looks = 0; !done(); ++looks) {
    if (looks < kYields)
      std::this_thread::yield();
    else
      // Reason for the wait: the other process may be dead, or stopped, and this one looks until it lets go
      // itself.
      std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

}  // namespace muster::fakes
