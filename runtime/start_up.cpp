// The beginning of a run, inside its first view: all ranks agree on the version to start from, collectively,
// so that one rank's damaged or missing file sends all of them to the same older version.
#include <algorithm>
#include <set>

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

// Whether it is so on any rank.
Result<bool> any(Group& group, bool mine, Instant deadline) {
  int64_t value = mine ? 1 : 0;
  MUSTER_TRY(group.all_reduce(&value, &value, 1, DType::kInt64, ReduceOp::kMax, deadline).wait());
  return value != 0;
}

// The parts that `readers` have read, to all ranks: each byte was read from disk once.
Status exchange_parts(Group& group, const Saver& saver, std::span<const int> readers, MutableByteSpan staged,
                      Instant deadline) {
  for (size_t part = 0; part < readers.size(); ++part) {
    MUSTER_ASSIGN(const auto ranges,
                  saver.pieces(static_cast<uint32_t>(part), static_cast<uint32_t>(readers.size())));
    for (const checkpoint::Range& range : ranges) {
      std::byte* data = staged.data() + range.begin;
      MUSTER_TRY(group.broadcast(data, data, range.size(), DType::kUInt8, readers[part], deadline).wait());
    }
  }
  return ok();
}

const checkpoint::Candidate* find(const std::vector<checkpoint::Candidate>& candidates,
                                  const checkpoint::VersionId& id) {
  const auto found =
      std::find_if(candidates.begin(), candidates.end(), [&](const auto& c) { return c.id == id; });
  return found == candidates.end() ? nullptr : &*found;
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
  savers_.prepare(view_);
  perform(core_.started(start->version, start->digest, start->lineage, start->durable));
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
  if (savers_.shared().enabled()) {
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

bool Run::is_first_of_node() const {
  const std::vector<control::MemberId> here = members_on(view_, self_.node);
  return !here.empty() && here.front() == self_.id;
}

std::vector<int> Run::ranks_of_node() const {
  std::vector<int> ranks;
  for (const control::MemberId id : members_on(view_, self_.node))
    ranks.push_back(static_cast<int>(view_.rank_of(id).value_or(0)));
  return ranks;
}

Status Run::take_shared_folder(Group& group) {
  Saver& shared = savers_.shared();
  // Who was the first has left the folder before the time begins that the first one waits for it.
  if (group.rank() != 0) MUSTER_TRY(shared.take_folder(false));
  const Instant deadline = now() + options_.step_timeout;
  MUSTER_ASSIGN(const Verdict fresh,
                combine(group, trained_ || restored_ ? Verdict::kUnable : Verdict::kGood, deadline));
  const Status listed = group.rank() == 0 ? shared.take_folder(true) : ok();
  Verdict taken = Verdict::kGood;
  if (!listed.ok()) {
    // Another job's, or, where this one is on its way already, one of its own that is still busy: it may have
    // been excluded, and not know that.
    const bool on_its_way = fresh != Verdict::kGood || view_.generation.counter > 1;
    const bool is_busy = listed.error().code == ErrorCode::kRetry && on_its_way;
    taken = is_busy ? Verdict::kUnable : Verdict::kMisuse;
  }
  MUSTER_ASSIGN(const Verdict owned, combine(group, taken, deadline));
  if (owned == Verdict::kGood) return ok();
  const std::string why = listed.ok() ? "rank 0 cannot use the checkpoint folder " + options_.save.folder
                                      : listed.error().message;
  return Error{owned == Verdict::kUnable ? ErrorCode::kRetry : ErrorCode::kMisuse, why};
}

void Run::tell_of_local(const std::string& text) {
  emit(EventKind::kLog, control::kNoVersion, text, 0, -1, Tier::kLocal);
}

// A node's own folder, whose trouble is that node's affair: it is told, and the run starts from what others
// have. Errors: kRetry, which says nothing about what there is.
Status Run::find_local_saves(Findings& findings) {
  Saver* const local = savers_.of(Tier::kLocal);
  if (local == nullptr) return ok();
  findings.unjudged = !local->enabled();  // it was so at an earlier start of this launch
  if (findings.unjudged) return ok();
  const Status taken = local->take_folder(is_first_of_node());
  auto here = local->find_versions();
  if (here.ok()) {
    findings.local = *std::move(here);
    if (!taken.ok())
      tell_of_local("this node's own saves fail until it can have their folder: " + taken.error().message);
    return ok();
  }
  if (here.error().code == ErrorCode::kRetry) return std::move(here).error();
  // A person has to look: what comes to lie beside it could not be judged either.
  findings.unjudged = true;
  local->switch_off(here.error().message);
  if (is_first_of_node())
    tell_of_local("this node saves nothing for itself in this launch: " + here.error().message);
  return ok();
}

Result<Run::Findings> Run::find_saves(Group& group) {
  Findings findings;
  auto shared = savers_.shared().find_versions();
  const Status local = find_local_saves(findings);
  const bool sees_all = shared.ok() && local.ok();
  MUSTER_ASSIGN(const Verdict found,
                combine(group, sees_all ? Verdict::kGood : Verdict::kMisuse, now() + options_.step_timeout));
  // Also where a process lacks memory or descriptors: an older version would be taken for what it did not
  // see.
  if (!sees_all)
    return Error{ErrorCode::kEnvironment, (shared.ok() ? local.error() : shared.error()).message};
  if (found != Verdict::kGood)
    return Error{ErrorCode::kMisuse, "another rank cannot read the checkpoint folder " +
                                         options_.save.folder + ", or its node's own; see what it says"};
  findings.shared = *std::move(shared);
  return findings;
}

// What each rank has found, to all of them.
Result<std::vector<FoundByRank>> Run::exchange_findings(Group& group, const Findings& mine) {
  const Instant deadline = now() + options_.step_timeout;
  FoundByRank own;
  own.saves_locally = savers_.local() != nullptr;
  own.local = found_saves(mine.local.usable);
  if (is_first_of_node()) own.local_rejected = mine.local.rejected;
  own.unjudged = mine.unjudged;
  Result<checkpoint::Lineage> branch = checkpoint::Lineage();
  if (group.rank() == 0) {
    own.shared_rejected = mine.shared.rejected;
    own.shared = found_saves(mine.shared.usable);
    branch = savers_.shared().branch();
    if (branch.ok()) own.branch = *branch;
  }
  MUSTER_ASSIGN(const Verdict known,
                combine(group, branch.ok() ? Verdict::kGood : Verdict::kUnable, deadline));
  if (known != Verdict::kGood)
    return Error{ErrorCode::kEnvironment, branch.ok()
                                              ? "rank 0 cannot read the checkpoint folder's branch record"
                                              : branch.error().message};
  MUSTER_ASSIGN(const bool any_local, any(group, own.saves_locally || own.unjudged, deadline));
  std::vector<FoundByRank> by_rank(static_cast<size_t>(group.size()));
  // As a rule nobody does, and rank 0's word is all that counts.
  for (int rank = 0; rank < (any_local ? group.size() : 1); ++rank) {
    ByteBuffer bytes = rank == group.rank() ? encode(own) : ByteBuffer();
    MUSTER_TRY(broadcast_bytes(group, bytes, rank, deadline));
    MUSTER_ASSIGN(by_rank[static_cast<size_t>(rank)], decode_found(bytes));
  }
  return by_rank;
}

// A version counts only when every rank that reads could read and verify its part.
Result<std::optional<Run::Start>> Run::restore_newest(Group& group) {
  MUSTER_TRY(take_shared_folder(group));
  MUSTER_ASSIGN(const Findings mine, find_saves(group));
  MUSTER_ASSIGN(const std::vector<FoundByRank> by_rank, exchange_findings(group, mine));
  const RestoreChoice choice = choose_restore(by_rank);
  std::vector<checkpoint::VersionId> refused;
  UnreadSaves unread;
  for (const Proposal& proposal : choice.proposals) {
    MUSTER_TRY(unread.may_try(proposal));
    MUSTER_ASSIGN(auto start, try_restore(group, proposal, mine, unread));
    if (!start && proposal.tier == Tier::kShared) {
      MUSTER_ASSIGN(start, try_repaired(group, proposal, mine, unread));
    }
    if (!start) {
      refused.push_back(proposal.save.id);
      continue;
    }
    if (!choice.unjudged.empty() && group.rank() == 0) {
      emit(EventKind::kDecided, control::kNoVersion,
           unjudged_folders(choice) + ": newer saves there, if there are any, are given up");
    }
    start->durable = choice.durable_at(proposal);
    control::Lineage branch = start->lineage;
    branch.push_back({view_.generation, start->version});
    MUSTER_TRY(note_branch(group, branch, "the job went on from " + to_string(proposal.save.id)));
    savers_.shared().note_start(proposal.save.id, start->durable, start->version);
    if (proposal.tier == Tier::kShared && group.rank() == 0)
      savers_.shared().give_parity(*find(mine.shared.usable, proposal.save.id));
    if (Saver* const local = savers_.local()) {
      const bool here = node_has(by_rank, ranks_of_node(), proposal.save, refused);
      local->note_start(proposal.save.id, here ? start->version : control::kNoVersion);
    }
    std::string from = to_string(proposal.save.id);
    if (proposal.tier == Tier::kLocal) {
      const bool has_one = start->durable != control::kNoVersion;
      from += "; the shared folder has " +
              (has_one ? "version " + std::to_string(start->durable) : "none before it that was verified");
    }
    emit(EventKind::kResumed, start->version, from, start->durable, -1, proposal.tier);
    return start;
  }
  MUSTER_TRY(unread.none());
  if (choice.has_any()) return none_usable(choice);
  savers_.shared().tell_of_unfinished(mine.shared);
  // Else saves of nodes that were away in this launch would count in a later one, beside this one's; also
  // where this launch saves in the shared folder alone.
  if (choice.needs_record) MUSTER_TRY(note_branch(group, {{view_.generation, 0}}, "the job began anew"));
  return std::optional<Start>();
}

// Starting anew beside damaged checkpoints would lose what a person may still repair.
Error Run::none_usable(const RestoreChoice& choice) const {
  const uint64_t local = choice.local_rejected + choice.count(Tier::kLocal);
  const uint64_t shared = choice.shared_rejected + choice.count(Tier::kShared);
  const std::string beside =
      local == 0 ? "" : ", and of the " + std::to_string(local) + " that nodes have for themselves,";
  std::string text = "none of the " + std::to_string(shared) + " checkpoints in " + options_.save.folder +
                     beside +
                     " can be used, see the events; repair them, or name an empty folder to start anew";
  if (!choice.unjudged.empty())
    text += ". " + unjudged_folders(choice) +
            ": what it has may be newer; mend it, or remove it, if this job is to start without";
  return {ErrorCode::kEnvironment, text};
}

std::string Run::unjudged_folders(const RestoreChoice& choice) const {
  std::set<std::string> nodes;
  for (const int rank : choice.unjudged) nodes.insert(view_.members[static_cast<size_t>(rank)].node_name);
  std::string text;
  for (const std::string& node : nodes) {
    text += (text.empty() ? "the folder of node " : ", the folder of node ") + node + ", " +
            folder_of_node(options_.local.folder, node);
  }
  return text + ", cannot be judged";
}

// The shared folder's record is what counts, and is there before training goes on. The nodes' own, which only
// tell what may be removed there, follow it.
Status Run::note_branch(const Group& group, const control::Lineage& branch, const std::string& why) {
  if (group.rank() == 0) MUSTER_TRY(savers_.shared().go_on_along(branch, why));
  Saver* const local = savers_.local();
  if (local == nullptr || !is_first_of_node()) return ok();
  if (const Status noted = local->go_on_along(branch, why); !noted.ok())
    tell_of_local("what the job has left stays in this node's own folder for now: " + noted.error().message);
  return ok();
}

Result<std::optional<Run::Start>> Run::try_restore(Group& group, const Proposal& proposal,
                                                   const Findings& mine, UnreadSaves& unread) {
  const Instant deadline = now() + options_.step_timeout;
  const checkpoint::VersionId& id = proposal.save.id;
  Start start;
  start.state.emplace(state_.bytes());
  MUSTER_ASSIGN(start.shards, initial_shards());
  bool lacks_tensors = false;
  const Status read = read_proposal(proposal, group.rank(), mine, start, lacks_tensors);
  const Verdict verdict = read.ok() ? Verdict::kGood : verdict_on(read.error());
  start.version = static_cast<control::Version>(id.version);
  // Before the others hear of it: who is the first to leave ends the group, and what this rank knows with it.
  if (verdict == Verdict::kMisuse)
    emit(EventKind::kVersionRejected, start.version, read.error().message, 0, -1, proposal.tier);
  MUSTER_ASSIGN(const Verdict all, combine(group, verdict, deadline));
  if (!read.ok() && verdict == Verdict::kMisuse) return read.error();
  if (all == Verdict::kMisuse) return Error{ErrorCode::kMisuse, "another rank refuses " + to_string(id)};
  if (all == Verdict::kUnable) {
    const Error why = {
        ErrorCode::kEnvironment,
        verdict == all ? read.error().message : "another rank lacks what it needs to read " + to_string(id)};
    if (proposal.tier == Tier::kShared) return why;
    emit(EventKind::kDecided, start.version, "it is passed over: " + why.message, 0, -1, proposal.tier);
    unread.add(proposal, why);
    return std::optional<Start>();
  }
  if (all == Verdict::kDamaged) {
    emit(EventKind::kVersionRejected, start.version,
         read.ok() ? "another rank found it damaged" : read.error().message, 0, -1, proposal.tier);
    return std::optional<Start>();
  }
  MUSTER_TRY(exchange_parts(group, savers_.shared(), proposal.readers, *start.state, deadline));
  MUSTER_ASSIGN(const Verdict whole,
                combine(group, lacks_tensors ? Verdict::kDamaged : Verdict::kGood, deadline));
  if (whole != Verdict::kGood) {
    MUSTER_TRY(check_initial(
        group, trained_,
        "the newest save lacks a tensor, which begins as the program initialised it, and members have "
        "trained it since; the next launch goes on from that save"));
  }
  start.lineage = to_control(proposal.save.lineage);
  return std::optional<Start>(std::move(start));
}

// A shared save that was found damaged. Rank 0, who owns the folder, repairs what it can from the save's
// parity, within half the time that the others wait; all go by what it says.
Result<std::optional<Run::Start>> Run::try_repaired(Group& group, const Proposal& proposal,
                                                    const Findings& mine, UnreadSaves& unread) {
  const Instant began = now();
  const checkpoint::Candidate* const candidate = find(mine.shared.usable, proposal.save.id);
  const bool repaired = group.rank() == 0 && candidate != nullptr &&
                        savers_.shared().repair(*candidate, began + options_.step_timeout / 2);
  MUSTER_ASSIGN(const bool is_right, any(group, repaired, began + options_.step_timeout));
  if (!is_right) return std::optional<Start>();
  return try_restore(group, proposal, mine, unread);
}

// This rank's part, where it has one. What the save lacks is as the program has it, also where nothing is
// read.
Status Run::read_proposal(const Proposal& proposal, int rank, const Findings& mine, Start& start,
                          bool& lacks_tensors) {
  const auto reader = std::find(proposal.readers.begin(), proposal.readers.end(), rank);
  if (reader == proposal.readers.end()) {
    if (options_.save.rules.missing) state_.copy_to(*start.state);
    return ok();
  }
  const bool is_local = proposal.tier == Tier::kLocal;
  const checkpoint::Candidate* const candidate =
      find(is_local ? mine.local.usable : mine.shared.usable, proposal.save.id);
  if (candidate == nullptr) {
    return Error{ErrorCode::kDropCheckpoint,
                 to_string(proposal.save.id) + " is not seen by this rank; is the folder shared?"};
  }
  Saver& saver = *savers_.of(proposal.tier);
  lacks_tensors = saver.lacks_tensors(*candidate);
  return saver.restore(*candidate, static_cast<uint32_t>(reader - proposal.readers.begin()),
                       static_cast<uint32_t>(proposal.readers.size()), *start.state, start.shards);
}

}  // namespace muster
