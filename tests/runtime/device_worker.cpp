// A worker of device_elastic_test: the small training on the fake CUDA device, which dies where it is told.
//
//   device_worker FOLDER STEPS STEP_MS [step:N | update:N] …
//
// At each of these places one worker, the first to come there, kills itself. What is left writes its weights
// to FOLDER/weights.PID.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>

#include "tests/runtime/device_elastic.h"
#include "tests/runtime/die_at.h"
#include "tests/runtime/fake_backend.h"

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const std::string folder = argv[1];
  const std::set<std::string> places(argv + 4, argv + argc);
  const auto step_time = std::atoi(argv[3]) * muster::kMillisecond;
  muster::TrainingOptions options;
  options.steps = std::atoi(argv[2]);
  options.checkpoints = folder + "/checkpoints";
  options.checkpoint_every = 7;
  options.at_step = [&](muster_session*, int64_t step) {
    muster::pause_for(step_time);
    muster::die_at(folder, places, "step:" + std::to_string(step));
  };
  options.in_update = [&](int64_t step) { muster::die_at(folder, places, "update:" + std::to_string(step)); };
  muster::TrainingResult result;
  {
    muster::FakeBackend device(muster::kElasticCount);
    result = muster::train_on(device, options);
  }
  const bool leaks = !muster::wait_until([] { return muster::fakes::cuda_live() == 0; });
  std::printf("worker: status %d, again %d, learned %d, violations %d%s %s\n", result.status, result.again,
              result.learned, muster::fakes::cuda_violations(), leaks ? ", leaks" : "", result.error.c_str());
  if (result.exit_code == 0 && result.rank >= 0) {
    std::ofstream file(folder + "/weights." + std::to_string(getpid()), std::ios::binary);
    file.write(reinterpret_cast<const char*>(result.weights.data()),
               static_cast<std::streamsize>(result.weights.size() * sizeof(float)));
  }
  return result.exit_code;
}
