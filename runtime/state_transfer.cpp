#include "runtime/state_transfer.h"

#include "runtime/base/random.h"

namespace muster {
namespace {

uint64_t transfer_tag(const control::Generation& generation) {
  return mix64(generation.incarnation ^ mix64(generation.counter ^ 0x7472616e73666572ULL));
}

}  // namespace

Status StateTransfer::run(const control::Install& install, std::vector<control::MemberId>& suspects) {
  Status moved = move(install, suspects);
  if (staged && !rules.transfers_are_staged) MUSTER_TRY(state.install(*staged, deadline));
  if (moved.ok() && staged) moved = check_digest(install);
  if (!moved.ok()) staged.reset();
  return moved;
}

// Sources send their state, which no permit can change before Go.
Status StateTransfer::move(const control::Install& install, std::vector<control::MemberId>& suspects) {
  ByteBuffer outgoing;
  std::vector<std::pair<PeerId, control::MemberId>> targets;
  std::optional<std::pair<PeerId, control::MemberId>> source;
  for (const control::Transfer& one : install.transfers) {
    if (one.source != self && one.target != self) continue;
    const control::MemberId other = one.source == self ? one.target : one.source;
    MUSTER_ASSIGN(const PeerId peer,
                  endpoint.peer(install.view.members[install.view.rank_of(other).value_or(0)].contact));
    if (one.source == self) targets.emplace_back(peer, other);
    if (one.target == self) source.emplace(peer, other);
  }
  if (!targets.empty()) {
    MUSTER_TRY(state.acquire_read(deadline));
    outgoing.resize(state.bytes());
    state.copy_to(outgoing);
    state.release_read();
  }
  const uint64_t tag = transfer_tag(install.view.generation);
  std::vector<std::pair<Work, control::MemberId>> works;
  for (const auto& [peer, id] : targets) works.emplace_back(endpoint.send(peer, tag, outgoing, deadline), id);
  if (source) {
    staged.emplace(state.bytes());
    works.emplace_back(endpoint.recv(source->first, tag, *staged, deadline), source->second);
  }
  // All of them, also after a failure: until its end a transfer uses the buffers.
  Status moved = ok();
  for (auto& [work, peer] : works) {
    Status ended = work.wait();
    if (ended.ok()) continue;
    suspects.push_back(peer);
    if (moved.ok()) moved = std::move(ended);
  }
  return moved;
}

Status StateTransfer::check_digest(const control::Install& install) const {
  std::vector<Digest> parts;
  size_t offset = 0;
  for (const TensorInfo& tensor : state.tensors()) {
    parts.push_back(digest_of(ByteSpan(staged->data() + offset, tensor.bytes)));
    offset += tensor.bytes;
  }
  if (digest_of(parts) == install.digest) return ok();
  return Error{ErrorCode::kRetry, "the state received for version " + std::to_string(install.view.base) +
                                      " does not match the digest that its holders reported"};
}

}  // namespace muster
