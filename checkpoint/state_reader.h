// Whole tensors out of a checkpoint, whatever its shards: for tools and people. What is returned was
// verified.
#pragma once

#include <list>
#include <memory>

#include "checkpoint/manifest.h"
#include "runtime/base/files.h"

namespace muster::checkpoint {

class StateReader {
 public:
  // `folder` is the save's own. Errors: kDropCheckpoint: its tensors and shards do not fit together.
  static Result<StateReader> open(FileSystem& files, std::string folder,
                                  std::shared_ptr<const Manifest> manifest);
  StateReader(StateReader&&) noexcept;
  StateReader& operator=(StateReader&&) noexcept;
  ~StateReader();

  const Manifest& manifest() const { return *manifest_; }
  // The index of a tensor by name. Errors: kMisuse, with the nearest name.
  Result<uint32_t> find(const std::string& name) const;

  // Bytes [offset, offset + target.size()) of a tensor in row-major order. Errors: kDropCheckpoint: damaged,
  // in a sentence that names the file and the slab.
  Status read(uint32_t tensor, uint64_t offset, MutableByteSpan target);

 private:
  struct OpenShard;
  StateReader(FileSystem& files, std::string folder, std::shared_ptr<const Manifest> manifest, SavePlan plan);
  Result<OpenShard*> shard(uint32_t participant);

  FileSystem* files_;
  std::string folder_;
  std::shared_ptr<const Manifest> manifest_;
  SavePlan plan_;
  std::list<std::unique_ptr<OpenShard>> shards_;  // most recently used first, and bounded
};

}  // namespace muster::checkpoint
