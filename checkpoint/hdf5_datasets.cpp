#include "checkpoint/hdf5_datasets.h"

#include "checkpoint/layout.h"
#include "runtime/base/module.h"

namespace muster::checkpoint {

MusterHdf5Dataset& Datasets::append(std::string path, DType dtype, std::vector<uint64_t> shape,
                                    std::vector<MusterHdf5Attribute> attributes) {
  const auto& kept_shape = keep(std::move(shape));
  const auto& kept = attributes_.emplace_back(std::move(attributes));
  MusterHdf5Dataset dataset{};
  dataset.path = keep(std::move(path));
  dataset.dtype = static_cast<int>(dtype);
  dataset.shape = kept_shape.data();
  dataset.rank = static_cast<int>(kept_shape.size());
  dataset.attributes = kept.data();
  dataset.attribute_count = static_cast<int>(kept.size());
  return list_.emplace_back(dataset);
}

void Datasets::add(std::string path, DType dtype, std::vector<uint64_t> shape, uint64_t bytes,
                   uint64_t offset, std::vector<MusterHdf5Attribute> attributes) {
  MusterHdf5Dataset& dataset = append(std::move(path), dtype, std::move(shape), std::move(attributes));
  dataset.bytes = bytes;
  dataset.offset = offset;
}

void Datasets::add_virtual(std::string path, DType dtype, std::vector<uint64_t> shape,
                           const std::vector<MusterHdf5Source>& sources,
                           std::vector<MusterHdf5Attribute> attributes) {
  MusterHdf5Dataset& dataset = append(std::move(path), dtype, std::move(shape), std::move(attributes));
  dataset.is_virtual = 1;
  dataset.sources = sources.data();
  dataset.source_count = sources.size();
}

Result<Hdf5Image> describe(const Datasets& datasets) {
  MUSTER_ASSIGN(const void* raw_table, load_module("hdf5", MUSTER_HDF5_TABLE_VERSION));
  const auto& table = *static_cast<const MusterHdf5Table*>(raw_table);
  MusterHdf5Image image{};
  char error[512] = "";
  if (table.describe(datasets.list().data(), datasets.list().size(), kBlockBytes, &image, error,
                     sizeof error) != 0)
    return Error{ErrorCode::kMisuse, std::string("libhdf5 cannot describe the file: ") + error};
  const auto copy = [&](const unsigned char* from) {
    const auto* bytes = reinterpret_cast<const std::byte*>(from);
    return ByteBuffer(bytes, bytes + image.metadata_bytes);
  };
  Hdf5Image copied{copy(image.open_bytes), copy(image.closed_bytes)};
  table.release(&image);
  return copied;
}

}  // namespace muster::checkpoint
