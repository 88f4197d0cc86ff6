// Checkpoints to and from safetensors files, in bounded memory.
//
// An exported file carries, in its metadata, what a manifest says of the job, so that an import of it is a
// checkpoint from which the same job goes on.
#pragma once

#include "checkpoint/safetensors.h"
#include "checkpoint/state_reader.h"
#include "checkpoint/store.h"

namespace muster::checkpoint {

// Writes the named tensors (none: all) into a new file, whole or not at all. Errors: kDropCheckpoint: the
// checkpoint is damaged, or the file exists; kMisuse; kEnvironment.
// With `cast`, float32, float64, bfloat16 and float16 become that type, the others stay as they are, and the
// file says nothing of the job: no run goes on from rounded values as if they were its own.
struct ExportReport {
  uint64_t tensors = 0;
  uint64_t bytes = 0;
  uint64_t cast = 0;             // tensors
  uint64_t kept_floats = 0;      // tensors of fp8, which no cast takes, where one was asked for
  uint64_t became_infinite = 0;  // finite values that the narrower type cannot hold
};
Result<ExportReport> export_safetensors(FileSystem& files, StateReader& state,
                                        std::span<const std::string> names, const std::string& target,
                                        const Progress& progress, std::optional<DType> cast = {});

// An open safetensors file whose header was read and checked.
class SafetensorsFile {
 public:
  static Result<SafetensorsFile> open(FileSystem& files, const std::string& path);
  const SafetensorsHeader& header() const { return header_; }
  std::vector<TensorSpec> specs() const;  // in the order of their bytes
  // What an export left in the metadata; empty: the file comes from elsewhere.
  // Errors: kMisuse: it is there and malformed.
  Result<std::optional<Manifest>> context() const;
  Status read(uint32_t tensor, uint64_t offset, MutableByteSpan target);

 private:
  SafetensorsFile(std::string path, std::unique_ptr<File> file, SafetensorsHeader header)
      : path_(std::move(path)), file_(std::move(file)), header_(std::move(header)) {}
  std::string path_;
  std::unique_ptr<File> file_;
  SafetensorsHeader header_;
};

// Saves the tensors of `source` as a new version of `folder`, in `shards` shards, with what `like` says of
// version, nonce, lineage, job and sample position, sealed with its key. REQUIRES: the folder's owner, with
// the same key. Errors: kDropCheckpoint: that save failed; kMisuse; kEnvironment: libmuster_hdf5.so is
// missing.
Result<Manifest> import_safetensors(FileSystem& files, SafetensorsFile& source, Folder& folder,
                                    const Manifest& like, uint32_t shards, const Progress& progress);

}  // namespace muster::checkpoint
