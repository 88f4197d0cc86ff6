// The learning rate of a step: a straight warm-up, then half a cosine down to a part of the peak.
#pragma once

#include <cstddef>

#include "examples/gpt/kernels.h"

namespace gpt {

struct Schedule {
  size_t steps = 400;        // of the whole run; a resumed run must give the same
  size_t warmup_steps = 30;  // the peak is reached with the last of them
  double peak = 3e-3;
  double floor_share = 0.05;  // of the peak, at the end
};

// The same bits on every host: replicated weights drift apart where a learning rate differs in its last bit.
inline float learning_rate(const Schedule& s, size_t step) {
  if (step < s.warmup_steps)
    return static_cast<float>(s.peak * static_cast<double>(step + 1) / static_cast<double>(s.warmup_steps));
  if (step >= s.steps) return static_cast<float>(s.peak * s.floor_share);
  const double done =
      static_cast<double>(step - s.warmup_steps) / static_cast<double>(s.steps - s.warmup_steps);
  return static_cast<float>(s.peak * (s.floor_share + (1 - s.floor_share) * 0.5 * (1 + cos_pi(done))));
}

}  // namespace gpt
