#include "collectives/rank_transfers.h"

#include <algorithm>
#include <cstring>

#include "collectives/group_state.h"

namespace muster {
namespace {

// Copied in one go from this rank to itself, after which others get the mutex.
constexpr uint64_t kOwnBytes = 1024 * 1024;

std::string text_of(DType dtype, uint64_t count) {
  return std::string(to_string(dtype)) + " × " + std::to_string(count);
}

std::string text_of(const TransferOperation& transfer, int rank) {
  return (transfer.is_send ? "send of " : "recv of ") + text_of(transfer.dtype, transfer.count) +
         (transfer.is_send ? " to" : " from") + " rank " + std::to_string(transfer.peer) + " (tag " +
         std::to_string(transfer.tag) + ") on rank " + std::to_string(rank);
}

void copy_bytes(std::byte* target, const std::byte* from, uint64_t bytes) {
  if (bytes > 0) std::memmove(target, from, bytes);
}

TransferPtr find_unmatched(const std::deque<TransferPtr>& queue, int32_t tag) {
  const auto found = std::ranges::find_if(
      queue, [&](const TransferPtr& transfer) { return !transfer->matched && transfer->tag == tag; });
  return found != queue.end() ? *found : nullptr;
}

TransferPtr find_by_id(const std::deque<TransferPtr>& queue, uint64_t id, bool matched) {
  const auto found = std::ranges::find_if(queue, [&](const TransferPtr& transfer) {
    return transfer->id == id && (transfer->matched || !matched);
  });
  return found != queue.end() ? *found : nullptr;
}

}  // namespace

void RankTransfers::start(const TransferPtr& transfer) {
  ++pending_;
  if (transfer->peer == group_.rank()) return start_own(transfer);
  group_.engine()->open_path(transfer->peer);
  Peer& peer = peers_[transfer->peer];
  if (transfer->is_send) {
    transfer->id = peer.next_id++;
    peer.sends.push_back(transfer);
    peer.unoffered.push_back(transfer);
    return;
  }
  peer.receives.push_back(transfer);
  const auto offer =
      std::ranges::find_if(peer.offers, [&](const Offer& one) { return one.packet.tag == transfer->tag; });
  if (offer == peer.offers.end()) return;
  const Offer taken = std::move(*offer);
  peer.offers.erase(offer);
  accept(transfer, taken.packet, taken.payload.data());
}

void RankTransfers::start_own(const TransferPtr& transfer) {
  Peer& peer = peers_[transfer->peer];
  const TransferPtr other = find_unmatched(transfer->is_send ? peer.receives : peer.sends, transfer->tag);
  (transfer->is_send ? peer.sends : peer.receives).push_back(transfer);
  if (other == nullptr) return;
  const TransferPtr& send = transfer->is_send ? transfer : other;
  const TransferPtr& receive = transfer->is_send ? other : transfer;
  if (send->count != receive->count || send->dtype != receive->dtype)
    return refuse(*receive, send->count, send->dtype);
  send->matched = receive->matched = true;
  own_.push_back({send, receive});
}

bool RankTransfers::has_counterpart(bool is_send, int32_t tag) {
  const auto found = peers_.find(group_.rank());
  if (found == peers_.end()) return false;
  return find_unmatched(is_send ? found->second.receives : found->second.sends, tag) != nullptr;
}

bool RankTransfers::expects(int rank) const {
  const auto found = peers_.find(rank);
  return found != peers_.end() && found->second.busy();
}

// ---- what arrives

void RankTransfers::take(int source, const Packet& packet, const std::byte* payload) {
  if (group_.failed()) return;
  switch (packet.kind) {
    case Packet::Kind::kOffer:
      return take_offer(source, packet, payload);
    case Packet::Kind::kGrant:
      return take_grant(source, packet);
    case Packet::Kind::kData:
      return take_data(source, packet, payload);
    case Packet::Kind::kTaken:
      return take_taken(source, packet);
  }
  reject(source);
}

void RankTransfers::take_offer(int source, const Packet& packet, const std::byte* payload) {
  if (static_cast<int>(packet.dtype) >= kDTypeCount) return reject(source);
  const uint64_t element = size_of(packet.dtype);
  const bool eager = packet.count <= kEagerBytes / element;
  if (packet.payload != (eager ? packet.count * element : 0)) return reject(source);
  Peer& peer = peers_[source];
  if (const TransferPtr receive = find_unmatched(peer.receives, packet.tag))
    return accept(receive, packet, payload);
  peer.offers.push_back({packet, ByteBuffer(payload, payload + packet.payload)});
}

void RankTransfers::accept(const TransferPtr& receive, const Packet& offer, const std::byte* payload) {
  if (offer.count != receive->count || offer.dtype != receive->dtype)
    return refuse(*receive, offer.count, offer.dtype);
  receive->matched = true;
  receive->id = offer.id;
  Peer& peer = peers_[receive->peer];
  if (receive->bytes() > kEagerBytes) {
    peer.replies.push_back({{.kind = Packet::Kind::kGrant, .id = offer.id}, nullptr});
    return;
  }
  copy_bytes(receive->data, payload, offer.payload);
  receive->moved = offer.payload;
  peer.replies.push_back({{.kind = Packet::Kind::kTaken, .id = offer.id}, receive});
}

void RankTransfers::take_grant(int source, const Packet& packet) {
  Peer& peer = peers_[source];
  const TransferPtr send = find_by_id(peer.sends, packet.id, false);
  if (send == nullptr || send->matched || send->bytes() <= kEagerBytes) return reject(source);
  send->matched = true;
  peer.granted.push_back(send);
}

void RankTransfers::take_data(int source, const Packet& packet, const std::byte* payload) {
  Peer& peer = peers_[source];
  const TransferPtr receive = find_by_id(peer.receives, packet.id, true);
  const bool due = receive != nullptr && packet.offset == receive->moved && packet.payload > 0 &&
                   packet.payload <= receive->bytes() - receive->moved;
  if (!due) return reject(source);
  copy_bytes(receive->data + packet.offset, payload, packet.payload);
  receive->moved += packet.payload;
  if (receive->moved == receive->bytes())
    peer.replies.push_back({{.kind = Packet::Kind::kTaken, .id = packet.id}, receive});
}

void RankTransfers::take_taken(int source, const Packet& packet) {
  const TransferPtr send = find_by_id(peers_[source].sends, packet.id, false);
  if (send == nullptr || send->moved != send->bytes()) return reject(source);
  end(send);
}

void RankTransfers::refuse(const TransferOperation& receive, uint64_t count, DType dtype) {
  const std::string me = "rank " + std::to_string(group_.rank());
  const std::string peer = "rank " + std::to_string(receive.peer);
  Failure failure{ErrorCode::kMisuse,
                  peer + " sends " + text_of(dtype, count) + " to " + me + " with tag " +
                      std::to_string(receive.tag) + ", but " + me + " receives " +
                      text_of(receive.dtype, receive.count) + "; give both the same type and count",
                  {std::min(group_.rank(), receive.peer)}};
  if (receive.peer != group_.rank()) failure.suspects.push_back(std::max(group_.rank(), receive.peer));
  group_.fail(std::move(failure));
}

void RankTransfers::reject(int source) {
  group_.fail({ErrorCode::kReconfigure,
               "rank " + std::to_string(source) +
                   " sent another packet than was due; all ranks must run the same version",
               {source}});
}

// ---- what is sent

size_t RankTransfers::advance() {
  if (pending_ == 0) return 0;
  size_t moved = copy_own();
  for (auto& [rank, peer] : peers_) {
    if (rank != group_.rank() && peer.busy()) moved += push(rank, peer);
  }
  return moved;
}

size_t RankTransfers::push(int rank, Peer& peer) {
  size_t moved = 0;
  while (!peer.replies.empty()) {
    if (!group_.engine()->send_packet(rank, peer.replies.front().packet, nullptr)) return moved;
    const Reply reply = std::move(peer.replies.front());
    peer.replies.pop_front();
    if (reply.ends != nullptr) end(reply.ends);
    ++moved;
  }
  while (!peer.unoffered.empty() && push_offer(rank, peer)) ++moved;
  while (!peer.granted.empty() && push_data(rank, peer)) ++moved;
  return moved;
}

bool RankTransfers::push_offer(int rank, Peer& peer) {
  TransferOperation& send = *peer.unoffered.front();
  const uint64_t eager = send.bytes() <= kEagerBytes ? send.bytes() : 0;
  const Packet packet{.payload = static_cast<uint32_t>(eager),
                      .id = send.id,
                      .count = send.count,
                      .tag = send.tag,
                      .dtype = send.dtype};
  if (!group_.engine()->send_packet(rank, packet, send.data)) return false;
  send.moved = eager;
  peer.unoffered.pop_front();
  return true;
}

bool RankTransfers::push_data(int rank, Peer& peer) {
  TransferOperation& send = *peer.granted.front();
  const uint64_t bytes = std::min<uint64_t>(group_.engine()->payload_most(), send.bytes() - send.moved);
  const Packet packet{.kind = Packet::Kind::kData,
                      .payload = static_cast<uint32_t>(bytes),
                      .id = send.id,
                      .offset = send.moved};
  if (!group_.engine()->send_packet(rank, packet, send.data + send.moved)) return false;
  send.moved += bytes;
  if (send.moved == send.bytes()) peer.granted.pop_front();
  return true;
}

size_t RankTransfers::copy_own() {
  if (own_.empty()) return 0;
  const OwnPair pair = own_.front();
  TransferOperation& send = *pair.send;
  const uint64_t bytes = std::min(kOwnBytes, send.bytes() - send.moved);
  copy_bytes(pair.receive->data + send.moved, send.data + send.moved, bytes);
  send.moved += bytes;
  if (send.moved < send.bytes()) return 1;
  own_.pop_front();
  end(pair.receive);
  end(pair.send);
  return 1;
}

// ---- ends

void RankTransfers::end(const TransferPtr& transfer) {
  Peer& peer = peers_[transfer->peer];
  std::erase(transfer->is_send ? peer.sends : peer.receives, transfer);
  --pending_;
  group_.core().complete(*transfer, ok(), {});
}

void RankTransfers::end_all(const Failure& failure) {
  std::vector<TransferPtr> pending;
  for_each([&](const TransferPtr& transfer) { pending.push_back(transfer); });
  own_.clear();
  peers_.clear();
  pending_ = 0;
  for (const TransferPtr& transfer : pending)
    group_.core().complete(*transfer, end_of(*transfer, failure), failure.suspects);
}

Status RankTransfers::end_of(const TransferOperation& transfer, const Failure& failure) const {
  return Error{failure.code, text_of(transfer, group_.rank()) + ": " + failure.reason};
}

void RankTransfers::for_each(const std::function<void(const TransferPtr&)>& visit) const {
  for (const auto& [rank, peer] : peers_) {
    for (const TransferPtr& transfer : peer.sends) visit(transfer);
    for (const TransferPtr& transfer : peer.receives) visit(transfer);
  }
}

Failure RankTransfers::late(const TransferOperation& transfer) const {
  const std::string peer = "rank " + std::to_string(transfer.peer);
  const char* const counterpart = transfer.is_send ? "receive" : "send";
  std::string reason = "the deadline passed; " + peer;
  if (transfer.matched) {
    reason += " stopped in the middle";
  } else {
    reason += std::string(" issued no ") + counterpart + " that matches, or stopped";
    const Peer& queues = peers_.at(transfer.peer);
    if (!transfer.is_send && !queues.offers.empty())
      reason += " (it offers tag " + std::to_string(queues.offers.front().packet.tag) + ")";
  }
  return {ErrorCode::kReconfigure,
          reason + ", as seen from rank " + std::to_string(group_.rank()),
          {transfer.peer}};
}

size_t RankTransfers::check_deadlines(Instant time) {
  TransferPtr first;
  for_each([&](const TransferPtr& transfer) {
    if (first == nullptr || transfer->deadline < first->deadline) first = transfer;
  });
  if (first == nullptr || time < first->deadline) return 0;
  const Duration late_by = time - first->deadline;
  if (gets_fresh_bound(late_by, first->fresh_bounds)) {
    ++first->fresh_bounds;
    first->deadline = time + fresh_bound(late_by);
    return 1;
  }
  Failure failure = late(*first);
  if (late_by >= kStopped) {
    failure.reason += "; the deadline passed while this rank itself was held up";
    failure.suspects = {group_.rank()};
  }
  group_.fail(std::move(failure));
  return 1;
}

Instant RankTransfers::next_deadline() const {
  Instant earliest = kNever;
  for_each([&](const TransferPtr& transfer) { earliest = std::min(earliest, transfer->deadline); });
  return earliest;
}

}  // namespace muster
