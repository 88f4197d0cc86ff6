// What a backend on a device has to do, held against the CPU's: the same checks on the fake CUDA run time and
// on a real device.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "examples/gpt/backend.h"
#include "runtime/base/random.h"

namespace gpt {

using Floats = std::vector<float>;
using Stretches = std::vector<std::pair<size_t, size_t>>;  // of gradients that became final

inline std::vector<uint8_t> some_windows(const Config& config, size_t count, uint64_t seed) {
  muster::SeededRandom random(seed);
  std::vector<uint8_t> windows(count * (config.context + 1));
  for (uint8_t& byte : windows) byte = static_cast<uint8_t>(random.below(40) + 60);
  return windows;
}

inline Floats some_noise(size_t count, uint64_t seed, float scale) {
  muster::SeededRandom random(seed);
  Floats values(count);
  for (float& value : values) value = static_cast<float>(random.uniform() - 0.5) * scale;
  return values;
}

inline Floats read(Backend& backend, const float* from) {
  Floats values(backend.layout().size());
  backend.read(from, values);
  return values;
}

inline bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// No element is further off than `tolerance` of its tensor's largest.
inline void expect_close(const Layout& layout, const Floats& got, const Floats& expected, double tolerance,
                         const char* what) {
  for (const Tensor& tensor : layout.tensors()) {
    double largest = 0, worst = 0;
    for (size_t i = tensor.offset; i < tensor.offset + tensor.size; ++i) {
      ASSERT_TRUE(std::isfinite(got[i])) << what << " " << tensor.name;
      largest = std::max(largest, std::abs(double{expected[i]}));
      worst = std::max(worst, std::abs(double{got[i]} - double{expected[i]}));
    }
    // The gradient of a key's bias is zero but for rounding: hence the constant.
    EXPECT_LE(worst, tolerance * largest + 1e-7) << what << " " << tensor.name;
  }
}

struct Pass {
  float loss;
  Floats gradients;
  Stretches final;
};

inline Pass pass_of(Backend& backend, std::span<const uint8_t> windows) {
  Pass pass{};
  backend.forward_backward(windows, [&](size_t begin, size_t end) { pass.final.emplace_back(begin, end); });
  pass.loss = backend.training_loss();
  pass.gradients = read(backend, backend.buffers().gradients);
  return pass;
}

// A CPU's backend and a device's, with the same weights: noise on every tensor, no gain 1 and no bias 0.
struct Pair {
  Pair(std::unique_ptr<Backend> the_device, size_t sequences_max)
      : device(std::move(the_device)),
        cpu(make_backend(DeviceKind::kCpu, device->config(), sequences_max).value()) {
    cpu->initialise(3);
    Floats weights = read(*cpu, cpu->buffers().weights);
    const Floats noise = some_noise(weights.size(), 4, 0.3f);
    for (size_t i = 0; i < weights.size(); ++i) weights[i] += noise[i];
    for (Backend* backend : {cpu.get(), device.get()}) backend->write(weights, backend->buffers().weights);
  }
  std::unique_ptr<Backend> device, cpu;
};

inline void expect_passes_agree(Pair& pair, size_t sequences) {
  const auto windows = some_windows(pair.cpu->config(), sequences, 5);
  const Pass expected = pass_of(*pair.cpu, windows), first = pass_of(*pair.device, windows);
  EXPECT_NEAR(first.loss, expected.loss, 1e-5 * expected.loss);
  expect_close(pair.cpu->layout(), first.gradients, expected.gradients, 2e-5, "gradient");
  EXPECT_EQ(first.final, expected.final);
  // What came before must not show: another pass in between, then the same bits.
  pass_of(*pair.device, some_windows(pair.cpu->config(), 1, 6));
  const Pass second = pass_of(*pair.device, windows);
  EXPECT_EQ(second.loss, first.loss);
  EXPECT_TRUE(same_bits(second.gradients, first.gradients));
}

// With the same gradients on both: where one is near zero, its rounding would decide an update's sign.
inline void expect_updates_agree(Pair& pair, const AdamWOptions& options) {
  for (size_t step = 0; step < 3; ++step) {
    const Floats gradients = some_noise(pair.cpu->layout().size(), 7 + step, 0.1f);
    for (Backend* backend : {pair.cpu.get(), pair.device.get()}) {
      backend->write(gradients, backend->buffers().gradients);
      backend->update(options, step, 0.01f);
    }
  }
  const Buffers &cpu = pair.cpu->buffers(), &device = pair.device->buffers();
  const Layout& layout = pair.cpu->layout();
  expect_close(layout, read(*pair.device, device.weights), read(*pair.cpu, cpu.weights), 1e-6, "weights");
  expect_close(layout, read(*pair.device, device.m), read(*pair.cpu, cpu.m), 1e-6, "m");
  expect_close(layout, read(*pair.device, device.v), read(*pair.cpu, cpu.v), 1e-6, "v");
}

// `sequences_max` of the pair: more windows than that go in parts.
inline void expect_evaluations_agree(Pair& pair, size_t sequences_max) {
  const Config& config = pair.cpu->config();
  const auto windows = some_windows(config, 2 * sequences_max + 1, 9);
  const double expected = pair.cpu->loss(windows);
  EXPECT_NEAR(pair.device->loss(windows), expected, 1e-5 * expected);
  for (const size_t length : {size_t{1}, config.context - 3, config.context, 2 * config.context}) {
    const std::span<const uint8_t> history(windows.data(), length);
    const auto logits = pair.cpu->next_logits(history), got = pair.device->next_logits(history);
    for (size_t i = 0; i < kVocabulary; ++i) ASSERT_NEAR(got[i], logits[i], 2e-5) << length << " " << i;
  }
}

inline void expect_clear_keeps_the_loss(Pair& pair) {
  Backend& device = *pair.device;
  device.write(Floats(kLossElements, 2.0f), device.buffers().losses);
  device.write(Floats(device.layout().size(), 2.0f), device.buffers().gradients);
  device.clear();
  Floats losses(kLossElements), expected(kLossElements, 0.0f);
  device.read(device.buffers().losses, losses);
  expected[0] = 2.0f;
  EXPECT_EQ(losses, expected);
  EXPECT_EQ(read(device, device.buffers().gradients), Floats(device.layout().size(), 0.0f));
}

}  // namespace gpt
