// The simulated world, shared by the files of this folder; nobody else includes it.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <utility>

#include "collectives/lane_tree.h"
#include "runtime/base/random.h"
#include "runtime/control/coordinator.h"
#include "runtime/control/member.h"
#include "runtime/control/node.h"
#include "runtime/control/rescue.h"
#include "runtime/control/save_interval.h"
#include "runtime/sim/silence.h"
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
Digest shard_truth(Version version, uint32_t shard);

struct Process {
  MemberId id = 0;
  size_t agent = 0;
  uint32_t local_rank = 0;
  std::unique_ptr<MemberCore> core;
  bool alive = true;
  bool frozen = false;
  std::vector<Action> held;  // what happened to it while frozen
  Instant tick_at = kNever;
  Duration clock = 0;  // what its clock shows more than the world's
  int64_t slowness = 1;

  // The program's memory.
  Version version = kNoVersion;
  Digest state;
  Generation state_in;   // the view that it was last entered with
  LaneRange lanes;       // whose microbatches it computes, by the view that it knows
  bool writing = false;  // an update or installation is under way: reading now gives garbage
  uint64_t writes = 0;   // a read that spans a write gives garbage
  std::optional<std::pair<Version, Digest>> staged;
  std::optional<std::pair<Version, Digest>> taught;  // likewise, by a lesson
  struct Copy {
    Version version = kNoVersion;
    Digest state;
    bool compared = false;  // with the other copies
  };
  std::map<uint32_t, Copy> shards;
  std::map<uint32_t, Copy> staged_shards;
  struct SaveCopy {
    Digest state;
    std::map<uint32_t, Copy> shards;
  };
  std::map<Version, SaveCopy> save_copies;
  std::map<Tier, std::pair<Version, Generation>> save_said;
  std::map<Tier, SaveSchedules> schedules;

  // The program's thread.
  enum Doing { kIdle, kComputing, kReducing, kWriting, kLeft } doing = kIdle;
  uint64_t activity = 0;  // an event of an older activity is void
  struct Ready {
    Generation generation;
    Version version = 0;
    uint64_t gradient = 0;
    uint64_t plan = 0;
    Generation reduced_in;
  };
  std::optional<Ready> reduced;      // a reduction returned, its update not yet permitted
  std::optional<Ready> last_update;  // while its gradient is kept
  std::optional<Ready> missing;      // the update to the base of the view that is being formed, from another
  uint64_t boundary = 0;             // to be said before the next step
  std::optional<uint64_t> lesson;
  std::map<Generation, std::set<uint64_t>> lags;  // lessons in which it could not keep up
  bool level_said = false;
  bool must_restore = false;
  std::optional<LearnUntil> learn_until;
  std::vector<SaveOpen> saves_waiting;  // the version is not reached yet
  struct Staging {
    Instant until = 0;  // then the lease ends
    SaveCopy copy;
  };
  std::map<uint64_t, Staging> staging;  // by save

  // What the checks remember.
  bool reported = false;
  bool leaderless = false;  // as its agent told it last
  std::optional<Version> stop_at;
  bool told_draining = false;
  bool was_in_view = false;
  bool evictable = false;  // a fault touched it
  Generation entered;
  bool revoked_since = false;
};

// An agent's part of a rescue: as runtime/agent/rescue.cpp around the same core, without its sockets.
struct RescueSide {
  bool active = false;
  bool joined = false;  // another agent collects
  bool over = false;
  uint64_t turn = 0;  // of the agent that is tried or joined; what belongs to an older one is void
  std::deque<size_t> candidates;     // to collect, before this one does itself
  std::optional<size_t> uplink;      // the candidate whose turn it is
  size_t later = 0;                  // agents that may come to this one
  std::map<size_t, uint64_t> peers;  // that came, and their turns
  std::map<size_t, std::vector<MemberId>> peers_members;
  std::vector<MemberId> members;
  std::set<MemberId> asked;
  std::unique_ptr<RescueCore> core;
  Instant up_free_at = 0;
  Instant down_free_at = 0;
  bool excused = false;  // a part could not be written, or not in time
};

struct Agent {
  NodeId id = 0;
  std::string name;
  std::unique_ptr<NodeCore> core;
  bool alive = true;
  bool vanished = false;  // dead, with its machine
  bool finished = false;
  int exit_code = -1;
  bool connected = false;
  uint64_t link = 0;       // counts connections; what was sent on an older one is lost
  Instant up_free_at = 0;  // FIFO each way
  Instant down_free_at = 0;
  Instant spoke_at = 0;          // heard by the leader, other than by heartbeats
  Instant up_blocked_until = 0;  // a cut, of one way or both: nothing arrives before
  Instant down_blocked_until = 0;
  size_t leader = 0;            // of its connection
  bool looks = false;           // asks the store who leads
  Instant store_cut_until = 0;  // what it asks the store before is lost
  Instant not_before = 0;       // it stands for no election
  uint64_t former_link = 0;     // the connection before: what it carried may still arrive
  Duration former_link_is_late_by = 0;
  bool deaf_link = false;  // half-open: the leader has dropped it, the agent does not know yet
  bool frozen = false;
  std::vector<Action> held;
  Duration clock = 0;
  bool reset_ever = false;
  Instant tick_at = kNever;
  std::vector<MemberId> slots;  // living process by local rank, or 0
  std::vector<Instant> worker_free_at;
  bool noticed = false;
  bool told_to_leave = false;  // by a notice to the node
  RescueSide rescue;
  int refusals = 0;              // of connections, in a row
  size_t place = 0;              // with the embedded store: the agent beside which it looks for the leader,
  uint64_t place_term = 0;       // and that one's term
  bool found_the_end = false;    // in the store
  bool ended_by_itself = false;  // the job's end, or a lost leader: it kills what is left
};

struct Lead {
  std::unique_ptr<Coordinator> core;
  size_t seat = 0;           // its agent
  uint64_t incarnation = 0;  // of its store
  uint64_t term = 0;
  bool over = false;  // dead, resigned, or finished
  Instant tick_at = kNever;
  bool frozen = false;
  std::vector<Action> held;
  Duration clock = 0;
  Instant lease_until = kNever;  // by its own clock
  Instant began = 0;             // the same
  Generation found;              // in the store
  NodeId former = 0;             // the leader before was there
  Instant former_heard_at = kNever;
  bool former_unanswered = false;  // as it was told last
  bool vanished = false;           // with its machine: nobody is even refused
  bool asks_hosts = false;
  std::map<NodeId, HostAnswer> hosts;     // as it was told last, of those that are silent
  std::map<NodeId, Instant> refused_at;   // by its own clock, those that did last
  std::map<NodeId, uint64_t> links;       // the connection by which it knows a node
  std::map<NodeId, Instant> quarantined;  // until when, by its own clock
  std::map<MemberId, Instant> taught;     // since when, by the world's
};

struct Group {
  View view;
  std::set<MemberId> forming;
  std::set<MemberId> revoked;
  std::set<MemberId> restoring;
  struct Reduction {
    std::map<MemberId, Digest> states;
    std::vector<uint32_t> taken;  // how often each microbatch was
    uint64_t plan = 0;
    bool complete = false;
  };
  std::map<Version, Reduction> reductions;
  Install install;
  bool failed = false;  // a partition went through it
};

// What the store says to an agent that looks for the leader.
struct Look {
  enum What { kNothing, kLed, kWon, kEnded } what = kNothing;
  uint64_t term = 0;
  uint64_t incarnation = 0;
  View view;
  NodeId former = 0;  // the leader before
};

struct LessonLog {
  MemberId learner = 0;
  MemberId source = 0;
  Generation generation;
  bool over = false;
  std::map<Version, uint64_t> gradients;
};

struct SaveRecord {
  Tier tier = Tier::kShared;
  Version version = 0;
  Lineage lineage;
  std::set<MemberId> participants;
  std::set<MemberId> written;
  std::set<uint32_t> shards;  // written
  bool bad = false;
  bool write_failed = false;
  bool rescue = false;
  bool published = false;
  Digest state;            // of the newest part
  uint64_t rewritten = 0;  // parts, by another than was to write them
  SaveOpen open;
  Instant opened_at = kNever;
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

  bool paced = false;            // when to save is left to the leader
  bool saves_locally = false;    // also on each node, for its own members
  bool drains = false;           // and the shared folder gets those
  bool overlaps = false;         // what a broken connection carried may arrive while the next one is made
  bool flaky = false;            // a node fails again and again
  bool loses_everybody = false;  // all nodes of a view die at once, others have just come
  Sharding sharding;             // of the state; none: all hold all
  bool keeps_gradients = true;   // of the newest update
  int lanes = 1;
  int microbatches = 1;                                     // a multiple of the lanes
  std::map<size_t, std::vector<LaneRange>> lane_divisions;  // by world size
  Limits limits;
  NodeLimits node_limits;
  MemberLimits member_limits;
  // The leaders in order of their terms; with the embedded store one. Former ones may still be at work, or
  // wake up.
  std::vector<std::unique_ptr<Lead>> leads;
  bool leader_finished = false;
  bool leader_lost = false;     // with its node and the store (rule 12)
  bool ended_before = false;    // the job's end was decided before
  View store;                   // what the store holds
  uint64_t store_term = 0;      // of the newest leader that it has had
  NodeId store_leader = 0;      // where that one is, or was
  uint64_t incarnation = 4242;  // of the store, or of the newest run in it
  size_t first_place = 0;       // the agent at the address that all are started with
  Instant store_lease_until = 0;
  std::optional<EndJob> end_recorded;
  bool store_empty = true;
  Instant store_away_until = 0;  // requests before are lost
  Instant disk_slow_until = 0;
  std::map<std::pair<size_t, size_t>, Instant> data_cut;  // between two nodes, until when
  bool foreign_leader = false;                            // somebody else writes next

  std::vector<std::unique_ptr<Agent>> agents;
  std::map<MemberId, std::unique_ptr<Process>> processes;
  std::map<Generation, Group> groups;
  std::map<uint64_t, LessonLog> lessons;
  std::map<uint64_t, SaveRecord> saves;
  std::map<uint64_t, size_t> save_leads;                // who has opened it
  std::pair<Version, Lineage> durable{kNoVersion, {}};  // newest save
  std::map<uint64_t, SaveRecord> folder;                // what was published
  Lineage branch;                                       // of the newest restart from a save; empty: none yet

  // What happened, for the checks.
  bool job_is_told = false;  // to stop: what is wanted after that is to save, and to end
  std::map<Generation, View> views_stored;
  std::map<Generation, View> views_installed;  // members were told to
  std::map<Generation, View> views_entered;
  std::set<MemberId> proven_dead;  // the leader was told
  std::set<MemberId> expelled;     // for a state unlike the others'
  SilenceCheck silence;
  Version committed = kNoVersion;  // complete on every member of a view
  Version newest_reached = kNoVersion;
  bool notices_given = false;
  bool group_faults = false;  // data-plane errors, or the store's end: whoever is named may be excluded
  bool nodes_lost = false;
  bool processes_lost = false;
  bool everybody_lost_alone = false;  // that is all that happened, and enough had come
  bool corrupted = false;  // memory that flipped: states are held against each other then, not against truth
  bool corruption_wanted = false;
  bool store_emptied = false;
  Version restored_at = kNoVersion;
  bool duplicates = false;  // this schedule's links deliver some messages twice
  Instant quiet_at = 0;     // no fault reaches beyond
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
  void half_open(size_t agent, Duration for_long);
  Lead& newest() { return *leads.back(); }
  const Lead& newest() const { return *leads.back(); }
  void leader_event(size_t which, Action action);  // now, or when it thaws; void when it leads no more
  void agent_event(size_t agent, Action action);
  void leader_does(size_t which, const control::Actions& actions);
  // `own`: by its own clock, asked by nobody.
  void agent_does(size_t agent, const control::Actions& actions, bool own = false);
  Instant leader_now(size_t which) const { return now + leads[which]->clock; }
  Instant agent_now(const Agent& agent) const { return now + agent.clock; }
  bool arrives(size_t which, size_t agent, uint64_t link, const Message& message);
  void deliver_up(size_t which, size_t agent, const Envelope& envelope);
  void answer_store(size_t which, const StoreView& request, bool written);
  void store_view(size_t which, const StoreView& store_view);
  void up(size_t agent, Envelope envelope);
  void down(NodeId node, Envelope envelope);
  void schedule_leader(size_t which);
  void schedule_agent(size_t agent);
  void spawn(size_t agent, uint32_t local_rank);
  void kill_process(MemberId id, int code);
  void kill_agent(size_t agent, bool silently);
  void to_worker(size_t agent, const Envelope& envelope);
  Agent* agent_of(NodeId node);

  // ---- leaders that change (leaders.cpp)
  void look(size_t agent);
  void looked(size_t agent, const Look& found, Instant asked_at);
  void connect_to(size_t agent, size_t which);
  void connect_embedded(size_t agent);
  void refused(size_t agent);
  void prepare_store(size_t agent, const StoreOffer& offer);
  void hold_store(size_t agent, const HoldStore& hold);
  void follow_leader(size_t agent, const StoreMoved& to);
  void check_store_given(size_t which, const StoreMoved& to);
  void lead(size_t agent, const Look& found, Instant asked_at);
  void renew(size_t which);
  void knock(size_t which, int knocks);
  HostAnswer host_answer(NodeId node);
  void ask_hosts(size_t which);
  bool was_refused(size_t which, NodeId node, Duration for_long) const;
  bool store_fails() const { return options.faults && !loses_only_everybody(); }
  bool lease_over(size_t which);
  bool anybody_of_the_run() const;
  // Others may have its term, in a store that was emptied since, or in another.
  bool leads_store(const Lead& lead) const {
    return lead.term == store_term && lead.incarnation == incarnation;
  }
  void stop_leading(size_t which, const std::string& why, bool silently);
  bool record_end(size_t which, const EndJob& end);

  // ---- stores that come back empty (empty_stores.cpp)
  void empty_store();
  void another_run_begins(uint64_t nodes);
  void store_may_come_back();
  void begin_again();
  void check_run(const Process& process, const View& view);

  // ---- the store's node is lost (rescue.cpp)
  void lose_store_node(bool silently);
  void see_to_rescue(size_t agent);
  void rescue_next(size_t agent);
  void rescue_collect(size_t agent);
  void rescue_end(size_t agent);
  void rescue_link(size_t from, size_t to, bool upward, uint64_t turn, Envelope envelope);
  void rescue_from_peer(size_t agent, size_t peer, uint64_t turn, const Envelope& envelope);
  void rescue_from_uplink(size_t agent, uint64_t turn, const Envelope& envelope);
  void rescue_from_member(size_t agent, const Envelope& envelope);
  void rescue_member_gone(size_t agent, MemberId id);
  void rescue_peer_lost(size_t agent, size_t peer, uint64_t turn);
  void rescue_reset(size_t agent);
  void rescue_does(size_t agent, const control::Actions& actions);
  void rescue_over(size_t agent, const RescueOver& over);
  void schedule_rescue(size_t agent);
  size_t index_of(NodeId node) const;

  // ---- processes (process.cpp)
  void process_does(MemberId id, const MemberActions& actions);
  void event_for(MemberId id, Action action);  // now, or when it thaws; void when it is dead
  Instant process_now(const Process& process) const { return now + process.clock; }
  Instant data_cut_until(const Group& group) const;
  void group_fails(Generation generation, const std::string& why);
  void after_for(MemberId id, Duration delay, Action action) {
    after(delay, [this, id, action = std::move(action)] { event_for(id, action); });
  }
  void say(MemberId id, Message message);
  void schedule_process(MemberId id);
  void heartbeat(MemberId id);
  void drive(MemberId id);
  void drive_learner(Process& process);
  void end_former_step(Process& process);
  void compute(Process& process);
  void contribute(Process& process, Generation generation, Version version);
  void try_update(Process& process);
  void finish_update(Process& process, const Process::Ready& ready);
  void begin_install(Process& process);
  void leave(Process& process, int code, const std::string& why);
  void compute_digest(Process& process, const ComputeDigest& asked);
  void corrupt_before_digest(Process& process);
  int64_t disk_slowness() const;
  void form_group(Process& process, const Install& install);
  void member_formed(Process& process, Generation generation);
  void state_stands(Process& process, Generation generation);
  void take_gradient(Process& process, Generation generation, const std::vector<MemberId>& sources,
                     Duration slowness);
  void enter_view(Process& process, const EnterView& enter);
  void restore(Process& process, Generation generation);
  void revoke(Process& process, const RevokeGroup& revoke);

  // ---- nodes that fail again and again (flaky_nodes.cpp)
  void fail_again_and_again();
  void next_failure(size_t agent, uint64_t left);
  void note_quarantine(size_t which, const muster::Event& event);
  void check_taught(size_t which, MemberId learner);
  void check_first_view(size_t which, const View& next);
  void check_healed(size_t which, NodeId node, Instant until, Version before);
  Version newest_of(const View& view) const;  // that a member holds
  size_t nodes_alive_beside(const View& view, NodeId node) const;

  // ---- lanes (lanes.cpp)
  void choose_lanes();
  void take_lanes(Process& process, const View& view);
  void compute_microbatches(const Process& process, Group::Reduction& reduction) const;
  void check_microbatches(const Group::Reduction& reduction, Version version);

  // ---- shards (shards.cpp)
  void update_shards(Process& process, const Process::Ready& ready);
  void restore_shards(Process& process, Version version);
  void take_shards(Process& process, Generation generation);
  void install_shards(Process& process);
  std::vector<ShardDigest> shard_digests(const Process& process, const ComputeDigest& asked,
                                         bool clean) const;
  bool write_shards(const SaveOpen& save, MemberId id, const Process::SaveCopy& copy);
  void flip_shard(Process& process);
  void check_shards(const Process& process, const std::vector<uint32_t>& shards, const std::string& how);
  void check_view_shards(const View& view);
  using Holders = std::vector<const Process*>;
  bool hold_all_shards(const Holders& holders, const Holders& one_behind, Version version) const;
  void check_copies(const View& view, Version committed_there);

  void forward(Process& process, const Message& message);
  void copy_for_learner(uint64_t lesson);
  void write_part(Process& process, const SaveOpen& save);
  std::optional<Process::SaveCopy> own_save(const Process& process, const SaveOpen& drain) const;
  void rewrite_part(Process& process, const SaveRewrite& wanted);
  std::optional<std::pair<Process::SaveCopy, Generation>> held_for(const Process& process,
                                                                   const SaveRewrite& wanted) const;
  void publish(Process& process, uint64_t save);
  void save_if_due(Process& process);
  void save_if_due(Process& process, Tier tier, bool due);
  bool is_paced(Tier tier) const { return paced && (tier == Tier::kShared || saves_locally); }
  void reached(Process& process);  // a version: saves, progress
  bool group_alive(const Group& group) const;

  // ---- faults (faults.cpp)
  void plan_faults();
  void fault();
  void another_loss_soon(const View& view);
  void one_death_after_another();
  void drain_store_node();
  bool loses_only_everybody() const { return loses_everybody && options.seed % 2 == 0; }
  void lose_everybody();
  void fault_at_move(const StoreMoved& to);
  MemberId some_process(bool in_view);
  void freeze(MemberId id, Duration for_long);
  void freeze_agent(size_t agent, Duration for_long);
  void freeze_leader(Duration for_long);
  void suspend_node(size_t agent, Duration for_long);
  void partition(Duration for_long, bool one_way);
  void notice_on(size_t agent, Scope scope);
  void note_too_few_stay();
  void network_fault(uint64_t kind);
  void host_fault(uint64_t kind);
  void lasts(Duration for_long) { quiet_at = std::max(quiet_at, now + for_long); }

  // ---- invariants (checks.cpp)
  void check_permit(const Process& process, Generation generation, Version version, bool learner);
  bool is_saved(const Process& process) const;
  void check_finished(const Lead& lead, const EndJob& end);
  void check_base_digest(const Process& process, const BaseDigest& base);
  void check_report(const Process& process, const Report& report);
  void check_enter(const Process& process, const View& view, bool planned);
  void check_lag(Process& process, uint64_t lesson);
  void check_store(size_t which, const View& next);
  void check_taken_over(size_t which, const View& next);
  void check_learn(const Learn& learn);
  void check_reduction(const Group& group, Version version);
  void check_boundary(const Process& process, Generation generation, Version version, uint64_t plan,
                      bool due);
  void check_version(const Process& process);
  void check_publish(const SaveRecord& save);
  bool goes_on(const SaveRecord& save) const;
  void check_resume(Version version, const Lineage& lineage);
  void check_signal(const Process& process, int signal, bool own);
  void check_leave(const Process& process, int code);
  void check_start_again(const Process& process, const View& view);
  void note_wrong_state(const muster::Event& loss);
  void check_reason(const std::string& who, const control::Action& action);
  void check_save_closed(const Lead& lead, const SaveClosed& closed, bool with_eviction);
  void check_rescue(size_t collector, const RescueOver& over);
  void check_rescue_report(const Process& process, const RescueReport& report);
  void check_saved_before_end(const Agent& agent);
  void check_end();
  void note_commit(const Process& process);
};

}  // namespace muster::sim
