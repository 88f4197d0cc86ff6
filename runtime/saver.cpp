#include "runtime/saver.h"

#include <unistd.h>

#include <algorithm>
#include <thread>

#include "checkpoint/index.h"
#include "checkpoint/parity_file.h"
#include "checkpoint/restore.h"
#include "runtime/base/random.h"

namespace muster {
namespace {

constexpr Duration kHoldTimeout = 5 * kSecond;  // from hold() to the leader's SaveOpen
constexpr Duration kNoWait = 0;
constexpr Duration kOwnTimeout = 10 * kSecond;  // a dying owner's lock goes with its process
// Who was the first of the node leaves it in the same call; all wait for who is now.
constexpr Duration kLocalOwnTimeout = 500 * kMillisecond;
constexpr Duration kRescueOwnTimeout = 500 * kMillisecond;  // its owner's node is lost, dead or not
constexpr Duration kFolderTimeout = 30 * kSecond;  // for the first participant to create the save's folder
constexpr Duration kReadTimeout = 60 * kSecond;
constexpr const char* kNotKept =
    "the state had moved on before the save was opened, or could not be kept for it";
constexpr const char* kLocalHelp =
    "where two agents of this job have one name, give each its own by --node-name; where an earlier launch "
    "left a process, end it; other jobs name another checkpoint_local_dir";
constexpr const char* kSwitchedOff = "nothing is saved here in this launch: ";
constexpr const char* kSavedAlready = "this rank has saved the version already, or read it from the folder";
// Nobody computes beside a last save, so its copies need not be ahead of the disk. Memory that was never used
// can cost more than the disk does: 1 GiB of it took 3.5 to 7 s on a virtual machine, and the disk 1.1 s.
constexpr uint64_t kLastStagingBytes = 64 << 20;
constexpr uint64_t kFaultInBytes = 4 << 20;  // 2 to 10 ms, on that machine

std::vector<checkpoint::Expectation> expectations_of(const State& state) {
  std::vector<checkpoint::Expectation> expectations;
  for (const auto* tensors : {&state.tensors(), &state.sharded().tensors()}) {
    for (const TensorInfo& tensor : *tensors) expectations.push_back(tensor.expectation);
  }
  return expectations;
}

std::string who_am_i() {
  char host[256] = "?";
  gethostname(host, sizeof host - 1);
  return "process " + std::to_string(getpid()) + " on " + host;
}

// Polls without a clock of its own: `attempt` until it is ok, or fails with another code than kRetry, or the
// deadline.
template <typename Attempt>
auto retry_until(Instant deadline, Attempt attempt) -> decltype(attempt()) {
  while (true) {
    auto result = attempt();
    if (result.ok() || result.error().code != ErrorCode::kRetry || now() >= deadline) return result;
    std::this_thread::sleep_for(
        std::chrono::milliseconds(5));  // other processes' work; nothing could wake us
  }
}

}  // namespace

checkpoint::Lineage to_checkpoint(const control::Lineage& lineage) {
  checkpoint::Lineage converted;
  for (const control::LineageEntry& entry : lineage) {
    const auto base = static_cast<uint64_t>(std::max<control::Version>(entry.base, 0));
    converted.push_back({entry.generation.incarnation, entry.generation.counter, base});
  }
  return converted;
}

control::Lineage to_control(const checkpoint::Lineage& lineage) {
  control::Lineage converted;
  for (const checkpoint::LineageEntry& entry : lineage) {
    converted.push_back({{entry.store_nonce, entry.generation}, static_cast<control::Version>(entry.base)});
  }
  return converted;
}

Saver::Saver(State& state, SaveOptions options, checkpoint::JobConstants job, int64_t samples_per_step,
             Say say, Emit emit, FileSystem& files)
    : files_(files),
      state_(state),
      options_(std::move(options)),
      job_(std::move(job)),
      samples_per_step_(samples_per_step),
      say_(std::move(say)),
      emit_(std::move(emit)),
      history_(static_cast<size_t>(std::max(options_.keep, 1))),
      guard_(expectations_of(state)),
      worker_("muster-save"),
      rewriter_("muster-rewrite"),
      verifier_("muster-verify") {}

Saver::~Saver() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    // What a process that goes is still writing is for nobody: the others save without it. To finish it would
    // take the time that its notice leaves.
    if (save_) save_->progress->cancel();
    for (const auto& progress : rewriting_) progress->cancel();
  }
  rewriter_.stop();
  verifier_.stop();
  worker_.stop();
  release();
}

bool Saver::enabled() const {
  const std::lock_guard lock(mutex_);
  return !options_.folder.empty() && !off_;
}

void Saver::switch_off(const std::string& why) {
  const std::lock_guard lock(mutex_);
  off_ = why;
}

std::vector<checkpoint::TensorSpec> Saver::specs() const {
  std::vector<checkpoint::TensorSpec> specs;
  const auto add = [&](const std::vector<TensorInfo>& tensors, int split) {
    for (const TensorInfo& tensor : tensors)
      specs.push_back({tensor.name, tensor.dtype, {tensor.shape.begin(), tensor.shape.end()}, split});
  };
  add(state_.tensors(), checkpoint::kReplicated);
  add(state_.sharded().tensors(), checkpoint::kSharded);
  return specs;
}

void Saver::tell(EventKind kind, control::Version version, std::string text, int64_t amount) {
  Event event;
  event.kind = kind;
  event.at = now();
  event.version = version;
  event.amount = amount;
  event.text = std::move(text);
  event.tier = options_.tier;
  emit_(std::move(event));
}

// ---- saving

bool Saver::due(control::Version version) {
  const std::lock_guard lock(mutex_);
  const bool said = options_.every == SaveOptions::kPaced
                        ? schedules_.due(version)
                        : options_.every > 0 && version % options_.every == 0;
  const bool lacks_start = version == start_ && durable_ < version;
  if (version > 0 && (said || lacks_start)) return true;
  if (early_ && early_->open.version == version) return true;
  reached_ = version;
  return false;
}

void Saver::view_begins(control::Version base) {
  const std::lock_guard lock(mutex_);
  reached_ = std::min(reached_, base - 1);
}

void Saver::schedule(const control::SaveSchedule& schedule) {
  const std::lock_guard lock(mutex_);
  schedules_.add(schedule);
}

// ---- for drains: the folder of a node's own

Result<checkpoint::StateReader> Saver::read_back(control::Version version,
                                                 const control::Lineage& lineage) const {
  const auto missing = [&](const std::string& why) {
    return Error{ErrorCode::kDropCheckpoint, "this node's own save of version " + std::to_string(version) +
                                                 ", in " + options_.folder + ", cannot be drained: " + why};
  };
  MUSTER_ASSIGN(checkpoint::Folder folder, checkpoint::Folder::look(files_, options_.folder));
  folder.use_key(options_.key);
  MUSTER_ASSIGN(const auto versions, folder.versions());
  std::string why = "it is not there, or not any more";
  for (const checkpoint::Candidate& candidate : versions) {
    if (candidate.id.version != static_cast<uint64_t>(version) || !candidate.finished) continue;
    if (candidate.unusable) {
      why = candidate.unusable->message;
    } else if (candidate.manifest->lineage != to_checkpoint(lineage)) {
      why = "it is of another history";
    } else if (candidate.manifest->tensors != specs()) {
      why = "its tensors are not this program's";
    } else {
      return checkpoint::StateReader::open(files_, candidate.folder, candidate.manifest);
    }
  }
  return missing(why);
}

void Saver::keep(uint64_t drain, control::Version version) {
  const std::lock_guard lock(mutex_);
  kept_ = {drain, version};
}

void Saver::let_go(uint64_t drain) {
  const std::lock_guard lock(mutex_);
  if (!kept_ || kept_->first != drain) return;
  const control::Version version = kept_->second;
  kept_.reset();
  worker_.post([this, version] {
    if (folder_ && folder_->owner()) prune(version);
  });
}

bool Saver::hold_for_rescue(control::Version version) {
  {
    const std::lock_guard lock(mutex_);
    early_.reset();  // of a save whose leader is lost
  }
  return hold(version, true, now());
}

bool Saver::hold(control::Version version, bool last, Instant deadline) {
  release();
  const Duration stall_before = state_.stall();
  const Instant began = now();
  const Status readable = state_.acquire_read(deadline);
  state_.add_stall(now() - began);
  if (!readable.ok()) {
    tell(EventKind::kLog, version, "the state is not kept for its save: " + readable.error().message);
    refuse(version);
    return false;
  }
  const std::lock_guard lock(mutex_);
  reached_ = version;
  stall_before_ = stall_before;
  if (last) last_of_run_ = version;
  if (failed_ == version) failed_ = control::kNoVersion;  // in a new view: it is saved anew
  if (early_ && early_->open.version == version) {  // opened by a member that reached the version sooner
    reading_.push_back(early_->progress);
    early_->stall_before = stall_before;
    worker_.post([this, save = *std::exchange(early_, std::nullopt)] { run(save, true); });
    return true;
  }
  if (std::exchange(held_, version)) state_.release_read();  // a rescue was quicker
  expires_ = last ? kNever : now() + kHoldTimeout;
  return true;
}

// No save of the version waits for this rank.
void Saver::refuse(control::Version version) {
  const std::lock_guard lock(mutex_);
  reached_ = version;
  if (!early_ || early_->open.version != version) return;
  say_(control::SaveVote{early_->open.save, false, {}, kNotKept});
  early_.reset();
}

void Saver::expire(Instant instant) {
  const std::lock_guard lock(mutex_);
  if (!held_ || instant < expires_) return;
  held_.reset();
  state_.release_read();
}

void Saver::release() {
  const std::lock_guard lock(mutex_);
  if (!std::exchange(held_, std::nullopt)) return;
  state_.release_read();
}

void Saver::open(const control::SaveOpen& open, control::MemberId self) {
  const auto me = std::find(open.participants.begin(), open.participants.end(), self);
  if (me == open.participants.end()) return;
  Save save;
  save.open = open;
  save.index = static_cast<uint32_t>(me - open.participants.begin());
  save.id = {static_cast<uint64_t>(open.version), open.save};
  save.progress = std::make_shared<checkpoint::StageProgress>();
  const Duration stall_now = state_.stall();
  const std::lock_guard lock(mutex_);
  save.stall_before = held_ == open.version ? stall_before_ : stall_now;
  if (off_) return say_(control::SaveVote{open.save, false, {}, kSwitchedOff + *off_});
  if (save_ && save_->open.drain) save_->progress->cancel();  // who opens another has given it up, or is lost
  save_ = save;
  for (const auto& progress : std::exchange(rewriting_, {})) progress->cancel();
  early_.reset();
  if (open.drain) return worker_.post([this, save] { run(save, false); });
  // The lease goes over to the save. A stop-save needs none before its turn: no permit leads beyond its
  // version.
  const bool held = held_ == open.version;
  if (held) {
    held_.reset();
    reading_.push_back(save.progress);
  }
  if (held || open.stop) {
    worker_.post([this, save, held] { run(save, held); });
  } else if (open.version == durable_) {
    say_(control::SaveVote{open.save, false, {}, kSavedAlready});  // it is not held again: see save_if_due
  } else if (open.version > reached_) {
    early_ = save;
  } else {
    say_(control::SaveVote{open.save, false, {}, kNotKept});
  }
}

void Saver::run(const Save& save, bool held) {
  control::SaveVote vote{.save = save.open.save};
  auto record = stage_and_write(save, held, vote);
  no_longer_reads(save);
  if (held) state_.release_read();
  vote.written = record.ok();
  if (record.ok()) {
    vote.record = std::move(*record);
    if (!save.open.drain) vote.stalled = state_.stall() - save.stall_before;
  } else {
    vote.why = record.error().message;
  }
  say_(std::move(vote));
}

// ---- parts of others

// The lease that the own part still has is for the save's version; else the state itself has to be at it.
void Saver::rewrite(const control::SaveRewrite& rewrite, std::optional<control::Generation> held_in) {
  const std::lock_guard lock(mutex_);
  const auto refuse = [&](const char* why) {
    control::SaveVote vote{rewrite.save, false, {}, why};
    vote.part = rewrite.part;
    say_(std::move(vote));
  };
  const bool is_open = save_ && save_->open.save == rewrite.save && failed_save_ != rewrite.save;
  if (!is_open || off_ || rewrite.part >= save_->open.participants.size())
    return refuse("this rank does not take part in the save any more");
  if (save_->progress->cancelled()) return refuse(kNotKept);  // a view change waits for that lease
  std::shared_ptr<void> lease;
  if (save_->open.drain) {
    held_in = rewrite.opened_in;  // as a file
  } else {
    if (std::ranges::find(reading_, save_->progress) != reading_.end()) {
      state_.share_read();
      held_in = rewrite.opened_in;
    } else if (!held_in || !state_.acquire_read(now()).ok()) {
      return refuse(kNotKept);
    }
    lease = std::shared_ptr<void>(nullptr, [this](void*) { state_.release_read(); });
  }
  Rewrite taken{*save_, rewrite.part, *held_in, std::make_shared<checkpoint::StageProgress>(), lease};
  rewriting_.push_back(taken.progress);
  rewriter_.post([this, taken = std::move(taken)]() mutable { run_rewrite(std::move(taken)); });
}

void Saver::run_rewrite(Rewrite rewrite) {
  auto vote = stage_and_write(rewrite);
  rewrite.lease.reset();
  {
    const std::lock_guard lock(mutex_);
    std::erase(rewriting_, rewrite.progress);
  }
  control::SaveVote said{rewrite.save.open.save};
  if (vote.ok())
    said = std::move(*vote);
  else
    said.why = vote.error().message;
  said.part = rewrite.part;
  said.held_in = rewrite.held_in;
  say_(std::move(said));
}

// As that rank would have: the same bytes under the name of another writer. Without the limit of the rate,
// since the time of the save has begun with the lost one's part.
Result<control::SaveVote> Saver::stage_and_write(Rewrite& rewrite) {
  const control::SaveOpen& open = rewrite.save.open;
  const World world{rewrite.part, static_cast<uint32_t>(open.participants.size()), open.writers};
  MUSTER_ASSIGN(const checkpoint::SavePlan plan, checkpoint::plan_save(specs(), world.count, world.writers));
  MUSTER_ASSIGN(const auto shape,
                checkpoint::make_shard_template(plan, world.index, options_.key != nullptr));
  checkpoint::SaveShardOptions options;
  options.write.writer_nonce = random_nonce();
  options.staging_bytes_max = staging_bytes_max(is_last(rewrite.save));
  options.folder = [&] { return folder_of(rewrite); };
  options.key = options_.key;
  options.staged = [&] { rewrite.lease.reset(); };
  MUSTER_ASSIGN(const checkpoint::TensorReader tensors, source_of(rewrite.save, world));
  checkpoint::StagingBuffer memory;  // as large as needed, and only now
  MUSTER_ASSIGN(checkpoint::SaveShardReport report,
                save_shard(files_, shape, rewrite.save.id, tensors, memory, options, *rewrite.progress));
  control::SaveVote vote{open.save, true, encode(report.record), ""};
  vote.bytes = shape->geometry.payload_bytes;
  return vote;
}

// The first participant makes the folder. Where that is the lost one and had not come to it, whoever writes
// its part does, beside the owner's lock, which a process that is only silent may still have.
Result<std::string> Saver::folder_of(const Rewrite& rewrite) {
  const std::string path = path_of(rewrite.save.id);
  if (rewrite.part == 0) {
    MUSTER_ASSIGN(auto found, files_.stat(path));
    if (found) return path;
    MUSTER_ASSIGN(checkpoint::Folder beside, checkpoint::Folder::guest(files_, options_.folder));
    auto begun = beside.begin_save(rewrite.save.id);
    if (begun.ok()) return begun;
    MUSTER_ASSIGN(found, files_.stat(path));
    if (!found) return begun;  // else that one was quicker
  }
  MUSTER_TRY(wait_for_folder(rewrite.save, path));
  return path;
}

// What the lost one has left. One that was only silent may come back and leave more, which goes with the
// version.
void Saver::remove_unnamed(const checkpoint::Manifest& manifest) {
  const Status removed = folder_->remove_unnamed(manifest);
  if (!removed.ok())
    tell(EventKind::kLog, static_cast<control::Version>(manifest.id.version), removed.error().message);
}

// Nothing comes after it: nobody computes beside it, and somebody waits for it.
bool Saver::is_last(const Save& save) const {
  const std::lock_guard lock(mutex_);
  return save.open.stop || save.open.rescue || save.open.version == last_of_run_;
}

void Saver::hurry(uint64_t save) {
  const std::lock_guard lock(mutex_);
  if (save_ && save_->open.save == save) save_->progress->hurry();
}

// The record of the vote.
Result<ByteBuffer> Saver::stage_and_write(const Save& save, bool& held, control::SaveVote& vote) {
  if (!enabled()) return Error{ErrorCode::kDropCheckpoint, "the program gave no checkpoint folder"};
  // A node's folder that cannot be had fails its save before staging, which keeps the state still where its
  // memory is bounded. And what the job has left takes the space that the save needs.
  if (options_.tier == Tier::kLocal && save.index == 0) {
    MUSTER_TRY(become(true, false, own_timeout(false)));
    MUSTER_TRY(keep_to_branch(to_checkpoint(save.open.lineage)));
  }
  const bool drains = save.open.drain;
  if (!held && !drains) {
    MUSTER_TRY(state_.acquire_read(now() + kReadTimeout));
    held = true;
    const std::lock_guard lock(mutex_);
    reading_.push_back(save.progress);
  }
  const World world{save.index, static_cast<uint32_t>(save.open.participants.size()), save.open.writers};
  MUSTER_TRY(prepare_template(world));
  checkpoint::SaveShardOptions options;
  options.write.writer_nonce = random_nonce();
  options.staging_bytes_max = staging_bytes_max(save.open.stop || save.open.rescue || drains);
  options.bytes_per_second_max = is_last(save) ? 0 : options_.bytes_per_second_max;
  options.folder = [&] { return folder_of(save); };
  options.key = options_.key;
  options.earlier = std::exchange(to_share_, std::nullopt);
  if (options.earlier) {
    const checkpoint::ShardRecord& earlier = options.earlier->record;
    options.earlier_path =
        path_of(earlier.identity.id) + "/" + checkpoint::shard_file_name(save.index, earlier.writer_nonce);
    options.suspect = history_.suspect;
    options.clone = clones_;
  }
  const Instant began = now();
  options.staged = [&] {
    if (drains) return;
    no_longer_reads(save);
    held = false;
    state_.release_read();
    if (save.index == 0) tell(EventKind::kSaveStaged, save.open.version, "", now() - began);
  };
  MUSTER_ASSIGN(const checkpoint::TensorReader tensors, source_of(save, world));
  MUSTER_ASSIGN(checkpoint::SaveShardReport report,
                save_shard(files_, template_, save.id, tensors, buffer_, options, *save.progress));
  if (options.earlier && options.earlier->seems_same && !report.linked) history_.suspect = report.suspect;
  note_cloning(save, report);
  history_.wrote(template_, {report.record, report.table}, report.piece_digests);
  vote.bytes = report.linked ? 0 : template_->geometry.payload_bytes - report.cloned.bytes;
  vote.held_back = report.held_back;
  ByteBuffer record = encode(report.record);
  if (const auto changes = pieces_.note(template_, save.id.version, std::move(report.piece_digests))) {
    const ByteBuffer bytes = encode(*changes);
    record.insert(record.end(), bytes.begin(), bytes.end());
  }
  return record;
}

// What libhdf5 has to say about a shard depends on shapes alone, so it is asked once for a world.
Status Saver::prepare_template(const World& world) {
  if (template_ && shape_of_ == world) return ok();
  MUSTER_ASSIGN(const checkpoint::SavePlan plan, checkpoint::plan_save(specs(), world.count, world.writers));
  MUSTER_ASSIGN(template_, checkpoint::make_shard_template(plan, world.index, options_.key != nullptr));
  shape_of_ = world;
  return ok();
}

// Of all replicated tensors, and of the sharded ones what this rank writes. REQUIRES: a lease.
Result<checkpoint::TensorReader> Saver::reader(const World& world) const {
  std::vector<std::vector<ByteSpan>> memory;
  for (const ByteSpan tensor : state_.contents()) memory.push_back({tensor});
  std::vector<uint32_t> mine;
  for (uint32_t shard = 0; shard < world.writers.size(); ++shard) {
    if (world.writers[shard] == world.index) mine.push_back(shard);
  }
  const ShardedTensors& sharded = state_.sharded();
  const auto lacks = std::ranges::find_if(mine, [&](uint32_t shard) { return !sharded.holds(shard); });
  if (lacks != mine.end()) {
    return Error{ErrorCode::kDropCheckpoint,
                 "shard " + std::to_string(*lacks) + " is not here, or not any more: the view has changed"};
  }
  for (size_t t = 0; t < sharded.tensors().size(); ++t) memory.push_back(sharded.local_memory(t, mine));
  return checkpoint::TensorReader(std::move(memory));
}

// The state, or what this node has saved of it: each slab of that is verified as it is read, so that a
// damaged file fails the save and nothing wrong is saved. REQUIRES: a lease, unless it is a drain.
Result<checkpoint::TensorReader> Saver::source_of(const Save& save, const World& world) const {
  if (!save.open.drain) {
    MUSTER_TRY(state_.wait_readable(now() + kReadTimeout));
    return reader(world);
  }
  if (own_ == nullptr)
    return Error{ErrorCode::kDropCheckpoint,
                 "this rank was given no checkpoint_local_dir, and others were; give it to all or to none"};
  MUSTER_ASSIGN(checkpoint::StateReader own, own_->read_back(save.open.version, save.open.lineage));
  return checkpoint::TensorReader([own = std::make_shared<checkpoint::StateReader>(std::move(own))](
                                      uint32_t tensor, uint64_t offset, MutableByteSpan target) {
    return own->read(tensor, offset, target);
  });
}

uint64_t Saver::staging_bytes_max(bool last) const {
  const uint64_t given = options_.staging_bytes_max;
  return last && (given == 0 || given > kLastStagingBytes) ? kLastStagingBytes : given;
}

void Saver::prepare(World world) {
  if (!enabled()) return;
  worker_.post([this, world = std::move(world)] {
    // Nobody waits for the lock in a node's own save.
    if (options_.tier == Tier::kLocal && world.index != 0) leave_to_first();
    // What fails here fails again in the save, which says so.
    if (!prepare_template(world).ok()) return;
    const uint64_t bound = staging_bytes_max(options_.every == 0);
    if (!buffer_.reserve(checkpoint::staging_bytes_for(template_->geometry, bound)).ok()) return;
    fault_in_some(world);
  });
}

// In steps, so that a save that is opened meanwhile waits for one of them.
void Saver::fault_in_some(const World& world) {
  const bool same_world = template_ && shape_of_ == world;
  if (!same_world || !buffer_.fault_in(kFaultInBytes)) return;
  worker_.post([this, world] { fault_in_some(world); });
}

Result<std::string> Saver::folder_of(const Save& save) {
  if (save.index != 0) {
    leave_to_first();
    // Before that one has made it, a node that came anew has no folder of saves, either.
    MUSTER_TRY(wait_for_folder(save, path_of(save.id)));
  }
  MUSTER_ASSIGN(checkpoint::Folder * folder, this->folder());
  if (save.index == 0) return folder->begin_save(save.id);
  return path_of(save.id);
}

std::string Saver::path_of(const checkpoint::VersionId& save) const {
  return options_.folder + "/" + checkpoint::save_name(save);
}

// The first participant may have died: then its save is closed, or a newer one waits for this thread.
Status Saver::wait_for_folder(const Save& save, const std::string& folder) {
  return retry_until(now() + kFolderTimeout, [&]() -> Status {
    MUSTER_ASSIGN(const auto found, files_.stat(folder));
    if (found) return ok();
    if (!is_newest(save)) return Error{ErrorCode::kDropCheckpoint, "the save is over: " + folder};
    return Error{ErrorCode::kRetry, "the first participant has not created " + folder};
  });
}

bool Saver::is_newest(const Save& save) const {
  const std::lock_guard lock(mutex_);
  return !stopping_ && save_ && save_->open.save == save.open.save && failed_save_ != save.open.save;
}

void Saver::publish(const control::SavePublish& publish) {
  const std::lock_guard lock(mutex_);
  if (!save_ || save_->open.save != publish.save) {
    say_(control::SavePublished{publish.save, false, "the publisher takes part in a newer save"});
    return;
  }
  worker_.post([this, save = *save_, publish] {
    const auto published = publish_now(save, publish);
    if (published.ok()) {
      const std::lock_guard published_lock(mutex_);
      published_ = publish.save;
    }
    say_(control::SavePublished{publish.save, published.ok(),
                                published.ok() ? "" : published.error().message});
    if (!published.ok()) return;
    remove_unnamed(*published);
    // For people, and after the vote: the version does not depend on it.
    const Status indexed = write_index(files_, folder_->save_folder(save.id), *published);
    if (!indexed.ok()) tell(EventKind::kLog, save.open.version, "no index.h5: " + indexed.error().message);
  });
}

Result<checkpoint::Manifest> Saver::publish_now(const Save& save, const control::SavePublish& publish) {
  // As a rule it is already; else the owner died, and its lock with it.
  MUSTER_TRY(become(true, save.open.rescue, own_timeout(save.open.rescue)));
  // So it is by who began the save, which need not be this one.
  if (options_.tier == Tier::kLocal) MUSTER_TRY(keep_to_branch(to_checkpoint(save.open.lineage)));
  checkpoint::Folder* const folder = &*folder_;
  checkpoint::Manifest manifest;
  manifest.id = save.id;
  manifest.lineage = to_checkpoint(save.open.lineage);
  {
    const std::lock_guard lock(mutex_);
    manifest.parent = parent_;
  }
  manifest.job = job_;
  manifest.sample_position = static_cast<uint64_t>(save.open.version * samples_per_step_);
  manifest.saved_at_ms = wall_time_ms();
  manifest.saved_by = who_am_i();
  manifest.fence = folder->fence();
  manifest.tensors = specs();
  manifest.shard_owners = save.open.writers;
  manifest.key = options_.key;
  manifest.key_id = id_of(options_.key);
  std::vector<checkpoint::ShardRecord> records;
  std::vector<std::optional<checkpoint::PieceChanges>> changes(publish.records.size());
  for (const ByteBuffer& vote : publish.records) {
    const ByteSpan bytes(vote);
    const size_t split = std::min(bytes.size(), checkpoint::kVoteBytes);
    MUSTER_ASSIGN(const auto record, checkpoint::decode_shard_record(bytes.first(split)));
    records.push_back(record);
    if (split == bytes.size()) continue;
    MUSTER_ASSIGN(auto said, checkpoint::decode_piece_changes(bytes.subspan(split)));
    if (record.identity.participant < changes.size()) changes[record.identity.participant] = std::move(said);
  }
  MUSTER_TRY(adopt_shards(manifest, records));
  Status published = judge(save, manifest, changes);
  if (published.ok()) published = folder->publish(manifest);
  if (published.ok()) return manifest;
  // Another publisher may have died before it could say so, or its word was lost: that save stands.
  if (auto versions = folder->versions(); versions.ok()) {
    for (checkpoint::Candidate& candidate : *versions) {
      if (candidate.id == save.id && candidate.manifest) return *std::move(candidate.manifest);
    }
  }
  return published.error();
}

// Not when the save begins, which holds the state. With a version that was not found whole nothing is
// shared, so that it does not spread.
void Saver::look_for_shared(const checkpoint::VersionId& id, bool durable) {
  history_.closed(id, durable);
  if (!options_.link_unchanged || !template_ || !folder_) return;
  to_share_ = history_.to_share(template_);
  if (to_share_ && !folder_->is_verified(to_share_->record.identity.id)) to_share_.reset();
}

// What the file system cannot do is tried once, and told once.
void Saver::note_cloning(const Save& save, const checkpoint::SaveShardReport& report) {
  if (report.cloned.problem.empty()) return;
  clones_ = clones_ && !report.cloned.unsupported;
  tell(EventKind::kLog, save.open.version,
       report.cloned.problem +
           (clones_ ? "; what this save could have shared with an earlier one is written"
                    : "; parts of the state that do not change are written with every "
                      "save, unless all of a file is the same; XFS and Btrfs with blocks of 4 KiB can"));
}

// A state that may be wrong is told, and where the program wants that, refused: but not when it is the last
// word of this launch, since then the work since the save before would be lost with it.
Status Saver::judge(const Save& save, const checkpoint::Manifest& manifest,
                    const std::vector<std::optional<checkpoint::PieceChanges>>& changes) {
  MUSTER_ASSIGN(const auto plan, checkpoint::plan_of(manifest));
  const checkpoint::Judgement judgement = guard_.judge(plan, save.id.version, changes);
  const std::string& wrong = options_.stale_fails ? judgement.standing : judgement.news;
  if (wrong.empty()) return ok();
  tell(EventKind::kStale, save.open.version, wrong);
  if (!options_.stale_fails || is_last(save)) return ok();
  return Error{ErrorCode::kDropCheckpoint, "the state may be stale: " + wrong};
}

void Saver::cancel_staging() {
  const std::lock_guard lock(mutex_);
  for (const auto& progress : reading_) progress->cancel();
  for (const auto& progress : rewriting_) progress->cancel();
}

void Saver::no_longer_reads(const Save& save) {
  const std::lock_guard lock(mutex_);
  std::erase(reading_, save.progress);
}

void Saver::closed(const control::SaveClosed& closed) {
  const std::lock_guard lock(mutex_);
  if (closed.save == 0 && held_ == closed.version) {
    held_.reset();
    state_.release_read();
  }
  if (early_ && early_->open.save == closed.save) early_.reset();
  if (!save_ || save_->open.save != closed.save) return;
  const control::Version version = save_->open.version;
  worker_.post([this, id = save_->id, durable = closed.durable] { look_for_shared(id, durable); });
  for (const auto& progress : std::exchange(rewriting_, {})) progress->cancel();  // another's was quicker
  if (!closed.durable) {
    failed_save_ = closed.save;
    failed_ = version;
    failed_why_ = closed.why.empty() ? "no reason was given" : closed.why;  // empty would mean durable
    save_->progress->cancel();  // what is still copied or written is for nobody
    // Publishing is the same member's, and on the same thread: it can no longer happen when this has run.
    worker_.post([this, save = *save_] { clear_failed(save); });
    return;
  }
  durable_ = std::max(durable_, version);
  parent_ = save_->id;
  // The first participant, or who has published in its place.
  if (save_->index != 0 && published_ != closed.save) return;
  to_verify_ = *save_;
  verifier_.post([this] { verify_newest(); });
}

// Beside the saving, which must not wait until a version has been read back. Where saves come faster than
// they can be read, some are passed over: the newest at hand is the next.
void Saver::verify_newest() {
  const std::optional<Save> save = [&] {
    const std::lock_guard lock(mutex_);
    return std::exchange(to_verify_, std::nullopt);
  }();
  if (!save) return;
  const Status verified = verify(*save);
  if (!verified.ok() && verified.error().code == ErrorCode::kRetry) {  // stopped, or short of descriptors
    const bool stopped = [&] {
      const std::lock_guard lock(mutex_);
      return stopping_;
    }();
    if (!stopped) tell(EventKind::kLog, save->open.version, verified.error().message);
    return;
  }
  if (!verified.ok()) return tell(EventKind::kVersionRejected, save->open.version, verified.error().message);
  {
    const std::lock_guard lock(mutex_);
    verified_nonces_.insert(save->id.nonce);
    if (verified_nonces_.size() > 2 * static_cast<size_t>(options_.keep)) verified_nonces_ = {save->id.nonce};
  }
  worker_.post([this, verified_save = *save] { note_verified_and_prune(verified_save); });
}

Status Saver::verify(const Save& save) {
  MUSTER_ASSIGN(checkpoint::Folder folder, checkpoint::Folder::look(files_, options_.folder));
  folder.use_key(options_.key);
  MUSTER_ASSIGN(const auto versions, folder.versions());
  const auto mine = std::find_if(versions.begin(), versions.end(),
                                 [&](const auto& candidate) { return candidate.id == save.id; });
  if (mine != versions.end() && !mine->manifest) return *mine->unusable;
  if (mine == versions.end())
    return Error{ErrorCode::kDropCheckpoint,
                 to_string(save.id) + " is not in " + options_.folder + " any more"};
  const checkpoint::Stop stop = [this] {
    const std::lock_guard lock(mutex_);
    return stopping_;
  };
  // Who has lost the folder to another job writes no more to it.
  const bool may_write = checkpoint::Folder::join(files_, options_.folder, fence_).ok();
  if (options_.parity > 0 && may_write) return verify_with_parity(*mine, stop);
  return verify_shards(files_, mine->folder, *mine->manifest, stop);
}

// The save is as good without parity: what fails only there is told.
Status Saver::verify_with_parity(const checkpoint::Candidate& candidate, const checkpoint::Stop& stop) {
  MUSTER_ASSIGN(const checkpoint::ManifestJson save,
                checkpoint::read_manifest_json(files_, candidate.folder, candidate.id, options_.key));
  checkpoint::ParityOutcome outcome;
  MUSTER_TRY(checkpoint::verify_with_parity(files_, candidate.folder, save,
                                            static_cast<uint32_t>(options_.parity), outcome, {}, stop));
  if (outcome.failure)
    tell(EventKind::kLog, static_cast<control::Version>(candidate.id.version),
         "the save is verified, but not all of its parity is there: " + outcome.failure->message);
  return ok();
}

// Older versions go only when enough newer ones have been read back and found right. On the saving thread:
// what it has begun to write is no rubbish.
void Saver::note_verified_and_prune(const Save& save) {
  if (!folder_ || !folder_->owner()) return;  // the new owner prunes, after its next save
  Status noted = folder_->mark_verified(save.id);
  prune(save.open.version);
  // On a full disk there is space only now.
  if (!noted.ok()) noted = folder_->mark_verified(save.id);
  if (!noted.ok()) return tell(EventKind::kLog, save.open.version, noted.error().message);
  tell(EventKind::kSaveVerified, save.open.version,
       "its files were read back, and fit its manifest's digests");
}

// What a failed save has written takes space that the next one may need.
void Saver::clear_failed(const Save& save) {
  constexpr size_t kRemembered = 256;  // what cannot be removed now is tried again with the next ones
  failed_nonces_.push_back(save.id.nonce);
  if (failed_nonces_.size() > kRemembered) failed_nonces_.pop_front();
  if (!folder_ || !folder_->owner())
    return;  // who owns it does it, or will: the owner may be the one that is lost
  prune(save.open.version);
}

void Saver::prune(control::Version version) {
  checkpoint::RetentionPolicy policy;
  policy.keep_last = static_cast<size_t>(options_.keep);
  policy.keep_every = options_.keep_every;
  policy.keep_younger_ms = options_.keep_younger_ms;
  policy.abandoned_at_once = options_.tier == Tier::kLocal;  // decided by the shared folder's record
  policy.failed_nonces = {failed_nonces_.begin(), failed_nonces_.end()};
  {
    const std::lock_guard lock(mutex_);
    policy.verified_nonces = verified_nonces_;
    if (kept_) policy.held_versions.insert(static_cast<uint64_t>(kept_->second));
    if (save_ && failed_save_ != save_->open.save) policy.live_nonces.insert(save_->id.nonce);
  }
  auto pruned = folder_->prune(policy, wall_time_ms());
  if (!pruned.ok()) return tell(EventKind::kLog, version, pruned.error().message);
  for (const std::string& folder : pruned->removed) tell_of_removal(policy, folder);
}

// A person who looks for a save finds here why it is gone.
void Saver::tell_of_removal(const checkpoint::RetentionPolicy& policy, const std::string& folder) {
  const auto id = checkpoint::parse_save_name(folder.substr(folder.rfind('/') + 1));
  if (!id) return;
  std::string why =
      "the retention keeps the newest " + std::to_string(policy.keep_last) + " that are verified";
  if (policy.keep_every != 0) why += ", multiples of " + std::to_string(policy.keep_every);
  if (policy.keep_younger_ms > 0)
    why += ", those younger than " + std::to_string(policy.keep_younger_ms / 1000) + " s";
  why += ", and it is none of these";
  if (policy.failed_nonces.contains(id->nonce)) why = "the save failed, and nobody will publish it";
  tell(EventKind::kDecided, static_cast<control::Version>(id->version), "removed " + folder + ": " + why);
}

control::Version Saver::durable() const {
  const std::lock_guard lock(mutex_);
  return durable_;
}

std::optional<std::string> Saver::outcome(control::Version version) const {
  const std::lock_guard lock(mutex_);
  if (durable_ >= version) return "";
  if (failed_ == version) return failed_why_;
  return std::nullopt;
}

// ---- restoring

Result<checkpoint::Folder*> Saver::folder() {
  const auto [first, rescue] = [&] {
    const std::lock_guard lock(mutex_);
    return std::pair(save_ && save_->index == 0, save_ && save_->open.rescue);
  }();
  MUSTER_TRY(become(first, rescue, own_timeout(rescue)));
  return &*folder_;
}

// For who was the owner, in a save: training may wait for it meanwhile, and goes before a node's own.
Duration Saver::own_timeout(bool rescue) const {
  if (options_.tier == Tier::kLocal) return kNoWait;
  return rescue ? kRescueOwnTimeout : kOwnTimeout;
}

Status Saver::become(bool first) {
  return become(first, false, options_.tier == Tier::kLocal ? kLocalOwnTimeout : kOwnTimeout);
}

// The owner's handle for the first participant, else one for a rank of the owner's job. A rank that was the
// first, until a joiner came before it, leaves the folder to the new first one, which waits for that.
Status Saver::become(bool first, bool rescue, Duration wait) {
  if (folder_ && folder_->owner() == first) return ok();
  if (options_.tier == Tier::kLocal) MUSTER_TRY(checkpoint::make_private_folder(files_, options_.folder));
  MUSTER_ASSIGN(folder_, folder_as(first, rescue, wait));
  folder_->use_key(options_.key);
  if (first) fence_ = folder_->fence();
  return ok();
}

Result<checkpoint::Folder> Saver::folder_as(bool first, bool rescue, Duration wait) {
  if (!first) return checkpoint::Folder::look(files_, options_.folder);
  auto owned = retry_until(now() + wait, [&] {
    return checkpoint::Folder::own(files_, options_.folder, who_am_i(),
                                   options_.tier == Tier::kLocal ? kLocalHelp : checkpoint::kEndThatJob);
  });
  // The owner is out of reach and may not be dead, only frozen: what is saved now is saved beside it.
  if (!owned.ok() && rescue && owned.error().code == ErrorCode::kRetry) {
    owned = checkpoint::Folder::guest(files_, options_.folder);
  }
  return owned;
}

// Who is the first now waits for the lock.
void Saver::leave_to_first() {
  if (folder_ && folder_->owner()) folder_.reset();
}

Status Saver::take_folder(bool first) {
  {
    const std::lock_guard lock(mutex_);
    if (save_) save_->progress->hurry();  // it is behind that
  }
  return worker_.call([&]() -> Status {
    if (first) {
      MUSTER_TRY(become(true));
      return options_.tier == Tier::kShared ? restore_manifests() : ok();  // before the others list them
    }
    leave_to_first();
    return ok();
  });
}

Result<Saver::Found> Saver::find_versions() {
  return worker_.call([&] { return sort_out_versions(); });
}

Result<Saver::Found> Saver::sort_out_versions() {
  if (!folder_) MUSTER_TRY(become(false));
  auto versions = folder_->versions();
  if (!versions.ok() && versions.error().code == ErrorCode::kRetry) return std::move(versions).error();
  // Not a matter of which version: a person has to look, and starting again would not help.
  if (!versions.ok()) return Error{ErrorCode::kEnvironment, versions.error().message};
  Found found;
  for (checkpoint::Candidate& candidate : *versions) {
    if (!candidate.finished) {
      found.unfinished.push_back(std::move(candidate));
    } else if (candidate.abandoned) {
      continue;
    } else if (!candidate.unusable) {
      found.usable.push_back(std::move(candidate));
    } else if (candidate.unusable->code == ErrorCode::kMisuse) {
      return *candidate.unusable;  // a later format: a person must choose, falling back would hide it
    } else {
      ++found.rejected;
      tell(EventKind::kVersionRejected, static_cast<control::Version>(candidate.id.version),
           candidate.unusable->message);
    }
  }
  tell_of_unchecked_seals(found);
  return found;
}

// A save whose manifest.json is damaged would be passed over, abandoned by what the run goes on from, and
// removed, before anybody could put it back. REQUIRES: this rank owns the folder.
Status Saver::restore_manifests() {
  const auto versions = folder_->versions();
  if (!versions.ok()) return ok();  // it is told by whoever lists them next
  for (const checkpoint::Candidate& candidate : *versions) {
    if (!candidate.finished || candidate.manifest || !candidate.unusable ||
        candidate.unusable->code != ErrorCode::kDropCheckpoint)
      continue;
    const auto restored = checkpoint::restore_manifest(files_, candidate.folder, candidate.id, options_.key);
    if (!restored.ok() && restored.error().code == ErrorCode::kRetry) return restored.error();
    const auto version = static_cast<control::Version>(candidate.id.version);
    if (!restored.ok())
      tell(EventKind::kLog, version, "its manifest was not put back: " + restored.error().message);
    else if (*restored)
      tell(EventKind::kDecided, version,
           "manifest.json of " + to_string(candidate.id) + ", rebuilt from the copy in its parity (" +
               candidate.unusable->message + ")");
  }
  return ok();
}

// Its digests are right or it is not used; who made it nobody has looked at.
void Saver::tell_of_unchecked_seals(const Found& found) {
  const auto sealed = std::ranges::find_if(
      found.usable, [](const checkpoint::Candidate& candidate) { return candidate.manifest->key_id != 0; });
  if (options_.key || sealed == found.usable.end() || !folder_->owner()) return;  // one rank says it
  if (std::exchange(told_of_seals_, true)) return;
  tell(EventKind::kLog, static_cast<control::Version>(sealed->id.version),
       to_string(sealed->id) + " is sealed with the key " + checkpoint::hex64(sealed->manifest->key_id) +
           ", and this job was given no checkpoint_key_file: only its digests are checked, and what this job "
           "saves is not sealed");
}

// A job that died in its first save, or manifests that someone removed.
void Saver::tell_of_unfinished(const Found& found) {
  const bool is_owner = worker_.call([&] { return folder_ && folder_->owner(); });
  if (!is_owner) return;  // one rank says it
  const auto has_shard = [this](const checkpoint::Candidate& candidate) {
    const auto names = files_.list(candidate.folder);
    return names.ok() && std::any_of(names->begin(), names->end(),
                                     [](const std::string& name) { return name.starts_with("shard-"); });
  };
  const auto newest = std::find_if(found.unfinished.begin(), found.unfinished.end(), has_shard);
  if (newest == found.unfinished.end()) return;
  const auto count = std::count_if(newest, found.unfinished.end(), has_shard);
  tell(EventKind::kVersionRejected, static_cast<control::Version>(newest->id.version),
       options_.folder + " has shards of " + std::to_string(count) + " saves, the newest of " +
           to_string(newest->id) +
           ", and no manifest: no save was ever finished, or the manifests were removed; the run starts at "
           "its beginning");
}

Result<checkpoint::Lineage> Saver::branch() {
  return worker_.call([&]() -> Result<checkpoint::Lineage> {
    if (!folder_) MUSTER_TRY(become(false));
    return folder_->branch();
  });
}

Status Saver::check_same_job(const checkpoint::Candidate& candidate) const {
  return checkpoint::check_same_job(candidate.manifest->job, job_);
}

bool Saver::lacks_tensors(const checkpoint::Candidate& candidate) const {
  const auto match = checkpoint::match_tensors(candidate.manifest->tensors, specs(), options_.rules);
  return match.ok() && !match->missing.empty();
}

Result<std::vector<checkpoint::Range>> Saver::pieces(uint32_t part, uint32_t parts) const {
  MUSTER_ASSIGN(const checkpoint::SavePlan plan, checkpoint::plan_shares(specs(), parts));
  std::vector<uint64_t> begins;
  uint64_t offset = 0;
  for (const TensorInfo& tensor : state_.tensors()) {
    begins.push_back(offset);
    offset += tensor.bytes;
  }
  std::vector<checkpoint::Range> ranges;
  for (const checkpoint::Piece& piece : plan.pieces(part)) {  // none of a sharded tensor
    ranges.push_back({begins[piece.tensor] + piece.bytes.begin, begins[piece.tensor] + piece.bytes.end});
  }
  return ranges;
}

Status Saver::restore(const checkpoint::Candidate& candidate, uint32_t part, uint32_t parts,
                      MutableByteSpan staged, ShardBlocks& shards) {
  MUSTER_TRY(check_same_job(candidate));
  checkpoint::RestoreRequest request;
  request.tensors = specs();
  request.part = part;
  request.parts = parts;
  request.share = checkpoint::ReadShare::kPart;
  request.rules = options_.rules;
  const ShardedTensors& sharded = state_.sharded();
  request.held.count = sharded.shards();
  for (const auto& [shard, block] : shards) request.held.mine.push_back(shard);
  if (request.rules.missing) state_.copy_to(staged);  // what the checkpoint lacks stays as the program has it
  std::vector<MutableByteSpan> memory;
  size_t offset = 0;
  for (const TensorInfo& tensor : state_.tensors()) {
    memory.push_back(staged.subspan(offset, tensor.bytes));
    offset += tensor.bytes;
  }
  std::vector<ByteBuffer> local;  // of sharded tensors; what the checkpoint lacks stays here, too
  for (size_t t = 0; t < sharded.tensors().size(); ++t) {
    memory.emplace_back(local.emplace_back(sharded.local_copy(t, shards)));
  }
  auto report = checkpoint::restore(files_, candidate.folder, *candidate.manifest, request, memory);
  if (!report.ok()) return std::move(report).error();
  for (size_t t = 0; t < local.size(); ++t) sharded.fill(t, local[t], shards);
  if (part == 0) tell_of_differences(*candidate.manifest, *report);
  return ok();
}

void Saver::tell_of_differences(const checkpoint::Manifest& manifest,
                                const checkpoint::RestoreReport& report) {
  const auto match = checkpoint::match_tensors(manifest.tensors, specs(), options_.rules);
  if (!match.ok()) return;  // not restored either
  std::string text;
  const auto add = [&text](const char* what, const std::vector<std::string>& names) {
    if (names.empty()) return;
    text += (text.empty() ? "" : "; ") + std::string(what) + ":";
    constexpr size_t kNamed = 8;
    for (size_t i = 0; i < std::min(names.size(), kNamed); ++i) text += " '" + names[i] + "'";
    if (names.size() > kNamed) text += " and " + std::to_string(names.size() - kNamed) + " more";
  };
  add("not in the checkpoint, left as the program had them", match->missing);
  add("in the checkpoint only, not read", match->extra);
  add("of another shape there", match->reshaped);
  add("of another type there", match->cast);
  if (report.became_infinite > 0)
    text += "; values that became infinite in this rank's part: " + std::to_string(report.became_infinite);
  if (!text.empty())
    tell(EventKind::kLog, static_cast<control::Version>(manifest.id.version), "restored, " + text);
}

Result<checkpoint::RepairReport> Saver::repair_now(const checkpoint::Candidate& candidate, Instant deadline) {
  MUSTER_ASSIGN(const auto versions, folder_->versions());
  checkpoint::RepairOptions options;
  for (const checkpoint::Candidate& other : versions)
    if (other.manifest) options.others.push_back({other.folder, other.manifest});
  options.key = options_.key;
  options.mend_parity = false;
  options.stop = [this, deadline] {
    const std::lock_guard lock(mutex_);
    return stopping_ || now() >= deadline;
  };
  return checkpoint::repair_save(files_, candidate.folder, candidate.id, options);
}

bool Saver::repair(const checkpoint::Candidate& candidate, Instant deadline) {
  const auto parity = checkpoint::find_parity(files_, candidate.folder);
  if (!parity.ok() || parity->empty()) return false;
  const auto repaired = worker_.call([&]() -> std::optional<Result<checkpoint::RepairReport>> {
    if (!folder_ || !folder_->owner()) return std::nullopt;
    return repair_now(candidate, deadline);
  });
  if (!repaired) return false;
  const auto version = static_cast<control::Version>(candidate.id.version);
  if (!repaired->ok()) {
    tell(EventKind::kLog, version, "it was not repaired: " + repaired->error().message);
    return false;
  }
  for (const checkpoint::FileRepair& file : (*repaired)->files) {
    tell(EventKind::kDecided, version,
         file.file + " of " + to_string(candidate.id) + ", " + to_string(file.what) + " " + file.how + " (" +
             file.damage + ")");
  }
  if ((*repaired)->ended_by)
    tell(EventKind::kLog, version, "its repair was not finished: " + (*repaired)->ended_by->message);
  if (!(*repaired)->has_changed()) return false;
  const std::lock_guard lock(mutex_);
  repaired_ = candidate.id;
  return true;  // all that is needed of it is verified when it is read once more
}

void Saver::give_parity(const checkpoint::Candidate& candidate) {
  if (options_.parity == 0) return;
  const auto found = checkpoint::find_parity(files_, candidate.folder);
  if (!found.ok() || !candidate.manifest || candidate.manifest->compressed()) return;
  const auto participants = static_cast<uint32_t>(candidate.manifest->shards.size());
  const bool is_there =
      !found->empty() && found->size() >= checkpoint::expected_parity(*found, participants).size();
  Save save;
  save.id = candidate.id;
  save.open.version = static_cast<control::Version>(candidate.id.version);
  const std::lock_guard lock(mutex_);
  if (is_there && repaired_ != candidate.id) return;
  to_verify_ = save;
  verifier_.post([this] { verify_newest(); });
}

Status Saver::go_on_along(const control::Lineage& branch, const std::string& why) {
  return worker_.call([&]() -> Status {
    const bool is_owner = folder_ && folder_->owner();
    if (options_.tier == Tier::kLocal && !is_owner) return ok();  // take_folder() failed, and that was told
    MUSTER_TRY(become(true));
    return abandon_others(to_checkpoint(branch), why);
  });
}

// A node that joins was not at the start, which tells the folders of the others. What it has of a history
// that the job has left may be of later versions: its new saves would count as the older ones, and be
// removed.
Status Saver::keep_to_branch(const checkpoint::Lineage& branch) {
  MUSTER_ASSIGN(const checkpoint::Lineage known, folder_->branch());
  if (known == branch) return ok();
  return abandon_others(branch, "this node saves what comes after");
}

// REQUIRES: this rank owns the folder.
Status Saver::abandon_others(const checkpoint::Lineage& branch, const std::string& why) {
  MUSTER_ASSIGN(const auto abandoned, folder_->abandon_for(branch, why));
  for (const checkpoint::VersionId& id : abandoned) {
    tell(EventKind::kAbandoned, static_cast<control::Version>(id.version), to_string(id) + ": " + why);
  }
  if (options_.tier == Tier::kLocal && !abandoned.empty()) prune(control::kNoVersion);
  return ok();
}

void Saver::note_start(const checkpoint::VersionId& parent, control::Version durable,
                       control::Version to_save) {
  const std::lock_guard lock(mutex_);
  parent_ = parent;
  durable_ = durable;
  start_ = to_save;
}

}  // namespace muster
