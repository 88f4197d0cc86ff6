// A small training through muster.h, alone, whose weights and gradients are in the host's memory or a CUDA
// device's. `Backend` computes, and knows how; both kinds must end with the same bits.
#pragma once

#include <muster/muster.h>

#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace muster {

// What computes. `weights` and so on are its own memory. Every backend makes these additions, in this order,
// in float32, so that all end with the same bits:
//   backward: gradients[i] = (gradients[i] + weights[i] / 16) + sample_value(sample, i), for each sample
//   update:   weights[i] = weights[i] + gradients[i] / −32
class Backend {
 public:
  explicit Backend(size_t count) : count_(count) {}
  virtual ~Backend() = default;
  size_t count() const { return count_; }
  virtual muster_memory memory() const = 0;
  virtual void* stream() const = 0;
  virtual float* weights() = 0;
  virtual float* gradients() = 0;
  virtual void zero_gradients() = 0;
  virtual void backward(const std::vector<int64_t>& samples) = 0;
  virtual void update() = 0;
  // Waits for all that was enqueued.
  virtual std::vector<float> final_weights() = 0;

 private:
  size_t count_;
};

constexpr size_t kSampleKinds = 4;
inline float sample_value(int64_t sample, size_t i) {
  const size_t kind = static_cast<size_t>(sample) % kSampleKinds;
  return static_cast<float>((i * 7 + kind * 13) % 31) * 0.1F - 1.5F;
}

inline void backward_on_host(const float* weights, float* gradients, size_t count,
                             const std::vector<int64_t>& samples) {
  for (const int64_t sample : samples) {
    for (size_t i = 0; i < count; ++i)
      gradients[i] = (gradients[i] + weights[i] * 0.0625F) + sample_value(sample, i);
  }
}

inline void update_on_host(float* weights, const float* gradients, size_t count) {
  for (size_t i = 0; i < count; ++i) weights[i] = weights[i] + gradients[i] * -0.03125F;
}

class HostBackend final : public Backend {
 public:
  explicit HostBackend(size_t count) : Backend(count), weights_(count), gradients_(count) {}
  muster_memory memory() const override { return MUSTER_HOST; }
  void* stream() const override { return nullptr; }
  float* weights() override { return weights_.data(); }
  float* gradients() override { return gradients_.data(); }
  void zero_gradients() override { gradients_.assign(count(), 0); }
  void backward(const std::vector<int64_t>& samples) override {
    backward_on_host(weights(), gradients(), count(), samples);
  }
  void update() override { update_on_host(weights(), gradients(), count()); }
  std::vector<float> final_weights() override { return weights_; }

 private:
  std::vector<float> weights_, gradients_;
};

// Of checkpoints; gone with all that is in it.
class Folder {
 public:
  Folder() {
    static int made = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("muster_device." + std::to_string(getpid()) + "." + std::to_string(++made));
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string path() const { return path_; }

 private:
  std::filesystem::path path_;
};

struct TrainingOptions {
  int64_t steps = 4;
  int32_t microbatches = 4;
  int32_t lanes = 2;
  std::string checkpoints;  // none where empty
  int64_t checkpoint_every = 2;
  int32_t codec = MUSTER_CODEC_NONE;
  uint64_t error_feedback = 0;
  bool keeps_weights = true;  // as a part of the state; else they are lost with the process
  size_t bucket_bytes = 1024;
  bool in_parts = false;
  bool nccl = false;
  double step_timeout = 0;                         // seconds; 0: the library's
  std::function<void(const std::string&)> on_log;  // from another thread, until the training has gone
  std::function<void(muster_session*, int64_t step)> at_step;  // before its last microbatch is added
  std::function<void(int64_t step)> in_update;
};

struct TrainingResult {
  muster_status status = MUSTER_OK;
  std::string error;
  int exit_code = -1;
  int again = 0;    // steps that were given up
  int learned = 0;  // steps that another's gradient was applied in
  std::vector<float> weights;
  int64_t counter = 0;
  double save_stall_seconds = 0;
  int32_t rank = -1;  // in the newest view; −1: never a member, and its weights are not the run's
};

class Training {
 public:
  Training(Backend& backend, const TrainingOptions& options) : backend_(backend), options_(options) {}
  ~Training() {
    muster_run_destroy(run_);
    muster_state_destroy(state_);
    muster_leave(session_);
  }
  Training(const Training&) = delete;
  Training& operator=(const Training&) = delete;

  TrainingResult run() {
    TrainingResult result;
    result.status = train(result);
    if (result.status != MUSTER_OK) result.error = muster_last_error();
    if (run_ != nullptr) {
      result.save_stall_seconds = info().save_stall_seconds;
      result.rank = info().rank;
      result.exit_code = muster_run_exit_code(run_);
    }
    result.weights = backend_.final_weights();
    result.counter = counter_;
    return result;
  }

 private:
#define MUSTER_DO(call)                                           \
  do {                                                            \
    if (const muster_status s = (call); s != MUSTER_OK) return s; \
  } while (false)

  muster_status train(TrainingResult& result) {
    muster_join_options join{};
    join.size = sizeof join;
    join.event_context = this;
    join.on_event = [](void* context, const muster_event* event) {
      const auto& on_log = static_cast<Training*>(context)->options_.on_log;
      if (on_log && std::string(event->kind_name) == "log") on_log(event->text);
    };
    MUSTER_DO(muster_join(&join, &session_));
    MUSTER_DO(muster_state_create(session_, &state_));
    const int64_t shape[] = {static_cast<int64_t>(backend_.count())};
    if (options_.keeps_weights) {
      MUSTER_DO(muster_state_replicated_in(state_, "w", backend_.memory(), backend_.weights(), MUSTER_FLOAT32,
                                           shape, 1));
    }
    MUSTER_DO(muster_state_replicated(state_, "steps", &counter_, MUSTER_INT64, nullptr, 0));
    const muster_train_options options = train_options();
    MUSTER_DO(muster_train(session_, state_, &options, &run_));
    muster_step* step = nullptr;
    while (true) {
      MUSTER_DO(muster_run_next(run_, &step));
      if (step == nullptr) return MUSTER_OK;
      if (info().learner != 0) ++result.learned;
      const muster_status done = compute(step);
      if (done == MUSTER_AGAIN) ++result.again;
      if (done != MUSTER_OK && done != MUSTER_AGAIN) return done;
    }
  }

  muster_run_info info() const {
    muster_run_info info{};
    info.size = sizeof info;
    (void)muster_run_get_info(run_, &info);
    return info;
  }

  muster_train_options train_options() const {
    muster_train_options options;
    muster_train_options_init(&options);
    options.steps = options_.steps;
    options.microbatches = options_.microbatches;
    options.lanes = options_.lanes;
    options.samples_per_microbatch = 3;
    options.dataset_samples = 100;
    options.checkpoint_dir = options_.checkpoints.c_str();
    options.checkpoint_every = options_.checkpoint_every;
    options.bucket_bytes = options_.bucket_bytes;
    options.codec = options_.codec;
    options.error_feedback = options_.error_feedback;
    options.gradient_memory = backend_.memory();
    options.stream = backend_.stream();
    options.step_timeout_seconds = options_.step_timeout;
    if (options_.nccl) options.device_collectives = MUSTER_COLLECTIVES_NCCL;
    return options;
  }

  muster_status compute(muster_step* step) {
    const size_t count = backend_.count(), split = count / 3;
    const muster_span spans[] = {{backend_.gradients(), split},
                                 {backend_.gradients() + split, count - split}};
    backend_.zero_gradients();
    muster_microbatch micro;
    while (muster_step_next_microbatch(step, &micro) == 1) {
      backend_.backward({micro.samples, micro.samples + micro.count});
      if (micro.index + 1 == options_.microbatches && options_.at_step)
        options_.at_step(session_, muster_step_index(step));
      if (options_.in_parts) {
        MUSTER_DO(muster_step_accumulate_part(step, &micro, spans, 2, split / 2, count));
        MUSTER_DO(muster_step_accumulate_part(step, &micro, spans, 2, 0, split / 2));
      } else {
        MUSTER_DO(muster_step_accumulate(step, &micro, spans, 2));
      }
    }
    MUSTER_DO(muster_step_reduce(step, spans, 2));
    MUSTER_DO(muster_step_open_update(step));
    if (options_.in_update) options_.in_update(muster_step_index(step));
    backend_.update();
    ++counter_;
    return muster_step_close_update(step);
  }
#undef MUSTER_DO

  Backend& backend_;
  const TrainingOptions options_;
  int64_t counter_ = 0;
  muster_session* session_ = nullptr;
  muster_state* state_ = nullptr;
  muster_run* run_ = nullptr;
};

inline TrainingResult train_on(Backend& backend, const TrainingOptions& options) {
  return Training(backend, options).run();
}

}  // namespace muster
