// The state on its way from the members that hold a view's base to those that are behind, and to those who
// lack but its last update that update's gradient.
//
// INVARIANT: the program's state is read, never written. What arrives is staged, whole, of the version that
// the view begins with and of the digest that its source computed from what it sent, or there is nothing
// (PROTOCOL 4): a source that dies in the middle takes nothing with it. The program's thread installs what is
// staged, when it enters the view.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "collectives/endpoint.h"
#include "collectives/feed.h"
#include "collectives/reducer.h"
#include "runtime/base/large_buffer.h"
#include "runtime/control/messages.h"
#include "runtime/control/rules.h"
#include "runtime/control/transfer_time.h"
#include "runtime/state.h"

namespace muster {

// What a source says before the state or the gradient, so that nothing else is begun with, and after it.
struct TransferHeader {
  int64_t version;  // of the state; of the step whose gradient it is
  uint64_t bytes;
};
struct TransferTrailer {
  int64_t version;
  uint64_t bytes;
  Digest digest;  // of what was sent: all of it, or a part
};

// What came is not what was due. Errors: kRetry.
Status check_header(const TransferHeader& header, const TransferHeader& due);
Status check_trailer(const TransferTrailer& trailer, const TransferHeader& due, const Digest& staged);

enum class Cargo : uint8_t { kState = 0, kGradient = 1, kShards = 2 };
// The feed's tag of a view's transfers, or of a part of what is sent.
uint64_t transfer_tag(const control::Generation& generation, Cargo cargo = Cargo::kState, uint32_t part = 0,
                      uint32_t parts = 1);

// REQUIRES: it is in the view.
const control::Member& member_of(const control::View& view, control::MemberId id);

// The reduced gradient of a step, with what is beside it, that outlives its view.
struct KeptGradient {
  control::Version step = control::kNoVersion;
  std::shared_ptr<ReducedMean> mean;
};

// The reduced gradient of a step that this member made its last update with.
struct HeldGradient {
  control::Version step = control::kNoVersion;
  ByteSpan bytes;
  std::shared_ptr<const ReducedMean> mean;  // whose bytes they are, once it has come to the host; or null
};

// A lease that a view change, or a rescue, waits for. Of a state on a device a save of an older version may
// be in its way, for as long as a disk takes: after `grace` `unblock` gives that save up. Errors: as
// acquire_read.
Status acquire_for_view(State& state, Duration grace, Instant deadline, const std::function<void()>& unblock);
// The same for who is to send of the state: all of the view wait. It is readable then.
Status lease_for_view(State& state, Instant deadline, const std::function<void()>& unblock);

struct StateTransfer {
  Endpoint& endpoint;
  State& state;
  control::MemberId self = 0;
  Instant deadline = kNever;
  control::RuleSwitches rules;    // test-only
  HeldGradient held;              // as a source
  uint64_t gradient_bytes = 0;    // as a target: what its program's gradients take
  std::function<void()> unblock;  // as a source: see acquire_for_view
  FeedClosing closing;            // the view will not be
  std::optional<LargeBuffer> staged;
  bool staged_gradient = false;  // and no state

  // This member's part of the view's transfers, as source or as target. Errors: kReconfigure where a peer
  // failed, which `suspects` then names; kRetry where what came is of another version, size or digest;
  // kEnvironment where there is no memory to stage it, or a device's memory cannot be read, and this member
  // is to blame.
  Status run(const control::Install& install, std::vector<control::MemberId>& suspects);

 private:
  struct Parcel;  // what one source sends alike to some
  std::vector<Parcel> parcels(const control::Install& install, bool gradient) const;
  Status give(const control::Install& install, std::vector<control::MemberId>& suspects);
  Status give_gradient(const control::Install& install, std::vector<control::MemberId>& suspects);
  Status send(const control::Install& install, const Parcel& parcel, const TransferHeader& what,
              const std::vector<ByteSpan>& contents, std::vector<control::MemberId>& suspects);
  void refuse(const control::Install& install, const std::vector<Parcel>& parcels);
  Status take(const control::Install& install, std::vector<control::MemberId>& suspects);
  Status take_part(const control::Install& install, const control::Transfer& transfer,
                   const TransferHeader& due, bool& source_failed);
};

}  // namespace muster
