// Internal: sends and receives between two ranks of a group.
//
// Each ordered pair of ranks has a stream of packets, which the engine carries whole and in order. A send
// offers itself. The receive that matches it takes a small payload along with the offer, and grants a large
// one, whose data then follows. A send ends when its receiver says that it has everything: so what differs
// between the two is reported on both, and a lost message never looks like a sent one.
//
// INVARIANTS
//  - Data follows a grant only, so whoever looks at its packets can take them all: none holds up the next.
//  - An operation that has ended owes no packet: a rank may leave after its last one.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "collectives/operation.h"

namespace muster {

class GroupState;

// On the wire and in shared memory. No padding.
struct Packet {
  enum class Kind : uint32_t { kOffer = 1, kGrant = 2, kData = 3, kTaken = 4 };
  Kind kind = Kind::kOffer;
  uint32_t payload = 0;  // bytes that follow
  uint64_t id = 0;       // of the send, among those of its rank to this one
  uint64_t count = 0;    // elements; of offers
  uint64_t offset = 0;   // bytes; of data
  int32_t tag = 0;
  DType dtype = DType::kFloat32;
  uint8_t reserved[3] = {};
};
static_assert(sizeof(Packet) == 40);

// What an engine does for them. All calls under the core's mutex.
class PacketPath {
 public:
  // Before the first packet to or from this rank.
  virtual void open_path(int rank) = 0;
  // Bytes of one packet.
  virtual size_t payload_most() const = 0;
  // Hands a packet on, with a copy of its payload. False: there is no room; try again later. What is for a
  // rank that is gone is lost.
  virtual bool send_packet(int rank, const Packet& packet, const std::byte* payload) = 0;

 protected:
  ~PacketPath() = default;
};

// Payloads up to here travel with the offer.
constexpr size_t kEagerBytes = 8 * 1024;

struct TransferOperation : Operation {
  bool is_send = false;
  int peer = 0;
  int32_t tag = 0;
  DType dtype = DType::kFloat32;
  uint64_t count = 0;
  std::byte* data = nullptr;  // of a send: only read
  Instant deadline = kNever;
  int fresh_bounds = 0;  // that it was given (operation.h)

  uint64_t id = 0;       // of the send
  bool matched = false;  // granted or taken, that is, where it is a send
  uint64_t moved = 0;    // bytes handed on or arrived

  uint64_t bytes() const { return count * size_of(dtype); }
};
using TransferPtr = std::shared_ptr<TransferOperation>;

class RankTransfers {
 public:
  explicit RankTransfers(GroupState& group) : group_(group) {}

  void start(const TransferPtr& transfer);
  // What arrived from that rank; nothing in it is trusted. May fail the group.
  void take(int source, const Packet& packet, const std::byte* payload);
  size_t advance();
  void end_all(const Failure& failure);
  Status end_of(const TransferOperation& transfer, const Failure& failure) const;

  bool active() const { return pending_ > 0; }
  // Whether something waits for this rank.
  bool expects(int rank) const;
  // Whether a transfer of this rank with itself would be matched at once.
  bool has_counterpart(bool is_send, int32_t tag);

  size_t check_deadlines(Instant time);
  Instant next_deadline() const;

 private:
  struct Offer {
    Packet packet;
    ByteBuffer payload;
  };
  struct Reply {
    Packet packet;
    TransferPtr ends;  // once the packet is handed on; may be null
  };
  struct OwnPair {
    TransferPtr send, receive;
  };
  struct Peer {
    std::deque<TransferPtr> sends;     // in issue order, until they end
    std::deque<TransferPtr> receives;  // likewise
    std::deque<TransferPtr> unoffered;
    std::deque<TransferPtr> granted;
    std::deque<Offer> offers;  // for which there is no receive
    std::deque<Reply> replies;
    uint64_t next_id = 0;
    bool busy() const { return !sends.empty() || !receives.empty(); }
  };

  void start_own(const TransferPtr& transfer);
  void take_offer(int source, const Packet& packet, const std::byte* payload);
  void take_grant(int source, const Packet& packet);
  void take_data(int source, const Packet& packet, const std::byte* payload);
  void take_taken(int source, const Packet& packet);
  void accept(const TransferPtr& receive, const Packet& offer, const std::byte* payload);
  void refuse(const TransferOperation& receive, uint64_t count, DType dtype);
  void reject(int source);

  size_t push(int rank, Peer& peer);
  bool push_offer(int rank, Peer& peer);
  bool push_data(int rank, Peer& peer);
  size_t copy_own();
  void end(const TransferPtr& transfer);
  Failure late(const TransferOperation& transfer) const;
  void for_each(const std::function<void(const TransferPtr&)>& visit) const;

  GroupState& group_;
  std::map<int, Peer> peers_;
  std::deque<OwnPair> own_;
  size_t pending_ = 0;
};

}  // namespace muster
