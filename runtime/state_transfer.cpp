#include "runtime/state_transfer.h"

#include "collectives/feed.h"
#include "runtime/base/random.h"

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

}  // namespace

uint64_t transfer_tag(const control::Generation& generation, Cargo cargo) {
  return mix64(generation.incarnation ^ mix64(generation.counter ^ 0x7472616e73666572ULL)) ^
         static_cast<uint64_t>(cargo);
}

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

std::vector<control::MemberId> StateTransfer::add_targets(const control::Install& install, bool gradient,
                                                          FeedSource& feed) const {
  std::vector<control::MemberId> targets;
  for (const control::Transfer& one : install.transfers) {
    if (one.source != self || one.gradient != gradient) continue;
    targets.push_back(one.target);
    feed.add(member_of(install.view, one.target).contact);
  }
  return targets;
}

// Under a read lease until all is delivered, since it is sent from the program's own memory. That stalls
// nobody: no permit is given between the reports for a view and its Go, which waits for this.
Status StateTransfer::give(const control::Install& install, std::vector<control::MemberId>& suspects) {
  FeedSource feed(endpoint, transfer_tag(install.view.generation), deadline, kFeedPatience, closing);
  const auto targets = add_targets(install, false, feed);
  if (targets.empty()) return ok();
  if (Status readable = lease_for_view(state, deadline, unblock); !readable.ok()) {
    suspects.push_back(self);                                     // whoever is asked next may hold it, too
    feed.note(bytes_of(TransferHeader{control::kNoVersion, 0}));  // they shall not wait for it
    (void)feed.finish();
    return readable;
  }
  feed.note(bytes_of(TransferHeader{install.view.base, state.bytes()}));
  StateDigest digest(state);
  feed.run(state.contents(), [&](ByteSpan bytes) { digest.add(bytes); });
  feed.note(bytes_of(TransferTrailer{install.view.base, state.bytes(), digest.finish()}));
  const std::vector<Status> ends = feed.finish();
  state.release_read();
  return first_failure(ends, targets, suspects);
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
  FeedSource feed(endpoint, transfer_tag(install.view.generation, Cargo::kGradient), deadline, kFeedPatience,
                  closing);
  const auto targets = add_targets(install, true, feed);
  if (targets.empty()) return ok();
  const control::Version step = install.view.base - 1;
  if (held.step != step) {  // they shall not wait for it
    feed.note(bytes_of(TransferHeader{control::kNoVersion, 0}));
    (void)feed.finish();
    return Error{ErrorCode::kRetry, "the gradient of step " + std::to_string(step) +
                                        " is not held any more: the state will be sent instead"};
  }
  feed.note(bytes_of(TransferHeader{step, held.bytes.size()}));
  DigestStream digest;
  feed.run({{held.bytes}}, [&](ByteSpan bytes) { digest.add(bytes); });
  feed.note(bytes_of(TransferTrailer{step, held.bytes.size(), digest.digest()}));
  return first_failure(feed.finish(), targets, suspects);
}

Status StateTransfer::take(const control::Install& install, std::vector<control::MemberId>& suspects) {
  const auto mine = std::find_if(install.transfers.begin(), install.transfers.end(),
                                 [&](const control::Transfer& one) { return one.target == self; });
  if (mine == install.transfers.end()) return ok();
  const TransferHeader due = mine->gradient ? TransferHeader{install.view.base - 1, gradient_bytes}
                                            : TransferHeader{install.view.base, state.bytes()};
  MUSTER_ASSIGN(staged, LargeBuffer::allocate(due.bytes));
  FeedTarget feed(endpoint, member_of(install.view, mine->source).contact,
                  transfer_tag(install.view.generation, mine->gradient ? Cargo::kGradient : Cargo::kState),
                  deadline, closing);
  const auto blame = [&](Status status) {
    if (!status.ok()) suspects.push_back(mine->source);
    return status;
  };
  staged_gradient = mine->gradient;
  TransferHeader header{};
  MUSTER_TRY(blame(feed.note(writable_bytes_of(header))));
  MUSTER_TRY(check_header(header, due));
  StateDigest of_state(state);
  DigestStream of_gradient;
  MUSTER_TRY(blame(feed.run(
      *staged, [&](ByteSpan bytes) { mine->gradient ? of_gradient.add(bytes) : of_state.add(bytes); })));
  TransferTrailer trailer{};
  MUSTER_TRY(blame(feed.note(writable_bytes_of(trailer))));
  return check_trailer(trailer, due, mine->gradient ? of_gradient.digest() : of_state.finish());
}

}  // namespace muster
