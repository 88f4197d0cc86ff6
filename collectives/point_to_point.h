// Internal: transfers between two endpoints outside any group, cut into messages.
#pragma once

#include <deque>
#include <map>
#include <memory>

#include "collectives/core.h"

namespace muster {

class PointToPoint final : public Driven, public TransferOwner {
 public:
  explicit PointToPoint(std::shared_ptr<Core> core);
  ~PointToPoint();

  // `channel` names (sender, receiver, tag) and is the same on both sides. A send takes its bytes from the
  // parts, one after the other.
  Work send(PeerId peer, uint64_t channel, uint64_t tag, std::vector<ByteSpan> parts, Instant deadline);
  Work receive(PeerId peer, uint64_t channel, uint64_t tag, MutableByteSpan bytes, Instant deadline);

  // Ends it, if it has not ended: its memory is not touched any more.
  void cancel(const std::shared_ptr<Operation>& operation);

  size_t advance() override;
  Instant next_deadline() const override;
  void set_sleeping(bool) override {}
  void peer_gone(PeerId peer, const std::string& reason) override;
  void transfer_ended(uint64_t cookie, TransferStatus status, size_t bytes) override;

 private:
  struct Transfer;
  struct InFlight;
  using TransferPtr = std::shared_ptr<Transfer>;
  using Key = std::pair<uint64_t, bool>;  // channel, is_send

  Work start(TransferPtr transfer);
  size_t post(Transfer& transfer);
  void post_one(Transfer& transfer);
  void take(Transfer& transfer, const InFlight& arrived, size_t bytes);
  void end(const TransferPtr& transfer, Status result);

  const std::shared_ptr<Core> core_;
  std::map<Key, std::deque<TransferPtr>> queues_;  // the front one of each is under way
  std::map<uint64_t, InFlight> in_flight_;
  uint64_t next_id_ = 0;
};

}  // namespace muster
