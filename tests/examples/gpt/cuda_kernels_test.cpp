// Each CUDA kernel of the model in the SIMT shim, against the CPU's function. The order of lanes must not
// show in the bits.
#include "examples/gpt/cuda/kernels.cuh"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "examples/gpt/adamw.h"
#include "examples/gpt/cuda/layers.h"
#include "examples/gpt/kernels.h"
#include "kernels/simt_runtime.h"
#include "runtime/base/random.h"

namespace gpt {
namespace {

using muster::simt::DeviceArray;
using Floats = std::vector<float>;

Floats some_floats(size_t count, uint64_t seed, float scale = 1) {
  muster::SeededRandom random(seed);
  Floats values(count);
  for (float& value : values) value = static_cast<float>(random.uniform() * 2 - 1) * scale;
  return values;
}

std::vector<uint8_t> some_bytes(size_t count, uint64_t seed) {
  muster::SeededRandom random(seed);
  std::vector<uint8_t> values(count);
  for (uint8_t& value : values) value = static_cast<uint8_t>(random.below(7) * 40);
  return values;
}

// Runs tasks in one order of lanes.
struct Simt {
  muster::simt::Schedule schedule;

  template <typename Task>
  void operator()(const Task& task) const {
    cuda::launch_task(task, [&](auto* kernel, cuda::Grid grid, const Task& part) {
      const auto status = muster::simt::launch({grid.x, grid.y}, {cuda::kThreads}, schedule, kernel, part);
      ASSERT_TRUE(status.ok()) << status.error().message;
    });
  }
};

void expect_near(const Floats& got, const Floats& expected, double tolerance, const char* what) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], expected[i], tolerance) << what << "[" << i << "]";
}

// Outputs of a computation, by name and with what they may differ from the expected.
struct Output {
  const char* name;
  Floats values, expected;
  double tolerance;
};

// Calls compute(run) in several orders of lanes; each must be right, and all the same.
void expect_right(const std::function<std::vector<Output>(Simt)>& compute) {
  std::vector<Output> first;
  for (const muster::simt::Schedule schedule : muster::simt::schedules(1)) {
    SCOPED_TRACE(muster::simt::to_string(schedule));
    const std::vector<Output> outputs = compute(Simt{schedule});
    for (const Output& o : outputs) expect_near(o.values, o.expected, o.tolerance, o.name);
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_EQ(std::memcmp(outputs[i].values.data(), first[i].values.data(), 4 * first[i].values.size()), 0)
          << outputs[i].name;
    }
    if (first.empty()) first = outputs;
  }
}

TEST(CudaKernels, ExponentialAndLogarithmHaveTheCpusBits) {
  Floats x = some_floats(20000, 1, 100);
  x.insert(x.end(), {0.0f, -0.0f, 1e-30f, 1e30f, -1e30f});
  Floats expected(x.size());
  exp_each(x.data(), expected.data(), x.size());
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(cuda::exp_of(x[i]), expected[i]) << x[i];
  for (const float value : expected) EXPECT_EQ(cuda::log_of(value), log_of(value)) << value;
}

// [rows, inner] · [inner, columns] in double, element by element.
double product_at(const cuda::Product& p, unsigned batch, unsigned row, unsigned column) {
  const float* left = p.left.data + batch / p.group * p.left.outer + batch % p.group * p.left.inner;
  const float* right = p.right.data + batch / p.group * p.right.outer + batch % p.group * p.right.inner;
  double sum = p.bias != nullptr ? p.bias[column] : 0;
  for (unsigned k = 0; k < p.inner; ++k) {
    const float a =
        p.form == cuda::Form::kLeftTransposed ? left[k * p.left.stride + row] : left[row * p.left.stride + k];
    const float b = p.form == cuda::Form::kRightTransposed ? right[column * p.right.stride + k]
                                                           : right[k * p.right.stride + column];
    sum += static_cast<double>(a) * b;
  }
  return sum;
}

struct Shape {
  uint32_t rows, columns, inner;
  uint32_t gap;  // floats between rows
  bool bias, added;
};

class Products : public testing::TestWithParam<std::tuple<cuda::Form, Shape>> {};

TEST_P(Products, AgreeWithDouble) {
  const auto [form, s] = GetParam();
  const bool left_turned = form == cuda::Form::kLeftTransposed;
  const bool right_turned = form == cuda::Form::kRightTransposed;
  const uint32_t left_stride = (left_turned ? s.rows : s.inner) + s.gap;
  const uint32_t right_stride = (right_turned ? s.inner : s.columns) + s.gap;
  const size_t left_rows = left_turned ? s.inner : s.rows, right_rows = right_turned ? s.columns : s.inner;
  // No gap after the last row: what is read past an operand is read past its memory.
  const DeviceArray<float> left(some_floats(left_rows * left_stride - s.gap, 2));
  const DeviceArray<float> right(some_floats(right_rows * right_stride - s.gap, 3));
  const DeviceArray<float> bias(some_floats(s.columns, 4));
  const size_t out_size = s.rows * (s.columns + s.gap) - s.gap;
  const DeviceArray<float> added(some_floats(out_size, 5));
  expect_right([&, form = form, s = s](Simt run) {
    const DeviceArray<float> out(Floats(out_size, 7.0f));
    const cuda::Product task{.form = form,
                             .rows = s.rows,
                             .columns = s.columns,
                             .inner = s.inner,
                             .left = {left.data(), left_stride},
                             .right = {right.data(), right_stride},
                             .out = {out.data(), s.columns + s.gap},
                             .bias = s.bias ? bias.data() : nullptr,
                             .added = s.added ? added.data() : nullptr};
    run(task);
    Floats expected(out_size, 7.0f);  // between the rows nothing is written
    for (uint32_t r = 0; r < s.rows; ++r) {
      for (uint32_t c = 0; c < s.columns; ++c) {
        const size_t at = r * (s.columns + s.gap) + c;
        expected[at] =
            static_cast<float>(product_at(task, 0, r, c) + (s.added ? double{added.data()[at]} : 0));
      }
    }
    EXPECT_TRUE(out.intact());
    return std::vector<Output>{{"out", out.values(), expected, 3e-5}};
  });
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Products,
    testing::Combine(testing::Values(cuda::Form::kPlain, cuda::Form::kLeftTransposed,
                                     cuda::Form::kRightTransposed),
                     testing::Values(Shape{64, 64, 16, 0, false, false}, Shape{8, 256, 24, 0, true, false},
                                     Shape{72, 8, 136, 4, false, true}, Shape{136, 72, 40, 8, true, true},
                                     Shape{65, 67, 17, 0, true, true}, Shape{1, 1, 1, 0, true, false},
                                     Shape{5, 131, 33, 3, false, true}, Shape{70, 3, 66, 1, false, false})));

class Attention : public testing::TestWithParam<AttentionShape> {};

TEST_P(Attention, AgreesWithTheCpuInBothDirections) {
  const AttentionShape shape = GetParam();
  const size_t size = shape.sequences * shape.length * shape.width;
  const size_t squares = shape.sequences * shape.heads * shape.length * shape.length;
  const DeviceArray<float> qkv(some_floats(3 * size, 6, 2)), dout(some_floats(size, 7));
  Floats weights(squares), out(size), dqkv(3 * size), scratch(shape.length * shape.length);
  attention(shape, qkv.data(), weights.data(), out.data());
  attention_backward(shape, qkv.data(), weights.data(), dout.data(), dqkv.data(), scratch.data());
  expect_right([&](Simt run) {
    // NaN everywhere before: what is not written must not be read.
    const DeviceArray<float> w(squares), o(size), dw(squares), d(3 * size);
    cuda::attention(shape, qkv.data(), w.data(), o.data(), run);
    cuda::attention_backward(shape, qkv.data(), w.data(), dout.data(), d.data(), dw.data(), run);
    EXPECT_TRUE(w.intact() && o.intact() && dw.intact() && d.intact());
    return std::vector<Output>{{"weights", w.values(), weights, 2e-6},
                               {"out", o.values(), out, 5e-6},
                               {"dqkv", d.values(), dqkv, 2e-5}};
  });
}

// Heads of 8, of 3 and of 1 floats; a length of several tiles.
INSTANTIATE_TEST_SUITE_P(Shapes, Attention,
                         testing::Values(AttentionShape{2, 24, 16, 2}, AttentionShape{1, 8, 24, 8},
                                         AttentionShape{2, 16, 8, 8}, AttentionShape{1, 136, 16, 1},
                                         AttentionShape{3, 72, 40, 4}));

struct RowShape {
  uint32_t rows, width;
};
class Rows : public testing::TestWithParam<RowShape> {};

TEST_P(Rows, LayerNormAgreesWithTheCpuInBothDirections) {
  const auto [rows, width] = GetParam();
  const size_t size = size_t{rows} * width;
  const DeviceArray<float> x(some_floats(size, 8, 3)), gain(some_floats(width, 9)),
      bias(some_floats(width, 10)), dout(some_floats(size, 11)), before(some_floats(size, 12));
  Floats out(size), mean(rows), inverse(rows), dx_set(size), dx_added = before.values(), dgain(width),
                                                             dbias(width);
  layer_norm(x.data(), gain.data(), bias.data(), out.data(), mean.data(), inverse.data(), rows, width);
  for (Floats* dx : {&dx_set, &dx_added})
    layer_norm_backward(x.data(), gain.data(), mean.data(), inverse.data(), dout.data(), dx->data(),
                        dgain.data(), dbias.data(), rows, width);
  expect_right([&, rows = rows, width = width](Simt run) {
    const DeviceArray<float> o(size), m(rows), i(rows), set(size), added(before.values()), dg(width),
        db(width);
    run(cuda::Norm{x.data(), gain.data(), bias.data(), o.data(), m.data(), i.data(), rows, width});
    for (const bool adds : {false, true})
      run(cuda::NormBackward{x.data(), gain.data(), m.data(), i.data(), dout.data(),
                             adds ? added.data() : set.data(), dg.data(), db.data(), rows, width, adds});
    const double sums = 2e-6 * rows + 1e-6;
    return std::vector<Output>{{"out", o.values(), out, 2e-6},
                               {"mean", m.values(), mean, 1e-6},
                               {"inverse", i.values(), inverse, 1e-5},
                               {"dx", set.values(), dx_set, 1e-5},
                               {"dx added", added.values(), dx_added, 1e-5},
                               {"dgain", dg.values(), dgain, sums},
                               {"dbias", db.values(), dbias, sums}};
  });
}

TEST_P(Rows, ColumnSumsAgreeWithTheCpu) {
  const auto [rows, width] = GetParam();
  const DeviceArray<float> x(some_floats(size_t{rows} * width, 13));
  Floats expected(width);
  sum_rows(x.data(), expected.data(), rows, width);
  expect_right([&, rows = rows, width = width](Simt run) {
    const DeviceArray<float> out(width);
    run(cuda::ColumnSums{x.data(), out.data(), rows, width});
    return std::vector<Output>{{"sums", out.values(), expected, 1e-6 * rows + 1e-6}};
  });
}

TEST_P(Rows, EmbeddingsAgreeWithPlainLoops) {
  const auto [rows, width] = GetParam();
  const uint32_t length = rows / 2, context = length + 8;
  const DeviceArray<uint8_t> inputs(some_bytes(rows, 14), 3);  // misaligned, as a part of a buffer may be
  const DeviceArray<float> bytes(some_floats(256 * width, 15)), positions(some_floats(context * width, 16)),
      dout(some_floats(size_t{rows} * width, 17));
  Floats out(size_t{rows} * width), dbytes(256 * width), dpositions(context * width);
  for (uint32_t r = 0; r < rows; ++r) {
    for (uint32_t c = 0; c < width; ++c) {
      const uint32_t byte = inputs.data()[r] * width + c, position = r % length * width + c;
      out[r * width + c] = bytes.data()[byte] + positions.data()[position];
      dbytes[byte] += dout.data()[r * width + c];
      dpositions[position] += dout.data()[r * width + c];
    }
  }
  expect_right([&, rows = rows, width = width](Simt run) {
    const DeviceArray<float> o(out.size()), db(dbytes.size()), dp(dpositions.size());
    run(cuda::Embed{inputs.data(), bytes.data(), positions.data(), o.data(), rows, width, length});
    run(cuda::EmbedBackward{inputs.data(), dout.data(), db.data(), dp.data(), rows, width, length, 256,
                            context});
    // The same order of additions: the same bits.
    return std::vector<Output>{{"out", o.values(), out, 0},
                               {"dbytes", db.values(), dbytes, 0},
                               {"dpositions", dp.values(), dpositions, 0}};
  });
}

INSTANTIATE_TEST_SUITE_P(Shapes, Rows,
                         testing::Values(RowShape{2, 8}, RowShape{16, 24}, RowShape{30, 136},
                                         RowShape{74, 40}, RowShape{6, 384}));

TEST(CudaKernels, GeluAgreesWithTheCpuInBothDirections) {
  constexpr size_t kCount = 1544;
  const DeviceArray<float> x(some_floats(kCount, 18, 6)), dout(some_floats(kCount, 19));
  Floats out(kCount), dx(kCount);
  gelu(x.data(), out.data(), kCount);
  gelu_backward(x.data(), dout.data(), dx.data(), kCount);
  expect_right([&](Simt run) {
    const DeviceArray<float> o(kCount), d(dout.values());
    run(cuda::Gelu{x.data(), o.data(), kCount});
    run(cuda::GeluBackward{x.data(), d.data(), d.data(), kCount});  // in place
    return std::vector<Output>{{"out", o.values(), out, 0}, {"dx", d.values(), dx, 0}};
  });
}

TEST(CudaKernels, CrossEntropyAgreesWithTheCpu) {
  constexpr uint32_t kRows = 21;
  const Floats logits = some_floats(kRows * 256, 20, 30);
  const DeviceArray<uint8_t> targets(some_bytes(kRows, 21), 1);
  Floats gradient = logits, overwritten = logits;
  const double mean = cross_entropy_backward(gradient.data(), targets.data(), kRows, 256);
  const double sum = cross_entropy_sum(overwritten.data(), targets.data(), kRows, 256);
  expect_right([&](Simt run) {
    const DeviceArray<float> x(logits), kept(logits), average(1);
    const DeviceArray<double> losses(kRows), total(1);
    run(cuda::CrossEntropy{kept.data(), targets.data(), losses.data(), kRows, false});
    EXPECT_EQ(kept.values(), logits);
    run(cuda::CrossEntropy{x.data(), targets.data(), losses.data(), kRows, true});
    run(cuda::LossSum{losses.data(), total.data(), average.data(), kRows});
    EXPECT_NEAR(total.data()[0], sum, 1e-5);
    return std::vector<Output>{{"gradient", x.values(), gradient, 1e-7},
                               {"mean", average.values(), {static_cast<float>(mean)}, 1e-6}};
  });
}

TEST(CudaKernels, LossesOfManyRowsAreAddedUp) {
  constexpr uint32_t kRows = 1000;
  const DeviceArray<double> losses(std::vector<double>(kRows, 0.25)), total(1);
  Simt{{muster::simt::Order::kReverse, 0}}(cuda::LossSum{losses.data(), total.data(), nullptr, kRows});
  EXPECT_EQ(total.data()[0], 250);
}

TEST(CudaKernels, AdamWAgreesWithTheCpuClippedOrNot) {
  constexpr size_t kCount = 2 * cuda::kSquaresEach + 1032;
  for (const float scale : {1.0f, 1e-5f}) {
    const DeviceArray<float> gradients(some_floats(kCount, 22, scale));
    const Floats weights = some_floats(kCount, 23), m = some_floats(kCount, 24, 0.1f);
    Floats v = some_floats(kCount, 25, 0.1f);
    for (float& value : v) value *= value;
    const float factor = clip_factor({}, gradients.values());
    EXPECT_EQ(factor < 1, scale == 1.0f);
    const AdamWCoefficients c{0.01f, 0.9f, 0.98f, 1e-8f, 0.001f, 2.5f, 3.5f, factor};
    Floats weights_after = weights, m_after = m, v_after = v;
    adamw_each(c, weights_after.data(), gradients.data(), m_after.data(), v_after.data(), kCount);
    expect_right([&](Simt run) {
      const DeviceArray<float> w(weights), first(m), second(v), f(1);
      const DeviceArray<double> partials(3);
      run(cuda::ClipFactor{gradients.data(), kCount, partials.data(), f.data(), 1.0});
      run(cuda::AdamW{w.data(), first.data(), second.data(), gradients.data(), f.data(), kCount, c});
      EXPECT_TRUE(partials.intact() && f.intact());
      return std::vector<Output>{{"factor", f.values(), {factor}, 1e-7},
                                 {"weights", w.values(), weights_after, 1e-6},
                                 {"m", first.values(), m_after, 1e-7},
                                 {"v", second.values(), v_after, 1e-7}};
    });
  }
}

TEST(CudaKernels, FillSetsExactlyItsElements) {
  for (const size_t count : {1, 5, 256, 1030}) {
    const DeviceArray<float> out(count);
    Simt{{muster::simt::Order::kForward, 0}}(cuda::Fill{out.data(), count, 1.5f});
    EXPECT_EQ(out.values(), Floats(count, 1.5f));
    EXPECT_TRUE(out.intact());
  }
}

}  // namespace
}  // namespace gpt
