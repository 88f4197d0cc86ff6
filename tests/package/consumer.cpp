// A C++17 program that knows Muster by find_package only, through the header-only wrapper.
#include <muster/muster.hpp>

#include <cstdio>
#include <vector>

int main() try {
  std::vector<float> weights(3, 1.0F);
  std::vector<float> gradients(3, 0.0F);
  muster::Session session;
  muster::State state(session);
  state.replicated("weights", weights.data(), {3});
  muster::TrainOptions options;
  options.steps = 5;
  options.microbatches = 4;
  options.lanes = 2;
  options.dataset_samples = 10;
  muster::Run run(session, state, options);
  while (auto step = run.next()) {
    for (const auto& micro : step.microbatches()) {
      for (auto& gradient : gradients) gradient = 1.0F;
      step.accumulate(micro, gradients);
    }
    if (!step.reduce(gradients)) continue;
    if (auto update = step.update()) {
      for (size_t i = 0; i < weights.size(); ++i) weights[i] -= 0.125F * gradients[i];
      for (auto& gradient : gradients) gradient = 0.0F;
    }
  }
  for (const float weight : weights) {
    if (weight != 0.375F)
      return std::fprintf(stderr, "a weight is %g, expected 0.375\n", static_cast<double>(weight)), 1;
  }
  return run.exit_code();
} catch (const muster::Failure& failure) {
  std::fprintf(stderr, "%s\n", failure.what());
  return 1;
}
