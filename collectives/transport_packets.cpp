#include "collectives/transport_packets.h"

#include <cstring>

#include "collectives/group_state.h"
#include "collectives/transport_engine.h"

namespace muster {
namespace {

constexpr size_t kReceives = 8;  // posted at once, from the first send or receive of this rank on
constexpr size_t kWindow = 8;    // packets on their way to one peer

// In the place of a sequence; the engine's control messages have 0.
constexpr uint64_t kPackets = 1;

struct Header {
  static constexpr uint32_t kMagic = 0x3250554dU;  // "MUP2": format version 2
  uint32_t magic = kMagic;
  int32_t source = 0;
  Generation generation;
  uint64_t number = 0;
  Packet packet;
  BlockName name;
};
static_assert(sizeof(Header) == 88 && sizeof(Header) + kPayloadBytes <= kMessageBytes);

uint64_t tag_of(const GroupState& group, int receiver) {
  return group_tag(TagKind::kControl, group.port(receiver), receiver, kPackets);
}

}  // namespace

TransportPackets::~TransportPackets() {
  for (const auto& [cookie, entry] : in_flight_)
    entry.message == nullptr ? group_.core().forget(entry.id) : group_.core().cancel(entry.id);
}

void TransportPackets::open(int rank) {
  group_.core().expect(peers_[static_cast<size_t>(rank)]);
  if (std::exchange(open_, true)) return;
  for (size_t i = 0; i < kReceives; ++i) post_receive();
}

void TransportPackets::post_receive() {
  const uint64_t cookie = next_cookie_++;
  InFlight& entry = in_flight_[cookie];
  entry.message = group_.core().take_message();
  entry.id = group_.core().receive(tag_of(group_, group_.rank()), entry.message, this, cookie);
}

bool TransportPackets::send(int rank, const Packet& packet, const std::byte* payload) {
  Stream& stream = streams_[rank];
  if (stream.in_flight >= kWindow) return false;
  const MessagePtr message = group_.core().take_message();
  Header header;
  header.source = group_.rank();
  header.generation = group_.generation();
  header.number = stream.sent++;
  header.packet = packet;
  pack(blocks_, rank, header, {payload, packet.payload}, *message);
  const uint64_t cookie = next_cookie_++;
  const TransferId id =
      group_.core().send(peers_[static_cast<size_t>(rank)], tag_of(group_, rank), message, this, cookie);
  if (id == 0) return true;  // the peer is gone
  in_flight_[cookie] = {id, rank, nullptr};
  ++stream.in_flight;
  return true;
}

void TransportPackets::transfer_ended(uint64_t cookie, TransferStatus status, size_t bytes) {
  const auto found = in_flight_.find(cookie);
  if (found == in_flight_.end()) return;
  InFlight ended = std::move(found->second);
  in_flight_.erase(found);
  ++moved_;
  if (ended.message == nullptr) {  // failed or not: the death of a peer is reported on its own
    --streams_[ended.receiver].in_flight;
    return;
  }
  if (status == TransferStatus::kFailed || status == TransferStatus::kCanceled) return;
  post_receive();
  if (status == TransferStatus::kDone) arrive(std::move(ended.message), bytes);
}

// A stray with a colliding tag is dropped.
void TransportPackets::arrive(MessagePtr message, size_t bytes) {
  Header header;
  if (bytes < sizeof header) return;
  std::memcpy(&header, message->data, sizeof header);
  const bool ours =
      header.magic == Header::kMagic && header.generation == group_.generation() && header.source >= 0 &&
      header.source < group_.size() && header.source != group_.rank() &&
      payload_of(blocks_, header.source, header, *message, bytes, header.packet.payload) != nullptr;
  if (!ours) return;
  Stream& stream = streams_[header.source];
  stream.early[header.number] = {std::move(message), bytes};
  hand_on(header.source, stream);
}

void TransportPackets::hand_on(int source, Stream& stream) {
  while (!stream.early.empty() && stream.early.begin()->first <= stream.taken) {
    const auto [number, early] = *stream.early.begin();
    stream.early.erase(stream.early.begin());
    if (number < stream.taken) continue;
    ++stream.taken;
    Header header;
    std::memcpy(&header, early.message->data, sizeof header);
    group_.transfers().take(
        source, header.packet,
        payload_of(blocks_, source, header, *early.message, early.bytes, header.packet.payload));
    if (header.name.use != 0) blocks_->release(source, header.name);
  }
}

}  // namespace muster
