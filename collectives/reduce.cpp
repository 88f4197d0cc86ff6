#include "collectives/reduce.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>
#include <vector>

#include "runtime/base/check.h"

namespace muster {
namespace {

// Elements at a time: small enough that accumulators stay in the first-level cache.
constexpr size_t kBlock = 512;

struct BFloat16 {
  uint16_t bits;
};

// Users' pointers may have any alignment.
template <typename T>
struct __attribute__((packed)) Loose {
  T value;
};

inline float widen(BFloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
inline BFloat16 narrow(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40U;
  return {static_cast<uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? quiet_nan : rounded)};
}

template <typename T>
struct Wide {
  using type = T;
  static T load(T value) { return value; }
  static T store(T value) { return value; }
};
template <>
struct Wide<BFloat16> {
  using type = float;
  static float load(BFloat16 value) { return widen(value); }
  static BFloat16 store(float value) { return narrow(value); }
};

struct Sum {
  template <typename T>
  static T apply(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      using Unsigned = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
    } else {
      return a + b;
    }
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

template <typename T, typename Op>
void fold_block(std::byte* target, std::span<const std::byte* const> sources, size_t begin, size_t count,
                int divisor) {
  using Wider = Wide<T>;
  typename Wider::type sums[kBlock];
  const Loose<T>* first = at<T>(sources[0], begin);
  for (size_t i = 0; i < count; ++i) sums[i] = Wider::load(first[i].value);
  for (size_t s = 1; s < sources.size(); ++s) {
    const Loose<T>* source = at<T>(sources[s], begin);
    for (size_t i = 0; i < count; ++i) sums[i] = Op::apply(sums[i], Wider::load(source[i].value));
  }
  if (divisor != 0) {
    const auto by = static_cast<typename Wider::type>(divisor);
    for (size_t i = 0; i < count; ++i) sums[i] = sums[i] / by;
  }
  Loose<T>* out = reinterpret_cast<Loose<T>*>(target) + begin;
  for (size_t i = 0; i < count; ++i) out[i].value = Wider::store(sums[i]);
}

template <typename T, typename Op>
void fold_all(std::byte* target, std::span<const std::byte* const> sources, size_t count, int divisor) {
  for (size_t begin = 0; begin < count; begin += kBlock)
    fold_block<T, Op>(target, sources, begin, std::min(kBlock, count - begin), divisor);
}

template <typename T>
void fold_as(ReduceOp op, std::byte* target, std::span<const std::byte* const> sources, size_t count,
             int divisor) {
  switch (op) {
    case ReduceOp::kSum:
      return fold_all<T, Sum>(target, sources, count, 0);
    case ReduceOp::kAvg:
      return fold_all<T, Sum>(target, sources, count, divisor);
    case ReduceOp::kMin:
      return fold_all<T, Min>(target, sources, count, 0);
    case ReduceOp::kMax:
      return fold_all<T, Max>(target, sources, count, 0);
  }
}

// One block of the tree on a stack of accumulators. A leaf that is added at once is read where it lies.
void fold_tree_block(const CombinePlan& plan, float scale, std::byte* target,
                     std::span<const std::byte* const> leaves, size_t begin, size_t count, float* stack) {
  const auto leaf_at = [&](int leaf) { return at<float>(leaves[leaf], begin); };
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
      const Loose<float>* right = leaf_at(step);
      for (size_t i = 0; i < count; ++i) left[i] += right[i].value;
      ++s;
    } else {
      std::memcpy(stack + depth++ * kBlock, leaf_at(step), count * sizeof(float));
    }
  }
  Loose<float>* out = reinterpret_cast<Loose<float>*>(target) + begin;
  for (size_t i = 0; i < count; ++i) out[i].value = scale * stack[i];
}

}  // namespace

std::string_view to_string(ReduceOp op) {
  static constexpr std::string_view kNames[] = {"sum", "min", "max", "avg"};
  const auto index = static_cast<size_t>(op);
  return index < 4 ? kNames[index] : "unknown operator";
}

bool can_reduce(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 || dtype == DType::kBFloat16 ||
         dtype == DType::kInt32 || dtype == DType::kInt64;
}

void fold(DType dtype, ReduceOp op, std::byte* target, std::span<const std::byte* const> sources,
          size_t count, int divisor) {
  if (count == 0) return;
  const size_t bytes = count * size_of(dtype);
  if (sources.size() == 1 && (op != ReduceOp::kAvg || divisor == 0)) {
    if (target != sources[0]) std::memmove(target, sources[0], bytes);
    return;
  }
  switch (dtype) {
    case DType::kFloat32:
      return fold_as<float>(op, target, sources, count, divisor);
    case DType::kFloat64:
      return fold_as<double>(op, target, sources, count, divisor);
    case DType::kBFloat16:
      return fold_as<BFloat16>(op, target, sources, count, divisor);
    case DType::kInt32:
      return fold_as<int32_t>(op, target, sources, count, divisor);
    case DType::kInt64:
      return fold_as<int64_t>(op, target, sources, count, divisor);
    default:
      MUSTER_CHECK(false, "fold() of a type that can_reduce() refuses");
  }
}

void fold_tree(const CombinePlan& plan, float scale, std::byte* target,
               std::span<const std::byte* const> leaves, size_t count) {
  MUSTER_CHECK(leaves.size() == static_cast<size_t>(plan.leaves),
               "fold_tree() with another number of leaves");
  std::vector<float> stack(static_cast<size_t>(plan.stack_depth) * kBlock);
  for (size_t begin = 0; begin < count; begin += kBlock)
    fold_tree_block(plan, scale, target, leaves, begin, std::min(kBlock, count - begin), stack.data());
}

}  // namespace muster
