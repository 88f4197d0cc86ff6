// One text, compiled for each instruction set by Highway's means, the best chosen at run time. The loops are
// plain, and the compiler makes vectors of them; Highway's own library, which a program may link in another
// version, is not needed for that.
#include "collectives/reduce.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "collectives/reduce.cpp"
// Three widths (SSE2, AVX2, AVX-512) are enough: what lies between adds code and no speed to loops of plain
// sums.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#include <hwy/foreach_target.h>  // first, and before highway.h

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "collectives/small_floats.h"
#include "runtime/base/check.h"
#include "runtime/base/float_mode.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

HWY_BEFORE_NAMESPACE();
namespace muster {
namespace HWY_NAMESPACE {
namespace {

// Elements at a time: small enough that accumulators stay in the first-level cache.
constexpr size_t kBlock = 512;
constexpr size_t kVector = 16;

// Users' pointers may have any alignment.
template <typename T>
struct __attribute__((packed)) Loose {
  T value;
};

template <typename T>
struct Wide {
  using type = T;
  static T load(T value) { return value; }
  static T store(T value) { return value; }
};
template <typename T, typename Wider>
struct WideInteger {
  using type = Wider;
  static Wider load(T value) { return value; }
  static T store(Wider value) { return static_cast<T>(value); }
};
template <>
struct Wide<int8_t> : WideInteger<int8_t, int32_t> {};
template <>
struct Wide<int16_t> : WideInteger<int16_t, int32_t> {};
template <>
struct Wide<uint8_t> : WideInteger<uint8_t, uint32_t> {};
template <>
struct Wide<uint16_t> : WideInteger<uint16_t, uint32_t> {};
template <typename T, T (*narrow)(float)>
struct WideFloat {
  using type = float;
  static float load(T value) { return widen(value); }
  static T store(float value) { return narrow(value); }
};
template <>
struct Wide<BFloat16> : WideFloat<BFloat16, narrow_bfloat16> {};
template <>
struct Wide<Float16> : WideFloat<Float16, narrow_float16> {};
template <>
struct Wide<Float8E4M3> : WideFloat<Float8E4M3, narrow_float8_e4m3> {};
template <>
struct Wide<Float8E5M2> : WideFloat<Float8E5M2, narrow_float8_e5m2> {};

template <typename T, bool = std::is_integral_v<T>>
struct Unsigned {
  using type = std::make_unsigned_t<T>;
};
template <typename T>
struct Unsigned<T, false> {
  using type = T;
};

// Through unsigned numbers, so that integers wrap.
struct Sum {
  template <typename T>
  static T apply(T a, T b) {
    using U = typename Unsigned<T>::type;
    return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
  }
};
struct Prod {
  template <typename T>
  static T apply(T a, T b) {
    using U = typename Unsigned<T>::type;
    return static_cast<T>(static_cast<U>(a) * static_cast<U>(b));
  }
};
struct Min {
  template <typename T>
  static T apply(T a, T b) {
    return (a < b || a != a) ? a : b;
  }
};
struct Max {
  template <typename T>
  static T apply(T a, T b) {
    return (a > b || a != a) ? a : b;
  }
};

template <typename T>
const Loose<T>* at(const std::byte* base, size_t index) {
  return reinterpret_cast<const Loose<T>*>(base) + index;
}

void stream(std::byte* target, const std::byte* source, size_t bytes) {
#if defined(__x86_64__)
  const size_t head = std::min(bytes, (kVector - reinterpret_cast<uintptr_t>(target) % kVector) % kVector);
  std::memcpy(target, source, head);
  size_t done = head;
  for (; done + kVector <= bytes; done += kVector)
    _mm_stream_si128(reinterpret_cast<__m128i*>(target + done),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + done)));
  std::memcpy(target + done, source + done, bytes - done);
#else
  std::memcpy(target, source, bytes);
#endif
}

void store_block(std::span<std::byte* const> targets, uint64_t streaming, size_t offset, const void* values,
                 size_t bytes) {
  for (size_t t = 0; t < targets.size(); ++t) {
    if (t < 64 && ((streaming >> t) & 1) != 0) {
      stream(targets[t] + offset, static_cast<const std::byte*>(values), bytes);
    } else {
      std::memcpy(targets[t] + offset, values, bytes);
    }
  }
}

template <typename T, typename Op>
void fold_block(const FoldTask& task, size_t begin, size_t count) {
  using Wider = Wide<T>;
  using W = typename Wider::type;
  alignas(64) W sums[kBlock];
  const Loose<T>* first = at<T>(task.sources[0], begin);
  const bool scales = task.op == ReduceOp::kPremulSum;
  const W factor = static_cast<W>(task.factor);
  size_t s = 1;
  if (scales) {
    for (size_t i = 0; i < count; ++i) sums[i] = Prod::apply(Wider::load(first[i].value), factor);
    for (; s < task.sources.size(); ++s) {
      const Loose<T>* source = at<T>(task.sources[s], begin);
      for (size_t i = 0; i < count; ++i)
        sums[i] = Op::apply(sums[i], Prod::apply(Wider::load(source[i].value), factor));
    }
  } else if (task.sources.size() == 1) {
    for (size_t i = 0; i < count; ++i) sums[i] = Wider::load(first[i].value);
  } else {
    const Loose<T>* second = at<T>(task.sources[1], begin);
    for (size_t i = 0; i < count; ++i)
      sums[i] = Op::apply(Wider::load(first[i].value), Wider::load(second[i].value));
    for (s = 2; s < task.sources.size(); ++s) {
      const Loose<T>* source = at<T>(task.sources[s], begin);
      for (size_t i = 0; i < count; ++i) sums[i] = Op::apply(sums[i], Wider::load(source[i].value));
    }
  }
  if (task.op == ReduceOp::kAvg && task.divisor != 0) {
    const auto by = static_cast<W>(task.divisor);
    for (size_t i = 0; i < count; ++i) sums[i] = sums[i] / by;
  }
  if constexpr (std::is_same_v<T, W>) {
    store_block(task.targets, task.streaming, begin * sizeof(T), sums, count * sizeof(T));
  } else {
    alignas(64) T narrow[kBlock];
    for (size_t i = 0; i < count; ++i) narrow[i] = Wider::store(sums[i]);
    store_block(task.targets, task.streaming, begin * sizeof(T), narrow, count * sizeof(T));
  }
}

template <typename T, typename Op>
void fold_all(const FoldTask& task) {
  for (size_t begin = 0; begin < task.count; begin += kBlock)
    fold_block<T, Op>(task, begin, std::min(kBlock, task.count - begin));
}

template <typename T>
void fold_as(const FoldTask& task) {
  switch (task.op) {
    case ReduceOp::kSum:
    case ReduceOp::kAvg:
    case ReduceOp::kPremulSum:
      return fold_all<T, Sum>(task);
    case ReduceOp::kMin:
      return fold_all<T, Min>(task);
    case ReduceOp::kMax:
      return fold_all<T, Max>(task);
    case ReduceOp::kProd:
      return fold_all<T, Prod>(task);
  }
}

// One block of the tree on a stack of accumulators. A leaf that is added at once is read where it lies.
void fold_tree_block(const CombinePlan& plan, float scale, std::span<std::byte* const> targets,
                     uint64_t streaming, std::span<const std::byte* const> leaves, size_t begin, size_t count,
                     float* stack) {
  size_t depth = 0;
  for (size_t s = 0; s < plan.steps.size(); ++s) {
    const int step = plan.steps[s];
    if (step == kAdd) {
      --depth;
      float* left = stack + (depth - 1) * kBlock;
      const float* right = stack + depth * kBlock;
      for (size_t i = 0; i < count; ++i) left[i] += right[i];
    } else if (depth > 0 && s + 1 < plan.steps.size() && plan.steps[s + 1] == kAdd) {
      float* left = stack + (depth - 1) * kBlock;
      const Loose<float>* right = at<float>(leaves[static_cast<size_t>(step)], begin);
      for (size_t i = 0; i < count; ++i) left[i] += right[i].value;
      ++s;
    } else {
      std::memcpy(stack + depth++ * kBlock, at<float>(leaves[static_cast<size_t>(step)], begin),
                  count * sizeof(float));
    }
  }
  for (size_t i = 0; i < count; ++i) stack[i] = scale * stack[i];
  store_block(targets, streaming, begin * sizeof(float), stack, count * sizeof(float));
}

}  // namespace

void fold_for_target(const FoldTask& task) {
  switch (task.dtype) {
    case DType::kFloat32:
      return fold_as<float>(task);
    case DType::kFloat64:
      return fold_as<double>(task);
    case DType::kBFloat16:
      return fold_as<BFloat16>(task);
    case DType::kFloat16:
      return fold_as<Float16>(task);
    case DType::kInt8:
      return fold_as<int8_t>(task);
    case DType::kUInt8:
      return fold_as<uint8_t>(task);
    case DType::kInt16:
      return fold_as<int16_t>(task);
    case DType::kUInt16:
      return fold_as<uint16_t>(task);
    case DType::kInt32:
      return fold_as<int32_t>(task);
    case DType::kUInt32:
      return fold_as<uint32_t>(task);
    case DType::kInt64:
      return fold_as<int64_t>(task);
    case DType::kUInt64:
      return fold_as<uint64_t>(task);
    case DType::kFloat8E4M3:
      return fold_as<Float8E4M3>(task);
    case DType::kFloat8E5M2:
      return fold_as<Float8E5M2>(task);
  }
}

void fold_tree_for_target(const CombinePlan& plan, float scale, std::span<std::byte* const> targets,
                          uint64_t streaming, std::span<const std::byte* const> leaves, size_t count) {
  constexpr size_t kOnStack = 4;
  alignas(64) float few[kOnStack * kBlock];
  std::vector<float> many;
  float* stack = few;
  if (static_cast<size_t>(plan.stack_depth) > kOnStack) {
    many.resize(static_cast<size_t>(plan.stack_depth) * kBlock);
    stack = many.data();
  }
  for (size_t begin = 0; begin < count; begin += kBlock)
    fold_tree_block(plan, scale, targets, streaming, leaves, begin, std::min(kBlock, count - begin), stack);
}

void stream_for_target(std::byte* target, const std::byte* source, size_t bytes) {
  stream(target, source, bytes);
}

}  // namespace HWY_NAMESPACE
}  // namespace muster
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace muster {
namespace {

struct Loops {
  decltype(&HWY_NAMESPACE::fold_for_target) fold;
  decltype(&HWY_NAMESPACE::fold_tree_for_target) fold_tree;
};

Loops best_loops() {
#if defined(__x86_64__) && (HWY_TARGETS & HWY_AVX3)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma"))
    return {N_AVX3::fold_for_target, N_AVX3::fold_tree_for_target};
#endif
#if defined(__x86_64__) && (HWY_TARGETS & HWY_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
      __builtin_cpu_supports("fma"))
    return {N_AVX2::fold_for_target, N_AVX2::fold_tree_for_target};
#endif
  return {HWY_NAMESPACE::fold_for_target, HWY_NAMESPACE::fold_tree_for_target};
}

const Loops& loops() {
  static const Loops chosen = best_loops();
  return chosen;
}

}  // namespace

std::string_view to_string(ReduceOp op) {
  static constexpr std::string_view kNames[kReduceOpCount] = {"sum", "min",  "max",
                                                              "avg", "prod", "premul_sum"};
  const auto index = static_cast<size_t>(op);
  return index < kReduceOpCount ? kNames[index] : "unknown operator";
}

void fold(const FoldTask& task) {
  if (task.count == 0) return;
  const bool changes = (task.op == ReduceOp::kAvg && task.divisor != 0) || task.op == ReduceOp::kPremulSum;
  if (task.sources.size() == 1 && !changes && task.streaming == 0) {
    for (std::byte* target : task.targets)
      if (target != task.sources[0]) std::memmove(target, task.sources[0], task.count * size_of(task.dtype));
    return;
  }
  const DefaultFloatMode mode;
  loops().fold(task);
  if (task.streaming != 0) end_streaming();
}

void fold(DType dtype, ReduceOp op, std::byte* target, std::span<const std::byte* const> sources,
          size_t count, int divisor, double factor) {
  fold({dtype, op, {&target, 1}, sources, count, divisor, factor, 0});
}

void fold_tree(const CombinePlan& plan, float scale, std::span<std::byte* const> targets, uint64_t streaming,
               std::span<const std::byte* const> leaves, size_t count) {
  MUSTER_CHECK(leaves.size() == static_cast<size_t>(plan.leaves),
               "fold_tree() with another number of leaves");
  const DefaultFloatMode mode;
  loops().fold_tree(plan, scale, targets, streaming, leaves, count);
  if (streaming != 0) end_streaming();
}

void copy_streaming(std::byte* target, const std::byte* source, size_t bytes) {
  HWY_NAMESPACE::stream_for_target(target, source, bytes);
}

void end_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace muster
#endif
