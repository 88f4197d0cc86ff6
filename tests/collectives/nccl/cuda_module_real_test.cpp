// The module with the real CUDA run time, on a machine that may have no driver: it loads, and says what is
// missing.
#include <gtest/gtest.h>

#include "kernels/cuda_table.h"

namespace muster {
namespace {

TEST(CudaModule, LoadsAndSaysWhatItFound) {
  const auto table = cuda_table();
  ASSERT_TRUE(table.ok()) << table.error().message;
  CudaProbe found{};
  (*table)->probe(&found);
  EXPECT_GT(found.runtime_version, 0);
  // Either devices or the reason, never neither.
  EXPECT_EQ(found.device_count > 0, found.device_reason[0] == '\0') << found.device_reason;
  EXPECT_EQ(found.nccl_version > 0, found.nccl_reason[0] == '\0') << found.nccl_reason;
  RecordProperty("devices", found.device_count);
  RecordProperty("device_reason", found.device_reason);
}

TEST(CudaModule, WithoutADeviceEveryCallFailsInWords) {
  const CudaTable& table = *cuda_table().value();
  CudaProbe found{};
  table.probe(&found);
  if (found.device_count > 0) return;  // this machine cannot show it; the fakes do
  void* memory = nullptr;
  const int code = table.device_allocate(&memory, 16);
  EXPECT_NE(code, 0);
  EXPECT_NE(std::string(table.cuda_error_text(code)), "");
  void* stream = nullptr;
  EXPECT_NE(table.stream_create(&stream), 0);
}

TEST(CudaModule, RefusesAnotherTableVersion) {
  EXPECT_EQ(cuda_table().value()->version, uint32_t{kCudaTableVersion});
}

}  // namespace
}  // namespace muster
