// A trainer that makes a mistake, named by its first argument:
//   twins   declares two tensors of one name: must be refused before anything is trained or saved
//   skips   rank 1 leaves out the update of step 3 once: must end with the weights of a run that does not
//   forks   each rank forks children that ask the run for something and then end as programs do, with all
//   their
//           destructors: must end with the weights of a run that does not
//   none    does nothing wrong
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <muster/muster.hpp>
#include <string>
#include <vector>

namespace {

int declare_twins() {
  float one = 0.0F;
  float other = 0.0F;
  muster::Session session;
  muster::State state(session);
  state.replicated("weights", &one, {1});
  state.replicated("weights", &other, {1});
  std::puts("two tensors of one name were taken");
  return 0;
}

// In a child: whether what it asks of its parent's run is refused.
bool is_refused(muster::Run& run, muster::Step& step, std::vector<float>& gradients) {
  int refusals = 0;
  const auto ask = [&](auto call) {
    try {
      call();
    } catch (const muster::Failure& failure) {
      refusals += std::string(failure.what()).find("forked child") != std::string::npos ? 1 : 0;
    }
  };
  ask([&] { (void)run.info(); });
  ask([&] { (void)step.reduce(gradients); });
  ask([&] { (void)step.update(); });
  ask([&] { (void)run.next(); });
  return refusals == 4;
}

int train(bool skips, bool forks) {
  std::vector<float> weights(4, 0.0F);
  std::vector<float> gradients(4, 0.0F);
  muster::Session session;
  muster::State state(session);
  state.replicated("weights", weights.data(), {4});
  muster::TrainOptions options;
  options.steps = 8;
  options.microbatches = options.lanes = 6;
  options.dataset_samples = 100;
  muster::Run run(session, state, options);
  while (auto step = run.next()) {
    std::fill(gradients.begin(), gradients.end(), 0.0F);
    for (const auto& micro : step.microbatches()) {
      for (size_t i = 0; i < weights.size(); ++i) {
        const auto sample = static_cast<float>(micro.samples[0]);
        gradients[i] = weights[i] * 0.5F + sample * static_cast<float>(i + 1);
      }
      step.accumulate(micro, gradients);
    }
    if (forks) {
      const pid_t child = fork();
      if (child == 0) return is_refused(run, step, gradients) ? 0 : 1;
      int status = -1;
      if (waitpid(child, &status, 0) != child || status != 0) {
        std::printf("a forked child ended with %d\n", status);
        return 1;
      }
    }
    if (!step.reduce(gradients)) continue;
    if (skips && step.index() == 3 && run.info().rank == 1) {
      skips = false;
      continue;
    }
    if (auto update = step.update())
      for (size_t i = 0; i < weights.size(); ++i) weights[i] -= 0.001F * gradients[i];
  }
  std::printf("weights %a %a %a %a\n", weights[0], weights[1], weights[2], weights[3]);
  return run.exit_code();
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string mistake = argc == 2 ? argv[1] : "";
  if (mistake == "twins") return declare_twins();
  if (mistake == "skips" || mistake == "forks" || mistake == "none")
    return train(mistake == "skips", mistake == "forks");
  std::fprintf(stderr, "careless: name a mistake: twins, skips, forks or none\n");
  return 2;
} catch (const muster::Failure& failure) {
  std::fprintf(stderr, "careless: %s\n", failure.what());
  return failure.exit_code();
}
