#include "launcher/election.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "launcher/etcd_watch.h"
#include "runtime/agent/admission.h"
#include "runtime/agent/leader_host.h"
#include "runtime/base/handle.h"
#include "runtime/base/random.h"
#include "runtime/base/threads.h"
#include "runtime/control/coordinator.h"

namespace muster::launcher {
namespace {

using nlohmann::json;

constexpr size_t kKeyBytesMax = 4096;  // of what is read as JSON
// Agents that hear of a vacant place look for it at moments of their own, so far apart as one needs to take
// it, about: then few of them ask for a lease, whatever their number, and the rest hear that the place is
// taken.
constexpr Duration kApart = 2 * kMillisecond;
constexpr Duration kSpreadMax = 200 * kMillisecond;

Duration random_up_to(Duration longest) {
  return static_cast<Duration>(random_nonce() % static_cast<uint64_t>(longest + 1));
}

ByteBuffer to_bytes(const json& value) {
  const std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  const ByteSpan span = as_bytes(text);
  return {span.begin(), span.end()};
}

Result<json> to_json(ByteSpan bytes, const char* key) {
  const std::string text(reinterpret_cast<const char*>(bytes.data()), std::min(bytes.size(), kKeyBytesMax));
  json value = json::parse(text, nullptr, false);
  if (!value.is_object())
    return Error{ErrorCode::kRetry, std::string("etcd holds something else in place of the key ") + key +
                                        "; use another --job, or remove the keys of this one"};
  return value;
}

// A missing or strange field is zero or empty, which no leader and no run has.
uint64_t number(const json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_number_unsigned() ? found->get<uint64_t>() : 0;
}
std::string text_in(const json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

// One thread that works off calls, in order.
class Calls {
 public:
  explicit Calls(const char* name) : thread_(start_thread(name, [this] { run(); })) {}
  ~Calls() { end(); }
  void post(std::function<void()> call) {
    const std::lock_guard lock(mutex_);
    calls_.push_back(std::move(call));
    changed_.notify_one();
  }
  void end() {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
      changed_.notify_one();
    }
    if (thread_.joinable()) thread_.join();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return over_ || !calls_.empty(); });
      if (over_) return;
      const auto call = std::move(calls_.front());
      calls_.pop_front();
      lock.unlock();
      call();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> calls_;
  bool over_ = false;
  std::thread thread_;
};

Result<std::string> own_address_toward(const agent::HostPort& there) {
  MUSTER_ASSIGN(const auto addresses, agent::resolve_now(there.host, there.port));
  for (const agent::SocketAddress& address : addresses) {
    const UniqueFd socket(::socket(address.family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    const auto* to = reinterpret_cast<const sockaddr*>(address.bytes.data());
    if (!socket || connect(socket.get(), to, static_cast<socklen_t>(address.bytes.size())) != 0) continue;
    sockaddr_storage own{};
    socklen_t size = sizeof own;
    char host[NI_MAXHOST] = "";
    if (getsockname(socket.get(), reinterpret_cast<sockaddr*>(&own), &size) == 0 &&
        getnameinfo(reinterpret_cast<sockaddr*>(&own), size, host, sizeof host, nullptr, 0, NI_NUMERICHOST) ==
            0)
      return std::string(host);
  }
  return Error{ErrorCode::kRetry, "this machine has no way to " + there.host};
}

}  // namespace

Result<std::string> own_address_toward(const std::vector<agent::HostPort>& members) {
  Result<std::string> best = Error{ErrorCode::kRetry, "etcd has no members"};
  for (const agent::HostPort& member : members) {
    auto own = own_address_toward(member);
    if (own.ok() && !agent::is_loopback(*own)) return own;
    if (!best.ok()) best = std::move(own);
  }
  return best;
}

ByteBuffer encode(const LeaderKey& key) {
  return to_bytes({{"node", key.node},
                   {"name", key.node_name},
                   {"host", key.host},
                   {"port", key.port},
                   {"term", key.term},
                   {"incarnation", key.incarnation},
                   {"nonce", key.nonce}});
}

Result<LeaderKey> read_leader_key(ByteSpan bytes) {
  MUSTER_ASSIGN(const json value, to_json(bytes, "leader"));
  LeaderKey key;
  key.node = number(value, "node");
  key.node_name = text_in(value, "name");
  key.host = text_in(value, "host");
  const uint64_t port = number(value, "port");
  key.port = static_cast<uint16_t>(port > 65535 ? 0 : port);
  key.term = number(value, "term");
  key.incarnation = number(value, "incarnation");
  key.nonce = number(value, "nonce");
  if (key.host.empty() || key.port == 0 || key.incarnation == 0)
    return Error{ErrorCode::kRetry, "etcd's key leader names no place"};
  return key;
}

ByteBuffer encode(const RunKey& key) {
  json value{{"incarnation", key.incarnation}, {"term", key.term}, {"leader", key.leader}};
  if (key.ended) value["ended"] = {{"code", key.ended->exit_code}, {"why", key.ended->why.substr(0, 1000)}};
  return to_bytes(value);
}

Result<RunKey> read_run_key(ByteSpan bytes) {
  MUSTER_ASSIGN(const json value, to_json(bytes, "run"));
  RunKey key;
  key.incarnation = number(value, "incarnation");
  key.term = number(value, "term");
  if (key.incarnation == 0) return Error{ErrorCode::kRetry, "etcd's key run names no run"};
  key.leader = number(value, "leader");
  const auto ended = value.find("ended");
  if (ended == value.end() || !ended->is_object()) return key;
  const auto code = ended->find("code");
  if (code == ended->end() || !code->is_number_integer()) return key;
  key.ended = control::EndJob{code->get<int>(), text_in(*ended, "why")};
  return key;
}

struct Election::State : std::enable_shared_from_this<Election::State> {
  struct Found {
    std::optional<LeaderKey> leader;
    std::optional<RunKey> run;
    uint64_t run_modified = 0;
    ByteBuffer view;
    uint64_t leader_created = 0;
  };

  State(agent::Loop& l, ElectionOptions o)
      : loop(l),
        options(std::move(o)),
        prefix("/muster/" + options.job + "/"),
        etcd(options.etcd),
        lease_etcd(options.etcd),
        renew(loop, [this] { renew_lease(); }),
        say_changed(loop,
                    [this] {
                      look_wanted = false;
                      changed();
                    }),
        calls("muster-etcd"),
        lease_calls("muster-lease") {}

  // `work` on the thread of `on`, and `then` with its result on the loop's.
  template <typename Work, typename Then>
  void ask(Calls& on, Work work, Then then) {
    on.post([this, weak = weak_from_this(), work = std::move(work), then = std::move(then)] {
      auto result = std::make_shared<decltype(work())>(work());
      loop.post([weak, result, then] {
        if (const auto self = weak.lock(); self && !self->stop) then(std::move(*result));
      });
    });
  }

  // ---- on the calling thread's side of etcd; these block

  Result<Found> find() {
    MUSTER_ASSIGN(auto entries, etcd.with_prefix(prefix, stop));
    Found found;
    if (const auto run = entries.find(prefix + "run"); run != entries.end()) {
      MUSTER_ASSIGN(found.run, read_run_key(run->second.value));
      found.run_modified = run->second.modified;
    }
    if (const auto leader = entries.find(prefix + "leader"); leader != entries.end()) {
      MUSTER_ASSIGN(found.leader, read_leader_key(leader->second.value));
      found.leader_created = leader->second.created;
    }
    if (const auto view = entries.find(prefix + agent::kViewKey); view != entries.end())
      found.view = std::move(view->second.value);
    return found;
  }

  // A lease, and with it the place of the leader, if it is still as it was found.
  Result<std::optional<Won>> run_for_it(const Found& found, uint16_t port, uint64_t incarnation) {
    const bool goes_on = incarnation != 0;
    Won won;
    won.term = found.run ? found.run->term + 1 : 1;
    won.incarnation = goes_on ? incarnation : random_nonce();
    if (!goes_on) won.term = 1;
    if (goes_on && found.run) won.former = found.run->leader;
    if (won.term > control::kTermsMax)
      return Error{ErrorCode::kRetry,
                   "this run has had " + std::to_string(won.term - 1) + " leaders; no more"};
    MUSTER_ASSIGN(std::string host, own_address_toward(options.etcd.members));
    const Instant asked_at = now();
    MUSTER_ASSIGN(const int64_t id, etcd.grant(options.lease, stop));
    const LeaderKey key{options.node, options.node_name, std::move(host), port,
                        won.term,     won.incarnation,   random_nonce()};
    EtcdTransaction take;
    take.guards = {{EtcdGuard::kCreated, prefix + "leader", 0},
                   {EtcdGuard::kModified, prefix + "run", found.run_modified}};
    take.puts = {{prefix + "leader", encode(key), id},
                 {prefix + "run", encode(RunKey{won.incarnation, won.term, std::nullopt, options.node}), 0}};
    if (!goes_on) take.deletes = {prefix + agent::kViewKey};
    const auto outcome = etcd.transact(take, stop);
    // Refused, or the outcome is unknown: what the store holds tells (rule 14). The view is read after the
    // place was taken, when no former leader can write it any more.
    const auto after = find();
    if (!after.ok() || !after->leader || after->leader->nonce != key.nonce) {
      (void)etcd.revoke(id, stop);
      if (!outcome.ok()) return outcome.error();
      if (!after.ok()) return after.error();
      return std::optional<Won>();
    }
    won.token = after->leader_created;
    won.view = after->view;
    const std::lock_guard lock(mutex);
    lease = id;
    lease_until = asked_at + options.lease - margin();
    return std::optional<Won>(std::move(won));
  }

  // All agents hear of a change in the same millisecond: of a place that is vacant, which not all of them
  // should try to take, and of a new leader, whom not all of them should read at once. A look that is due
  // already sees this change as well: it stays when it is.
  void want_look() {
    if (!std::exchange(look_wanted, true)) say_changed.after(moment_of_own());
  }

  Duration moment_of_own() const {
    return random_up_to(std::min<Duration>(kSpreadMax, options.agents_max * kApart));
  }

  // ---- the lease

  Duration margin() const { return options.lease / 5; }

  void renew_lease() {
    const int64_t id = lease_now();
    if (id == 0) return;
    const Instant asked_at = now();
    ask(
        lease_calls, [this, id] { return lease_etcd.keep_alive(id, stop); },
        [this, id, asked_at](Result<bool> alive) {
          if (lease_now() != id) return;
          const std::lock_guard lock(mutex);
          if (alive.ok() && *alive) lease_until = asked_at + options.lease - margin();
          if (alive.ok() && !*alive) lease_until = 0;
        });
    renew.after(options.lease / 6);
  }

  int64_t lease_now() const {
    const std::lock_guard lock(mutex);
    return lease;
  }

  int64_t give_up_lease() {
    renew.cancel();
    const std::lock_guard lock(mutex);
    lease_until = 0;
    return std::exchange(lease, 0);
  }

  agent::Loop& loop;
  const ElectionOptions options;
  const std::string prefix;
  std::atomic<bool> stop = false;
  Etcd etcd;        // of `calls`
  Etcd lease_etcd;  // of `lease_calls`: a lease must not wait behind a slow answer
  mutable std::mutex mutex;
  int64_t lease = 0;
  Instant lease_until = 0;
  Instant vacant_since = 0;  // 0: it is not
  Instant looked_at = 0;
  Instant not_before = 0;
  agent::Timer renew;
  std::function<void()> changed;
  bool look_wanted = false;
  agent::Timer say_changed;
  std::optional<EtcdWatch> watch;
  Calls calls;
  Calls lease_calls;
};

namespace {

using Entries = Result<std::map<std::string, EtcdEntry>>;

// The store as one leader sees it. What the leader writes needs its own key, as it made it.
class EtcdStore final : public agent::Store {
 public:
  using Read = std::function<void(std::function<void(Entries)>)>;
  using Write = std::function<void(EtcdTransaction, std::function<void(Result<EtcdOutcome>)>)>;

  EtcdStore(std::string prefix, const Won& won, Read read, Write write, std::function<Instant()> lease_until)
      : prefix_(std::move(prefix)),
        won_(won),
        read_(std::move(read)),
        write_(std::move(write)),
        lease_until_(std::move(lease_until)) {}

  uint64_t incarnation() const override { return won_.incarnation; }
  void lead(std::function<void(Result<uint64_t>)> answer) override { answer(won_.token); }
  bool outlives_leader() const override { return true; }
  Instant lease_until() const override { return lease_until_(); }

  void get(const std::string& key, std::function<void(Result<agent::StoreEntry>)> answer) override {
    read_([name = prefix_ + key, answer = std::move(answer)](Entries entries) {
      if (!entries.ok()) return answer(entries.error());
      const auto found = entries->find(name);
      if (found == entries->end()) return answer(agent::StoreEntry{});
      answer(agent::StoreEntry{std::move(found->second.value), found->second.modified});
    });
  }

  void compare_and_swap(const std::string& key, uint64_t expected_revision, ByteBuffer value, uint64_t token,
                        std::function<void(Result<bool>)> answer) override {
    EtcdTransaction write = guarded(token);
    write.guards.push_back({EtcdGuard::kModified, prefix_ + key, expected_revision});
    write.puts.push_back({prefix_ + key, std::move(value), 0});
    transact(std::move(write), std::move(answer));
  }

  void record_end(int exit_code, const std::string& why, uint64_t token,
                  std::function<void(Result<bool>)> answer) override {
    EtcdTransaction write = guarded(token);
    write.puts.push_back(
        {prefix_ + "run", encode(RunKey{won_.incarnation, won_.term, control::EndJob{exit_code, why}}), 0});
    transact(std::move(write), std::move(answer));
  }

 private:
  EtcdTransaction guarded(uint64_t token) const {
    EtcdTransaction write;
    write.guards = {{EtcdGuard::kCreated, prefix_ + "leader", token}};
    return write;
  }

  void transact(EtcdTransaction write, std::function<void(Result<bool>)> answer) {
    write_(std::move(write), [answer = std::move(answer)](Result<EtcdOutcome> outcome) {
      if (!outcome.ok()) return answer(outcome.error());
      answer(outcome->written);
    });
  }

  const std::string prefix_;
  const Won won_;
  const Read read_;
  const Write write_;
  const std::function<Instant()> lease_until_;
};

}  // namespace

Election::Election(agent::Loop& loop, ElectionOptions options)
    : state_(std::make_shared<State>(loop, std::move(options))) {}

Election::~Election() {
  state_->stop = true;
  state_->watch.reset();
  state_->calls.end();
  state_->lease_calls.end();
  const int64_t lease = state_->give_up_lease();  // one that a campaign has won meanwhile, too
  const std::atomic<bool> never = false;
  if (lease != 0) (void)Etcd(state_->options.etcd, kSecond / 2).revoke(lease, never);
}

void Election::look(uint64_t incarnation, std::function<void(Result<Standing>)> answer) {
  State* const state = state_.get();
  state->ask(
      state->calls, [state] { return state->find(); },
      [state, incarnation, answer = std::move(answer)](Result<State::Found> found) {
        if (!found.ok()) {
          state->vacant_since = 0;  // somebody may have led meanwhile
          return answer(found.error());
        }
        const Instant looked_at = std::exchange(state->looked_at, now());
        if (state->looked_at - looked_at > state->options.look_gap_max) state->vacant_since = 0;  // likewise
        Standing standing;
        const auto say = [&](Standing::What what, std::string why = "") {
          standing.what = what;
          standing.why = std::move(why);
          answer(standing);
        };
        const bool same_run = found->run && found->run->incarnation == incarnation;
        if (same_run && found->run->ended) {
          standing.ended = *found->run->ended;
          return say(Standing::kEnded);
        }
        if (found->leader) {
          state->vacant_since = 0;
          standing.leader = *found->leader;
          return say(Standing::kLed);
        }
        if (now() < state->not_before)
          return say(Standing::kWait, "nobody leads; this agent leaves it to others");
        if (incarnation != 0)
          return say(same_run ? Standing::kVacant : Standing::kWait,
                     "nobody leads, and etcd does not know this run any more");
        if (state->vacant_since == 0) state->vacant_since = now();
        const bool free =
            !found->run || found->run->ended || now() - state->vacant_since >= state->options.fresh_wait;
        say(free ? Standing::kVacant : Standing::kWait,
            "nobody leads; its own agents may go on with the run");
      });
}

void Election::campaign(uint16_t port, uint64_t incarnation,
                        std::function<void(Result<std::optional<Won>>)> answer) {
  State* const state = state_.get();
  state->ask(
      state->calls,
      [state, port, incarnation]() -> Result<std::optional<Won>> {
        MUSTER_ASSIGN(const State::Found found, state->find());
        if (found.leader) return std::optional<Won>();
        const bool same_run = found.run && found.run->incarnation == incarnation;
        if (incarnation != 0 && (!same_run || found.run->ended)) return std::optional<Won>();
        return state->run_for_it(found, port, incarnation);
      },
      [answer = std::move(answer)](Result<std::optional<Won>> won) { answer(std::move(won)); });
}

std::unique_ptr<agent::Store> Election::store_of(const Won& won) {
  State* const state = state_.get();
  const std::weak_ptr<State> weak = state_;
  state->renew_lease();
  return std::make_unique<EtcdStore>(
      state->prefix, won,
      [state](std::function<void(Entries)> then) {
        state->ask(
            state->calls, [state] { return state->etcd.with_prefix(state->prefix, state->stop); },
            [then = std::move(then)](Entries entries) { then(std::move(entries)); });
      },
      [state](EtcdTransaction write, std::function<void(Result<EtcdOutcome>)> then) {
        state->ask(
            state->calls,
            [state, write = std::move(write)] { return state->etcd.transact(write, state->stop); },
            [then = std::move(then)](Result<EtcdOutcome> outcome) { then(std::move(outcome)); });
      },
      [weak, lease = state->lease_now()]() -> Instant {
        const auto self = weak.lock();
        if (!self || self->lease_now() != lease || lease == 0) return 0;
        const std::lock_guard lock(self->mutex);
        return self->lease_until;
      });
}

void Election::watch(std::function<void()> changed, std::function<void(std::string)> trouble) {
  State* const state = state_.get();
  state->changed = std::move(changed);
  WatchTimes times;
  times.quiet_max -= random_up_to(times.quiet_max / 3);  // all hear their last event together
  const auto heard = [state] { state->want_look(); };
  state->watch.emplace(state->loop, state->options.etcd, state->prefix + "leader", times,
                       EtcdWatch::Callbacks{heard, std::move(trouble)});
}

void Election::resign(Duration hold_off) {
  State* const state = state_.get();
  state->not_before = now() + hold_off;
  const int64_t lease = state->give_up_lease();
  if (lease == 0) return;
  state->ask(
      state->lease_calls, [state, lease] { return state->lease_etcd.revoke(lease, state->stop); },
      [](const Status&) {});
}

}  // namespace muster::launcher
