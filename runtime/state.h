// The training state: the tensors that the program registered, and the rule about who may touch them.
//
// INVARIANT: the bytes change only while an update is open. Readers (staging, digests, teaching) hold a
// ReadLease; an update opens only when none is held, and no lease is granted while one is open. The wait for
// leases is the stall that users see, so it is counted.
//
// Where a tensor lies in device memory, a StateMirror keeps a copy of all tensors in host memory, and readers
// see that alone. INVARIANTS then: the mirror is of one version, whole, while a lease is held; so a lease is
// granted for a newer version only once none is held for an older one. An update waits for no lease: it is
// ordered behind the copies on the device, and the mirror stays as it is.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "runtime/base/bytes.h"
#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/base/result.h"
#include "runtime/lane_values.h"
#include "runtime/sharded_tensors.h"
#include "runtime/tensor_info.h"

namespace muster {

// The copy in host memory of a State that is not all there itself, and the way to it and back. Device work is
// ordered on the stream on which the program computes. Calls come one at a time, but for finish_fetch().
class StateMirror {
 public:
  virtual ~StateMirror() = default;

  // All tensors, one after the other.
  virtual MutableByteSpan host() const = 0;

  // The program has written: what it enqueued so far comes before all later fetches.
  virtual Status note_written() = 0;
  // Begins to copy the state into host(), and waits for nothing. After an error host() is undefined.
  virtual Status begin_fetch() = 0;
  // Waits for that. Any number of threads. Errors: kRetry at the deadline; kEnvironment, what failed.
  virtual Status finish_fetch(Instant deadline) = 0;
  // The program is about to write: what it enqueues from now on comes after the fetches begun so far.
  virtual Status order_update() = 0;
  // Puts `source` into host() and from there into the state: what the program enqueues from now on sees it.
  // REQUIRES: nobody reads host(). Errors: kRetry at the deadline, and nothing was changed; kEnvironment,
  // and the state may be half written.
  virtual Status store(ByteSpan source, Instant deadline) = 0;
};

class State {
 public:
  // Errors: kMisuse for a name used twice or empty, a null or misaligned pointer, memory that another tensor
  // has too, a negative extent, an overflowing product, or after seal().
  Status add_replicated(std::string name, void* data, DType dtype, std::vector<int64_t> shape,
                        Memory memory = Memory::kHost);

  // Of values that the forward pass changes, a row for each lane (lane_values.h): `shape` begins with the
  // lanes. The tensor is the copy that counts. Errors: the same; no lanes.
  Status add_per_lane(std::string name, void* data, DType dtype, std::vector<int64_t> shape);

  // Cut into shards, of which each process holds some (sharded_tensors.h), and none before a run has begun.
  // `working_copy`: memory of the program's for all of it, or null. Errors: the same, but for null; no rows.
  Status add_sharded(std::string name, void* working_copy, DType dtype, std::vector<int64_t> shape);
  ShardedTensors& sharded() { return sharded_; }
  const ShardedTensors& sharded() const { return sharded_; }

  LaneValues& lane_values() { return lane_values_; }
  const LaneValues& lane_values() const { return lane_values_; }

  // Errors: kMisuse: no such tensor, or after seal().
  Status expect(const std::string& name, checkpoint::Expectation expectation);

  // From here on the set of tensors is fixed.
  void seal();

  // All that is in device memory is read and installed through `mirror` from here on, until it is null. A
  // state that is on_device() has one before the first of the calls below.
  void set_mirror(StateMirror* mirror);
  bool on_device() const;  // any tensor
  // A lease for an older version is what acquire_read() waits for.
  bool older_is_read() const;

  // All but the sharded ones: what every process holds whole.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  uint64_t bytes() const { return bytes_; }  // of these

  Digest fingerprint() const;       // of names, types, shapes
  std::string description() const;  // the same in words, shortened

  // The three below read the bytes. REQUIRES: the caller holds a lease, and wait_readable() was ok.
  Digest digest() const;
  // The memory of each tensor. All of them one after the other are what travels to a rank that is behind.
  std::vector<ByteSpan> contents() const;
  void copy_to(MutableByteSpan target) const;  // a copy of that

  // The way back, once no lease is held: a save that is still staging must not mix two versions. Errors:
  // kRetry where a lease was held until the deadline; nothing is written then. kEnvironment: the device
  // failed, and the state may be half written.
  Status install(ByteSpan source, Instant deadline);
  // The same of shards: `arrived` are taken over, beside those of `kept`, ascending, that are here. After
  // kRetry `arrived` is as it was.
  Status install_shards(ShardBlocks& arrived, std::span<const uint32_t> kept, Instant deadline);

  // Blocks until no update is open and, of a state on a device, no lease is held for an older version; or the
  // deadline, which gives kRetry. Never calls a device: what has to be copied is copied by whoever comes
  // first, a reader that begins to, or the next update, for as long as the lease is held.
  Status acquire_read(Instant deadline);
  // One more for the same version as a lease that is held. REQUIRES: that is not released meanwhile.
  void share_read();
  // Begins to copy what a lease of the caller's is for, and does not wait for it.
  void begin_copy();
  // Waits until what the lease is for can be read. Errors: kRetry at the deadline; kEnvironment: the device
  // failed.
  Status wait_readable(Instant deadline);
  void release_read();

  // Blocks until no lease is held, or the deadline; of a state on a device, for nothing but the enqueuing of
  // copies. Adds the wait to stall(). Errors: kRetry at the deadline; kEnvironment: the device failed.
  Status begin_write(Instant deadline);
  // Before end_write(), by the thread that wrote: what the program enqueued comes before all later copies.
  // Errors: kEnvironment: the device failed, and nobody could say what the state is.
  Status note_written();
  void end_write();
  void cancel_write();  // instead: nothing was written
  Duration stall() const;
  void add_stall(Duration wait);  // of the program, for a lease

 private:
  Result<uint64_t> check_new(const std::string& name, const void* data, DType dtype,
                             const std::vector<int64_t>& shape, bool may_lack_memory = false) const;
  const TensorInfo* overlapping(const std::byte* data, uint64_t bytes) const;
  bool mirror_is_current() const { return mirror_ == nullptr || mirrored_ == written_; }
  void fetch_if_due(std::unique_lock<std::mutex>& lock);
  Status install_on_device(ByteSpan source, Instant deadline);

  std::vector<TensorInfo> tensors_;
  LaneValues lane_values_;
  ShardedTensors sharded_;
  uint64_t bytes_ = 0;
  bool sealed_ = false;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int readers_ = 0;
  bool writing_ = false;
  Duration stall_ = 0;

  // with a mirror
  static constexpr uint64_t kNothing = 0;
  StateMirror* mirror_ = nullptr;
  uint64_t written_ = 1;             // counts what the state has been
  uint64_t mirrored_ = kNothing;     // which of these the mirror is, or will be
  bool fetch_due_ = false;           // its copies are still to be enqueued
  bool fetching_ = false;            // they are being enqueued
  std::optional<Error> unreadable_;  // why they could not be
  std::optional<Error> unordered_;   // why they cannot come behind what was written last
};

}  // namespace muster
