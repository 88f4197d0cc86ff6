// Internal: executes schedules over a transport; between ranks of one node the bytes go by MessageBlocks.
//
// Every message carries the signature of its operation, so that a difference between ranks is found where it
// meets, and the two sides are named. A control channel beside the data tells everybody of a failure, and
// asks, a little before a deadline, who is still alive and how far it got: the answer decides whom to
// suspect.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "collectives/group_state.h"
#include "collectives/node/message_blocks.h"

namespace muster {

// What stands before the payload of each message of an operation.
struct WireHeader {
  static constexpr uint32_t kMagic = 0x3253554dU;  // "MUS2": format version 2
  uint32_t magic = kMagic;
  int32_t source = 0;
  Generation generation;
  Signature signature;
  uint64_t index = 0;    // of this message among those of the operation between two ranks
  uint64_t payload = 0;  // bytes that follow, or lie in a block
  BlockName name;
};
static_assert(sizeof(WireHeader) == 96);
static_assert(sizeof(WireHeader) + kPayloadBytes <= kMessageBytes && kPayloadBytes <= kBlockBytes);

// `nodes`: of each rank. `blocks`: null where this rank has no mate on its node, or no memory with it.
std::unique_ptr<Engine> make_transport_engine(GroupState& group, std::vector<PeerId> peers,
                                              std::span<const uint64_t> nodes, std::string forced_algorithm,
                                              std::unique_ptr<MessageBlocks> blocks);

// Tags of a group's messages: its port at the receiver, the source, and for operations the low bits of the
// sequence.
uint64_t group_tag(TagKind kind, Port port, int source, uint64_t sequence);
uint64_t group_tag_mask();  // the bits that name kind and port

}  // namespace muster
