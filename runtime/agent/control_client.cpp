#include "runtime/agent/control_client.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <sstream>
#include <thread>

#include "runtime/agent/leader_host.h"
#include "runtime/agent/node_agent.h"
#include "runtime/agent/pmix.h"
#include "runtime/agent/settings.h"
#include "runtime/base/random.h"
#include "runtime/base/threads.h"

namespace muster::agent {
namespace {

using namespace control;

constexpr Duration kHeartbeat = kSecond;  // well below NodeLimits::worker_silence
constexpr uint64_t kQueuedMax = 100'000;
constexpr Duration kFlushWait = 2 * kSecond;
constexpr Duration kLeaderWait = 5 * kSecond;  // for other processes to read their end

Error misuse(std::string text) { return {ErrorCode::kMisuse, std::move(text)}; }

// The member that this very process is. It lives on the loop's thread.
class EmbeddedWorker final : public Workers {
 public:
  EmbeddedWorker(std::function<void(const Message&)> deliver, std::function<void(int)> on_signal)
      : deliver_(std::move(deliver)), on_signal_(std::move(on_signal)) {}

  void start(Handlers handlers) override { handlers_ = std::move(handlers); }

  void spawn(uint32_t slot) override {
    if (spawned_) return handlers_.on_spawn_failed(slot, "a process without an agent is not started again");
    spawned_ = alive_ = true;
    handlers_.on_spawned(slot, getpid());
    for (const Message& message : std::exchange(early_, {})) handlers_.on_message(0, message);
  }

  void signal(uint32_t, int signal_number) override {
    if (alive_) on_signal_(signal_number);
  }
  void send(uint32_t, const Envelope& envelope) override { deliver_(envelope.message); }
  bool any_alive() const override { return alive_; }

  void say(const Message& message) {
    if (spawned_)
      handlers_.on_message(0, message);
    else
      early_.push_back(message);
  }
  void leave(int exit_code) {
    if (!std::exchange(alive_, false)) return;
    handlers_.on_exited(0, exit_code);
  }
  bool spawned() const { return spawned_; }

 private:
  std::function<void(const Message&)> deliver_;
  std::function<void(int)> on_signal_;
  Handlers handlers_;
  std::vector<Message> early_;
  bool spawned_ = false;
  bool alive_ = false;
};

// ---- (a) the agent's socket

// One client a process: the socket is one stream. A forked child inherits `taken` as well.
std::atomic<bool> control_fd_taken{false};

Result<UniqueFd> take_control_fd(const OptionValues& values) {
  const std::string text = values.text("control-fd");
  const size_t colon = text.find(':');
  const int descriptor = std::atoi(text.c_str());
  struct stat status {};
  const bool is_it = colon != std::string::npos && fstat(descriptor, &status) == 0 &&
                     S_ISSOCK(status.st_mode) && std::to_string(status.st_ino) == text.substr(colon + 1);
  if (!is_it) {
    return misuse(
        "MUSTER_CONTROL_FD=" + text +
        " does not name the agent's socket: only a worker started by `muster run`, not a process that the "
        "worker started in turn, can join; unset MUSTER_CONTROL_FD to run alone");
  }
  if (control_fd_taken.exchange(true))
    return misuse(
        "this process, or the one it was forked from, has joined already; one process can join once");
  fcntl(descriptor, F_SETFD, FD_CLOEXEC);
  return UniqueFd(descriptor);
}

// ---- (b) meeting rank 0

struct Meeting {
  ByteBuffer secret;
  std::vector<HostPort> addresses;
};

std::string to_text(const Meeting& meeting) {
  std::string text = to_hex(meeting.secret);
  for (const HostPort& address : meeting.addresses)
    text += " " + std::to_string(address.port) + " " + address.host;
  return text;
}

Result<Meeting> meeting_from(const std::string& text) {
  std::istringstream words(text);
  Meeting meeting;
  std::string secret;
  words >> secret;
  meeting.secret = from_hex(secret);
  for (HostPort address; words >> address.port >> address.host;) meeting.addresses.push_back(address);
  if (meeting.secret.size() < kSecretBytesMin || meeting.addresses.empty())
    return Error{ErrorCode::kEnvironment, "rank 0 published no usable address over PMIx"};
  return meeting;
}

// The addresses of this host that others may reach, loopback last.
std::vector<std::string> own_addresses() {
  std::vector<std::string> addresses;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return {"127.0.0.1"};
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != AF_INET) continue;
    if ((entry->ifa_flags & IFF_UP) == 0 || (entry->ifa_flags & IFF_LOOPBACK) != 0) continue;
    char text[INET_ADDRSTRLEN] = {};
    sockaddr_in address{};
    std::memcpy(&address, entry->ifa_addr, sizeof address);
    inet_ntop(AF_INET, &address.sin_addr, text, sizeof text);
    addresses.emplace_back(text);
  }
  freeifaddrs(list);
  addresses.emplace_back("127.0.0.1");
  return addresses;
}

}  // namespace

struct ControlClient::State {
  ControlCallbacks callbacks;
  ControlOptions options;
  OptionValues values;
  Place place;
  pid_t owner = getpid();
  MemberId member = random_nonce();
  NodeId node = random_nonce();
  std::string node_name;
  std::string description;

  std::unique_ptr<Pmix> pmix;
  std::unique_ptr<Loop> loop = std::make_unique<Loop>();
  std::unique_ptr<Link> link;  // kElastic
  std::unique_ptr<LeaderHost> leader;
  std::unique_ptr<NodeAgent> agent;  // kFixed, kAlone
  EmbeddedWorker* worker = nullptr;  // owned by agent
  std::unique_ptr<Timer> heartbeat;
  std::thread thread;

  std::atomic<bool> lost = false;
  std::atomic<bool> closing = false;
  std::atomic<uint64_t> queued = 0;
  std::atomic<int> exit_code = 0;  // of the Leaving that was sent

  std::mutex mutex;
  std::condition_variable changed;
  bool joined = false;           // under mutex: the leader took this process in
  bool node_finished = false;    // under mutex
  std::optional<Error> failure;  // under mutex: before it was joined

  ~State() {
    if (getpid() != owner) {
      abandon();
      return;
    }
    if (thread.joinable()) {
      closing = true;
      close_down();
      loop->stop();
      thread.join();
    }
    heartbeat.reset();
    agent.reset();
    leader.reset();
    link.reset();
  }

  // A forked child has no such thread, and shares sockets and the event queue with its parent.
  void abandon() {
    (void)pmix.release();
    (void)heartbeat.release();
    (void)agent.release();
    (void)leader.release();
    (void)link.release();
    (void)loop.release();
    if (thread.joinable()) new std::thread(std::move(thread));
  }

  // ---- set-up, before the thread runs

  Status prepare() {
    MUSTER_ASSIGN(values, options.ignore_environment ? Result<OptionValues>(OptionValues{})
                                                     : OptionValues::from_environment());
    if (!options.ignore_environment) place = find_place();
    switch (place.world) {
      case World::kElastic:
        return prepare_elastic();
      case World::kFixed:
        return prepare_fixed();
      case World::kAlone:
        return prepare_alone();
    }
    return ok();
  }

  Status prepare_elastic() {
    MUSTER_ASSIGN(UniqueFd socket, take_control_fd(values));
    node = std::strtoull(values.text("node-id").c_str(), nullptr, 10);
    node_name = values.text("node-name");
    place.local_rank = static_cast<uint32_t>(values.integer("local-rank"));
    place.size = 0;
    description = "worker " + std::to_string(place.local_rank) + " of node " + node_name;
    link = make_socket_link(*loop, std::move(socket), "the agent of node " + node_name);
    joined = true;
    return ok();
  }

  Status prepare_alone() {
    node_name = host_name();
    description = "a world of one";
    start_leader({values.text("job"), random_bytes(32)});
    start_node({}, true);
    return ok();
  }

  Status prepare_fixed() {
    node_name = host_name() + "/" + std::to_string(place.rank);
    description = place.description();
    return place.pmix ? meet_by_pmix() : meet_by_address();
  }

  Status meet_by_pmix() {
    MUSTER_ASSIGN(pmix, Pmix::open());
    Meeting meeting;
    if (place.rank == 0) {
      meeting.secret = random_bytes(32);
      start_leader({values.text("job"), meeting.secret});
      MUSTER_ASSIGN(meeting.addresses, listen_for_peers());
    }
    MUSTER_ASSIGN(const std::string text, pmix->from_rank_zero("muster.rendezvous", to_text(meeting),
                                                               now() + options.connect_timeout));
    MUSTER_ASSIGN(meeting, meeting_from(text));
    start_node(std::move(meeting), place.rank == 0);
    return ok();
  }

  Status meet_by_address() {
    if (!values.is_set("rdzv") || (!values.is_set("secret-file") && !values.is_set("secret-fd"))) {
      return misuse(advice_without_pmix(place) +
                    "; or set MUSTER_RDZV=HOST:PORT (HOST of rank 0) and MUSTER_SECRET_FILE");
    }
    MUSTER_ASSIGN(const HostPort address, parse_host_port(values.text("rdzv")));
    Meeting meeting;
    MUSTER_ASSIGN(meeting.secret, read_secret(values));
    meeting.addresses = {address};
    if (place.rank == 0) {
      start_leader({values.text("job"), meeting.secret});
      MUSTER_TRY(listen_on("0.0.0.0", address.port));
    }
    start_node(std::move(meeting), place.rank == 0);
    return ok();
  }

  Result<std::vector<HostPort>> listen_for_peers() {
    const bool local = place.one_host;
    MUSTER_ASSIGN(const uint16_t port, listen_on(local ? "127.0.0.1" : "0.0.0.0", 0));
    std::vector<HostPort> addresses;
    for (const std::string& host : local ? std::vector<std::string>{"127.0.0.1"} : own_addresses())
      addresses.push_back({host, port});
    return addresses;
  }

  Result<uint16_t> listen_on(const std::string& host, uint16_t port) {
    MUSTER_ASSIGN(const auto addresses, resolve_now(host, port));
    int error_number = 0;
    MUSTER_ASSIGN(auto listener, Listener::open(*loop, addresses.front(), &error_number));
    const uint16_t bound = listener->port();
    leader->listen(std::move(listener));
    return bound;
  }

  void start_leader(TlsSecret secret) {
    LeaderOptions leader_options;
    leader_options.limits = leader_limits(values);
    leader_options.limits.nodes_min = leader_options.limits.nodes_max = place.size;
    leader_options.limits.workers_per_node = 1;
    leader_options.limits.fixed_world = true;
    if (place.world == World::kAlone) leader_options.limits.form_wait = 0;
    leader_options.secret = std::move(secret);
    leader = std::make_unique<LeaderHost>(*loop, std::make_unique<MemoryStore>(), std::move(leader_options),
                                          LeaderCallbacks{callbacks.on_event, nullptr});
  }

  void start_node(Meeting meeting, bool leader_is_here) {
    NodeOptions node_options;
    node_options.id = node;
    node_options.name = node_name;
    node_options.job = values.text("job");
    node_options.limits = node_limits(values);
    node_options.limits.workers = 1;
    node_options.limits.restarts_max = 0;
    node_options.limits.nodes_min = node_options.limits.nodes_max = place.size;
    node_options.connect_timeout = options.connect_timeout;
    if (leader_is_here) node_options.local_leader = [this] { return leader->attach(); };
    for (const HostPort& address : meeting.addresses)
      node_options.leaders.push_back({address.host, address.port, {node_options.job, meeting.secret}});
    auto embedded = std::make_unique<EmbeddedWorker>([this](const Message& message) { deliver(message); },
                                                     [this](int number) { on_signal(number); });
    worker = embedded.get();
    NodeCallbacks node_callbacks;
    node_callbacks.on_event = [this](const Event& event) { on_node_event(event); };
    node_callbacks.on_finish = [this](int code, const std::string& why) { on_node_finish(code, why); };
    agent = std::make_unique<NodeAgent>(*loop, std::move(node_options), std::move(embedded),
                                        std::move(node_callbacks));
  }

  void run() {
    heartbeat = std::make_unique<Timer>(*loop, [this] { beat(); });
    heartbeat->after(kHeartbeat);
    if (link) {
      link->start({nullptr, [this](Envelope envelope) { deliver(envelope.message); },
                   [this](Error error) { lose(std::move(error)); }});
    }
    thread = start_thread("muster-control", [this] { loop->run(); });
  }

  Status wait_until_joined() {
    std::unique_lock lock(mutex);
    const bool in_time =
        changed.wait_for(lock, std::chrono::nanoseconds(options.connect_timeout + 5 * kSecond),
                         [this] { return joined || failure.has_value(); });
    if (failure) return *failure;
    if (!in_time) return Error{ErrorCode::kRetry, "the leader of this job did not answer in time"};
    return ok();
  }

  // ---- on the thread

  void beat() {
    transmit(Heartbeat{});
    heartbeat->after(kHeartbeat);
  }

  void transmit(const Message& message) {
    if (lost) return;
    if (worker != nullptr) return worker->say(message);
    if (!link) return;
    const Status sent = link->send({member, message});
    if (!sent.ok()) lose(sent.error());
  }

  void deliver(const Message& message) {
    if (lost || closing || std::holds_alternative<Heartbeat>(message)) return;
    if (callbacks.on_message) callbacks.on_message(message);
  }

  void lose(Error error) {
    if (lost.exchange(true) || closing) return;
    if (callbacks.on_lost) callbacks.on_lost(std::move(error));
  }

  void on_node_event(const Event& event) {
    if (event.kind == EventKind::kWorkerStarted) {
      const std::lock_guard lock(mutex);
      joined = true;
      changed.notify_all();
    }
    if (callbacks.on_event) callbacks.on_event(event);
  }

  // Where there are agents they would end this process now; here it is told that the world is over.
  void on_signal(int) { lose({ErrorCode::kEnded, "the job ended while this process was still in it"}); }

  void on_node_finish(int code, const std::string& why) {
    {
      const std::lock_guard lock(mutex);
      node_finished = true;
      if (!joined) failure = Error{code == 75 ? ErrorCode::kRetry : ErrorCode::kMisuse, why};
      changed.notify_all();
    }
    lose({ErrorCode::kEnded, why});
  }

  // ---- the end

  void close_down() {
    if (link) return wait_on_loop(kFlushWait, [this] { return lost || link->unsent_bytes() == 0; });
    loop->post([this] { worker->leave(exit_code); });
    wait_on_loop(kFlushWait, [this] { return finished() || agent->unsent_bytes() == 0; });
    if (leader) wait_on_loop(kLeaderWait, [this] { return leader->nodes_connected() == 0; });
  }

  bool finished() {
    const std::lock_guard lock(mutex);
    return node_finished;
  }

  // Asks on the loop's thread, after all that was posted before, until yes or the wait is over.
  template <typename F>
  void wait_on_loop(Duration wait, F condition) {
    struct Answer {
      std::mutex mutex;
      std::condition_variable changed;
      bool done = false;
      bool yes = false;
    };
    const Instant deadline = now() + wait;
    while (now() < deadline) {
      const auto answer = std::make_shared<Answer>();  // outlives this call, should the thread be stuck
      loop->post([answer, condition] {
        const bool yes = condition();
        const std::lock_guard lock(answer->mutex);
        answer->yes = yes;
        answer->done = true;
        answer->changed.notify_one();
      });
      std::unique_lock lock(answer->mutex);
      answer->changed.wait_for(lock, std::chrono::nanoseconds(deadline - now()),
                               [&] { return answer->done; });
      if (answer->yes) return;
      lock.unlock();
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
};

ControlClient::ControlClient(std::unique_ptr<State> state) : state_(std::move(state)) {}
ControlClient::~ControlClient() = default;

Result<std::unique_ptr<ControlClient>> ControlClient::connect(ControlOptions options,
                                                              ControlCallbacks callbacks) {
  auto state = std::make_unique<State>();
  state->options = options;
  state->callbacks = std::move(callbacks);
  MUSTER_TRY(state->prepare());
  state->run();
  MUSTER_TRY(state->wait_until_joined());
  return std::unique_ptr<ControlClient>(new ControlClient(std::move(state)));
}

Status ControlClient::send(Message message) {
  State& state = *state_;
  if (getpid() != state.owner)
    return misuse("this is a forked child: only the process that joined can speak for the member");
  if (state.lost) return Error{ErrorCode::kRetry, "the control connection is lost"};
  if (state.queued.fetch_add(1) >= kQueuedMax) {
    state.queued.fetch_sub(1);
    return Error{ErrorCode::kRetry, "too many control messages are waiting to be sent"};
  }
  if (const auto* leaving = std::get_if<Leaving>(&message)) state.exit_code = leaving->exit_code;
  state.loop->post([&state, m = std::move(message)] {
    state.queued.fetch_sub(1);
    state.transmit(m);
  });
  return ok();
}

Member ControlClient::as_member(ByteBuffer contact) const {
  const uint32_t slot = state_->place.world == World::kElastic ? state_->place.local_rank : 0;
  return {state_->member, state_->node, slot, state_->node_name, std::move(contact)};
}

MemberLimits ControlClient::limits() const { return member_limits(state_->values); }
MemberId ControlClient::member() const { return state_->member; }
NodeId ControlClient::node() const { return state_->node; }
const std::string& ControlClient::node_name() const { return state_->node_name; }
uint32_t ControlClient::local_rank() const { return state_->place.local_rank; }
uint32_t ControlClient::world_size() const { return state_->place.size; }
World ControlClient::world() const { return state_->place.world; }
const std::string& ControlClient::description() const { return state_->description; }

}  // namespace muster::agent
