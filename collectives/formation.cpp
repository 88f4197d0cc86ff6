#include "collectives/formation.h"

#include <algorithm>
#include <cstring>

#include "collectives/transport_engine.h"

namespace muster {
namespace {

// The root decides this much before the deadline, so that its word arrives in time.
Instant ahead_of(Instant deadline) {
  if (deadline == kNever) return kNever;
  return deadline - std::min<Duration>(std::max<Duration>(deadline - now(), 0) / 4, 500 * kMillisecond);
}

}  // namespace

Formation::Formation(Core& core, const GroupSpec& spec, std::vector<PeerId> peers, std::vector<Port> ports,
                     Digest digest)
    : core_(core),
      spec_(spec),
      peers_(std::move(peers)),
      ports_(std::move(ports)),
      digest_(digest),
      hello_(peers_.size(), false),
      status_(peers_.size(), false) {
  const std::lock_guard lock(core_.mutex());
  hello_[static_cast<size_t>(spec_.rank)] = status_[static_cast<size_t>(spec_.rank)] = true;
  post_receive();
}

Formation::~Formation() {
  const std::lock_guard lock(core_.mutex());
  if (message_ != nullptr) core_.cancel(receive_);
  core_.transport()->discard(tag_for(spec_.rank), group_tag_mask());
}

uint64_t Formation::tag_for(int rank) const {
  return group_tag(TagKind::kFormation, ports_[static_cast<size_t>(rank)], rank, 0);
}

void Formation::post_receive() {
  message_ = core_.take_message();
  receive_ = core_.receive(tag_for(spec_.rank), message_, this, 0);
}

void Formation::transfer_ended(uint64_t, TransferStatus status, size_t bytes) {
  const MessagePtr arrived = std::exchange(message_, nullptr);
  if (status == TransferStatus::kFailed || status == TransferStatus::kCanceled) return;
  post_receive();
  Note note;
  if (status != TransferStatus::kDone || bytes != sizeof note) return;
  std::memcpy(&note, arrived->data, sizeof note);
  const bool valid = note.magic == Note::kMagic && note.generation == spec_.generation && note.source >= 0 &&
                     note.source < static_cast<int>(peers_.size()) && note.name_count <= kMaxNames;
  if (!valid) return;
  handle(note);
  core_.tell_waiters();
}

void Formation::handle(const Note& note) {
  switch (note.kind) {
    case Kind::kHello:
      if (note.digest != digest_) differing_ = note.source;
      hello_[static_cast<size_t>(note.source)] = true;
      break;
    case Kind::kStatus:
      status_[static_cast<size_t>(note.source)] = true;
      all_agree_ &= note.flag != 0;
      break;
    case Kind::kGo:
      go_ = true;
      break;
    case Kind::kRefuse:
      refused_ = true;
      differing_ = static_cast<int>(note.flag) - 1;
      told_absent_.assign(note.names, note.names + note.name_count);
      break;
    case Kind::kDecision:
      decided_ = true;
      decision_ = note.flag != 0;
      break;
  }
}

void Formation::tell(int rank, Note note) {
  const std::lock_guard lock(core_.mutex());
  if (core_.is_gone(peers_[static_cast<size_t>(rank)])) return;
  note.source = spec_.rank;
  note.generation = spec_.generation;
  note.digest = digest_;
  const MessagePtr block = core_.take_message();
  std::memcpy(block->data, &note, sizeof note);
  block->size = sizeof note;
  core_.send(peers_[static_cast<size_t>(rank)], tag_for(rank), block, nullptr, 0);
}

void Formation::tell_all(const Note& note) {
  for (int rank = 0; rank < static_cast<int>(peers_.size()); ++rank) {
    if (rank != spec_.rank && hello_[static_cast<size_t>(rank)]) tell(rank, note);
  }
}

bool Formation::cancelled() const { return core_.formation_cancelled(spec_.generation); }

Error Formation::given_up() const {
  return Error{ErrorCode::kReconfigure, "forming group " + to_string(spec_.generation) +
                                            " was given up: the view is over before it began; form the next"};
}

bool Formation::any_gone() const {
  return std::ranges::any_of(peers_, [&](PeerId peer) { return core_.is_gone(peer); });
}

Error Formation::absence(const std::vector<int>& absent) const {
  std::string names;
  for (int rank : absent) names += (names.empty() ? "" : ", ") + std::to_string(rank);
  return {ErrorCode::kReconfigure,
          "forming group " + to_string(spec_.generation) + " of " + std::to_string(peers_.size()) +
              " ranks: rank " + names +
              " did not come by the deadline; form the next view without, or wait longer"};
}

Status Formation::refuse(const std::vector<int>& absent) {
  Note note{.kind = Kind::kRefuse, .flag = static_cast<uint32_t>(differing_ + 1)};
  note.name_count = static_cast<uint32_t>(std::min<size_t>(absent.size(), kMaxNames));
  std::copy_n(absent.begin(), note.name_count, note.names);
  tell_all(note);
  if (differing_ < 0) return absence(absent);
  return Error{ErrorCode::kMisuse,
               "forming group " + to_string(spec_.generation) + ": rank " + std::to_string(differing_) +
                   " was given other members or nodes than rank 0; give all the same view"};
}

// The root waits for a note of this kind from all.
Status Formation::gather(Kind kind, Instant deadline, std::vector<int>& absent) {
  std::vector<bool>& seen = kind == Kind::kHello ? hello_ : status_;
  const auto all_seen = [&] { return std::ranges::find(seen, false) == seen.end(); };
  core_.drive_until([&] { return all_seen() || any_gone() || differing_ >= 0 || cancelled(); }, deadline);
  const std::unique_lock lock(core_.mutex());
  if (all_seen() && differing_ < 0) return ok();
  if (cancelled()) return given_up();
  for (size_t rank = 0; rank < seen.size(); ++rank) {
    const bool gone = static_cast<int>(rank) != spec_.rank && core_.is_gone(peers_[rank]);
    if ((!seen[rank] || gone) && differing_ < 0) absent.push_back(static_cast<int>(rank));
  }
  return Error{ErrorCode::kReconfigure, ""};
}

// The others wait for the root's word.
Status Formation::await(Kind kind, std::vector<int>& absent) {
  const bool& came = kind == Kind::kGo ? go_ : decided_;
  core_.drive_until([&] { return came || refused_ || core_.is_gone(peers_[0]) || cancelled(); },
                    spec_.deadline);
  {
    const std::unique_lock lock(core_.mutex());
    if (came && !refused_) return ok();
    if (cancelled()) return given_up();
    absent = refused_ ? told_absent_ : std::vector<int>{0};
  }
  if (differing_ < 0) return absence(absent);
  return Error{ErrorCode::kMisuse,
               "forming group " + to_string(spec_.generation) + ": rank " + std::to_string(differing_) +
                   " was given other members or nodes than rank 0; give all the same view"};
}

Status Formation::assemble(std::vector<int>& absent) {
  if (!is_root()) {
    tell(0, {.kind = Kind::kHello});
    return await(Kind::kGo, absent);
  }
  if (!gather(Kind::kHello, ahead_of(spec_.deadline), absent)) return refuse(absent);
  tell_all({.kind = Kind::kGo});
  return ok();
}

Result<bool> Formation::agree(bool mine, std::vector<int>& absent) {
  if (!is_root()) {
    tell(0, {.kind = Kind::kStatus, .flag = mine});
    MUSTER_TRY(await(Kind::kDecision, absent));
    return decision_;
  }
  if (!gather(Kind::kStatus, ahead_of(spec_.deadline), absent)) return refuse(absent).error();
  const bool all = all_agree_ && mine;
  tell_all({.kind = Kind::kDecision, .flag = all});
  return all;
}

}  // namespace muster
