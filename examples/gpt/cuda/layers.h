// Layers as tasks: what is more than one kernel in both directions. `run` takes each task in turn; the model
// puts them on its stream, tests run them in the SIMT shim.
#pragma once

#include <cmath>

#include "examples/gpt/cuda/tasks.h"

namespace gpt::cuda {

// A linear layer of `rows` rows: out = in · weight + bias (+ added). bias and added may be null.
struct Linear {
  uint32_t rows, from, to;
};

template <typename Run>
void linear(const Linear& shape, const float* in, const float* weight, const float* bias, const float* added,
            float* out, Run run) {
  run(Product{.form = Form::kPlain,
              .rows = shape.rows,
              .columns = shape.to,
              .inner = shape.from,
              .left = {in, shape.from},
              .right = {weight, shape.to},
              .out = {out, shape.to},
              .bias = bias,
              .added = added});
}

// The three gradients are set; dbias may be null.
template <typename Run>
void linear_backward(const Linear& shape, const float* in, const float* weight, const float* dout, float* din,
                     float* dweight, float* dbias, Run run) {
  run(Product{.form = Form::kLeftTransposed,
              .rows = shape.from,
              .columns = shape.to,
              .inner = shape.rows,
              .left = {in, shape.from},
              .right = {dout, shape.to},
              .out = {dweight, shape.to}});
  if (dbias != nullptr) run(ColumnSums{dout, dbias, shape.rows, shape.to});
  run(Product{.form = Form::kRightTransposed,
              .rows = shape.rows,
              .columns = shape.from,
              .inner = shape.to,
              .left = {dout, shape.to},
              .right = {weight, shape.to},
              .out = {din, shape.from}});
}

// The operands of attention's products, all heads of all sequences at once.
class AttentionViews {
 public:
  explicit AttentionViews(const AttentionShape& shape)
      : length_(static_cast<uint32_t>(shape.length)),
        width_(static_cast<uint32_t>(shape.width)),
        heads_(static_cast<uint32_t>(shape.heads)),
        matrices_(static_cast<uint32_t>(shape.sequences) * heads_) {}

  uint32_t matrices() const { return matrices_; }
  float factor() const { return 1.0f / std::sqrt(static_cast<float>(size())); }

  // Part 0: queries, 1: keys, 2: values.
  template <typename T>
  Operand<T> part(T* qkv, uint32_t part) const {
    return {qkv + part * width_, uint64_t{3} * width_, uint64_t{3} * width_ * length_, size()};
  }
  template <typename T>
  Operand<T> rows(T* data) const {  // [rows, width]
    return {data, width_, uint64_t{width_} * length_, size()};
  }
  template <typename T>
  Operand<T> weights(T* data) const {  // [sequences, heads, length, length]
    const uint64_t each = uint64_t{length_} * length_;
    return {data, length_, each * heads_, each};
  }

  // [length, length] from two of [length, size], where it counts.
  Product to_weights(Operand<const float> left, Operand<const float> right, Operand<float> out) const {
    return batch(Form::kRightTransposed, length_, size(), left, right, out, Causal::kOutput);
  }
  Product from_weights(Operand<const float> weights, Operand<const float> right, Operand<float> out) const {
    return batch(Form::kPlain, size(), length_, weights, right, out, Causal::kInnerUpTo);
  }
  Product from_weights_transposed(Operand<const float> weights, Operand<const float> right,
                                  Operand<float> out) const {
    return batch(Form::kLeftTransposed, size(), length_, weights, right, out, Causal::kInnerFrom);
  }

 private:
  uint32_t size() const { return width_ / heads_; }  // of a head
  Product batch(Form form, uint32_t columns, uint32_t inner, Operand<const float> left,
                Operand<const float> right, Operand<float> out, Causal causal) const {
    return {.form = form,
            .rows = length_,
            .columns = columns,
            .inner = inner,
            .left = left,
            .right = right,
            .out = out,
            .batches = matrices_,
            .group = heads_,
            .causal = causal};
  }

  uint32_t length_, width_, heads_, matrices_;
};

// attention() and attention_backward() of kernels.h; dweights: as large as weights, overwritten.
template <typename Run>
void attention(const AttentionShape& shape, const float* qkv, float* weights, float* out, Run run) {
  const AttentionViews at(shape);
  run(at.to_weights(at.part(qkv, 0), at.part(qkv, 1), at.weights(weights)));
  run(CausalSoftmax{weights, at.matrices(), static_cast<uint32_t>(shape.length), at.factor()});
  run(at.from_weights(at.weights<const float>(weights), at.part(qkv, 2), at.rows(out)));
}

template <typename Run>
void attention_backward(const AttentionShape& shape, const float* qkv, const float* weights,
                        const float* dout, float* dqkv, float* dweights, Run run) {
  const AttentionViews at(shape);
  const auto dscores = at.weights<const float>(dweights);
  run(at.from_weights_transposed(at.weights(weights), at.rows(dout), at.part(dqkv, 2)));
  run(at.to_weights(at.rows(dout), at.part(qkv, 2), at.weights(dweights)));
  run(CausalSoftmaxBackward{weights, dweights, at.matrices(), static_cast<uint32_t>(shape.length),
                            at.factor()});
  run(at.from_weights(dscores, at.part(qkv, 1), at.part(dqkv, 0)));
  run(at.from_weights_transposed(dscores, at.part(qkv, 0), at.part(dqkv, 1)));
}

}  // namespace gpt::cuda
