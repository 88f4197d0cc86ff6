#include "runtime/probe/host_probe.h"

#include <cmath>
#include <limits>
#include <vector>

#include "runtime/base/digest.h"
#include "runtime/base/random.h"

namespace muster::probe {
namespace {

constexpr size_t kInputs = 2000;

// Magnitudes from 2^-8 to 2^8, of both signs. They come from a generator at run time, so that no compiler
// computes the results.
template <typename Float>
std::vector<Float> inputs(uint64_t seed) {
  SeededRandom random(seed);
  std::vector<Float> values(kInputs);
  for (Float& value : values) {
    const double magnitude = std::ldexp(1 + random.uniform(), static_cast<int>(random.below(16)) - 8);
    value = static_cast<Float>(random.chance(0.5) ? magnitude : -magnitude);
  }
  return values;
}

template <typename Float>
class Results {
 public:
  void add(Float value) { values_.push_back(value); }
  uint64_t digest() const { return digest_of(std::as_bytes(std::span(values_))).low; }

 private:
  std::vector<Float> values_;
};

// Halves and other parts of the last place, of both signs: each rounding mode makes something else of them.
uint64_t rounding() {
  Results<double> results;
  const auto values = inputs<double>(1);
  constexpr double kLastPlace = std::numeric_limits<double>::epsilon();
  for (const double value : values)
    for (const double part : {0.5, 0.25, 0.75})
      results.add(value + std::ldexp(std::abs(value), -1) * part * kLastPlace);
  return results.digest();
}

template <typename Float>
void add_denormals(Results<double>& results, uint64_t seed) {
  constexpr Float kSmallest = std::numeric_limits<Float>::min();
  const auto values = inputs<Float>(seed);
  for (const Float value : values) {
    const Float small = value * kSmallest / 1024;   // is flushed as a result,
    results.add(static_cast<double>(small * 512));  // or taken for zero as an operand
  }
}

uint64_t denormals() {
  Results<double> results;
  add_denormals<float>(results, 2);
  add_denormals<double>(results, 3);
  return results.digest();
}

template <typename Float>
uint64_t arithmetic(uint64_t seed) {
  Results<Float> results;
  const auto a = inputs<Float>(seed);
  const auto b = inputs<Float>(seed + 1);
  for (size_t i = 0; i < kInputs; ++i) {
    for (const Float result : {a[i] + b[i], a[i] - b[i], a[i] * b[i], a[i] / b[i], std::sqrt(std::abs(a[i]))})
      results.add(result);
  }
  return results.digest();
}

uint64_t fused() {
  Results<double> results;
  const auto a = inputs<double>(30);
  const auto b = inputs<double>(31);
  const auto c = inputs<double>(32);
  for (size_t i = 0; i < kInputs; ++i) {
    results.add(std::fma(a[i], b[i], c[i]));
    results.add(static_cast<double>(
        std::fma(static_cast<float>(a[i]), static_cast<float>(b[i]), static_cast<float>(c[i]))));
  }
  return results.digest();
}

template <typename Float>
uint64_t functions(uint64_t seed) {
  Results<Float> results;
  const auto values = inputs<Float>(seed);
  for (size_t i = 0; i < kInputs; ++i) {
    const Float x = values[i];
    const Float positive = std::abs(x);
    const Float small = x / 16;  // no overflow
    for (const Float result : {std::exp(small), std::log(positive), std::sin(x), std::cos(x),
                               std::tanh(small), std::pow(positive, small), std::erf(small)})
      results.add(result);
  }
  return results.digest();
}

}  // namespace

const char* name_of(Part part) {
  static constexpr const char* kNames[kParts] = {"rounding",
                                                 "denormals",
                                                 "float32 arithmetic",
                                                 "float64 arithmetic",
                                                 "fused multiply-add",
                                                 "float32 functions of the C library",
                                                 "float64 functions of the C library"};
  return kNames[static_cast<size_t>(part)];
}

HostProbe probe_host() {
  return {rounding(), denormals(),          arithmetic<float>(10), arithmetic<double>(20),
          fused(),    functions<float>(40), functions<double>(50)};
}

}  // namespace muster::probe
