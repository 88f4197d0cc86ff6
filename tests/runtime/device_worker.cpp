// A worker of device_elastic_test: the small training on the fake CUDA device, which dies where it is told.
//
//   device_worker FOLDER STEPS STEP_MS [nccl] [int8] [step:N | update:N | stop:N | break:N | rebreak:N |
//   form] …
//
// At each of these places one worker, the first to come there, kills itself (step, update), freezes (stop),
// has a slow device from there on (slow), has its NCCL tell an asynchronous error (break, and once more in
// the repeated step: rebreak), or fail in forming (form). What is left writes its weights to
// FOLDER/weights.PID.
#include <atomic>
#include <csignal>
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
  options.nccl = places.contains("nccl");
  if (places.contains("int8")) options.codec = MUSTER_CODEC_INT8;
  std::atomic<int> joined = 0, apart = 0;
  options.on_log = [&](const std::string& text) {
    joined += text.find("joined by NCCL") != std::string::npos ? 1 : 0;
    apart += text.find("reduced by the host") != std::string::npos ? 1 : 0;
  };
  if (options.nccl) {
    options.step_timeout = 20;
    options.bucket_bytes = 1 << 14;  // a fake operation takes a millisecond
  }
  constexpr int kInternalError = 3, kRemoteError = 6, kRanks = 16;
  if (muster::is_first_at(folder, places, "form"))
    muster::fakes::nccl_inject({.call = 3, .code = kInternalError});  // it starts its communicator there
  int64_t broke = -1;
  muster::FakeBackend* backend = nullptr;
  options.at_step = [&](muster_session*, int64_t step) {
    muster::pause_for(step_time);
    muster::die_at(folder, places, "step:" + std::to_string(step));
    if (muster::is_first_at(folder, places, "stop:" + std::to_string(step))) raise(SIGSTOP);
    if (muster::is_first_at(folder, places, "slow:" + std::to_string(step)))
      backend->become_slow(100 * muster::kMillisecond);
    // The same one breaks twice, when the step is repeated.
    const bool first = muster::is_first_at(folder, places, "break:" + std::to_string(step));
    const bool again =
        broke == step && muster::is_first_at(folder, places, "rebreak:" + std::to_string(step));
    if (first) broke = step;
    for (int rank = 0; (first || again) && rank < kRanks; ++rank)
      muster::fakes::nccl_break_rank(rank, kRemoteError);
  };
  options.in_update = [&](int64_t step) { muster::die_at(folder, places, "update:" + std::to_string(step)); };
  muster::TrainingResult result;
  {
    muster::FakeBackend device(muster::kElasticCount);
    backend = &device;
    result = muster::train_on(device, options);
  }
  const bool leaks =
      !muster::wait_until([] { return muster::fakes::cuda_live() == 0 && muster::fakes::nccl_live() == 0; });
  const int violations = muster::fakes::cuda_violations() + muster::fakes::nccl_violations();
  std::printf("worker: status %d, again %d, learned %d, violations %d, by NCCL %d, by the host %d%s %s\n",
              result.status, result.again, result.learned, violations, joined.load(), apart.load(),
              leaks ? ", leaks" : "", result.error.c_str());
  if (result.exit_code == 0 && result.rank >= 0) {
    std::ofstream file(folder + "/weights." + std::to_string(getpid()), std::ios::binary);
    file.write(reinterpret_cast<const char*>(result.weights.data()),
               static_cast<std::streamsize>(result.weights.size() * sizeof(float)));
  }
  return result.exit_code;
}
