#include "runtime/agent/leader_host.h"

#include <deque>
#include <map>
#include <set>

#include "runtime/base/check.h"
#include "runtime/control/wire.h"

namespace muster::agent {
namespace {

using namespace control;
constexpr char kViewKey[] = "view";

}  // namespace

struct LeaderHost::State : std::enable_shared_from_this<LeaderHost::State> {
  // A connection; `node` is 0 until it said NodeHello.
  struct Peer {
    std::unique_ptr<Link> link;
    std::unique_ptr<Timer> hello_deadline;
    NodeId node = 0;
    bool local = false;
  };
  using PeerPtr = std::shared_ptr<Peer>;

  State(Loop& l, std::unique_ptr<Store> s, LeaderOptions o, LeaderCallbacks c)
      : loop(l),
        store(std::move(s)),
        options(std::move(o)),
        callbacks(std::move(c)),
        core(options.limits, options.secret.job, store->incarnation(), now()),
        timer(loop, [this] { tick_soon(); }) {}

  void start() {
    store->lead([this](Result<uint64_t> answer) {
      if (answer.ok()) token = *answer;
    });
    timer.at(core.next_deadline());
  }

  // After what has already arrived: a leader that was starved of the processor must not take the heartbeats
  // that wait in its sockets for silence.
  void tick_soon() {
    loop.post([weak = weak_from_this()] {
      if (const auto self = weak.lock(); self && !self->over) self->apply(self->core.tick(now()));
    });
  }

  // ---- peers

  void accept(UniqueFd socket, const std::string& from) {
    if (unidentified() >= options.unauthenticated_max) {
      ++refused;
      return;
    }
    auto link = make_tls_link(loop, std::move(socket), from, TlsRole::kServer, options.secret);
    if (!link.ok()) return log("cannot answer " + from + ": " + link.error().message);
    add(std::move(link).value(), false);
  }

  size_t unidentified() const {
    size_t count = 0;
    for (const PeerPtr& peer : peers) count += peer->node == 0 ? 1 : 0;
    return count;
  }

  void add(std::unique_ptr<Link> link, bool local) {
    auto peer = std::make_shared<Peer>();
    peer->link = std::move(link);
    peer->local = local;
    std::weak_ptr<Peer> weak = peer;
    peer->hello_deadline = std::make_unique<Timer>(loop, [this, weak] {
      if (auto p = weak.lock()) drop(p, "said no hello in time");
    });
    peer->hello_deadline->after(options.hello_timeout);
    peers.insert(peer);
    peer->link->start({nullptr,
                       [this, weak](Envelope envelope) {
                         if (auto p = weak.lock()) receive(p, std::move(envelope));
                       },
                       [this, weak](Error error) {
                         if (auto p = weak.lock()) closed(p, error);
                       }});
  }

  void receive(const PeerPtr& peer, Envelope envelope) {
    const auto* hello = std::get_if<NodeHello>(&envelope.message);
    if (peer->node == 0) {
      if (hello == nullptr || hello->node == 0) return drop(peer, "did not begin with a hello");
      identify(peer, hello->node);
    } else if (hello != nullptr && hello->node != peer->node) {
      return drop(peer, "changed its identity");
    }
    apply(core.receive(now(), peer->node, envelope));
  }

  // A node that connects anew replaces its old connection, which may be half-open.
  void identify(const PeerPtr& peer, NodeId node) {
    peer->node = node;
    peer->hello_deadline->cancel();
    if (const auto old = nodes.find(node); old != nodes.end()) {
      peers.erase(old->second);
      old->second->link.reset();
    }
    nodes[node] = peer;
  }

  void closed(const PeerPtr& peer, const Error& error) {
    if (peer->node == 0 && error.code == ErrorCode::kMisuse) {
      ++refused;
      log(peer->link->peer() + ": " + error.message);
    }
    forget(peer, error.message);
  }

  void drop(const PeerPtr& peer, const std::string& why) {
    ++refused;
    log("closed the connection from " + peer->link->peer() + ", which " + why);
    forget(peer, "it " + why);
  }

  void forget(const PeerPtr& peer, const std::string& why) {
    peers.erase(peer);
    const NodeId node = peer->node;
    const auto found = nodes.find(node);
    const bool current = found != nodes.end() && found->second == peer;
    if (current) nodes.erase(found);
    // Its handlers may be on the stack: the link goes when they have returned.
    loop.post([peer] {});
    if (current) apply(core.disconnected(now(), node, why));
  }

  // ---- actions

  void apply(Actions actions) {
    for (Action& action : actions) queue.push_back(std::move(action));
    if (applying) return;
    applying = true;
    const auto keep = shared_from_this();
    while (!queue.empty()) {
      const Action action = std::move(queue.front());
      queue.pop_front();
      std::visit([this](const auto& a) { carry_out(a); }, action);
    }
    applying = false;
    timer.at(core.next_deadline());
  }

  void carry_out(const Send& send) {
    const auto found = nodes.find(send.node);
    if (found == nodes.end()) return;
    const PeerPtr peer = found->second;
    const Status sent = peer->link->send(send.envelope);
    if (!sent.ok()) {
      log(std::string("cannot send ") + name_of(send.envelope.message) + ": " + sent.error().message);
      forget(peer, sent.error().message);
    }
  }

  void carry_out(const Finish& finish) {
    if (callbacks.on_finish) callbacks.on_finish(finish.exit_code, finish.why);
  }
  void carry_out(const Event& event) {
    if (callbacks.on_event) callbacks.on_event(event);
  }
  void carry_out(const SpawnWorker&) { MUSTER_CHECK(false, "the leader has no workers"); }
  void carry_out(const SignalWorker&) { MUSTER_CHECK(false, "the leader has no workers"); }

  // ---- the store (rule 14)

  void carry_out(const StoreView& wanted) {
    read_view([this, wanted](const View& current, uint64_t revision) {
      const bool empty = revision == 0 && wanted.expected.counter == 0;
      if (!empty && current.generation != wanted.expected) return answer(wanted.attempt, false, current);
      swap(wanted, revision);
    });
  }

  void swap(const StoreView& wanted, uint64_t revision) {
    auto bytes = encode(wanted.view);
    if (!bytes.ok()) return log("cannot store the view: " + bytes.error().message);
    store->compare_and_swap(kViewKey, revision, std::move(bytes).value(), token,
                            [this, wanted](Result<bool> wrote) {
                              if (wrote.ok() && *wrote) return answer(wanted.attempt, true, wanted.view);
                              // Refused, or the outcome is unknown: what the store holds tells. Generations
                              // are never reissued.
                              read_view([this, wanted](const View& current, uint64_t) {
                                answer(wanted.attempt, current == wanted.view, current);
                              });
                            });
  }

  // No answer where the store gives none: the coordinator's store_timeout sees to it.
  void read_view(std::function<void(const View&, uint64_t)> done) {
    store->get(kViewKey, [this, done](Result<StoreEntry> entry) {
      if (!entry.ok()) return log("the store does not answer: " + entry.error().message);
      if (entry->revision == 0) return done(View{}, 0);
      const auto view = decode_view(entry->value);
      if (!view.ok()) return log("the store holds " + view.error().message + " in place of a view");
      done(*view, entry->revision);
    });
  }

  void answer(uint32_t attempt, bool stored, const View& current) {
    apply(core.stored(now(), attempt, stored, current));
  }

  void log(const std::string& text) {
    if (callbacks.on_event) callbacks.on_event({EventKind::kLog, now(), 0, -1, -1, 0, text});
  }

  Loop& loop;
  std::unique_ptr<Store> store;
  LeaderOptions options;
  LeaderCallbacks callbacks;
  Coordinator core;
  Timer timer;
  uint64_t token = 0;
  uint64_t refused = 0;
  std::vector<std::unique_ptr<Listener>> listeners;
  std::set<PeerPtr> peers;
  std::map<NodeId, PeerPtr> nodes;
  std::deque<Action> queue;
  bool applying = false;
  bool over = false;
};

LeaderHost::LeaderHost(Loop& loop, std::unique_ptr<Store> store, LeaderOptions options,
                       LeaderCallbacks callbacks)
    : state_(std::make_shared<State>(loop, std::move(store), std::move(options), std::move(callbacks))) {
  state_->start();
}

LeaderHost::~LeaderHost() {
  state_->over = true;
  state_->listeners.clear();
  state_->callbacks = {};
  state_->timer.cancel();
  state_->nodes.clear();
  state_->peers.clear();
}

void LeaderHost::listen(std::unique_ptr<Listener> listener) {
  listener->start(
      [state = state_.get()](UniqueFd socket, std::string from) { state->accept(std::move(socket), from); });
  state_->listeners.push_back(std::move(listener));
}

std::unique_ptr<Link> LeaderHost::attach() {
  auto [ours, theirs] = make_loopback(state_->loop);
  state_->add(std::move(ours), true);
  return std::move(theirs);
}

size_t LeaderHost::nodes_connected() const {
  size_t count = 0;
  for (const auto& [node, peer] : state_->nodes) count += peer->local ? 0 : 1;
  return count;
}

uint64_t LeaderHost::refused() const { return state_->refused; }

}  // namespace muster::agent
