// The table of functions of libmuster_hdf5.so, the only place where libhdf5 is linked.
//
// The module never touches a file. It describes datasets to libhdf5 on a driver that keeps metadata in memory
// and decides every address, and hands back the metadata bytes; the data bytes are the caller's to write.
// Metadata lies in [0, metadata_bytes), dataset i at metadata_bytes + datasets[i].offset.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define MUSTER_HDF5_TABLE_VERSION 1

extern "C" {

// An attribute is a string (values null) or a list of unsigned 64-bit numbers (text null).
struct MusterHdf5Attribute {
  const char* name;
  const char* text;
  const uint64_t* values;
  uint64_t value_count;
};

struct MusterHdf5Dataset {
  const char* path;  // groups on the way are created
  int dtype;         // muster::DType; bfloat16 and float8_e5m2 as custom floats, float8_e4m3 as uint8
  const uint64_t* shape;
  int rank;
  uint64_t bytes;   // must be what shape and dtype give, and not 0
  uint64_t offset;  // increasing, and the ranges disjoint
  const MusterHdf5Attribute* attributes;
  int attribute_count;
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
