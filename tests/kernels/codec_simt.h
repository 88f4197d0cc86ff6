// Runs the codecs' kernels through the SIMT shim, as the CUDA launcher would launch them.
#pragma once

#include "kernels/codec.cuh"
#include "kernels/simt_runtime.h"

namespace muster::codec {

// A small grid, so that each group of lanes goes around its loop several times.
constexpr unsigned kSimtGrid = 2;

struct SimtLauncher {
  simt::Schedule schedule;
  Status* status;

  template <typename Kernel, typename Task>
  void operator()(Kernel kernel, unsigned grid, const Task& part) const {
    if (status->ok()) *status = simt::launch({grid}, {kThreads}, schedule, kernel, part);
  }
};

inline Status encode_simt(CodecId id, const Encode& task, simt::Schedule schedule,
                          unsigned grid_max = kSimtGrid) {
  Status status = ok();
  with_kernels(id, [&](auto kernels) { kernels.encode(task, grid_max, SimtLauncher{schedule, &status}); });
  return status;
}

inline Status decode_simt(CodecId id, const Decode& task, simt::Schedule schedule,
                          unsigned grid_max = kSimtGrid) {
  Status status = ok();
  with_kernels(id, [&](auto kernels) { kernels.decode(task, grid_max, SimtLauncher{schedule, &status}); });
  return status;
}

inline Status recode_simt(CodecId id, const Decode& from, const Encode& to, simt::Schedule schedule,
                          unsigned grid_max = kSimtGrid) {
  Status status = ok();
  with_kernels(id, [&](auto kernels) {
    kernels.recode(from, to, grid_max, SimtLauncher{schedule, &status});
  });
  return status;
}

}  // namespace muster::codec
