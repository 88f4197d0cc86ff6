#include "collectives/point_to_point.h"

#include <algorithm>
#include <cstring>

namespace muster {
namespace {

constexpr size_t kWindow = 8;  // messages at once for one transfer
constexpr size_t kPayload = 256 * 1024;

struct PieceHeader {
  static constexpr uint32_t kMagic = 0x3150554dU;
  uint32_t magic = kMagic;
  uint32_t payload = 0;
  uint64_t tag = 0;
  uint64_t total = 0;
  uint64_t offset = 0;
};
static_assert(sizeof(PieceHeader) + kPayload <= kMessageBytes);

}  // namespace

struct PointToPoint::Transfer : Operation {
  bool is_send;
  PeerId peer;
  uint64_t channel;
  uint64_t tag;
  std::vector<ByteSpan> parts;  // of a send; each only what is not posted yet
  std::byte* data = nullptr;    // of a receive
  size_t size = 0;
  Instant deadline;
  size_t posted = 0;    // bytes
  size_t finished = 0;  // bytes
  size_t in_flight = 0;
  bool posted_any = false;
  size_t first_part = 0;  // of those not posted

  bool posted_all() const { return posted_any && posted == size; }
  bool complete() const { return posted_all() && in_flight == 0; }
  void gather(std::byte* target, size_t count);
  std::string text() const {
    return std::string(is_send ? "sending " : "receiving ") + human_bytes(size) + " (tag " +
           std::to_string(tag) + ")";
  }
};

// Moves the next bytes of a send to a message.
void PointToPoint::Transfer::gather(std::byte* target, size_t count) {
  while (count > 0) {
    ByteSpan& part = parts[first_part];
    const size_t taken = std::min(count, part.size());
    if (taken > 0) std::memcpy(target, part.data(), taken);
    target += taken;
    count -= taken;
    part = part.subspan(taken);
    if (part.empty()) ++first_part;
  }
}

struct PointToPoint::InFlight {
  TransferPtr transfer;
  TransferId id;
  size_t offset;
  size_t count;
  MessagePtr message;
};

PointToPoint::PointToPoint(std::shared_ptr<Core> core) : core_(std::move(core)) {
  const std::lock_guard lock(core_->mutex());
  core_->join(this);
}

PointToPoint::~PointToPoint() {
  const std::lock_guard lock(core_->mutex());
  for (auto& [key, queue] : std::map(queues_)) {
    for (const TransferPtr& transfer : std::deque(queue))
      end(transfer, Error{ErrorCode::kReconfigure, transfer->text() + ": the endpoint was closed"});
  }
  core_->leave(this);
  core_->stir(true);
}

Work PointToPoint::send(PeerId peer, uint64_t channel, uint64_t tag, std::vector<ByteSpan> parts,
                        Instant deadline) {
  auto transfer = std::make_shared<Transfer>();
  transfer->is_send = true;
  transfer->peer = peer;
  transfer->channel = channel;
  transfer->tag = tag;
  for (const ByteSpan part : parts) transfer->size += part.size();
  transfer->parts = std::move(parts);
  transfer->deadline = deadline;
  return start(std::move(transfer));
}

Work PointToPoint::receive(PeerId peer, uint64_t channel, uint64_t tag, MutableByteSpan bytes,
                           Instant deadline) {
  auto transfer = std::make_shared<Transfer>();
  transfer->is_send = false;
  transfer->peer = peer;
  transfer->channel = channel;
  transfer->tag = tag;
  transfer->data = bytes.data();
  transfer->size = bytes.size();
  transfer->deadline = deadline;
  return start(std::move(transfer));
}

Work PointToPoint::start(TransferPtr transfer) {
  const std::lock_guard lock(core_->mutex());
  transfer->core = core_;
  queues_[{transfer->channel, transfer->is_send}].push_back(transfer);
  core_->progress();
  core_->stir(true);
  return Work(std::move(transfer));
}

void PointToPoint::cancel(const std::shared_ptr<Operation>& operation) {
  const std::lock_guard lock(core_->mutex());
  if (const auto transfer = std::dynamic_pointer_cast<Transfer>(operation))
    end(transfer, Error{ErrorCode::kEnded, transfer->text() + ": cancelled"});
}

void PointToPoint::post_one(Transfer& transfer) {
  const size_t count = std::min(kPayload, transfer.size - transfer.posted);
  const uint64_t cookie = next_id_++;
  const MessagePtr message = core_->take_message();
  InFlight& entry = in_flight_[cookie];
  entry.transfer = queues_[{transfer.channel, transfer.is_send}].front();
  entry.offset = transfer.posted;
  entry.count = count;
  transfer.posted += count;
  transfer.posted_any = true;
  ++transfer.in_flight;
  const uint64_t wire_tag = make_tag(TagKind::kPointToPoint, transfer.channel);
  if (!transfer.is_send) {
    entry.message = message;
    core_->expect(transfer.peer);
    entry.id = core_->receive(wire_tag, message, this, cookie);
    return;
  }
  PieceHeader header;
  header.payload = static_cast<uint32_t>(count);
  header.tag = transfer.tag;
  header.total = transfer.size;
  header.offset = entry.offset;
  std::memcpy(message->data, &header, sizeof header);
  transfer.gather(message->data + sizeof header, count);
  message->size = sizeof header + count;
  entry.id = core_->send(transfer.peer, wire_tag, message, this, cookie);
}

size_t PointToPoint::post(Transfer& transfer) {
  size_t posted = 0;
  while (!transfer.posted_all() && transfer.in_flight < kWindow) {
    post_one(transfer);
    ++posted;
  }
  return posted;
}

void PointToPoint::transfer_ended(uint64_t cookie, TransferStatus status, size_t bytes) {
  const auto found = in_flight_.find(cookie);
  if (found == in_flight_.end()) return;
  const InFlight ended = std::move(found->second);
  in_flight_.erase(found);
  Transfer& transfer = *ended.transfer;
  --transfer.in_flight;
  if (status == TransferStatus::kFailed || status == TransferStatus::kCanceled) {
    end(ended.transfer, Error{ErrorCode::kReconfigure, transfer.text() + ": the connection broke"});
  } else if (transfer.is_send) {
    transfer.finished += ended.count;
  } else {
    take(transfer, ended, bytes);
  }
}

void PointToPoint::take(Transfer& transfer, const InFlight& arrived, size_t bytes) {
  PieceHeader header;
  if (bytes >= sizeof header) std::memcpy(&header, arrived.message->data, sizeof header);
  const bool known =
      bytes >= sizeof header && header.magic == PieceHeader::kMagic && header.tag == transfer.tag;
  if (known && header.total == transfer.size && header.offset == arrived.offset &&
      header.payload == arrived.count && bytes == sizeof header + arrived.count) {
    if (arrived.count > 0)
      std::memcpy(transfer.data + arrived.offset, arrived.message->data + sizeof header, arrived.count);
    transfer.finished += arrived.count;
    return;
  }
  const std::string what = known ? "the peer sends " + human_bytes(header.total) + " (" +
                                       std::to_string(header.total) + " bytes) under this tag"
                                 : "something else arrived under this tag";
  end(arrived.transfer,
      Error{ErrorCode::kMisuse, transfer.text() + ": " + what + "; agree on the size first"});
}

// Its messages under way keep their memory; what they bring is dropped.
void PointToPoint::end(const TransferPtr& transfer, Status result) {
  if (transfer->done) return;
  for (auto it = in_flight_.begin(); it != in_flight_.end();) {
    if (it->second.transfer != transfer) {
      ++it;
      continue;
    }
    transfer->is_send ? core_->forget(it->second.id) : core_->cancel(it->second.id);
    it = in_flight_.erase(it);
  }
  const auto queue = queues_.find({transfer->channel, transfer->is_send});
  if (queue != queues_.end()) {
    std::erase(queue->second, transfer);
    if (queue->second.empty()) queues_.erase(queue);
  }
  core_->complete(*transfer, std::move(result), {});
}

size_t PointToPoint::advance() {
  size_t moved = 0;
  std::vector<TransferPtr> fronts;
  for (const auto& [key, queue] : queues_) fronts.push_back(queue.front());
  const Instant time = fronts.empty() ? 0 : now();
  for (const TransferPtr& transfer : fronts) {
    if (transfer->is_send && core_->is_gone(transfer->peer)) {
      end(transfer, Error{ErrorCode::kReconfigure,
                          transfer->text() + ": the peer died: " + core_->why_gone(transfer->peer)});
      ++moved;
      continue;
    }
    moved += post(*transfer);
    if (transfer->complete()) {
      end(transfer, ok());
      ++moved;
    }
  }
  if (moved > 0) return moved;
  for (const TransferPtr& transfer : fronts) {
    // What the peer sent before it died still counts, so a receiver gives up only when nothing moves.
    if (core_->is_gone(transfer->peer)) {
      end(transfer, Error{ErrorCode::kReconfigure,
                          transfer->text() + ": the peer died: " + core_->why_gone(transfer->peer)});
      ++moved;
    } else if (time >= transfer->deadline) {
      end(transfer, Error{ErrorCode::kReconfigure, transfer->text() + ": the deadline passed after " +
                                                       human_bytes(transfer->finished)});
      ++moved;
    }
  }
  return moved;
}

Instant PointToPoint::next_deadline() const {
  Instant earliest = kNever;
  for (const auto& [key, queue] : queues_) earliest = std::min(earliest, queue.front()->deadline);
  return earliest;
}

void PointToPoint::peer_gone(PeerId, const std::string&) {}  // advance() asks the core

}  // namespace muster
