// Saving and restoring, as one rank sees it: stages its part in the background, writes it into the folder of
// the save that the leader opened, votes, publishes when it is the first participant; at the start of a run
// reads back.
//
// The runtime is what connects checkpoint/ (files, formats) with the control plane's vote; neither knows the
// other. INVARIANTS
//  - A failed save is reported and forgotten. It never ends the run, and is never reported as durable.
//  - The state at a version stays readable from hold(), open() or rewrite() until it is staged, by a read
//  lease.
//  - A drain, which saves what this rank's node has saved for itself, has no lease: no update waits for it.
//  - A part that this rank writes instead of a lost one has a lease, a thread, memory and a file of its own:
//    whatever becomes of it, this rank's own part and its vote are as without it, and the reverse.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "checkpoint/changes.h"
#include "checkpoint/repair.h"
#include "checkpoint/restore.h"
#include "checkpoint/shard_save.h"
#include "checkpoint/sharing.h"
#include "checkpoint/state_reader.h"
#include "checkpoint/store.h"
#include "runtime/base/events.h"
#include "runtime/control/messages.h"
#include "runtime/control/save_interval.h"
#include "runtime/executor.h"
#include "runtime/state.h"

namespace muster {

struct SaveOptions {
  static constexpr int64_t kPaced = -1;
  Tier tier = Tier::kShared;
  std::string folder;                 // empty: no checkpoints
  int64_t every = 0;                  // steps; 0: only on notice and at the end; kPaced: as the leader says
  int32_t keep = 2;                   // newest verified versions
  uint64_t keep_every = 0;            // versions that are multiples of it stay; 0: none for that reason
  int64_t keep_younger_ms = 0;        // and versions that were saved less than so long ago
  uint64_t staging_bytes_max = 0;     // memory for copies on the way to disk; 0: as much as this rank saves
  uint64_t bytes_per_second_max = 0;  // of a periodic save on this rank; 0: no limit
  checkpoint::RestoreRules rules;     // what may differ between a checkpoint and this program
  bool link_unchanged = true;         // what has the bytes of an earlier save's shard shares them
  int64_t parity = 0;          // shards of a group with a parity file; 0: none; of the shared tier only
  checkpoint::SealKeyPtr key;  // seals what is saved, and what is restored has to be sealed with it
  bool stale_fails = false;    // a periodic save with a tensor that should have changed is not published
};

checkpoint::Lineage to_checkpoint(const control::Lineage& lineage);
control::Lineage to_control(const checkpoint::Lineage& lineage);

class Saver {
 public:
  using Say = std::function<void(control::Message)>;
  using Emit = std::function<void(Event)>;

  Saver(State& state, SaveOptions options, checkpoint::JobConstants job, int64_t samples_per_step, Say say,
        Emit emit, FileSystem& files = real_files());
  ~Saver();

  bool enabled() const;
  // For the rest of the launch; saves that others open are refused, with the reason.
  void switch_off(const std::string& why);
  // What drains read; REQUIRES: before any save, and `own`, of this process's node, lives as long as this.
  void drain_from(Saver& own) { own_ = &own; }
  // The save of that version and history in this folder. Any thread. Errors: kDropCheckpoint: there is none
  // that can be used.
  Result<checkpoint::StateReader> read_back(control::Version version, const control::Lineage& lineage) const;
  // A drain reads the version here: retention leaves it alone until that save is over.
  void keep(uint64_t drain, control::Version version);
  void let_go(uint64_t drain);
  // The state is at `version` now. True: it is due for a save, or others have opened one of it. If not, it
  // goes on from here, and a save of it that is opened later is refused.
  bool due(control::Version version);

  // ---- saving; any thread, none of these blocks but hold()

  // This rank is that one from now on. In the background, and behind nothing else: asks
  // libhdf5 for the shard's shape and has the system give the memory that the first save will need, so that
  // neither that save nor one on notice pays for it. Where no periodic saves are asked for, at most
  // kLastStagingBytes.
  struct World {
    uint32_t index = 0;  // of this rank
    uint32_t count = 0;
    std::vector<uint32_t> writers;  // by shard: who saves it
    friend bool operator==(const World&, const World&) = default;
  };
  void prepare(World world);

  // A save of `version`, which the state holds now, is about to be opened: keeps the state as it is until
  // then, or until release(), or for a bounded time unless it is the run's `last` version, which no update
  // will change. Of a state on a device, waits for a save before it that still reads its copy, until the
  // deadline. False, and the version will not be saved here, where the state could not be read; said by an
  // event.
  bool hold(control::Version version, bool last, Instant deadline);
  // An earlier save that waits for this version is over. Does not wait.
  bool hold_for_rescue(control::Version version);
  void release();
  void expire(Instant now);  // called now and then
  void schedule(const control::SaveSchedule& schedule);
  // Before any save of the view is opened: `base` and what comes after it is still to be held.
  void view_begins(control::Version base);
  // A save of a version that this rank has not held yet begins with hold().
  void open(const control::SaveOpen& open, control::MemberId self);
  // Another's part of an open save, whose writer is lost. `held_in`: the view of this rank where its state is
  // at the save's version now, and nothing for what else it takes; else nothing. While this rank still reads
  // for its own part it has the version all the same. Refused by a vote for the part, at once.
  void rewrite(const control::SaveRewrite& rewrite, std::optional<control::Generation> held_in);
  void publish(const control::SavePublish& publish);
  void closed(const control::SaveClosed& closed);
  void hurry(uint64_t save);
  // Gives up the saves that hold a lease; this rank votes against them.
  void cancel_staging();

  control::Version durable() const;  // newest; kNoVersion: none
  // The newest save of `version`: nothing while it is open; "" once it is durable; else why it failed.
  std::optional<std::string> outcome(control::Version version) const;

  // ---- restoring; the program's thread, between steps. Waits for what earlier saves still do here

  // The first rank of a view becomes the folder's owner, and waits a bounded time for who was it; the others
  // leave it to that one.
  Status take_folder(bool first);
  struct Found {
    std::vector<checkpoint::Candidate> usable;      // newest first
    std::vector<checkpoint::Candidate> unfinished;  // not checkpoints, but traces of saves
    size_t rejected = 0;                            // checkpoints that cannot be used
  };
  // The saves in the folder. What cannot be used is told by events. Errors: kEnvironment: the folder cannot
  // be read; kMisuse: a later format; kRetry: memory or descriptors are lacking to look.
  Result<Found> find_versions();
  // The run begins at its beginning, though shards of unfinished saves are here: the owner tells of them.
  void tell_of_unfinished(const Found& found);
  // The history that the folder's newest branch record names; empty: it has none.
  Result<checkpoint::Lineage> branch();
  Status check_same_job(const checkpoint::Candidate& candidate) const;
  // What it lacks, and the rules allow to be lacking, stays as the program has it.
  bool lacks_tensors(const checkpoint::Candidate& candidate) const;
  // Reads part `part` of `parts` of the version into `staged`, laid out as State::copy_to lays it out; the
  // other bytes are left alone. The same cut as pieces(). And the `shards` that this rank holds, whole, each
  // a block of its size.
  Status restore(const checkpoint::Candidate& candidate, uint32_t part, uint32_t parts,
                 MutableByteSpan staged, ShardBlocks& shards);
  // The byte ranges of a copy of the state that part `part` of `parts` reads.
  Result<std::vector<checkpoint::Range>> pieces(uint32_t part, uint32_t parts) const;
  // A version that was found damaged, and has parity: the owner rebuilds what it can until the deadline, and
  // tells of it. True: a file has another's place now, so that the version is worth another try. False also
  // where this rank is not the owner.
  bool repair(const checkpoint::Candidate& candidate, Instant deadline);
  // The run goes on from this version of the shared folder. Where it lacks parity that is asked for, as what
  // is saved while a launch ends does, or was repaired, it is read back and gets it, in the background. The
  // owner calls it.
  void give_parity(const checkpoint::Candidate& candidate);
  // Training goes on along `branch`: later versions of other branches no longer count (PROTOCOL 25). The
  // owner calls it. A node's folder that take_folder() could not have follows with the next save in it.
  Status go_on_along(const control::Lineage& branch, const std::string& why);
  // What the next save comes after, and the newest version that this folder has of the same history. Where it
  // lacks `to_save`, which the run starts from, a save of that is due, whatever the interval.
  void note_start(const checkpoint::VersionId& parent, control::Version durable,
                  control::Version to_save = control::kNoVersion);

 private:
  struct Save {
    control::SaveOpen open;
    uint32_t index = 0;
    checkpoint::VersionId id;
    std::shared_ptr<checkpoint::StageProgress> progress;
    Duration stall_before = 0;  // the state's, before any that this save causes
  };

  struct Rewrite {
    Save save;
    uint32_t part = 0;
    control::Generation held_in;
    std::shared_ptr<checkpoint::StageProgress> progress;
    std::shared_ptr<void> lease;  // its end releases it
  };

  void refuse(control::Version version);
  void run_rewrite(Rewrite rewrite);
  Result<control::SaveVote> stage_and_write(Rewrite& rewrite);
  Result<std::string> folder_of(const Rewrite& rewrite);
  void remove_unnamed(const checkpoint::Manifest& manifest);
  void run(const Save& save, bool held);
  void no_longer_reads(const Save& save);
  Result<ByteBuffer> stage_and_write(const Save& save, bool& held, control::SaveVote& vote);
  bool is_last(const Save& save) const;
  Status judge(const Save& save, const checkpoint::Manifest& manifest,
               const std::vector<std::optional<checkpoint::PieceChanges>>& changes);
  Status prepare_template(const World& world);
  void fault_in_some(const World& world);
  Result<checkpoint::TensorReader> reader(const World& world) const;
  Result<checkpoint::TensorReader> source_of(const Save& save, const World& world) const;
  uint64_t staging_bytes_max(bool last) const;
  void look_for_shared(const checkpoint::VersionId& id, bool durable);
  void note_cloning(const Save& save, const checkpoint::SaveShardReport& report);
  Result<std::string> folder_of(const Save& save);  // runs on save_shard's writing thread
  std::string path_of(const checkpoint::VersionId& save) const;
  Status wait_for_folder(const Save& save, const std::string& folder);
  bool is_newest(const Save& save) const;
  Result<checkpoint::Manifest> publish_now(const Save& save, const control::SavePublish& publish);
  Status keep_to_branch(const checkpoint::Lineage& branch);
  Status abandon_others(const checkpoint::Lineage& branch, const std::string& why);
  void verify_newest();
  Status verify(const Save& save);
  Status verify_with_parity(const checkpoint::Candidate& candidate, const checkpoint::Stop& stop);
  void tell_of_differences(const checkpoint::Manifest& manifest, const checkpoint::RestoreReport& report);
  void note_verified_and_prune(const Save& save);
  void clear_failed(const Save& save);
  void prune(control::Version version);  // which is only told
  void tell_of_removal(const checkpoint::RetentionPolicy& policy, const std::string& folder);
  Result<checkpoint::Folder*> folder();
  void tell_of_unchecked_seals(const Found& found);
  Duration own_timeout(bool rescue) const;
  Status become(bool first);
  Status become(bool first, bool rescue, Duration wait);
  Result<checkpoint::Folder> folder_as(bool first, bool rescue, Duration wait);
  void leave_to_first();
  Result<Found> sort_out_versions();
  Status restore_manifests();
  Result<checkpoint::RepairReport> repair_now(const checkpoint::Candidate& candidate, Instant deadline);
  std::vector<checkpoint::TensorSpec> specs() const;
  void tell(EventKind kind, control::Version version, std::string text, int64_t amount = 0);

  FileSystem& files_;
  State& state_;
  const SaveOptions options_;
  const checkpoint::JobConstants job_;
  const int64_t samples_per_step_;
  const Say say_;
  const Emit emit_;
  Saver* own_ = nullptr;  // the folder of this node's own

  mutable std::mutex mutex_;
  std::optional<control::Version> held_;  // a read lease is held for this version
  Instant expires_ = 0;
  control::Version reached_ =
      control::kNoVersion;  // the program is at it, and no save of it can be held any more
  control::SaveSchedules schedules_;
  Duration stall_before_ = 0;                           // of the state's, when the newest hold() began
  control::Version last_of_run_ = control::kNoVersion;  // nothing comes after it
  std::optional<Save> early_;                           // opened before this rank reached the version
  std::optional<Save> save_;                            // the newest that this rank takes part in
  control::Version durable_ = control::kNoVersion;
  control::Version start_ = control::kNoVersion;  // due for a save where it is not durable
  control::Version failed_ = control::kNoVersion;
  std::string failed_why_;
  uint64_t failed_save_ = 0;  // the newest that was closed without success
  std::optional<Save> to_verify_;
  std::set<uint64_t> verified_nonces_;                         // of some of the newest saves
  std::optional<std::pair<uint64_t, control::Version>> kept_;  // for a drain
  bool stopping_ = false;
  std::optional<std::string> off_;  // switched off, why
  // Of saves that hold a lease: of the one that stages, and of those that wait for the worker with theirs.
  std::vector<std::shared_ptr<checkpoint::StageProgress>> reading_;
  std::vector<std::shared_ptr<checkpoint::StageProgress>> rewriting_;  // parts of others, of save_
  std::optional<checkpoint::VersionId> repaired_;  // by this rank; its parity was not looked at
  uint64_t published_ = 0;                         // the newest save that this rank has published
  std::atomic<uint64_t> fence_{0};                 // of the folder, where this rank was its owner or guest
  checkpoint::VersionId parent_;

  // Only the worker thread touches these; and the writing thread of a save, for which the worker waits.
  std::optional<checkpoint::Folder> folder_;
  std::deque<uint64_t> failed_nonces_;
  bool told_of_seals_ = false;
  std::shared_ptr<const checkpoint::ShardTemplate> template_;
  World shape_of_;  // the template's
  checkpoint::StagingBuffer buffer_;
  checkpoint::ShardHistory history_;                  // of this rank
  std::optional<checkpoint::EarlierShard> to_share_;  // by the next save, what does not change
  bool clones_ = true;                                // as far as is known, the folder's file system can
  checkpoint::PieceHistory pieces_;                   // of this rank
  checkpoint::ChangeGuard guard_;                     // of all; where this rank publishes

  Executor worker_;
  Executor rewriter_;  // parts of others: one waits behind another, none behind this rank's own
  Executor verifier_;  // reads back what is durable
};

}  // namespace muster
