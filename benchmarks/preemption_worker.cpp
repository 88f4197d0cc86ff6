// A training whose state has a given size and whose steps cost nothing: what is measured is the way from a
// notice to "safe to kill".
//
//   bench_preemption BYTES CHECKPOINT_FOLDER
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <muster/muster.hpp>
#include <thread>
#include <vector>

int main(int argc, char** argv) try {
  if (argc != 3) return 78;
  const size_t count = std::strtoull(argv[1], nullptr, 10) / sizeof(float);
  std::vector<float> weights(count);
  for (size_t i = 0; i < count; ++i) weights[i] = static_cast<float>(i % 1000003);  // nothing to compress
  std::vector<float> gradient(1);

  muster::Session session;
  muster::State state(session);
  state.replicated("weights", weights.data(), {static_cast<int64_t>(count)});
  muster::TrainOptions options;
  options.steps = 1000000000;
  options.microbatches = 1;
  options.lanes = 1;
  options.samples_per_microbatch = 1;
  options.dataset_samples = 1000;
  options.checkpoint_dir = argv[2];
  options.checkpoint_every = 0;
  muster::Run run(session, state, options);
  while (auto step = run.next()) {
    std::fill(gradient.begin(), gradient.end(), 0.0F);  // reduce has left the last step's mean there
    for (const auto& micro : step.microbatches()) step.accumulate(micro, gradient);
    if (!step.reduce(gradient)) continue;
    if (auto update = step.update()) weights[static_cast<size_t>(step.index()) % count] += 1.0F;
    if (run.info().version == 10) {
      std::printf("ready\n");
      std::fflush(stdout);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // stands for the computing of a step
  }
  return run.exit_code();
} catch (const muster::Failure& failure) {
  std::fprintf(stderr, "bench_preemption: %s\n", failure.what());
  return failure.exit_code();
}
