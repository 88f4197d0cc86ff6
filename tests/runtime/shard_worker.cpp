// A worker of sharded_runs_test, local_tier_test and others: a training whose weights and momentum are
// sharded, beside a replicated tensor.
//
//   shard_worker FOLDER STEPS WORKERS KIND [step:N | reduce:N | update:N | after:N | again | wait:N | gate:N
//   | hang:N | slow:N | seed:2 | parity] …
//
// KIND: "sharded"; "one-copy", the same with one copy of each shard; "careless", the same with an update that
// leaves a piece out on one rank; "late", with three copies, and one rank that makes the update of step 20
// only when rank 0 has died at after:20, when the others have made it, and another, again, while it is about
// to make it; "added", with one copy, a tensor that the saves of the others lack, and no save before the end;
// or "whole", which keeps all of it replicated. While there are fewer workers than WORKERS steps take a tenth
// of a second, so that others can join. At each of the places one worker, the first to come there, kills
// itself; at hang:N it hangs, and at slow:N it is slow from there on; at after:N it is rank 0 that kills
// itself; at step N of wait:N all wait until they are killed, of gate:N until FOLDER/gate is there. With
// seed:2 it is another job; with parity its saves have that. Who sees the end adds a line with the weights to
// FOLDER/results.
#include <unistd.h>

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

// 37 rows in 16 shards of 4 lanes: runs of two lengths; and a tensor with fewer rows than there are shards.
constexpr int kLanes = 4, kMicrobatches = 8;
constexpr size_t kRows = 37, kColumns = 29, kCount = kRows * kColumns, kFew = 5;

float drawn(uint64_t key) {
  key = (key ^ (key >> 31)) * 0x9e3779b97f4a7c15ULL;
  key ^= key >> 29;
  return static_cast<float>(key >> 40) * 0x1p-24F - 0.5F;
}

// What an update makes of elements that begin with number `first`.
void apply(float* weights, float* momentum, const float* gradient, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    momentum[i] = 0.9F * momentum[i] + gradient[i];
    weights[i] -= 0.05F * momentum[i];
  }
}

void wait_for(const std::string& file) {
  for (int i = 0; i < 3000 && access(file.c_str(), F_OK) != 0; ++i) {
    // Reason for the wait: another process makes the file.
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

void wait_for_death(const std::string& folder, const std::string& place) {
  wait_for(folder + "/died." + place);
  // Reason for the wait: the view is to be revoked before this one goes on.
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));
}

int train(int argc, char** argv) {
  const std::string folder = argv[1], checkpoints = folder + "/checkpoints", kind = argv[4];
  const std::set<std::string> places(argv + 5, argv + argc);
  std::vector<float> weights(kCount), momentum(kCount), few(kFew, 3.0F), gradients(kCount + kFew);
  for (size_t i = 0; i < kCount; ++i) weights[i] = drawn(i);
  int64_t updates = 0;

  muster::Session session;
  muster::State state(session);
  const std::vector<int64_t> shape = {kRows, kColumns};
  muster::Sharded<float> weight_rows("weights"), momentum_rows("momentum"), few_rows("few"),
      extra_rows("extra");
  const bool is_sharded = kind != "whole";
  if (is_sharded) {
    momentum_rows = state.sharded<float>("momentum", shape);
    weight_rows = state.sharded("weights", shape, weights.data());
    few_rows = state.sharded("few", {kFew}, few.data());
  } else {
    state.replicated("momentum", momentum.data(), MUSTER_FLOAT32, shape);
    state.replicated("weights", weights.data(), MUSTER_FLOAT32, shape);
    state.replicated("few", few.data(), {kFew});
  }
  state.replicated("updates", &updates, {1});
  muster::TrainOptions options;
  options.steps = std::atoi(argv[2]);
  options.microbatches = kMicrobatches;
  options.lanes = kLanes;
  options.dataset_samples = 1000;
  if (places.contains("seed:2")) options.seed = 2;
  if (places.contains("parity")) options.checkpoint_parity = 8;
  options.checkpoint_dir = checkpoints.c_str();
  options.checkpoint_every = 7;
  std::vector<float> extra(kFew);
  if (kind == "added") {
    extra_rows = state.sharded("extra", {kFew}, extra.data());
    options.restore_rules = MUSTER_RESTORE_MISSING;
    options.checkpoint_every = 0;
  }
  if (kind == "one-copy" || kind == "added") options.shard_copies = 1;
  if (kind == "late") options.shard_copies = 3;
  bool is_slow = false;
  muster::Run run(session, state, options);
  while (auto step = run.next()) {
    const std::string here = std::to_string(step.index());
    const bool is_short = run.info().world_size < std::atoi(argv[3]);
    if (is_short) {
      // Reason for the wait: a worker that was killed starts again and joins meanwhile.
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    const std::string here_died = folder + "/died.update:" + here;
    const bool waits =
        kind == "one-copy" && places.count("update:" + here) != 0 && access(here_died.c_str(), F_OK) != 0;
    for (int i = 0; i < 3000 && waits && run.info().durable < 0; ++i) {
      // Reason for the wait: what the others are to go back to has to be durable before this one dies.
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    for (int i = 0; i < 20000 && places.count("wait:" + here) != 0; ++i) {
      // Reason for the wait: the test kills this process here, once it has seen the saves before.
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    if (places.count("gate:" + here) != 0) wait_for(folder + "/gate");
    if (muster::is_first_at(folder, places, "hang:" + here)) {
      // Reason for the wait: this is the hung program that the leader has to find; the agent kills it in it.
      std::this_thread::sleep_for(std::chrono::hours(1));
    }
    is_slow = is_slow || muster::is_first_at(folder, places, "slow:" + here);
    for (float& gradient : gradients) gradient = 0;
    for (const auto& micro : step.microbatches()) {
      if (is_slow) {
        // Reason for the wait: this is the straggler, whose microbatches take many times the others'.
        std::this_thread::sleep_for(std::chrono::milliseconds(25));
      }
      // Of the weights too, so that a working copy that is wrong shows.
      for (size_t i = 0; i < kCount; ++i)
        gradients[i] = 0.1F * weights[i] + drawn(micro.random_key + i) + 0.01F * few[i % kFew];
      for (size_t i = 0; i < kFew; ++i) gradients[kCount + i] = few[i] * 0.1F + drawn(micro.random_key ^ i);
      step.accumulate(micro, gradients);
      muster::die_at(folder, places, "step:" + here);
    }
    if (!step.reduce(gradients)) continue;
    muster::die_at(folder, places, "reduce:" + here);
    const bool is_late = kind == "late" && step.index() == 20;
    if (is_late && !is_short && run.info().rank == 2) wait_for_death(folder, "after:20");
    if (is_late && !is_short && run.info().rank == 3) {
      // The others wait in the library while one catches up, so this one dies beside that.
      std::thread([&] {
        wait_for(folder + "/catching-up");
        muster::die_at(folder, places, "again");
      }).detach();
    }
    if (is_late && is_short) {
      close(open((folder + "/catching-up").c_str(), O_CREAT | O_CLOEXEC, 0600));
      wait_for_death(folder, "again");
    }
    if (auto update = step.update()) {
      ++updates;
      if (is_sharded) {
        const auto own_weights = weight_rows.local(step), own_momentum = momentum_rows.local(step);
        for (size_t i = 0; i < own_weights.size(); ++i) {
          const muster::Piece<float>& piece = own_weights[i];
          const auto first = static_cast<size_t>(piece.begin) * kColumns;
          apply(piece.data, own_momentum[i].data, &gradients[first],
                static_cast<size_t>(piece.count) * kColumns);
        }
        const bool leaves_out = kind == "careless" && step.index() == 13 && run.info().rank == 1;
        for (const muster::Piece<float>& piece : few_rows.local(step)) {
          if (leaves_out) continue;
          for (int64_t i = 0; i < piece.count; ++i)
            piece.data[i] -= 0.1F * gradients[kCount + static_cast<size_t>(piece.begin + i)];
        }
        if (kind == "added") {
          for (const muster::Piece<float>& piece : extra_rows.local(step))
            for (int64_t i = 0; i < piece.count; ++i) piece.data[i] += 1 + 0.5F * piece.data[i];
        }
      } else {
        apply(weights.data(), momentum.data(), gradients.data(), kCount);
        for (size_t i = 0; i < kFew; ++i) few[i] -= 0.1F * gradients[kCount + i];
      }
      muster::die_at(folder, places, "update:" + here);
    }
    if (is_late && !is_short) {
      const std::string closed = folder + "/closed.";
      close(open((closed + std::to_string(run.info().rank)).c_str(), O_CREAT | O_CLOEXEC, 0600));
      for (const char* other : {"1", "3"}) {
        if (run.info().rank == 0) wait_for(closed + other);
      }
    }
    if (run.info().rank == 0) muster::die_at(folder, places, "after:" + here);
  }
  if (run.exit_code() != 0) return run.exit_code();
  if (run.info().rank < 0) return 0;  // it came too late to be a member: what it has is not the run's
  uint64_t sum = 0;
  for (const auto* values : {&weights, &few, &extra}) sum = muster::digest_of_values(*values, sum);
  const std::string line = "weights " + std::to_string(sum) + " updates " + std::to_string(updates) + "\n";
  return muster::add_result(folder, line) ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  if (std::string(argv[4]) == "careless") return train(argc, argv);  // it dies of what it did not expect
  try {
    return train(argc, argv);
  } catch (const muster::Failure& failure) {
    std::fprintf(stderr, "shard_worker: %s\n", failure.what());
    return failure.exit_code();
  }
}
