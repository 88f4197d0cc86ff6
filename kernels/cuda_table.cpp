#include "kernels/cuda_table.h"

#include <string>

#include "runtime/base/module.h"

namespace muster {

Result<const CudaTable*> cuda_table() {
  MUSTER_ASSIGN(const void* address, load_module("cuda", kCudaTableVersion));
  const auto* table = static_cast<const CudaTable*>(address);
  if (table->version != kCudaTableVersion || table->bytes != sizeof(CudaTable)) {
    return Error{ErrorCode::kEnvironment,
                 "libmuster_cuda.so has a table of version " + std::to_string(table->version) + " and " +
                     std::to_string(table->bytes) + " bytes; install the module of this libmuster"};
  }
  return table;
}

}  // namespace muster
