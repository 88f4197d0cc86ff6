#include "runtime/saver.h"

#include <unistd.h>

#include <algorithm>
#include <thread>

#include "checkpoint/restore.h"
#include "runtime/base/random.h"

namespace muster {
namespace {

constexpr Duration kHoldTimeout = 5 * kSecond;     // from hold() to the leader's SaveOpen
constexpr Duration kOwnTimeout = 10 * kSecond;     // a dying owner's lock goes with its process
constexpr Duration kFolderTimeout = 30 * kSecond;  // for the first participant to create the save's folder
constexpr Duration kReadTimeout = 60 * kSecond;

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
             Say say, Emit emit)
    : state_(state),
      options_(std::move(options)),
      job_(std::move(job)),
      samples_per_step_(samples_per_step),
      say_(std::move(say)),
      emit_(std::move(emit)),
      worker_("muster-save") {}

Saver::~Saver() {
  worker_.stop();
  release();
}

std::vector<checkpoint::TensorSpec> Saver::specs() const {
  std::vector<checkpoint::TensorSpec> specs;
  for (const TensorInfo& tensor : state_.tensors()) {
    specs.push_back(
        {tensor.name, tensor.dtype, {tensor.shape.begin(), tensor.shape.end()}, checkpoint::kReplicated});
  }
  return specs;
}

void Saver::tell(EventKind kind, control::Version version, std::string text, int64_t amount) {
  Event event;
  event.kind = kind;
  event.at = now();
  event.version = version;
  event.amount = amount;
  event.text = std::move(text);
  emit_(std::move(event));
}

// ---- saving

void Saver::hold(control::Version version, bool last) {
  release();
  if (!state_.acquire_read(now()).ok()) return;  // an update is open: not the program's thread in next()
  const std::lock_guard lock(mutex_);
  last_hold_ = version;
  if (early_ && early_->open.version == version) {  // opened by a member that reached the version sooner
    worker_.post([this, save = *std::exchange(early_, std::nullopt)] { run(save, true); });
    return;
  }
  held_ = version;
  expires_ = last ? kNever : now() + kHoldTimeout;
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
  const std::lock_guard lock(mutex_);
  save_ = save;
  early_.reset();
  // The lease goes over to the save. A stop-save needs none before its turn: no permit leads beyond its
  // version.
  const bool held = held_ == open.version;
  if (held) held_.reset();
  if (held || open.stop) {
    worker_.post([this, save, held] { run(save, held); });
  } else if (open.version > last_hold_) {
    early_ = save;
  } else {
    say_(control::SaveVote{open.save, false, {}, "the state had moved on before the save was opened"});
  }
}

void Saver::run(const Save& save, bool held) {
  auto record = stage_and_write(save, held);
  if (held) state_.release_read();
  if (record.ok()) {
    say_(control::SaveVote{save.open.save, true, encode(*record), ""});
  } else {
    say_(control::SaveVote{save.open.save, false, {}, record.error().message});
  }
}

Result<checkpoint::ShardRecord> Saver::stage_and_write(const Save& save, bool& held) {
  if (!enabled()) return Error{ErrorCode::kDropCheckpoint, "the program gave no checkpoint folder"};
  if (!held) {
    MUSTER_TRY(state_.acquire_read(now() + kReadTimeout));
    held = true;
  }
  const Instant began = now();
  auto staged = stage(save);
  held = false;
  state_.release_read();
  if (!staged.ok()) return std::move(staged).error();
  if (save.index == 0) tell(EventKind::kSaveStaged, save.open.version, "", now() - began);

  MUSTER_ASSIGN(checkpoint::Folder * folder, this->folder());
  if (save.index == 0) {
    auto created = folder->begin_save(save.id);
    if (!created.ok()) return std::move(created).error();
  } else {
    MUSTER_TRY(wait_for_folder(folder->save_folder(save.id)));
  }
  checkpoint::WriteOptions options;
  options.writer_nonce = random_nonce();
  const checkpoint::StageProgress progress;
  auto record = write_shard(real_files(), folder->save_folder(save.id), *staged, options, progress);
  buffer_ = std::move(staged->buffer);
  return record;
}

Result<checkpoint::StagedShard> Saver::stage(const Save& save) {
  const auto count = static_cast<uint32_t>(save.open.participants.size());
  if (!template_ || template_->participant != save.index || template_->participants != count) {
    MUSTER_ASSIGN(const checkpoint::SavePlan plan, checkpoint::plan_save(specs(), count));
    MUSTER_ASSIGN(template_, checkpoint::make_shard_template(plan, save.index));
  }
  std::vector<ByteSpan> memory;
  for (const TensorInfo& tensor : state_.tensors()) memory.emplace_back(tensor.data, tensor.bytes);
  checkpoint::StageProgress progress;
  return checkpoint::stage(template_, save.id, checkpoint::read_from(std::move(memory)), std::move(buffer_),
                           progress);
}

Status Saver::wait_for_folder(const std::string& folder) {
  return retry_until(now() + kFolderTimeout, [&]() -> Status {
    MUSTER_ASSIGN(const auto found, real_files().stat(folder));
    if (found) return ok();
    return Error{ErrorCode::kRetry, "the first participant has not created " + folder};
  });
}

void Saver::publish(const control::SavePublish& publish) {
  const std::lock_guard lock(mutex_);
  if (!save_ || save_->open.save != publish.save) {
    say_(control::SavePublished{publish.save, false, "the publisher takes part in a newer save"});
    return;
  }
  worker_.post([this, save = *save_, publish] {
    const Status published = publish_now(save, publish);
    say_(control::SavePublished{publish.save, published.ok(),
                                published.ok() ? "" : published.error().message});
  });
}

Status Saver::publish_now(const Save& save, const control::SavePublish& publish) {
  MUSTER_TRY(own());  // as a rule already so; else the owner died, and its lock with it
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
  std::vector<checkpoint::ShardRecord> records;
  for (const ByteBuffer& bytes : publish.records) {
    MUSTER_ASSIGN(records.emplace_back(), checkpoint::decode_shard_record(bytes));
  }
  MUSTER_TRY(adopt_shards(manifest, records));
  return folder->publish(manifest);
}

void Saver::closed(const control::SaveClosed& closed) {
  const std::lock_guard lock(mutex_);
  if (closed.save == 0 && held_ == closed.version) {
    held_.reset();
    state_.release_read();
  }
  if (!save_ || save_->open.save != closed.save) return;
  const control::Version version = save_->open.version;
  if (!closed.durable) {
    failed_ = version;
    return;
  }
  durable_ = std::max(durable_, version);
  parent_ = save_->id;
  if (save_->index != 0) return;
  worker_.post([this, save = *save_] { verify_and_prune(save); });
}

// Older versions go only when enough newer ones have been read back and found right.
void Saver::verify_and_prune(const Save& save) {
  if (!folder_ || !folder_->owner()) return;  // the new owner prunes, after its next save
  checkpoint::Folder* const folder = &*folder_;
  auto versions = folder->versions();
  if (!versions.ok()) return tell(EventKind::kSaveFailed, save.open.version, versions.error().message);
  const auto mine = std::find_if(versions->begin(), versions->end(),
                                 [&](const auto& candidate) { return candidate.id == save.id; });
  if (mine == versions->end() || !mine->manifest) return;
  Status verified = verify_shards(real_files(), folder->save_folder(save.id), *mine->manifest);
  if (verified.ok()) verified = folder->mark_verified(save.id);
  if (!verified.ok()) return tell(EventKind::kVersionRejected, save.open.version, verified.error().message);
  tell(EventKind::kSaveVerified, save.open.version, "");
  checkpoint::RetentionPolicy policy;
  policy.keep_last = static_cast<size_t>(options_.keep);
  {
    const std::lock_guard lock(mutex_);
    if (save_) policy.live_nonces.insert(save_->id.nonce);
  }
  auto pruned = folder->prune(policy, wall_time_ms());
  if (!pruned.ok()) tell(EventKind::kLog, save.open.version, pruned.error().message);
}

control::Version Saver::durable() const {
  const std::lock_guard lock(mutex_);
  return durable_;
}

bool Saver::settled(control::Version version) const {
  const std::lock_guard lock(mutex_);
  return durable_ >= version || failed_ == version;
}

// ---- restoring

// The owner's handle where this rank is the first participant, else one for a rank of the owner's job. A rank
// that was the first, until a joiner came before it, leaves the folder to the new first one, which waits for
// that.
Result<checkpoint::Folder*> Saver::folder() {
  const bool first = [&] {
    const std::lock_guard lock(mutex_);
    return save_ && save_->index == 0;
  }();
  if (folder_ && folder_->owner() == first) return &*folder_;
  if (first) {
    MUSTER_TRY(own());
  } else {
    MUSTER_ASSIGN(folder_, checkpoint::Folder::look(real_files(), options_.folder));
  }
  return &*folder_;
}

Status Saver::own() {
  if (folder_ && folder_->owner()) return ok();
  auto owned = retry_until(now() + kOwnTimeout, [&] {
    return checkpoint::Folder::own(real_files(), options_.folder, who_am_i());
  });
  if (!owned.ok()) return std::move(owned).error();
  folder_.emplace(std::move(*owned));
  return ok();
}

Result<std::vector<checkpoint::Candidate>> Saver::usable_versions() {
  if (!folder_) {
    MUSTER_ASSIGN(folder_, checkpoint::Folder::look(real_files(), options_.folder));
  }
  MUSTER_ASSIGN(auto candidates, folder_->versions());
  std::vector<checkpoint::Candidate> usable;
  for (checkpoint::Candidate& candidate : candidates) {
    if (!candidate.finished || candidate.abandoned) continue;
    if (!candidate.unusable) {
      usable.push_back(std::move(candidate));
    } else if (candidate.unusable->code == ErrorCode::kMisuse) {
      return *candidate.unusable;  // a later format: a person must choose, falling back would hide it
    } else {
      tell(EventKind::kVersionRejected, static_cast<control::Version>(candidate.id.version),
           candidate.unusable->message);
    }
  }
  return usable;
}

Status Saver::check_same_job(const checkpoint::Candidate& candidate) const {
  return checkpoint::check_same_job(candidate.manifest->job, job_);
}

Result<std::vector<checkpoint::Range>> Saver::pieces(uint32_t part, uint32_t parts) const {
  MUSTER_ASSIGN(const checkpoint::SavePlan plan, checkpoint::plan_save(specs(), parts));
  std::vector<uint64_t> begins;
  uint64_t offset = 0;
  for (const TensorInfo& tensor : state_.tensors()) {
    begins.push_back(offset);
    offset += tensor.bytes;
  }
  std::vector<checkpoint::Range> ranges;
  for (const checkpoint::Piece& piece : plan.pieces(part)) {
    ranges.push_back({begins[piece.tensor] + piece.bytes.begin, begins[piece.tensor] + piece.bytes.end});
  }
  return ranges;
}

Status Saver::restore(const checkpoint::Candidate& candidate, uint32_t part, uint32_t parts,
                      MutableByteSpan staged) {
  MUSTER_TRY(check_same_job(candidate));
  checkpoint::RestoreRequest request;
  request.tensors = specs();
  request.part = part;
  request.parts = parts;
  request.share = checkpoint::ReadShare::kPart;
  std::vector<MutableByteSpan> memory;
  size_t offset = 0;
  for (const TensorInfo& tensor : state_.tensors()) {
    memory.push_back(staged.subspan(offset, tensor.bytes));
    offset += tensor.bytes;
  }
  auto report = checkpoint::restore(real_files(), folder_->save_folder(candidate.id), *candidate.manifest,
                                    request, memory);
  if (!report.ok()) return std::move(report).error();
  return ok();
}

Status Saver::go_on_from(const checkpoint::Candidate& candidate, const control::Lineage& lineage) {
  auto abandoned =
      folder_->abandon_for(to_checkpoint(lineage), "the job went on from " + to_string(candidate.id));
  if (!abandoned.ok()) return std::move(abandoned).error();
  for (const checkpoint::VersionId& id : *abandoned) {
    tell(EventKind::kVersionRejected, static_cast<control::Version>(id.version),
         "abandoned: " + to_string(id));
  }
  return ok();
}

void Saver::note_parent(const checkpoint::Candidate& candidate) {
  const std::lock_guard lock(mutex_);
  parent_ = candidate.id;
  durable_ = static_cast<control::Version>(candidate.id.version);
}

}  // namespace muster
