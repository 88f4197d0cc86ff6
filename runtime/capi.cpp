// muster.h over the C++ runtime: sessions and runs. Communicators are in capi_comm.cpp.
#include "runtime/capi.h"

#include <cmath>
#include <optional>

#include "runtime/base/options.h"
#include "runtime/run.h"
#include "runtime/seal_key_file.h"
#include "runtime/session.h"
#include "runtime/state.h"

struct muster_session {
  std::unique_ptr<muster::Session> session;
  const muster::ForkMark mark{};
};
struct muster_state {
  muster::State state;
};
struct muster_step {
  muster::Run* run = nullptr;
  std::map<std::string, std::vector<muster_piece>> pieces;  // that were asked for
  const muster::ForkMark mark{};
};
struct muster_run {
  std::unique_ptr<muster::Run> run;
  muster_step step;
  const muster::ForkMark mark{};
};

namespace {

using namespace muster::capi;

thread_local std::string last_error;

muster::EventSink sink_of(const muster_join_options& options) {
  if (options.on_event == nullptr) return nullptr;
  return [callback = options.on_event, context = options.event_context](const muster::Event& event) {
    const std::string kind(to_string(event.kind));
    const muster_event c_event = {static_cast<uint32_t>(event.kind),
                                  kind.c_str(),
                                  event.at,
                                  event.generation,
                                  event.version,
                                  event.subject,
                                  event.amount,
                                  event.text.c_str()};
    callback(context, &c_event);
  };
}

muster::Gradients gradients_of(const muster_span* spans, size_t count) {
  muster::Gradients gradients;
  gradients.reserve(count);
  for (size_t i = 0; i < count; ++i) gradients.emplace_back(spans[i].data, spans[i].count);
  return gradients;
}

bool is_memory(int number) { return number == MUSTER_HOST || number == MUSTER_CUDA; }
static_assert(static_cast<int>(muster::Memory::kHost) == MUSTER_HOST &&
              static_cast<int>(muster::Memory::kCuda) == MUSTER_CUDA);

struct Shape {
  const int64_t* extents;
  size_t rank;
};

template <typename Add>
muster_status add_tensor(const char* function, muster_state* state, const char* name,
                         const muster_memory& memory, const muster_dtype& dtype, Shape shape, Add add) {
  return guarded([&] {
    if (state == nullptr || name == nullptr || (shape.extents == nullptr && shape.rank > 0)) {
      return null_argument(function);
    }
    const int type = number_of(dtype), where = number_of(memory);
    if (type < 0 || type >= muster::kDTypeCount) {
      return failed(MUSTER_MISUSE, std::string("tensor '") + name + "' has the unknown element type " +
                                       std::to_string(type));
    }
    if (!is_memory(where)) {
      return failed(MUSTER_MISUSE, std::string("tensor '") + name + "' is in the unknown memory " +
                                       std::to_string(where) + "; say MUSTER_HOST (0) or MUSTER_CUDA (1)");
    }
    return to_c(add(static_cast<muster::DType>(type), static_cast<muster::Memory>(where),
                    std::vector<int64_t>(shape.extents, shape.extents + shape.rank)));
  });
}

muster_status add_replicated(const char* function, muster_state* state, const char* name,
                             const muster_memory& memory, void* data, const muster_dtype& dtype,
                             Shape shape) {
  const auto add = [&](muster::DType type, muster::Memory where, std::vector<int64_t> extents) {
    return state->state.add_replicated(name, data, type, std::move(extents), where);
  };
  return add_tensor(function, state, name, memory, dtype, shape, add);
}

}  // namespace

namespace muster::capi {

muster_status to_c(ErrorCode code) {
  switch (code) {
    case ErrorCode::kRetry:
      return MUSTER_RETRY;
    case ErrorCode::kReconfigure:
      return MUSTER_AGAIN;
    case ErrorCode::kDropCheckpoint:
      return MUSTER_DROP_CHECKPOINT;
    case ErrorCode::kMisuse:
      return MUSTER_MISUSE;
    case ErrorCode::kEnvironment:
      return MUSTER_ENVIRONMENT;
    case ErrorCode::kEnded:
      return MUSTER_ENDED;
  }
  return MUSTER_ENVIRONMENT;
}

muster_status failed(muster_status status, std::string message) {
  last_error = std::move(message);
  return status;
}

muster_status inherited_handle(const char* function) {
  return failed(
      MUSTER_MISUSE,
      std::string(function) +
          " was called in a forked child with a handle of its parent, whose threads and connections "
          "are not here; call it in the parent");
}

}  // namespace muster::capi

extern "C" {

const char* muster_version(void) { return MUSTER_VERSION_TEXT; }

const char* muster_last_error(void) { return last_error.c_str(); }

muster_status muster_join(const muster_join_options* options, muster_session** session) {
  return guarded([&] {
    if (session == nullptr) return null_argument("muster_join");
    *session = nullptr;
    muster_join_options known{};
    if (options != nullptr && !read_options(options, &known)) {
      return failed(MUSTER_MISUSE,
                    "muster_join_options.size is not set; set it to sizeof(muster_join_options)");
    }
    auto joined = muster::Session::join({sink_of(known), known.keep_signals != 0});
    if (joined.ok()) *session = new muster_session{std::move(*joined)};
    return to_c(joined);
  });
}

// What a forked child has is a copy of what goes on in its parent, and is left as it is.
void muster_leave(muster_session* session) {
  if (session != nullptr && !session->mark.is_inherited()) delete session;
}

muster_status muster_session_notice(muster_session* session, double seconds_left, const char* source) {
  return guarded(session, __func__, [&] {
    if (session == nullptr || source == nullptr) return null_argument("muster_session_notice");
    if (std::isnan(seconds_left)) return failed(MUSTER_MISUSE, "seconds_left is not a number");
    return to_c(session->session->notice(seconds_left < 0 ? -1 : from_seconds(seconds_left), source));
  });
}

muster_status muster_state_create(muster_session* session, muster_state** state) {
  return guarded([&] {
    if (session == nullptr || state == nullptr) return null_argument("muster_state_create");
    *state = new muster_state;
    return MUSTER_OK;
  });
}

void muster_state_destroy(muster_state* state) { delete state; }

muster_status muster_state_replicated(muster_state* state, const char* name, void* data, muster_dtype dtype,
                                      const int64_t* shape, size_t rank) {
  return add_replicated("muster_state_replicated", state, name, MUSTER_HOST, data, dtype, {shape, rank});
}

muster_status muster_state_replicated_in(muster_state* state, const char* name, muster_memory memory,
                                         void* data, muster_dtype dtype, const int64_t* shape, size_t rank) {
  return add_replicated("muster_state_replicated_in", state, name, memory, data, dtype, {shape, rank});
}

muster_status muster_state_per_lane(muster_state* state, const char* name, void* data, muster_dtype dtype,
                                    const int64_t* shape, size_t rank) {
  const auto add = [&](muster::DType type, muster::Memory, std::vector<int64_t> extents) {
    return state->state.add_per_lane(name, data, type, std::move(extents));
  };
  return add_tensor("muster_state_per_lane", state, name, MUSTER_HOST, dtype, {shape, rank}, add);
}

muster_status muster_state_sharded(muster_state* state, const char* name, void* working_copy,
                                   muster_dtype dtype, const int64_t* shape, size_t rank) {
  const auto add = [&](muster::DType type, muster::Memory, std::vector<int64_t> extents) {
    return state->state.add_sharded(name, working_copy, type, std::move(extents));
  };
  return add_tensor("muster_state_sharded", state, name, MUSTER_HOST, dtype, {shape, rank}, add);
}

muster_status muster_state_expect(muster_state* state, const char* name, muster_expectation expectation) {
  return guarded([&] {
    if (state == nullptr || name == nullptr) return null_argument("muster_state_expect");
    int number = 0;
    static_assert(sizeof number == sizeof expectation);
    std::memcpy(&number, &expectation, sizeof number);
    if (number < MUSTER_EXPECT_WATCHED || number > MUSTER_EXPECT_FREE) {
      return failed(MUSTER_MISUSE, std::string("tensor '") + name + "' is given the unknown expectation " +
                                       std::to_string(number));
    }
    return to_c(state->state.expect(name, static_cast<muster::checkpoint::Expectation>(number)));
  });
}

void muster_train_options_init(muster_train_options* options) {
  if (options == nullptr) return;
  *options = {};
  options->size = sizeof(muster_train_options);
  options->steps = 1;
  options->microbatches = 1;
  options->lanes = 1;
  options->samples_per_microbatch = 1;
  options->dataset_samples = 1;
  options->checkpoint_keep = 3;
}

muster_status muster_train(muster_session* session, muster_state* state, const muster_train_options* options,
                           muster_run** run) {
  return guarded(session, __func__, [&] {
    if (session == nullptr || state == nullptr || options == nullptr || run == nullptr) {
      return null_argument("muster_train");
    }
    *run = nullptr;
    muster_train_options known;
    muster_train_options_init(&known);
    if (!read_options(options, &known)) {
      return failed(MUSTER_MISUSE,
                    "muster_train_options.size is not set; call muster_train_options_init first");
    }
    if (std::isnan(known.step_timeout_seconds))
      return failed(MUSTER_MISUSE, "step_timeout_seconds is not a number");
    muster::TrainOptions train;
    train.steps = known.steps;
    train.microbatches = known.microbatches;
    train.lanes = known.lanes;
    train.samples_per_microbatch = known.samples_per_microbatch;
    train.dataset_samples = known.dataset_samples;
    train.seed = known.seed;
    train.save.folder = known.checkpoint_dir != nullptr ? known.checkpoint_dir : "";
    train.save.every = known.checkpoint_every;
    train.save.keep = known.checkpoint_keep;
    train.save.stale_fails = known.stale_fails != 0;
    train.save.parity = known.checkpoint_parity;
    train.local.folder = known.checkpoint_local_dir != nullptr ? known.checkpoint_local_dir : "";
    train.local.every = known.checkpoint_local_every;
    if (known.checkpoint_drain != 0 && known.checkpoint_drain != 1)
      return failed(MUSTER_MISUSE, "checkpoint_drain is " + std::to_string(known.checkpoint_drain) +
                                       "; give 1, or 0, which leaves it to MUSTER_CHECKPOINT_DRAIN");
    train.local.drain = known.checkpoint_drain == 1;
    constexpr int32_t kRules =
        MUSTER_RESTORE_MISSING | MUSTER_RESTORE_EXTRA | MUSTER_RESTORE_RESHAPED | MUSTER_RESTORE_CASTS;
    if ((known.restore_rules & ~kRules) != 0)
      return failed(MUSTER_MISUSE, "restore_rules has a bit that is no muster_restore_rule");
    train.save.rules = {(known.restore_rules & MUSTER_RESTORE_MISSING) != 0,
                        (known.restore_rules & MUSTER_RESTORE_EXTRA) != 0,
                        (known.restore_rules & MUSTER_RESTORE_RESHAPED) != 0,
                        (known.restore_rules & MUSTER_RESTORE_CASTS) != 0};
    const auto codec = muster::capi::codec_of(known.codec);
    if (!codec && known.codec != MUSTER_CODEC_NONE) {
      return failed(MUSTER_MISUSE, "codec is " + std::to_string(known.codec) +
                                       ", which a run cannot use; choose none (0), bf16 (1), fp16 (2), "
                                       "int8 (3), int4 (4) or mxfp8 (5), or with error_feedback also "
                                       "1-bit (6) or topk (7)");
    }
    train.codec = codec;
    train.error_feedback = known.error_feedback;
    if (!is_memory(known.gradient_memory)) {
      return failed(MUSTER_MISUSE, "gradient_memory is " + std::to_string(known.gradient_memory) +
                                       ", which is no muster_memory; say MUSTER_HOST (0) or MUSTER_CUDA (1)");
    }
    train.gradient_memory = static_cast<muster::Memory>(known.gradient_memory);
    train.stream = known.stream;
    if (known.device_collectives < MUSTER_COLLECTIVES_HOST ||
        known.device_collectives > MUSTER_COLLECTIVES_NCCL) {
      return failed(MUSTER_MISUSE, "device_collectives is " + std::to_string(known.device_collectives) +
                                       ", which is no muster_collectives; say MUSTER_COLLECTIVES_HOST (0) or "
                                       "MUSTER_COLLECTIVES_NCCL (1)");
    }
    train.nccl = known.device_collectives == MUSTER_COLLECTIVES_NCCL;
    std::string key_file = known.checkpoint_key_file != nullptr ? known.checkpoint_key_file : "";
    // A variable that is wrong was refused when the session was joined.
    if (const auto values = muster::OptionValues::from_environment(); values.ok()) {
      train.save.staging_bytes_max = static_cast<uint64_t>(values->integer("staging-mib")) << 20;
      train.lessons.log_bytes_max = static_cast<uint64_t>(values->integer("lesson-log-mib")) << 20;
      train.save.bytes_per_second_max = static_cast<uint64_t>(values->integer("save-rate-mib")) << 20;
      train.save.link_unchanged = values->on("link-unchanged");
      const std::string& probe = values->text("probe");
      train.on_difference = probe == "off"      ? muster::OnDifference::kNothing
                            : probe == "refuse" ? muster::OnDifference::kRefuse
                                                : muster::OnDifference::kTell;
      // Variables are for all programs of a job's script: one that could not save so is not refused.
      const bool may_save_locally =
          !train.save.folder.empty() && state->state.sharded().empty() && train.error_feedback == 0;
      if (may_save_locally && train.local.folder.empty())
        train.local.folder = values->text("checkpoint-local-dir");
      const bool saves_locally = !train.local.folder.empty();
      if (saves_locally && train.local.every == 0)
        train.local.every = values->text("checkpoint-local-every") == "auto"
                                ? muster::SaveOptions::kPaced
                                : values->integer("checkpoint-local-every");
      if (saves_locally && values->on("checkpoint-drain")) train.local.drain = true;
      // An interval, wherever it is from, asks for nothing where there is no folder.
      if (!saves_locally && train.local.every >= muster::SaveOptions::kPaced) train.local.every = 0;
      if (key_file.empty()) key_file = values->text("checkpoint-key-file");
      train.save.keep_every = static_cast<uint64_t>(values->integer("keep-every"));
      train.save.keep_younger_ms = values->duration("keep-younger") / muster::kMillisecond;
    }
    // A job that saves nothing needs no key, whatever the variable says.
    if (!train.save.folder.empty()) {
      auto key = muster::read_seal_key(key_file);
      if (!key.ok()) return to_c(key);
      train.save.key = *std::move(key);
    }
    if (known.step_timeout_seconds > 0) train.step_timeout = from_seconds(known.step_timeout_seconds);
    if (known.bucket_bytes > 0) train.bucket_bytes = known.bucket_bytes;
    if (known.shard_copies != 0) train.shard_copies = known.shard_copies;
    auto started = muster::Run::start(*session->session, state->state, std::move(train));
    if (started.ok()) {
      *run = new muster_run{std::move(*started), {}};
      (*run)->step.run = (*run)->run.get();
    }
    return to_c(started);
  });
}

// A callback that began before may still be asking the run.
void muster_run_destroy(muster_run* run) {
  if (run == nullptr || run->mark.is_inherited()) return;
  run->run->session().wait_for_sink();
  delete run;
}

muster_status muster_run_next(muster_run* run, muster_step** step) {
  return guarded(run, __func__, [&] {
    if (run == nullptr || step == nullptr) return null_argument("muster_run_next");
    *step = nullptr;
    run->step.pieces.clear();
    const auto has_step = run->run->next();
    if (has_step.ok() && *has_step) *step = &run->step;
    return to_c(has_step);
  });
}

muster_status muster_run_probe(muster_run* run, const void* results, size_t bytes) {
  return guarded(run, __func__, [&] {
    if (run == nullptr || (results == nullptr && bytes > 0)) return null_argument("muster_run_probe");
    return to_c(run->run->probe({static_cast<const std::byte*>(results), bytes}));
  });
}

int muster_run_exit_code(const muster_run* run) {
  int code = 1;
  (void)guarded(run, __func__, [&] {
    if (run != nullptr) code = run->run->exit_code();
    return MUSTER_OK;
  });
  return code;
}

muster_status muster_run_get_info(const muster_run* run, muster_run_info* info) {
  return guarded(run, __func__, [&] {
    if (run == nullptr || info == nullptr) return null_argument("muster_run_get_info");
    if (info->size < sizeof(size_t) || info->size > 4096) {
      return failed(MUSTER_MISUSE, "muster_run_info.size is not set; set it to sizeof(muster_run_info)");
    }
    const muster::RunInfo now = run->run->info();
    muster_run_info known{};
    known.size = info->size;
    known.version = now.version;
    known.committed = now.committed;
    known.durable = now.durable;
    known.generation = now.generation;
    known.rank = now.rank;
    known.world_size = now.world_size;
    known.node_count = now.node_count;
    known.learner = now.learner ? 1 : 0;
    known.save_stall_seconds = muster::seconds(now.save_stall);
    std::memcpy(info, &known, std::min(info->size, sizeof known));
    return MUSTER_OK;
  });
}

int64_t muster_step_index(const muster_step* step) {
  return step != nullptr ? step->run->step_version() : -1;
}

muster_status muster_step_pieces(muster_step* step, const char* name, const muster_piece** pieces,
                                 size_t* count) {
  return guarded(step, __func__, [&] {
    if (step == nullptr || name == nullptr || pieces == nullptr || count == nullptr)
      return null_argument("muster_step_pieces");
    *pieces = nullptr;
    *count = 0;
    auto held = step->run->pieces(name);
    if (!held.ok()) return to_c(held);
    std::vector<muster_piece>& list = step->pieces[name];
    list.clear();
    for (const muster::ShardPiece& piece : *held) list.push_back({piece.data, piece.begin, piece.rows});
    *pieces = list.data();
    *count = list.size();
    return MUSTER_OK;
  });
}

int muster_step_next_microbatch(muster_step* step, muster_microbatch* microbatch) {
  int found = 0;
  (void)guarded(step, __func__, [&] {
    if (step == nullptr || microbatch == nullptr) return null_argument("muster_step_next_microbatch");
    const auto micro = step->run->next_microbatch();
    if (!micro) return MUSTER_OK;
    *microbatch = {micro->index,           micro->lane,
                   micro->position,        static_cast<int64_t>(micro->samples->size()),
                   micro->samples->data(), micro->random_key};
    found = 1;
    return MUSTER_OK;
  });
  return found;
}

muster_status muster_step_accumulate(muster_step* step, const muster_microbatch* microbatch,
                                     const muster_span* gradients, size_t spans) {
  return guarded(step, __func__, [&] {
    if (step == nullptr || microbatch == nullptr || gradients == nullptr)
      return null_argument("muster_step_accumulate");
    return to_c(step->run->accumulate(microbatch->index, gradients_of(gradients, spans)));
  });
}

muster_status muster_step_accumulate_part(muster_step* step, const muster_microbatch* microbatch,
                                          const muster_span* gradients, size_t spans, size_t begin,
                                          size_t end) {
  return guarded(step, __func__, [&] {
    if (step == nullptr || microbatch == nullptr || gradients == nullptr)
      return null_argument("muster_step_accumulate_part");
    return to_c(step->run->accumulate_part(microbatch->index, gradients_of(gradients, spans), begin, end));
  });
}

muster_status muster_step_reduce(muster_step* step, const muster_span* gradients, size_t spans) {
  return guarded(step, __func__, [&] {
    if (step == nullptr || gradients == nullptr) return null_argument("muster_step_reduce");
    return to_c(step->run->reduce(gradients_of(gradients, spans)));
  });
}

muster_status muster_step_open_update(muster_step* step) {
  return guarded(step, __func__, [&] {
    return step == nullptr ? null_argument("muster_step_open_update") : to_c(step->run->open_update());
  });
}

muster_status muster_step_close_update(muster_step* step) {
  return guarded(step, __func__, [&] {
    return step == nullptr ? null_argument("muster_step_close_update") : to_c(step->run->close_update());
  });
}

muster_status muster_step_abandon_update(muster_step* step) {
  return guarded(step, __func__, [&] {
    return step == nullptr ? null_argument("muster_step_abandon_update") : to_c(step->run->abandon_update());
  });
}

}  // extern "C"
