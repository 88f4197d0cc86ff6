// A tensor of the training state, as the program registered it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/expectation.h"
#include "runtime/base/bytes.h"
#include "runtime/base/dtype.h"

namespace muster {

enum class Memory : uint8_t { kHost = 0, kCuda = 1 };  // as muster_memory numbers them

struct TensorInfo {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  std::byte* data = nullptr;  // in `memory`; readers use State::contents(). Null where it is sharded
  uint64_t bytes = 0;         // of all of it
  checkpoint::Expectation expectation = checkpoint::Expectation::kWatched;
  Memory memory = Memory::kHost;
  std::byte* working_copy = nullptr;  // the program's memory, of a value per lane or a sharded tensor
};

}  // namespace muster
