#include "collectives/endpoint.h"

#include <algorithm>

#include "collectives/contact.h"
#include "collectives/core.h"
#include "collectives/formation.h"
#include "collectives/group_state.h"
#include "collectives/node/local_link.h"
#include "collectives/node/message_blocks.h"
#include "collectives/node/node_engine.h"
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
  parts.push_back(digest_of(std::as_bytes(std::span(spec.ports))));
  return digest_of(parts);
}

Status check_spec(const GroupSpec& spec) {
  const size_t size = spec.contacts.size();
  const bool fits = size >= 1 && size <= kMaxRanks && spec.nodes.size() == size && spec.rank >= 0 &&
                    static_cast<size_t>(spec.rank) < size &&
                    (spec.ports.empty() || spec.ports.size() == size);
  if (fits) return ok();
  return Error{ErrorCode::kMisuse,
               "form_group: rank " + std::to_string(spec.rank) + ", " + std::to_string(size) +
                   " contacts and " + std::to_string(spec.nodes.size()) +
                   " node ids do not fit together, or are more than " + std::to_string(kMaxRanks)};
}

std::vector<Port> ports_of(const GroupSpec& spec) {
  if (!spec.ports.empty()) return spec.ports;
  const uint64_t hash = mix64(spec.generation.nonce ^ mix64(spec.generation.counter));
  return std::vector<Port>(spec.contacts.size(), static_cast<Port>(hash % (1 << kPortBits)));
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
      nonce_(random_nonce()),
      ports_(std::make_shared<Ports>()) {}

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
  if (endpoint->shared_memory_) {
    if (auto listener = LocalListener::open(endpoint->core_, endpoint->nonce_); listener.ok()) {
      endpoint->listener_ = std::move(*listener);
      contact.local_socket = endpoint->listener_->name();
    }
  }
  endpoint->address_ = contact.encode();
  return endpoint;
}

Endpoint::~Endpoint() {
  if (core_ == nullptr) return;
  if (mark_.is_inherited()) {
    abandon();
    return;
  }
  for (const auto& weak : std::exchange(groups_, {})) {
    if (const auto group = weak.lock()) group->close({ErrorCode::kReconfigure, "the endpoint was closed"});
  }
  transfers_.reset();
  listener_.reset();
  core_->stop();
}

// Their ends would wait for threads that are not here, and speak in the parent's name.
void Endpoint::abandon() {
  (void)transfers_.release();
  (void)listener_.release();
  new std::shared_ptr(std::move(core_));
}

ByteBuffer Endpoint::contact() const { return address_; }

Result<std::shared_ptr<const Port>> Endpoint::reserve_port() {
  if (auto port = Ports::reserve(ports_)) return port;
  return Error{ErrorCode::kEnvironment,
               "this process has as many groups as can be told apart; end some before the next is formed"};
}

Result<PeerId> Endpoint::peer(ByteSpan bytes) {
  MUSTER_ASSIGN(const Contact contact, Contact::parse(bytes));
  const std::lock_guard lock(core_->mutex());
  if (core_->transport() == nullptr || contact.transport != core_->transport()->name()) {
    return Error{ErrorCode::kEnvironment, "the peer is reached by transport \"" + contact.transport +
                                              "\", which this process has not opened; open the same on all"};
  }
  const PeerId core_peer = core_->add_peer(contact.address);
  for (PeerId peer = 0; peer < peers_.size(); ++peer) {
    if (peers_[peer].nonce == contact.nonce) return peer;
  }
  peers_.push_back({contact.nonce, core_peer});
  return static_cast<PeerId>(peers_.size() - 1);
}

Work Endpoint::send(PeerId peer, uint64_t tag, ByteSpan bytes, Instant deadline) {
  return send(peer, tag, std::vector<ByteSpan>{bytes}, deadline);
}

Work Endpoint::send(PeerId peer, uint64_t tag, std::vector<ByteSpan> parts, Instant deadline) {
  PeerInfo info;
  {
    const std::lock_guard lock(core_->mutex());
    if (peer >= peers_.size()) return refused("send: no such peer; peer() gives them");
    info = peers_[peer];
  }
  return transfers_->send(info.core_peer, channel_of(nonce_, info.nonce, tag), tag, std::move(parts),
                          deadline);
}

Work Endpoint::recv(PeerId peer, uint64_t tag, MutableByteSpan bytes, Instant deadline) {
  PeerInfo info;
  {
    const std::lock_guard lock(core_->mutex());
    if (peer >= peers_.size()) return refused("recv: no such peer; peer() gives them");
    info = peers_[peer];
  }
  return transfers_->receive(info.core_peer, channel_of(info.nonce, nonce_, tag), tag, bytes, deadline);
}

void Endpoint::cancel(const Work& transfer) { transfers_->cancel(transfer.operation_); }

Result<OwnFd> Endpoint::hand_over(ByteSpan bytes, uint64_t tag, int memory) {
  MUSTER_ASSIGN(const Contact contact, Contact::parse(bytes));
  if (listener_ != nullptr && !contact.local_socket.empty())
    return muster::hand_over(contact, nonce_, tag, memory);
  return Error{ErrorCode::kEnvironment, "shared memory is off, here or at the peer"};
}

std::optional<Handover> Endpoint::await_handover(ByteSpan bytes, uint64_t tag, const Work& until,
                                                 Instant deadline) {
  std::optional<Handover> handover;
  const auto contact = Contact::parse(bytes);
  if (!contact.ok()) return handover;
  const Operation* const other = until.operation_.get();
  core_->drive_until(
      [&] {
        if (!handover && listener_ != nullptr) handover = listener_->claim_handover(contact->nonce, tag);
        return handover || (other != nullptr && other->done.load(std::memory_order_acquire));
      },
      deadline, Core::Wait::kAsleep);
  return handover;
}

// What is gathered on the way to a group.
struct Endpoint::Forming {
  std::vector<Contact> contacts;
  std::vector<PeerId> peers;  // of the core; kSelf where there is no transport
  std::unique_ptr<Formation> formation;
  std::vector<int> absent;
  Segment segment;
  std::shared_ptr<Arena> arena;
  std::unique_ptr<LocalExchange> exchange;  // complete: all ranks are on this node, and share memory
};

Result<std::unique_ptr<Group>> Endpoint::form_group(const GroupSpec& spec, std::vector<int>* absent) {
  MUSTER_TRY(check_spec(spec));
  Forming forming;
  for (const ByteBuffer& bytes : spec.contacts) {
    MUSTER_ASSIGN(Contact contact, Contact::parse(bytes));
    forming.contacts.push_back(std::move(contact));
  }
  if (forming.contacts[static_cast<size_t>(spec.rank)].nonce != nonce_) {
    return Error{ErrorCode::kMisuse, "form_group: the contact of rank " + std::to_string(spec.rank) +
                                         " is not this endpoint's; pass each member's contact()"};
  }
  forming.peers.assign(spec.contacts.size(), kSelf);
  Status status = ok();
  if (spec.contacts.size() > 1) {
    status = assemble(spec, forming);
    if (status.ok()) status = try_shared_memory(spec, forming);
  }
  if (absent != nullptr) *absent = forming.absent;
  MUSTER_TRY(std::move(status));
  return finish(spec, forming);
}

void Endpoint::cancel_formation(const Generation& generation) {
  const std::lock_guard lock(core_->mutex());
  core_->cancel_formation(generation);
}

// Without a transport, the exchange of shared memory is where members are missed.
Status Endpoint::assemble(const GroupSpec& spec, Forming& forming) {
  if (core_->transport() == nullptr) return ok();
  for (size_t rank = 0; rank < spec.contacts.size(); ++rank) {
    if (static_cast<int>(rank) == spec.rank) continue;
    MUSTER_ASSIGN(const PeerId id, peer(spec.contacts[rank]));
    const std::lock_guard lock(core_->mutex());
    forming.peers[rank] = peers_[id].core_peer;
  }
  forming.formation =
      std::make_unique<Formation>(*core_, spec, forming.peers, ports_of(spec), digest_of_spec(spec));
  return forming.formation->assemble(forming.absent);
}

Status Endpoint::try_shared_memory(const GroupSpec& spec, Forming& forming) {
  // With everybody present the exchange takes milliseconds.
  constexpr Duration kPatience = 2 * kSecond;
  const bool worth_it =
      std::ranges::all_of(spec.nodes, [&](uint64_t node) { return node == spec.nodes[0]; }) &&
      std::ranges::none_of(forming.contacts,
                           [](const Contact& contact) { return contact.local_socket.empty(); });
  if (!worth_it && forming.formation != nullptr) return ok();
  if (!worth_it) {
    return Error{ErrorCode::kEnvironment,
                 "the group spans nodes, or shared memory is off, and no transport is open; open one (UCX)"};
  }
  auto segment = Segment::create(spec.generation, spec.rank, static_cast<int>(spec.contacts.size()));
  auto arena = Arena::create(static_cast<int>(spec.contacts.size()));
  Status status = segment.ok() ? ok() : Status(segment.error());
  if (!arena.ok()) status = arena.error();
  std::vector<int> missing;
  if (status.ok()) {
    forming.segment = std::move(*segment);
    forming.arena = std::move(*arena);
    forming.exchange =
        std::make_unique<LocalExchange>(*core_, *listener_, spec.generation, spec.rank, forming.contacts);
    const Instant deadline =
        forming.formation != nullptr ? std::min(spec.deadline, now() + kPatience) : spec.deadline;
    status = forming.exchange->run(forming.segment, *forming.arena, deadline, missing);
  }
  {
    const std::lock_guard lock(core_->mutex());
    listener_->forget(spec.generation);
  }
  if (forming.formation == nullptr) {
    if (status.ok()) return ok();
    forming.absent = missing;
    std::string names;
    for (int rank : missing) names += (names.empty() ? "" : ", ") + std::to_string(rank);
    return Error{ErrorCode::kReconfigure, "forming group " + to_string(spec.generation) + ": rank " + names +
                                              " was not reached on this node: " + status.error().message};
  }
  MUSTER_ASSIGN(const bool all, forming.formation->agree(status.ok(), forming.absent));
  if (!all) forming.exchange.reset();
  return ok();
}

// Null where no other rank is on this node, or memory cannot be shared.
std::unique_ptr<MessageBlocks> Endpoint::open_blocks(const GroupSpec& spec, Forming& forming) {
  std::vector<MessageBlocks::Rank> mates;
  for (size_t rank = 0; rank < spec.nodes.size(); ++rank) {
    const bool here = spec.nodes[rank] == spec.nodes[static_cast<size_t>(spec.rank)];
    if (here && static_cast<int>(rank) != spec.rank && !forming.contacts[rank].local_socket.empty())
      mates.push_back({static_cast<int>(rank), std::move(forming.contacts[rank])});
  }
  if (listener_ == nullptr || mates.empty()) return nullptr;
  return MessageBlocks::open(*core_, *listener_, nonce_, spec.generation, spec.rank, std::move(mates));
}

Result<std::unique_ptr<Group>> Endpoint::finish(const GroupSpec& spec, Forming& forming) {
  const int size = static_cast<int>(spec.contacts.size());
  auto state = std::make_shared<GroupState>(core_, spec.generation, spec.rank, size);
  state->talk_by(ports_of(spec), spec.own_port);
  std::unique_ptr<Engine> engine;
  std::unique_ptr<MessageBlocks> blocks;
  if (forming.exchange == nullptr) blocks = open_blocks(spec, forming);
  {
    const std::lock_guard lock(core_->mutex());
    if (forming.exchange != nullptr) {
      forming.segment.close_descriptor();
      forming.arena->close_descriptor();
      engine = make_node_engine(
          *state, {std::move(forming.segment), std::move(forming.arena), std::move(forming.exchange->mates()),
                   std::move(forming.exchange->segments()), std::move(forming.exchange->arenas())});
    } else {
      engine = make_transport_engine(*state, forming.peers, spec.nodes, algorithm_, std::move(blocks));
    }
    std::erase_if(groups_, [](const auto& weak) { return weak.expired(); });
    groups_.push_back(state);
  }
  state->open(std::move(engine));
  return std::make_unique<Group>(std::move(state));
}

}  // namespace muster
