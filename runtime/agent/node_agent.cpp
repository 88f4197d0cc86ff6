#include "runtime/agent/node_agent.h"

#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <optional>

#include "runtime/agent/rescue.h"
#include "runtime/base/check.h"

namespace muster::agent {
namespace {

using namespace control;

constexpr Duration kRetryFirst = 50 * kMillisecond;
constexpr Duration kRetryLast = kSecond;
constexpr Duration kRetryRefused = 200 * kMillisecond;
constexpr int kMisusesMax = 5;
// A leader that has been there and whose host refuses for so long is gone, and its store with it. A firewall
// that is being loaded anew refuses for a moment, too.
constexpr Duration kRefusedMax = 2 * kSecond;

}  // namespace

struct NodeAgent::State : std::enable_shared_from_this<NodeAgent::State> {
  State(Loop& l, NodeOptions o, std::unique_ptr<Workers> w, NodeCallbacks c)
      : loop(l),
        options(std::move(o)),
        workers(std::move(w)),
        callbacks(std::move(c)),
        core(options.id, options.name, options.job, limits_of(options), now()),
        timer(loop, [this] { tick_soon(); }),
        retry(loop, [this] { connect(); }),
        give_up(loop, [this] { never_connected(stage); }) {}

  static NodeLimits limits_of(const NodeOptions& options) {
    NodeLimits limits = options.limits;
    if (options.rescue_listener) limits.rescue_port = options.rescue_listener->port();
    limits.may_hold_store = options.prepare_store != nullptr;
    return limits;
  }

  void start() {
    if (options.rescue_listener) make_rescue();
    workers->start(
        {[this](uint32_t slot, int pid) { apply(core.worker_spawned(now(), slot, pid)); },
         [this](uint32_t slot, const std::string& why) { apply(core.spawn_failed(now(), slot, why)); },
         [this](uint32_t slot, int code) { exited(slot, code); },
         [this](uint32_t slot, Message message) { from_worker(slot, message); },
         [this](uint32_t slot) { apply(core.worker_link_closed(now(), slot)); }});
    give_up_at = now() + options.connect_timeout;
    if (!options.local_leader) give_up.at(give_up_at);
    loop.post([self = weak_from_this()] {
      const auto state = self.lock();
      if (!state || state->over) return;
      state->apply(state->core.begin(now()));
      state->connect();
    });
  }

  // After what has already arrived: an agent that was starved must not take waiting heartbeats for silence.
  void tick_soon() {
    loop.post([weak = weak_from_this()] {
      if (const auto self = weak.lock(); self && !self->over) self->tick();
    });
  }

  void tick() {
    if (core.leader_is_silent(now())) failed({ErrorCode::kRetry, "it has sent nothing for too long"});
    if (!over) apply(core.tick(now()));
  }

  void exited(uint32_t slot, int code) {
    if (rescue && rescue->active()) rescue->member_gone(core.member_of(slot));
    apply(core.worker_exited(now(), slot, code));
  }

  void from_worker(uint32_t slot, const Message& message) {
    if (const auto* event = std::get_if<WorkerEvent>(&message)) {
      if (callbacks.on_worker_event) callbacks.on_worker_event(slot, event->event);
      return;
    }
    const bool of_rescue = std::holds_alternative<RescueReport>(message) ||
                           std::holds_alternative<SaveVote>(message) ||
                           std::holds_alternative<SavePublished>(message);
    if (of_rescue && rescue && rescue->active()) rescue->from_member({core.member_of(slot), message});
    apply(core.from_worker(now(), slot, message));
  }

  // ---- without a leader

  void make_rescue() {
    RescueOptions rescue_options;
    rescue_options.node = options.id;
    rescue_options.name = options.name;
    rescue_options.secret = options.leaders.empty() ? options.secret : options.leaders.front().secret;
    rescue_options.limits.report_timeout = 2 * options.update_timeout;
    rescue_options.limits.save_timeout = options.save_timeout;
    RescueCallbacks rescue_callbacks;
    rescue_callbacks.leader_is_lost = [this] { return core.without_leader(); };
    rescue_callbacks.to_member = [this](const Envelope& envelope) { to_worker(envelope); };
    rescue_callbacks.on_over = [this](const RescueOver& result) { apply(core.rescue_over(now(), result)); };
    rescue_callbacks.on_event = callbacks.on_event;
    rescue = std::make_unique<Rescue>(loop, std::move(rescue_options), std::move(rescue_callbacks));
    rescue->listen(std::move(options.rescue_listener));
  }

  void see_to_rescue() {
    if (!rescue || over) return;
    if (core.rescue_due(now())) {
      core.rescue_began();
      rescue->begin(core.neighbours(), core.members());
    } else if (rescue->active() && !core.without_leader()) {
      rescue->end();
    }
  }

  // ---- the leader

  void connect() {
    if (over || core.leader_is_gone()) return;
    if (options.find_leader) return look();
    if (options.local_leader) return use_local(options.local_leader);
    connect_to(options.leaders[next_leader++ % options.leaders.size()]);
  }

  void look() {
    // What is being read may be older than what made us ask.
    if (looking) return void(look_once_more = true);
    looking = true;
    look_once_more = false;
    if (stage.empty()) stage = "etcd has not answered";
    options.find_leader(core.store_incarnation(), [weak = weak_from_this()](Result<LeaderPlace> place) {
      const auto self = weak.lock();
      if (!self) return;
      self->looking = false;
      if (!self->over && !self->core.leader_is_gone()) self->found(std::move(place));
      if (self->look_once_more) self->look_again();
    });
  }

  // Where this asks although it has a leader, or is on the way to one, that one stays unless there is
  // another.
  void found(Result<LeaderPlace> place) {
    if (!place.ok()) return is_under_way() ? void() : failed(place.error());
    if (place->ended) return is_connected ? void() : apply(core.ended(now(), *place->ended));
    if (is_under_way()) {
      if (!place->local && place->address.host == current.host && place->address.port == current.port) return;
      give_up_leader("another leads");
    }
    retry.cancel();
    if (place->local) return use_local(place->local);
    connect_to(place->address);
  }

  void look_again() {
    if (over || !options.find_leader || core.leader_is_gone() || uses_local) return;
    retry.cancel();
    look();
  }

  bool is_under_way() const { return resolving || connector || link; }

  void give_up_leader(const std::string& why) {
    const bool lost = std::exchange(is_connected, false);
    drop_link();
    if (lost) apply(core.leader_lost(now(), why));
  }

  void use_local(const std::function<std::unique_ptr<Link>()>& attach) {
    if (auto made = attach()) {
      uses_local = true;
      return use(std::move(made));
    }
    if (!options.find_leader) return apply(core.leader_gone(now(), "it has resigned"));
    failed({ErrorCode::kRetry, "the leader of this process has resigned"});
  }

  void connect_to(const LeaderAddress& leader) {
    if (stage.empty()) stage = "its name has not been looked up";
    current = leader;
    resolving = true;
    resolve(loop, weak_from_this(), leader.host, leader.port,
            [this, leader, mine = ++attempt](Result<std::vector<SocketAddress>> found) {
              if (over || core.leader_is_gone() || mine != attempt) return;
              resolving = false;
              if (!found.ok()) return failed(found.error());
              connector =
                  std::make_unique<Connector>(loop, std::move(found).value(), kConnectTimeout,
                                              [this, leader](Result<UniqueFd> socket, std::string peer) {
                                                note_refusal(connector->refused());
                                                if (!socket.ok()) return failed(socket.error());
                                                secure(std::move(socket).value(), peer, leader);
                                              });
            });
  }

  void note_refusal(bool refused) {
    if (!refused) {
      refused_since.reset();
    } else if (!refused_since) {
      refused_since = now();
    }
  }

  void secure(UniqueFd socket, const std::string& peer, const LeaderAddress& leader) {
    stage = peer + " takes the connection and says nothing";
    auto made = make_tls_link(loop, std::move(socket), peer, TlsRole::kClient, leader.secret);
    if (!made.ok()) return failed(made.error());
    use(std::move(made).value());
  }

  void use(std::unique_ptr<Link> made) {
    link = std::move(made);
    link->start({[this] { connected(); },
                 [this](Envelope envelope) { apply(core.from_leader(now(), envelope)); },
                 [this](Error error) { failed(error); }});
  }

  void connected() {
    is_connected = true;
    was_connected = true;
    give_up.cancel();
    retry_after = kRetryFirst;
    apply(core.leader_connected(now()));
  }

  void failed(const Error& error) {
    const bool lost = std::exchange(is_connected, false);
    drop_link();
    stage = error.message;
    if (error.code == ErrorCode::kMisuse && !was_connected && options.leaders.size() == 1)
      return finish(
          78, options.leaders[0].host + ":" + std::to_string(options.leaders[0].port) + ": " + error.message);
    // With etcd an old address may be somebody else's by now, for a moment.
    misuses = error.code == ErrorCode::kMisuse && !was_connected ? misuses + 1 : 0;
    if (options.find_leader && misuses >= kMisusesMax) return finish(78, error.message);
    if (!was_connected && now() >= give_up_at) return never_connected(error.message);
    if (lost) apply(core.leader_lost(now(), error.message));
    if (was_connected && refused_since && now() - *refused_since >= kRefusedMax)
      apply(core.leader_gone(now(), error.message));
    if (over || core.leader_is_gone()) return;
    // While refused it asks often: the rescue of what the workers hold waits for the verdict. Where leaders
    // change look_again() tells sooner, and many agents that ask often would hold up the one that takes the
    // place.
    const bool often = refused_since && !options.find_leader;
    retry.after(often ? std::min(retry_after, kRetryRefused) : retry_after);
    retry_after = std::min(retry_after * 2, kRetryLast);
  }

  // Whatever the attempt is waiting for: a name, a connection, or the other side's part of the handshake.
  void never_connected(const std::string& last) {
    if (over || was_connected) return;
    const auto keep = shared_from_this();
    drop_link();
    finish(75, unreachable(last));
  }

  std::string unreachable(const std::string& last) const {
    char limit[32];
    std::snprintf(limit, sizeof limit, "%g s", seconds(options.connect_timeout));
    const std::string within = std::string(limit) + " (" + last + ")";
    if (options.find_leader)
      return "no leader was found within " + within +
             "; check the members of etcd that --rdzv names, or raise --rdzv-timeout";
    if (options.leaders.empty()) return last;
    return "no rendezvous at " + options.leaders[0].host + ":" + std::to_string(options.leaders[0].port) +
           " within " + within +
           "; start the agent on that host, check the address and firewall, or raise --rdzv-timeout";
  }

  // Its handlers may be on the stack: it goes when they have returned.
  void drop_link() {
    if (link) loop.post([old = std::shared_ptr<Link>(std::move(link))] {});
    link.reset();
    if (connector) loop.post([old = std::shared_ptr<Connector>(std::move(connector))] {});
    connector.reset();
    resolving = uses_local = false;
    ++attempt;
  }

  // ---- actions

  void apply(Actions actions) {
    for (Action& action : actions) queue.push_back(std::move(action));
    if (applying) return;
    applying = true;
    const auto keep = shared_from_this();
    while (!queue.empty() && !over) {
      const Action action = std::move(queue.front());
      queue.pop_front();
      std::visit([this](const auto& a) { carry_out(a); }, action);
    }
    applying = false;
    if (core.leader_is_gone() && (link || connector)) {
      is_connected = false;
      drop_link();
    }
    if (core.leader_is_fenced() && link) failed({ErrorCode::kRetry, "a former leader answers"});
    see_to_rescue();
    // Before the first connection connect_timeout counts, not the core's patience with a lost leader.
    if (!over && was_connected) timer.at(core.next_deadline());
  }

  void carry_out(const Send& send) {
    if (send.node != 0) return to_worker(send.envelope);
    if (!is_connected || !link) return;  // leader_connected() says again what counts
    const Status sent = link->send(send.envelope);
    if (!sent.ok()) failed(sent.error());
  }

  void to_worker(const Envelope& envelope) {
    if (const auto slot = core.slot_of(envelope.member)) workers->send(*slot, envelope);
  }

  void carry_out(const SpawnWorker& spawn) { workers->spawn(spawn.local_rank); }
  void carry_out(const SignalWorker& signal) { workers->signal(signal.local_rank, signal.signal); }
  void carry_out(const Event& event) {
    if (callbacks.on_event) callbacks.on_event(event);
  }
  void carry_out(const Finish& f) { finish(f.exit_code, f.why); }

  // ---- the embedded store moves (rule 12)

  void carry_out(const PrepareStore& prepare) {
    const auto port = options.prepare_store(prepare.offer);
    apply(core.store_prepared(now(), prepare.offer.term, port.ok() ? *port : 0,
                              port.ok() ? "" : port.error().message));
  }

  void carry_out(const HoldStore& hold) {
    options.local_leader = options.hold_store(hold.offer, hold.former);
    change_leader();
  }

  void carry_out(const FollowLeader& follow) {
    const TlsSecret secret = options.leaders.empty() ? options.secret : options.leaders.front().secret;
    options.leaders = {{follow.to.host, static_cast<uint16_t>(follow.to.port), secret}};
    options.local_leader = nullptr;
    change_leader();
  }

  // The core has been told that it has lost the one before.
  void change_leader() {
    is_connected = false;
    drop_link();
    refused_since.reset();
    retry_after = kRetryFirst;
    retry.after(0);
  }

  void carry_out(const GaveStore&) { MUSTER_CHECK(false, "a node does not lead"); }
  void carry_out(const Resign&) { MUSTER_CHECK(false, "a node does not lead"); }
  void carry_out(const SendMany&) { MUSTER_CHECK(false, "a node does not lead"); }
  void carry_out(const StoreView&) { MUSTER_CHECK(false, "a node has no store"); }

  void finish(int exit_code, const std::string& why) {
    if (over) return;
    over = true;
    timer.cancel();
    retry.cancel();
    give_up.cancel();
    const auto on_finish = callbacks.on_finish;
    if (on_finish) on_finish(exit_code, why);
  }

  Loop& loop;
  NodeOptions options;
  std::unique_ptr<Workers> workers;
  NodeCallbacks callbacks;
  NodeCore core;
  Timer timer;
  Timer retry;
  Timer give_up;      // of the first connection
  int misuses = 0;    // one after the other, before it
  std::string stage;  // what the attempt under way has come to, or why the last one failed
  std::unique_ptr<Connector> connector;
  std::unique_ptr<Link> link;
  std::unique_ptr<Rescue> rescue;
  std::optional<Instant> refused_since;  // without an answer of another kind between
  size_t next_leader = 0;
  // With find_leader:
  bool looking = false;
  bool look_once_more = false;
  LeaderAddress current;   // that a connection exists to, or is under way to
  bool resolving = false;  // its name
  bool uses_local = false;
  uint64_t attempt = 0;  // a name that comes too late belongs to an older one
  Duration retry_after = kRetryFirst;
  Instant give_up_at = 0;
  bool is_connected = false;
  bool was_connected = false;
  bool over = false;
  std::deque<Action> queue;
  bool applying = false;
};

NodeAgent::NodeAgent(Loop& loop, NodeOptions options, std::unique_ptr<Workers> workers,
                     NodeCallbacks callbacks)
    : state_(std::make_shared<State>(loop, std::move(options), std::move(workers), std::move(callbacks))) {
  state_->start();
}

NodeAgent::~NodeAgent() {
  state_->over = true;
  state_->timer.cancel();
  state_->retry.cancel();
  state_->give_up.cancel();
  state_->connector.reset();
  state_->link.reset();
  state_->rescue.reset();
  state_->workers.reset();
  state_->callbacks = {};
}

void NodeAgent::look_again() { state_->look_again(); }

Instant NodeAgent::leader_heard_at(uint64_t term) const { return state_->core.leader_heard_at(term); }

const std::vector<Neighbour>& NodeAgent::neighbours() const { return state_->core.neighbours(); }

void NodeAgent::notice(Scope scope, uint32_t slot, Duration time_left, const std::string& source) {
  if (!state_->over) state_->apply(state_->core.notice(now(), scope, slot, time_left, source));
}

void NodeAgent::kill_workers() {
  for (uint32_t slot = 0; slot < state_->options.limits.workers; ++slot)
    state_->workers->signal(slot, SIGKILL);
}

bool NodeAgent::any_worker() const { return state_->workers->any_alive(); }
size_t NodeAgent::unsent_bytes() const {
  return (state_->link ? state_->link->unsent_bytes() : 0) +
         (state_->rescue ? state_->rescue->unsent_bytes() : 0);
}
Workers& NodeAgent::workers() { return *state_->workers; }

}  // namespace muster::agent
