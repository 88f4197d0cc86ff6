// Internal: messages between ranks of one node in a group that talks over a transport. Their bytes lie in a
// block of memory that the sender's node-mates map; what the transport carries is the header, which names the
// block.
//
// Order, matching, deadlines and word of deaths so stay the transport's, and what cannot go by a block goes
// with its message: small ones, those for a mate that has not mapped the memory yet, and those that find no
// block free. A sender never waits for a block: a receiver that stopped, or is late, would hold it up.
//
// INVARIANT: a block's bytes change only after its receiver has said that it copied them. The memory is of
// one rank in one group, and lives until the last process lets go of it; so a message may outlive the group
// at its sender, and a rank that was frozen in the middle of a copy and wakes later copies what it was sent.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "collectives/contact.h"
#include "collectives/node/local_link.h"
#include "collectives/node/shared_memory.h"
#include "collectives/operation.h"
#include "collectives/transport/transport.h"

namespace muster {

constexpr uint32_t kMessageBlocks = 16;        // of a rank, for all its mates: 4 MiB, of what was ever used
constexpr size_t kBlockBytes = 256 * 1024;     // the largest payload of a message
constexpr size_t kBlockFromBytes = 16 * 1024;  // below, a message through the kernel is as fast

// In a message's header. `use` counts the block's uses from 1 on; 0: no block, the payload follows the
// header.
struct BlockName {
  uint64_t use = 0;
  uint32_t block = 0;
  uint32_t reserved = 0;
};

// Under the core's mutex, but for open(). Ends before the listener.
class MessageBlocks final : public Watcher {
 public:
  struct Rank {
    int rank;
    Contact contact;
  };

  // `mates`: the other ranks on this node, by number. Null where memory cannot be had: everything goes by
  // messages then. Every rank of the node calls this, once all are known to have come to the group. `nonce`:
  // of this endpoint. Takes the mutex.
  static std::unique_ptr<MessageBlocks> open(Core& core, LocalListener& listener, uint64_t nonce,
                                             const Generation& generation, int rank, std::vector<Rank> mates);
  ~MessageBlocks();

  // Maps what mates have handed over since the last call, and hands over again what did not get there. How
  // much was done. To be called now and then, until is_settled().
  size_t link();
  bool is_settled() const { return settled_; }  // all mates have all memory, or were given up

  // Copies the bytes into a block for that rank. Empty: they have to go with the message.
  std::optional<BlockName> put(int rank, ByteSpan bytes);

  // What a message of that rank names; null where there is no such block, or none of that size.
  const std::byte* find(int rank, const BlockName& name, size_t bytes) const;
  // The block is its sender's again.
  void release(int rank, const BlockName& name);

  // By which the memory is handed over.
  static uint64_t tag_of(const Generation& generation);

  // How often put() has given a block, in all groups of this process.
  static uint64_t put_in_all();

  void readable(int fd) override;  // a mate let go of the connection by which it was handed our memory

 private:
  struct Mate {
    Rank self;
    size_t place = 0;          // among the ranks of the node
    OwnFd handing_over;        // the connection, until the mate lets go of it
    SharedMemory memory;       // the mate's, once handed over
    bool has_ours = false;     // the mate has mapped ours: blocks can be had
    bool handed_over = false;  // the last try got as far as the mate's socket
    int tries = 0;             // to hand ours over
    Instant next_try = kNever;
  };
  struct Use {
    const Mate* receiver = nullptr;
    uint64_t count = 0;
  };

  MessageBlocks(Core& core, LocalListener& listener, uint64_t nonce, const Generation& generation)
      : core_(core), listener_(listener), nonce_(nonce), generation_(generation) {}
  Mate* mate_of(int rank) const;
  void hand_over_to(Mate& mate);
  void watch(Mate& mate);
  void let_go();
  size_t advance(Mate& mate);
  bool map(Mate& mate);
  bool is_free(uint32_t block) const;

  Core& core_;
  LocalListener& listener_;
  const uint64_t nonce_;
  const Generation generation_;
  SharedMemory memory_;
  size_t place_ = 0;  // this rank's
  std::vector<std::unique_ptr<Mate>> mates_;
  std::vector<Mate*> by_rank_;  // null: not a mate
  bool settled_ = false;
  Instant given_up_at_ = kNever;  // whom we have not linked with by then
  Use uses_[kMessageBlocks];
};

// A message for rank `to`: the header, whose `name` is set here, and the payload, unless it went into a
// block. `blocks` may be null.
template <typename Header>
void pack(MessageBlocks* blocks, int to, Header header, ByteSpan payload, Message& message) {
  if (blocks != nullptr) header.name = blocks->put(to, payload).value_or(BlockName{});
  std::memcpy(message.data, &header, sizeof header);
  message.size = sizeof header;
  if (header.name.use != 0 || payload.empty()) return;
  std::memcpy(message.data + sizeof header, payload.data(), payload.size());
  message.size += payload.size();
}

// Where the `payload` bytes of a message of rank `from` are, `received` bytes of which came; null where it
// does not hold or name as many. Whoever has copied them releases what header.name names, if it names
// anything.
template <typename Header>
const std::byte* payload_of(const MessageBlocks* blocks, int from, const Header& header,
                            const Message& message, size_t received, size_t payload) {
  const size_t follows = header.name.use == 0 ? payload : 0;
  if (received != sizeof header + follows) return nullptr;
  if (header.name.use == 0) return message.data + sizeof header;
  return blocks != nullptr ? blocks->find(from, header.name, payload) : nullptr;
}

}  // namespace muster
