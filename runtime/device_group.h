// The devices of a view's members, joined by NCCL beside the view's Group, whose ranks it has: gradients that
// were summed on the devices are reduced there, and the mean stays there. Start at DeviceGroup::form.
//
// What NCCL may still write to when it does not let go, which a peer that died in the middle may cause, is
// this object's own, and given up with it: the next view has another.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "collectives/nccl/nccl_communicator.h"
#include "collectives/reducer.h"
#include "runtime/device.h"
#include "runtime/gradients.h"

namespace muster {

class DeviceGroup {
 public:
  struct FormOptions {
    const Device* device = nullptr;  // outlives the group and its means
    std::string why_not;             // not empty: this rank will not
    Duration timeout = 10 * kSecond;
    std::function<bool()> closing;  // nobody wants it any more: `group` is revoked then
  };
  struct Formed {
    std::unique_ptr<DeviceGroup> devices;  // null: on no rank
    std::string why_not;                   // which rank could not, and why
  };
  // All ranks of `group` call it, as one of its operations; all get one, or none does. Errors: as Work::wait,
  // with `suspects`.
  static Result<Formed> form(Group& group, const FormOptions& options, std::vector<int>& suspects);
  // Revokes, and waits a bounded time until NCCL has let go.
  ~DeviceGroup();
  DeviceGroup(const DeviceGroup&) = delete;
  DeviceGroup& operator=(const DeviceGroup&) = delete;

  // Ends all that is under way, and lets nothing else begin. Any thread; returns at once.
  void revoke(const std::string& reason) { communicator_->revoke(reason); }

  // What follows is one thread's. The stream that reads the sums.
  void* stream() const { return stream_.get(); }
  // At most once. `sums` are of Reducer::accumulation() and read by stream(). Errors: kEnvironment.
  Result<std::unique_ptr<Reducer>> make_reducer(const CanonicalLayout& layout, size_t count, size_t bucket,
                                                std::unique_ptr<GradientSums> sums, size_t beside);
  // The mean of a reduction that has ended, to the program's gradients, on the program's stream. Errors:
  // kEnvironment.
  Status put_mean(const Gradients& gradients) const;

 private:
  DeviceGroup(const Device& device, int rank, std::unique_ptr<NcclCommunicator> communicator,
              DeviceStream stream)
      : device_(device), rank_(rank), stream_(std::move(stream)), communicator_(std::move(communicator)) {}

  const Device& device_;
  const int rank_;
  DeviceStream stream_;
  DeviceMemory mean_, scratch_;
  const std::unique_ptr<NcclCommunicator> communicator_;
};

}  // namespace muster
