// Matrix products by Eigen. The only file that includes Eigen, so that no other translation unit can bring in
// the same templates compiled for another processor.
//
// Eigen packs both operands before its inner loop, so addresses do not matter to the order of a sum; but it
// cuts the inner dimension into blocks by the sizes of the caches of the machine that it runs on. Those are
// therefore pinned here. (OpenBLAS was measured too: as fast with OPENBLAS_CORETYPE set, 82 to 87 GFLOP/s a
// core against 80 to 86, but it picks its kernel by processor, which gives other bits on other hosts.)
#include <Eigen/Core>

#include "examples/gpt/kernels.h"

namespace gpt {
namespace {

using Dense = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Stride = Eigen::OuterStride<>;
using Input = Eigen::Map<const Dense, Eigen::Unaligned, Stride>;
using Output = Eigen::Map<Dense, Eigen::Unaligned, Stride>;

Input map(const ConstMatrix& m) {
  return {m.data, static_cast<Eigen::Index>(m.rows), static_cast<Eigen::Index>(m.columns),
          Stride(static_cast<Eigen::Index>(m.stride))};
}

Output map(const Matrix& m) {
  return {m.data, static_cast<Eigen::Index>(m.rows), static_cast<Eigen::Index>(m.columns),
          Stride(static_cast<Eigen::Index>(m.stride))};
}

void pin_block_sizes() {
  static const bool pinned = [] {
    Eigen::setCpuCacheSizes(32 << 10, 1 << 20, 2 << 20);
    return true;
  }();
  static_cast<void>(pinned);
}

template <typename A, typename B>
void product(const A& a, const B& b, Output out, Store store) {
  pin_block_sizes();
  if (store == Store::kSet) {
    out.noalias() = a * b;
  } else {
    out.noalias() += a * b;
  }
}

}  // namespace

void multiply(ConstMatrix a, ConstMatrix b, Matrix out, Store store) {
  product(map(a), map(b), map(out), store);
}

void multiply_at(ConstMatrix a, ConstMatrix b, Matrix out, Store store) {
  product(map(a).transpose(), map(b), map(out), store);
}

void multiply_bt(ConstMatrix a, ConstMatrix b, Matrix out, Store store) {
  product(map(a), map(b).transpose(), map(out), store);
}

}  // namespace gpt
