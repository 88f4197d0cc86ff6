// Forming a view, on the forming thread: the group, the state for those who are behind, digests for reports.
//
// INVARIANT: nothing here writes the program's state. What arrives is staged, verified, and installed by the
// program's thread when it enters the view (PROTOCOL 4).
#include <algorithm>

#include "runtime/base/random.h"
#include "runtime/run.h"

namespace muster {
namespace {

constexpr Duration kFormTimeout = 30 * kSecond;

uint64_t transfer_tag(const control::Generation& generation) {
  return mix64(generation.incarnation ^ mix64(generation.counter ^ 0x7472616e73666572ULL));
}

GroupSpec group_spec(const control::View& view, uint32_t rank, Instant deadline) {
  GroupSpec spec;
  spec.generation = {view.generation.incarnation, view.generation.counter};
  spec.rank = static_cast<int>(rank);
  spec.deadline = deadline;
  for (const control::Member& member : view.members) {
    spec.contacts.push_back(member.contact);
    spec.nodes.push_back(member.node);
  }
  return spec;
}

}  // namespace

void Run::form(const control::Install& install) {
  const auto fail = [&](std::vector<control::MemberId> suspects, const std::string& why) {
    const std::lock_guard lock(mutex_);
    perform(core_.failed(install.view.generation, std::move(suspects), why));
  };
  const auto rank = install.view.rank_of(self_.id);
  if (!rank) return fail({}, "the view does not hold this member");

  std::vector<control::MemberId> suspects;
  std::vector<int> suspect_ranks;
  FormedView formed;
  formed.generation = install.view.generation;
  auto group =
      session_.endpoint().form_group(group_spec(install.view, *rank, now() + kFormTimeout), &suspect_ranks);
  if (!group.ok()) {
    for (const int suspect : suspect_ranks) {
      suspects.push_back(install.view.members[static_cast<size_t>(suspect)].id);
    }
    return fail(std::move(suspects), group.error().message);
  }
  formed.group = std::move(*group);
  if (Status moved = transfer(install, formed, suspects); !moved.ok()) {
    return fail(std::move(suspects), moved.error().message);
  }
  const std::lock_guard lock(mutex_);
  formed_ = std::move(formed);
  perform(core_.formed(install.view.generation));
}

// Sources send their state, which no permit can change before Go; targets stage it and check the digest.
Status Run::transfer(const control::Install& install, FormedView& formed,
                     std::vector<control::MemberId>& suspects) {
  const Instant deadline = now() + kFormTimeout;
  const auto contact_of = [&](control::MemberId id) -> const ByteBuffer& {
    return install.view.members[install.view.rank_of(id).value_or(0)].contact;
  };
  const uint64_t tag = transfer_tag(install.view.generation);
  ByteBuffer outgoing;
  std::vector<std::pair<Work, control::MemberId>> works;
  for (const control::Transfer& one : install.transfers) {
    if (one.source == self_.id) {
      if (outgoing.empty()) {
        MUSTER_TRY(state_.acquire_read(deadline));
        outgoing.resize(state_.bytes());
        state_.copy_to(outgoing);
        state_.release_read();
      }
      MUSTER_ASSIGN(const PeerId peer, session_.endpoint().peer(contact_of(one.target)));
      works.emplace_back(session_.endpoint().send(peer, tag, outgoing, deadline), one.target);
    } else if (one.target == self_.id) {
      formed.incoming.emplace(state_.bytes());
      MUSTER_ASSIGN(const PeerId peer, session_.endpoint().peer(contact_of(one.source)));
      works.emplace_back(session_.endpoint().recv(peer, tag, *formed.incoming, deadline), one.source);
    }
  }
  for (auto& [work, peer] : works) {
    if (Status status = work.wait(deadline); !status.ok()) {
      suspects.push_back(peer);
      return status;
    }
  }
  if (formed.incoming) {
    std::vector<Digest> parts;
    size_t offset = 0;
    for (const TensorInfo& tensor : state_.tensors()) {
      parts.push_back(digest_of(ByteSpan(formed.incoming->data() + offset, tensor.bytes)));
      offset += tensor.bytes;
    }
    if (digest_of(parts) != install.digest) {
      return Error{ErrorCode::kRetry, "the state received for version " + std::to_string(install.view.base) +
                                          " does not match the digest that its holders reported"};
    }
    emit(EventKind::kTransfer, install.view.base, "", static_cast<int64_t>(formed.incoming->size()));
  }
  return ok();
}

void Run::compute_digest(control::Version version) {
  Digest digest;
  if (version != control::kNoVersion) {
    // Without the lease within its time the report goes out late, and the leader's deadline speaks.
    if (!state_.acquire_read(now() + kFormTimeout).ok()) return;
    digest = state_.digest();
    state_.release_read();
  }
  const std::lock_guard lock(mutex_);
  perform(core_.digest_ready(version, digest));
}

}  // namespace muster
