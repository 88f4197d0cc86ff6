// What reductions over the devices of a view need of streams and memory, kept from view to view. To allocate
// or free memory of a device waits for all of it (cudaMalloc, cudaFree, and so it is with pinned memory),
// which would hold up a view change and the program's own kernels.
//
// What NCCL did not let go of is not given back: the next view gets other memory. Any thread.
#pragma once

#include <array>
#include <mutex>
#include <vector>

#include "runtime/device.h"

namespace muster {

class DevicePool {
 public:
  // What is taken for one purpose is given back for it.
  enum class Use : uint8_t { kMean, kScratch };
  struct Block {
    DeviceMemory memory;
    size_t bytes = 0;
  };
  struct Pinned {
    PinnedMemory memory;
    size_t bytes = 0;
    DeviceEvent copied;
  };

  // `device` outlives it.
  explicit DevicePool(const Device& device) : device_(device) {}
  DevicePool(const DevicePool&) = delete;
  DevicePool& operator=(const DevicePool&) = delete;

  const Device& device() const { return device_; }

  // At least as much as asked for. What is kept and too small is freed first, which waits for the device.
  // Errors: kEnvironment.
  Result<DeviceStream> take_stream();
  Result<Block> take(Use use, size_t bytes);
  Result<Pinned> take_pinned(size_t bytes);

  // REQUIRES: nothing is under way there.
  void give(DeviceStream stream);
  void give(Use use, Block block);
  void give(Pinned pinned);

 private:
  // A view forms while the one before still lives, and a mean may be kept beside the next one.
  static constexpr size_t kKeptMax = 2;

  const Device& device_;
  std::mutex mutex_;
  std::vector<DeviceStream> streams_;
  std::array<Block, 2> blocks_;
  std::vector<Pinned> pinned_;
};

}  // namespace muster
