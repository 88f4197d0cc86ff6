// Start here. One endpoint per process: it owns the transport, the listener for peers on this node and the
// progress thread, and lives across views. Groups are made from it, one for each view.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "collectives/transport/transport.h"
#include "collectives/work.h"
#include "runtime/base/bytes.h"
#include "runtime/base/fork.h"

namespace muster {

class Ports;
class Core;
struct Handover;
class LocalListener;
class MessageBlocks;
class PointToPoint;

using Port = uint32_t;
using PeerId = uint32_t;

struct EndpointOptions {
  // Between nodes; see transport/ucx.h. Null: only groups on one node, and no point-to-point.
  std::unique_ptr<Transport> transport;
  bool shared_memory = true;  // false: ranks on one node use the transport too
  std::string algorithm;  // overrides the choice between nodes, for tests and measurements; see schedule.h
};

struct GroupSpec {
  Generation generation;             // new for every group: a nonce that is never issued twice, and a counter
  std::vector<ByteBuffer> contacts;  // contact() of each rank, in rank order
  std::vector<uint64_t> nodes;       // of each rank: equal ids are worth trying shared memory
  // What each rank's reserve_port() gave, and this rank's own. Empty: of the generation, which serves an
  // endpoint of few groups: two of them have the same by a chance of one in a million.
  std::vector<Port> ports;
  std::shared_ptr<const Port> own_port;
  int rank = 0;
  Instant deadline = kNever;
};

class Endpoint {
 public:
  static Result<std::unique_ptr<Endpoint>> create(EndpointOptions options);
  // Revokes its groups and ends its transfers. Groups may outlive it, revoked. In a forked child it is the
  // parent's, and left alone.
  ~Endpoint();
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;

  // How others reach this process. Not secret, but only for peers: it travels over the control plane.
  ByteBuffer contact() const;

  // What tells messages to this process in one group from those in others, for GroupSpec. Errors:
  // kEnvironment where there are as many groups as numbers.
  Result<std::shared_ptr<const Port>> reserve_port();

  // Joins the others of `spec` in a group. Every member calls it with the same spec but for the rank.
  // Errors: kReconfigure where some did not come by the deadline; the message names them, and `absent`, if
  // given, gets their ranks. kMisuse where specs differ or make no sense.
  Result<std::unique_ptr<Group>> form_group(const GroupSpec& spec, std::vector<int>* absent = nullptr);

  // From any thread: ends form_group for this or an earlier generation, now or later, with kReconfigure.
  void cancel_formation(const Generation& generation);

  // Point to point, outside any group: state transfer, learners. Any size; several in flight; those of one
  // tag and direction between two peers match in the order of their calls. A transfer ends with kReconfigure
  // when the peer dies or the deadline passes, and with kMisuse at the receiver where sizes differ. From any
  // thread.
  Result<PeerId> peer(ByteSpan contact);
  Work send(PeerId peer, uint64_t tag, ByteSpan bytes, Instant deadline);
  Work send(PeerId peer, uint64_t tag, std::vector<ByteSpan> parts, Instant deadline);  // as if in one piece
  Work recv(PeerId peer, uint64_t tag, MutableByteSpan bytes, Instant deadline);
  // Ends a transfer that has not ended, with kEnded: its memory is the caller's again. What the peer still
  // sends would meet the next receive of the same tag: do not use that tag again. From any thread.
  void cancel(const Work& transfer);

  // For feeds (feed.h), on one node: passes a memfd to a peer. Returns the connection to whoever claims it.
  // Errors: kEnvironment: one of the two keeps to its transport, or the peer is on another node.
  Result<OwnFd> hand_over(ByteSpan contact, uint64_t tag, int memory);
  // What that peer handed to this process under `tag`; empty where `until` ended before it came (an empty
  // Work never does), or the deadline passed.
  std::optional<Handover> await_handover(ByteSpan contact, uint64_t tag, const Work& until, Instant deadline);

 private:
  explicit Endpoint(EndpointOptions options);

  struct PeerInfo {
    uint64_t nonce;
    uint32_t core_peer;
  };
  struct Forming;

  void abandon();
  Status assemble(const GroupSpec& spec, Forming& forming);
  Status try_shared_memory(const GroupSpec& spec, Forming& forming);
  std::unique_ptr<MessageBlocks> open_blocks(const GroupSpec& spec, Forming& forming);
  Result<std::unique_ptr<Group>> finish(const GroupSpec& spec, Forming& forming);

  const ForkMark mark_{};
  const bool shared_memory_;
  const std::string algorithm_;
  uint64_t nonce_ = 0;  // names this process incarnation to its peers
  ByteBuffer address_;
  std::shared_ptr<Core> core_;
  std::unique_ptr<LocalListener> listener_;  // null: shared memory is off, or cannot be had
  std::unique_ptr<PointToPoint> transfers_;
  const std::shared_ptr<Ports> ports_;
  std::vector<PeerInfo> peers_;                    // guarded by the core's mutex
  std::vector<std::weak_ptr<GroupState>> groups_;  // likewise
};

}  // namespace muster
