#include "collectives/feed.h"

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "collectives/node/local_link.h"
#include "runtime/base/check.h"
#include "runtime/base/random.h"

namespace muster {
namespace {

// Over a transport a run travels in pieces by two turns of tags: while the last messages of one piece are
// under way, the next has begun.
constexpr size_t kPieceBytes = 2 << 20;
constexpr uint64_t kTurns = 2;
constexpr uint64_t kNotes = kTurns;  // the tag after them
constexpr size_t kPiecesAhead = 4;   // receives that stand

constexpr Duration kLook = 200 * kMillisecond;  // how soon a wait hears that it is to end
// After a piece that took long for other reasons, as where its receiver was busy, no rest is as long.
constexpr Duration kRestMax = kSecond;

Error closed() { return {ErrorCode::kEnded, "what was sent is not wanted any more"}; }

uint64_t tag_of(uint64_t tag, uint64_t turn) { return mix64(tag ^ mix64(turn)); }

// Where in a list of parts the next bytes are.
class Cursor {
 public:
  explicit Cursor(const std::vector<ByteSpan>& parts) : parts_(parts) {}

  // The next bytes, at most `most`, as one gives them to a gathering send; empty at the end.
  std::vector<ByteSpan> take(size_t most) {
    std::vector<ByteSpan> taken;
    for (; most > 0 && index_ < parts_.size(); ++index_, offset_ = 0) {
      const ByteSpan rest = parts_[index_].subspan(offset_);
      const ByteSpan piece = rest.first(std::min(most, rest.size()));
      if (!piece.empty()) taken.push_back(piece);
      most -= piece.size();
      offset_ += piece.size();
      if (piece.size() < rest.size()) break;
    }
    return taken;
  }

 private:
  const std::vector<ByteSpan>& parts_;
  size_t index_ = 0;
  size_t offset_ = 0;
};

size_t copy_all(const std::vector<ByteSpan>& parts, std::byte* target) {
  size_t copied = 0;
  for (const ByteSpan part : parts) {
    std::memcpy(target + copied, part.data(), part.size());
    copied += part.size();
  }
  return copied;
}

}  // namespace

// ---- the source

FeedSource::~FeedSource() {
  for (const Receiver& receiver : receivers_) {
    for (const Work& work : receiver.works) endpoint_.cancel(work);
  }
}

void FeedSource::add(ByteSpan contact) {
  Receiver& receiver = receivers_.emplace_back();
  if (open_reader(contact, receiver).ok()) return;
  auto peer = endpoint_.peer(contact);
  if (peer.ok()) {
    receiver.peer = *peer;
  } else {
    receiver.status = std::move(peer).error();
  }
}

Status FeedSource::open_reader(ByteSpan contact, Receiver& receiver) {
  if (!ring_) {
    MUSTER_ASSIGN(ring_, SlabRing::create());
  }
  MUSTER_ASSIGN(OwnFd connection, endpoint_.hand_over(contact, tag_, ring_.fd()));
  receiver.reader.emplace(std::move(connection));
  return ok();
}

void FeedSource::note(ByteSpan bytes) {
  MUSTER_CHECK(bytes.size() <= kNoteBytesMax, "a note is small");
  tell(bytes);
  const ByteBuffer& kept = notes_.emplace_back(bytes.begin(), bytes.end());
  for (Receiver& receiver : receivers_) {
    if (receiver.status.ok() && !receiver.reader)
      receiver.works.push_back(endpoint_.send(receiver.peer, tag_of(tag_, kNotes), kept, deadline_));
  }
}

// The transport's sends go their own way, on the progress thread, while this one fills the ring.
void FeedSource::run(const std::vector<ByteSpan>& parts, const Passing& passing) {
  if (share_ && !has_readers()) return run_by_transport(parts, passing);
  for (Receiver& receiver : receivers_) {
    if (receiver.status.ok() && !receiver.reader) post(receiver, parts);
  }
  Cursor cursor(parts);
  for (auto piece = cursor.take(kSlabBytes); !piece.empty(); piece = cursor.take(kSlabBytes)) {
    if (!has_readers()) {
      for (const ByteSpan part : piece) passing(part);
      continue;
    }
    const Instant began = now();
    if (written_ >= kSlabs) await_copies(written_ + 1 - kSlabs);
    std::byte* const slab = ring_.slab(written_);
    const size_t bytes = copy_all(piece, slab);
    tell(bytes_of(++written_));
    passing({slab, bytes});
    rest(began);
  }
}

// Each piece once the one before has gone. What is posted ahead would go when it likes.
void FeedSource::run_by_transport(const std::vector<ByteSpan>& parts, const Passing& passing) {
  Cursor cursor(parts);
  uint64_t turn = 0;
  for (auto piece = cursor.take(kPieceBytes); !piece.empty(); piece = cursor.take(kPieceBytes)) {
    const Instant began = now();
    const uint64_t tag = tag_of(tag_, turn++ % kTurns);
    for (Receiver& receiver : receivers_) {
      if (receiver.status.ok())
        receiver.works.push_back(endpoint_.send(receiver.peer, tag, piece, deadline_));
    }
    for (const ByteSpan part : piece) passing(part);
    for (Receiver& receiver : receivers_) {
      for (const Work& work : std::exchange(receiver.works, {})) {
        Status ended = end_of(work);
        if (receiver.status.ok()) receiver.status = std::move(ended);
      }
    }
    rest(began);
  }
}

void FeedSource::rest(Instant began) const {
  if (!share_) return;
  const Instant ended = now();
  const double pause = static_cast<double>(ended - began) * (1 / share_() - 1);
  const Instant until = ended + static_cast<Duration>(std::min(pause, static_cast<double>(kRestMax)));
  for (Instant at = ended; at < until && !is_closing(); at = now()) {
    // Reason for the wait: the time is the training's; at most kRestMax, and looked around every kLook.
    std::this_thread::sleep_for(std::chrono::nanoseconds(std::min(until - at, kLook)));
  }
}

void FeedSource::post(Receiver& receiver, const std::vector<ByteSpan>& parts) {
  Cursor cursor(parts);
  uint64_t turn = 0;
  for (auto piece = cursor.take(kPieceBytes); !piece.empty(); piece = cursor.take(kPieceBytes)) {
    receiver.works.push_back(
        endpoint_.send(receiver.peer, tag_of(tag_, turn++ % kTurns), std::move(piece), deadline_));
  }
}

bool FeedSource::has_readers() const {
  return std::ranges::any_of(receivers_, [](const Receiver& one) { return one.status.ok() && one.reader; });
}

void FeedSource::tell(ByteSpan packet) {
  for (Receiver& receiver : receivers_) {
    if (receiver.status.ok() && receiver.reader) receiver.status = receiver.reader->send(packet);
  }
}

// Until each reader that lives has copied so many slabs. Those that do not in time are given up.
void FeedSource::await_copies(uint64_t slabs) {
  const Instant until = std::min(deadline_, now() + patience_);
  while (wait_for_answer(slabs, until) > 0) {
    if (is_closing()) {
      give_up_on(slabs, closed());
    } else if (now() >= until) {
      give_up_on(slabs, {ErrorCode::kReconfigure,
                         "the receiver on this node took nothing for a while; others went on without it"});
    }
  }
}

void FeedSource::give_up_on(uint64_t slabs, const Error& why) {
  for (Receiver& receiver : receivers_) {
    if (!receiver.waits_for(slabs)) continue;
    receiver.status = why;
    receiver.reader->give_up();
  }
}

// Hears those that are waited for, until one of them says something. How many there are left.
size_t FeedSource::wait_for_answer(uint64_t slabs, Instant until) {
  std::vector<pollfd> watched;
  for (Receiver& receiver : receivers_) {
    if (receiver.waits_for(slabs)) receiver.status = receiver.reader->hear(slabs);
    if (receiver.waits_for(slabs)) watched.push_back({receiver.reader->fd(), POLLIN, 0});
  }
  if (watched.empty()) return 0;
  const Duration left = std::max<Duration>(until - now(), 0);
  (void)poll(watched.data(), watched.size(), static_cast<int>(std::min(left, kLook) / kMillisecond) + 1);
  return watched.size();
}

std::vector<Status> FeedSource::finish() {
  await_copies(written_);
  std::vector<Status> ends;
  for (Receiver& receiver : receivers_) {
    for (const Work& work : receiver.works) {
      Status ended = end_of(work);  // also after a failure: until its end it reads the memory
      if (receiver.status.ok()) receiver.status = std::move(ended);
    }
    receiver.works.clear();
    ends.push_back(receiver.status);
  }
  return ends;
}

// It ends by its deadline.
Status FeedSource::end_of(const Work& work) {
  if (!closing_) return work.wait();
  while (!is_closing()) {
    Status ended = work.wait(now() + kLook);
    if (ended.ok() || ended.error().code != ErrorCode::kRetry) return ended;
  }
  endpoint_.cancel(work);
  (void)work.wait();
  return closed();
}

// ---- the target

// Whichever way the source has chosen, the first note comes by it.
Status FeedTarget::open(MutableByteSpan first_note) {
  const auto peer = endpoint_.peer(source_);
  Work by_transport;  // without a transport, never
  if (peer.ok()) {
    peer_ = *peer;
    by_transport = endpoint_.recv(peer_, tag_of(tag_, kNotes), first_note, deadline_);
  }
  while (true) {
    const Instant look = std::min(deadline_, now() + kLook);
    auto handover = endpoint_.await_handover(source_, tag_, by_transport, look);
    if (handover) {
      endpoint_.cancel(by_transport);
      MUSTER_ASSIGN(node_, SlabSource::open(std::move(handover->connection), std::move(handover->memory)));
      return node_->note(first_note, deadline_, closing_);
    }
    if (peer.ok() && by_transport.test()) return by_transport.wait();
    if (closing_ && closing_()) {
      endpoint_.cancel(by_transport);
      return Error{ErrorCode::kEnded, "the receiver is closing"};
    }
    if (!peer.ok() && now() >= deadline_)
      return Error{ErrorCode::kReconfigure, "nothing came on this node; " + peer.error().message};
  }
}

Status FeedTarget::note(MutableByteSpan bytes) {
  if (!std::exchange(opened_, true)) return open(bytes);
  if (node_) return node_->note(bytes, deadline_, closing_);
  return wait(endpoint_.recv(peer_, tag_of(tag_, kNotes), bytes, deadline_));
}

Status FeedTarget::run(MutableByteSpan bytes, const Passing& passing) {
  MUSTER_CHECK(opened_, "a feed begins with a note");
  return node_ ? run_on_node(bytes, passing) : run_by_transport(bytes, passing);
}

Status FeedTarget::run_on_node(MutableByteSpan bytes, const Passing& passing) {
  while (!bytes.empty()) {
    const MutableByteSpan slab = bytes.first(std::min(kSlabBytes, bytes.size()));
    MUSTER_TRY(node_->slab(slab, deadline_, closing_));
    passing(slab);
    bytes = bytes.subspan(slab.size());
  }
  return ok();
}

Status FeedTarget::run_by_transport(MutableByteSpan bytes, const Passing& passing) {
  std::deque<std::pair<Work, MutableByteSpan>> ahead;
  uint64_t turn = 0;
  Status status = ok();
  while (status.ok() && !(bytes.empty() && ahead.empty())) {
    while (!bytes.empty() && ahead.size() < kPiecesAhead) {
      const MutableByteSpan piece = bytes.first(std::min(kPieceBytes, bytes.size()));
      ahead.emplace_back(endpoint_.recv(peer_, tag_of(tag_, turn++ % kTurns), piece, deadline_), piece);
      bytes = bytes.subspan(piece.size());
    }
    const auto [work, piece] = ahead.front();
    status = wait(work);
    if (!status.ok()) break;
    ahead.pop_front();
    passing(piece);
  }
  for (const auto& [work, piece] : ahead) endpoint_.cancel(work);  // the memory goes back to the caller
  return status;
}

// For its end. A transfer ends by itself at its deadline.
Status FeedTarget::wait(const Work& work) {
  if (!closing_) return work.wait();
  while (true) {
    if (Status status = work.wait(now() + kLook); status.ok()) return status;
    if (work.test()) return work.wait();
    if (!closing_()) continue;
    endpoint_.cancel(work);  // or it would go on writing into memory that is about to be given back
    return Error{ErrorCode::kEnded, "the receiver is closing"};
  }
}

}  // namespace muster
