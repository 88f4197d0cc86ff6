// What the CUDA kernels of the model can be asked for: one task for each of the functions of kernels.h, and
// a way to put it on a stream. No CUDA header is needed here.
//
// All pointers are device memory, aligned to 16 bytes unless said otherwise, row-major without gaps; `rows`
// is sequences times length, `width` a multiple of 8. Each result is a bit-exact function of the values and
// shapes: grids follow from shapes only, never from the device, and every sum has one order.
#pragma once

#include <cstdint>

#include "examples/gpt/kernels.h"

namespace gpt::cuda {

// out[r] = embedding of byte inputs[r] + embedding of position r % length. inputs: any alignment.
struct Embed {
  const uint8_t* inputs;
  const float *bytes, *positions;
  float* out;
  uint32_t rows, width, length;
};

// Sets the gradients of both tables, rows that no input names to zero.
struct EmbedBackward {
  const uint8_t* inputs;
  const float* dout;
  float *dbytes, *dpositions;
  uint32_t rows, width, length;
  uint32_t vocabulary, context;  // rows of the tables
};

struct Norm {
  const float *x, *gain, *bias;
  float *out, *mean, *inverse;
  uint32_t rows, width;
};

// Sets dgain and dbias; sets dx, or adds to it.
struct NormBackward {
  const float *x, *gain, *mean, *inverse, *dout;
  float *dx, *dgain, *dbias;
  uint32_t rows, width;
  bool adds;
};

// out[c] = the sum of column c.
struct ColumnSums {
  const float* x;
  float* out;
  uint32_t rows, width;
};

enum class Form : uint8_t { kPlain, kLeftTransposed, kRightTransposed };

// Which part of a batch of products of [length, length] matrices counts, where a position sees only what came
// before it.
enum class Causal : uint8_t {
  kNone,
  kOutput,     // out[t][s] for s <= t; the rest may stay as it was
  kInnerUpTo,  // left[t][s] is zero for s > t
  kInnerFrom,  // left, which is transposed, is: out[s] takes t >= s only
};

// An operand: row r begins at data + r * stride. Batch number z is `outer` elements further for each whole
// `group` of z, and `inner` for each in the group. Any alignment.
template <typename T>
struct Operand {
  T* data;
  uint64_t stride;
  uint64_t outer = 0, inner = 0;
};

// out = left · right, or leftᵀ · right, or left · rightᵀ; + bias in each row, + added, which is as out and
// may be out. [rows, inner] · [inner, columns].
struct Product {
  Form form;
  uint32_t rows, columns, inner;
  Operand<const float> left, right;
  Operand<float> out;
  const float* bias = nullptr;
  const float* added = nullptr;
  uint32_t batches = 1, group = 1;
  Causal causal = Causal::kNone;
  bool vector = false;  // set at the launch: all may be loaded in 128 bits
};

// Row t of each [length, length] matrix: softmax of factor * scores over 0…t, zero after them, in place.
struct CausalSoftmax {
  float* scores;
  uint32_t matrices, length;
  float factor;
};

// dscores from dweights, in place; dweights after the diagonal is not read.
struct CausalSoftmaxBackward {
  const float* weights;
  float* dweights;
  uint32_t matrices, length;
  float factor;
};

struct Gelu {
  const float* x;
  float* out;
  uint64_t count;  // a multiple of 4
};
struct GeluBackward {  // dx may be dout
  const float *x, *dout;
  float* dx;
  uint64_t count;  // a multiple of 4
};

// The cross entropy in nats of each row of 256 logits; with `gradient` logits become their gradient of the
// mean. targets: any alignment.
struct CrossEntropy {
  float* logits;
  const uint8_t* targets;
  double* losses;  // [rows]
  uint32_t rows;
  bool gradient;
};
struct LossSum {
  const double* losses;
  double* sum;
  float* mean;  // null: not wanted
  uint32_t rows;
};

struct Fill {
  float* out;
  uint64_t count;
  float value;
};

// The factor that clips a gradient to norm_max: 1 where it is short enough.
constexpr uint64_t kSquaresEach = 8192;  // elements of a partial sum
struct ClipFactor {
  const float* gradients;
  uint64_t count;    // a multiple of 4
  double* partials;  // scratch, one for each kSquaresEach elements begun
  float* factor;
  double norm_max;
};

// The update of adamw_each() for one tensor; gradients are multiplied by *factor first.
struct AdamW {
  float *weights, *m, *v;
  const float *gradients, *factor;
  uint64_t count;          // a multiple of 4
  AdamWCoefficients with;  // its gradient_scale is not used: *factor is
};

// Enqueues on `stream`, a cudaStream_t. Returns a cudaError_t, of the launches only.
int enqueue(const Embed& task, void* stream);
int enqueue(const EmbedBackward& task, void* stream);
int enqueue(const Norm& task, void* stream);
int enqueue(const NormBackward& task, void* stream);
int enqueue(const ColumnSums& task, void* stream);
int enqueue(const Product& task, void* stream);
int enqueue(const CausalSoftmax& task, void* stream);
int enqueue(const CausalSoftmaxBackward& task, void* stream);
int enqueue(const Gelu& task, void* stream);
int enqueue(const GeluBackward& task, void* stream);
int enqueue(const CrossEntropy& task, void* stream);
int enqueue(const LossSum& task, void* stream);
int enqueue(const Fill& task, void* stream);
int enqueue(const ClipFactor& task, void* stream);
int enqueue(const AdamW& task, void* stream);

}  // namespace gpt::cuda
