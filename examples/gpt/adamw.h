// AdamW with gradients clipped by their norm. Elementwise, so it updates any part of a tensor: a rank that
// holds some rows of weights and moments updates these.
#pragma once

#include <cstddef>
#include <span>

#include "examples/gpt/kernels.h"
#include "examples/gpt/model.h"

namespace gpt {

struct AdamWOptions {
  float beta1 = 0.9f;
  float beta2 = 0.98f;
  float epsilon = 1e-8f;
  float weight_decay = 0.1f;  // matrices only; the update is multiplied by the learning rate
  float norm_max = 1.0f;      // gradients longer than this are scaled down to it; 0: never
};

// What the step with this number (from 0) does to each element of a tensor that decays, or does not.
AdamWCoefficients coefficients(const AdamWOptions& options, size_t step, float learning_rate, float factor,
                               bool decays);

// The factor that clips `gradients`: 1 where they are short enough.
float clip_factor(const AdamWOptions& options, std::span<const float> gradients);

// Updates parameters and both moments in place, for the step with this number (from 0).
// REQUIRES: all four buffers have the size of the layout.
void adamw(const AdamWOptions& options, const Layout& layout, size_t step, float learning_rate,
           std::span<float> parameters, std::span<const float> gradients, std::span<float> m,
           std::span<float> v);

// The same for some elements of one tensor: all four are theirs. `factor`: clip_factor of the whole gradient.
void adamw_part(const AdamWOptions& options, const Tensor& tensor, size_t step, float learning_rate,
                float factor, std::span<float> parameters, const float* gradients, float* m, float* v);

}  // namespace gpt
