#include "runtime/state_transfer.h"

#include "collectives/feed.h"
#include "runtime/base/random.h"

namespace muster {
namespace {

const control::Member& member_of(const control::View& view, control::MemberId id) {
  return view.members[view.rank_of(id).value_or(0)];
}

template <typename T>
MutableByteSpan memory_of(T& value) {
  return {reinterpret_cast<std::byte*>(&value), sizeof value};
}

Status check_header(const TransferHeader& header, control::Version version, uint64_t bytes) {
  if (header.version == version && header.state_bytes == bytes) return ok();
  return Error{ErrorCode::kRetry, "the source sends version " + std::to_string(header.version) + " in " +
                                      std::to_string(header.state_bytes) + " bytes; version " +
                                      std::to_string(version) + " in " + std::to_string(bytes) +
                                      " was due: nothing was installed"};
}

Status check_trailer(const TransferTrailer& trailer, control::Version version, uint64_t bytes,
                     const Digest& staged) {
  MUSTER_TRY(check_header({trailer.version, trailer.state_bytes}, version, bytes));
  if (trailer.digest == staged) return ok();
  return Error{ErrorCode::kRetry, "the state received for version " + std::to_string(version) +
                                      " does not match the digest that its source computed: nothing was "
                                      "installed"};
}

}  // namespace

uint64_t transfer_tag(const control::Generation& generation) {
  return mix64(generation.incarnation ^ mix64(generation.counter ^ 0x7472616e73666572ULL));
}

Status StateTransfer::run(const control::Install& install, std::vector<control::MemberId>& suspects) {
  Status moved = give(install, suspects);
  if (moved.ok()) moved = take(install, suspects);
  if (staged && !rules.transfers_are_staged) MUSTER_TRY(state.install(*staged, deadline));
  if (!moved.ok()) staged.reset();
  return moved;
}

// Under a read lease until all is delivered, since it is sent from the program's own memory. That stalls
// nobody: no permit is given between the reports for a view and its Go, which waits for this.
Status StateTransfer::give(const control::Install& install, std::vector<control::MemberId>& suspects) {
  FeedSource feed(endpoint, transfer_tag(install.view.generation), deadline);
  std::vector<control::MemberId> targets;
  for (const control::Transfer& one : install.transfers) {
    if (one.source != self) continue;
    targets.push_back(one.target);
    feed.add(member_of(install.view, one.target).contact);
  }
  if (targets.empty()) return ok();
  MUSTER_TRY(state.acquire_read(deadline));
  feed.note(bytes_of(TransferHeader{install.view.base, state.bytes()}));
  StateDigest digest(state);
  feed.run(state.contents(), [&](ByteSpan bytes) { digest.add(bytes); });
  feed.note(bytes_of(TransferTrailer{install.view.base, state.bytes(), digest.finish()}));
  const std::vector<Status> ends = feed.finish();
  state.release_read();
  Status given = ok();
  for (size_t i = 0; i < ends.size(); ++i) {
    if (ends[i].ok()) continue;
    suspects.push_back(targets[i]);
    if (given.ok()) given = ends[i];
  }
  return given;
}

Status StateTransfer::take(const control::Install& install, std::vector<control::MemberId>& suspects) {
  const auto mine = std::find_if(install.transfers.begin(), install.transfers.end(),
                                 [&](const control::Transfer& one) { return one.target == self; });
  if (mine == install.transfers.end()) return ok();
  MUSTER_ASSIGN(staged, LargeBuffer::allocate(state.bytes()));
  FeedTarget feed(endpoint, member_of(install.view, mine->source).contact,
                  transfer_tag(install.view.generation), deadline);
  const auto blame = [&](Status status) {
    if (!status.ok()) suspects.push_back(mine->source);
    return status;
  };
  TransferHeader header{};
  MUSTER_TRY(blame(feed.note(memory_of(header))));
  MUSTER_TRY(check_header(header, install.view.base, state.bytes()));
  StateDigest digest(state);
  MUSTER_TRY(blame(feed.run(*staged, [&](ByteSpan bytes) { digest.add(bytes); })));
  TransferTrailer trailer{};
  MUSTER_TRY(blame(feed.note(memory_of(trailer))));
  return check_trailer(trailer, install.view.base, state.bytes(), digest.finish());
}

}  // namespace muster
