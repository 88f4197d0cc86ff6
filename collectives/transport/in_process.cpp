#include "collectives/transport/in_process.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/base/handle.h"

namespace muster {
namespace {

struct Arrived {
  uint64_t tag;
  uint32_t sender;
  ByteBuffer bytes;
};

struct Posted {
  TransferId id;
  uint64_t tag;
  MessagePtr message;
};

struct Ended {
  TransferId id;
  TransferStatus status;
  size_t bytes;
};

// What the network knows of one transport. Guarded by the network's mutex.
struct Port {
  UniqueFd event;
  bool dead = false;
  bool frozen = false;
  bool armed = false;
  std::set<uint32_t> peers;                          // whose death it is told
  std::deque<Arrived> unexpected;                    // delivered, not yet received
  std::deque<Arrived> held;                          // withheld while this port is frozen: arrivals
  std::vector<std::pair<uint32_t, Arrived>> outbox;  // withheld while frozen: departures
  std::deque<Posted> posted;
  std::deque<Ended> ended;
  std::deque<uint32_t> deaths;

  void wake() {
    const uint64_t one = 1;
    if (armed) [[maybe_unused]]
      const ssize_t wrote = write(event.get(), &one, sizeof one);
    armed = false;
  }
};

}  // namespace

struct InProcessNetwork::State {
  std::mutex mutex;
  std::deque<Port> ports;

  // Completes a posted receive, or keeps the message.
  void deliver(uint32_t to, Arrived arrived) {
    Port& port = ports[to];
    if (port.dead) return;
    if (port.frozen) {
      port.held.push_back(std::move(arrived));
      return;
    }
    for (auto it = port.posted.begin(); it != port.posted.end(); ++it) {
      if (it->tag != arrived.tag) continue;
      complete(port, *it, arrived);
      port.posted.erase(it);
      port.wake();
      return;
    }
    port.unexpected.push_back(std::move(arrived));
  }

  static void complete(Port& port, const Posted& posted, const Arrived& arrived) {
    const bool fits = arrived.bytes.size() <= posted.message->size;
    if (fits && !arrived.bytes.empty())
      std::memcpy(posted.message->data, arrived.bytes.data(), arrived.bytes.size());
    port.ended.push_back(
        {posted.id, fits ? TransferStatus::kDone : TransferStatus::kTruncated, arrived.bytes.size()});
  }

  void depart(uint32_t from, uint32_t to, Arrived arrived) {
    if (ports[from].dead) return;
    if (ports[from].frozen) {
      ports[from].outbox.emplace_back(to, std::move(arrived));
    } else {
      deliver(to, std::move(arrived));
    }
  }

  void die(uint32_t who) {
    if (ports[who].dead) return;
    ports[who].dead = true;
    for (Port& port : ports) {
      if (!port.peers.contains(who)) continue;
      port.deaths.push_back(who);
      port.wake();
    }
  }

  void thaw(uint32_t who) {
    Port& port = ports[who];
    port.frozen = false;
    for (auto& [to, arrived] : std::exchange(port.outbox, {})) depart(who, to, std::move(arrived));
    for (Arrived& arrived : std::exchange(port.held, {})) deliver(who, std::move(arrived));
    port.wake();
  }
};

namespace {

class InProcessTransport final : public Transport {
 public:
  InProcessTransport(std::shared_ptr<InProcessNetwork> network, InProcessNetwork::State& state, uint32_t self)
      : network_(std::move(network)), state_(state), self_(self) {}

  ~InProcessTransport() override {
    const std::lock_guard lock(state_.mutex);
    port().posted.clear();
    state_.die(self_);
  }

  std::string_view name() const override { return "in-process"; }

  ByteBuffer address() const override {
    const ByteSpan bytes = bytes_of(self_);
    return {bytes.begin(), bytes.end()};
  }

  Result<TransportPeer> connect(ByteSpan address) override {
    uint32_t peer = 0;
    const std::lock_guard lock(state_.mutex);
    if (address.size() == sizeof peer) std::memcpy(&peer, address.data(), sizeof peer);
    if (address.size() != sizeof peer || peer >= state_.ports.size())
      return Error{ErrorCode::kMisuse, "this is not an address of the in-process network"};
    port().peers.insert(peer);
    if (state_.ports[peer].dead) {
      port().deaths.push_back(peer);
      port().wake();
    }
    return peer;
  }

  void disconnect(TransportPeer peer) override {
    const std::lock_guard lock(state_.mutex);
    port().peers.erase(peer);
  }

  TransferId send(TransportPeer peer, uint64_t tag, MessagePtr message) override {
    const std::lock_guard lock(state_.mutex);
    const TransferId id = ++last_id_;
    state_.depart(self_, peer, {tag, self_, ByteBuffer(message->data, message->data + message->size)});
    port().ended.push_back({id, TransferStatus::kDone, message->size});
    port().wake();
    return id;
  }

  TransferId receive(uint64_t tag, MessagePtr message) override {
    const std::lock_guard lock(state_.mutex);
    const TransferId id = ++last_id_;
    auto& unexpected = port().unexpected;
    for (auto it = unexpected.begin(); it != unexpected.end(); ++it) {
      if (it->tag != tag) continue;
      InProcessNetwork::State::complete(port(), {id, tag, std::move(message)}, *it);
      unexpected.erase(it);
      port().wake();
      return id;
    }
    port().posted.push_back({id, tag, std::move(message)});
    return id;
  }

  void cancel(TransferId id) override {
    const std::lock_guard lock(state_.mutex);
    std::erase_if(port().posted, [&](const Posted& posted) { return posted.id == id; });
    std::erase_if(port().ended, [&](const Ended& ended) { return ended.id == id; });
  }

  void discard(uint64_t value, uint64_t mask) override {
    const std::lock_guard lock(state_.mutex);
    std::erase_if(port().unexpected,
                  [&](const Arrived& arrived) { return (arrived.tag & mask) == (value & mask); });
  }

  // The sink posts more transfers, so it is called without the network's mutex.
  size_t progress(TransportSink& sink) override {
    std::deque<Ended> ended;
    std::deque<uint32_t> deaths;
    {
      const std::lock_guard lock(state_.mutex);
      uint64_t count = 0;
      [[maybe_unused]] const ssize_t got = read(port().event.get(), &count, sizeof count);
      port().armed = false;
      if (port().frozen || port().dead) return 0;
      ended.swap(port().ended);
      deaths.swap(port().deaths);
    }
    for (const Ended& one : ended) sink.transfer_ended(one.id, one.status, one.bytes);
    for (uint32_t peer : deaths) sink.peer_failed(peer, "the process is gone");
    return ended.size() + deaths.size();
  }

  int event_fd() const override {
    const std::lock_guard lock(state_.mutex);
    return port().event.get();
  }

  bool arm() override {
    const std::lock_guard lock(state_.mutex);
    if (!port().frozen && !port().dead && (!port().ended.empty() || !port().deaths.empty())) return false;
    port().armed = true;
    return true;
  }

 private:
  Port& port() const { return state_.ports[self_]; }

  std::shared_ptr<InProcessNetwork> network_;
  InProcessNetwork::State& state_;
  const uint32_t self_;
  TransferId last_id_ = 0;
};

}  // namespace

InProcessNetwork::InProcessNetwork() : state_(std::make_unique<State>()) {}
InProcessNetwork::~InProcessNetwork() = default;

std::shared_ptr<InProcessNetwork> InProcessNetwork::create() {
  return std::shared_ptr<InProcessNetwork>(new InProcessNetwork());
}

std::unique_ptr<Transport> InProcessNetwork::make_transport() {
  const std::lock_guard lock(state_->mutex);
  const auto self = static_cast<uint32_t>(state_->ports.size());
  state_->ports.emplace_back().event.reset(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  MUSTER_CHECK(state_->ports.back().event, "eventfd(2) failed");
  return std::make_unique<InProcessTransport>(shared_from_this(), *state_, self);
}

void InProcessNetwork::kill(uint32_t transport) {
  const std::lock_guard lock(state_->mutex);
  state_->die(transport);
}

void InProcessNetwork::freeze(uint32_t transport) {
  const std::lock_guard lock(state_->mutex);
  state_->ports[transport].frozen = true;
}

void InProcessNetwork::thaw(uint32_t transport) {
  const std::lock_guard lock(state_->mutex);
  state_->thaw(transport);
}

}  // namespace muster
