#include "collectives/endpoint.h"

#include <algorithm>

#include "collectives/contact.h"
#include "collectives/core.h"
#include "collectives/formation.h"
#include "collectives/group_state.h"
#include "collectives/point_to_point.h"
#include "collectives/transport_engine.h"
#include "runtime/base/random.h"

namespace muster {
namespace {

// What all members must have been told alike.
Digest digest_of_spec(const GroupSpec& spec) {
  std::vector<Digest> parts;
  for (const ByteBuffer& contact : spec.contacts) parts.push_back(digest_of(contact));
  parts.push_back(digest_of(std::as_bytes(std::span(spec.nodes))));
  parts.push_back(digest_of(bytes_of(spec.generation)));
  return digest_of(parts);
}

Status check_spec(const GroupSpec& spec) {
  const size_t size = spec.contacts.size();
  const bool fits = size >= 1 && size <= kMaxRanks && spec.nodes.size() == size && spec.rank >= 0 &&
                    static_cast<size_t>(spec.rank) < size;
  if (fits) return ok();
  return Error{ErrorCode::kMisuse,
               "form_group: rank " + std::to_string(spec.rank) + ", " + std::to_string(size) +
                   " contacts and " + std::to_string(spec.nodes.size()) +
                   " node ids do not fit together, or are more than " + std::to_string(kMaxRanks)};
}

uint64_t channel_of(uint64_t sender, uint64_t receiver, uint64_t tag) {
  return mix64(sender ^ mix64(receiver ^ mix64(tag)));
}

Work refused(std::string message) {
  auto operation = std::make_shared<Operation>();
  operation->result = Error{ErrorCode::kMisuse, std::move(message)};
  operation->done = true;
  return Work(std::move(operation));
}

}  // namespace

Endpoint::Endpoint(EndpointOptions options)
    : shared_memory_(options.shared_memory),
      algorithm_(std::move(options.algorithm)),
      nonce_(random_nonce()) {}

Result<std::unique_ptr<Endpoint>> Endpoint::create(EndpointOptions options) {
  std::unique_ptr<Transport> transport = std::move(options.transport);
  std::unique_ptr<Endpoint> endpoint(new Endpoint(std::move(options)));
  Contact contact;
  contact.nonce = endpoint->nonce_;
  if (transport != nullptr) {
    contact.transport = transport->name();
    contact.address = transport->address();
  }
  MUSTER_ASSIGN(endpoint->core_, Core::start(std::move(transport)));
  endpoint->transfers_ = std::make_unique<PointToPoint>(endpoint->core_);
  endpoint->address_ = contact.encode();
  return endpoint;
}

Endpoint::~Endpoint() {
  if (core_ == nullptr) return;
  for (const auto& weak : std::exchange(groups_, {})) {
    if (const auto group = weak.lock()) group->close({ErrorCode::kReconfigure, "the endpoint was closed"});
  }
  transfers_.reset();
  core_->stop();
}

ByteBuffer Endpoint::contact() const { return address_; }

Result<PeerId> Endpoint::peer(ByteSpan bytes) {
  MUSTER_ASSIGN(const Contact contact, Contact::parse(bytes));
  const std::lock_guard lock(core_->mutex());
  if (core_->transport() == nullptr || contact.transport != core_->transport()->name()) {
    return Error{ErrorCode::kEnvironment, "the peer is reached by transport \"" + contact.transport +
                                              "\", which this process has not opened; open the same on all"};
  }
  MUSTER_ASSIGN(const PeerId core_peer, core_->add_peer(contact.address));
  for (PeerId peer = 0; peer < peers_.size(); ++peer) {
    if (peers_[peer].nonce == contact.nonce) return peer;
  }
  peers_.push_back({contact.nonce, core_peer});
  return static_cast<PeerId>(peers_.size() - 1);
}

Work Endpoint::send(PeerId peer, uint64_t tag, ByteSpan bytes, Instant deadline) {
  PeerInfo info;
  {
    const std::lock_guard lock(core_->mutex());
    if (peer >= peers_.size()) return refused("send: no such peer; peer() gives them");
    info = peers_[peer];
  }
  return transfers_->start(true, info.core_peer, channel_of(nonce_, info.nonce, tag), tag,
                           const_cast<std::byte*>(bytes.data()), bytes.size(), deadline);
}

Work Endpoint::recv(PeerId peer, uint64_t tag, MutableByteSpan bytes, Instant deadline) {
  PeerInfo info;
  {
    const std::lock_guard lock(core_->mutex());
    if (peer >= peers_.size()) return refused("recv: no such peer; peer() gives them");
    info = peers_[peer];
  }
  return transfers_->start(false, info.core_peer, channel_of(info.nonce, nonce_, tag), tag, bytes.data(),
                           bytes.size(), deadline);
}

Result<std::unique_ptr<Group>> Endpoint::form_group(const GroupSpec& spec, std::vector<int>* absent) {
  MUSTER_TRY(check_spec(spec));
  std::vector<int> missing;
  std::vector<PeerId> peers(spec.contacts.size(), kSelf);
  const int size = static_cast<int>(spec.contacts.size());
  for (int rank = 0; rank < size; ++rank) {
    if (rank == spec.rank) continue;
    MUSTER_ASSIGN(const PeerId id, peer(spec.contacts[static_cast<size_t>(rank)]));
    const std::lock_guard lock(core_->mutex());
    peers[static_cast<size_t>(rank)] = peers_[id].core_peer;
  }
  if (size > 1) {
    Formation formation(*core_, spec, peers, digest_of_spec(spec));
    const Status assembled = formation.assemble(missing);
    if (absent != nullptr) *absent = missing;
    MUSTER_TRY(assembled);
  }
  auto state = std::make_shared<GroupState>(core_, spec.generation, spec.rank, size);
  std::unique_ptr<Engine> engine;
  {
    const std::lock_guard lock(core_->mutex());
    engine = make_transport_engine(*state, peers, algorithm_);
  }
  state->open(std::move(engine));
  {
    const std::lock_guard lock(core_->mutex());
    std::erase_if(groups_, [](const auto& weak) { return weak.expired(); });
    groups_.push_back(state);
  }
  return std::make_unique<Group>(std::move(state));
}

}  // namespace muster
