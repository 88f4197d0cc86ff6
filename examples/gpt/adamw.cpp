#include "examples/gpt/adamw.h"

#include <algorithm>
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
  MUSTER_CHECK(m.size() == layout.size(), "the moments do not have the size of the layout");
  adamw_slice(options, layout, step, learning_rate, clip_factor(options, gradients), 0, parameters, gradients,
              m, v);
}

void adamw_slice(const AdamWOptions& options, const Layout& layout, size_t step, float learning_rate,
                 float factor, size_t begin, std::span<float> parameters, std::span<const float> gradients,
                 std::span<float> m, std::span<float> v) {
  MUSTER_CHECK(parameters.size() == layout.size() && gradients.size() == layout.size() &&
                   m.size() == v.size() && begin + m.size() <= layout.size(),
               "a buffer does not fit the layout");
  const FixedFloatMode mode;
  for (const Tensor& tensor : layout.tensors()) {
    const size_t from = std::max(tensor.offset, begin);
    const size_t to = std::min(tensor.offset + tensor.size, begin + m.size());
    if (from >= to) continue;
    adamw_each(coefficients(options, step, learning_rate, factor, tensor.decays), parameters.data() + from,
               gradients.data() + from, m.data() + (from - begin), v.data() + (from - begin), to - from);
  }
}

}  // namespace gpt
