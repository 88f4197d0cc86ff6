// index.h5: every tensor whole, as an HDF5 virtual dataset over the shards. For people and other software; no
// reader of Muster ever opens it. It follows from the manifest alone, and may be missing or made anew at any
// time.
#pragma once

#include "checkpoint/manifest.h"
#include "runtime/base/files.h"

namespace muster::checkpoint {

// libhdf5 takes milliseconds a source when it reads, so beyond this an index would help nobody.
constexpr uint64_t kIndexSourcesMax = 65'536;

// The bytes of the file. Equal manifests give equal bytes. Needs libmuster_hdf5.so.
// Errors: kEnvironment: it is missing; kMisuse: more than kIndexSourcesMax pieces.
Result<ByteBuffer> encode_index(const Manifest& manifest);

// Writes it into the save's folder, in place of an older one. Errors: as above, and those of the files.
Status write_index(FileSystem& files, const std::string& folder, const Manifest& manifest);

// A block of a tensor: along each dimension where it begins and how many indices it has.
struct Block {
  std::vector<uint64_t> begin;
  std::vector<uint64_t> count;
};
// PURE. Elements [elements) of a row-major tensor as blocks, in order, each a run of elements.
// REQUIRES: no extent is 0, at least one dimension, and a range that is not empty.
std::vector<Block> blocks_of(std::span<const uint64_t> shape, Range elements);

}  // namespace muster::checkpoint
