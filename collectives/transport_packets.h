// Internal: the packets of sends and receives over a transport.
//
// One tag for each receiver takes the packets of all its peers, several receives at once. Those of one peer
// may end out of order, so they are numbered, and handed on in order.
#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "collectives/core.h"
#include "collectives/node/message_blocks.h"
#include "collectives/rank_transfers.h"

namespace muster {

class TransportPackets final : public TransferOwner {
 public:
  TransportPackets(GroupState& group, const std::vector<PeerId>& peers, MessageBlocks* blocks)
      : group_(group), peers_(peers), blocks_(blocks) {}
  ~TransportPackets();

  void open(int rank);
  bool send(int rank, const Packet& packet, const std::byte* payload);
  // Since the last call: what was handed on, or has left.
  size_t moved() { return std::exchange(moved_, 0); }

  void transfer_ended(uint64_t cookie, TransferStatus status, size_t bytes) override;

 private:
  struct InFlight {
    TransferId id = 0;
    int receiver = 0;    // of a send
    MessagePtr message;  // of a receive
  };
  struct Early {
    MessagePtr message;
    size_t bytes;
  };
  struct Stream {
    uint64_t sent = 0;
    size_t in_flight = 0;
    uint64_t taken = 0;
    std::map<uint64_t, Early> early;  // by number
  };

  void post_receive();
  void arrive(MessagePtr message, size_t bytes);
  void hand_on(int source, Stream& stream);

  GroupState& group_;
  const std::vector<PeerId>& peers_;
  MessageBlocks* const blocks_;  // may be null
  std::map<uint64_t, InFlight> in_flight_;
  std::map<int, Stream> streams_;
  uint64_t next_cookie_ = 0;
  size_t moved_ = 0;
  bool open_ = false;
};

}  // namespace muster
