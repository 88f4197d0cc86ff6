// The backend on a CUDA device.
#pragma once

#include <memory>

#include "examples/gpt/backend.h"

namespace gpt {

// As make_backend(). Visible also where it is built into a shared library.
__attribute__((visibility("default"))) muster::Result<std::unique_ptr<Backend>> make_cuda_backend(
    const Config& config, size_t sequences_max);

}  // namespace gpt
