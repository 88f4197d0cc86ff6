#include "examples/gpt/adamw.h"

#include <cmath>

#include "runtime/base/check.h"

namespace gpt {
namespace {

// By squaring, because libm's pow differs between hosts.
double power(double base, size_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1, base *= base) {
    if (exponent & 1) result *= base;
  }
  return result;
}

}  // namespace

AdamWCoefficients coefficients(const AdamWOptions& o, size_t step, float learning_rate, float factor,
                               bool decays) {
  return {.learning_rate = learning_rate,
          .beta1 = o.beta1,
          .beta2 = o.beta2,
          .epsilon = o.epsilon,
          .decay = decays ? o.weight_decay * learning_rate : 0.0f,
          .correction1 = static_cast<float>(1 / (1 - power(o.beta1, step + 1))),
          .correction2 = static_cast<float>(1 / (1 - power(o.beta2, step + 1))),
          .gradient_scale = factor};
}

float clip_factor(const AdamWOptions& options, std::span<const float> gradients) {
  if (options.norm_max <= 0) return 1;
  const FixedFloatMode mode;
  const double norm = std::sqrt(sum_of_squares(gradients.data(), gradients.size()));
  return norm > options.norm_max ? static_cast<float>(options.norm_max / norm) : 1.0f;
}

void adamw(const AdamWOptions& options, const Layout& layout, size_t step, float learning_rate,
           std::span<float> parameters, std::span<const float> gradients, std::span<float> m,
           std::span<float> v) {
  MUSTER_CHECK(parameters.size() == layout.size() && gradients.size() == layout.size() &&
                   m.size() == layout.size() && v.size() == layout.size(),
               "a buffer does not fit the layout");
  const float factor = clip_factor(options, gradients);
  for (const Tensor& tensor : layout.tensors()) {
    adamw_part(options, tensor, step, learning_rate, factor, parameters.subspan(tensor.offset, tensor.size),
               gradients.data() + tensor.offset, m.data() + tensor.offset, v.data() + tensor.offset);
  }
}

void adamw_part(const AdamWOptions& options, const Tensor& tensor, size_t step, float learning_rate,
                float factor, std::span<float> parameters, const float* gradients, float* m, float* v) {
  const FixedFloatMode mode;
  adamw_each(coefficients(options, step, learning_rate, factor, tensor.decays), parameters.data(), gradients,
             m, v, parameters.size());
}

}  // namespace gpt
