// libmuster_cuda.so: CUDA's run time, linked, and NCCL, loaded when first asked for, behind one table.
//
// The run time loads on a machine without a driver and says so when it is probed. NCCL is looked up by dlopen
// because a node may have CUDA without it, and because functions that newer versions add must be optional.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>

#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>

#include "kernels/codec_cuda.h"
#include "kernels/cuda_table.h"
#include "runtime/base/dtype.h"

namespace muster {
namespace {

static_assert(kNcclSuccess == ncclSuccess && kNcclInProgress == ncclInProgress);
static_assert(kNcclIdBytes == sizeof(ncclUniqueId));
static_assert(kCudaNotReady == cudaErrorNotReady);

// The functions of libnccl that are used, with the types of the real header.
struct Nccl {
  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetErrorString) error_string = nullptr;
  decltype(&ncclGetLastError) last_error = nullptr;
  decltype(&ncclGetUniqueId) unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) init_rank_config = nullptr;
  decltype(&ncclCommGetAsyncError) async_error = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclCommAbort) abort = nullptr;
  std::string missing;  // why NCCL is not usable; empty where it is
};

template <typename Function>
void look_up(void* library, const char* name, Function& function, std::string& missing) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr && missing.empty()) missing = std::string("libnccl.so.2 lacks ") + name;
}

Nccl load_nccl() {
  Nccl nccl;
  void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* reason = dlerror();
    nccl.missing = reason != nullptr ? reason : "libnccl.so.2 cannot be loaded";
    return nccl;
  }
  look_up(library, "ncclGetVersion", nccl.get_version, nccl.missing);
  look_up(library, "ncclGetErrorString", nccl.error_string, nccl.missing);
  look_up(library, "ncclGetLastError", nccl.last_error, nccl.missing);
  look_up(library, "ncclGetUniqueId", nccl.unique_id, nccl.missing);
  look_up(library, "ncclCommInitRankConfig", nccl.init_rank_config, nccl.missing);
  look_up(library, "ncclCommGetAsyncError", nccl.async_error, nccl.missing);
  look_up(library, "ncclAllReduce", nccl.all_reduce, nccl.missing);
  look_up(library, "ncclCommAbort", nccl.abort, nccl.missing);
  return nccl;
}

// Loaded once, also where that fails: a library does not appear under a running process.
const Nccl& nccl() {
  static const Nccl loaded = load_nccl();
  return loaded;
}
bool has_nccl() { return nccl().missing.empty(); }

void write_text(char (&to)[256], const std::string& text) {
  std::snprintf(to, sizeof to, "%s", text.c_str());
}

void probe(CudaProbe* out) {
  *out = CudaProbe{};
  (void)cudaDriverGetVersion(&out->driver_version);
  (void)cudaRuntimeGetVersion(&out->runtime_version);
  const cudaError_t status = cudaGetDeviceCount(&out->device_count);
  if (status != cudaSuccess) {
    out->device_count = 0;
    write_text(out->device_reason, cudaGetErrorString(status));
    (void)cudaGetLastError();  // else the next launch would report it
  } else if (out->device_count == 0) {
    write_text(out->device_reason, "the driver shows no device to this process");
  }
  if (has_nccl()) (void)nccl().get_version(&out->nccl_version);
  write_text(out->nccl_reason, nccl().missing);
}

const char* cuda_error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
int set_device(int device) { return cudaSetDevice(device); }

int stream_create(void** stream) {
  return cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(stream), cudaStreamNonBlocking);
}
int stream_destroy(void* stream) { return cudaStreamDestroy(static_cast<cudaStream_t>(stream)); }
int event_create(void** event) {
  return cudaEventCreateWithFlags(reinterpret_cast<cudaEvent_t*>(event), cudaEventDisableTiming);
}
int event_destroy(void* event) { return cudaEventDestroy(static_cast<cudaEvent_t>(event)); }
int event_record(void* event, void* stream) {
  return cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(stream));
}
int event_query(void* event) { return cudaEventQuery(static_cast<cudaEvent_t>(event)); }

int device_allocate(void** memory, size_t bytes) { return cudaMalloc(memory, bytes); }
int device_free(void* memory) { return cudaFree(memory); }
int pinned_allocate(void** memory, size_t bytes) {
  return cudaHostAlloc(memory, bytes, cudaHostAllocPortable);
}
int pinned_free(void* memory) { return cudaFreeHost(memory); }
int copy(void* to, const void* from, size_t bytes, void* stream) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream));
}

int codec_encode(codec::CodecId id, const codec::Encode* task, void* stream) {
  return codec::encode_on_stream(id, *task, stream);
}
int codec_decode(codec::CodecId id, const codec::Decode* task, void* stream) {
  return codec::decode_on_stream(id, *task, stream);
}
int codec_recode(codec::CodecId id, const codec::Decode* from, const codec::Encode* to, void* stream) {
  return codec::recode_on_stream(id, *from, *to, stream);
}

const char* nccl_error_text(int code) {
  if (code == kNcclUnsupported) return "NCCL has no such element type or operator";
  if (!has_nccl()) return nccl().missing.c_str();
  return nccl().error_string(static_cast<ncclResult_t>(code));
}

const char* nccl_last_error(void* communicator) {
  return has_nccl() ? nccl().last_error(static_cast<ncclComm_t>(communicator)) : "";
}

int nccl_make_id(void* id) {
  return has_nccl() ? int{nccl().unique_id(static_cast<ncclUniqueId*>(id))} : kNcclUnavailable;
}

int nccl_initialize(void** communicator, int world, const void* id, int rank) {
  if (!has_nccl()) return kNcclUnavailable;
  ncclUniqueId unique_id;
  std::memcpy(&unique_id, id, sizeof unique_id);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;  // the only mode in which a communicator can be given up
  *communicator = nullptr;
  return nccl().init_rank_config(reinterpret_cast<ncclComm_t*>(communicator), world, unique_id, rank,
                                 &config);
}

int nccl_state(void* communicator, int* state) {
  if (!has_nccl()) return kNcclUnavailable;
  ncclResult_t result = ncclSuccess;
  const ncclResult_t status = nccl().async_error(static_cast<ncclComm_t>(communicator), &result);
  *state = result;
  return status;
}

// ncclDataType_t for a DType, or -1.
int nccl_type_of(int dtype) {
  switch (static_cast<DType>(dtype)) {
    case DType::kFloat32:
      return ncclFloat32;
    case DType::kFloat64:
      return ncclFloat64;
    case DType::kBFloat16:
      return ncclBfloat16;
    case DType::kFloat16:
      return ncclFloat16;
    case DType::kInt8:
      return ncclInt8;
    case DType::kUInt8:
      return ncclUint8;
    case DType::kInt32:
      return ncclInt32;
    case DType::kUInt32:
      return ncclUint32;
    case DType::kInt64:
      return ncclInt64;
    case DType::kUInt64:
      return ncclUint64;
    default:
      return -1;
  }
}

int nccl_operator_of(int reduction) {
  switch (static_cast<DeviceReduction>(reduction)) {
    case DeviceReduction::kSum:
      return ncclSum;
    case DeviceReduction::kMin:
      return ncclMin;
    case DeviceReduction::kMax:
      return ncclMax;
    case DeviceReduction::kAvg:
      return ncclAvg;
  }
  return -1;
}

int nccl_all_reduce(const void* in, void* out, size_t count, int dtype, int reduction, void* communicator,
                    void* stream) {
  if (!has_nccl()) return kNcclUnavailable;
  const int type = nccl_type_of(dtype), op = nccl_operator_of(reduction);
  if (type < 0 || op < 0) return kNcclUnsupported;
  return nccl().all_reduce(in, out, count, static_cast<ncclDataType_t>(type), static_cast<ncclRedOp_t>(op),
                           static_cast<ncclComm_t>(communicator), static_cast<cudaStream_t>(stream));
}

int nccl_abort(void* communicator) {
  return has_nccl() ? int{nccl().abort(static_cast<ncclComm_t>(communicator))} : kNcclUnavailable;
}

constexpr CudaTable kTable = {
    .version = kCudaTableVersion,
    .bytes = sizeof(CudaTable),
    .probe = &probe,
    .cuda_error_text = &cuda_error_text,
    .set_device = &set_device,
    .stream_create = &stream_create,
    .stream_destroy = &stream_destroy,
    .event_create = &event_create,
    .event_destroy = &event_destroy,
    .event_record = &event_record,
    .event_query = &event_query,
    .device_allocate = &device_allocate,
    .device_free = &device_free,
    .pinned_allocate = &pinned_allocate,
    .pinned_free = &pinned_free,
    .copy = &copy,
    .codec_encode = &codec_encode,
    .codec_decode = &codec_decode,
    .codec_recode = &codec_recode,
    .nccl_error_text = &nccl_error_text,
    .nccl_last_error = &nccl_last_error,
    .nccl_make_id = &nccl_make_id,
    .nccl_initialize = &nccl_initialize,
    .nccl_state = &nccl_state,
    .nccl_all_reduce = &nccl_all_reduce,
    .nccl_abort = &nccl_abort,
};

}  // namespace
}  // namespace muster

extern "C" __attribute__((visibility("default"))) const void* muster_module_cuda(int version) {
  return version == muster::kCudaTableVersion ? &muster::kTable : nullptr;
}
