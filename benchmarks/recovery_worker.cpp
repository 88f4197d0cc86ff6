// A training of which only the recovery matters: a state of which each step reduces and updates the first
// piece, and a sleep in place of computing, the same for every rank whatever its lanes.
//
//   bench_recovery whole|sharded STATE_BYTES UPDATED_BYTES SLEEP_MS STEPS FOLDER [CHECKPOINT_FOLDER EVERY]
//
// Whole: replicated; sharded: as two copies, which is what an optimizer's state would be.
// Each process writes FOLDER/PID: a line "VERSION GENERATION AT_NS WORLD" (CLOCK_BOOTTIME) when it has closed
// the update that made VERSION, and at the end "cpu CONTROL_NS ALL_NS STEPS": processor time of the threads
// that serve the control plane, and of all.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <muster/muster.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

int64_t clock_ns(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
}

// Time on the processor of the threads that serve the control plane; the kernel counts it in nanoseconds.
int64_t control_ns() {
  const auto name_of = [](const std::filesystem::path& task) {
    std::string name;
    std::getline(std::ifstream(task / "comm"), name);
    return name;
  };
  int64_t sum = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    const std::string name = name_of(entry.path());
    if (name != "muster-control" && name != "muster-tick" && name != "muster-events") continue;
    int64_t ns = 0;
    std::ifstream(entry.path() / "schedstat") >> ns;
    sum += ns;
  }
  return sum;
}

// Elements [begin, begin + count) of the weights, of which those that have a gradient change.
void apply(float* weights, size_t begin, size_t count, const std::vector<float>& gradient) {
  for (size_t i = begin; i < std::min(begin + count, gradient.size()); ++i) weights[i - begin] -= gradient[i];
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 7 && argc != 9) return 78;
  const bool sharded = std::string(argv[1]) == "sharded";
  const auto number = [&](int which) { return std::strtoull(argv[which], nullptr, 10); };
  const size_t count = number(2) / sizeof(float), updated = number(3) / sizeof(float);
  const auto computing = std::chrono::milliseconds(number(4));
  std::vector<float> weights(sharded ? 0 : count);
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i % 1000003);
  std::vector<float> gradient(updated);

  const std::string path = std::string(argv[6]) + "/" + std::to_string(getpid());
  std::FILE* log = std::fopen(path.c_str(), "w");
  if (log == nullptr) return 78;
  muster::Session session;
  muster::State state(session);
  muster::Sharded<float> rows("weights");
  if (sharded) {
    rows = state.sharded<float>("weights", {static_cast<int64_t>(count)});
  } else {
    state.replicated("weights", weights.data(), {static_cast<int64_t>(count)});
  }
  muster::TrainOptions options;
  options.steps = static_cast<int64_t>(number(5));
  options.microbatches = 8;
  options.lanes = 8;
  options.samples_per_microbatch = 1;
  options.dataset_samples = 1000;
  if (argc == 9) {
    options.checkpoint_dir = argv[7];
    options.checkpoint_every = static_cast<int64_t>(number(8));
  }
  muster::Run run(session, state, options);
  int64_t control_began = -1, all_began = 0, steps_began = 0, steps = 0;
  while (auto step = run.next()) {
    // After the first steps: what joining and forming cost is not a step's.
    if (control_began < 0 && steps == 20) {
      control_began = control_ns();
      all_began = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
      steps_began = steps;
    }
    std::fill(gradient.begin(), gradient.end(), 1e-3F);
    bool computes = false;
    for (const auto& micro : step.microbatches()) {
      // Stands for the computing of a step. Who has no microbatch, as a learner, takes the others' gradient.
      if (!std::exchange(computes, true)) std::this_thread::sleep_for(computing);
      std::fill(gradient.begin(), gradient.end(), 1e-3F);
      step.accumulate(micro, gradient);
    }
    if (!step.reduce(gradient)) continue;
    if (auto update = step.update()) {
      apply(weights.data(), 0, weights.size(), gradient);
      if (sharded) {
        for (const muster::Piece<float>& piece : rows.local(step))
          apply(piece.data, static_cast<size_t>(piece.begin), static_cast<size_t>(piece.count), gradient);
      }
    }
    ++steps;
    const muster_run_info info = run.info();
    std::fprintf(log, "%lld %llu %lld %d\n", static_cast<long long>(info.version),
                 static_cast<unsigned long long>(info.generation),
                 static_cast<long long>(clock_ns(CLOCK_BOOTTIME)), info.learner ? 0 : info.world_size);
    std::fflush(log);
  }
  if (control_began >= 0)
    std::fprintf(log, "cpu %lld %lld %lld\n", static_cast<long long>(control_ns() - control_began),
                 static_cast<long long>(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - all_began),
                 static_cast<long long>(steps - steps_began));
  std::fclose(log);
  return run.exit_code();
} catch (const muster::Failure& failure) {
  std::fprintf(stderr, "bench_recovery: %s\n", failure.what());
  return failure.exit_code();
}
