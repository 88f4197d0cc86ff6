// The devices of a view's members, joined by NCCL beside the view's Group, whose ranks it has: gradients that
// were summed on the devices are reduced there, and the mean stays there. Start at DeviceGroup::form.
//
// What NCCL may still write to when it does not let go, which a peer that died in the middle may cause, is
// given up: the next view has other memory. Else it goes back to the pool that it came from.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "collectives/nccl/nccl_communicator.h"
#include "collectives/reducer.h"
#include "runtime/device_pool.h"
#include "runtime/gradients.h"

namespace muster {

class DeviceGroup {
 public:
  struct FormOptions {
    std::shared_ptr<DevicePool> pool;  // its device outlives the group and its means
    std::string why_not;               // not empty: this rank will not try
    Duration timeout = 10 * kSecond;
    Duration end_timeout = 10 * kSecond;  // for NCCL to let go, and for what a failed call left under way
    std::function<bool()> closing;        // nobody wants it any more: `group` is revoked then
  };
  struct Formed {
    std::unique_ptr<DeviceGroup> devices;  // null: on no rank
    std::string why_not;                   // which ranks could not, or would not try, and why one of them
  };
  // All ranks of `group` call it, as one of its operations; all get one, or none does. Errors: as Work::wait,
  // with `suspects`.
  static Result<Formed> form(Group& group, const FormOptions& options, std::vector<int>& suspects);
  // Revokes, and waits end_timeout until NCCL has let go.
  ~DeviceGroup();
  DeviceGroup(const DeviceGroup&) = delete;
  DeviceGroup& operator=(const DeviceGroup&) = delete;

  // Ends all that is under way, and lets nothing else begin. Any thread; returns at once.
  void revoke(const std::string& reason) { communicator_->revoke(reason); }
  // It was revoked, or NCCL failed. Any thread.
  bool is_over() const { return !communicator_->health().ok(); }

  // What follows is one thread's. The stream that reads the sums.
  void* stream() const { return stream_.get(); }
  // At most once. `sums` are of Reducer::accumulation() and read by stream(). Arguments: as of Reducer and
  // NcclReduction. Errors: kEnvironment.
  Result<std::unique_ptr<Reducer>> make_reducer(const CanonicalLayout& layout, size_t count, size_t bucket,
                                                std::optional<Compression> compression,
                                                std::unique_ptr<GradientSums> sums, size_t beside);
  // The mean of a reduction that has ended, to the program's gradients, on the program's stream. Errors:
  // kEnvironment.
  Status put_mean(const Gradients& gradients) const;

 private:
  DeviceGroup(const FormOptions& options, int rank, std::unique_ptr<NcclCommunicator> communicator,
              DeviceStream stream)
      : pool_(options.pool),
        rank_(rank),
        end_timeout_(options.end_timeout),
        stream_(std::move(stream)),
        communicator_(std::move(communicator)) {}
  const Device& device() const { return pool_->device(); }
  Status settle() const;

  const std::shared_ptr<DevicePool> pool_;
  const int rank_;
  const Duration end_timeout_;
  DeviceStream stream_;
  DevicePool::Block mean_, scratch_;
  const std::unique_ptr<NcclCommunicator> communicator_;
};

}  // namespace muster
