// A worker of lane_values_test and comparison_test: a training whose gradients depend on random generators
// that the forward pass moves on, one for each lane, and that are nobody else's.
//
//   lane_worker FOLDER STEPS WORKERS [step:N | update:N | results | denormals] …
//
// With `results`, or `denormals`, the first worker there tells other results than the others, or flushes
// denormals. While there are fewer workers steps take a tenth of a second, so that others can join. At each
// of these places one worker, the first to come there, kills itself. Who sees the end adds a line with its
// weights and generators to FOLDER/results.

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <muster/muster.hpp>
#include <set>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "tests/runtime/die_at.h"
#include "tests/runtime/worker_result.h"

namespace {

constexpr int kLanes = 4, kMicrobatches = 8;
constexpr size_t kCount = 1000;

// xorshift64: what it is next cannot be known from a count.
uint64_t drawn(uint64_t& state) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

void flush_denormals() {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const std::string folder = argv[1], checkpoints = folder + "/checkpoints";
  const std::set<std::string> places(argv + 4, argv + argc);
  std::vector<float> weights(kCount, 1.0F), gradients(kCount);
  std::array<uint64_t, kLanes> generators{};
  for (size_t lane = 0; lane < kLanes; ++lane) generators[lane] = 88172645463325252ULL + lane;
  std::array<uint8_t, kLanes * 3> marks{};  // an odd size, so that rows are not whole words

  muster::Session session;
  muster::State state(session);
  state.replicated("weights", weights.data(), {static_cast<int64_t>(kCount)});
  state.per_lane("generator", generators.data(), {kLanes});
  state.per_lane("marks", marks.data(), {kLanes, 3});
  muster::TrainOptions options;
  options.steps = std::atoi(argv[2]);
  options.microbatches = kMicrobatches;
  options.lanes = kLanes;
  options.dataset_samples = 1000;
  options.checkpoint_dir = checkpoints.c_str();
  options.checkpoint_every = 7;
  muster::Run run(session, state, options);
  const float results = muster::is_first_at(folder, places, "results") ? 1.5F : 1.0F;
  run.probe(&results, sizeof results);
  if (muster::is_first_at(folder, places, "denormals")) flush_denormals();
  while (auto step = run.next()) {
    const std::string here = std::to_string(step.index());
    // Reason for the wait: a worker that was killed starts again and joins meanwhile.
    if (run.info().world_size < std::atoi(argv[3]))
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    for (auto& gradient : gradients) gradient = 0;
    for (const auto& micro : step.microbatches()) {
      const auto lane = static_cast<size_t>(micro.lane);
      for (float& gradient : gradients)
        gradient = static_cast<float>(drawn(generators[lane]) >> 40) * 0x1p-24F - 0.5F;
      marks[lane * 3 + static_cast<size_t>(step.index() % 3)] += static_cast<uint8_t>(micro.index);
      step.accumulate(micro, gradients);
      muster::die_at(folder, places, "step:" + here);
    }
    if (!step.reduce(gradients)) continue;
    if (auto update = step.update()) {
      for (size_t i = 0; i < kCount; ++i) weights[i] -= 0.01F * gradients[i];
      muster::die_at(folder, places, "update:" + here);
    }
  }
  if (run.exit_code() != 0) return run.exit_code();
  if (run.info().rank < 0) return 0;  // it came too late to be a member: what it has is not the run's
  std::string line = "weights " + std::to_string(muster::digest_of_values(weights)) + " generators";
  for (const uint64_t generator : generators) line += " " + std::to_string(generator);
  line += " marks";
  for (const uint8_t mark : marks) line += " " + std::to_string(mark);
  line += "\n";
  return muster::add_result(folder, line) ? 0 : 1;
}
