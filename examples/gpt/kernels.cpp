// See kernels.h. Vectors of eight lanes are written out (the compiler's vector extension), so that a sum has
// one order at every optimisation level and on every target; elsewhere plain loops are enough, because an
// operation on one element has the same bits however many are done at once.
#include "examples/gpt/kernels.h"

#include <bit>
#include <cmath>
#include <cstring>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace gpt {
namespace {

using Lanes = float __attribute__((vector_size(32)));
using Words = uint32_t __attribute__((vector_size(32)));
static_assert(sizeof(Lanes) == kLanes * sizeof(float));

inline Lanes load(const float* from) {
  Lanes value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline void store(float* to, Lanes value) { std::memcpy(to, &value, sizeof(value)); }

inline Lanes all(float value) { return Lanes{} + value; }

inline float sum(Lanes v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

inline float largest(Lanes v) {
  float result = v[0];
  for (size_t i = 1; i < kLanes; ++i) result = v[i] > result ? v[i] : result;
  return result;
}

// e^x = 2^n e^r with n the integer nearest to x / ln 2, |r| <= ln 2 / 2, and e^r by its Taylor series to the
// seventh power, whose remainder is below 6e-9. Adding 1.5 * 2^23 rounds to an integer and leaves it in the
// low bits of the sum; ln 2 is in two parts, so that n * ln 2 loses nothing.
inline Lanes exp_lanes(Lanes x) {
  constexpr float kRounder = 12582912.0f;
  x = x < -87.0f ? all(-87.0f) : x;
  x = x > 88.0f ? all(88.0f) : x;
  const Lanes shifted = x * 1.44269504088896341f + kRounder;
  const Lanes n = shifted - kRounder;
  const Lanes r = (x - n * 0.693359375f) + n * 2.12194440054690583e-4f;
  Lanes p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  const Words power = (std::bit_cast<Words>(shifted) << 23) + 0x3f800000u;
  return p * std::bit_cast<Lanes>(power);
}

inline Lanes sigmoid_lanes(Lanes x) { return 1.0f / (1.0f + exp_lanes(-x)); }

// Runs `f` on blocks of eight; the last block is padded with zeros.
template <typename F>
void each(const float* x, float* out, size_t count, F f) {
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, f(load(x + i)));
  if (i == count) return;
  float block[kLanes] = {};
  std::memcpy(block, x + i, (count - i) * sizeof(float));
  store(block, f(load(block)));
  std::memcpy(out + i, block, (count - i) * sizeof(float));
}

// e^(x - max) over `count` floats, a multiple of eight; returns the sum and the maximum.
struct Exponentials {
  float sum, max;
};
Exponentials exponentials(float* x, size_t count) {
  Lanes top = load(x);
  for (size_t i = kLanes; i < count; i += kLanes) top = load(x + i) > top ? load(x + i) : top;
  const float max = largest(top);
  Lanes total{};
  for (size_t i = 0; i < count; i += kLanes) {
    const Lanes e = exp_lanes(load(x + i) - max);
    store(x + i, e);
    total += e;
  }
  return {sum(total), max};
}

void scale(float* x, float factor, size_t count) {
  for (size_t i = 0; i < count; ++i) x[i] *= factor;
}

size_t rounded_up(size_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// Row t of the scores attends to 0…t: softmax over those, zero after them.
void causal_softmax(float* scores, size_t length, float factor) {
  constexpr float kMasked = -1e30f;
  for (size_t t = 0; t < length; ++t) {
    float* row = scores + t * length;
    const size_t seen = t + 1, block = rounded_up(seen);
    scale(row, factor, block);
    for (size_t i = seen; i < block; ++i) row[i] = kMasked;
    // A masked score contributes e^-87 to the sum, which is less than half a unit in its last place.
    const float inverse = 1.0f / exponentials(row, block).sum;
    scale(row, inverse, seen);
    for (size_t i = seen; i < length; ++i) row[i] = 0;
  }
}

// dscores = weights * (dweights - sum(weights * dweights)) * factor, in place of dweights.
void softmax_backward(const float* weights, float* dweights, size_t length, float factor) {
  for (size_t t = 0; t < length; ++t) {
    const float* w = weights + t * length;
    float* d = dweights + t * length;
    const size_t block = rounded_up(t + 1);
    Lanes total{};
    for (size_t i = 0; i < block; i += kLanes) total += load(w + i) * load(d + i);
    const float mean = sum(total);
    for (size_t i = 0; i < block; ++i) d[i] = w[i] * (d[i] - mean) * factor;
    for (size_t i = block; i < length; ++i) d[i] = 0;
  }
}

struct HeadViews {
  size_t query, key, value, size;  // offsets into a row of qkv
};
HeadViews head_views(const AttentionShape& shape, size_t head) {
  const size_t size = shape.width / shape.heads;
  return {head * size, shape.width + head * size, 2 * shape.width + head * size, size};
}

}  // namespace

#if defined(__SSE__)
FixedFloatMode::FixedFloatMode() : saved_(_mm_getcsr()) {
  constexpr uint32_t kNoTrapsNearest = 0x1f80, kFlushToZero = 0x8000, kSubnormalsAreZero = 0x0040;
  _mm_setcsr(kNoTrapsNearest | kFlushToZero | kSubnormalsAreZero);
}
FixedFloatMode::~FixedFloatMode() { _mm_setcsr(saved_); }
#else
FixedFloatMode::FixedFloatMode() {}
FixedFloatMode::~FixedFloatMode() {}
#endif

void exp_each(const float* x, float* out, size_t count) { each(x, out, count, exp_lanes); }

void tanh_each(const float* x, float* out, size_t count) {
  each(x, out, count, [](Lanes v) { return 2.0f * sigmoid_lanes(2.0f * v) - 1.0f; });
}

// x = m 2^e with m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh((m - 1) / (m + 1)), |argument| < 0.172.
double log_of(double x) {
  const auto bits = std::bit_cast<uint64_t>(x);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0x000fffffffffffffULL) | 0x3ff0000000000000ULL);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++exponent;
  }
  const double z = (m - 1) / (m + 1), zz = z * z;
  double series = 0;
  for (int k = 21; k >= 1; k -= 2) series = series * zz + 1.0 / k;
  return exponent * 0.6931471805599453 + 2 * z * series;
}

// cos(pi x) = sin(pi (1/2 - x)), by the Taylor series on [-pi/2, pi/2].
double cos_pi(double x) {
  const double y = 3.141592653589793 * (0.5 - x), yy = y * y;
  double series = 1;
  for (int k = 20; k >= 2; k -= 2) series = 1 - series * yy / (k * (k + 1));
  return y * series;
}

void fill_rows(const float* row, float* out, size_t rows, size_t width) {
  for (size_t r = 0; r < rows; ++r) std::memcpy(out + r * width, row, width * sizeof(float));
}

void sum_rows(const float* x, float* out, size_t rows, size_t width) {
  for (size_t c = 0; c < width; c += kLanes) {
    Lanes total{};
    for (size_t r = 0; r < rows; ++r) total += load(x + r * width + c);
    store(out + c, total);
  }
}

void add_to(float* out, const float* x, size_t count) {
  for (size_t i = 0; i < count; ++i) out[i] += x[i];
}

void layer_norm(const float* x, const float* gain, const float* bias, float* out, float* mean, float* inverse,
                size_t rows, size_t width) {
  constexpr float kEpsilon = 1e-5f;
  const float share = 1.0f / static_cast<float>(width);
  for (size_t r = 0; r < rows; ++r) {
    const float* in = x + r * width;
    Lanes total{}, squares{};
    for (size_t c = 0; c < width; c += kLanes) total += load(in + c);
    const float m = sum(total) * share;
    for (size_t c = 0; c < width; c += kLanes) squares += (load(in + c) - m) * (load(in + c) - m);
    const float s = 1.0f / std::sqrt(sum(squares) * share + kEpsilon);
    for (size_t c = 0; c < width; c += kLanes)
      store(out + r * width + c, (load(in + c) - m) * s * load(gain + c) + load(bias + c));
    mean[r] = m;
    inverse[r] = s;
  }
}

void layer_norm_backward(const float* x, const float* gain, const float* mean, const float* inverse,
                         const float* dout, float* dx, float* dgain, float* dbias, size_t rows,
                         size_t width) {
  const float share = 1.0f / static_cast<float>(width);
  std::memset(dgain, 0, width * sizeof(float));
  std::memset(dbias, 0, width * sizeof(float));
  for (size_t r = 0; r < rows; ++r) {
    const float* in = x + r * width;
    const float* d = dout + r * width;
    const float m = mean[r], s = inverse[r];
    Lanes total{}, projected{};
    for (size_t c = 0; c < width; c += kLanes) {
      const Lanes normal = (load(in + c) - m) * s, dn = load(d + c) * load(gain + c);
      total += dn;
      projected += dn * normal;
      store(dgain + c, load(dgain + c) + load(d + c) * normal);
      store(dbias + c, load(dbias + c) + load(d + c));
    }
    const float a = sum(total) * share, b = sum(projected) * share;
    for (size_t c = 0; c < width; c += kLanes) {
      const Lanes normal = (load(in + c) - m) * s, dn = load(d + c) * load(gain + c);
      store(dx + r * width + c, load(dx + r * width + c) + (dn - a - normal * b) * s);
    }
  }
}

// 0.5 x (1 + tanh u) = x sigmoid(2 u), with u = sqrt(2 / pi) (x + 0.044715 x^3).
constexpr float kGeluLinear = 2 * 0.7978845608028654f, kGeluCubic = kGeluLinear * 0.044715f;

void gelu(const float* x, float* out, size_t count) {
  each(x, out, count, [](Lanes v) { return v * sigmoid_lanes(v * (kGeluLinear + kGeluCubic * v * v)); });
}

void gelu_backward(const float* x, const float* dout, float* dx, size_t count) {
  for (size_t i = 0; i < count; i += kLanes) {
    const Lanes v = load(x + i);
    const Lanes s = sigmoid_lanes(v * (kGeluLinear + kGeluCubic * v * v));
    const Lanes slope = s + v * s * (1.0f - s) * (kGeluLinear + 3 * kGeluCubic * v * v);
    store(dx + i, load(dout + i) * slope);
  }
}

void attention(const AttentionShape& shape, const float* qkv, float* weights, float* out) {
  const size_t length = shape.length, stride = 3 * shape.width;
  const float factor = 1.0f / std::sqrt(static_cast<float>(shape.width / shape.heads));
  for (size_t s = 0; s < shape.sequences; ++s) {
    for (size_t h = 0; h < shape.heads; ++h) {
      const float* in = qkv + s * length * stride;
      const HeadViews at = head_views(shape, h);
      float* w = weights + (s * shape.heads + h) * length * length;
      const Matrix scores{w, length, length, length};
      multiply_bt({in + at.query, length, at.size, stride}, {in + at.key, length, at.size, stride}, scores);
      causal_softmax(w, length, factor);
      multiply(scores, {in + at.value, length, at.size, stride},
               {out + s * length * shape.width + h * at.size, length, at.size, shape.width});
    }
  }
}

void attention_backward(const AttentionShape& shape, const float* qkv, const float* weights,
                        const float* dout, float* dqkv, float* scratch) {
  const size_t length = shape.length, stride = 3 * shape.width;
  const float factor = 1.0f / std::sqrt(static_cast<float>(shape.width / shape.heads));
  for (size_t s = 0; s < shape.sequences; ++s) {
    for (size_t h = 0; h < shape.heads; ++h) {
      const HeadViews at = head_views(shape, h);
      const float* in = qkv + s * length * stride;
      float* din = dqkv + s * length * stride;
      const float* w = weights + (s * shape.heads + h) * length * length;
      const ConstMatrix attended{w, length, length, length};
      const ConstMatrix d{dout + s * length * shape.width + h * at.size, length, at.size, shape.width};
      const Matrix dscores{scratch, length, length, length};
      multiply_at(attended, d, {din + at.value, length, at.size, stride});
      multiply_bt(d, {in + at.value, length, at.size, stride}, dscores);
      softmax_backward(w, scratch, length, factor);
      multiply(dscores, {in + at.key, length, at.size, stride}, {din + at.query, length, at.size, stride});
      multiply_at(dscores, {in + at.query, length, at.size, stride}, {din + at.key, length, at.size, stride});
    }
  }
}

double cross_entropy_backward(float* logits, const uint8_t* targets, size_t rows, size_t vocabulary) {
  const float share = 1.0f / static_cast<float>(rows);
  double total = 0;
  for (size_t r = 0; r < rows; ++r) {
    float* row = logits + r * vocabulary;
    const float target = row[targets[r]];
    const Exponentials e = exponentials(row, vocabulary);
    total += log_of(e.sum) + e.max - target;
    scale(row, share / e.sum, vocabulary);
    row[targets[r]] -= share;
  }
  return total / static_cast<double>(rows);
}

double cross_entropy_sum(float* logits, const uint8_t* targets, size_t rows, size_t vocabulary) {
  double total = 0;
  for (size_t r = 0; r < rows; ++r) {
    float* row = logits + r * vocabulary;
    const float target = row[targets[r]];
    const Exponentials e = exponentials(row, vocabulary);
    total += log_of(e.sum) + e.max - target;
  }
  return total;
}

void adamw_each(const AdamWCoefficients& c, float* weights, const float* gradients, float* m, float* v,
                size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const float g = gradients[i] * c.gradient_scale;
    m[i] = c.beta1 * m[i] + (1.0f - c.beta1) * g;
    v[i] = c.beta2 * v[i] + (1.0f - c.beta2) * (g * g);
    const float update = (m[i] * c.correction1) / (std::sqrt(v[i] * c.correction2) + c.epsilon);
    weights[i] -= c.decay * weights[i] + c.learning_rate * update;
  }
}

double sum_of_squares(const float* x, size_t count) {
  constexpr size_t kSums = 8;
  double sums[kSums] = {};
  for (size_t i = 0; i < count; ++i) {
    const double value = x[i];
    sums[i % kSums] += value * value;
  }
  double total = 0;
  for (double part : sums) total += part;
  return total;
}

}  // namespace gpt
