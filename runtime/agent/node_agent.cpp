#include "runtime/agent/node_agent.h"

#include <signal.h>

#include <algorithm>
#include <deque>

#include "runtime/base/check.h"

namespace muster::agent {
namespace {

using namespace control;

constexpr Duration kRetryFirst = 50 * kMillisecond;
constexpr Duration kRetryLast = kSecond;
constexpr Duration kConnectTimeout = 5 * kSecond;  // one attempt, all addresses of a name

}  // namespace

struct NodeAgent::State : std::enable_shared_from_this<NodeAgent::State> {
  State(Loop& l, NodeOptions o, std::unique_ptr<Workers> w, NodeCallbacks c)
      : loop(l),
        options(std::move(o)),
        workers(std::move(w)),
        callbacks(std::move(c)),
        core(options.id, options.name, options.job, options.limits, now()),
        timer(loop, [this] { tick_soon(); }),
        retry(loop, [this] { connect(); }) {}

  void start() {
    workers->start(
        {[this](uint32_t slot, int pid) { apply(core.worker_spawned(now(), slot, pid)); },
         [this](uint32_t slot, const std::string& why) { apply(core.spawn_failed(now(), slot, why)); },
         [this](uint32_t slot, int code) { apply(core.worker_exited(now(), slot, code)); },
         [this](uint32_t slot, Message message) { from_worker(slot, message); },
         [this](uint32_t slot) { apply(core.worker_link_closed(now(), slot)); }});
    give_up_at = now() + options.connect_timeout;
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
      if (const auto self = weak.lock(); self && !self->over) self->apply(self->core.tick(now()));
    });
  }

  void from_worker(uint32_t slot, const Message& message) {
    if (const auto* event = std::get_if<WorkerEvent>(&message)) {
      if (callbacks.on_worker_event) callbacks.on_worker_event(slot, event->event);
      return;
    }
    apply(core.from_worker(now(), slot, message));
  }

  // ---- the leader

  void connect() {
    if (over) return;
    if (options.local_leader) return use(options.local_leader());
    const LeaderAddress& leader = options.leaders[next_leader++ % options.leaders.size()];
    resolve(loop, weak_from_this(), leader.host, leader.port,
            [this, leader](Result<std::vector<SocketAddress>> found) {
              if (over) return;
              if (!found.ok()) return failed(found.error());
              connector =
                  std::make_unique<Connector>(loop, std::move(found).value(), kConnectTimeout,
                                              [this, leader](Result<UniqueFd> socket, std::string peer) {
                                                if (!socket.ok()) return failed(socket.error());
                                                secure(std::move(socket).value(), peer, leader);
                                              });
            });
  }

  void secure(UniqueFd socket, const std::string& peer, const LeaderAddress& leader) {
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
    retry_after = kRetryFirst;
    apply(core.leader_connected(now()));
  }

  void failed(const Error& error) {
    const bool lost = std::exchange(is_connected, false);
    drop_link();
    if (error.code == ErrorCode::kMisuse && !was_connected && options.leaders.size() == 1)
      return finish(
          78, options.leaders[0].host + ":" + std::to_string(options.leaders[0].port) + ": " + error.message);
    if (!was_connected && now() >= give_up_at) return finish(75, unreachable(error.message));
    if (lost) apply(core.leader_lost(now(), error.message));
    if (over) return;
    retry.after(retry_after);
    retry_after = std::min(retry_after * 2, kRetryLast);
  }

  std::string unreachable(const std::string& last) const {
    if (options.leaders.empty()) return last;
    return "no rendezvous at " + options.leaders[0].host + ":" + std::to_string(options.leaders[0].port) +
           " within " + std::to_string(options.connect_timeout / kSecond) + " s (" + last +
           "); start the agent on that host, check the address and firewall, or raise --rdzv-timeout";
  }

  // Its handlers may be on the stack: it goes when they have returned.
  void drop_link() {
    if (link) loop.post([old = std::shared_ptr<Link>(std::move(link))] {});
    link.reset();
    if (connector) loop.post([old = std::shared_ptr<Connector>(std::move(connector))] {});
    connector.reset();
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
    // Before the first connection connect_timeout counts, not the core's patience with a lost leader.
    if (!over && was_connected) timer.at(core.next_deadline());
  }

  void carry_out(const Send& send) {
    if (send.node != 0) return to_worker(send.envelope);
    if (!is_connected) return;  // leader_connected() says again what counts
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
  void carry_out(const StoreView&) { MUSTER_CHECK(false, "a node has no store"); }

  void finish(int exit_code, const std::string& why) {
    if (over) return;
    over = true;
    timer.cancel();
    retry.cancel();
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
  std::unique_ptr<Connector> connector;
  std::unique_ptr<Link> link;
  size_t next_leader = 0;
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
  state_->connector.reset();
  state_->link.reset();
  state_->workers.reset();
  state_->callbacks = {};
}

void NodeAgent::notice(Scope scope, uint32_t slot, Duration time_left, const std::string& source) {
  if (!state_->over) state_->apply(state_->core.notice(now(), scope, slot, time_left, source));
}

void NodeAgent::kill_workers() {
  for (uint32_t slot = 0; slot < state_->options.limits.workers; ++slot)
    state_->workers->signal(slot, SIGKILL);
}

bool NodeAgent::any_worker() const { return state_->workers->any_alive(); }
size_t NodeAgent::unsent_bytes() const { return state_->link ? state_->link->unsent_bytes() : 0; }
Workers& NodeAgent::workers() { return *state_->workers; }

}  // namespace muster::agent
