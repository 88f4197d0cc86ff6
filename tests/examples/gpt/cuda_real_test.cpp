// The backend for CUDA devices on a real one, held against the CPU's. Skips, with the reason, where there is
// no device. Needs nothing beside itself but libcudart and a driver.
#include "tests/examples/gpt/backend_checks.h"

namespace gpt {
namespace {

// Null where there is no device, with the reason.
std::unique_ptr<Backend> device_backend(const Config& config, size_t sequences_max, std::string& missing) {
  auto made = make_backend(DeviceKind::kCuda, config, sequences_max);
  if (made.ok()) return std::move(*made);
  missing = made.error().message;
  return nullptr;
}

struct Case {
  Config config;
  size_t sequences;
};
class GptOnCuda : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    std::string missing;
    auto device = device_backend(GetParam().config, GetParam().sequences, missing);
    if (device == nullptr) GTEST_SKIP() << missing;  // gpt_cuda_backend_test does the same on the fake
    pair = std::make_unique<Pair>(std::move(device), GetParam().sequences);
  }
  std::unique_ptr<Pair> pair;
};

TEST_P(GptOnCuda, PassesAgreeWithTheCpusAndRepeatTheirBits) {
  for (size_t sequences = 1; sequences <= GetParam().sequences; sequences *= 2)
    expect_passes_agree(*pair, sequences);
}
TEST_P(GptOnCuda, UpdatesAgreeWithTheCpus) { expect_updates_agree(*pair, {}); }
TEST_P(GptOnCuda, EvaluationsAgreeWithTheCpus) { expect_evaluations_agree(*pair, GetParam().sequences); }
TEST_P(GptOnCuda, ClearKeepsTheLoss) { expect_clear_keeps_the_loss(*pair); }

// The example's default, a head that no 128 bits fit, several tiles in each dimension.
INSTANTIATE_TEST_SUITE_P(Shapes, GptOnCuda,
                         testing::Values(Case{{}, 4},
                                         Case{{.layers = 1, .width = 24, .heads = 8, .context = 8}, 2},
                                         Case{{.layers = 2, .width = 256, .heads = 4, .context = 264}, 2}));

TEST(GptOnCudaTraining, LearnsATextByHeart) {
  const Config config{.layers = 2, .width = 16, .heads = 2, .context = 16};
  std::string missing;
  const auto backend = device_backend(config, 4, missing);
  if (backend == nullptr) GTEST_SKIP() << missing;  // gpt_cuda_training_test trains on the fake
  const std::string line = "the quick brown ";
  std::vector<uint8_t> windows;
  for (size_t s = 0; s < 4; ++s) {
    for (size_t i = 0; i <= config.context; ++i)
      windows.push_back(static_cast<uint8_t>(line[(s * 5 + i) % line.size()]));
  }
  backend->initialise(1);
  EXPECT_NEAR(backend->loss(windows), std::log(256.0), 0.3);
  for (size_t step = 0; step < 120; ++step) {
    backend->forward_backward(windows, {});
    backend->update({}, step, 1e-2f);
  }
  EXPECT_LT(backend->loss(windows), 0.3);
}

}  // namespace
}  // namespace gpt
