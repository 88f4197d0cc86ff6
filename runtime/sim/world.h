// The simulated world, shared by the files of this folder; nobody else includes it.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <utility>

#include "runtime/base/random.h"
#include "runtime/control/coordinator.h"
#include "runtime/control/member.h"
#include "runtime/control/node.h"
#include "runtime/sim/simulation.h"

namespace muster::sim {

using namespace control;

using Action = std::function<void()>;

// What a version's state must be: training is deterministic, so it is a function of the version alone.
Digest truth_of(Version version);
// The state after applying `gradient` to `state`, and the gradient that contributors of one common state
// make.
Digest applied(const Digest& state, uint64_t gradient);
uint64_t gradient_of(const Digest& state, Version version);

struct Process {
  MemberId id = 0;
  size_t agent = 0;
  uint32_t local_rank = 0;
  std::unique_ptr<MemberCore> core;
  bool alive = true;
  bool frozen = false;
  std::vector<Action> held;  // what happened to it while frozen
  Instant tick_at = kNever;

  // The program's memory.
  Version version = kNoVersion;
  Digest state;
  bool writing = false;  // an update or installation is under way: reading now gives garbage
  uint64_t writes = 0;   // a read that spans a write gives garbage
  std::optional<std::pair<Version, Digest>> staged;
  std::map<Version, Digest> save_copies;

  // The program's thread.
  enum Doing { kIdle, kComputing, kReducing, kWriting, kLeft } doing = kIdle;
  uint64_t activity = 0;  // an event of an older activity is void
  struct Ready {
    Generation generation;
    Version version = 0;
    uint64_t gradient = 0;
    uint64_t plan = 0;
  };
  std::optional<Ready> reduced;  // a reduction returned, its update not yet permitted
  uint64_t boundary = 0;         // to be said before the next step
  std::optional<uint64_t> lesson;
  bool level_said = false;
  bool must_restore = false;
  std::optional<LearnUntil> learn_until;
  std::vector<SaveOpen> saves_waiting;  // the version is not reached yet

  // What the checks remember.
  bool reported = false;
  std::optional<Version> stop_at;
  bool told_draining = false;
  bool was_in_view = false;
  bool evictable = false;  // a fault touched it
  Generation entered;
  bool revoked_since = false;
};

struct Agent {
  NodeId id = 0;
  std::string name;
  std::unique_ptr<NodeCore> core;
  bool alive = true;
  bool finished = false;
  int exit_code = -1;
  bool connected = false;
  uint64_t link = 0;       // counts connections; what was sent on an older one is lost
  Instant up_free_at = 0;  // FIFO each way
  Instant down_free_at = 0;
  Instant heard_at = 0;       // by the leader
  Instant blocked_until = 0;  // a cut: nothing arrives before
  bool reset_ever = false;
  Instant tick_at = kNever;
  std::vector<MemberId> slots;  // living process by local rank, or 0
  std::vector<Instant> worker_free_at;
  bool noticed = false;
};

struct Group {
  View view;
  std::set<MemberId> forming;
  std::set<MemberId> revoked;
  std::set<MemberId> restoring;
  struct Reduction {
    std::map<MemberId, Digest> states;
    uint64_t plan = 0;
    bool complete = false;
  };
  std::map<Version, Reduction> reductions;
  Install install;
};

struct LessonLog {
  MemberId learner = 0;
  MemberId source = 0;
  Generation generation;
  bool over = false;
  std::map<Version, uint64_t> gradients;
};

struct SaveRecord {
  Version version = 0;
  Lineage lineage;
  std::set<MemberId> participants;
  std::set<MemberId> written;
  bool bad = false;
};

struct World {
  Options options;
  Outcome outcome;
  SeededRandom random;
  Instant now = 0;
  uint64_t sequence = 0;

  struct Event {
    Instant at;
    uint64_t order;
    Action action;
    bool operator>(const Event& other) const { return at != other.at ? at > other.at : order > other.order; }
  };
  std::priority_queue<Event, std::vector<Event>, std::greater<Event>> queue;

  Limits limits;
  NodeLimits node_limits;
  MemberLimits member_limits;
  std::unique_ptr<Coordinator> leader;
  bool leader_finished = false;
  Instant leader_tick_at = kNever;
  View store;  // what the store holds
  bool store_empty = true;
  bool foreign_leader = false;  // somebody else writes next

  std::vector<std::unique_ptr<Agent>> agents;
  std::map<MemberId, std::unique_ptr<Process>> processes;
  std::map<Generation, Group> groups;
  std::map<uint64_t, LessonLog> lessons;
  std::map<uint64_t, SaveRecord> saves;
  std::pair<Version, Lineage> durable{kNoVersion, {}};  // newest save

  // What happened, for the checks.
  std::map<Generation, View> views_stored;
  std::map<Generation, View> views_installed;  // members were told to
  std::map<Generation, View> views_entered;
  std::set<MemberId> proven_dead;  // the leader was told
  Version committed = kNoVersion;  // complete on every member of a view
  Version newest_reached = kNoVersion;
  bool notices_given = false;
  bool group_faults = false;  // data-plane errors, or the store's end: whoever is named may be excluded
  bool nodes_lost = false;
  bool processes_lost = false;
  std::map<Generation, std::map<std::pair<Version, uint64_t>, bool>> boundary_answers;

  explicit World(const Options& options);

  // ---- time
  void at(Instant when, Action action) { queue.push({when, ++sequence, std::move(action)}); }
  void after(Duration delay, Action action) { at(now + delay, std::move(action)); }
  Duration between(Duration low, Duration high) {
    return low + static_cast<Duration>(random.below(static_cast<uint64_t>(high - low + 1)));
  }
  void run();
  bool done() const;

  // ---- reporting
  void trace(const std::string& line);
  void violate(const std::string& what);
  void expect(bool condition, const std::string& what) {
    if (!condition) violate(what);
  }
  std::string named(MemberId id) const;

  // ---- leader, agents, links (agents.cpp)
  void start();
  size_t add_agent();
  void connect(size_t agent);
  void cut_link(size_t agent, const std::string& why, bool both_know);
  void leader_does(const control::Actions& actions);
  void agent_does(size_t agent, const control::Actions& actions);
  void store_view(const StoreView& store_view);
  void up(size_t agent, Envelope envelope);
  void down(NodeId node, Envelope envelope);
  void schedule_leader();
  void schedule_agent(size_t agent);
  void spawn(size_t agent, uint32_t local_rank);
  void kill_process(MemberId id, int code);
  void kill_agent(size_t agent, bool silently);
  void to_worker(size_t agent, const Envelope& envelope);
  Agent* agent_of(NodeId node);

  // ---- processes (process.cpp)
  void process_does(MemberId id, const MemberActions& actions);
  void event_for(MemberId id, Action action);  // now, or when it thaws; void when it is dead
  void after_for(MemberId id, Duration delay, Action action) {
    after(delay, [this, id, action = std::move(action)] { event_for(id, action); });
  }
  void say(MemberId id, Message message);
  void schedule_process(MemberId id);
  void heartbeat(MemberId id);
  void drive(MemberId id);
  void drive_learner(Process& process);
  void compute(Process& process);
  void contribute(Process& process, Generation generation, Version version);
  void try_update(Process& process);
  void finish_update(Process& process, const Process::Ready& ready);
  void begin_install(Process& process);
  void leave(Process& process, int code, const std::string& why);
  void compute_digest(Process& process, Version version);
  void form_group(Process& process, const Install& install);
  void member_formed(Process& process, Generation generation);
  void enter_view(Process& process, const EnterView& enter);
  void restore(Process& process, Generation generation);
  void revoke(Process& process, const RevokeGroup& revoke);
  void forward(Process& process, const Message& message);
  void copy_for_learner(uint64_t lesson);
  void write_part(Process& process, const SaveOpen& save);
  void publish(Process& process, uint64_t save);
  void reached(Process& process);  // a version: saves, progress
  bool group_alive(const Group& group) const;

  // ---- faults (faults.cpp)
  void plan_faults();
  void fault();
  MemberId some_process(bool in_view);
  void freeze(MemberId id, Duration for_long);

  // ---- invariants (checks.cpp)
  void check_permit(const Process& process, Generation generation, Version version, bool learner);
  void check_report(const Process& process, const Report& report);
  void check_enter(const Process& process, const View& view, bool planned);
  void check_store(const View& next);
  void check_learn(const Learn& learn);
  void check_reduction(const Group& group, Version version);
  void check_boundary(const Process& process, Generation generation, Version version, uint64_t plan,
                      bool due);
  void check_version(const Process& process);
  void check_publish(const SaveRecord& save);
  void check_signal(const Process& process, int signal);
  void check_leave(const Process& process, int code);
  void check_end();
  void note_commit(const Process& process);
};

}  // namespace muster::sim
