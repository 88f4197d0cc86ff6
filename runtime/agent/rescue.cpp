#include "runtime/agent/rescue.h"

#include <algorithm>
#include <deque>
#include <map>
#include <set>

#include "runtime/agent/admission.h"
#include "runtime/base/random.h"

namespace muster::agent {

using namespace control;

struct Rescue::State : std::enable_shared_from_this<Rescue::State> {
  // An agent that came to this one; `node` is 0 until its hello.
  struct Peer {
    std::unique_ptr<Link> link;
    NodeId node = 0;
    uint64_t waits = 0;  // its number in `waiting`
    std::vector<MemberId> members;
  };
  using PeerPtr = std::shared_ptr<Peer>;

  State(Loop& l, RescueOptions o, RescueCallbacks c)
      : loop(l),
        options(std::move(o)),
        callbacks(std::move(c)),
        timer(l, [this] { tick(); }),
        first_word(l, [this] { try_next(); }),
        waiting(options.waiting_max) {}

  void log(const std::string& text) {
    if (callbacks.on_event) callbacks.on_event({EventKind::kLog, now(), 0, -1, -1, 0, text});
  }

  // ---- looking for who collects

  void begin(std::vector<Neighbour> neighbours, std::vector<MemberId> its_members) {
    if (active) return;
    active = true;
    members = std::move(its_members);
    candidates.clear();
    const auto self = std::find_if(neighbours.begin(), neighbours.end(),
                                   [this](const Neighbour& n) { return n.node == options.node; });
    candidates.assign(neighbours.begin(), self);
    later = self == neighbours.end() ? 0 : static_cast<size_t>(neighbours.end() - self) - 1;
    if (later > 0 && neighbours.size() >= kNeighboursMax)
      later = SIZE_MAX / 2;  // those beyond the list come too
    try_next();
  }

  void try_next() {
    drop_uplink();
    joined = false;
    if (!active) return;
    if (candidates.empty()) return collect();
    const Neighbour candidate = candidates.front();
    candidates.pop_front();
    const uint64_t turn = ++turns;
    resolve(loop, weak_from_this(), candidate.host, static_cast<uint16_t>(candidate.port),
            [this, turn](Result<std::vector<SocketAddress>> found) {
              if (!active || turn != turns) return;
              if (!found.ok()) return try_next();
              connect(turn, std::move(found).value());
            });
  }

  void connect(uint64_t turn, std::vector<SocketAddress> addresses) {
    connector = std::make_unique<Connector>(
        loop, std::move(addresses), options.connect_timeout,
        [this, turn](Result<UniqueFd> socket, const std::string& peer) {
          if (!active || turn != turns) return;
          if (!socket.ok()) return try_next();
          auto made = make_tls_link(loop, std::move(socket).value(), peer, TlsRole::kClient, options.secret);
          if (!made.ok()) return try_next();
          uplink = std::move(made).value();
          uplink->start({[this, turn] {
                           if (turn != turns) return;
                           first_word.after(options.first_word_timeout);
                           tell_uplink({0, RescueHello{options.node, options.name, members}});
                         },
                         [this, turn](const Envelope& envelope) {
                           if (turn == turns) from_uplink(envelope);
                         },
                         [this, turn](const Error&) {
                           if (turn == turns && !is_over) try_next();
                         }});
        });
  }

  void tell_uplink(const Envelope& envelope) {
    if (uplink && !uplink->send(envelope).ok()) try_next();
  }

  void from_uplink(const Envelope& envelope) {
    if (const auto* refused = std::get_if<RescueRefused>(&envelope.message)) {
      log(uplink->peer() + " does not collect: " + refused->why);
      return try_next();
    }
    first_word.cancel();
    if (!std::exchange(joined, true)) refuse_waiting("it has joined another agent");
    if (const auto* over = std::get_if<RescueOver>(&envelope.message)) return finish(*over);
    if (envelope.member != 0) callbacks.to_member(envelope);
  }

  // Handlers of these may be on the stack: they go when they have returned.
  void drop_uplink() {
    ++turns;
    first_word.cancel();
    if (uplink) loop.post([old = std::shared_ptr<Link>(std::move(uplink))] {});
    uplink.reset();
    if (connector) loop.post([old = std::shared_ptr<Connector>(std::move(connector))] {});
    connector.reset();
  }

  // ---- collecting

  void collect() {
    log("collects what the workers hold, the leader being lost");
    core = std::make_unique<RescueCore>(later, options.limits, random_nonce(), now());
    apply(core->joined(now(), options.node, members));
    for (const PeerPtr& peer : std::set<PeerPtr>(peers)) {
      if (core && peer->node != 0) apply(core->joined(now(), peer->node, peer->members));
    }
  }

  void accept(UniqueFd socket, const std::string& from) {
    auto made = make_tls_link(loop, std::move(socket), from, TlsRole::kServer, options.secret);
    if (!made.ok()) return;
    auto peer = std::make_shared<Peer>();
    peer->link = std::move(made).value();
    peers.insert(peer);
    const auto [number, leaves] = waiting.enter(host_of(from));
    peer->waits = number;
    const auto out =
        std::find_if(peers.begin(), peers.end(), [leaving = leaves.value_or(0)](const PeerPtr& other) {
          return leaving != 0 && other->waits == leaving;
        });
    if (out != peers.end()) forget(PeerPtr(*out));
    const std::weak_ptr<Peer> weak = peer;
    peer->link->start({nullptr,
                       [this, weak](const Envelope& envelope) {
                         if (const PeerPtr p = weak.lock()) from_peer(p, envelope);
                       },
                       [this, weak](const Error&) {
                         if (const PeerPtr p = weak.lock()) forget(p);
                       }});
  }

  void from_peer(const PeerPtr& peer, const Envelope& envelope) {
    if (peer->node != 0) {
      if (core) apply(core->receive(now(), peer->node, envelope));
      return;
    }
    const auto* hello = std::get_if<RescueHello>(&envelope.message);
    if (hello == nullptr || hello->node == 0) return forget(peer);
    if (!callbacks.leader_is_lost()) return refuse(peer, "its leader lives");
    if (joined) return refuse(peer, "it has joined another agent");
    waiting.leave(std::exchange(peer->waits, 0));
    peer->node = hello->node;
    peer->members = hello->members;
    if (core) apply(core->joined(now(), peer->node, peer->members));
  }

  void refuse(const PeerPtr& peer, const std::string& why) {
    if (!peer->link->send({0, RescueRefused{why}}).ok()) forget(peer);
  }

  void refuse_waiting(const std::string& why) {
    for (const PeerPtr& peer : std::set<PeerPtr>(peers)) {
      if (peer->node == 0) continue;
      peer->node = 0;
      refuse(peer, why);
    }
  }

  void forget(const PeerPtr& peer) {
    peers.erase(peer);
    waiting.leave(peer->waits);
    loop.post([peer] {});
    if (core && peer->node != 0) apply(core->left(now(), peer->node));
  }

  void from_member(const Envelope& envelope) {
    if (core) return apply(core->receive(now(), options.node, envelope));
    if (joined) tell_uplink(envelope);
  }

  void member_gone(MemberId id) {
    std::erase(members, id);
    MemberGone gone;
    gone.member = id;
    gone.proven = true;
    from_member({0, gone});
  }

  void tick() {
    if (core) apply(core->tick(now()));
  }

  // ---- actions

  void apply(Actions actions) {
    for (Action& action : actions) {
      if (auto* send = std::get_if<Send>(&action)) queue.push_back(std::move(*send));
    }
    if (applying) return;
    applying = true;
    while (!queue.empty() && active) {
      const Send send = std::move(queue.front());
      queue.pop_front();
      carry_out(send);
    }
    queue.clear();
    applying = false;
    if (core) timer.at(core->next_deadline());
  }

  void carry_out(const Send& send) {
    if (send.node == options.node) {
      if (const auto* over = std::get_if<RescueOver>(&send.envelope.message)) return finish(*over);
      return callbacks.to_member(send.envelope);
    }
    for (const PeerPtr& peer : peers) {
      if (peer->node != send.node) continue;
      if (!peer->link->send(send.envelope).ok())
        loop.post([self = weak_from_this(), peer] {
          if (const auto state = self.lock()) state->forget(peer);
        });
      return;
    }
  }

  // Its peers may still be reading their RescueOver: links stay until end().
  void finish(const RescueOver& over) {
    if (std::exchange(is_over, true)) return;
    loop.post([weak = weak_from_this(), over] {
      if (const auto self = weak.lock(); self && self->active) self->callbacks.on_over(over);
    });
  }

  void end() {
    active = joined = is_over = false;
    timer.cancel();
    drop_uplink();
    core.reset();
    for (const PeerPtr& peer : peers) loop.post([peer] {});
    for (const PeerPtr& peer : peers) waiting.leave(peer->waits);
    peers.clear();
  }

  size_t unsent() const {
    size_t bytes = 0;
    for (const PeerPtr& peer : peers) bytes += peer->link->unsent_bytes();
    return bytes;
  }

  Loop& loop;
  RescueOptions options;
  RescueCallbacks callbacks;
  Timer timer;
  Timer first_word;  // of the agent that this one has come to
  std::unique_ptr<Listener> listener;
  bool active = false;
  bool joined = false;   // another agent collects
  bool is_over = false;  // RescueOver came
  std::vector<MemberId> members;
  std::deque<Neighbour> candidates;
  size_t later = 0;  // neighbours that may come to this one
  uint64_t turns = 0;
  std::unique_ptr<Connector> connector;
  std::unique_ptr<Link> uplink;
  std::unique_ptr<RescueCore> core;
  std::set<PeerPtr> peers;
  Waiting waiting;
  std::deque<Send> queue;
  bool applying = false;
};

Rescue::Rescue(Loop& loop, RescueOptions options, RescueCallbacks callbacks)
    : state_(std::make_shared<State>(loop, std::move(options), std::move(callbacks))) {}

Rescue::~Rescue() {
  state_->listener.reset();
  state_->callbacks = {};
  state_->end();
}

void Rescue::listen(std::unique_ptr<Listener> listener) {
  state_->listener = std::move(listener);
  state_->listener->start([state = state_.get()](UniqueFd socket, const std::string& from) {
    state->accept(std::move(socket), from);
  });
}

void Rescue::begin(std::vector<Neighbour> neighbours, std::vector<MemberId> members) {
  state_->begin(std::move(neighbours), std::move(members));
}

void Rescue::end() { state_->end(); }
bool Rescue::active() const { return state_->active; }
void Rescue::from_member(const Envelope& envelope) { state_->from_member(envelope); }
void Rescue::member_gone(MemberId id) { state_->member_gone(id); }
size_t Rescue::unsent_bytes() const { return state_->unsent(); }

}  // namespace muster::agent
