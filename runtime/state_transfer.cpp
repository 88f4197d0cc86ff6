#include "runtime/state_transfer.h"

#include <algorithm>
#include <set>
#include <thread>

#include "collectives/feed.h"
#include "collectives/schedule.h"
#include "runtime/base/digest.h"
#include "runtime/base/random.h"
#include "runtime/base/threads.h"

namespace muster {

const control::Member& member_of(const control::View& view, control::MemberId id) {
  return view.members[view.rank_of(id).value_or(0)];
}

Status check_header(const TransferHeader& header, const TransferHeader& due) {
  if (header.version == due.version && header.bytes == due.bytes) return ok();
  return Error{ErrorCode::kRetry, "the source sends version " + std::to_string(header.version) + " in " +
                                      std::to_string(header.bytes) + " bytes; version " +
                                      std::to_string(due.version) + " in " + std::to_string(due.bytes) +
                                      " was due: nothing was installed"};
}

Status check_trailer(const TransferTrailer& trailer, const TransferHeader& due, const Digest& staged) {
  MUSTER_TRY(check_header({trailer.version, trailer.bytes}, due));
  if (trailer.digest == staged) return ok();
  return Error{ErrorCode::kRetry, "what was received for version " + std::to_string(due.version) +
                                      " does not match the digest that its source computed: nothing was "
                                      "installed"};
}

namespace {

Status first_failure(const std::vector<Status>& ends, const std::vector<control::MemberId>& targets,
                     std::vector<control::MemberId>& suspects) {
  Status given = ok();
  for (size_t i = 0; i < ends.size(); ++i) {
    if (ends[i].ok()) continue;
    suspects.push_back(targets[i]);
    if (given.ok()) given = ends[i];
  }
  return given;
}

// Of one target.
bool are_one_whole(const std::vector<control::Transfer>& transfers) {
  std::set<uint32_t> parts;
  for (const control::Transfer& one : transfers) {
    const bool alike = one.parts == transfers.size() && one.gradient == transfers.front().gradient;
    if (!alike || one.part >= one.parts || !parts.insert(one.part).second) return false;
  }
  return true;
}

// Of all contents one after the other.
std::vector<ByteSpan> part_of(const std::vector<ByteSpan>& contents, uint32_t part, uint32_t parts) {
  uint64_t bytes = 0;
  for (const ByteSpan one : contents) bytes += one.size();
  Slice left = slice_of(bytes, static_cast<int>(parts), static_cast<int>(part));
  std::vector<ByteSpan> found;
  for (const ByteSpan one : contents) {
    const uint64_t skipped = std::min<uint64_t>(left.offset, one.size());
    const ByteSpan taken = one.subspan(skipped).first(std::min<uint64_t>(left.count, one.size() - skipped));
    if (!taken.empty()) found.push_back(taken);
    left = {left.offset - skipped, left.count - taken.size()};
  }
  return found;
}

}  // namespace

uint64_t transfer_tag(const control::Generation& generation, Cargo cargo, uint32_t part, uint32_t parts) {
  const uint64_t view = mix64(generation.incarnation ^ mix64(generation.counter ^ 0x7472616e73666572ULL));
  const uint64_t which = parts == 1 ? 0 : mix64(uint64_t{parts} << 32 | part);
  return view ^ which ^ static_cast<uint64_t>(cargo);
}

struct StateTransfer::Parcel {
  bool gradient = false;
  uint32_t part = 0;
  uint32_t parts = 1;
  std::vector<control::MemberId> targets;

  uint64_t tag(const control::Generation& generation) const {
    return transfer_tag(generation, gradient ? Cargo::kGradient : Cargo::kState, part, parts);
  }
};

Status StateTransfer::run(const control::Install& install, std::vector<control::MemberId>& suspects) {
  Status moved = give_gradient(install, suspects);
  if (Status given = give(install, suspects); moved.ok()) moved = std::move(given);
  if (moved.ok()) moved = take(install, suspects);
  if (staged && !rules.transfers_are_staged) MUSTER_TRY(state.install(*staged, deadline));
  if (!moved.ok()) staged.reset();
  return moved;
}

Status acquire_for_view(State& state, Duration grace, Instant deadline,
                        const std::function<void()>& unblock) {
  Status leased = state.acquire_read(std::min(deadline, now() + grace));
  if (leased.ok() || leased.error().code != ErrorCode::kRetry) return leased;
  if (unblock && state.older_is_read()) unblock();
  return state.acquire_read(deadline);
}

std::vector<StateTransfer::Parcel> StateTransfer::parcels(const control::Install& install,
                                                          bool gradient) const {
  std::vector<Parcel> mine;
  for (const control::Transfer& one : install.transfers) {
    if (one.source != self || one.gradient != gradient) continue;
    const auto alike = std::ranges::find_if(
        mine, [&](const Parcel& parcel) { return parcel.part == one.part && parcel.parts == one.parts; });
    Parcel& parcel =
        alike != mine.end() ? *alike : mine.emplace_back(Parcel{gradient, one.part, one.parts, {}});
    parcel.targets.push_back(one.target);
  }
  return mine;
}

Status StateTransfer::send(const control::Install& install, const Parcel& parcel, const TransferHeader& what,
                           const std::vector<ByteSpan>& contents, std::vector<control::MemberId>& suspects) {
  FeedSource feed(endpoint, parcel.tag(install.view.generation), deadline, kFeedPatience, closing);
  for (control::MemberId target : parcel.targets) feed.add(member_of(install.view, target).contact);
  feed.note(bytes_of(what));
  DigestStream digest;
  feed.run(part_of(contents, parcel.part, parcel.parts), [&](ByteSpan bytes) { digest.add(bytes); });
  feed.note(bytes_of(TransferTrailer{what.version, what.bytes, digest.digest()}));
  return first_failure(feed.finish(), parcel.targets, suspects);
}

// They shall not wait for it.
void StateTransfer::refuse(const control::Install& install, const std::vector<Parcel>& parcels) {
  for (const Parcel& parcel : parcels) {
    FeedSource feed(endpoint, parcel.tag(install.view.generation), deadline, kFeedPatience, closing);
    for (control::MemberId target : parcel.targets) feed.add(member_of(install.view, target).contact);
    feed.note(bytes_of(TransferHeader{control::kNoVersion, 0}));
    (void)feed.finish();
  }
}

// Under a read lease until all is delivered, since it is sent from the program's own memory. That stalls
// nobody: no permit is given between the reports for a view and its Go, which waits for this.
Status StateTransfer::give(const control::Install& install, std::vector<control::MemberId>& suspects) {
  const std::vector<Parcel> mine = parcels(install, false);
  if (mine.empty()) return ok();
  if (Status readable = lease_for_view(state, deadline, unblock); !readable.ok()) {
    suspects.push_back(self);  // whoever is asked next may hold it, too
    refuse(install, mine);
    return readable;
  }
  Status given = ok();
  for (const Parcel& parcel : mine) {
    Status sent = send(install, parcel, {install.view.base, state.bytes()}, state.contents(), suspects);
    if (given.ok()) given = std::move(sent);
  }
  state.release_read();
  return given;
}

Status lease_for_view(State& state, Instant deadline, const std::function<void()>& unblock) {
  constexpr Duration kGrace = kSecond;
  MUSTER_TRY(acquire_for_view(state, kGrace, deadline, unblock));
  Status readable = state.wait_readable(deadline);
  if (!readable.ok()) state.release_read();
  return readable;
}

// Not written to meanwhile: no reduction of a later step ends before its targets have contributed.
Status StateTransfer::give_gradient(const control::Install& install,
                                    std::vector<control::MemberId>& suspects) {
  const std::vector<Parcel> mine = parcels(install, true);
  if (mine.empty()) return ok();
  const control::Version step = install.view.base - 1;
  const bool arrived = held.mean == nullptr || held.mean->wait_on_host(deadline).ok();
  if (held.step != step || !arrived) {
    refuse(install, mine);
    return Error{ErrorCode::kRetry, "the gradient of step " + std::to_string(step) +
                                        " is not held any more: the state will be sent instead"};
  }
  Status given = ok();
  for (const Parcel& parcel : mine) {
    Status sent = send(install, parcel, {step, held.bytes.size()}, {held.bytes}, suspects);
    if (given.ok()) given = std::move(sent);
  }
  return given;
}

// Its parts all at once, each on a thread of its own but for the first.
Status StateTransfer::take(const control::Install& install, std::vector<control::MemberId>& suspects) {
  std::vector<control::Transfer> mine;
  for (const control::Transfer& one : install.transfers) {
    if (one.target == self) mine.push_back(one);
  }
  if (mine.empty()) return ok();
  if (!are_one_whole(mine))
    return Error{ErrorCode::kRetry, "the state is to come in parts that are no whole: nothing was installed"};
  staged_gradient = mine.front().gradient;
  const TransferHeader due = staged_gradient ? TransferHeader{install.view.base - 1, gradient_bytes}
                                             : TransferHeader{install.view.base, state.bytes()};
  MUSTER_ASSIGN(staged, LargeBuffer::allocate(due.bytes));
  struct End {
    Status status = ok();
    bool source_failed = false;
  };
  std::vector<End> ends(mine.size());
  const auto take_one = [&](size_t i) {
    ends[i].status = take_part(install, mine[i], due, ends[i].source_failed);
  };
  std::vector<std::thread> threads;
  std::vector<size_t> left = {0};  // for this thread
  for (size_t i = 1; i < mine.size(); ++i) {
    auto thread = try_start_thread("muster-take", [&take_one, i] { take_one(i); });
    if (thread) {
      threads.push_back(*std::move(thread));
    } else {
      left.push_back(i);
    }
  }
  for (const size_t i : left) take_one(i);
  for (std::thread& thread : threads) thread.join();
  Status taken = ok();
  for (size_t i = 0; i < mine.size(); ++i) {
    if (ends[i].source_failed) suspects.push_back(mine[i].source);
    if (taken.ok()) taken = std::move(ends[i].status);
  }
  return taken;
}

Status StateTransfer::take_part(const control::Install& install, const control::Transfer& transfer,
                                const TransferHeader& due, bool& source_failed) {
  const auto blame = [&](Status status) {
    source_failed = !status.ok();
    return status;
  };
  const Parcel parcel{transfer.gradient, transfer.part, transfer.parts, {}};
  FeedTarget feed(endpoint, member_of(install.view, transfer.source).contact,
                  parcel.tag(install.view.generation), deadline, closing);
  TransferHeader header{};
  MUSTER_TRY(blame(feed.note(writable_bytes_of(header))));
  MUSTER_TRY(check_header(header, due));
  const Slice slice = slice_of(due.bytes, static_cast<int>(parcel.parts), static_cast<int>(parcel.part));
  DigestStream arrived;
  MUSTER_TRY(blame(feed.run(MutableByteSpan(*staged).subspan(slice.offset, slice.count),
                            [&](ByteSpan bytes) { arrived.add(bytes); })));
  TransferTrailer trailer{};
  MUSTER_TRY(blame(feed.note(writable_bytes_of(trailer))));
  return check_trailer(trailer, due, arrived.digest());
}

}  // namespace muster
