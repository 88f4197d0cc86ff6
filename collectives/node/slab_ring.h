// A ring of slabs in a memfd, through which one process gives the same bytes to others on its node, and the
// connections that tell of them.
//
// The owner writes a slab once for all its readers, who map the ring read-only. A slab's place is used again
// when every reader has copied the slab, so the owner goes at the pace of the slowest; one that does not move
// at all is given up, and so harms nobody else. The ring is small: what is written stays in the caches until
// it is read, and a few pages serve any amount of data (measured: a fresh memfd as large as 64 MiB of data
// takes 70 ms to write and 22 ms to free, where copying the data takes 10 to 18).
//
// On a connection the owner sends one packet for each slab, and notes in between; both sides know the order.
// The reader answers with the number of slabs that it has copied, first with zero when it has mapped the
// ring.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "collectives/node/shared_memory.h"
#include "runtime/base/bytes.h"
#include "runtime/base/clock.h"
#include "runtime/base/fork.h"
#include "runtime/base/result.h"

namespace muster {

constexpr size_t kSlabBytes = 256 * 1024;  // so that a slab is digested out of the second-level cache
constexpr uint64_t kSlabs = 16;            // what the owner may be ahead of the slowest reader
constexpr size_t kNoteBytesMax = 256;

class SlabRing {
 public:
  static Result<SlabRing> create();     // the owner's. Errors: kEnvironment.
  static Result<SlabRing> map(int fd);  // a reader's. Errors: kEnvironment: not such a ring.
  SlabRing() = default;

  explicit operator bool() const { return static_cast<bool>(memory_); }
  int fd() const { return memory_.fd(); }
  std::byte* slab(uint64_t number) const { return memory_.base() + number % kSlabs * kSlabBytes; }

 private:
  SharedMemory memory_;
};

// The owner's side of one reader. Errors of all calls: kReconfigure, the reader is gone.
class SlabReader {
 public:
  explicit SlabReader(OwnFd connection) : connection_(std::move(connection)) {}

  int fd() const { return connection_.get(); }
  Status send(ByteSpan packet);
  void give_up() { connection_.reset(); }  // which the reader hears; no more calls
  Status hear(uint64_t slabs);             // its answers so far, until it has copied so many
  bool has_copied(uint64_t slabs) const { return answered_ && copied_ >= slabs; }

 private:
  OwnFd connection_;
  bool answered_ = false;
  uint64_t copied_ = 0;
};

// The reader's side.
class SlabSource {
 public:
  // Errors: kEnvironment.
  static Result<SlabSource> open(OwnFd connection, UniqueFd memory);

  // Errors: kReconfigure: the owner is gone, gave this reader up, or said nothing by the deadline; kEnded:
  // `closing`, asked now and then, says so; kMisuse: it sends something else.
  using Closing = std::function<bool()>;
  Status note(MutableByteSpan bytes, Instant deadline, const Closing& closing);
  Status slab(MutableByteSpan bytes, Instant deadline, const Closing& closing);

 private:
  Result<size_t> receive(MutableByteSpan packet, Instant deadline, const Closing& closing);
  void answer();

  OwnFd connection_;
  SlabRing ring_;
  uint64_t copied_ = 0;
};

}  // namespace muster
