// A worker of feedback_runs_test: a training whose codec keeps residuals.
//
//   feedback_worker FOLDER STEPS WORKERS CODEC LANES [plain] [other-count] [with-values] [slow] [every:N]
//   [step:N | reduce:N | update:N | die:N | leave:N | after:N | late:N] …
//
// CODEC: a muster_codec's number. While there are fewer workers than WORKERS steps take a tenth of a second,
// so that others can join. At step:N, reduce:N and update:N one worker, the first to come there, kills
// itself, once a save is durable; at die:N without that; at leave:N it gets a notice. At after:N the rank
// without lanes kills itself when it has made the update, and at late:N the first rank makes that update only
// then. "plain" is without error feedback; "with-values" has a value per lane beside it; "slow" lets all
// steps take a tenth of a second; "every:N" saves every N steps in place of 7. Who sees the end adds a line
// with the weights to FOLDER/results.
#include <signal.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <muster/muster.hpp>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/runtime/die_at.h"
#include "tests/runtime/worker_result.h"

namespace {

// Parts of the mean for some lanes only, the last of them not a whole one.
constexpr size_t kCount = 2500;

float drawn(uint64_t key) {
  key = (key ^ (key >> 31)) * 0x9e3779b97f4a7c15ULL;
  key ^= key >> 29;
  return static_cast<float>(key >> 40) * 0x1p-24F - 0.5F;
}

void wait_for(const std::string& file) {
  for (int i = 0; i < 3000 && access(file.c_str(), F_OK) != 0; ++i) {
    // Reason for the wait: another process makes the file.
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

int train(int argc, char** argv) {
  const std::string folder = argv[1], checkpoints = folder + "/checkpoints";
  const std::set<std::string> words(argv + 6, argv + argc);
  const int lanes = std::atoi(argv[5]);
  std::vector<float> weights(kCount), gradients(kCount);
  for (size_t i = 0; i < kCount; ++i) weights[i] = drawn(i);
  std::vector<uint64_t> counters(static_cast<size_t>(lanes));
  for (size_t lane = 0; lane < counters.size(); ++lane) counters[lane] = 1000 * lane;
  int64_t updates = 0;

  muster::Session session;
  muster::State state(session);
  state.replicated("weights", weights.data(), {static_cast<int64_t>(kCount)});
  state.replicated("updates", &updates, {1});
  if (words.contains("with-values")) state.per_lane("counters", counters.data(), {lanes});
  muster::TrainOptions options;
  options.steps = std::atoi(argv[2]);
  options.microbatches = lanes * 2;
  options.lanes = lanes;
  options.dataset_samples = 1000;
  options.codec = static_cast<muster_codec>(std::atoi(argv[4]));
  options.error_feedback = words.contains("plain") ? 0 : kCount + (words.contains("other-count") ? 1 : 0);
  options.bucket_bytes = 4096;
  options.checkpoint_dir = checkpoints.c_str();
  options.checkpoint_every = 7;
  for (const std::string& word : words) {
    if (word.starts_with("every:")) options.checkpoint_every = std::atoi(word.c_str() + 6);
  }
  muster::Run run(session, state, options);
  while (auto step = run.next()) {
    const std::string here = std::to_string(step.index());
    if (run.info().world_size < std::atoi(argv[3]) || words.contains("slow")) {
      // Reason for the wait: a worker that was killed starts again and joins meanwhile.
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    for (const char* place : {"step:", "reduce:", "update:"}) {
      const bool is_due =
          words.contains(place + here) && access((folder + "/died." + place + here).c_str(), F_OK) != 0;
      for (int i = 0; i < 3000 && is_due && run.info().durable < 0; ++i) {
        // Reason for the wait: what the others are to go back to has to be durable before this one dies.
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
    }
    for (float& gradient : gradients) gradient = 0;
    int mine = 0;
    for (const auto& micro : step.microbatches()) {
      const uint64_t count = counters[static_cast<size_t>(micro.lane)]++;
      for (size_t i = 0; i < kCount; ++i)
        gradients[i] = 0.1F * weights[i] + drawn(micro.random_key + i) +
                       (words.contains("with-values") ? drawn(count) : 0.0F);
      step.accumulate(micro, gradients);
      muster::die_at(folder, words, "step:" + here);
      muster::die_at(folder, words, "die:" + here);
      ++mine;
    }
    if (muster::is_first_at(folder, words, "leave:" + here)) raise(SIGTERM);
    const bool is_first = run.info().rank == 0;
    if (!step.reduce(gradients)) continue;
    muster::die_at(folder, words, "reduce:" + here);
    const std::string died = folder + "/died.after:" + here;
    if (words.contains("late:" + here) && is_first && access(died.c_str(), F_OK) != 0) {
      wait_for(died);
      // Reason for the wait: the view is to be revoked before this one goes on.
      std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    }
    if (auto update = step.update()) {
      ++updates;
      for (size_t i = 0; i < kCount; ++i) weights[i] -= 0.05F * gradients[i];
      muster::die_at(folder, words, "update:" + here);
    }
    if (mine == 0 && !run.info().learner) muster::die_at(folder, words, "after:" + here);
  }
  if (run.exit_code() != 0) return run.exit_code();
  if (run.info().rank < 0) return 0;  // it came too late to be a member: what it has is not the run's
  const std::string sum = std::to_string(muster::digest_of_values(weights));
  return muster::add_result(folder, "weights " + sum + " updates " + std::to_string(updates) + "\n") ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) return 2;
  try {
    return train(argc, argv);
  } catch (const muster::Failure& failure) {
    std::fprintf(stderr, "feedback_worker: %s\n", failure.what());
    return failure.exit_code();
  }
}
