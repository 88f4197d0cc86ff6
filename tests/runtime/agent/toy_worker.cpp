// A worker without a data plane: it speaks the whole control protocol, "reduces" over a file that all toys
// map, and its state at version v is v. For tests of agents with real processes.
//
//   toy_worker --board FILE --steps N [--step-ms M] [--exit-at V --exit-code C] [--ignore-term]
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "runtime/agent/control_client.h"
#include "runtime/base/bytes.h"
#include "runtime/control/member.h"

namespace {

using namespace muster;
using namespace muster::control;

// What a reduction does for the protocol: nobody passes before all have come, and all learn the same maximum.
class Board {
 public:
  explicit Board(const char* path) {
    const int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, sizeof(Entry) * kEntries) != 0) std::abort();
    void* memory = mmap(nullptr, sizeof(Entry) * kEntries, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) std::abort();
    entries_ = static_cast<Entry*>(memory);
  }

  template <typename Stop>
  std::optional<uint64_t> reduce(uint64_t generation, Version version, size_t world, uint64_t plan,
                                 Stop stop) {
    Entry& entry = entries_[(generation * 20011 + static_cast<uint64_t>(version)) % kEntries];
    uint64_t seen = entry.plan.load();
    while (seen < plan && !entry.plan.compare_exchange_weak(seen, plan)) {
    }
    entry.arrived.fetch_add(1);
    while (entry.arrived.load() < world) {
      if (stop()) return std::nullopt;
      usleep(500);
    }
    return entry.plan.load();
  }

 private:
  struct Entry {
    std::atomic<uint64_t> arrived;
    std::atomic<uint64_t> plan;
  };
  static constexpr size_t kEntries = 1 << 18;
  Entry* entries_ = nullptr;
};

Digest digest_at(Version version) { return {static_cast<uint64_t>(version) + 1, 7}; }

class Toy {
 public:
  Toy(Board& board, Version steps, int step_ms, Version exit_at, int exit_code)
      : board_(board), steps_(steps), step_ms_(step_ms), exit_at_(exit_at), exit_code_(exit_code) {}

  int run() {
    agent::ControlCallbacks callbacks;
    callbacks.on_message = [this](const Message& message) {
      const std::lock_guard lock(mutex_);
      if (core_) act(core_->receive(now(), message));
    };
    callbacks.on_lost = [this](Error error) {
      std::printf("lost: %s\n", error.message.c_str());
      std::fflush(stdout);
      lost_ = true;
    };
    auto client = agent::ControlClient::connect({}, std::move(callbacks));
    if (!client.ok()) {
      std::printf("cannot join: %s\n", client.error().message.c_str());
      return 78;
    }
    {
      const std::lock_guard lock(mutex_);
      client_ = std::move(*client);
      core_.emplace(client_->member(), MemberLimits{});
      std::printf("joined as %s, process %d\n", client_->description().c_str(), getpid());
      std::fflush(stdout);
      say(MemberHello{client_->as_member({}), Digest{1, 1}, "toy"});
    }
    while (step()) {
    }
    return leave();
  }

 private:
  void say(Message message) { (void)client_->send(std::move(message)).ok(); }
  void act(const MemberActions& actions) {
    for (const MemberAction& action : actions) std::visit([this](const auto& a) { carry_out(a); }, action);
  }
  void carry_out(const Send& send) { say(send.envelope.message); }
  void carry_out(const RevokeGroup& revoke) { print("revoked: " + revoke.why); }
  void carry_out(const FormGroup& form) { act(core_->formed(form.install.view.generation)); }
  void carry_out(const ComputeDigest& wanted) { act(core_->digest_ready(wanted, digest_at(wanted.version))); }
  void carry_out(const LeaveLoop&) {}
  void carry_out(const Event& event) { say(WorkerEvent{event}); }

  void carry_out(const EnterView& enter) {
    print("view " + std::to_string(enter.view.generation.counter) + " world " +
          std::to_string(enter.view.members.size()) + " base " + std::to_string(enter.base));
    say(WorkerEvent{{EventKind::kLog, now(), enter.view.generation.counter, enter.base, -1, 0, "entered"}});
    if (enter.base == kNoVersion) act(core_->started(0, digest_at(0), {}, kNoVersion));
    if (core_->install_due()) install(enter.view.generation, enter.base);
    say(Progress{enter.view.generation, core_->version()});
  }

  void install(const Generation& generation, Version version) {
    if (core_->open_install(generation).granted) act(core_->state_installed(now(), version));
  }

  void carry_out(const Forward& forward) {
    if (const auto* learn = std::get_if<Learn>(&forward.message)) {
      print("learning");
      lesson_ = learn->view.generation;
      install(lesson_, 0);
      say(Level{0});
    } else if (const auto* until = std::get_if<LearnUntil>(&forward.message)) {
      install(lesson_, until->version);
      act(core_->at_boundary(until->plan, until->version));
    } else if (const auto* save = std::get_if<SaveOpen>(&forward.message)) {
      saves_[save->save] = save->version;
    } else if (const auto* publish = std::get_if<SavePublish>(&forward.message)) {
      say(SavePublished{publish->save, true, ""});
    } else if (const auto* closed = std::get_if<SaveClosed>(&forward.message)) {
      print(std::string("save ") + (closed->durable ? "durable" : "failed: " + closed->why));
    }
  }

  void vote() {
    for (auto save = saves_.begin(); save != saves_.end();) {
      if (core_->version() < save->second) {
        ++save;
        continue;
      }
      say(SaveVote{save->first, true, {}, ""});
      save = saves_.erase(save);
    }
  }

  bool step() {
    usleep(static_cast<useconds_t>(step_ms_) * 1000);
    std::unique_lock lock(mutex_);
    if (lost_) return false;
    act(core_->tick(now()));
    if (core_->ended()) return false;
    vote();
    if (!core_->may_run() || core_->learning() || core_->install_due() || core_->waiting_at_boundary())
      return true;
    const Version version = core_->version();
    if (version < 0) return true;
    if (version == exit_at_) std::_Exit(exit_code_);
    if (version >= steps_) return finish(version);
    const Generation generation = core_->view().generation;
    const size_t world = core_->view().members.size();
    const uint64_t plan = core_->plan();
    if (core_->catching_up()) {  // the others have made this update, and take no part in it again
      if (!core_->open_update(generation, version).granted) return true;
      act(core_->update_closed(now()));
      say(Progress{generation, core_->version()});
      return true;
    }
    lock.unlock();
    const auto combined =
        board_.reduce(generation.counter, version, world, plan, [&] { return cannot_go_on(generation); });
    lock.lock();
    if (!combined || !core_->open_update(generation, version).granted) return true;
    act(core_->update_closed(now()));
    say(Progress{generation, core_->version()});
    if (core_->boundary_due(*combined)) act(core_->at_boundary(*combined, core_->version()));
    return true;
  }

  bool cannot_go_on(const Generation& generation) {
    const std::lock_guard lock(mutex_);
    return lost_ || core_->view().generation != generation || core_->ended() || !core_->may_run() ||
           core_->version_limit().value_or(INT64_MAX) <= core_->version();
  }

  bool finish(Version version) {
    if (!said_leaving_) say(Leaving{0, version, "done"});
    said_leaving_ = true;
    return true;
  }

  int leave() {
    int code = 75;
    {
      const std::lock_guard lock(mutex_);
      if (core_->ended()) code = core_->ended()->exit_code;
      if (!said_leaving_) say(Leaving{code, core_->version(), "told to"});
      print("leaves at version " + std::to_string(core_->version()) + " with code " + std::to_string(code));
    }
    client_.reset();
    return code;
  }

  void print(const std::string& text) {
    std::printf("%s\n", text.c_str());
    std::fflush(stdout);
  }

  Board& board_;
  Version steps_;
  int step_ms_;
  Version exit_at_;
  int exit_code_;
  std::mutex mutex_;
  std::unique_ptr<agent::ControlClient> client_;
  std::optional<MemberCore> core_;
  Generation lesson_;
  std::map<uint64_t, Version> saves_;
  std::atomic<bool> lost_ = false;
  bool said_leaving_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  std::map<std::string, std::string> options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    options[name] = name == "--ignore-term" || i + 1 == argc ? "1" : argv[++i];
  }
  const auto number = [&](const char* name, long fallback) {
    return options.count(name) != 0 ? std::atol(options[name].c_str()) : fallback;
  };
  if (options.count("--ignore-term") != 0) signal(SIGTERM, SIG_IGN);
  Board board(options["--board"].c_str());
  Toy toy(board, number("--steps", 10), static_cast<int>(number("--step-ms", 5)), number("--exit-at", -5),
          static_cast<int>(number("--exit-code", 1)));
  return toy.run();
}
