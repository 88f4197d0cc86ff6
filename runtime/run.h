// The training loop: one Run takes a State from its starting version to the last, through any number of
// views.
//
// Three parties meet here, under one lock:
//  - the program's thread, in next(), accumulate(), reduce(), open_update(), close_update();
//  - the control connection, whose messages go through MemberCore (on_message);
//  - background threads: forming views, digests, saving, teaching.
// What may block holds no lock. The program's thread is the only one that writes the state, and only in
// next() (installing what was received and verified) or between open_update() and close_update().
//
// INVARIANTS
//  - An update is applied only under a permit (PROTOCOL 1), and only with gradients of the step's own
//  reduction. The first one in a view waits until all members' states are known to be equal (PROTOCOL 5).
//  - Staged state is installed by the program's thread, after its digest matched (PROTOCOL 4).
//  - Every wait of the program's thread ends by a result, a new view, the end of the run, or a deadline.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "collectives/group.h"
#include "collectives/lane_tree.h"
#include "collectives/reducer.h"
#include "runtime/base/large_buffer.h"
#include "runtime/comparison.h"
#include "runtime/control/member.h"
#include "runtime/device.h"
#include "runtime/device_group.h"
#include "runtime/error_feedback.h"
#include "runtime/executor.h"
#include "runtime/gradients.h"
#include "runtime/lane_values.h"
#include "runtime/lesson.h"
#include "runtime/permutation.h"
#include "runtime/restore_choice.h"
#include "runtime/session.h"
#include "runtime/shard_gather.h"
#include "runtime/state.h"
#include "runtime/state_transfer.h"
#include "runtime/step_clock.h"
#include "runtime/tiers.h"

namespace muster {

struct TrainOptions {
  int64_t steps = 0;
  int32_t microbatches = 1;
  int32_t lanes = 1;
  int64_t samples_per_microbatch = 1;
  int64_t dataset_samples = 1;
  uint64_t seed = 0;
  std::optional<codec::CodecId> codec;  // of the reductions; none: float32
  uint64_t error_feedback = 0;          // elements of all gradients, whose residuals are kept; 0: none are
  int64_t shard_copies = 2;             // of each shard of sharded tensors, where there are as many members
  SaveOptions save;
  LocalSaveOptions local;
  LessonLimits lessons;
  Duration step_timeout = 600 * kSecond;
  Memory gradient_memory = Memory::kHost;
  bool nccl = false;       // reduces gradients, where they are a device's
  void* stream = nullptr;  // on which the program computes, where a device is used
  OnDifference on_difference = OnDifference::kTell;
  uint64_t bucket_bytes = kDefaultBucketBytes;  // of gradients that are reduced together
  static constexpr uint64_t kDefaultBucketBytes = 8 << 20;
};

struct Microbatch {
  int32_t index = 0;
  int32_t lane = 0;
  int64_t position = 0;
  const std::vector<int64_t>* samples = nullptr;
  uint64_t random_key = 0;
};

struct RunInfo {
  int64_t version = -1;
  int64_t committed = 0;
  int64_t durable = -1;
  uint64_t generation = 0;
  int32_t rank = -1;  // in no view yet, or never: a learner, or a process that came when the job was over
  int32_t world_size = 0;
  int32_t node_count = 0;
  bool learner = false;
  Duration save_stall = 0;
};

class Run final : private Session::Listener {
 public:
  // Seals the state and announces this process. Errors: kMisuse for options that cannot hold; kEnvironment
  // where memory of a device is named and there is none.
  static Result<std::unique_ptr<Run>> start(Session& session, State& state, TrainOptions options);
  Session& session() { return session_; }
  ~Run() override;

  // Results that differ where this process would compute gradients otherwise; before the first next().
  Status probe(ByteSpan results) { return comparison_.tell(results); }

  // True: a step is at hand, described by step_version(). False: the loop is over, see exit_code().
  Result<bool> next();
  int64_t step_version() const { return step_version_; }
  // What this process holds of a sharded tensor and has to write, by ascending rows. Valid until the update
  // closes. Errors: kMisuse: no sharded tensor has the name; no update is open.
  Result<std::vector<ShardPiece>> pieces(const std::string& name) const;

  // The step's next microbatch of this rank; nullopt when there is none, the view is revoked, or this is a
  // learner.
  std::optional<Microbatch> next_microbatch();

  // kReconfigure: the view changed; go on with next(). kEnded: the device failed, and the run with it, on
  // this process.
  Status accumulate(int32_t microbatch, const Gradients& gradients);
  // Only elements [begin, end) of all the gradients together.
  Status accumulate_part(int32_t microbatch, const Gradients& gradients, size_t begin, size_t end);
  Status reduce(const Gradients& gradients);
  Status open_update();
  Status close_update();
  Status abandon_update();  // the open update's state is half written: the run ends as failed

  int exit_code() const;
  RunInfo info() const;

 private:
  // What forming a view produced on the background thread, until the program's thread enters it.
  struct FormedView {
    control::Generation generation;
    std::unique_ptr<Group> group;
    std::unique_ptr<DeviceGroup> devices;  // null: the host reduces
    std::optional<LargeBuffer> incoming;   // staged state of the view's base, or the last update's gradient
    bool is_gradient = false;
    ShardBlocks shards;  // staged, of the base, too
  };
  using Lock = std::unique_lock<std::mutex>;
  // How the program's memory is reached.
  struct MemoryAccess {
    std::unique_ptr<Device> device;       // null where all of it is the host's
    std::unique_ptr<StateMirror> mirror;  // null where all of the state is
    std::unique_ptr<GradientMemory> gradients;
    std::unique_ptr<StepClock> clock;  // null where the gradients are the host's
    std::shared_ptr<DevicePool> pool;  // null without NCCL
  };

  Run(Session& session, State& state, TrainOptions options, MemoryAccess memory);
  static Status check_shards(const State& state, const TrainOptions& options);
  static Status attach_mirror(State& state, MemoryAccess& memory);
  static Result<MemoryAccess> open_memory(const State& state, const TrainOptions& options);

  // control side (run_control.cpp)
  void on_message(const control::Message& message) override;
  void on_control_lost(const std::string& why) override;
  void perform(control::MemberActions actions);
  void perform_one(control::MemberAction& action);
  void forward(const control::Message& message);
  void drop_view_not_entered();
  void open_stop_save();
  void open_rescue_save(control::SaveOpen save);
  void begin_lessons();
  void tick_until_stopped();
  void say(control::Message message);
  void emit(EventKind kind, control::Version version, std::string text, int64_t amount = 0,
            int64_t subject = -1, Tier tier = Tier::kShared);

  Result<bool> find_step();
  // program side (run.cpp); each is one reason why there is no step yet, or none. True: look again.
  bool entered_new_view(Lock& lock);
  bool is_incoming() const { return incoming_ || !incoming_shards_.empty(); }
  bool install_incoming(Lock& lock);
  bool install(Lock& lock, std::optional<ByteSpan> staged, ShardBlocks shards, control::Version version);
  Status start_up(Lock& lock);
  bool waits_at_boundary(Lock& lock);
  bool waits_at_limit() const;
  bool save_if_due(Lock& lock);
  bool save_if_due(Lock& lock, Tier tier);
  Result<bool> gather_if_due(Lock& lock);
  bool waits_for_end(Lock& lock);
  void begin_learning(Lock& lock);
  Result<bool> next_as_learner(Lock& lock);
  void tell_of_left_out_update(Lock& lock);
  void prepare_step(Lock& lock);
  void wait(Lock& lock);
  void report_progress(bool always);
  // The step at hand will be repeated, or never finished: its view is over, even if the next one stands
  // already.
  bool view_is_over() const { return core_.revoked() || entered_ || core_.ended(); }

  Status end_if_broken(Status status);
  Status check_pieces(const Gradients& gradients);
  Status check_count(const Gradients& gradients);
  Status add_part(int32_t microbatch, const Gradients& gradients, size_t begin, size_t end);
  Status reduce_gradients(const Gradients& gradients);
  Status begin_update();
  Status make_reducer();
  Result<std::unique_ptr<Reducer>> reducer_of_view();
  Status wait_for_reduction(std::vector<Work> beside, const std::function<Status()>& check, Instant deadline,
                            std::vector<int>& suspects);
  Status wait_for_devices(const Status& beside);
  Duration time_for_own() const;
  void note_computing(Duration by_host);
  Status reduce_in_view(const Gradients& gradients);
  Status compare_ranks(Instant deadline);
  Status different_steps(std::span<const int64_t> combined);
  Status reduce_as_learner(const Gradients& gradients);
  bool applies_given_gradient() const;
  Status check_residuals() const;
  Status reduce_to_catch_up(const Gradients& gradients);
  Status put_reduced(const Gradients& gradients);
  Status put_outcome(std::span<const float> outcome, const Gradients& gradients);
  Status update_not_opened(Lock& lock, const Error& error);
  Status step_failed(Lock& lock, const Error& error, const std::vector<int>& suspect_ranks);
  void note_reduced(uint64_t combined_plan);
  Error revoked_error() const;

  // the start (start_up.cpp); on the program's thread, without the lock, inside the first view
  struct Start {
    control::Version version = 0;
    control::Lineage lineage;
    control::Version durable = control::kNoVersion;  // newest that the shared folder has for sure
    Digest digest;
    std::optional<ByteBuffer> state;  // restored; else what the program initialised
    ShardBlocks shards;               // that the view gives this rank, restored or initial
  };
  Result<Start> agree_on_start(Group& group);
  Result<Start> agree_under_lease(Group& group);
  Status check_initial(Group& group, bool is_gone, const char* gone);
  Result<ShardBlocks> initial_shards() const;
  struct Findings {
    Saver::Found shared;
    Saver::Found local;
    bool unjudged = false;  // the node's folder
  };
  Status take_shared_folder(Group& group);
  Result<Findings> find_saves(Group& group);
  Status find_local_saves(Findings& findings);
  Result<std::vector<FoundByRank>> exchange_findings(Group& group, const Findings& mine);
  Result<std::optional<Start>> restore_newest(Group& group);
  Result<std::optional<Start>> try_restore(Group& group, const Proposal& proposal, const Findings& mine,
                                           UnreadSaves& unread);
  Result<std::optional<Start>> try_repaired(Group& group, const Proposal& proposal, const Findings& mine,
                                            UnreadSaves& unread);
  Status read_proposal(const Proposal& proposal, int rank, const Findings& mine, Start& start,
                       bool& lacks_tensors);
  Status note_branch(const Group& group, const control::Lineage& branch, const std::string& why);
  Error none_usable(const RestoreChoice& choice) const;
  std::string unjudged_folders(const RestoreChoice& choice) const;
  void tell_of_local(const std::string& text);
  bool is_first_of_node() const;
  std::vector<int> ranks_of_node() const;

  // views (view_change.cpp); on the forming thread
  void form(const control::Install& install);
  void compute_digest(const control::ComputeDigest& asked);
  Status join_devices(const control::Install& install, FormedView& formed,
                      std::vector<control::MemberId>& suspects);
  Status move_shards(const control::Install& install, const StateTransfer& transfer, FormedView& formed,
                     std::vector<control::MemberId>& suspects);
  bool keeps_gradient() const;
  HeldGradient held_gradient(control::Version base) const;
  size_t outcome_count() const;  // elements of a reduced gradient, and of what travels beside it

  Session& session_;
  State& state_;
  const MemoryAccess memory_;  // before all that reads the state
  const TrainOptions options_;
  const control::Member self_;
  const control::StateSize size_;
  const SamplePermutation permutation_;
  std::optional<ErrorFeedback> feedback_;  // the program's thread's; outlives the reducer

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  control::MemberCore core_;

  // the view that the program is in
  std::unique_ptr<LaneExchange>
      lane_exchange_;                       // as old as the reducer; null where there are no values per lane
  std::unique_ptr<Group> group_;            // replaced by the program's thread only, under the lock
  std::unique_ptr<DeviceGroup> devices_;    // likewise; null where the host reduces
  std::vector<std::string> nccl_failures_;  // of NCCL alone, since it last did well
  bool nccl_hung_ = false;                  // the newest of them
  control::View view_;
  bool group_failed_ = false;                  // an operation failed: nothing more until the leader says on
  std::vector<LaneRange> assignment_;          // where there are no residuals, which say who computes a lane
  LaneLists lanes_by_rank_;                    // what counts
  std::optional<control::EnterView> entered_;  // Go came, the program has not been in next() since
  std::optional<FormedView> formed_;
  std::optional<LargeBuffer>
      incoming_;                     // the entered view's base, still to be installed; or the update to it
  ShardBlocks incoming_shards_;      // of the base, still to be installed
  std::vector<uint32_t> my_shards_;  // in the view
  std::unique_ptr<ShardGather> gather_;  // of the view; null where nothing is sharded; the program's thread's
  bool said_host_reduces_ = false;       // in this run, for its error feedback
  control::Version gathered_ =
      control::kNoVersion;  // the newest in this view whose working copies are filled
  Instant revoked_at_ = 0;
  bool started_ = false;       // the starting version is known
  bool leaving_said_ = false;  // in this view
  bool trained_ = false;  // the state is not what the program initialised: written by an update or a transfer
  bool restored_ = false;  // the same, but by a restore at most: what the save lacked is as it was

  // the step at hand
  control::Version step_version_ = control::kNoVersion;
  std::vector<int32_t> microbatches_;  // of this rank in this view
  size_t next_microbatch_ = 0;
  std::vector<int64_t> samples_;
  size_t gradient_count_ = 0;          // 0 until the program has shown its gradients
  std::vector<const float*> checked_;  // the pieces whose memory was looked at last
  std::unique_ptr<Reducer> reducer_;   // of the view, from the first gradients on; the program's thread's
  control::Version reduced_step_ = control::kNoVersion;  // whose mean `reducer_` has
  // The mean of the update to the view's base, which was made in a view before, as long as somebody may lack
  // it.
  KeptGradient kept_gradient_;
  bool reduced_ready_ = false;  // reduce() succeeded, the update is neither closed nor refused
  bool update_open_ = false;
  control::Version committed_ = 0;
  Instant step_began_ = 0;
  Duration step_took_ = 0;  // the one before
  Instant progress_sent_ = 0;
  Duration computing_ = 0;  // of `computed_` microbatches, since then
  uint32_t computed_ = 0;
  Comparison comparison_;
  control::Generation compared_in_;  // where ranks were found to differ

  uint64_t boundary_plan_ = 0;  // a finished reduction carried a plan that is due before the next step

  // saving, stopping, teaching, learning
  Tiers savers_;
  std::optional<control::SaveOpen> stop_save_;  // an urgent save of a version that is still to be reached
  std::map<Tier, std::pair<control::Version, uint64_t>> save_said_;  // version, and counter of its generation
  // After what its lessons' threads use: its end, which waits for them, comes before that of the rest.
  Teacher teacher_;
  std::optional<control::Learn> learn_asked_;
  std::unique_ptr<Learner> learner_;  // replaced by the program's thread only
  uint64_t learn_plan_ = 0;           // of LearnUntil; its version is the core's limit
  bool level_said_ = false;

  bool stopping_ = false;
  Executor forming_;
  Executor digesting_;
  std::thread ticker_;
};

}  // namespace muster
