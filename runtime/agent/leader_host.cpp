#include "runtime/agent/leader_host.h"

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <set>

#include "runtime/agent/admission.h"
#include "runtime/agent/knock.h"
#include "runtime/base/check.h"
#include "runtime/control/wire.h"

namespace muster::agent {
namespace {

using namespace control;
constexpr Duration kEndRecordTimeout = 3 * kSecond;
constexpr Duration kAskEvery = 100 * kMillisecond;  // who is silent by now
constexpr size_t kAskedMax = 64;                    // hosts at a time: each has a few connections under way

}  // namespace

View stored_form(View view) {
  for (Member& member : view.members) member.contact.clear();
  return view;
}

Result<View> read_stored_view(ByteSpan bytes) { return decode_view(bytes); }

Result<std::unique_ptr<Store>> moved_store(const View& view) {
  MUSTER_ASSIGN(ByteBuffer bytes, encode(view));
  return std::unique_ptr<Store>(
      std::make_unique<MemoryStore>(view.generation.incarnation, kViewKey, std::move(bytes)));
}

struct LeaderHost::State : std::enable_shared_from_this<LeaderHost::State> {
  // A connection; `node` is 0 until it said NodeHello.
  struct Peer {
    std::unique_ptr<Link> link;
    std::unique_ptr<Timer> hello_deadline;
    NodeId node = 0;
    uint64_t waits = 0;  // its number in `waiting`
    bool local = false;
  };
  using PeerPtr = std::shared_ptr<Peer>;

  State(Loop& l, std::unique_ptr<Store> s, LeaderOptions o, LeaderCallbacks c)
      : loop(l),
        store(std::move(s)),
        options(std::move(o)),
        callbacks(std::move(c)),
        core(options.limits, options.secret.job, store->incarnation(), now(), options.takeover),
        timer(loop, [this] { tick_soon(); }),
        end_timer(loop, [this] { end_is_not_recorded("it does not answer"); }),
        lease_timer(loop, [this] { apply({}); }),
        ask_timer(loop, [this] { ask_hosts(); }),
        waiting(options.waiting_max) {}

  void start() {
    store->lead([this](Result<uint64_t> answer) {
      if (answer.ok()) token = *answer;
    });
    timer.at(core.next_deadline());
    lease_timer.at(store->lease_until());
    see_to_knocks();
    if (options.former.port == 0) return;
    knock.emplace(loop, options.former.host, options.former.port, KnockTimes{}, [this](HostAnswer answer) {
      apply(core.former_answers(now(), answer != HostAnswer::kNone));
    });
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
    auto link = make_tls_link(loop, std::move(socket), from, TlsRole::kServer, options.secret);
    if (!link.ok()) return complain("cannot answer " + from + ": " + link.error().message);
    add(std::move(link).value(), false);
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
    seat(peer);
    peer->link->start({nullptr,
                       [this, weak](Envelope envelope) {
                         if (auto p = weak.lock()) receive(p, std::move(envelope));
                       },
                       [this, weak](Error error) {
                         if (auto p = weak.lock()) closed(p, error);
                       }});
  }

  // A flood makes its own oldest connection go.
  void seat(const PeerPtr& peer) {
    const auto [number, leaves] = waiting.enter(host_of(peer->link->peer()));
    peer->waits = number;
    if (!leaves) return;
    const auto out = std::find_if(peers.begin(), peers.end(),
                                  [out = *leaves](const PeerPtr& other) { return other->waits == out; });
    if (out != peers.end()) drop(PeerPtr(*out), "was one of too many that do not say who they are");
  }

  void receive(const PeerPtr& peer, Envelope envelope) {
    const auto* hello = std::get_if<NodeHello>(&envelope.message);
    if (peer->node == 0) {
      if (hello == nullptr || hello->node == 0) return drop(peer, "did not begin with a hello");
      identify(peer, hello->node);
    } else if (hello != nullptr && hello->node != peer->node) {
      return drop(peer, "changed its identity");
    }
    if (auto* said = std::get_if<NodeHello>(&envelope.message); said != nullptr && said->rescue_host.empty())
      said->rescue_host = host_of(peer->link->peer());
    apply(core.receive(now(), peer->node, envelope));
  }

  // A node that connects anew replaces its old connection, which may be half-open.
  void identify(const PeerPtr& peer, NodeId node) {
    peer->node = node;
    peer->hello_deadline->cancel();
    waiting.leave(std::exchange(peer->waits, 0));
    if (const auto old = nodes.find(node); old != nodes.end()) {
      peers.erase(old->second);
      old->second->link.reset();
    }
    nodes[node] = peer;
  }

  // Also of an agent that has said who it is: damaged frames, and any that are sent a second time.
  void closed(const PeerPtr& peer, const Error& error) {
    if (error.code == ErrorCode::kMisuse) {
      ++refused;
      complain(peer->link->peer() + ": " + error.message);
    }
    forget(peer, error.message);
  }

  void drop(const PeerPtr& peer, const std::string& why) {
    ++refused;
    complain("closed the connection from " + peer->link->peer() + ", which " + why);
    forget(peer, "it " + why);
  }

  void forget(const PeerPtr& peer, const std::string& why) {
    peers.erase(peer);
    waiting.leave(peer->waits);
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
    if (applying || over) return;
    applying = true;
    const auto keep = shared_from_this();
    if (now() >= store->lease_until()) stop_leading("its lease in the store is over");
    while (!queue.empty() && !over && !recording) {
      const Action action = std::move(queue.front());
      queue.pop_front();
      std::visit([this](const auto& a) { carry_out(a); }, action);
    }
    applying = false;
    if (over) return;
    see_to_knocks();
    timer.at(core.next_deadline());
    lease_timer.at(store->lease_until());
  }

  // ---- hosts of silent nodes. With the embedded store only silence counts, which this leader may outwait.

  void see_to_knocks() {
    const bool agrees = core.phase() == "agreeing";
    if (knock && !agrees) knock.reset();
    if (!store->outlives_leader() || std::exchange(asks_hosts, agrees) == agrees) return;
    ask_timer.cancel();
    knocks.clear();
    if (agrees) ask_timer.after(0);
  }

  void ask_hosts() {
    const std::vector<Neighbour> silent = core.silent_nodes();
    std::erase_if(knocks, [&](const auto& entry) {
      return std::ranges::find(silent, entry.first, &Neighbour::node) == silent.end();
    });
    for (const Neighbour& agent : silent) {
      if (knocks.size() >= kAskedMax) break;
      const bool is_elsewhere = is_loopback(agent.host) && !is_loopback(options.own_host);
      if (is_elsewhere || knocks.contains(agent.node)) continue;
      auto tell = [this, node = agent.node](HostAnswer answer) {
        apply(core.host_answers(now(), node, answer));
      };
      knocks[agent.node] = std::make_unique<Knock>(loop, agent.host, static_cast<uint16_t>(agent.port),
                                                   KnockTimes{}, std::move(tell));
    }
    ask_timer.after(kAskEvery);
  }

  // What is under way to the agents is cut off: whoever leads next tells them what counts.
  void stop_leading(const std::string& why) {
    if (std::exchange(over, true)) return;
    tell(EventKind::kLeaderChanged, "does not lead any more: " + why);
    queue.clear();
    knock.reset();
    knocks.clear();
    for (Timer* each : {&timer, &end_timer, &lease_timer, &ask_timer}) each->cancel();
    loop.post([keep = shared_from_this()] {
      keep->listeners.clear();
      keep->nodes.clear();
      for (const PeerPtr& peer : std::exchange(keep->peers, {})) peer->link.reset();
    });
    if (callbacks.on_resign) callbacks.on_resign(why);
  }

  // ---- the job's end

  void record_end(const Event& ended) {
    if (!store->outlives_leader()) return;
    recording = true;
    end_timer.after(kEndRecordTimeout);
    store->record_end(static_cast<int>(ended.amount), ended.text, token,
                      [weak = weak_from_this()](Result<bool> wrote) {
                        const auto self = weak.lock();
                        if (!self || self->over || !self->recording) return;
                        if (!wrote.ok()) return self->end_is_not_recorded(wrote.error().message);
                        if (!*wrote) return self->end_is_not_recorded("another leads");
                        self->recording = false;
                        self->end_timer.cancel();
                        self->apply({});
                      });
  }

  // Told nevertheless, the end might meet a leader that goes on. Whoever leads next finds it there, or
  // decides anew.
  void end_is_not_recorded(const std::string& why) {
    if (recording) stop_leading("the store does not take the job's end: " + why);
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

  void carry_out(const SendMany& many) {
    for_each_node(many, [this](const Send& send) { carry_out(send); });
  }
  void carry_out(const Resign& resign) { stop_leading(resign.why); }
  void carry_out(const GaveStore& gave) {
    if (callbacks.on_gave_store) callbacks.on_gave_store(gave.to);
  }
  void carry_out(const PrepareStore&) { MUSTER_CHECK(false, "the leader has the store"); }
  void carry_out(const HoldStore&) { MUSTER_CHECK(false, "the leader has the store"); }
  void carry_out(const FollowLeader&) { MUSTER_CHECK(false, "the leader follows nobody"); }
  void carry_out(const Finish& finish) {
    if (callbacks.on_finish) callbacks.on_finish(finish.exit_code, finish.why);
  }
  void carry_out(const Event& event) {
    if (event.kind == EventKind::kJobEnded) record_end(event);
    if (callbacks.on_event) callbacks.on_event(event);
  }
  void carry_out(const SpawnWorker&) { MUSTER_CHECK(false, "the leader has no workers"); }
  void carry_out(const SignalWorker&) { MUSTER_CHECK(false, "the leader has no workers"); }

  // ---- the store (rule 14), whose answers may come when this leader is no more

  void carry_out(const StoreView& wanted) {
    read_view([this, wanted](const View& current, uint64_t revision) {
      if (current == form_of(wanted.view)) return answer(wanted.attempt, true, wanted.view);
      const bool empty = revision == 0 && wanted.expected.counter == 0;
      if (!empty && current.generation != wanted.expected) return answer(wanted.attempt, false, current);
      swap(wanted, revision);
    });
  }

  View form_of(const View& view) const { return store->outlives_leader() ? stored_form(view) : view; }

  void swap(const StoreView& wanted, uint64_t revision) {
    auto bytes = encode(form_of(wanted.view));
    if (!bytes.ok()) return log("cannot store the view: " + bytes.error().message);
    store->compare_and_swap(kViewKey, revision, std::move(bytes).value(), token,
                            [weak = weak_from_this(), wanted](Result<bool> wrote) {
                              const auto self = weak.lock();
                              if (self && !self->over) self->after_swap(wanted, wrote);
                            });
  }

  // Refused, or the outcome is unknown: what the store holds tells. Generations are never reissued.
  void after_swap(const StoreView& wanted, const Result<bool>& wrote) {
    if (wrote.ok() && *wrote) return answer(wanted.attempt, true, wanted.view);
    read_view([this, wanted, unknown = !wrote.ok()](const View& current, uint64_t) {
      const bool ours = current == form_of(wanted.view);
      // Nobody else has written: tried again at store_timeout.
      if (!ours && unknown && current.generation == wanted.expected)
        return log("the store has not taken the view yet");
      answer(wanted.attempt, ours, ours ? wanted.view : current);
    });
  }

  // No answer where the store gives none: the coordinator's store_timeout sees to it. `done` is called while
  // this leads only.
  void read_view(std::function<void(const View&, uint64_t)> done) {
    store->get(kViewKey, [weak = weak_from_this(), done](Result<StoreEntry> entry) {
      const auto self = weak.lock();
      if (!self || self->over) return;
      if (!entry.ok()) return self->log("the store does not answer: " + entry.error().message);
      if (entry->revision == 0) return done(View{}, 0);
      const auto view = decode_view(entry->value);
      if (!view.ok()) return self->log("the store holds " + view.error().message + " in place of a view");
      done(*view, entry->revision);
    });
  }

  void answer(uint32_t attempt, bool stored, const View& current) {
    if (!over) apply(core.stored(now(), attempt, stored, current));
  }

  void log(const std::string& text) { tell(EventKind::kLog, text); }
  void tell(EventKind kind, const std::string& text) {
    if (callbacks.on_event) callbacks.on_event({kind, now(), 0, -1, -1, 0, text});
  }

  // What strangers can cause is not logged without bound.
  void complain(std::string text) {
    if (const auto line = complaints.say(now(), std::move(text))) tell(EventKind::kRefused, *line);
  }

  Loop& loop;
  std::unique_ptr<Store> store;
  LeaderOptions options;
  LeaderCallbacks callbacks;
  Coordinator core;
  Timer timer;
  Timer end_timer;
  Timer lease_timer;
  Timer ask_timer;
  bool recording = false;  // the job's end; what follows it in `queue` waits
  uint64_t token = 0;
  uint64_t refused = 0;
  std::vector<std::unique_ptr<Listener>> listeners;
  std::set<PeerPtr> peers;
  Waiting waiting;
  BoundedLog complaints;
  std::map<NodeId, PeerPtr> nodes;
  std::optional<Knock> knock;                       // at the former leader's
  std::map<NodeId, std::unique_ptr<Knock>> knocks;  // where agents of silent nodes listen
  bool asks_hosts = false;
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
  state_->knock.reset();
  state_->knocks.clear();
  state_->callbacks = {};
  for (Timer* timer : {&state_->timer, &state_->end_timer, &state_->lease_timer, &state_->ask_timer})
    timer->cancel();
  state_->nodes.clear();
  state_->peers.clear();
}

void LeaderHost::listen(std::unique_ptr<Listener> listener) {
  listener->start(
      [state = state_.get()](UniqueFd socket, std::string from) { state->accept(std::move(socket), from); });
  state_->listeners.push_back(std::move(listener));
}

std::unique_ptr<Link> LeaderHost::attach() {
  if (state_->over) return nullptr;
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
