// The beginning of a run, inside its first view: all ranks agree on the version to start from, collectively,
// so that one rank's damaged or missing file sends all of them to the same older version.
#include <algorithm>

#include "runtime/run.h"

namespace muster {
namespace {

// What the ranks decide by; the smallest answer of any rank counts.
enum class Verdict : int64_t { kMisuse = 0, kUnable = 1, kDamaged = 2, kGood = 3 };

// A process that lacks memory or descriptors says nothing about a version, and must not have it passed over.
Verdict verdict_on(const Error& error) {
  if (error.code == ErrorCode::kMisuse) return Verdict::kMisuse;
  return error.code == ErrorCode::kRetry ? Verdict::kUnable : Verdict::kDamaged;
}

// Every wait below is for the operation's own end, which its deadline bounds: until then it uses the buffers.

// One rank's bytes to all. Every rank passes a buffer; its size is the root's afterwards.
Status broadcast_bytes(Group& group, ByteBuffer& bytes, int root, Instant deadline) {
  int64_t size = static_cast<int64_t>(bytes.size());
  MUSTER_TRY(group.broadcast(&size, &size, 1, DType::kInt64, root, deadline).wait());
  bytes.resize(static_cast<size_t>(size));
  if (bytes.empty()) return ok();
  return group.broadcast(bytes.data(), bytes.data(), bytes.size(), DType::kUInt8, root, deadline).wait();
}

Result<Verdict> combine(Group& group, Verdict mine, Instant deadline) {
  auto value = static_cast<int64_t>(mine);
  MUSTER_TRY(group.all_reduce(&value, &value, 1, DType::kInt64, ReduceOp::kMin, deadline).wait());
  return static_cast<Verdict>(value);
}

// The parts that the ranks read, to all of them: each byte was read from disk once.
Status exchange_parts(Group& group, const Saver& saver, MutableByteSpan staged, Instant deadline) {
  for (int root = 0; root < group.size(); ++root) {
    MUSTER_ASSIGN(const auto ranges,
                  saver.pieces(static_cast<uint32_t>(root), static_cast<uint32_t>(group.size())));
    for (const checkpoint::Range& range : ranges) {
      std::byte* data = staged.data() + range.begin;
      MUSTER_TRY(group.broadcast(data, data, range.size(), DType::kUInt8, root, deadline).wait());
    }
  }
  return ok();
}

// Replicated state must be the same bits everywhere before the first step (PROTOCOL 5).
Status check_equal(Group& group, const Digest& digest, const std::string& what, Instant deadline) {
  std::vector<Digest> all(static_cast<size_t>(group.size()));
  MUSTER_TRY(group.all_gather(&digest, all.data(), 2, DType::kUInt64, deadline).wait());
  std::string differing;
  for (size_t rank = 1; rank < all.size(); ++rank) {
    if (all[rank] != all[0]) differing += (differing.empty() ? "" : ", ") + std::to_string(rank);
  }
  if (differing.empty()) return ok();
  return Error{ErrorCode::kMisuse,
               what + " of rank " + differing +
                   " differs from rank 0's before the first step; initialise it from the same "
                   "seed and inputs on every rank"};
}

}  // namespace

Status Run::start_up(Lock& lock) {
  Group& group = *group_;  // replaced by this thread only
  control::Lineage lineage;
  lock.unlock();
  auto start = agree_on_start(group);
  lock.lock();
  if (!start.ok()) {
    const Error error = std::move(start).error();
    if (error.code == ErrorCode::kMisuse || error.code == ErrorCode::kEnvironment) {
      say(control::Leaving{78, control::kNoVersion, error.message});
      return error;
    }
    if (error.code == ErrorCode::kRetry) {
      leaving_said_ = true;
      say(control::Leaving{control::kExitRequeue, control::kNoVersion, error.message});
      return ok();
    }
    (void)step_failed(lock, error, {});
    return ok();
  }
  if (core_.revoked() || core_.ended()) return ok();
  if (start->state || !start->shards.empty()) {
    lock.unlock();
    const Instant deadline = now() + options_.step_timeout;
    Status installed = start->state ? state_.install(*start->state, deadline) : ok();
    if (installed.ok() && !start->shards.empty())
      installed = state_.install_shards(start->shards, {}, deadline);
    lock.lock();
    if (!installed.ok()) {
      perform(core_.broken(now(), "the state could not be installed: " + installed.error().message));
      return ok();
    }
    restored_ = restored_ || start->state;
  }
  if (view_is_over()) return ok();
  started_ = true;
  prepare_saves();
  perform(core_.started(start->version, start->digest, start->lineage));
  return ok();
}

Result<Run::Start> Run::agree_on_start(Group& group) {
  const Instant deadline = now() + options_.step_timeout;
  // The program may have set its first values until now.
  MUSTER_TRY(state_.begin_write(deadline));
  state_.lane_values().commit();
  state_.sharded().keep_only({});  // of what is over; memory has to hold those of the start
  const Status noted = state_.note_written();
  state_.end_write();
  MUSTER_TRY(noted);
  MUSTER_TRY(state_.acquire_read(deadline));
  const Status readable = state_.wait_readable(deadline);
  auto start = readable.ok() ? agree_under_lease(group) : Result<Start>(readable.error());
  state_.release_read();
  return start;
}

Result<ShardBlocks> Run::initial_shards() const {
  ShardBlocks blocks;
  for (const uint32_t shard : my_shards_) {
    MUSTER_ASSIGN(LargeBuffer block, state_.sharded().initial_block(shard));
    blocks.insert_or_assign(shard, std::move(block));
  }
  return blocks;
}

Result<Run::Start> Run::agree_under_lease(Group& group) {
  const Instant deadline = now() + options_.step_timeout;
  Start start;
  if (saver_.enabled()) {
    MUSTER_ASSIGN(auto restored, restore_newest(group));
    if (restored) start = std::move(*restored);
  }
  if (start.state) {
    std::vector<Digest> parts;
    size_t offset = 0;
    for (const TensorInfo& tensor : state_.tensors()) {
      parts.push_back(digest_of(ByteSpan(start.state->data() + offset, tensor.bytes)));
      offset += tensor.bytes;
    }
    start.digest = digest_of(parts);
  } else {
    MUSTER_TRY(check_initial(
        group, trained_ || restored_,
        "no member holds a whole version and none is saved; the next launch starts at the beginning"));
    start.digest = state_.digest();
    MUSTER_ASSIGN(start.shards, initial_shards());
  }
  MUSTER_TRY(check_equal(group, start.digest, "the replicated state", deadline));
  return start;
}

// Something begins as the program has initialised it: the same on all ranks, if it is not gone on any of
// them. Errors: kRetry with `gone`.
Status Run::check_initial(Group& group, bool is_gone, const char* gone) {
  const Instant deadline = now() + options_.step_timeout;
  MUSTER_ASSIGN(const Verdict fresh, combine(group, is_gone ? Verdict::kUnable : Verdict::kGood, deadline));
  if (fresh != Verdict::kGood) return Error{ErrorCode::kRetry, gone};
  return check_equal(group, state_.sharded().digest_of_working_copies(), "the memory of the working copies",
                     deadline);
}

// Rank 0 proposes, newest first; a version counts only when every rank could read and verify its part.
Result<std::optional<Run::Start>> Run::restore_newest(Group& group) {
  // Who was the first has left the folder before the time begins that the first one waits for it.
  if (group.rank() != 0) MUSTER_TRY(saver_.take_folder(false));
  const Instant deadline = now() + options_.step_timeout;
  MUSTER_ASSIGN(const Verdict fresh,
                combine(group, trained_ || restored_ ? Verdict::kUnable : Verdict::kGood, deadline));
  const Status listed = group.rank() == 0 ? saver_.take_folder(true) : ok();
  Verdict taken = Verdict::kGood;
  if (!listed.ok()) {
    // Another job's, or, where this one is on its way already, one of its own that is still busy.
    const bool is_busy = listed.error().code == ErrorCode::kRetry && fresh != Verdict::kGood;
    taken = is_busy ? Verdict::kUnable : Verdict::kMisuse;
  }
  MUSTER_ASSIGN(const Verdict owned, combine(group, taken, deadline));
  if (owned != Verdict::kGood) {
    const std::string why = listed.ok() ? "rank 0 cannot use the checkpoint folder " + options_.save.folder
                                        : listed.error().message;
    return Error{owned == Verdict::kUnable ? ErrorCode::kRetry : ErrorCode::kMisuse, why};
  }

  auto candidates = saver_.usable_versions();
  MUSTER_ASSIGN(const Verdict found,
                combine(group, candidates.ok() ? Verdict::kGood : Verdict::kMisuse, deadline));
  if (!candidates.ok()) return std::move(candidates).error();
  if (found != Verdict::kGood)
    return Error{ErrorCode::kMisuse,
                 "another rank cannot read the checkpoint folder " + options_.save.folder};

  ByteBuffer proposals;
  if (group.rank() == 0) {
    const std::vector<checkpoint::VersionId> ids = checkpoint::usable(*candidates);
    const auto bytes = std::as_bytes(std::span(ids));
    proposals.assign(bytes.begin(), bytes.end());
  }
  MUSTER_TRY(broadcast_bytes(group, proposals, 0, deadline));
  std::vector<checkpoint::VersionId> ids(proposals.size() / sizeof(checkpoint::VersionId));
  if (!ids.empty()) std::memcpy(ids.data(), proposals.data(), proposals.size());

  for (const checkpoint::VersionId& id : ids) {
    const auto mine =
        std::find_if(candidates->begin(), candidates->end(), [&](const auto& c) { return c.id == id; });
    ByteBuffer staged(state_.bytes());
    MUSTER_ASSIGN(ShardBlocks shards, initial_shards());
    Status read =
        Error{ErrorCode::kDropCheckpoint, to_string(id) + " is not seen by this rank; is the folder shared?"};
    if (mine != candidates->end()) {
      read = saver_.restore(*mine, static_cast<uint32_t>(group.rank()), static_cast<uint32_t>(group.size()),
                            staged, shards);
    }
    Verdict verdict = Verdict::kGood;
    if (!read.ok()) verdict = verdict_on(read.error());
    MUSTER_ASSIGN(const Verdict all, combine(group, verdict, deadline));
    if (!read.ok() && verdict == Verdict::kMisuse) return std::move(read).error();
    if (all == Verdict::kUnable) {
      return Error{ErrorCode::kEnvironment,
                   verdict == all ? read.error().message
                                  : "another rank lacks what it needs to read " + to_string(id)};
    }
    if (all == Verdict::kMisuse) return Error{ErrorCode::kMisuse, "another rank refuses " + to_string(id)};
    if (all == Verdict::kDamaged) {
      const std::string why = read.ok() ? "another rank found it damaged" : read.error().message;
      emit(EventKind::kVersionRejected, static_cast<control::Version>(id.version), why);
      continue;
    }
    MUSTER_TRY(exchange_parts(group, saver_, staged, deadline));
    if (saver_.lacks_tensors(*mine)) {
      MUSTER_TRY(
          check_initial(group, trained_,
                        "the newest save lacks a tensor, which begins as the program initialised it, and "
                        "members have trained it since; the next launch goes on from that save"));
    }
    Start start;
    start.version = static_cast<control::Version>(id.version);
    start.lineage = to_control(mine->manifest->lineage);
    start.state = std::move(staged);
    start.shards = std::move(shards);
    if (group.rank() == 0) {
      control::Lineage branch = start.lineage;
      branch.push_back({view_.generation, start.version});
      MUSTER_TRY(saver_.go_on_from(*mine, branch));
    }
    saver_.note_parent(*mine);
    emit(EventKind::kResumed, start.version, to_string(id));
    return std::optional<Start>(std::move(start));
  }
  if (ids.empty()) return std::optional<Start>();
  return Error{ErrorCode::kEnvironment,
               "none of the " + std::to_string(ids.size()) + " checkpoints in " + options_.save.folder +
                   " can be used, see the events; repair them, or name an empty folder to start anew"};
}

}  // namespace muster
