// Elementwise arithmetic of the collectives: folds over several sources, in a fixed order, in one pass, into
// one or several targets.
//
// Types of 16 bits and less are folded in float32 (integers: in 32 bits) and rounded, or wrapped, once;
// floats to nearest even. A float8_e4m3 that overflows becomes NaN, other floats infinity. Integers wrap. avg
// divides the sum by the world size; of integers it truncates toward zero. premul_sum multiplies each source
// by a factor first. min and max return NaN where any source is NaN. A single source is copied, so −0.0 stays
// −0.0. No fused multiply-add: the layer is compiled without contraction, and vectors of any width give the
// same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "collectives/lane_tree.h"
#include "runtime/base/dtype.h"

namespace muster {

// Part of the wire format of operations: never reuse a number.
enum class ReduceOp : uint8_t { kSum = 0, kMin = 1, kMax = 2, kAvg = 3, kProd = 4, kPremulSum = 5 };
constexpr int kReduceOpCount = 6;
std::string_view to_string(ReduceOp op);

// targets[t][i] = sources[0][i] ∘ sources[1][i] ∘ …, left to right, over `count` elements. With avg the
// result is divided by `divisor` where that is not 0 (the last fold of an operation), else it stays a sum.
// A target may be one of the sources; else no overlap. Any alignment. REQUIRES: at least one source.
struct FoldTask {
  DType dtype = DType::kFloat32;
  ReduceOp op = ReduceOp::kSum;
  std::span<std::byte* const> targets;
  std::span<const std::byte* const> sources;
  size_t count = 0;
  int divisor = 0;
  double factor = 1;       // premul_sum
  uint64_t streaming = 0;  // bit t: into target t with stores that pass the caches; see copy_streaming
};
void fold(const FoldTask& task);

// Into one target.
void fold(DType dtype, ReduceOp op, std::byte* target, std::span<const std::byte* const> sources,
          size_t count, int divisor, double factor = 1);

// targets[t][i] = scale · (sum of leaves[k][i] along `plan`), in float32. A target may be one of the leaves.
void fold_tree(const CombinePlan& plan, float scale, std::span<std::byte* const> targets, uint64_t streaming,
               std::span<const std::byte* const> leaves, size_t count);

// memcpy with stores that pass the caches, where the processor has such. They are ordered before what this
// thread publishes only by end_streaming(), which every fold with streaming targets calls itself.
void copy_streaming(std::byte* target, const std::byte* source, size_t bytes);
void end_streaming();

}  // namespace muster
