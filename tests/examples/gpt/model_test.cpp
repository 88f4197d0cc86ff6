#include "examples/gpt/model.h"

#include <gtest/gtest.h>
#include <malloc.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <cfenv>
#include <cmath>
#include <cstring>
#include <memory>

#include "examples/gpt/adamw.h"
#include "examples/gpt/host.h"
#include "runtime/base/bytes.h"
#include "runtime/base/random.h"
#include "tests/examples/gpt/reference_model.h"

namespace gpt {
namespace {

constexpr Config kSmall{.layers = 2, .width = 16, .heads = 2, .context = 16};
// Not a multiple of Eigen's register blocks in any dimension, and large enough to be cut into cache blocks.
constexpr Config kOdd{.layers = 2, .width = 88, .heads = 4, .context = 40};

Model make(const Config& config, size_t sequences_max) {
  return Model::create(config, sequences_max).value();
}

// Initial weights with noise on every tensor, so that no gain is 1 and no bias 0.
std::vector<float> noisy_parameters(const Config& config, uint64_t seed) {
  const Layout layout(config);
  std::vector<float> parameters(layout.size());
  initialise(config, layout, seed, parameters);
  muster::SeededRandom random(seed);
  for (float& p : parameters) p += static_cast<float>(random.uniform() - 0.5) * 0.3f;
  return parameters;
}

std::vector<uint8_t> some_windows(const Config& config, size_t count, uint64_t seed) {
  muster::SeededRandom random(seed);
  std::vector<uint8_t> windows(count * (config.context + 1));
  for (uint8_t& byte : windows) byte = static_cast<uint8_t>(random.below(40) + 60);
  return windows;
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

TEST(Layout, NamesEveryElementOnceInOrderOfUse) {
  const Layout layout(kSmall);
  size_t next = 0;
  for (const Tensor& tensor : layout.tensors()) {
    EXPECT_EQ(tensor.offset, next) << tensor.name;
    next += tensor.size;
  }
  EXPECT_EQ(layout.size(), next);
  EXPECT_EQ(layout.tensors().front().name, "embedding.byte");
  EXPECT_EQ(layout.tensors()[2].name, "block0.norm1.gain");
  EXPECT_EQ(layout.tensors().back().name, "head.weight");
}

TEST(Model, LossAgreesWithAReferenceInDouble) {
  Model model = make(kSmall, 3);
  const auto parameters = noisy_parameters(kSmall, 1);
  const auto windows = some_windows(kSmall, 3, 2);
  const double expected = reference_loss(kSmall, {parameters.begin(), parameters.end()}, windows);
  std::vector<float> gradients(parameters.size());
  EXPECT_NEAR(model.forward_backward(parameters, windows, gradients), expected, 2e-6 * expected);
  EXPECT_NEAR(model.loss(parameters, windows), expected, 2e-6 * expected);
}

// Central differences of the reference in double, whose own error is below 1e-8, for elements of every
// tensor.
class GradientOf : public testing::TestWithParam<size_t> {};

TEST_P(GradientOf, AgreesWithCentralDifferences) {
  Model model = make(kSmall, 2);
  const Tensor& tensor = model.layout().tensors()[GetParam()];
  const auto parameters = noisy_parameters(kSmall, 3);
  const auto windows = some_windows(kSmall, 2, 4);
  std::vector<float> gradients(parameters.size(), std::nanf(""));
  model.forward_backward(parameters, windows, gradients);

  muster::SeededRandom random(GetParam());
  std::vector<double> point(parameters.begin(), parameters.end());
  double largest = 0;
  for (size_t i = 0; i < tensor.size; ++i)
    largest = std::max(largest, std::abs(static_cast<double>(gradients[tensor.offset + i])));
  ASSERT_GT(largest, 1e-4);
  for (int trial = 0; trial < 12; ++trial) {
    // Of the byte embedding and the head, a row or column that the windows use.
    size_t i = random.below(tensor.size);
    if (tensor.name == "embedding.byte") i = windows[random.below(16)] * kSmall.width + random.below(16);
    if (tensor.name == "head.weight") i = random.below(16) * kVocabulary + windows[1 + random.below(16)];
    constexpr double kStep = 1e-4;
    double& x = point[tensor.offset + i];
    const double before = x;
    x = before + kStep;
    const double above = reference_loss(kSmall, point, windows);
    x = before - kStep;
    const double below = reference_loss(kSmall, point, windows);
    x = before;
    EXPECT_NEAR(gradients[tensor.offset + i], (above - below) / (2 * kStep), 1e-5 * largest + 1e-8)
        << tensor.name << "[" << i << "]";
  }
}

std::string tensor_name(const testing::TestParamInfo<size_t>& info) {
  std::string name = Layout(kSmall).tensors()[info.param].name;
  for (char& c : name) c = c == '.' ? '_' : c;
  return name;
}

INSTANTIATE_TEST_SUITE_P(EveryTensor, GradientOf, testing::Range(size_t{0}, Layout(kSmall).tensors().size()),
                         tensor_name);

TEST(Model, GradientIsZeroForBytesThatDoNotOccur) {
  Model model = make(kSmall, 2);
  const auto parameters = noisy_parameters(kSmall, 5);
  std::vector<float> gradients(parameters.size(), 7.0f);
  model.forward_backward(parameters, some_windows(kSmall, 2, 6), gradients);
  for (size_t i = 0; i < 60 * kSmall.width; ++i) ASSERT_EQ(gradients[i], 0) << i;
}

// A buffer whose first element lies `bytes` after a page boundary.
class Placed {
 public:
  Placed(size_t size, size_t bytes) : memory_(static_cast<char*>(aligned_alloc(4096, pages(size, bytes)))) {
    std::memset(memory_.get(), 0xA7, pages(size, bytes));
    span_ = {reinterpret_cast<float*>(memory_.get() + bytes), size};
  }
  std::span<float> span() const { return span_; }

 private:
  static size_t pages(size_t size, size_t bytes) { return (size * 4 + bytes + 8191) / 4096 * 4096; }
  struct Free {
    void operator()(char* p) const { free(p); }
  };
  std::unique_ptr<char, Free> memory_;
  std::span<float> span_;
};

// Of each stretch is said once, from the last element to the first, when nothing writes to it any more.
TEST(Model, SaysWhichGradientsAreFinal) {
  Model model = make(kSmall, 3);
  const std::vector<float> parameters = noisy_parameters(kSmall, 8);
  const std::vector<uint8_t> windows = some_windows(kSmall, 3, 9);
  std::vector<float> whole(parameters.size()), gradients(parameters.size()), taken(parameters.size());
  model.forward_backward(parameters, windows, whole);
  size_t left = gradients.size(), stretches = 0;
  model.forward_backward(parameters, windows, gradients, [&](size_t begin, size_t end) {
    ASSERT_EQ(end, left);
    ASSERT_LT(begin, end);
    for (size_t i = begin; i < end; ++i) taken[i] = std::exchange(gradients[i], NAN);
    left = begin;
    ++stretches;
  });
  EXPECT_EQ(left, 0u);
  EXPECT_EQ(stretches, kSmall.layers + 2);
  EXPECT_TRUE(same_bits(taken, whole));
}

class Determinism : public testing::TestWithParam<Config> {
 protected:
  Determinism() : parameters_(noisy_parameters(GetParam(), 8)), windows_(some_windows(GetParam(), 3, 9)) {
    Model model = make(GetParam(), 3);
    gradients_.resize(parameters_.size());
    loss_ = model.forward_backward(parameters_, windows_, gradients_);
  }
  void expect_same(Model& model, const char* when) {
    std::vector<float> again(parameters_.size(), -3.0f);
    EXPECT_EQ(model.forward_backward(parameters_, windows_, again), loss_) << when;
    EXPECT_TRUE(same_bits(again, gradients_)) << when;
  }

  std::vector<float> parameters_;
  std::vector<uint8_t> windows_;
  std::vector<float> gradients_;
  float loss_;
};

TEST_P(Determinism, WhateverRanBefore) {
  Model model = make(GetParam(), 5);
  expect_same(model, "in a larger model");
  const auto other = noisy_parameters(GetParam(), 11);
  std::vector<float> scrap(parameters_.size());
  model.forward_backward(other, some_windows(GetParam(), 5, 12), scrap);
  expect_same(model, "after another microbatch");
  model.loss(other, some_windows(GetParam(), 7, 13));
  expect_same(model, "after a validation");
  model.next_logits(other, std::vector<uint8_t>{1, 2, 3});
  expect_same(model, "after sampling");
}

TEST_P(Determinism, WhereverTheBuffersLie) {
  for (size_t bytes : {0, 4, 16, 32, 64, 100, 2048 + 16, 4092}) {
    Placed parameters(parameters_.size(), bytes), gradients(parameters_.size(), 4096 - 4 - bytes % 4096);
    std::copy(parameters_.begin(), parameters_.end(), parameters.span().begin());
    Model model = make(GetParam(), 3);
    EXPECT_EQ(model.forward_backward(parameters.span(), windows_, gradients.span()), loss_);
    EXPECT_TRUE(same_bits(gradients.span(), gradients_)) << bytes << " bytes after a page";
  }
}

TEST_P(Determinism, WhateverNewMemoryHolds) {
  for (int fill : {0x00, 0x3f, 0xff}) {
    mallopt(M_PERTURB, fill);
    Model model = make(GetParam(), 3);
    expect_same(model, "with filled memory");
  }
  mallopt(M_PERTURB, 0);
}

#if defined(__SSE__)
TEST_P(Determinism, WhateverFloatModeTheProgramHasSet) {
  Model model = make(GetParam(), 3);
  const unsigned before = _mm_getcsr();
  for (unsigned mode : {0x1f80u, 0x9fc0u, 0x1f80u | 0x4000u, 0x1f80u | 0x6000u}) {
    _mm_setcsr(mode);
    std::vector<float> again(parameters_.size());
    const float loss = model.forward_backward(parameters_, windows_, again);
    const unsigned after = _mm_getcsr() & ~0x3fu;  // the low bits record what happened
    _mm_setcsr(before);
    EXPECT_EQ(after, mode);
    EXPECT_EQ(loss, loss_);
    EXPECT_TRUE(same_bits(again, gradients_)) << std::hex << mode;
  }
}
#endif

INSTANTIATE_TEST_SUITE_P(Shapes, Determinism, testing::Values(kSmall, kOdd, Config{}),
                         [](const auto& shape) { return "Width" + std::to_string(shape.param.width); });

// The gradient's bits are part of what a job agrees on, so they are written down. They may change with
// Eigen's kernels or with this example's arithmetic; never with the host, the build type or a sanitizer.
TEST(Model, TrainedBitsAreThoseWrittenDown) {
  if (std::string(MUSTER_GPT_MARCH) != "x86-64-v3" || std::string(MUSTER_GPT_EIGEN) != "3.4.0")
    GTEST_SKIP() << "written down for x86-64-v3 and Eigen 3.4.0; this is '" MUSTER_GPT_MARCH
                    "' and Eigen " MUSTER_GPT_EIGEN;
  Model model = make(kOdd, 3);
  std::vector<float> parameters(model.layout().size()), gradients(parameters), m(parameters), v(parameters);
  initialise(kOdd, model.layout(), 1, parameters);
  for (size_t step = 0; step < 4; ++step) {
    model.forward_backward(parameters, some_windows(kOdd, 3, step), gradients);
    adamw({}, model.layout(), step, 1e-3f, parameters, gradients, m, v);
  }
  EXPECT_EQ(muster::to_string(muster::digest_of(std::as_bytes(std::span(parameters)))),
            "dc160ca2e9220a877c1991d50d946345");
}

TEST(Model, NextLogitsAgreeWithTheReferenceForEveryLength) {
  Model model = make(kSmall, 1);
  const auto parameters = noisy_parameters(kSmall, 14);
  const std::vector<double> exact(parameters.begin(), parameters.end());
  const auto text = some_windows(kSmall, 2, 15);
  for (size_t length : {size_t{1}, size_t{7}, size_t{8}, size_t{9}, kSmall.context, text.size()}) {
    const auto history = std::span(text).first(length);
    const auto recent = history.last(std::min(length, kSmall.context));
    const auto expected = reference_logits(kSmall, exact, recent);
    const auto logits = model.next_logits(parameters, history);
    for (size_t i = 0; i < kVocabulary; ++i)
      ASSERT_NEAR(logits[i], expected[(recent.size() - 1) * kVocabulary + i], 2e-5) << length;
  }
}

TEST(Model, LearnsATextByHeart) {
  Model model = make(kSmall, 4);
  const std::string line = "the quick brown ";
  std::vector<uint8_t> windows;
  for (size_t s = 0; s < 4; ++s)
    for (size_t i = 0; i <= kSmall.context; ++i)
      windows.push_back(static_cast<uint8_t>(line[(s * 5 + i) % 16]));
  std::vector<float> parameters(model.layout().size()), gradients(parameters), m(parameters), v(parameters);
  initialise(kSmall, model.layout(), 1, parameters);
  EXPECT_NEAR(model.loss(parameters, windows), std::log(256.0), 0.3);
  for (size_t step = 0; step < 120; ++step) {
    model.forward_backward(parameters, windows, gradients);
    adamw({}, model.layout(), step, 1e-2f, parameters, gradients, m, v);
  }
  EXPECT_LT(model.loss(parameters, windows), 0.3);
}

TEST(Initialise, DependsOnTheSeedOnly) {
  const Layout layout(kSmall);
  std::vector<float> a(layout.size(), 1.0f), b(layout.size(), 2.0f), c(layout.size());
  initialise(kSmall, layout, 5, a);
  initialise(kSmall, layout, 5, b);
  initialise(kSmall, layout, 6, c);
  EXPECT_TRUE(same_bits(a, b));
  EXPECT_FALSE(same_bits(a, c));
  double mean = 0, square = 0;
  const Tensor& head = layout.tensors().back();
  for (size_t i = 0; i < head.size; ++i) {
    mean += a[head.offset + i] / static_cast<double>(head.size);
    square += a[head.offset + i] * a[head.offset + i] / static_cast<double>(head.size);
  }
  EXPECT_NEAR(mean, 0, 0.002);
  EXPECT_NEAR(std::sqrt(square), 0.02, 0.002);
}

TEST(Model, RefusesShapesThatCannotBe) {
  const auto message = [](Config config, size_t sequences) {
    auto model = Model::create(config, sequences);
    return model.ok() ? std::string("accepted") : model.error().message;
  };
  EXPECT_EQ(message({}, 1), "accepted");
  EXPECT_NE(message({.width = 100}, 1).find("width (100)"), std::string::npos);
  EXPECT_NE(message({.heads = 5}, 1).find("heads (5)"), std::string::npos);
  EXPECT_NE(message({.context = 63}, 1).find("context (63)"), std::string::npos);
  EXPECT_NE(message({.layers = 0}, 1).find("at least 1"), std::string::npos);
  EXPECT_NE(message({}, 0).find("at least 1"), std::string::npos);
}

TEST(Host, ThisOneIsNewEnough) { EXPECT_TRUE(require_processor().ok()); }

}  // namespace
}  // namespace gpt
