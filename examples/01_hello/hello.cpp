// The smallest Muster program: fits y = 3 x + 1 by gradient descent. Alone it is a world of one; under
// `muster run` or `mpirun` the same binary shares the microbatches, survives losses, and ends with the same
// bits.
#include <muster/muster.hpp>

#include <cstdio>
#include <vector>

int main() try {
  std::vector<float> line = {0.0F, 0.0F};            // slope, offset
  std::vector<float> gradient = {0.0F, 0.0F, 0.0F};  // of both, and the loss, which is averaged along

  muster::Session session;
  muster::State state(session);
  state.replicated("line", line.data(), {2});

  muster::TrainOptions options;
  options.steps = 200;
  options.microbatches = 8;
  options.lanes = 8;
  options.samples_per_microbatch = 4;
  options.dataset_samples = 1000;

  float loss = 0.0F;
  muster::Run run(session, state, options);
  while (auto step = run.next()) {
    for (const auto& micro : step.microbatches()) {
      for (int64_t i = 0; i < micro.count; ++i) {
        const float x = static_cast<float>(micro.samples[i]) / 500.0F - 1.0F;
        const float error = line[0] * x + line[1] - (3.0F * x + 1.0F);
        gradient[0] += error * x;
        gradient[1] += error;
        gradient[2] += error * error;
      }
      step.accumulate(micro, gradient);
    }
    if (!step.reduce(gradient)) continue;
    if (auto update = step.update()) {
      line[0] -= 0.1F * gradient[0];
      line[1] -= 0.1F * gradient[1];
      loss = gradient[2];
    }
    gradient.assign(3, 0.0F);
  }
  const auto info = run.info();
  if (info.rank == 0) {
    std::printf("y = %.4f x + %.4f, loss %.2g, world of %d\n", static_cast<double>(line[0]),
                static_cast<double>(line[1]), static_cast<double>(loss), info.world_size);
  }
  return run.exit_code();
} catch (const muster::Failure& failure) {
  std::fprintf(stderr, "hello: %s\n", failure.what());
  return failure.exit_code();
}
