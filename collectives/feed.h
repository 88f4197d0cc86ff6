// Many bytes from one process to several others at once, as the state goes to members that are behind: to
// those on its machine through a ring in shared memory, to the others over the transport.
//
// Both sides name the same items in the same order: notes, which are small, and runs of bytes. A run is worth
// beginning to work on before it is whole, so both sides see it go by.
//
// INVARIANT: every receiver stands alone. One that dies, or does not move, costs the others at most the
// source's patience.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "collectives/endpoint.h"
#include "collectives/node/slab_ring.h"

namespace muster {

// How long a receiver on the same node may take nothing while others could go on.
constexpr Duration kFeedPatience = 10 * kSecond;

// The bytes of a run, in order, piece by piece.
using Passing = std::function<void(ByteSpan)>;

// Asked now and then by whoever waits, on that thread; true ends the wait.
using FeedClosing = SlabSource::Closing;

class FeedSource {
 public:
  // The tag serves one feed between two peers, ever.
  FeedSource(Endpoint& endpoint, uint64_t tag, Instant deadline, Duration patience = kFeedPatience,
             FeedClosing closing = {})
      : endpoint_(endpoint),
        tag_(tag),
        deadline_(deadline),
        patience_(patience),
        closing_(std::move(closing)) {}
  ~FeedSource();  // what is still under way ends
  FeedSource(const FeedSource&) = delete;
  FeedSource& operator=(const FeedSource&) = delete;

  // REQUIRES: before the first item. Shared memory is tried first: whether a process is on this machine, its
  // socket tells, whatever nodes the two count to.
  void add(ByteSpan contact);

  // Runs leave the rest of the time to others: a share of it, in (0, 1], which is asked for each piece.
  void pace(std::function<double()> share) { share_ = std::move(share); }

  void note(ByteSpan bytes);  // at most kNoteBytesMax
  // The memory must keep its contents until finish() returns, or the end of this object.
  void run(const std::vector<ByteSpan>& parts, const Passing& passing);

  // Waits until all is delivered. How it ended for each receiver, in the order of add(). kReconfigure: the
  // receiver died, or did not take it in time; kEnded: `closing` said so.
  std::vector<Status> finish();

 private:
  struct Receiver {
    Status status = ok();
    std::optional<SlabReader> reader;  // on this node
    PeerId peer = 0;                   // elsewhere
    std::vector<Work> works;           // elsewhere: what was sent
    bool waits_for(uint64_t slabs) const { return status.ok() && reader && !reader->has_copied(slabs); }
  };

  Status open_reader(ByteSpan contact, Receiver& receiver);
  void post(Receiver& receiver, const std::vector<ByteSpan>& parts);
  void run_by_transport(const std::vector<ByteSpan>& parts, const Passing& passing);
  void rest(Instant began) const;
  void tell(ByteSpan packet);
  void await_copies(uint64_t slabs);
  void give_up_on(uint64_t slabs, const Error& why);
  Status end_of(const Work& work);
  bool is_closing() const { return closing_ && closing_(); }
  size_t wait_for_answer(uint64_t slabs, Instant until);
  bool has_readers() const;

  Endpoint& endpoint_;
  const uint64_t tag_;
  const Instant deadline_;
  const Duration patience_;
  const FeedClosing closing_;
  std::function<double()> share_;  // null: all of the time
  std::vector<Receiver> receivers_;
  std::deque<ByteBuffer> notes_;  // while they are sent
  SlabRing ring_;
  uint64_t written_ = 0;  // slabs
};

// The receiving side. Errors of its calls: kReconfigure: the source died, gave this process up, or did not
// send by the deadline; kMisuse: it sends something else; kEnded: `closing` said so; kEnvironment.
class FeedTarget {
 public:
  FeedTarget(Endpoint& endpoint, ByteSpan source, uint64_t tag, Instant deadline, FeedClosing closing = {})
      : endpoint_(endpoint),
        source_(source.begin(), source.end()),
        tag_(tag),
        deadline_(deadline),
        closing_(std::move(closing)) {}
  FeedTarget(const FeedTarget&) = delete;
  FeedTarget& operator=(const FeedTarget&) = delete;

  // The first one waits for whichever way the source has chosen.
  Status note(MutableByteSpan bytes);
  Status run(MutableByteSpan bytes, const Passing& passing);
  void extend(Instant deadline) { deadline_ = deadline; }

 private:
  Status open(MutableByteSpan first_note);
  Status wait(const Work& work);
  Status run_on_node(MutableByteSpan bytes, const Passing& passing);
  Status run_by_transport(MutableByteSpan bytes, const Passing& passing);

  Endpoint& endpoint_;
  const ByteBuffer source_;
  const uint64_t tag_;
  Instant deadline_;
  const FeedClosing closing_;
  bool opened_ = false;
  std::optional<SlabSource> node_;  // the way over shared memory
  PeerId peer_ = 0;                 // the other
};

}  // namespace muster
