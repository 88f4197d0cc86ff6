// A handle on an operation under way.
#pragma once

#include <memory>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/result.h"

namespace muster {

struct Operation;

// Copyable; every copy is the same operation. An empty Work is done, and ok. Dropping the last copy does not
// cancel: the operation completes in the background, and its buffers must live as long as it is not done.
class Work {
 public:
  Work() = default;
  explicit Work(std::shared_ptr<Operation> operation) : operation_(std::move(operation)) {}

  // True once the operation ended, well or not. From then on the library neither reads nor writes the
  // buffers.
  bool test() const;

  // Waits for the end, and helps to progress while it waits. From any thread. `deadline` is this wait's own;
  // the operation has another, given when it was issued, and ends by itself. Errors: kRetry, this wait's
  // deadline passed and the operation goes on; otherwise the operation's end: kReconfigure, revoked, or a
  // peer died or did not answer in time (the group is unusable); kMisuse, the ranks called different
  // operations, or the arguments are wrong.
  Status wait(Instant deadline = kNever) const;

  // After a failed end: ranks of the group that are to blame, as far as known, for the coordinator's
  // suspicion.
  std::vector<int> suspects() const;

 private:
  friend class Endpoint;  // cancels transfers
  std::shared_ptr<Operation> operation_;
};

}  // namespace muster
