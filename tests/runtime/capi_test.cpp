// muster.h as a careless program uses it, in a world of one: every misuse is answered by a status and a
// sentence, and a run that suffered them all ends with the weights of one that suffered none.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <muster/muster.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr int kSteps = 4;
constexpr size_t kCount = 5;

struct Misuse {
  bool on = false;
  int seen = 0;
};

// The call must be refused with `sentence`, unless the run is the quiet one, which does not make it.
#define REFUSED(misuse, call, sentence)                      \
  do {                                                       \
    if ((misuse).on) {                                       \
      EXPECT_EQ(call, MUSTER_MISUSE) << #call;               \
      EXPECT_THAT(muster_last_error(), HasSubstr(sentence)); \
      ++(misuse).seen;                                       \
    }                                                        \
  } while (false)

struct Program {
  std::array<float, kCount> weights{};
  std::array<float, kCount> gradients{};
  muster_session* session = nullptr;
  muster_state* state = nullptr;
  muster_run* run = nullptr;
  bool in_parts = false;  // gives its gradients as a backward pass does, the last ones first
  std::function<void(muster_step*)> in_update;

  explicit Program(const muster_join_options* options = nullptr) {
    EXPECT_EQ(muster_join(options, &session), MUSTER_OK) << muster_last_error();
    EXPECT_EQ(muster_state_create(session, &state), MUSTER_OK);
    const int64_t shape[] = {kCount};
    EXPECT_EQ(muster_state_replicated(state, "w", weights.data(), MUSTER_FLOAT32, shape, 1), MUSTER_OK);
  }
  ~Program() {
    muster_run_destroy(run);
    muster_state_destroy(state);
    muster_leave(session);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  static muster_train_options options() {
    muster_train_options options;
    muster_train_options_init(&options);
    options.steps = kSteps;
    options.microbatches = 4;
    options.lanes = 2;
    options.samples_per_microbatch = 3;
    options.dataset_samples = 100;
    return options;
  }

  muster_span all() { return {gradients.data(), kCount}; }

  void step(muster_step* step, Misuse misuse_of_caller, Misuse* counted);
};

void Program::step(muster_step* step, Misuse misuse, Misuse* counted) {
  gradients.fill(0);
  const muster_span whole = all();
  muster_step* other = nullptr;
  REFUSED(misuse, muster_step_open_update(step), "without a successful reduce");
  REFUSED(misuse, muster_step_close_update(step), "not open");
  REFUSED(misuse, muster_step_abandon_update(step), "not open");
  REFUSED(misuse, muster_step_reduce(step, &whole, 1), "before all microbatches");
  REFUSED(misuse, muster_step_reduce(step, nullptr, 1), "null");
  REFUSED(misuse, muster_step_next_microbatch(step, nullptr) == 0 ? MUSTER_MISUSE : MUSTER_OK, "null");
  muster_microbatch micro;
  bool first = true;
  while (muster_step_next_microbatch(step, &micro) == 1) {
    for (size_t i = 0; i < kCount; ++i)
      gradients[i] = static_cast<float>(micro.samples[0] % 7) + static_cast<float>(i);
    if (first) {
      muster_microbatch never = micro;
      never.index = 1000;
      REFUSED(misuse, muster_step_accumulate(step, &never, &whole, 1), "microbatch 1000");
      const muster_span none = {nullptr, kCount};
      REFUSED(misuse, muster_step_accumulate(step, &micro, &none, 1), "null pointer");
      REFUSED(misuse, muster_step_accumulate(step, nullptr, &whole, 1), "null");
    }
    if (first && muster_step_index(step) > 0) {
      const muster_span shorter = {gradients.data(), kCount - 1};
      REFUSED(misuse, muster_step_accumulate(step, &micro, &shorter, 1), "gradients of 4 elements");
    }
    if (first) {
      REFUSED(misuse, muster_step_accumulate_part(step, &micro, &whole, 1, 3, kCount + 1),
              "that lies within");
      REFUSED(misuse, muster_step_accumulate_part(step, &micro, &whole, 1, 2, 1), "that lies within");
      REFUSED(misuse, muster_step_accumulate_part(step, &micro, nullptr, 1, 0, 1), "null");
    }
    if (in_parts) {
      ASSERT_EQ(muster_step_accumulate_part(step, &micro, &whole, 1, 3, kCount), MUSTER_OK)
          << muster_last_error();
      EXPECT_EQ(gradients[3], 0.0F) << "zeroed for the next microbatch";
      EXPECT_NE(gradients[2], 0.0F) << "not given yet";
      if (first)
        REFUSED(misuse, muster_step_accumulate_part(step, &micro, &whole, 1, 2, 4), "each element once");
      ASSERT_EQ(muster_step_accumulate_part(step, &micro, &whole, 1, 0, 3), MUSTER_OK) << muster_last_error();
    } else {
      ASSERT_EQ(muster_step_accumulate(step, &micro, &whole, 1), MUSTER_OK) << muster_last_error();
    }
    EXPECT_EQ(gradients[0], 0.0F) << "zeroed for the next microbatch";
    if (first) REFUSED(misuse, muster_step_accumulate(step, &micro, &whole, 1), "microbatch");
    first = false;
  }
  ASSERT_EQ(muster_step_reduce(step, &whole, 1), MUSTER_OK) << muster_last_error();
  ASSERT_EQ(muster_step_open_update(step), MUSTER_OK) << muster_last_error();
  REFUSED(misuse, muster_step_open_update(step), "open already");
  REFUSED(misuse, muster_step_reduce(step, &whole, 1), "inside an open update");
  REFUSED(misuse, muster_run_next(run, &other), "inside an open update");
  for (size_t i = 0; i < kCount; ++i) weights[i] -= 0.125F * gradients[i];
  if (in_update) in_update(step);
  ASSERT_EQ(muster_step_close_update(step), MUSTER_OK) << muster_last_error();
  REFUSED(misuse, muster_step_close_update(step), "not open");
  *counted = misuse;
}

std::array<float, kCount> train(Misuse& misuse, size_t bucket_bytes = 0, int32_t codec = MUSTER_CODEC_NONE,
                                size_t options_size = sizeof(muster_train_options),
                                uint64_t error_feedback = 0) {
  Program program;
  muster_train_options options = Program::options();
  options.size = options_size;
  options.bucket_bytes = bucket_bytes;
  options.codec = codec;
  options.error_feedback = error_feedback;
  program.in_parts = bucket_bytes != 0;
  EXPECT_EQ(muster_train(program.session, program.state, &options, &program.run), MUSTER_OK)
      << muster_last_error();
  muster_run* second = nullptr;
  REFUSED(misuse, muster_train(program.session, program.state, &options, &second), "had its run");
  const int64_t shape[] = {1};
  float late = 0;
  REFUSED(misuse, muster_state_replicated(program.state, "late", &late, MUSTER_FLOAT32, shape, 1),
          "after the run had started");
  REFUSED(misuse, muster_state_expect(program.state, "w", MUSTER_EXPECT_CHANGING),
          "after the run had started");
  REFUSED(misuse, muster_state_expect(program.state, "w", static_cast<muster_expectation>(4)),
          "unknown expectation 4");
  muster_step* step = nullptr;
  muster_status status = MUSTER_OK;
  while ((status = muster_run_next(program.run, &step)) == MUSTER_OK && step != nullptr) {
    program.step(step, misuse, &misuse);
    if (testing::Test::HasFatalFailure()) return {};
  }
  EXPECT_EQ(status, MUSTER_OK) << muster_last_error();
  EXPECT_EQ(muster_run_exit_code(program.run), 0);
  return program.weights;
}

TEST(CApi, MisuseInEveryPhaseOfAStepIsRefusedAndHarmsNothing) {
  Misuse none;
  const auto quiet = train(none);
  EXPECT_NE(quiet[0], 0.0F);
  Misuse all{true};
  EXPECT_EQ(train(all), quiet);
  EXPECT_EQ(all.seen, 4 + kSteps * 17 + kSteps - 1);
  for (const size_t bucket_bytes : {1, 8, 12, 1 << 20}) {
    Misuse in_parts{true};
    EXPECT_EQ(train(in_parts, bucket_bytes), quiet) << "buckets of " << bucket_bytes << " bytes";
    EXPECT_EQ(in_parts.seen, 4 + kSteps * 18 + kSteps - 1);
  }
}

TEST(CApi, NullsAreRefusedEverywhere) {
  EXPECT_EQ(muster_join(nullptr, nullptr), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("muster_join"));
  EXPECT_EQ(muster_state_create(nullptr, nullptr), MUSTER_MISUSE);
  EXPECT_EQ(muster_state_expect(nullptr, nullptr, MUSTER_EXPECT_FREE), MUSTER_MISUSE);
  EXPECT_EQ(muster_state_replicated(nullptr, nullptr, nullptr, MUSTER_FLOAT32, nullptr, 0), MUSTER_MISUSE);
  EXPECT_EQ(muster_state_replicated_in(nullptr, nullptr, MUSTER_CUDA, nullptr, MUSTER_FLOAT32, nullptr, 0),
            MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("muster_state_replicated_in"));
  EXPECT_EQ(muster_state_sharded(nullptr, nullptr, nullptr, MUSTER_FLOAT32, nullptr, 0), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("muster_state_sharded"));
  EXPECT_EQ(muster_step_pieces(nullptr, nullptr, nullptr, nullptr), MUSTER_MISUSE);
  EXPECT_EQ(muster_train(nullptr, nullptr, nullptr, nullptr), MUSTER_MISUSE);
  EXPECT_EQ(muster_run_next(nullptr, nullptr), MUSTER_MISUSE);
  EXPECT_EQ(muster_run_get_info(nullptr, nullptr), MUSTER_MISUSE);
  EXPECT_EQ(muster_step_accumulate(nullptr, nullptr, nullptr, 0), MUSTER_MISUSE);
  EXPECT_EQ(muster_step_accumulate_part(nullptr, nullptr, nullptr, 0, 0, 0), MUSTER_MISUSE);
  EXPECT_EQ(muster_step_reduce(nullptr, nullptr, 0), MUSTER_MISUSE);
  EXPECT_EQ(muster_step_open_update(nullptr), MUSTER_MISUSE);
  EXPECT_EQ(muster_step_close_update(nullptr), MUSTER_MISUSE);
  EXPECT_EQ(muster_step_abandon_update(nullptr), MUSTER_MISUSE);
  EXPECT_EQ(muster_session_notice(nullptr, 1, "x"), MUSTER_MISUSE);
  EXPECT_EQ(muster_step_next_microbatch(nullptr, nullptr), 0);
  EXPECT_EQ(muster_step_index(nullptr), -1);
  EXPECT_EQ(muster_run_exit_code(nullptr), 1);
  muster_train_options_init(nullptr);
  muster_run_destroy(nullptr);
  muster_state_destroy(nullptr);
  muster_leave(nullptr);
}

TEST(CApi, OptionsThatCannotHoldAreNamed) {
  Program program;
  const auto refused = [&](const std::function<void(muster_train_options&)>& change) {
    muster_train_options options = Program::options();
    change(options);
    muster_run* run = nullptr;
    EXPECT_EQ(muster_train(program.session, program.state, &options, &run), MUSTER_MISUSE);
    EXPECT_EQ(run, nullptr);
    return std::string(muster_last_error());
  };
  using O = muster_train_options;
  EXPECT_THAT(refused([](O& o) { o.size = 0; }), HasSubstr("size is not set"));
  EXPECT_THAT(refused([](O& o) { o.steps = -1; }), HasSubstr("steps is -1"));
  EXPECT_THAT(refused([](O& o) { o.lanes = 3; }), HasSubstr("divide microbatches"));
  EXPECT_THAT(refused([](O& o) { o.lanes = 0; }), HasSubstr("divide microbatches"));
  EXPECT_THAT(refused([](O& o) { o.microbatches = o.lanes = INT32_MAX; }), HasSubstr("at most 1048576"));
  EXPECT_THAT(refused([](O& o) { o.samples_per_microbatch = INT64_MAX / 2; }), HasSubstr("64 bits"));
  EXPECT_THAT(refused([](O& o) { o.steps = INT64_MAX; }), HasSubstr("64 bits"));
  EXPECT_THAT(refused([](O& o) { o.dataset_samples = 0; }), HasSubstr("dataset_samples is 0"));
  EXPECT_THAT(refused([](O& o) { o.step_timeout_seconds = std::nan(""); }), HasSubstr("not a number"));
  EXPECT_THAT(refused([](O& o) {
                o.checkpoint_dir = "somewhere";
                o.checkpoint_keep = 1;
              }),
              HasSubstr("checkpoint_keep is 1"));
  for (const int64_t parity : {-1, 1, 65}) {
    EXPECT_THAT(refused([parity](O& o) { o.checkpoint_parity = parity; }),
                HasSubstr("checkpoint_parity is " + std::to_string(parity) + "; give 2 to 64 shards"));
  }
  EXPECT_THAT(refused([](O& o) {
                o.checkpoint_local_dir = "nvme";
                o.checkpoint_local_every = 5;
              }),
              HasSubstr("'nvme' without checkpoint_dir; give that too"));
  EXPECT_THAT(refused([](O& o) {
                o.checkpoint_dir = "somewhere";
                o.checkpoint_local_dir = "nvme";
              }),
              HasSubstr("checkpoint_local_every is 0 and checkpoint_local_dir is 'nvme'"));
  EXPECT_THAT(refused([](O& o) {
                o.checkpoint_dir = "somewhere";
                o.checkpoint_key_file = "/dev/null";
              }),
              HasSubstr("the checkpoint key /dev/null is not a regular file"));
  EXPECT_THAT(refused([](O& o) {
                o.checkpoint_dir = "somewhere";
                o.checkpoint_local_dir = "nvme";
                o.checkpoint_local_every = -2;  // and -1 is MUSTER_CHECKPOINT_AUTO
              }),
              HasSubstr("checkpoint_local_every is -2 and checkpoint_local_dir is 'nvme'"));
  EXPECT_THAT(refused([](O& o) { o.checkpoint_local_every = -5; }),
              HasSubstr("checkpoint_local_every is -5 and checkpoint_local_dir is not given"));
  EXPECT_THAT(refused([](O& o) { o.checkpoint_drain = 2; }),
              HasSubstr("checkpoint_drain is 2; give 1, or 0"));
  EXPECT_THAT(refused([](O& o) {
                o.checkpoint_dir = "somewhere";
                o.checkpoint_drain = 1;
              }),
              HasSubstr("checkpoint_drain is 1 and checkpoint_local_dir is not given"));
  for (const int32_t unknown : {-1, 1000}) {
    EXPECT_THAT(refused([&](O& o) { o.codec = unknown; }),
                AllOf(HasSubstr("codec is " + std::to_string(unknown)), HasSubstr("int8 (3)")));
  }
  for (const auto& [codec, name] : {std::pair{MUSTER_CODEC_ONE_BIT, "1-bit"}, {MUSTER_CODEC_TOPK, "topk"}}) {
    EXPECT_THAT(refused([codec = codec](O& o) { o.codec = codec; }),
                AllOf(HasSubstr("codec is " + std::string(name)), HasSubstr("set error_feedback")));
  }
  EXPECT_THAT(refused([](O& o) { o.error_feedback = 5; }),
              HasSubstr("error_feedback is 5 and codec is none, which leaves nothing out"));
  EXPECT_THAT(refused([](O& o) {
                o.codec = MUSTER_CODEC_INT8;
                o.error_feedback = uint64_t{1} << 41;
              }),
              HasSubstr("2^40 at most"));
  EXPECT_THAT(refused([](O& o) {
                o.codec = MUSTER_CODEC_INT8;
                o.error_feedback = kCount;
                o.checkpoint_dir = "somewhere";
                o.checkpoint_local_dir = "nvme";
                o.checkpoint_local_every = 5;
              }),
              HasSubstr("checkpoint_local_dir is given; leave that out"));
  EXPECT_THAT(refused([](O& o) {
                o.codec = MUSTER_CODEC_INT8;
                o.microbatches = o.lanes = 1 << 16;
              }),
              AllOf(HasSubstr("lanes is 65536"), HasSubstr("codec is int8")));
  EXPECT_THAT(refused([](O& o) { o.gradient_memory = 2; }),
              AllOf(HasSubstr("gradient_memory is 2"), HasSubstr("MUSTER_CUDA (1)")));
  for (const int32_t unknown : {-1, 2}) {
    EXPECT_THAT(refused([&](O& o) { o.device_collectives = unknown; }),
                HasSubstr("device_collectives is " + std::to_string(unknown)));
  }
  EXPECT_THAT(refused([](O& o) { o.device_collectives = MUSTER_COLLECTIVES_NCCL; }),
              HasSubstr("gradient_memory is MUSTER_HOST"));
  EXPECT_THAT(refused([](O& o) {
                o.device_collectives = MUSTER_COLLECTIVES_NCCL;
                o.gradient_memory = MUSTER_CUDA;
                o.codec = MUSTER_CODEC_ONE_BIT;
              }),
              HasSubstr("codec is 1-bit"));
  EXPECT_THAT(refused([](O& o) {
                o.device_collectives = MUSTER_COLLECTIVES_NCCL;
                o.gradient_memory = MUSTER_CUDA;
                o.microbatches = o.lanes = 65;
              }),
              HasSubstr("at most 64"));
  for (const int64_t copies : {-1, 17})
    EXPECT_THAT(refused([&](O& o) { o.shard_copies = copies; }), HasSubstr("give 1 to 16"));
  EXPECT_EQ(muster_session_notice(program.session, std::nan(""), "x"), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("not a number"));
  const int64_t shape[] = {1};
  EXPECT_EQ(muster_state_replicated(program.state, "t", program.gradients.data(),
                                    static_cast<muster_dtype>(99), shape, 1),
            MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("unknown element type 99"));
  EXPECT_EQ(muster_state_replicated_in(program.state, "t", static_cast<muster_memory>(3),
                                       program.gradients.data(), MUSTER_FLOAT32, shape, 1),
            MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("unknown memory 3"));
}

// Compressed, alone: near the weights of float32, the same each time and in any parts.
TEST(CApi, EachCodecTrains) {
  Misuse none;
  const auto exact = train(none);
  for (int32_t codec = MUSTER_CODEC_BF16; codec <= MUSTER_CODEC_MXFP8; ++codec) {
    const auto weights = train(none, 0, codec);
    EXPECT_EQ(weights == exact, codec < MUSTER_CODEC_INT8) << codec;  // 16 bits have room for these numbers
    for (size_t i = 0; i < kCount; ++i)
      EXPECT_NEAR(weights[i], exact[i], 0.2F * std::abs(exact[i]) + 0.2F) << codec;
    EXPECT_EQ(train(none, 8, codec), weights) << codec;
  }
}

TEST(CApi, EachCodecTrainsWithErrorFeedback) {
  Misuse none;
  constexpr size_t kWhole = sizeof(muster_train_options);
  const auto exact = train(none);
  for (int32_t codec = MUSTER_CODEC_BF16; codec <= MUSTER_CODEC_TOPK; ++codec) {
    const auto weights = train(none, 0, codec, kWhole, kCount);
    EXPECT_EQ(train(none, 8, codec, kWhole, kCount), weights) << codec;
    if (codec == MUSTER_CODEC_ONE_BIT) {
      EXPECT_NE(weights[0], weights[4]) << "all would be alike without what is left out";
    }
    if (codec > MUSTER_CODEC_MXFP8) continue;
    for (size_t i = 0; i < kCount; ++i)
      EXPECT_NEAR(weights[i], exact[i], 0.2F * std::abs(exact[i]) + 0.2F) << codec;
  }
}

TEST(CApi, AnOlderProgramHasNoErrorFeedback) {
  Misuse none;
  EXPECT_EQ(train(none, 0, MUSTER_CODEC_INT8, offsetof(muster_train_options, error_feedback), 1000),
            train(none, 0, MUSTER_CODEC_INT8));
}

// A program of an older header does not know the field: what lies behind its structure is not read.
TEST(CApi, AnOlderProgramHasNoCodec) {
  Misuse none;
  EXPECT_EQ(train(none, 0, 1000, offsetof(muster_train_options, codec)), train(none));
}

// Its structure ended with the codec, and with what fills that up to a multiple of eight bytes.
TEST(CApi, AnOlderProgramHasItsGradientsInTheHostsMemory) {
  Misuse none;
  static_assert(
      offsetof(muster_train_options, stream) == offsetof(muster_train_options, codec) + 2 * sizeof(int32_t),
      "no field may lie in an older structure's padding");
  EXPECT_EQ(train(none, 0, MUSTER_CODEC_NONE, offsetof(muster_train_options, stream)), train(none));
}

// And ended there once more.
TEST(CApi, AnOlderProgramHasTwoCopiesOfShards) {
  Misuse none;
  static_assert(offsetof(muster_train_options, shard_copies) ==
                    offsetof(muster_train_options, gradient_memory) + 2 * sizeof(int32_t),
                "no field may lie in an older structure's padding");
  EXPECT_EQ(train(none, 0, MUSTER_CODEC_NONE, offsetof(muster_train_options, shard_copies)), train(none));
}

TEST(CApi, AnOlderProgramSavesOnNoNode) {
  Misuse none;
  static_assert(offsetof(muster_train_options, checkpoint_local_dir) ==
                    offsetof(muster_train_options, shard_copies) + sizeof(int64_t),
                "no field may lie in an older structure's padding");
  EXPECT_EQ(train(none, 0, MUSTER_CODEC_NONE, offsetof(muster_train_options, checkpoint_local_dir)),
            train(none));
}

TEST(CApi, AnOlderProgramHasNoParity) {
  Misuse none;
  static_assert(offsetof(muster_train_options, checkpoint_parity) ==
                    offsetof(muster_train_options, checkpoint_local_every) + sizeof(int64_t),
                "no field may lie in an older structure's padding");
  EXPECT_EQ(train(none, 0, MUSTER_CODEC_NONE, offsetof(muster_train_options, checkpoint_parity)),
            train(none));
}

TEST(CApi, AnOlderProgramSealsNothing) {
  Misuse none;
  static_assert(offsetof(muster_train_options, checkpoint_key_file) ==
                    offsetof(muster_train_options, checkpoint_parity) + sizeof(int64_t),
                "no field may lie in an older structure's padding");
  EXPECT_EQ(train(none, 0, MUSTER_CODEC_NONE, offsetof(muster_train_options, checkpoint_key_file)),
            train(none));
}

TEST(CApi, AnOlderProgramDrainsNothing) {
  Misuse none;
  static_assert(offsetof(muster_train_options, checkpoint_drain) ==
                    offsetof(muster_train_options, device_collectives) + sizeof(int64_t),
                "no field may lie in an older structure's padding");
  EXPECT_EQ(train(none, 0, MUSTER_CODEC_NONE, offsetof(muster_train_options, checkpoint_drain)), train(none));
}

TEST(CApi, AnOlderProgramsHostReducesGradients) {
  Misuse none;
  static_assert(offsetof(muster_train_options, device_collectives) ==
                    offsetof(muster_train_options, error_feedback) + sizeof(uint64_t),
                "no field may lie in an older structure's padding");
  EXPECT_EQ(train(none, 0, MUSTER_CODEC_NONE, offsetof(muster_train_options, device_collectives)),
            train(none));
}

TEST(CApi, NodesDoNotSaveShardsOfTheirOwn) {
  Program program;
  const int64_t shape[] = {5, 2};
  ASSERT_EQ(muster_state_sharded(program.state, "rows", nullptr, MUSTER_FLOAT32, shape, 2), MUSTER_OK);
  muster_train_options options = Program::options();
  options.checkpoint_dir = "somewhere";
  options.checkpoint_keep = 2;
  options.checkpoint_local_dir = "nvme";
  options.checkpoint_local_every = 5;
  EXPECT_EQ(muster_train(program.session, program.state, &options, &program.run), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), AllOf(HasSubstr("'rows' is sharded"), HasSubstr("checkpoint_local_dir")));
}

class LocalVariables {
 public:
  explicit LocalVariables(const char* folder = "nvme", const char* every = "5") {
    if (folder != nullptr) setenv("MUSTER_CHECKPOINT_LOCAL_DIR", folder, 1);
    if (every != nullptr) setenv("MUSTER_CHECKPOINT_LOCAL_EVERY", every, 1);
  }
  ~LocalVariables() {
    unsetenv("MUSTER_CHECKPOINT_LOCAL_DIR");
    unsetenv("MUSTER_CHECKPOINT_LOCAL_EVERY");
  }
};

// A job's script sets them for every program that it starts.
TEST(CApi, VariablesAloneAskForNoSavesThatAProgramCannotHave) {
  Misuse none;
  const auto quiet = train(none);
  const LocalVariables variables;
  EXPECT_EQ(train(none), quiet) << "without checkpoint_dir";
  Program sharded;
  const int64_t shape[] = {5, 2};
  ASSERT_EQ(muster_state_sharded(sharded.state, "rows", nullptr, MUSTER_FLOAT32, shape, 2), MUSTER_OK);
  muster_train_options options = Program::options();
  const std::string folder = ::testing::TempDir() + "never-made";  // the run is not begun
  options.checkpoint_dir = folder.c_str();
  options.checkpoint_local_every = 3;  // the folder is left to the variable, and cannot be had
  EXPECT_EQ(muster_train(sharded.session, sharded.state, &options, &sharded.run), MUSTER_OK)
      << muster_last_error();
}

// One of the two says nothing without the other, wherever it comes from.
TEST(CApi, AnIntervalOfNodesSavesWithoutAFolderAsksForNone) {
  const std::string folder = ::testing::TempDir() + "never-made";  // the run is not begun
  muster_train_options options = Program::options();
  options.checkpoint_dir = folder.c_str();
  const LocalVariables variables(nullptr, "5");
  const auto begins = [&] {
    Program program;
    return muster_train(program.session, program.state, &options, &program.run) == MUSTER_OK;
  };
  EXPECT_TRUE(begins()) << muster_last_error();
  options.checkpoint_local_every = 3;
  EXPECT_TRUE(begins()) << muster_last_error();
  options.checkpoint_local_every = 0;
  options.checkpoint_local_dir = "nvme";
  EXPECT_TRUE(begins()) << "5 by the variable: " << muster_last_error();
}

TEST(CApi, TheIntervalOfNodesSavesCanBeLeftToTheLeader) {
  const std::string folder = ::testing::TempDir() + "never-made";  // the run is not begun
  muster_train_options options = Program::options();
  options.checkpoint_dir = folder.c_str();
  const auto begins = [&](const char* variable) {
    const LocalVariables variables(nullptr, variable);
    Program program;
    return muster_train(program.session, program.state, &options, &program.run) == MUSTER_OK;
  };
  options.checkpoint_local_every = MUSTER_CHECKPOINT_AUTO;
  EXPECT_TRUE(begins(nullptr)) << "and without a folder it asks for nothing: " << muster_last_error();
  options.checkpoint_local_dir = "nvme";
  EXPECT_TRUE(begins(nullptr)) << muster_last_error();
  options.checkpoint_local_every = 0;
  EXPECT_TRUE(begins("auto")) << muster_last_error();
}

// Alone a process has all rows. 2 lanes: 8 shards, of which the last have none.
TEST(CApi, PiecesAreRowsOfTheWorkingCopyAndChangeInUpdatesOnly) {
  Program program;
  std::array<float, 10> copy{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  const int64_t shape[] = {5, 2};
  ASSERT_EQ(muster_state_sharded(program.state, "rows", copy.data(), MUSTER_FLOAT32, shape, 2), MUSTER_OK);
  ASSERT_EQ(muster_state_sharded(program.state, "moments", nullptr, MUSTER_FLOAT64, shape, 1), MUSTER_OK);
  const muster_train_options options = Program::options();
  ASSERT_EQ(muster_train(program.session, program.state, &options, &program.run), MUSTER_OK)
      << muster_last_error();
  program.in_update = [](muster_step* step) {
    const muster_piece *rows = nullptr, *moments = nullptr, *none = nullptr;
    size_t row_count = 0, moment_count = 0, count = 0;
    ASSERT_EQ(muster_step_pieces(step, "rows", &rows, &row_count), MUSTER_OK) << muster_last_error();
    ASSERT_EQ(muster_step_pieces(step, "moments", &moments, &moment_count), MUSTER_OK);
    EXPECT_EQ(muster_step_pieces(step, "w", &none, &count), MUSTER_MISUSE) << "it is replicated";
    EXPECT_THAT(muster_last_error(), HasSubstr("no sharded tensor is named 'w'"));
    ASSERT_EQ(row_count, 5u);
    ASSERT_EQ(moment_count, 5u);
    for (size_t i = 0; i < row_count; ++i) {
      EXPECT_EQ(rows[i].begin, static_cast<int64_t>(i));
      EXPECT_EQ(moments[i].begin, rows[i].begin);
      auto* const moment = static_cast<double*>(moments[i].data);
      EXPECT_EQ(*moment, 100.0 * static_cast<double>(muster_step_index(step)));
      *moment += 100;
      for (int j = 0; j < 2; ++j) static_cast<float*>(rows[i].data)[j] += 100;
    }
  };
  muster_step* step = nullptr;
  while (muster_run_next(program.run, &step) == MUSTER_OK && step != nullptr) {
    const auto made = static_cast<float>(muster_step_index(step));
    for (size_t i = 0; i < copy.size(); ++i) EXPECT_EQ(copy[i], static_cast<float>(i) + 100 * made);
    const muster_piece* none = nullptr;
    size_t count = 0;
    EXPECT_EQ(muster_step_pieces(step, "rows", &none, &count), MUSTER_MISUSE);
    EXPECT_THAT(muster_last_error(), HasSubstr("outside an update"));
    Misuse quiet;
    program.step(step, quiet, &quiet);
  }
  for (size_t i = 0; i < copy.size(); ++i)
    EXPECT_EQ(copy[i], static_cast<float>(i) + 100 * kSteps) << "filled at the end, too";
  EXPECT_EQ(muster_run_exit_code(program.run), 0);

  muster_run_destroy(program.run);
  program.run = nullptr;
  muster_leave(program.session);
  ASSERT_EQ(muster_join(nullptr, &program.session), MUSTER_OK);
  EXPECT_EQ(muster_train(program.session, program.state, &options, &program.run), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("had its run"));
}

// A callback that looks where the run stands deadlocked where an event arose under the run's lock.
TEST(CApi, AnEventCallbackMayAskWhereTheRunStands) {
  struct Context {
    std::mutex mutex;
    muster_run* run = nullptr;
    std::atomic<int> asked = 0;
  } context;
  const auto show = [&](muster_run* run) {
    const std::lock_guard lock(context.mutex);
    context.run = run;
  };
  muster_join_options join{};
  join.size = sizeof join;
  join.event_context = &context;
  join.on_event = [](void* given, const muster_event*) {
    auto& c = *static_cast<Context*>(given);
    const std::lock_guard lock(c.mutex);
    muster_run_info info;
    info.size = sizeof info;
    if (c.run != nullptr && muster_run_get_info(c.run, &info) == MUSTER_OK) ++c.asked;
  };
  Program program(&join);
  const muster_train_options options = Program::options();
  ASSERT_EQ(muster_train(program.session, program.state, &options, &program.run), MUSTER_OK);
  show(program.run);
  muster_step* step = nullptr;
  Misuse none;
  while (muster_run_next(program.run, &step) == MUSTER_OK && step != nullptr) program.step(step, none, &none);
  while (context.asked == 0) std::this_thread::yield();  // events are handed over by another thread
  EXPECT_EQ(muster_run_exit_code(program.run), 0);
  show(nullptr);  // the run ends before the events do
}

}  // namespace
