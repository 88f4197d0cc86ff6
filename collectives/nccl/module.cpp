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

#include "kernels/accumulate.h"
#include "kernels/codec_cuda.h"
#include "kernels/cuda_table.h"
#include "kernels/minifloat.h"
#include "kernels/tree_fold.h"
#include "runtime/base/dtype.h"

namespace muster {
namespace {

static_assert(kNcclSuccess == ncclSuccess && kNcclInProgress == ncclInProgress);
static_assert(kNcclIdBytes == sizeof(ncclUniqueId));
static_assert(kCudaNotReady == cudaErrorNotReady && kCudaInvalidHandle == cudaErrorInvalidResourceHandle);

// The functions of libnccl that are used, with the types of the real header.
struct Nccl {
  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetErrorString) error_string = nullptr;
  decltype(&ncclGetLastError) last_error = nullptr;
  decltype(&ncclGetUniqueId) unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) init_rank_config = nullptr;
  decltype(&ncclCommGetAsyncError) async_error = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclReduceScatter) reduce_scatter = nullptr;
  decltype(&ncclReduce) reduce = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclBroadcast) broadcast = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) receive = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
  decltype(&ncclRedOpCreatePreMulSum) create_premul_sum = nullptr;
  decltype(&ncclRedOpDestroy) destroy_operator = nullptr;
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
  look_up(library, "ncclReduceScatter", nccl.reduce_scatter, nccl.missing);
  look_up(library, "ncclReduce", nccl.reduce, nccl.missing);
  look_up(library, "ncclAllGather", nccl.all_gather, nccl.missing);
  look_up(library, "ncclBroadcast", nccl.broadcast, nccl.missing);
  look_up(library, "ncclSend", nccl.send, nccl.missing);
  look_up(library, "ncclRecv", nccl.receive, nccl.missing);
  look_up(library, "ncclGroupStart", nccl.group_start, nccl.missing);
  look_up(library, "ncclGroupEnd", nccl.group_end, nccl.missing);
  look_up(library, "ncclRedOpCreatePreMulSum", nccl.create_premul_sum, nccl.missing);
  look_up(library, "ncclRedOpDestroy", nccl.destroy_operator, nccl.missing);
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

// A failure that was told is not to be found once more by the program, in its next launch's error. "Not
// ready" is none, and what the program has still to find stays then.
int told(cudaError_t status) {
  if (status != cudaSuccess && status != cudaErrorNotReady) (void)cudaGetLastError();
  return status;
}

void probe(CudaProbe* out) {
  *out = CudaProbe{};
  (void)cudaDriverGetVersion(&out->driver_version);
  (void)cudaRuntimeGetVersion(&out->runtime_version);
  const cudaError_t status = cudaGetDeviceCount(&out->device_count);
  if (status != cudaSuccess) {
    out->device_count = 0;
    write_text(out->device_reason, cudaGetErrorString(status));
    (void)told(status);
  } else if (out->device_count == 0) {
    write_text(out->device_reason, "the driver shows no device to this process");
  }
  if (has_nccl()) (void)nccl().get_version(&out->nccl_version);
  write_text(out->nccl_reason, nccl().missing);
}

const char* cuda_error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
int get_device(int* device) { return told(cudaGetDevice(device)); }
int set_device(int device) { return told(cudaSetDevice(device)); }

int stream_create(void** stream) {
  return told(cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(stream), cudaStreamNonBlocking));
}
int stream_destroy(void* stream) { return told(cudaStreamDestroy(static_cast<cudaStream_t>(stream))); }
int event_create(void** event) {
  return told(cudaEventCreateWithFlags(reinterpret_cast<cudaEvent_t*>(event), cudaEventDisableTiming));
}
int event_create_timed(void** event) {
  return told(cudaEventCreateWithFlags(reinterpret_cast<cudaEvent_t*>(event), cudaEventDefault));
}
int event_destroy(void* event) { return told(cudaEventDestroy(static_cast<cudaEvent_t>(event))); }
int event_record(void* event, void* stream) {
  return told(cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(stream)));
}
int event_query(void* event) { return told(cudaEventQuery(static_cast<cudaEvent_t>(event))); }
int stream_wait_event(void* stream, void* event) {
  return told(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), static_cast<cudaEvent_t>(event), 0));
}
int event_elapsed(void* begin, void* end, float* milliseconds) {
  return told(
      cudaEventElapsedTime(milliseconds, static_cast<cudaEvent_t>(begin), static_cast<cudaEvent_t>(end)));
}

int device_allocate(void** memory, size_t bytes) { return told(cudaMalloc(memory, bytes)); }
int device_free(void* memory) { return told(cudaFree(memory)); }
int pinned_allocate(void** memory, size_t bytes) {
  return told(cudaHostAlloc(memory, bytes, cudaHostAllocPortable));
}
int pinned_free(void* memory) { return told(cudaFreeHost(memory)); }
int copy(void* to, const void* from, size_t bytes, void* stream) {
  return told(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream)));
}
int zero(void* memory, size_t bytes, void* stream) {
  return told(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)));
}
int memory_device(const void* memory, int* device) {
  cudaPointerAttributes found{};
  const cudaError_t status = cudaPointerGetAttributes(&found, memory);
  const bool on_device = found.type == cudaMemoryTypeDevice || found.type == cudaMemoryTypeManaged;
  *device = status == cudaSuccess && on_device ? found.device : -1;
  return told(status);
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

int tree_fold(const TreeFold* task, void* stream) { return tree_fold_on_stream(*task, stream); }
int accumulate(const Accumulation* task, void* stream) {
  return told(static_cast<cudaError_t>(accumulate_on_stream(*task, stream)));
}
int digest(const DigestTask* task, void* stream) { return digest_on_stream(*task, stream); }

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

// Whether the NCCL that was loaded has 8-bit floats, which the header has in any case.
bool has_float8() {
  constexpr int kFirst = 22400;
  int version = 0;
  return nccl().get_version(&version) == ncclSuccess && version >= kFirst;
}

// ncclDataType_t for a DType, or -1.
int nccl_type_of(DType dtype) {
  switch (dtype) {
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
    case DType::kFloat8E4M3:
      return has_float8() ? int{ncclFloat8e4m3} : -1;
    case DType::kFloat8E5M2:
      return has_float8() ? int{ncclFloat8e5m2} : -1;
    default:
      return -1;
  }
}

// Of the operators that NCCL brings along, or -1.
int nccl_operator_of(DeviceReduction reduction) {
  switch (reduction) {
    case DeviceReduction::kSum:
      return ncclSum;
    case DeviceReduction::kMin:
      return ncclMin;
    case DeviceReduction::kMax:
      return ncclMax;
    case DeviceReduction::kAvg:
      return ncclAvg;
    case DeviceReduction::kProd:
      return ncclProd;
    default:
      return -1;
  }
}

// Writes `factor` as an element; false where the type has no fractions, or 8 bits.
bool write_factor(double factor, DType dtype, void* to) {
  const float narrow = static_cast<float>(factor);
  uint16_t half = 0;
  switch (dtype) {
    case DType::kFloat64:
      std::memcpy(to, &factor, sizeof factor);
      return true;
    case DType::kFloat32:
      std::memcpy(to, &narrow, sizeof narrow);
      return true;
    case DType::kBFloat16:
      half = static_cast<uint16_t>(codec::Bf16::code(narrow, false, 0));
      break;
    case DType::kFloat16:
      half = static_cast<uint16_t>(codec::Fp16::code(narrow, false, 0));
      break;
    default:
      return false;
  }
  std::memcpy(to, &half, sizeof half);
  return true;
}

// The type and the operator of a batch. One that had to be created is destroyed again: NCCL keeps what an
// enqueued operation needs of it.
class BatchOperator {
 public:
  BatchOperator(const NcclBatch& batch, ncclComm_t communicator) : communicator_(communicator) {
    if (batch.size > 0 && is_reduction(batch.calls[0].kind)) status_ = find(batch);
  }
  BatchOperator(const BatchOperator&) = delete;
  BatchOperator& operator=(const BatchOperator&) = delete;

  int status() const { return status_; }
  ncclDataType_t type() const { return type_; }
  ncclRedOp_t op() const { return op_; }

  int destroy() {
    if (!created_) return ncclSuccess;
    created_ = false;
    return nccl().destroy_operator(op_, communicator_);
  }

 private:
  int find(const NcclBatch& batch) {
    const int type = nccl_type_of(batch.dtype), op = nccl_operator_of(batch.op.reduction);
    if (type < 0) return kNcclUnsupported;
    type_ = static_cast<ncclDataType_t>(type);
    if (batch.op.reduction == DeviceReduction::kPremulSum) return create(batch);
    if (op < 0) return kNcclUnsupported;
    op_ = static_cast<ncclRedOp_t>(op);
    return ncclSuccess;
  }

  int create(const NcclBatch& batch) {
    alignas(8) unsigned char scalar[8] = {};
    if (!write_factor(batch.op.factor, batch.dtype, scalar)) return kNcclUnsupported;
    const int status = nccl().create_premul_sum(&op_, scalar, type_, ncclScalarHostImmediate, communicator_);
    created_ = status == ncclSuccess;
    // Nothing was enqueued, which "in progress" would say.
    return status == ncclInProgress ? int{ncclInvalidUsage} : status;
  }

  ncclComm_t communicator_;
  ncclDataType_t type_ = ncclInt8;
  ncclRedOp_t op_ = ncclSum;
  bool created_ = false;
  int status_ = ncclSuccess;
};

int issue_call(const NcclCall& call, const NcclBatch& batch, const BatchOperator& with,
               ncclComm_t communicator, cudaStream_t stream) {
  const size_t bytes = call.count * size_of(batch.dtype);
  switch (call.kind) {
    case NcclKind::kAllReduce:
      return nccl().all_reduce(call.in, call.out, call.count, with.type(), with.op(), communicator, stream);
    case NcclKind::kReduceScatter:
      return nccl().reduce_scatter(call.in, call.out, call.count, with.type(), with.op(), communicator,
                                   stream);
    case NcclKind::kReduce:
      return nccl().reduce(call.in, call.out, call.count, with.type(), with.op(), call.peer, communicator,
                           stream);
    case NcclKind::kAllGather:
      return nccl().all_gather(call.in, call.out, bytes, ncclInt8, communicator, stream);
    case NcclKind::kBroadcast:
      return nccl().broadcast(call.in, call.out, bytes, ncclInt8, call.peer, communicator, stream);
    case NcclKind::kSend:
      return nccl().send(call.in, bytes, ncclInt8, call.peer, communicator, stream);
    case NcclKind::kReceive:
      return nccl().receive(call.out, bytes, ncclInt8, call.peer, communicator, stream);
  }
  return kNcclUnsupported;
}

bool is_failure(int code) { return code != ncclSuccess && code != ncclInProgress; }

// The first failure counts; the group ends in any case, since the thread would otherwise stay in it.
int issue_group(const NcclBatch& batch, const BatchOperator& with, ncclComm_t communicator,
                cudaStream_t stream) {
  if (const int code = nccl().group_start(); is_failure(code)) return code;
  int first = ncclSuccess;
  for (size_t i = 0; i < batch.size && !is_failure(first); ++i)
    first = issue_call(batch.calls[i], batch, with, communicator, stream);
  const int ended = nccl().group_end();
  return is_failure(first) ? first : ended;
}

int nccl_issue(const NcclBatch* batch, void* communicator, void* stream) {
  if (!has_nccl()) return kNcclUnavailable;
  if (batch->size == 0) return ncclSuccess;
  auto* const comm = static_cast<ncclComm_t>(communicator);
  auto* const on = static_cast<cudaStream_t>(stream);
  BatchOperator with(*batch, comm);
  if (with.status() != ncclSuccess) return with.status();
  const int issued = batch->size == 1 ? issue_call(batch->calls[0], *batch, with, comm, on)
                                      : issue_group(*batch, with, comm, on);
  const int destroyed = with.destroy();
  return is_failure(destroyed) && !is_failure(issued) ? destroyed : issued;
}

int nccl_abort(void* communicator) {
  return has_nccl() ? int{nccl().abort(static_cast<ncclComm_t>(communicator))} : kNcclUnavailable;
}

constexpr CudaTable kTable = {
    .version = kCudaTableVersion,
    .bytes = sizeof(CudaTable),
    .probe = &probe,
    .cuda_error_text = &cuda_error_text,
    .get_device = &get_device,
    .set_device = &set_device,
    .stream_create = &stream_create,
    .stream_destroy = &stream_destroy,
    .event_create = &event_create,
    .event_create_timed = &event_create_timed,
    .event_destroy = &event_destroy,
    .event_record = &event_record,
    .event_query = &event_query,
    .stream_wait_event = &stream_wait_event,
    .event_elapsed = &event_elapsed,
    .device_allocate = &device_allocate,
    .device_free = &device_free,
    .pinned_allocate = &pinned_allocate,
    .pinned_free = &pinned_free,
    .copy = &copy,
    .zero = &zero,
    .memory_device = &memory_device,
    .codec_encode = &codec_encode,
    .codec_decode = &codec_decode,
    .codec_recode = &codec_recode,
    .tree_fold = &tree_fold,
    .accumulate = &accumulate,
    .digest = &digest,
    .nccl_error_text = &nccl_error_text,
    .nccl_last_error = &nccl_last_error,
    .nccl_make_id = &nccl_make_id,
    .nccl_initialize = &nccl_initialize,
    .nccl_state = &nccl_state,
    .nccl_issue = &nccl_issue,
    .nccl_abort = &nccl_abort,
};

}  // namespace
}  // namespace muster

extern "C" __attribute__((visibility("default"))) const void* muster_module_cuda(int version) {
  return version == muster::kCudaTableVersion ? &muster::kTable : nullptr;
}
