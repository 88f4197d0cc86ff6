// The model's CUDA kernels for the fake CUDA run time, which runs them in the SIMT shim. For one source file
// of a program that exports its symbols.
#pragma once

#include <dlfcn.h>

#include "examples/gpt/cuda/kernels.cuh"
#include "runtime/base/check.h"
#include "tests/fakes/fakes.h"

namespace gpt {

// Registers a kernel instead of launching it, under the name that the compilers gave it.
struct Registrar {
  template <typename Kernel, typename Task>
  void operator()(Kernel kernel, cuda::Grid, const Task&) const {
    Dl_info info{};
    MUSTER_CHECK(dladdr(reinterpret_cast<void*>(kernel), &info) != 0 && info.dli_sname != nullptr,
                 "the program does not export its kernels");
    muster::fakes::register_kernel(info.dli_sname, kernel);
  }
};

template <typename... Tasks>
void register_kernels_of() {
  (cuda::launch_task(Tasks{}, Registrar()), ...);
}

inline void register_kernels() {
  using namespace cuda;
  register_kernels_of<Embed, EmbedBackward, Norm, NormBackward, ColumnSums, CausalSoftmax,
                      CausalSoftmaxBackward, Gelu, GeluBackward, CrossEntropy, LossSum, Fill, ClipFactor,
                      AdamW>();
  for (const Form form : {Form::kPlain, Form::kLeftTransposed, Form::kRightTransposed})
    launch_task(Product{.form = form}, Registrar());
}

}  // namespace gpt
