// The leader's state, shared by the files that implement Coordinator; nobody else includes it.
//
// The flow: receive() and tick() record what is new, then settle() draws the consequences once, so that
// losses that arrive together make one view. What each file does:
//   forming      nodes and members come; the first view
//   takeover     a new leader, from the store's view to the next; resigning
//   move         the embedded store leaves its node before that is drained
//   loss         who is lost, and why; evictions
//   view_change  agree → store → install → go
//   plans        boundaries: joins and drains without a revocation
//   shards       who holds which part of a state that is not whole on every member
//   lessons      learners
//   saves        periodic saves, votes, publishing
//   stop         notices, the stop-save
//   end          leaving, the job's end
#pragma once

#include <deque>
#include <set>
#include <unordered_map>
#include <utility>

#include "runtime/control/coordinator.h"
#include "runtime/control/notice_plan.h"
#include "runtime/control/save_interval.h"
#include "runtime/control/save_rewrite.h"

namespace muster::control {

enum class Phase { kForming, kAgreeing, kStoring, kInstalling, kRunning, kEnded };

struct NodeRecord {
  NodeId id = 0;
  std::string name;
  uint32_t workers = 0;
  uint64_t order = 0;             // of joining: the topology order of ranks
  std::vector<MemberId> members;  // living
  uint32_t of_view = 0;           // of them, members of the view
  uint32_t drained = 0;           // of these, told to leave
  bool connected = false;
  bool draining = false;
  bool was_in_view = false;
  std::string rescue_host;
  uint32_t rescue_port = 0;
  Instant heard_at = 0;
  Instant silent_since = kNever;
  Instant refused_since = kNever;          // its host says that its agent is no more
  Instant hello_at = 0;                    // of its newest member: the others of its batch are waited for
  std::map<uint32_t, int> given_up;        // slot → the program's exit code
  std::map<uint32_t, int> ended;           // slot → exit code of an orderly end
  Version newest_local_save = kNoVersion;  // as newest_save and newest_durable, of its own folder
  Version newest_local_durable = kNoVersion;
  uint64_t local_save = 0;  // that is open, or was the newest
};

struct MemberRecord {
  Member member;
  Version version = kNoVersion;  // newest reported progress
  Generation progressed_in;      // view in which the program's thread was last heard of
  std::optional<int> leaving;    // the exit code
  std::string leaving_why;
  bool draining = false;
  uint32_t lessons_failed = 0;  // twice in a row each
  bool from_store = false;      // known from the view that a new leader found; it has not spoken yet
};

struct Change {
  bool planned = false;  // from a boundary: nothing was revoked
  std::string why;
  uint32_t asked = 0;    // attempt of Agree
  uint32_t attempt = 0;  // of StoreView, then of Install
  uint32_t store_tries = 0;
  Instant began = 0;
  Instant agreeing_since = 0;  // from here on hosts are asked who they still have
  std::map<MemberId, Report> reports;
  size_t awaited_from = 0;           // no member of the view below this rank is awaited; 0: not looked
  std::set<MemberId> knows_view;     // of the next view's: what they are told is the difference from this one
  std::map<NodeId, Instant> mute;    // heard, but none of its members reports: the way there may be cut
  Instant heard_again = kNever;      // newest return of a node that gave no answer
  std::set<NodeId> silent_excluded;  // unproven: rule 11 bounds their sum over the rounds of one change
  View next;
  std::vector<Transfer> transfers;
  std::vector<ShardMove> moves;
  std::set<MemberId> holders;  // of the next view's base, before anything is sent
  std::set<MemberId> ready;
  std::set<MemberId> sent_while_all_wait;  // learners that could not keep up (rule 17)
};

struct Boundary {
  uint64_t plan = 0;
  Version version = 0;
  MemberId first = 0;
  std::set<MemberId> arrived;
  bool learners_cut = false;  // the deadline passed for learners
  Instant deadline = 0;
};

struct Lesson {
  uint64_t id = 0;
  MemberId learner = 0;
  MemberId source = 0;
  uint32_t tries = 1;
  bool level = false;
  bool held = false;             // LearnUntil was sent
  bool arrived = false;          // it stands at the boundary
  Instant computed_at = kNever;  // its program's newest update; kNever: none
  Instant deadline = 0;
};

// A part of a save whose writer, or its vote, is lost: who is to write it instead.
struct Orphan {
  MemberId writer = 0;  // 0: nobody yet
  std::set<MemberId> asked;
};

struct Save {
  uint64_t id = 0;
  Tier tier = Tier::kShared;
  NodeId node = 0;  // whose, where it is local
  Version version = 0;
  std::vector<MemberId> participants;
  std::vector<uint32_t> writers;                 // by shard: a part
  std::unordered_map<MemberId, uint32_t> parts;  // of each of them
  std::optional<Rewriters> rewriters;            // as of the view `rewriters_in`
  Generation rewriters_in;
  std::map<MemberId, ByteBuffer> records;
  std::map<uint32_t, Orphan> orphans;  // by part
  std::set<uint32_t> unassigned;       // of these, those that nobody is asked for now
  bool stop = false;
  bool drain = false;           // read from what nodes have saved for themselves
  bool base_confirmed = false;  // the participants' states were compared; no manifest before that
  Generation in;                // the view in which it was opened
  Generation compared_in;       // the view whose base is to be confirmed for that
  bool all_voted = false;
  MemberId publisher = 0;
  uint64_t bytes = 0;
  Duration stalled = 0;         // the longest of the votes
  Duration held_back = kNever;  // the shortest
  Instant hurried_at = 0;       // 0: not
  Instant opened_at = 0;
  Instant deadline = 0;
};

struct Stop {
  enum Step { kWanted, kAsking, kSaving } step = kWanted;
  int exit_code = kExitRequeue;
  std::string why;
  Instant notice_deadline = kNever;
  bool deadline_missed = false;
  uint32_t attempt = 0;
  std::map<MemberId, Report> reports;
  bool any_is_torn = false;
  uint32_t tries = 0;
  std::optional<Version> only_finish;  // the save in flight, where it is all that fits (notice_plan.h)
};

// The embedded store is about to leave with its node. An offer ends with the view that it tells.
struct StoreMove {
  NodeId to = 0;
  uint64_t term = 0;
  uint32_t port = 0;  // where it will lead; 0: it has not answered
  Instant deadline = 0;
};

// When a tier saves, where that is left to the leader.
struct TierPace {
  SavePace measured;
  bool wanted = false;         // by a member
  SaveSchedules told = {};     // as the members have been
  bool rests_on_cost = false;  // the newest of them, on what saves have cost
};

// Shared saves whose bytes come from the nodes' own saves.
struct SaveDrains {
  bool wanted = false;                // by a member
  std::map<Version, size_t> saved;    // in this view: by so many nodes, not yet by all
  Version on_all_nodes = kNoVersion;  // in this view: the newest that each of them has saved
  Version apart = 0;                  // the newest of these and the one before; 0: there was none
  std::optional<Version> due;         // put off: the first of these that is as new is drained
  bool failed = false;                // the newest one
};

struct Coordinator::State {
  explicit State(const Limits& given)
      : limits(given),
        quarantine(given.quarantine),
        stragglers(given.stragglers),
        shared_pace{SavePace(seconds(given.node_mtbf), Tier::kShared)},
        local_pace{SavePace(seconds(given.node_mtbf), Tier::kLocal)} {}

  Limits limits;
  std::string job;
  uint64_t incarnation = 0;
  uint64_t term = 0;
  Instant recover_until = kNever;    // a view was found in the store, and its nodes are waited for
  NodeId former_leader = 0;          // its node; 0: not known
  Instant former_heard_at = kNever;  // by this leader's node; kNever: not known
  bool former_unanswered = false;    // its host does not answer who connects to it
  bool resigned = false;
  std::optional<StoreMove> store_move;
  uint64_t offered_term = 1;       // the highest
  std::set<NodeId> without_store;  // nodes that cannot hold it, or have not answered
  std::string store_notice;        // to its node
  Instant store_noticed_at = kNever;
  Instant store_deadline = kNever;    // of the notices to its node, the nearest
  std::optional<StoreMoved> gave_to;  // the store, for good

  Instant now = 0;
  Actions out;

  Phase phase = Phase::kForming;
  Instant finish_deadline = kNever;
  Instant phase_deadline = kNever;
  Instant form_at = kNever;  // MIN nodes are complete: the first view is installed then
  Instant heartbeat_at = 0;
  uint32_t attempts = 0;  // of anything, never reused
  uint64_t nonces = 0;
  uint64_t nodes_ever = 0;

  std::map<NodeId, NodeRecord> nodes;
  std::set<NodeId> complete;                 // connected, not draining, with all workers
  std::vector<NodeId> told_neighbours;       // the list that every node has
  mutable std::optional<Instant> nodes_due;  // the next moment that a node's record asks for, or earlier
  std::map<MemberId, MemberRecord> members;  // processes that said hello and are not lost
  std::set<MemberId> excluded;               // processes that may never speak again
  std::map<MemberId, NodeId> doomed;         // excluded, not yet known to be reaped
  std::optional<Digest> fingerprint;
  std::string fingerprint_words;

  View view;  // newest view that members were told to install; changed by adopt() alone
  // What is asked of it for each message, in a world of many ranks.
  std::unordered_map<MemberId, uint32_t> ranks;
  std::unordered_map<NodeId, uint32_t> first_ranks;
  size_t living = 0;             // of its members
  size_t living_nodes = 0;       // that have one of these
  size_t holding_nodes = 0;      // that keep one when those have left who were told to
  size_t drained_members = 0;    // of the living ones, told to leave, or their node was
  size_t past_base = 0;          // of them, those that have made a step in it
  std::set<MemberId> have_left;  // of them, those that have said Leaving
  std::set<MemberId> outsiders;  // living, and not in it
  Generation stored;             // generation in the store
  Change change;
  std::set<MemberId> started;
  Digest start_state;                       // what the first of them started with
  std::set<MemberId> vouchers;              // held the view's base before it, compared with each other's
  std::map<MemberId, Digest> base_digests;  // as said in this view
  Sharding sharding;
  StateSize state_size;  // the same of all members; 0 until one has said it
  std::map<uint32_t, std::map<MemberId, Digest>> shard_digests;  // likewise
  uint32_t failed_moves = 0;                                     // in a row
  Instant move_not_before = 0;                                   // after them
  Instant running_since = 0;                                     // of the view
  std::optional<bool> shards_at_rest;                            // in this view; not looked at yet
  bool base_confirmed = false;
  bool losses_pending = false;
  std::string loss_why;
  std::vector<std::pair<MemberId, int>> program_failures;  // of members of this view
  std::string program_failure_why;                         // as the first of them that said why put it
  bool committed = false;                                  // a step, in this view (rule 18)
  Instant progress_at = 0;
  uint32_t hangs = 0;
  uint32_t group_failures = 0;  // in a row, without a step
  Instant suspect_at = kNever;
  std::map<MemberId, std::set<MemberId>> suspects;  // suspected member → who said so
  std::string suspect_why;
  Instant leave_deadline = kNever;

  uint64_t plan_number = 0;
  bool plan_pending = false;  // plan_number is out, its boundary not yet reached
  std::optional<Boundary> boundary;
  uint64_t proceeded_plan = 0;  // whose boundary changed no view, the newest
  Instant settle_notices_at = kNever;
  Instant drain_deadline = kNever;  // the nearest of the notices to nodes and ranks of the view
  bool drain_told = false;          // the plan for it
  bool hands_over = false;          // those who stay are too few to go on, and save when the others have left

  std::map<MemberId, Lesson> lessons;  // by learner
  std::map<MemberId, Instant> learn_not_before;
  std::set<MemberId> cannot_keep_up;  // learners: at the next boundary the others wait for them once

  Quarantine quarantine;
  Stragglers stragglers;
  std::set<MemberId> slow;                                            // stragglers that are to be replaced
  std::map<std::pair<std::string, uint32_t>, uint32_t> replacements;  // of slow ones: node's name, slot

  std::map<uint64_t, Save> saves;
  size_t shared_saves = 0;                   // of them
  mutable std::optional<Instant> saves_due;  // the earliest of their deadlines, or earlier
  Version newest_durable = kNoVersion;
  Version newest_save = kNoVersion;        // in this view: those who share a version anew may save it anew
  std::optional<Version> last_save_waits;  // the run's last save, until the one before it is closed
  SaveSpeed save_speed;                    // as it is without a limit of the members'
  bool saves_are_held_back = false;        // there is one
  bool orphans_pending = false;            // parts of saves that nobody has been asked for yet
  TierPace shared_pace, local_pace;
  SaveDrains save_drains;
  std::set<NodeId> hit;      // nodes with a loss since the view began
  uint64_t state_bytes = 0;  // of the newest durable save

  std::optional<Stop> stop;
  struct JobNotice {
    NodeId from = 0;
    NoticeRaised message;
    Instant at = 0;
  };
  std::deque<JobNotice> job_notices;  // for the others, should the last step be done before the stop
  int exit_code = 0;
  std::string end_why;
  bool finished = false;

  // ---- speaking
  Actions take() { return std::exchange(out, {}); }
  void to_node(NodeId node, Message message);
  void to_member(MemberId id, Message message);
  void to_each(const std::vector<MemberId>& ids, Message message);  // one message to a node
  void to_view(Message message);                                    // all living members of `view`
  Event& say(EventKind kind, std::string text);
  std::string named(MemberId id) const;  // "rank 3 on node b"
  uint64_t nonce();

  // ---- asking
  bool in_view(MemberId id) const { return ranks.contains(id); }
  std::optional<uint32_t> rank_of(MemberId id) const;
  bool lives(MemberId id) const { return members.contains(id); }
  std::vector<MemberId> living_of(const View& of) const;
  std::vector<std::pair<MemberId, Report>> reports_of_living() const;  // those that were given
  std::vector<MemberId> living_on_node(NodeId node) const;             // of the view
  bool node_silent(NodeId id) const;
  bool of_view(NodeId node) const { return first_ranks.contains(node); }
  std::vector<const NodeRecord*> complete_nodes() const;
  bool held_in_quarantine(const NodeRecord& node) const;
  uint32_t nodes_able() const;  // nodes that count toward MIN
  bool enough_nodes_able() const;
  uint32_t nodes_to_come() const;  // with those whose workers are still starting
  static bool is_hopeless(const NodeRecord& node);
  bool is_able(const NodeRecord& node) const;
  bool node_complete(const NodeRecord& node) const;
  bool drains(MemberId id) const;  // it, or its node, was told to leave

  // ---- what is kept beside nodes, members and view
  View adopt(View next);  // returns the view before
  MemberRecord& seat(const Member& member);
  void unseat(MemberId id);
  void note_node(NodeRecord& node);  // after a change to its members, or what makes it complete, or due
  void count_node(NodeRecord& node);
  void note_due(const NodeRecord& node);  // after a change to what makes it due
  Instant due_of(const NodeRecord& node) const;
  void note_version(MemberRecord& record, Version version);

  // ---- forming
  void on(NodeId from, MemberId, const NodeHello& hello);
  void on(NodeId from, MemberId id, const MemberHello& hello);
  std::string refusal(const NodeHello& hello) const;
  bool admit(NodeId from, MemberId id, const MemberHello& hello);
  void tell_neighbours(NodeId newcomer);
  bool neighbours_stand() const;
  bool choose_neighbours();
  void settle_forming();
  void form_first_view();
  void reform();

  // ---- takeover
  void take_over(Takeover found);
  void found_member_speaks(MemberId id, const MemberHello& hello);
  bool is_leftover(const MemberHello& hello) const;
  bool waits_for_nodes() const;
  bool newcomers_may_suffice() const;
  bool former_is_gone() const;
  bool needs_former_leader() const;
  void resign(const std::string& why);

  // ---- move
  void on(NodeId from, MemberId, const StoreAnswer& answer);
  bool holds_store(NodeId node) const {
    return limits.embedded_store && node != 0 && node == limits.own_node;
  }
  bool store_leaves() const;
  bool store_can_leave(NodeRecord& node, Instant deadline);
  Instant move_until(Instant deadline, Instant noticed_at) const;
  bool others_drain() const;
  std::vector<StoreCandidate> store_candidates() const;
  const char* why_no_store(const NodeRecord& node) const;
  bool some_are_elsewhere() const;
  void settle_move();
  void offer_store();
  void store_refused(const std::string& why);
  bool move_is_ready() const;
  void give_store();
  void stop_for_store(const std::string& why);
  Actions answer_former(NodeId from, const Envelope& envelope) const;

  // ---- loss
  void on(NodeId from, MemberId, const MemberGone& gone);
  void on(NodeId from, MemberId, const NodeReady& ready);
  void on(NodeId from, MemberId id, const Suspect& suspect);
  void lose_member(MemberId id, const std::string& why, bool reaped);
  void lose_node(NodeId id, const std::string& why);
  void note_loss_on(NodeId node);
  void node_fell_silent(NodeRecord& node, const std::string& why);
  void node_heard(NodeRecord& node);
  void note_return(NodeId node);
  void on_host_answer(NodeId id, HostAnswer answer);
  bool is_refused(NodeId id) const;
  bool is_proven_dead(NodeId id) const;
  bool is_given_up(NodeId id) const;
  bool is_base_as_new() const;
  Instant returns_until() const;
  void ask_again(NodeId node);
  void resume_node(const NodeRecord& node);
  void slot_given_up(NodeRecord& node, const MemberGone& gone);
  void send_eviction(NodeId node);
  void settle_losses();
  void check_suspects();
  void check_progress();
  void evict_members(const std::vector<MemberId>& ids, const std::string& why);
  void ask_to_kill(const std::vector<MemberId>& ids);
  bool too_many_unproven(const std::vector<MemberId>& ids) const;
  bool unheard(NodeId id) const { return node_silent(id) || change.mute.contains(id); }

  // ---- view change
  void begin_view_change(const std::string& why);
  void on(NodeId from, MemberId id, const Report& report);
  void on(NodeId from, MemberId id, const Ready& ready);
  void on(NodeId from, MemberId id, const Started& started);
  void on(NodeId from, MemberId id, const BaseDigest& digest);
  void check_base();
  std::string sides_of_base() const;
  void confirm_base();
  void confirm_saves();
  std::vector<MemberId> awaited_reports() const;
  bool none_is_awaited();
  bool next_is_intact() const;
  void check_agreement();
  struct Silence {
    std::set<NodeId> nodes;
    std::set<NodeId> unproven;
    size_t about_to_be_proven = 0;  // of these
    Duration lasts = INT64_MAX;     // the shortest of the others
  };
  Silence silence_in_view() const;
  LossDecision decide_silence(const Silence& silence) const;
  bool exclude_silent_nodes();
  void no_member_left();
  BaseDecision base_of(const std::vector<std::pair<MemberId, Report>>& reports) const;
  void conclude_agreement();
  void sort_by_rank(std::vector<Member>& next) const;
  void plan_next(std::vector<Member> next_members, Version base);
  void leave_out_uncompared(BaseDecision& decision) const;
  void add_transfers(const BaseDecision& decision);
  void store_next();
  void next_is_stored();
  void install();
  void tell_view(const View& old);
  std::optional<Install> difference_from(const View& old, const Install& whole) const;
  Duration ready_timeout() const;
  bool reaped_where_needed() const;
  void check_installed();
  void go();
  void agreement_overdue();
  void installation_overdue();

  // ---- plans
  void on(NodeId from, MemberId id, const AtBoundary& at);
  void on(NodeId from, MemberId id, const Progress& progress);
  void want_plan(const std::string& why);
  void check_boundary();
  struct Turnover {
    std::vector<Member> next;     // who stays, and who comes
    std::vector<Member> leavers;  // drained, or slow
    size_t joined = 0;
    std::vector<MemberId> cannot_keep_up;  // of those who come
  };
  Turnover turnover() const;
  std::set<MemberId> keep_lonely_holders(Turnover& turnover, const Holdings& held) const;
  void finish_boundary();
  void boundary_overdue();
  bool drains_wanted() const;
  void settle_drains();
  bool drain_leaves_enough() const;
  void stop_after_drain();
  void end_drained();
  void note_stragglers(MemberId id, const Progress& progress);
  void settle_slow();
  std::set<MemberId> slow_leavers() const;
  bool awaits_vote(MemberId id) const;
  void evict_replaced();
  void send_while_all_wait(const std::vector<MemberId>& learners);

  // ---- shards
  std::string note_sharding(const Sharding& said);
  Holdings held_in_view() const;
  std::set<MemberId> leaving_members() const;
  void mend_shards();
  void moves_failed();
  void on_shard_digests(MemberId id, const std::vector<ShardDigest>& digests);
  BaseVerdict judge_shards() const;
  std::vector<uint32_t> shard_writers(const std::unordered_map<MemberId, uint32_t>& parts) const;

  // ---- lessons
  void on(NodeId from, MemberId id, const Level& level);
  void on(NodeId from, MemberId id, const LearnFailed& failed);
  void start_lessons();
  std::vector<MemberId> learners_due() const;
  void teach(MemberId learner, uint32_t tries, MemberId before = 0);
  MemberId source_for(MemberId learner, MemberId before) const;
  void fail_lesson(MemberId learner, const std::string& why, bool lags);
  void cancel_lessons(const std::string& why);
  void lesson_member_lost(MemberId id);
  void settle_lessons();
  void hold_learners();
  std::vector<MemberId> laggards_due() const;
  void lesson_overdue(MemberId id);

  // ---- saves
  void on(NodeId from, MemberId id, const SaveDue& due);
  void on(NodeId from, MemberId id, const SaveVote& vote);
  void on(NodeId from, MemberId id, const SavePublished& published);
  void local_save_due(MemberId id, const SaveDue& due);
  const char* why_no_save_now(bool one_is_open) const;
  void skip_save(const Save& due, const std::string& why);
  bool put_off(Version version);
  void note_local_save(const Save& save);
  void open_drain();
  void give_up_drain(const std::string& why);
  void open_save(Version version, bool for_stop);
  SaveOpen open_save(Save save, const std::string& what);
  void say_of(const Save& save, EventKind kind, std::string text, int64_t amount = 0);
  bool shared_save_open() const { return shared_saves > 0; }
  void save_member_lost(MemberId id);
  void check_votes(Save& save);
  void compare_saves_again();
  void on_rewritten(Save& save, MemberId id, const SaveVote& vote);
  bool rewritten_part_counts(Save& save, const SaveVote& vote);
  void orphan_part(Save& save, MemberId participant);
  void settle_orphans();
  bool find_rewriters(Save& save);
  Rewriters rewriters_for(const Save& save) const;
  std::vector<MemberId> holders_of(const std::vector<uint32_t>& shards) const;
  void publish(Save& save);
  void close_save(uint64_t id, bool durable, const std::string& why);
  void saves_overdue();
  void hurry_saves();
  TierPace& pace_of(Tier tier) { return tier == Tier::kShared ? shared_pace : local_pace; }
  void note_wishes(const MemberHello& hello);
  bool covered_by_own_saves(NodeId node) const;
  void begin_pace();
  void pace_saves(Version version);
  void pace_saves(Tier tier, Version version);
  void save_messages_lost(const NodeRecord& node);
  void fail_unvoted_saves(const std::string& why, std::optional<Tier> tier = {});  // of one tier, or all

  // ---- stop
  void on(NodeId from, MemberId, const NoticeRaised& notice);
  void pass_on(NodeId from, NoticeRaised notice, Duration ago);
  void want_stop(int code, const std::string& why, Instant notice_deadline);
  void settle_stop();
  void ask_for_stop_version();
  void check_stop_reports();
  void stop_answers_overdue();
  void stop_save_closed(bool durable, const std::string& why);
  void abandon_stop_save();
  void check_notice_deadline();
  NoticePlan plan_until(Instant notice_deadline, uint32_t nodes_staying, uint32_t nodes_holding,
                        bool with_drain = true) const;
  NoticePlan plan_of_stop(Instant notice_deadline);
  void say_plan(const NoticePlan& plan);
  bool save_in_flight() const;
  bool finishes_drain() const;

  // ---- end
  void on(NodeId from, MemberId id, const Leaving& leaving);
  void check_leaving();
  void leavers_overdue();
  void end_job(int code, const std::string& why);
  void settle_end();

  void on(NodeId, MemberId, const Heartbeat&) {}
  template <typename Other>
  void on(NodeId, MemberId, const Other&) {}  // a message for another role

  void advance_to(Instant at);
  void forgive(Duration absence);
  void settle();
  void tick();
  Instant next_deadline() const;
};

}  // namespace muster::control
