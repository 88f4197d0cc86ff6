// Weights and moments as Muster keeps them: whole on every process, or in shards of which each process holds
// and updates some, while the weights that the model computes with are gathered at the beginning of each
// step.
#pragma once

#include <memory>
#include <muster/muster.hpp>

#include "examples/gpt/backend.h"

namespace gpt {

class TrainedState {
 public:
  virtual ~TrainedState() = default;
  // Inside an update.
  virtual void update(muster::Step& step, const AdamWOptions& options, float learning_rate) = 0;
};

// Registers them. The backend outlives it.
std::unique_ptr<TrainedState> keep_whole(muster::State& state, Backend& backend);
// On the CPU; the backend needs no moments.
std::unique_ptr<TrainedState> keep_sharded(muster::State& state, Backend& backend);

}  // namespace gpt
