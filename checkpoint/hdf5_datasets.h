// Lists of datasets for libmuster_hdf5.so, and the bytes that it makes of them. Internal to this folder.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "checkpoint/hdf5_module.h"
#include "runtime/base/bytes.h"
#include "runtime/base/dtype.h"
#include "runtime/base/result.h"

namespace muster::checkpoint {

// Owns what the C table only points to: what keep() returns stays where it is.
class Datasets {
 public:
  const char* keep(std::string text) { return texts_.emplace_back(std::move(text)).c_str(); }
  const std::vector<uint64_t>& keep(std::vector<uint64_t> values) {
    return numbers_.emplace_back(std::move(values));
  }
  std::vector<MusterHdf5Source>& keep_sources() { return sources_.emplace_back(); }

  void add(std::string path, DType dtype, std::vector<uint64_t> shape, uint64_t bytes, uint64_t offset,
           std::vector<MusterHdf5Attribute> attributes = {});
  // REQUIRES: `sources` is from keep_sources, and complete.
  void add_virtual(std::string path, DType dtype, std::vector<uint64_t> shape,
                   const std::vector<MusterHdf5Source>& sources, std::vector<MusterHdf5Attribute> attributes);

  const std::vector<MusterHdf5Dataset>& list() const { return list_; }

 private:
  MusterHdf5Dataset& append(std::string path, DType dtype, std::vector<uint64_t> shape,
                            std::vector<MusterHdf5Attribute> attributes);

  std::deque<std::string> texts_;
  std::deque<std::vector<uint64_t>> numbers_;
  std::deque<std::vector<MusterHdf5Attribute>> attributes_;
  std::deque<std::vector<MusterHdf5Source>> sources_;
  std::vector<MusterHdf5Dataset> list_;
};

// The metadata of a file with these datasets, while it is being written and closed.
struct Hdf5Image {
  ByteBuffer open_bytes, closed_bytes;
};
// Errors: kEnvironment: the module is missing; kMisuse: libhdf5 refuses a dataset.
Result<Hdf5Image> describe(const Datasets& datasets);

}  // namespace muster::checkpoint
