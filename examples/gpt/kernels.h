// The arithmetic of the model: matrix products, layer norm, GELU, attention, cross entropy.
//
// What always holds here, and why it matters: each result is a bit-exact function of the argument values and
// shapes. It depends neither on the addresses of the buffers, nor on what was computed before, nor on the
// host's libm (libm picks its routines by processor, so its last bit differs between hosts), nor on the sizes
// of its caches. Reductions add in one fixed order. All functions run on the calling thread and allocate
// nothing that lasts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gpt {

// Row-major; row r begins at data + r * stride. The caller owns the memory; any alignment will do.
struct ConstMatrix {
  const float* data;
  size_t rows, columns, stride;
};
struct Matrix {
  float* data;
  size_t rows, columns, stride;
  operator ConstMatrix() const { return {data, rows, columns, stride}; }
};

enum class Store { kSet, kAdd };

// out = a·b, out = aᵀ·b, out = a·bᵀ (or += with kAdd). `out` overlaps neither a nor b.
void multiply(ConstMatrix a, ConstMatrix b, Matrix out, Store store = Store::kSet);
void multiply_at(ConstMatrix a, ConstMatrix b, Matrix out, Store store = Store::kSet);
void multiply_bt(ConstMatrix a, ConstMatrix b, Matrix out, Store store = Store::kSet);

// Subnormal numbers are taken as zero and rounding is to nearest while this lives, whatever the program set
// before: another library that changes these flags would change the gradient's bits.
class FixedFloatMode {
 public:
  FixedFloatMode();
  ~FixedFloatMode();
  FixedFloatMode(const FixedFloatMode&) = delete;
  FixedFloatMode& operator=(const FixedFloatMode&) = delete;

 private:
  uint32_t saved_ = 0;
};

// e^x for each element, relative error below 2e-7 (3 units in the last place). Arguments are clamped to
// [-87, 88]; NaN stays NaN.
void exp_each(const float* x, float* out, size_t count);
// tanh(x) for each element, absolute error below 2e-7.
void tanh_each(const float* x, float* out, size_t count);
// ln(x) of a positive normal number, relative error below 1e-15.
double log_of(double x);
// cos(pi * x) for x in [0, 1], error below 1e-15.
double cos_pi(double x);

// In all that follows `width` and `length` are multiples of 8 (kLanes).
constexpr size_t kLanes = 8;

// Each of `rows` rows of `out` becomes `row` (a bias before a product is added to it).
void fill_rows(const float* row, float* out, size_t rows, size_t width);
// out[c] = sum over rows of x[r][c], in order of r.
void sum_rows(const float* x, float* out, size_t rows, size_t width);
void add_to(float* out, const float* x, size_t count);

// out = (x - mean) / deviation * gain + bias, for each row; the means and inverse deviations are kept.
void layer_norm(const float* x, const float* gain, const float* bias, float* out, float* mean, float* inverse,
                size_t rows, size_t width);
// Adds to dx; sets dgain and dbias.
void layer_norm_backward(const float* x, const float* gain, const float* mean, const float* inverse,
                         const float* dout, float* dx, float* dgain, float* dbias, size_t rows, size_t width);

// GELU with the usual tanh form (Hendrycks and Gimpel 2016, section 2).
void gelu(const float* x, float* out, size_t count);
// dx = dout * gelu'(x); dx may be dout.
void gelu_backward(const float* x, const float* dout, float* dx, size_t count);

// Causal attention of all heads over `sequences` runs of `length` rows.
// qkv: [rows, 3 width], queries then keys then values; weights: [sequences, heads, length, length], kept for
// the backward pass; out: [rows, width]. `scratch`: length * length floats.
struct AttentionShape {
  size_t sequences, length, width, heads;
};
void attention(const AttentionShape& shape, const float* qkv, float* weights, float* out);
void attention_backward(const AttentionShape& shape, const float* qkv, const float* weights,
                        const float* dout, float* dqkv, float* scratch);

// Turns each row of logits into its gradient of the mean cross entropy over all rows, (softmax - target) /
// rows, and returns that mean in nats.
double cross_entropy_backward(float* logits, const uint8_t* targets, size_t rows, size_t vocabulary);
// The sum over rows of the cross entropy in nats; logits are overwritten.
double cross_entropy_sum(float* logits, const uint8_t* targets, size_t rows, size_t vocabulary);

// One AdamW update (Loshchilov and Hutter 2019) of `count` elements.
struct AdamWCoefficients {
  float learning_rate, beta1, beta2, epsilon, decay;  // decay: weight decay, already times learning_rate
  float correction1, correction2;                     // 1 / (1 - beta^step)
  float gradient_scale;                               // multiplies each gradient first: clipping
};
void adamw_each(const AdamWCoefficients& c, float* weights, const float* gradients, float* m, float* v,
                size_t count);
// The sum of squares, in double, in a fixed order.
double sum_of_squares(const float* x, size_t count);

}  // namespace gpt
