// Runs the int8 kernel bodies through the SIMT shim, as the CUDA launcher would launch them.
#pragma once

#include "kernels/int8.cuh"
#include "kernels/simt_runtime.h"

namespace muster::int8 {

// A small grid, so that each group of lanes goes around its loop several times.
constexpr unsigned kSimtGrid = 2;

inline Status encode_simt(const Encode& task, simt::Schedule schedule, unsigned grid_max = kSimtGrid) {
  Status status = ok();
  launch_encode(task, grid_max, [&](auto kernel, unsigned grid, const Encode& part) {
    if (status.ok()) status = simt::launch({grid}, {kThreads}, schedule, kernel, part);
  });
  return status;
}

inline Status decode_simt(const Decode& task, simt::Schedule schedule, unsigned grid_max = kSimtGrid) {
  Status status = ok();
  launch_decode(task, grid_max, [&](auto kernel, unsigned grid, const Decode& part) {
    if (status.ok()) status = simt::launch({grid}, {kThreads}, schedule, kernel, part);
  });
  return status;
}

}  // namespace muster::int8
