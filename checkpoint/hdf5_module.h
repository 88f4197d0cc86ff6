// The table of functions of libmuster_hdf5.so, the only place where libhdf5 is linked.
//
// The module never touches a file. It describes datasets to libhdf5 on a driver that keeps metadata in memory
// and decides every address, and hands back the metadata bytes; the data bytes are the caller's to write.
// Metadata lies in [0, metadata_bytes), dataset i at metadata_bytes + datasets[i].offset.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define MUSTER_HDF5_TABLE_VERSION 2

extern "C" {

// An attribute is a string (values null) or a list of unsigned 64-bit numbers (text null).
struct MusterHdf5Attribute {
  const char* name;
  const char* text;
  const uint64_t* values;
  uint64_t value_count;
};

// A block of a virtual dataset, and the elements of another file's dataset that fill it. For a scalar, which
// becomes a link, only the names count.
struct MusterHdf5Source {
  const char* file;          // as seen from the folder of the file that is described
  const char* path;          // of the dataset in it
  const char* virtual_path;  // the same with '%' doubled
  const uint64_t* begin;     // of the virtual dataset, along each dimension
  const uint64_t* count;
  int source_rank;
  const uint64_t* source_shape;
  const uint64_t* source_begin;
  const uint64_t* source_count;
};

struct MusterHdf5Dataset {
  const char* path;  // groups on the way are created
  int dtype;         // muster::DType; bfloat16 and float8_e5m2 as custom floats, float8_e4m3 as uint8
  const uint64_t* shape;
  int rank;
  uint64_t bytes;   // must be what shape and dtype give, and not 0, unless it is virtual
  uint64_t offset;  // increasing, and the ranges disjoint
  const MusterHdf5Attribute* attributes;
  int attribute_count;
  // Virtual datasets have no bytes and no offset of their own. A file has either only them or none.
  int is_virtual;
  const MusterHdf5Source* sources;
  uint64_t source_count;
};

struct MusterHdf5Image {
  uint64_t metadata_bytes;  // a multiple of `alignment`
  // Both of metadata_bytes: while the file is being written, and closed. Released by `release`.
  const unsigned char* open_bytes;
  const unsigned char* closed_bytes;
};

struct MusterHdf5Table {
  int version;
  // 0, or -1 with a text in `error`. The same input gives the same bytes. Thread-safe, one at a time inside.
  int (*describe)(const MusterHdf5Dataset* datasets, uint64_t dataset_count, uint64_t alignment,
                  MusterHdf5Image* image, char* error, size_t error_bytes);
  void (*release)(MusterHdf5Image* image);
};
}
