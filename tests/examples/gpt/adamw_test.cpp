#include "examples/gpt/adamw.h"

#include <gtest/gtest.h>

#include <cmath>

#include "runtime/base/random.h"

namespace gpt {
namespace {

constexpr Config kTiny{.layers = 1, .width = 8, .heads = 1, .context = 8};

struct Buffers {
  explicit Buffers(const Layout& layout)
      : parameters(layout.size()), gradients(layout.size()), m(layout.size()), v(layout.size()) {
    initialise(kTiny, layout, 1, parameters);
  }
  void draw(uint64_t seed) {
    muster::SeededRandom random(seed);
    for (float& g : gradients) g = static_cast<float>(random.uniform() - 0.5);
  }
  std::vector<float> parameters, gradients, m, v;
};

TEST(AdamW, AgreesWithTheFormulasInDouble) {
  const Layout layout(kTiny);
  const AdamWOptions options{.beta1 = 0.9f, .beta2 = 0.95f, .weight_decay = 0.2f, .norm_max = 3.0f};
  Buffers b(layout);
  std::vector<double> p(b.parameters.begin(), b.parameters.end()), m(p.size()), v(p.size());
  for (int step = 0; step < 20; ++step) {
    b.draw(static_cast<uint64_t>(step));
    adamw(options, layout, static_cast<size_t>(step), 0.01f, b.parameters, b.gradients, b.m, b.v);

    double square = 0;
    for (float g : b.gradients) square += static_cast<double>(g) * g;
    const double factor = std::min(1.0, 3.0 / std::sqrt(square));
    for (const Tensor& tensor : layout.tensors()) {
      const double decay = tensor.shape.size() > 1 ? 0.2 : 0.0;
      for (size_t i = tensor.offset; i < tensor.offset + tensor.size; ++i) {
        const double g = b.gradients[i] * factor;
        m[i] = 0.9 * m[i] + 0.1 * g;
        v[i] = 0.95 * v[i] + 0.05 * g * g;
        const double mean = m[i] / (1 - std::pow(0.9, step + 1)), var = v[i] / (1 - std::pow(0.95, step + 1));
        p[i] -= 0.01 * (mean / (std::sqrt(var) + 1e-8) + decay * p[i]);
      }
    }
  }
  // Where the second moment is tiny its float32 error shows in the quotient: hence not tighter than this.
  for (size_t i = 0; i < p.size(); ++i) ASSERT_NEAR(b.parameters[i], p[i], 2e-5) << i;
}

TEST(AdamW, UpdatesPartsToTheSameBits) {
  const Layout layout(kTiny);
  const AdamWOptions options;
  Buffers whole(layout), parted(layout);
  for (size_t step = 0; step < 3; ++step) {
    whole.draw(step);
    parted.draw(step);
    adamw(options, layout, step, 0.01f, whole.parameters, whole.gradients, whole.m, whole.v);
    const float factor = clip_factor(options, parted.gradients);
    for (const Tensor& tensor : layout.tensors()) {
      const size_t first = tensor.size / 3;  // of odd sizes, and so not at a vector's beginning
      for (const auto& [begin, size] : {std::pair(size_t{0}, first), {first, tensor.size - first}}) {
        const size_t at = tensor.offset + begin;
        adamw_part(options, tensor, step, 0.01f, factor, std::span(parted.parameters).subspan(at, size),
                   &parted.gradients[at], &parted.m[at], &parted.v[at]);
      }
    }
  }
  EXPECT_EQ(whole.parameters, parted.parameters);
  EXPECT_EQ(whole.m, parted.m);
  EXPECT_EQ(whole.v, parted.v);
}

TEST(AdamW, ClipsOnlyLongGradients) {
  const std::vector<float> gradients = {3, 4, 0, 0, 0, 0, 0, 0, 0};
  EXPECT_FLOAT_EQ(clip_factor({.norm_max = 1}, gradients), 0.2f);
  EXPECT_EQ(clip_factor({.norm_max = 5}, gradients), 1.0f);
  EXPECT_EQ(clip_factor({.norm_max = 0}, gradients), 1.0f);
}

}  // namespace
}  // namespace gpt
