// The kernels of tasks.h: compiled by nvcc for devices, and by g++ against the SIMT shim for tests.
//
// They favour being read over the last part of speed: a matrix product goes through shared memory in tiles of
// 64 by 64, everything that works on rows has one warp for a row, and nothing is fused but what a product
// adds at its end. Only exactly rounded operations are used (exp and log are written out), so that the bits
// do not differ between generations of devices either. No atomics: every sum is made in one order.
//
// Most kernels are plain functions: one source file of a program may include this.
#pragma once

#include <cmath>

#include "examples/gpt/cuda/tasks.h"
#include "kernels/simt.h"

namespace gpt::cuda {

// The shim has CUDA's names in this namespace; nvcc has them everywhere.
using namespace muster;

constexpr unsigned kThreads = 256;  // of a block, in every kernel
constexpr unsigned kWarp = 32, kWarps = kThreads / kWarp;
constexpr unsigned kAll = 0xFFFFFFFFu;
constexpr unsigned kVocabulary = 256;

MUSTER_DEVICE uint64_t thread_of_grid() { return uint64_t{blockIdx.x} * kThreads + threadIdx.x; }
MUSTER_DEVICE uint32_t warp_of_grid() { return blockIdx.x * kWarps + threadIdx.x / kWarp; }
MUSTER_DEVICE unsigned lane_of_warp() { return threadIdx.x % kWarp; }

// Of all lanes of a warp; each gets the same bits, because both sides of an exchange add the same two.
template <typename T>
MUSTER_DEVICE T warp_sum(T value) {
  MUSTER_UNROLL
  for (int lanes = 1; lanes < 32; lanes *= 2) value += __shfl_xor_sync(kAll, value, lanes);
  return value;
}

MUSTER_DEVICE float warp_largest(float value) {
  MUSTER_UNROLL
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const float other = __shfl_xor_sync(kAll, value, lanes);
    value = other > value ? other : value;
  }
  return value;
}

MUSTER_DEVICE float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// f on each of four.
template <typename F>
MUSTER_DEVICE float4 map(float4 a, F f) {
  return {f(a.x), f(a.y), f(a.z), f(a.w)};
}
template <typename F>
MUSTER_DEVICE float4 map(float4 a, float4 b, F f) {
  return {f(a.x, b.x), f(a.y, b.y), f(a.z, b.z), f(a.w, b.w)};
}
MUSTER_DEVICE float sum_of(float4 a) { return (a.x + a.y) + (a.z + a.w); }

// exp_each() and log_of() of kernels.cpp, with their bits; the reasons stand there.
MUSTER_DEVICE float exp_of(float x) {
  constexpr float kRounder = 12582912.0f;
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504088896341f + kRounder;
  const float n = shifted - kRounder;
  const float r = (x - n * 0.693359375f) + n * 2.12194440054690583e-4f;
  float p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  return p * float_of((bits_of(shifted) << 23) + 0x3f800000u);
}

MUSTER_DEVICE double log_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  bits = (bits & 0x000fffffffffffffu) | 0x3ff0000000000000u;
  double m;
  memcpy(&m, &bits, sizeof m);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++exponent;
  }
  const double z = (m - 1) / (m + 1), zz = z * z;
  double series = 0;
  for (int k = 21; k >= 1; k -= 2) series = series * zz + 1.0 / k;
  return exponent * 0.6931471805599453 + 2 * z * series;
}

MUSTER_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exp_of(-x)); }

// Matrix products. A block of threads makes a tile of 64 by 64 of the result, a thread 4 by 4 of it. The
// operands come through shared memory in slices of 16 of the inner dimension, and the next slice is on its
// way while one is multiplied.

constexpr unsigned kTile = 64, kSlice = 16, kPerThread = 4;
constexpr unsigned kTileStride = kTile + 4;  // spreads the writes of a transposed slice over the banks
constexpr unsigned kTileFours = kSlice * kTileStride / 4;

// A [rows, columns] matrix as it lies in memory.
struct View {
  const float* data;
  uint64_t stride;
  unsigned rows, columns;
  bool vector;
};

// Elements (row, column … column + 3); zeros outside.
MUSTER_DEVICE float4 load_four(const View& from, unsigned row, unsigned column) {
  float4 four{0, 0, 0, 0};
  if (row >= from.rows || column >= from.columns) return four;
  const float* at = from.data + row * from.stride + column;
  if (from.vector) return load128<float4>(at);
  four.x = at[0];
  if (column + 1 < from.columns) four.y = at[1];
  if (column + 2 < from.columns) four.z = at[2];
  if (column + 3 < from.columns) four.w = at[3];
  return four;
}

MUSTER_DEVICE void store_four(const Product& task, float* out, unsigned column, float4 four) {
  if (task.vector) return store128(out + column, four);
  out[column] = four.x;
  if (column + 1 < task.columns) out[column + 1] = four.y;
  if (column + 2 < task.columns) out[column + 2] = four.z;
  if (column + 3 < task.columns) out[column + 3] = four.w;
}

// One operand's way into shared memory, where it lies as [kSlice][kTileStride]. `kInnerIsRow`: its rows are
// the inner dimension, as of the right operand of a plain product.
template <bool kInnerIsRow>
struct Slice {
  // The thread's four elements of the slice that begins at `inner`.
  static MUSTER_DEVICE float4 load(const View& from, unsigned tile, unsigned inner) {
    if constexpr (kInnerIsRow) {
      return load_four(from, inner + threadIdx.x / 16, tile + threadIdx.x % 16 * 4);
    } else {
      return load_four(from, tile + threadIdx.x / 4, inner + threadIdx.x % 4 * 4);
    }
  }
  static MUSTER_DEVICE void store(float4* shared, float4 four) {
    if constexpr (kInnerIsRow) {
      shared[threadIdx.x / 16 * (kTileStride / 4) + threadIdx.x % 16] = four;
    } else {
      float* to = reinterpret_cast<float*>(shared) + threadIdx.x % 4 * 4 * kTileStride + threadIdx.x / 4;
      to[0] = four.x;
      to[kTileStride] = four.y;
      to[2 * kTileStride] = four.z;
      to[3 * kTileStride] = four.w;
    }
  }
};

// Fused multiply-add on purpose, as twice as fast: it is exactly rounded, and the same everywhere.
MUSTER_DEVICE float4 multiply_add(float a, float4 b, float4 sum) {
  return {fmaf(a, b.x, sum.x), fmaf(a, b.y, sum.y), fmaf(a, b.z, sum.z), fmaf(a, b.w, sum.w)};
}

MUSTER_DEVICE void multiply_slice(const float4* left, const float4* right, float4 (&sums)[kPerThread]) {
  MUSTER_UNROLL
  for (unsigned k = 0; k < kSlice; ++k) {
    const float4 a = left[k * (kTileStride / 4) + threadIdx.x / 16];
    const float4 b = right[k * (kTileStride / 4) + threadIdx.x % 16];
    sums[0] = multiply_add(a.x, b, sums[0]);
    sums[1] = multiply_add(a.y, b, sums[1]);
    sums[2] = multiply_add(a.z, b, sums[2]);
    sums[3] = multiply_add(a.w, b, sums[3]);
  }
}

MUSTER_DEVICE void store_tile(const Product& task, uint64_t batch_offset, unsigned row0, unsigned column,
                              const float4 (&sums)[kPerThread]) {
  if (column >= task.columns) return;
  const float4 none{0, 0, 0, 0};
  const float4 bias =
      task.bias == nullptr ? none : load_four({task.bias, 0, 1, task.columns, task.vector}, 0, column);
  const float* added = task.added == nullptr ? nullptr : task.added + batch_offset;
  MUSTER_UNROLL
  for (unsigned i = 0; i < kPerThread; ++i) {
    const unsigned row = row0 + i;
    if (row >= task.rows) return;
    float4 four = sums[i] + bias;
    if (added != nullptr)
      four = four + load_four({added, task.out.stride, task.rows, task.columns, task.vector}, row, column);
    store_four(task, task.out.data + batch_offset + row * task.out.stride, column, four);
  }
}

template <typename T>
MUSTER_DEVICE uint64_t offset_of(const Operand<T>& operand, unsigned batch, unsigned group) {
  return batch / group * operand.outer + batch % group * operand.inner;
}

template <Form kForm>
MUSTER_KERNEL(kThreads)
void product_kernel(const Product task) {
  using Left = Slice<kForm == Form::kLeftTransposed>;
  using Right = Slice<kForm != Form::kRightTransposed>;
  MUSTER_SHARED(float4, left_slice, kTileFours);
  MUSTER_SHARED(float4, right_slice, kTileFours);
  const unsigned tiles = (task.columns + kTile - 1) / kTile;
  const unsigned batch = blockIdx.x / tiles;
  const unsigned row = blockIdx.y * kTile, column = blockIdx.x % tiles * kTile;
  if (task.causal == Causal::kOutput && column >= row + kTile) return;
  View left{task.left.data + offset_of(task.left, batch, task.group), task.left.stride, task.rows, task.inner,
            task.vector};
  View right{task.right.data + offset_of(task.right, batch, task.group), task.right.stride, task.inner,
             task.columns, task.vector};
  if constexpr (kForm == Form::kLeftTransposed) left.rows = task.inner, left.columns = task.rows;
  if constexpr (kForm == Form::kRightTransposed) right.rows = task.columns, right.columns = task.inner;
  // What is left out of a causal product is zero.
  unsigned inner = task.causal == Causal::kInnerFrom ? row : 0, end = task.inner;
  if (task.causal == Causal::kInnerUpTo && row + kTile < end) end = row + kTile;

  float4 sums[kPerThread] = {};
  float4 next_left = Left::load(left, row, inner), next_right = Right::load(right, column, inner);
  while (inner < end) {
    Left::store(left_slice, next_left);
    Right::store(right_slice, next_right);
    __syncthreads();
    inner += kSlice;
    if (inner < end) {
      next_left = Left::load(left, row, inner);
      next_right = Right::load(right, column, inner);
    }
    multiply_slice(left_slice, right_slice, sums);
    __syncthreads();  // before the slices are overwritten
  }
  store_tile(task, offset_of(task.out, batch, task.group), row + threadIdx.x / 16 * kPerThread,
             column + threadIdx.x % 16 * 4, sums);
}

// Softmax of attention: a warp for each row.

MUSTER_KERNEL(kThreads)
void causal_softmax_kernel(const CausalSoftmax task) {
  const uint32_t index = warp_of_grid();
  if (index >= task.matrices * task.length) return;
  float* row = task.scores + uint64_t{index} * task.length;
  const unsigned seen = index % task.length + 1, lane = lane_of_warp();
  float largest = -1e30f, total = 0;
  for (unsigned i = lane; i < seen; i += kWarp) {
    const float score = row[i] * task.factor;
    largest = score > largest ? score : largest;
  }
  largest = warp_largest(largest);
  for (unsigned i = lane; i < seen; i += kWarp) {
    const float e = exp_of(row[i] * task.factor - largest);
    row[i] = e;
    total += e;
  }
  const float inverse = 1.0f / warp_sum(total);
  for (unsigned i = lane; i < task.length; i += kWarp) row[i] = i < seen ? row[i] * inverse : 0.0f;
}

// dscores = weights * (dweights - sum(weights * dweights)) * factor
MUSTER_KERNEL(kThreads)
void causal_softmax_backward_kernel(const CausalSoftmaxBackward task) {
  const uint32_t index = warp_of_grid();
  if (index >= task.matrices * task.length) return;
  const float* weights = task.weights + uint64_t{index} * task.length;
  float* d = task.dweights + uint64_t{index} * task.length;
  const unsigned seen = index % task.length + 1, lane = lane_of_warp();
  float total = 0;
  for (unsigned i = lane; i < seen; i += kWarp) total += weights[i] * d[i];
  const float mean = warp_sum(total);
  for (unsigned i = lane; i < task.length; i += kWarp)
    d[i] = i < seen ? weights[i] * (d[i] - mean) * task.factor : 0.0f;
}

// Layer norm: a warp for each row, four elements of a lane at a time.

MUSTER_KERNEL(kThreads)
void norm_kernel(const Norm task) {
  constexpr float kEpsilon = 1e-5f;
  const uint32_t row = warp_of_grid();
  if (row >= task.rows) return;
  const uint64_t begin = uint64_t{row} * task.width;
  const float share = 1.0f / static_cast<float>(task.width);
  float total = 0, squares = 0;
  for (unsigned c = lane_of_warp() * 4; c < task.width; c += kWarp * 4)
    total += sum_of(load128<float4>(task.x + begin + c));
  const float mean = warp_sum(total) * share;
  for (unsigned c = lane_of_warp() * 4; c < task.width; c += kWarp * 4) {
    const float4 x = load128<float4>(task.x + begin + c);
    squares += sum_of(map(x, [&](float v) { return (v - mean) * (v - mean); }));
  }
  const float inverse = 1.0f / sqrtf(warp_sum(squares) * share + kEpsilon);
  for (unsigned c = lane_of_warp() * 4; c < task.width; c += kWarp * 4) {
    const float4 x = load128<float4>(task.x + begin + c), gain = load128<float4>(task.gain + c);
    const float4 scaled = map(x, gain, [&](float v, float g) { return (v - mean) * inverse * g; });
    store128(task.out + begin + c, scaled + load128<float4>(task.bias + c));
  }
  if (lane_of_warp() == 0) {
    task.mean[row] = mean;
    task.inverse[row] = inverse;
  }
}

MUSTER_KERNEL(kThreads)
void norm_backward_kernel(const NormBackward task) {
  const uint32_t row = warp_of_grid();
  if (row >= task.rows) return;
  const uint64_t begin = uint64_t{row} * task.width;
  const float share = 1.0f / static_cast<float>(task.width), mean = task.mean[row],
              inverse = task.inverse[row];
  const auto load_normal = [&](unsigned c) {
    return map(load128<float4>(task.x + begin + c), [&](float v) { return (v - mean) * inverse; });
  };
  const auto load_dnormal = [&](unsigned c) {
    return map(load128<float4>(task.dout + begin + c), load128<float4>(task.gain + c),
               [](float d, float gain) { return d * gain; });
  };
  float total = 0, projected = 0;
  for (unsigned c = lane_of_warp() * 4; c < task.width; c += kWarp * 4) {
    const float4 dnormal = load_dnormal(c);
    total += sum_of(dnormal);
    projected += sum_of(map(dnormal, load_normal(c), [](float d, float n) { return d * n; }));
  }
  const float a = warp_sum(total) * share, b = warp_sum(projected) * share;
  for (unsigned c = lane_of_warp() * 4; c < task.width; c += kWarp * 4) {
    float4 dx =
        map(load_dnormal(c), load_normal(c), [&](float d, float n) { return (d - a - n * b) * inverse; });
    if (task.adds) dx = load128<float4>(task.dx + begin + c) + dx;
    store128(task.dx + begin + c, dx);
  }
}

// Sums over the rows. A block has 32 columns; each of its warps takes every eighth row of them.

// Adds the eight warps' sums in their order. To be called by all threads of a block; the first warp's count.
MUSTER_DEVICE float sum_over_warps(float* shared, float mine) {
  shared[threadIdx.x] = mine;
  __syncthreads();
  float total = 0;
  for (unsigned warp = 0; warp < kWarps && threadIdx.x < kWarp; ++warp)
    total += shared[warp * kWarp + threadIdx.x];
  __syncthreads();  // before the array is used again
  return total;
}

MUSTER_KERNEL(kThreads)
void column_sums_kernel(const ColumnSums task) {
  MUSTER_SHARED(float, shared, kThreads);
  const unsigned column = blockIdx.x * kWarp + lane_of_warp();
  float total = 0;
  for (uint32_t row = threadIdx.x / kWarp; row < task.rows && column < task.width; row += kWarps)
    total += task.x[uint64_t{row} * task.width + column];
  total = sum_over_warps(shared, total);
  if (threadIdx.x < kWarp && column < task.width) task.out[column] = total;
}

MUSTER_KERNEL(kThreads)
void norm_columns_kernel(const NormBackward task) {
  MUSTER_SHARED(float, shared, kThreads);
  const unsigned column = blockIdx.x * kWarp + lane_of_warp();
  float dgain = 0, dbias = 0;
  for (uint32_t row = threadIdx.x / kWarp; row < task.rows && column < task.width; row += kWarps) {
    const uint64_t at = uint64_t{row} * task.width + column;
    dgain += task.dout[at] * ((task.x[at] - task.mean[row]) * task.inverse[row]);
    dbias += task.dout[at];
  }
  dgain = sum_over_warps(shared, dgain);
  dbias = sum_over_warps(shared, dbias);
  if (threadIdx.x < kWarp && column < task.width) {
    task.dgain[column] = dgain;
    task.dbias[column] = dbias;
  }
}

// Elementwise, four elements a thread.

// 0.5 x (1 + tanh u) = x sigmoid(2 u), with u = sqrt(2 / pi) (x + 0.044715 x^3).
constexpr float kGeluLinear = 2 * 0.7978845608028654f, kGeluCubic = kGeluLinear * 0.044715f;

MUSTER_KERNEL(kThreads)
void gelu_kernel(const Gelu task) {
  const uint64_t i = thread_of_grid() * 4;
  if (i >= task.count) return;
  store128(task.out + i, map(load128<float4>(task.x + i),
                             [](float v) { return v * sigmoid(v * (kGeluLinear + kGeluCubic * v * v)); }));
}

MUSTER_KERNEL(kThreads)
void gelu_backward_kernel(const GeluBackward task) {
  const uint64_t i = thread_of_grid() * 4;
  if (i >= task.count) return;
  const auto slope = [](float v) {
    const float s = sigmoid(v * (kGeluLinear + kGeluCubic * v * v));
    return s + v * s * (1.0f - s) * (kGeluLinear + 3 * kGeluCubic * v * v);
  };
  store128(task.dx + i, map(load128<float4>(task.x + i), load128<float4>(task.dout + i),
                            [&](float v, float d) { return d * slope(v); }));
}

MUSTER_KERNEL(kThreads)
void fill_kernel(const Fill task) {
  const uint64_t i = thread_of_grid() * 4;
  for (uint64_t j = i; j < i + 4 && j < task.count; ++j) task.out[j] = task.value;
}

MUSTER_KERNEL(kThreads)
void adamw_kernel(const AdamW task) {
  const uint64_t i = thread_of_grid() * 4;
  if (i >= task.count) return;
  const float factor = *task.factor;
  const float4 g = map(load128<float4>(task.gradients + i), [&](float v) { return v * factor; });
  const float4 m = map(load128<float4>(task.m + i), g, [&](float old, float v) {
    return task.with.beta1 * old + (1.0f - task.with.beta1) * v;
  });
  const float4 v = map(load128<float4>(task.v + i), g, [&](float old, float x) {
    return task.with.beta2 * old + (1.0f - task.with.beta2) * (x * x);
  });
  const float4 update = map(m, v, [&](float first, float second) {
    return (first * task.with.correction1) / (sqrtf(second * task.with.correction2) + task.with.epsilon);
  });
  const float4 weights = map(load128<float4>(task.weights + i), update, [&](float w, float u) {
    return w - (task.with.decay * w + task.with.learning_rate * u);
  });
  store128(task.m + i, m);
  store128(task.v + i, v);
  store128(task.weights + i, weights);
}

// Cross entropy: a warp for each row of 256 logits, eight of a lane.

MUSTER_KERNEL(kThreads)
void cross_entropy_kernel(const CrossEntropy task) {
  constexpr unsigned kFours = kVocabulary / (kWarp * 4);
  const uint32_t row = warp_of_grid();
  if (row >= task.rows) return;
  float* logits = task.logits + uint64_t{row} * kVocabulary + lane_of_warp() * 4;
  const unsigned target = task.targets[row];
  const float target_logit = task.logits[uint64_t{row} * kVocabulary + target];
  float4 x[kFours];
  float largest = -1e30f;
  MUSTER_UNROLL
  for (unsigned i = 0; i < kFours; ++i) {
    x[i] = load128<float4>(logits + i * kWarp * 4);
    for (const float v : {x[i].x, x[i].y, x[i].z, x[i].w}) largest = v > largest ? v : largest;
  }
  largest = warp_largest(largest);
  float total = 0;
  MUSTER_UNROLL
  for (unsigned i = 0; i < kFours; ++i) {
    x[i] = map(x[i], [&](float v) { return exp_of(v - largest); });
    total += sum_of(x[i]);
  }
  total = warp_sum(total);
  if (lane_of_warp() == 0)
    task.losses[row] = log_of(total) + static_cast<double>(largest) - static_cast<double>(target_logit);
  if (!task.gradient) return;
  __syncwarp();  // the target's logit has been read, by all
  const float share = 1.0f / static_cast<float>(task.rows), factor = share / total;
  MUSTER_UNROLL
  for (unsigned i = 0; i < kFours; ++i) {
    const unsigned first = i * kWarp * 4 + lane_of_warp() * 4;
    float4 d = map(x[i], [&](float v) { return v * factor; });
    if (first == target) d.x -= share;
    if (first + 1 == target) d.y -= share;
    if (first + 2 == target) d.z -= share;
    if (first + 3 == target) d.w -= share;
    store128(logits + i * kWarp * 4, d);
  }
}

// Adds what the threads of a block hold, always in the same order. To be called by all; each gets the sum.
MUSTER_DEVICE double block_sum(double* shared, double mine) {
  shared[threadIdx.x] = mine;
  __syncthreads();
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  return shared[0];
}

MUSTER_KERNEL(kThreads)
void loss_sum_kernel(const LossSum task) {
  MUSTER_SHARED(double, shared, kThreads);
  double total = 0;
  for (uint32_t row = threadIdx.x; row < task.rows; row += kThreads) total += task.losses[row];
  total = block_sum(shared, total);
  if (threadIdx.x != 0) return;
  *task.sum = total;
  if (task.mean != nullptr) *task.mean = static_cast<float>(total / task.rows);
}

// A block adds the squares of kSquaresEach elements, in double.
MUSTER_KERNEL(kThreads)
void squares_kernel(const ClipFactor task) {
  MUSTER_SHARED(double, shared, kThreads);
  const uint64_t begin = blockIdx.x * kSquaresEach;
  const uint64_t end = begin + kSquaresEach < task.count ? begin + kSquaresEach : task.count;
  double total = 0;
  for (uint64_t i = begin + threadIdx.x * 4; i < end; i += kThreads * 4) {
    const float4 x = load128<float4>(task.gradients + i);
    for (const double v : {double{x.x}, double{x.y}, double{x.z}, double{x.w}}) total += v * v;
  }
  total = block_sum(shared, total);
  if (threadIdx.x == 0) task.partials[blockIdx.x] = total;
}

MUSTER_KERNEL(kThreads)
void clip_factor_kernel(const ClipFactor task) {
  MUSTER_SHARED(double, shared, kThreads);
  double total = 0;
  for (uint64_t i = threadIdx.x; i * kSquaresEach < task.count; i += kThreads) total += task.partials[i];
  const double norm = sqrt(block_sum(shared, total));
  if (threadIdx.x == 0) *task.factor = norm > task.norm_max ? static_cast<float>(task.norm_max / norm) : 1.0f;
}

// Embeddings.

MUSTER_KERNEL(kThreads)
void embed_kernel(const Embed task) {
  const uint64_t i = thread_of_grid() * 4;
  if (i >= uint64_t{task.rows} * task.width) return;
  const auto row = static_cast<uint32_t>(i / task.width), column = static_cast<uint32_t>(i % task.width);
  const float* byte = task.bytes + uint64_t{task.inputs[row]} * task.width + column;
  const float* position = task.positions + uint64_t{row % task.length} * task.width + column;
  store128(task.out + i, load128<float4>(byte) + load128<float4>(position));
}

// A thread for each four elements of the table looks through all rows for its byte: no two threads add to the
// same element, and each adds in the order of rows.
MUSTER_KERNEL(kThreads)
void embed_bytes_backward_kernel(const EmbedBackward task) {
  const uint64_t i = thread_of_grid() * 4;
  if (i >= uint64_t{task.vocabulary} * task.width) return;
  const auto byte = static_cast<uint32_t>(i / task.width), column = static_cast<uint32_t>(i % task.width);
  float4 total{0, 0, 0, 0};
  for (uint32_t row = 0; row < task.rows; ++row) {
    if (task.inputs[row] == byte)
      total = total + load128<float4>(task.dout + uint64_t{row} * task.width + column);
  }
  store128(task.dbytes + i, total);
}

MUSTER_KERNEL(kThreads)
void embed_positions_backward_kernel(const EmbedBackward task) {
  const uint64_t i = thread_of_grid() * 4;
  if (i >= uint64_t{task.context} * task.width) return;
  const auto position = static_cast<uint32_t>(i / task.width), column = static_cast<uint32_t>(i % task.width);
  float4 total{0, 0, 0, 0};
  for (uint32_t row = position; row < task.rows && position < task.length; row += task.length)
    total = total + load128<float4>(task.dout + uint64_t{row} * task.width + column);
  store128(task.dpositions + i, total);
}

// launch_task(task, launch) calls launch(kernel, grid, task) for what a task needs, in this order on a
// stream. The shim and the CUDA launcher differ only in what `launch` does.

struct Grid {
  unsigned x, y = 1;
};

inline unsigned blocks_for(uint64_t items, uint64_t each) {
  return static_cast<unsigned>((items + each - 1) / each);
}
inline Grid warp_for_each(uint64_t rows) { return {blocks_for(rows, kWarps)}; }
inline Grid thread_for_four(uint64_t elements) { return {blocks_for(elements, uint64_t{kThreads} * 4)}; }
inline Grid lane_for_each(uint64_t columns) { return {blocks_for(columns, kWarp)}; }

inline bool aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }
template <typename T>
bool aligned(const Operand<T>& o) {
  return aligned(o.data) && o.stride % 4 == 0 && o.outer % 4 == 0 && o.inner % 4 == 0;
}

template <typename Launch>
void launch_task(Product task, Launch launch) {
  task.vector = aligned(task.left) && aligned(task.right) && aligned(task.out) && aligned(task.bias) &&
                aligned(task.added) && task.rows % 4 == 0 && task.columns % 4 == 0 && task.inner % 4 == 0;
  const Grid grid{blocks_for(task.columns, kTile) * task.batches, blocks_for(task.rows, kTile)};
  switch (task.form) {
    case Form::kPlain:
      return launch(&product_kernel<Form::kPlain>, grid, task);
    case Form::kLeftTransposed:
      return launch(&product_kernel<Form::kLeftTransposed>, grid, task);
    case Form::kRightTransposed:
      return launch(&product_kernel<Form::kRightTransposed>, grid, task);
  }
}
template <typename Launch>
void launch_task(const CausalSoftmax& task, Launch launch) {
  launch(&causal_softmax_kernel, warp_for_each(uint64_t{task.matrices} * task.length), task);
}
template <typename Launch>
void launch_task(const CausalSoftmaxBackward& task, Launch launch) {
  launch(&causal_softmax_backward_kernel, warp_for_each(uint64_t{task.matrices} * task.length), task);
}
template <typename Launch>
void launch_task(const Norm& task, Launch launch) {
  launch(&norm_kernel, warp_for_each(task.rows), task);
}
template <typename Launch>
void launch_task(const NormBackward& task, Launch launch) {
  launch(&norm_columns_kernel, lane_for_each(task.width), task);
  launch(&norm_backward_kernel, warp_for_each(task.rows), task);
}
template <typename Launch>
void launch_task(const ColumnSums& task, Launch launch) {
  launch(&column_sums_kernel, lane_for_each(task.width), task);
}
template <typename Launch>
void launch_task(const Gelu& task, Launch launch) {
  launch(&gelu_kernel, thread_for_four(task.count), task);
}
template <typename Launch>
void launch_task(const GeluBackward& task, Launch launch) {
  launch(&gelu_backward_kernel, thread_for_four(task.count), task);
}
template <typename Launch>
void launch_task(const CrossEntropy& task, Launch launch) {
  launch(&cross_entropy_kernel, warp_for_each(task.rows), task);
}
template <typename Launch>
void launch_task(const LossSum& task, Launch launch) {
  launch(&loss_sum_kernel, Grid{1}, task);
}
template <typename Launch>
void launch_task(const Fill& task, Launch launch) {
  launch(&fill_kernel, thread_for_four(task.count), task);
}
template <typename Launch>
void launch_task(const ClipFactor& task, Launch launch) {
  launch(&squares_kernel, Grid{blocks_for(task.count, kSquaresEach)}, task);
  launch(&clip_factor_kernel, Grid{1}, task);
}
template <typename Launch>
void launch_task(const AdamW& task, Launch launch) {
  launch(&adamw_kernel, thread_for_four(task.count), task);
}
template <typename Launch>
void launch_task(const Embed& task, Launch launch) {
  launch(&embed_kernel, thread_for_four(uint64_t{task.rows} * task.width), task);
}
template <typename Launch>
void launch_task(const EmbedBackward& task, Launch launch) {
  launch(&embed_bytes_backward_kernel, thread_for_four(uint64_t{task.vocabulary} * task.width), task);
  launch(&embed_positions_backward_kernel, thread_for_four(uint64_t{task.context} * task.width), task);
}

}  // namespace gpt::cuda
