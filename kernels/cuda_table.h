// The table of functions of libmuster_cuda.so: all that the library asks of CUDA and NCCL. Start at
// cuda_table().
//
// Plain types only, so that this header needs neither CUDA's nor NCCL's. Streams, events, device memory and
// communicators are opaque pointers. Functions return CUDA's or NCCL's own code, 0 for success; they never
// throw, block only where said, and may be called from any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/accumulate.h"
#include "kernels/codec.h"
#include "kernels/digest_cuda.h"
#include "kernels/tree_fold.h"
#include "runtime/base/dtype.h"
#include "runtime/base/result.h"

namespace muster {

constexpr int kCudaTableVersion = 6;

// NCCL's codes that callers must tell apart; checked against nccl.h where the module is compiled.
constexpr int kNcclSuccess = 0;
constexpr int kNcclInProgress = 7;
constexpr int kNcclUnavailable = -1;  // libnccl could not be loaded, or lacks the function
constexpr int kNcclUnsupported = -2;  // no such element type or operator in NCCL
constexpr size_t kNcclIdBytes = 128;
constexpr int kCudaNotReady = 600;
constexpr int kCudaInvalidHandle = 400;

enum class DeviceReduction : uint8_t { kSum = 0, kMin = 1, kMax = 2, kAvg = 3, kProd = 4, kPremulSum = 5 };

// How elements are reduced. kPremulSum multiplies each rank's elements by `factor` first, and is for floats
// of 16 bits and more.
struct DeviceOperator {
  constexpr DeviceOperator(DeviceReduction the_reduction = DeviceReduction::kSum, double the_factor = 1)
      : reduction(the_reduction), factor(the_factor) {}
  DeviceReduction reduction;
  double factor;
};

enum class NcclKind : uint8_t {
  kAllReduce,
  kReduceScatter,
  kReduce,
  kAllGather,
  kBroadcast,
  kSend,
  kReceive
};
constexpr bool is_reduction(NcclKind kind) { return kind <= NcclKind::kReduce; }

struct NcclCall {
  NcclKind kind = NcclKind::kAllReduce;
  const void* in = nullptr;  // not of kReceive
  void* out = nullptr;       // not of kSend
  size_t count = 0;          // as NCCL counts it: of kReduceScatter what arrives, of kAllGather what is sent
  int peer = 0;              // the root, or the other side
};

// Calls that start together, and not before the last is made. What reduces nothing is moved as bytes, so any
// element type can be.
struct NcclBatch {
  const NcclCall* calls = nullptr;
  size_t size = 0;
  DType dtype = DType::kFloat32;
  DeviceOperator op;
};

// What was found. A count of 0 devices, or no NCCL, comes with the reason in words.
struct CudaProbe {
  int device_count;
  int driver_version;  // as CUDA writes it: 13000 is 13.0; 0 without a driver
  int runtime_version;
  int nccl_version;  // 22809 is 2.28.9; 0 without NCCL
  char device_reason[256];
  char nccl_reason[256];
};

struct CudaTable {
  uint32_t version;  // kCudaTableVersion
  uint32_t bytes;    // sizeof(CudaTable)

  void (*probe)(CudaProbe* out);
  const char* (*cuda_error_text)(int code);
  int (*get_device)(int* device);  // of the calling thread
  int (*set_device)(int device);

  int (*stream_create)(void** stream);  // non-blocking with respect to the default stream
  int (*stream_destroy)(void* stream);
  int (*event_create)(void** event);        // without timing
  int (*event_create_timed)(void** event);  // its record costs a little more
  int (*event_destroy)(void* event);
  int (*event_record)(void* event, void* stream);
  int (*event_query)(void* event);                      // kCudaNotReady while work is before it
  int (*stream_wait_event)(void* stream, void* event);  // as it was last recorded; if never, for nothing
  // Of timed events that the device has passed, else kCudaNotReady.
  int (*event_elapsed)(void* begin, void* end, float* milliseconds);

  int (*device_allocate)(void** memory, size_t bytes);
  int (*device_free)(void* memory);  // may wait for the device
  int (*pinned_allocate)(void** memory, size_t bytes);
  int (*pinned_free)(void* memory);
  int (*copy)(void* to, const void* from, size_t bytes, void* stream);  // host memory has to be pinned
  int (*zero)(void* memory, size_t bytes, void* stream);                // device memory
  int (*memory_device)(const void* memory, int* device);                // −1: no device memory

  int (*codec_encode)(codec::CodecId id, const codec::Encode* task, void* stream);
  int (*codec_decode)(codec::CodecId id, const codec::Decode* task, void* stream);
  int (*codec_recode)(codec::CodecId id, const codec::Decode* from, const codec::Encode* to, void* stream);

  int (*tree_fold)(const TreeFold* task, void* stream);
  int (*accumulate)(const Accumulation* task, void* stream);
  int (*digest)(const DigestTask* task, void* stream);

  const char* (*nccl_error_text)(int code);
  const char* (*nccl_last_error)(void* communicator);
  int (*nccl_make_id)(void* id);  // writes kNcclIdBytes
  // Non-blocking: kNcclInProgress, then nccl_state until it is another code.
  int (*nccl_initialize)(void** communicator, int world, const void* id, int rank);
  int (*nccl_state)(void* communicator, int* state);
  // Enqueues the batch. Leaves no group open and no operator behind, whatever fails.
  int (*nccl_issue)(const NcclBatch* batch, void* communicator, void* stream);
  int (*nccl_abort)(void* communicator);  // frees it; may wait for its kernels to leave
};

// Loads the module, once. Errors: kEnvironment, where it cannot be loaded; a machine without driver is no
// error here, the probe tells.
Result<const CudaTable*> cuda_table();

}  // namespace muster
