#include "examples/gpt/trained_state.h"

#include <utility>
#include <vector>

namespace gpt {
namespace {

std::vector<int64_t> shape_of(const Tensor& tensor) { return {tensor.shape.begin(), tensor.shape.end()}; }

class Whole final : public TrainedState {
 public:
  Whole(muster::State& state, Backend& backend) : backend_(backend) {
    const muster_memory memory = backend.device() == DeviceKind::kCuda ? MUSTER_CUDA : MUSTER_HOST;
    const Buffers& buffers = backend.buffers();
    for (const Tensor& tensor : backend.layout().tensors()) {
      for (const auto& [prefix, data] :
           {std::pair("", buffers.weights), {"adamw.m/", buffers.m}, {"adamw.v/", buffers.v}})
        state.replicated_in(memory, prefix + tensor.name, data + tensor.offset, MUSTER_FLOAT32,
                            shape_of(tensor));
    }
  }
  void update(muster::Step& step, const AdamWOptions& options, float learning_rate) override {
    backend_.update(options, static_cast<size_t>(step.index()), learning_rate);
  }

 private:
  Backend& backend_;
};

class InShards final : public TrainedState {
 public:
  InShards(muster::State& state, Backend& backend) : backend_(backend) {
    for (const Tensor& tensor : backend.layout().tensors()) {
      const std::vector<int64_t> shape = shape_of(tensor);
      rows_.push_back({state.sharded<float>(tensor.name, shape, backend.buffers().weights + tensor.offset),
                       state.sharded<float>("adamw.m/" + tensor.name, shape),
                       state.sharded<float>("adamw.v/" + tensor.name, shape)});
    }
  }
  // Tensors of one shape have pieces of the same rows.
  void update(muster::Step& step, const AdamWOptions& options, float learning_rate) override {
    const auto index = static_cast<size_t>(step.index());
    const Layout& layout = backend_.layout();
    const float* const gradients = backend_.buffers().gradients;
    const float factor = clip_factor(options, {gradients, layout.size()});
    for (size_t t = 0; t < rows_.size(); ++t) {
      const Tensor& tensor = layout.tensors()[t];
      const auto weights = rows_[t].weights.local(step), m = rows_[t].m.local(step),
                 v = rows_[t].v.local(step);
      const size_t row = tensor.size / tensor.shape[0];
      for (size_t i = 0; i < weights.size(); ++i) {
        const size_t begin = static_cast<size_t>(weights[i].begin) * row;
        const size_t count = static_cast<size_t>(weights[i].count) * row;
        adamw_part(options, tensor, index, learning_rate, factor, {weights[i].data, count},
                   gradients + tensor.offset + begin, m[i].data, v[i].data);
      }
    }
  }

 private:
  struct Rows {
    muster::Sharded<float> weights, m, v;
  };
  Backend& backend_;
  std::vector<Rows> rows_;  // of each tensor of the layout
};

}  // namespace

std::unique_ptr<TrainedState> keep_whole(muster::State& state, Backend& backend) {
  return std::make_unique<Whole>(state, backend);
}
std::unique_ptr<TrainedState> keep_sharded(muster::State& state, Backend& backend) {
  return std::make_unique<InShards>(state, backend);
}

}  // namespace gpt
