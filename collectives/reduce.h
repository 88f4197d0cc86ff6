// Elementwise arithmetic of the collectives: folds over several sources, in a fixed order, in one pass.
//
// bfloat16 is folded in float32 and rounded once (to nearest even). Sums of integers wrap. avg divides the
// sum by the world size; of integers it truncates toward zero. min and max return NaN where any source is
// NaN. A single source is copied, so −0.0 stays −0.0. No fused multiply-add: the layer is compiled without
// contraction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "collectives/lane_tree.h"
#include "runtime/base/dtype.h"

namespace muster {

// Part of the wire format of operations: never reuse a number.
enum class ReduceOp : uint8_t { kSum = 0, kMin = 1, kMax = 2, kAvg = 3 };
std::string_view to_string(ReduceOp op);

bool can_reduce(DType dtype);

// target[i] = sources[0][i] ∘ sources[1][i] ∘ …, left to right, over `count` elements. With avg the result is
// divided by `divisor` where that is not 0 (the last fold of an operation), else it stays a sum.
// `target` may be one of the sources; else no overlap. Any alignment.
// REQUIRES: can_reduce(dtype), at least one source.
void fold(DType dtype, ReduceOp op, std::byte* target, std::span<const std::byte* const> sources,
          size_t count, int divisor);

// target[i] = scale · (sum of leaves[k][i] along `plan`), in float32. `target` may be one of the leaves.
void fold_tree(const CombinePlan& plan, float scale, std::byte* target,
               std::span<const std::byte* const> leaves, size_t count);

}  // namespace muster
