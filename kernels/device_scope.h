// The calling thread's current CUDA device, for a while.
#pragma once

#include "kernels/cuda_table.h"

namespace muster {

enum class AfterScope : bool {
  kRestore,  // in a thread of the program
  kLeave     // in one of the library's: to go back to device 0 would make a context there, which takes memory
};

// Makes `device` the thread's current one, which events and launches need, and puts back what was.
class DeviceScope {
 public:
  DeviceScope(const CudaTable& table, int device, AfterScope after = AfterScope::kRestore) : table_(table) {
    if (after == AfterScope::kLeave) {
      code_ = table_.set_device(device);
      return;
    }
    code_ = table_.get_device(&before_);
    if (code_ != 0 || before_ == device) return;
    code_ = table_.set_device(device);
    changed_ = code_ == 0;
  }
  ~DeviceScope() {
    if (changed_) (void)table_.set_device(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

  int code() const { return code_; }

 private:
  const CudaTable& table_;
  int before_ = 0;
  int code_ = 0;
  bool changed_ = false;
};

}  // namespace muster
