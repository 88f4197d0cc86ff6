// libhdf5 as a writer of metadata bytes. What always holds: no file is opened, no error is printed, nothing
// runs at exit, and no exception leaves.
//
// The driver below gives metadata addresses from 0 upwards and each dataset the address that the caller
// chose. Since the chosen addresses begin where metadata ends, which is known only afterwards, the file is
// described twice: first with the data far away, to measure.
#include "checkpoint/hdf5_module.h"

#include <dlfcn.h>
#include <hdf5.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/base/dtype.h"
#include "runtime/base/handle.h"

#if H5_VERSION_GE(1, 13, 0)
#error "the driver's class has other fields from HDF5 1.13 on: adapt kDriverClass"
#endif

namespace muster {
namespace {

using H5File = UniqueHandle<hid_t, H5Fclose, H5I_INVALID_HID>;
using H5Space = UniqueHandle<hid_t, H5Sclose, H5I_INVALID_HID>;
using H5Type = UniqueHandle<hid_t, H5Tclose, H5I_INVALID_HID>;
using H5Set = UniqueHandle<hid_t, H5Dclose, H5I_INVALID_HID>;
using H5Group = UniqueHandle<hid_t, H5Gclose, H5I_INVALID_HID>;
using H5List = UniqueHandle<hid_t, H5Pclose, H5I_INVALID_HID>;
using H5Attribute = UniqueHandle<hid_t, H5Aclose, H5I_INVALID_HID>;

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

hid_t checked(hid_t id, const char* what) {
  if (id < 0) throw Failure(what);
  return id;
}

// An id that libhdf5 keeps in a variable. A program that refers to the same variable may hold a copy of it (a
// copy relocation); libhdf5 then fills the program's, while this module, which looks in its own scope first,
// sees the original, empty. With a libhdf5 of another version in the program the original is filled.
hid_t id_in(const hid_t& original, const char* variable) {
  H5open();
  if (original > 0) return original;
  static void* const program = dlopen(nullptr, RTLD_LAZY);
  const void* const copy = program == nullptr ? nullptr : dlsym(program, variable);
  return copy == nullptr ? original : *static_cast<const hid_t*>(copy);
}
#define MUSTER_HDF5_ID(variable) id_in(variable, #variable)

// What one description is told and leaves behind. One at a time, under the mutex of `describe`.
struct Description {
  const MusterHdf5Dataset* datasets = nullptr;
  uint64_t dataset_count = 0;
  uint64_t base = 0;          // address of offset 0
  uint64_t next_dataset = 0;  // the next data allocation is this one's
  uint64_t metadata_end = 0;  // next free address for metadata
  uint64_t data_end = 0;
  bool only_virtual = false;  // what libhdf5 calls data (global heaps) is the mappings then, so metadata
  bool data_written = false;  // a fill value or a misplaced object: the bytes would not be the caller's
  std::vector<unsigned char> metadata = {};
};
Description* current = nullptr;

struct Driver {
  H5FD_t base;  // libhdf5's part, first by its rule
};

H5FD_t* driver_open(const char*, unsigned, hid_t, haddr_t) { return reinterpret_cast<H5FD_t*>(new Driver{}); }

herr_t driver_close(H5FD_t* file) {
  delete reinterpret_cast<Driver*>(file);
  return 0;
}

// No aggregation: each allocation comes to driver_alloc alone.
herr_t driver_query(const H5FD_t*, unsigned long* flags) {
  *flags = 0;
  return 0;
}

// Only a driver that can lock gets the superblock's open-for-write flag.
herr_t driver_lock(H5FD_t*, hbool_t) { return 0; }
herr_t driver_unlock(H5FD_t*) { return 0; }

haddr_t driver_alloc(H5FD_t*, H5FD_mem_t type, hid_t, hsize_t bytes) {
  Description& now = *current;
  if (type != H5FD_MEM_DRAW || now.only_virtual) {
    const haddr_t address = now.metadata_end;
    now.metadata_end += (bytes + 7) / 8 * 8;
    return address;
  }
  if (now.next_dataset >= now.dataset_count || now.datasets[now.next_dataset].bytes != bytes)
    return HADDR_UNDEF;
  const haddr_t address = now.base + now.datasets[now.next_dataset++].offset;
  now.data_end = std::max<uint64_t>(now.data_end, address + bytes);
  return address;
}

herr_t driver_free(H5FD_t*, H5FD_mem_t, hid_t, haddr_t, hsize_t) { return 0; }

haddr_t driver_get_eoa(const H5FD_t*, H5FD_mem_t) {
  return std::max(current->data_end, current->metadata_end);
}

// libhdf5 sets the end only to make room for the superblock.
herr_t driver_set_eoa(H5FD_t*, H5FD_mem_t, haddr_t address) {
  if (current->data_end == 0) current->metadata_end = std::max<uint64_t>(current->metadata_end, address);
  return 0;
}

haddr_t driver_get_eof(const H5FD_t* file, H5FD_mem_t type) {
  return current->metadata.empty() ? 0 : driver_get_eoa(file, type);
}

herr_t driver_read(H5FD_t*, H5FD_mem_t, hid_t, haddr_t address, size_t bytes, void* target) {
  std::memset(target, 0, bytes);
  const auto& metadata = current->metadata;
  if (address < metadata.size())
    std::memcpy(target, metadata.data() + address, std::min<size_t>(bytes, metadata.size() - address));
  return 0;
}

herr_t driver_write(H5FD_t*, H5FD_mem_t, hid_t, haddr_t address, size_t bytes, const void* source) {
  if (address + bytes > current->metadata_end) {
    current->data_written = true;
    return 0;
  }
  auto& metadata = current->metadata;
  if (metadata.size() < address + bytes) metadata.resize(address + bytes);
  std::memcpy(metadata.data() + address, source, bytes);
  return 0;
}

const H5FD_class_t kDriverClass = [] {
  H5FD_class_t driver{};
  driver.name = "muster";
  driver.maxaddr = (haddr_t{1} << 62) - 1;
  driver.fc_degree = H5F_CLOSE_STRONG;
  driver.open = driver_open;
  driver.close = driver_close;
  driver.query = driver_query;
  driver.alloc = driver_alloc;
  driver.free = driver_free;
  driver.get_eoa = driver_get_eoa;
  driver.set_eoa = driver_set_eoa;
  driver.get_eof = driver_get_eof;
  driver.read = driver_read;
  driver.write = driver_write;
  driver.lock = driver_lock;
  driver.unlock = driver_unlock;
  const H5FD_mem_t each_its_own[H5FD_MEM_NTYPES] = H5FD_FLMAP_DICHOTOMY;
  std::copy(std::begin(each_its_own), std::end(each_its_own), std::begin(driver.fl_map));
  return driver;
}();

hid_t driver_id() {
  static const hid_t id = checked(H5FDregister(&kDriverClass), "cannot register the in-memory driver");
  return id;
}

H5Type custom_float(size_t bytes, size_t exponent_at, size_t exponent_bits, size_t mantissa_bits,
                    size_t bias) {
  H5Type type(checked(H5Tcopy(MUSTER_HDF5_ID(H5T_IEEE_F32LE_g)), "cannot copy a type"));
  const size_t sign_at = bytes * 8 - 1;
  if (H5Tset_fields(type.get(), sign_at, exponent_at, exponent_bits, 0, mantissa_bits) < 0 ||
      H5Tset_size(type.get(), bytes) < 0 || H5Tset_ebias(type.get(), bias) < 0)
    throw Failure("cannot make a custom float type");
  return type;
}

H5Type type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return H5Type(H5Tcopy(MUSTER_HDF5_ID(H5T_IEEE_F32LE_g)));
    case DType::kFloat64:
      return H5Type(H5Tcopy(MUSTER_HDF5_ID(H5T_IEEE_F64LE_g)));
    case DType::kBFloat16:
      return custom_float(2, 7, 8, 7, 127);
    case DType::kFloat16:
      return custom_float(2, 10, 5, 10, 15);
    case DType::kInt8:
      return H5Type(H5Tcopy(MUSTER_HDF5_ID(H5T_STD_I8LE_g)));
    case DType::kInt16:
      return H5Type(H5Tcopy(MUSTER_HDF5_ID(H5T_STD_I16LE_g)));
    case DType::kUInt16:
      return H5Type(H5Tcopy(MUSTER_HDF5_ID(H5T_STD_U16LE_g)));
    case DType::kInt32:
      return H5Type(H5Tcopy(MUSTER_HDF5_ID(H5T_STD_I32LE_g)));
    case DType::kUInt32:
      return H5Type(H5Tcopy(MUSTER_HDF5_ID(H5T_STD_U32LE_g)));
    case DType::kInt64:
      return H5Type(H5Tcopy(MUSTER_HDF5_ID(H5T_STD_I64LE_g)));
    case DType::kUInt64:
      return H5Type(H5Tcopy(MUSTER_HDF5_ID(H5T_STD_U64LE_g)));
    case DType::kFloat8E5M2:
      return custom_float(1, 2, 5, 2, 15);
    // As a custom float, 448 would be read as NaN and 256 as infinity, because E4M3 has no infinities.
    case DType::kFloat8E4M3:
    case DType::kUInt8:
      return H5Type(H5Tcopy(MUSTER_HDF5_ID(H5T_STD_U8LE_g)));
  }
  throw Failure("unknown element type");
}

void write_attribute(hid_t owner, const MusterHdf5Attribute& attribute) {
  const bool is_text = attribute.text != nullptr;
  H5Type type(H5Tcopy(is_text ? MUSTER_HDF5_ID(H5T_C_S1_g) : MUSTER_HDF5_ID(H5T_STD_U64LE_g)));
  const hsize_t count = attribute.value_count;
  if (is_text) H5Tset_size(type.get(), std::max<size_t>(std::strlen(attribute.text), 1));
  if (is_text) H5Tset_cset(type.get(), H5T_CSET_UTF8);
  const H5Space space(is_text ? H5Screate(H5S_SCALAR) : H5Screate_simple(1, &count, nullptr));
  const H5Attribute id(checked(
      H5Acreate2(owner, attribute.name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT), attribute.name));
  const void* bytes = is_text ? static_cast<const void*>(attribute.text) : attribute.values;
  if (H5Awrite(id.get(), type.get(), bytes) < 0) throw Failure(attribute.name);
}

H5List dataset_properties() {
  H5List list(checked(H5Pcreate(MUSTER_HDF5_ID(H5P_CLS_DATASET_CREATE_ID_g)), "cannot make a property list"));
  H5Pset_layout(list.get(), H5D_CONTIGUOUS);
  H5Pset_alloc_time(list.get(), H5D_ALLOC_TIME_EARLY);
  H5Pset_fill_time(list.get(), H5D_FILL_TIME_NEVER);
  H5Pset_obj_track_times(list.get(), false);
  return list;
}

// Not left to libhdf5's own making of intermediate groups, which would put the time of day into them.
void create_groups(hid_t file, const std::string& path, std::set<std::string>& created) {
  const H5List properties(
      checked(H5Pcreate(MUSTER_HDF5_ID(H5P_CLS_GROUP_CREATE_ID_g)), "cannot make a property list"));
  H5Pset_obj_track_times(properties.get(), false);
  for (size_t slash = path.find('/'); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    const std::string group = path.substr(0, slash);
    if (!created.insert(group).second) continue;
    const H5Group id(checked(H5Gcreate2(file, group.c_str(), H5P_DEFAULT, properties.get(), H5P_DEFAULT),
                             "cannot make a group"));
  }
}

void create_dataset(hid_t file, const MusterHdf5Dataset& dataset, hid_t properties) {
  const H5Type type = type_of(static_cast<DType>(dataset.dtype));
  const std::vector<hsize_t> shape(dataset.shape, dataset.shape + dataset.rank);
  const H5Space space(shape.empty() ? H5Screate(H5S_SCALAR)
                                    : H5Screate_simple(dataset.rank, shape.data(), nullptr));
  const H5Set id(
      checked(H5Dcreate2(file, dataset.path, type.get(), space.get(), H5P_DEFAULT, properties, H5P_DEFAULT),
              dataset.path));
  for (int i = 0; i < dataset.attribute_count; ++i) write_attribute(id.get(), dataset.attributes[i]);
  if (H5Dget_offset(id.get()) != current->base + dataset.offset) throw Failure(dataset.path);
}

// What a reader sees where a shard is missing: no number.
void set_fill_value(hid_t properties, DType dtype) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const unsigned char e4m3_nan = 0x7f;
  switch (dtype) {
    case DType::kFloat8E4M3:
      H5Pset_fill_value(properties, MUSTER_HDF5_ID(H5T_NATIVE_UCHAR_g), &e4m3_nan);
      return;
    case DType::kFloat32:
    case DType::kFloat64:
    case DType::kBFloat16:
    case DType::kFloat16:
    case DType::kFloat8E5M2:
      H5Pset_fill_value(properties, MUSTER_HDF5_ID(H5T_NATIVE_DOUBLE_g), &nan);
      return;
    default:
      return;
  }
}

H5Space block_of(int rank, const uint64_t* shape, const uint64_t* begin, const uint64_t* count) {
  const std::vector<hsize_t> extents(shape, shape + rank);
  const std::vector<hsize_t> first(begin, begin + rank);
  const std::vector<hsize_t> size(count, count + rank);
  H5Space space(checked(H5Screate_simple(rank, extents.data(), nullptr), "cannot make a data space"));
  if (H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, first.data(), nullptr, size.data(), nullptr) < 0)
    throw Failure("cannot select a block");
  return space;
}

void create_virtual_dataset(hid_t file, const MusterHdf5Dataset& dataset) {
  if (dataset.rank == 0) {  // HDF5 has no virtual scalars
    if (dataset.source_count != 1 || H5Lcreate_external(dataset.sources[0].file, dataset.sources[0].path,
                                                        file, dataset.path, H5P_DEFAULT, H5P_DEFAULT) < 0)
      throw Failure(dataset.path);
    return;
  }
  const H5List properties(
      checked(H5Pcreate(MUSTER_HDF5_ID(H5P_CLS_DATASET_CREATE_ID_g)), "cannot make a property list"));
  H5Pset_obj_track_times(properties.get(), false);
  set_fill_value(properties.get(), static_cast<DType>(dataset.dtype));
  for (uint64_t i = 0; i < dataset.source_count; ++i) {
    const MusterHdf5Source& source = dataset.sources[i];
    const H5Space there =
        block_of(source.source_rank, source.source_shape, source.source_begin, source.source_count);
    const H5Space here = block_of(dataset.rank, dataset.shape, source.begin, source.count);
    if (H5Pset_virtual(properties.get(), here.get(), source.file, source.virtual_path, there.get()) < 0)
      throw Failure(dataset.path);
  }
  const H5Type type = type_of(static_cast<DType>(dataset.dtype));
  const std::vector<hsize_t> shape(dataset.shape, dataset.shape + dataset.rank);
  const H5Space space(checked(H5Screate_simple(dataset.rank, shape.data(), nullptr), dataset.path));
  const H5Set id(checked(
      H5Dcreate2(file, dataset.path, type.get(), space.get(), H5P_DEFAULT, properties.get(), H5P_DEFAULT),
      dataset.path));
  for (int i = 0; i < dataset.attribute_count; ++i) write_attribute(id.get(), dataset.attributes[i]);
}

H5File create_file() {
  const H5List access(
      checked(H5Pcreate(MUSTER_HDF5_ID(H5P_CLS_FILE_ACCESS_ID_g)), "cannot make a property list"));
  H5Pset_driver(access.get(), driver_id(), nullptr);
  H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_LATEST);
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG);
  const H5List creation(
      checked(H5Pcreate(MUSTER_HDF5_ID(H5P_CLS_FILE_CREATE_ID_g)), "cannot make a property list"));
  H5Pset_obj_track_times(creation.get(), false);
  return H5File(checked(H5Fcreate("muster", H5F_ACC_TRUNC, creation.get(), access.get()), "cannot create"));
}

struct Metadata {
  std::vector<unsigned char> open_bytes, closed_bytes;
};

Metadata describe_once(Description& description) {
  current = &description;
  const auto is_virtual = [](const MusterHdf5Dataset& dataset) { return dataset.is_virtual != 0; };
  description.only_virtual =
      std::all_of(description.datasets, description.datasets + description.dataset_count, is_virtual);
  H5File file = create_file();
  std::set<std::string> groups;
  const H5List properties = dataset_properties();
  for (uint64_t i = 0; i < description.dataset_count; ++i) {
    create_groups(file.get(), description.datasets[i].path, groups);
    if (is_virtual(description.datasets[i]))
      create_virtual_dataset(file.get(), description.datasets[i]);
    else
      create_dataset(file.get(), description.datasets[i], properties.get());
  }
  if (H5Fflush(file.get(), H5F_SCOPE_GLOBAL) < 0) throw Failure("cannot flush");
  Metadata metadata{description.metadata, {}};
  if (H5Fclose(file.release()) < 0) throw Failure("cannot close");
  metadata.closed_bytes = description.metadata;
  if (description.data_written) throw Failure("libhdf5 wrote to the data");
  return metadata;
}

Metadata describe_all(const MusterHdf5Dataset* datasets, uint64_t count, uint64_t alignment) {
  constexpr uint64_t kFarAway = uint64_t{1} << 61;
  Description measured{datasets, count, kFarAway};
  describe_once(measured);
  const uint64_t base = (measured.metadata_end + alignment - 1) / alignment * alignment;
  Description placed{datasets, count, base};
  Metadata metadata = describe_once(placed);
  if (placed.metadata_end > base) throw Failure("metadata of unsteady size");
  metadata.open_bytes.resize(base);
  metadata.closed_bytes.resize(base);
  return metadata;
}

herr_t first_message(unsigned, const H5E_error2_t* entry, void* text) {
  auto& message = *static_cast<std::string*>(text);
  if (entry->desc != nullptr) message += std::string(": ") + entry->desc;
  return 0;
}

unsigned char* copy_of(const std::vector<unsigned char>& bytes) {
  auto* copy = new unsigned char[bytes.size()];
  std::copy(bytes.begin(), bytes.end(), copy);
  return copy;
}

void release(MusterHdf5Image* image) {
  delete[] image->open_bytes;
  delete[] image->closed_bytes;
  *image = {};
}

int describe(const MusterHdf5Dataset* datasets, uint64_t count, uint64_t alignment, MusterHdf5Image* image,
             char* error, size_t error_bytes) {
  static std::mutex mutex;
  const std::lock_guard guard(mutex);
  *image = {};
  try {
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // per thread, so each time
    const Metadata metadata = describe_all(datasets, count, alignment);
    image->metadata_bytes = metadata.closed_bytes.size();
    image->open_bytes = copy_of(metadata.open_bytes);
    image->closed_bytes = copy_of(metadata.closed_bytes);
    return 0;
  } catch (const std::exception& failure) {
    std::string text = failure.what();
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, first_message, &text);
    std::snprintf(error, error_bytes, "%s", text.c_str());
    release(image);
    return -1;
  }
}

const MusterHdf5Table kTable = {MUSTER_HDF5_TABLE_VERSION, describe, release};

}  // namespace
}  // namespace muster

extern "C" __attribute__((visibility("default"))) const void* muster_module_hdf5(int version) {
  // The first is refused where the program has used this same libhdf5 before: then its own choice stands.
  static const bool ready = [] {
    (void)H5dont_atexit();
    return H5open() >= 0;
  }();
  return ready && version == MUSTER_HDF5_TABLE_VERSION ? &muster::kTable : nullptr;
}
