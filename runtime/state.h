// The training state: the tensors that the program registered, and the rule about who may touch them.
//
// INVARIANT: the bytes change only while an update is open. Readers (staging, digests, teaching) hold a
// ReadLease; an update opens only when none is held, and no lease is granted while one is open. The wait for
// leases is the stall that users see, so it is counted.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "checkpoint/expectation.h"
#include "runtime/base/bytes.h"
#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/base/dtype.h"
#include "runtime/base/result.h"

namespace muster {

struct TensorInfo {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  std::byte* data = nullptr;
  uint64_t bytes = 0;
  checkpoint::Expectation expectation = checkpoint::Expectation::kWatched;
};

class State {
 public:
  // Errors: kMisuse for a name used twice or empty, a null or misaligned pointer, memory that another tensor
  // has too, a negative extent, an overflowing product, or after seal().
  Status add_replicated(std::string name, void* data, DType dtype, std::vector<int64_t> shape);

  // Errors: kMisuse: no such tensor, or after seal().
  Status expect(const std::string& name, checkpoint::Expectation expectation);

  // From here on the set of tensors is fixed.
  void seal();

  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  uint64_t bytes() const { return bytes_; }

  Digest fingerprint() const;       // of names, types, shapes
  std::string description() const;  // the same in words, shortened
  Digest digest() const;  // of the contents; the caller holds a lease, or is the program inside next()

  // The memory of each tensor. All of them one after the other are what travels to a rank that is behind.
  // Read under a lease.
  std::vector<ByteSpan> contents() const;
  // A copy of that. The caller holds a lease.
  void copy_to(MutableByteSpan target) const;
  // The way back, once no lease is held: a save that is still staging must not mix two versions. Errors:
  // kRetry where a lease was held until the deadline; nothing is written then.
  Status install(ByteSpan source, Instant deadline);

  // Blocks until no update is open, or the deadline.
  Status acquire_read(Instant deadline);
  void release_read();
  // Blocks until no lease is held, or the deadline. Adds the wait to stall().
  Status begin_write(Instant deadline);
  void end_write();
  Duration stall() const;

 private:
  std::vector<TensorInfo> tensors_;
  uint64_t bytes_ = 0;
  bool sealed_ = false;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int readers_ = 0;
  bool writing_ = false;
  Duration stall_ = 0;
};

// State::digest() of contents that come in parts, in the order of contents().
class StateDigest {
 public:
  explicit StateDigest(const State& state) : tensors_(state.tensors()) { parts_.reserve(tensors_.size()); }

  void add(ByteSpan bytes);
  Digest finish();  // REQUIRES: all contents were added, no more

 private:
  void close_tensors();

  const std::vector<TensorInfo>& tensors_;
  std::vector<Digest> parts_;  // of the tensors that are whole
  DigestStream current_;       // of the tensor that parts_ lacks next
  uint64_t current_bytes_ = 0;
};

}  // namespace muster
