// The backend for CUDA devices on the fake CUDA run time, whose streams run the kernels in the shim. The
// backend is in a shared library, because its host stubs have the names of the kernels here.
#include "examples/gpt/cuda/backend.h"

#include <chrono>
#include <thread>

#include "tests/examples/gpt/backend_checks.h"
#include "tests/examples/gpt/fake_kernels.h"

// CUDA's header and the shim cannot be in one file: both have a float4.
extern "C" int cudaGetLastError();

namespace gpt {
namespace {

namespace fakes = muster::fakes;

bool nothing_lives() {
  for (int i = 0; i < 10000 && fakes::cuda_live() > 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // the fake tells nobody when a thread ends
  return fakes::cuda_live() == 0;
}

class CudaBackendTest : public testing::Test {
 protected:
  void SetUp() override {
    fakes::cuda_reset();
    register_kernels();
  }
  void TearDown() override {
    EXPECT_TRUE(nothing_lives());
    EXPECT_EQ(fakes::cuda_violations(), 0);
    fakes::cuda_reset();
  }
};

struct Case {
  Config config;
  size_t sequences;
};
class CudaBackendOf : public CudaBackendTest, public testing::WithParamInterface<Case> {
 protected:
  Pair pair() {
    return Pair(make_cuda_backend(GetParam().config, GetParam().sequences).value(), GetParam().sequences);
  }
};

TEST_P(CudaBackendOf, PassesAgreeWithTheCpusAndRepeatTheirBits) {
  Pair both = pair();
  expect_passes_agree(both, GetParam().sequences);
}
TEST_P(CudaBackendOf, EvaluationsAgreeWithTheCpus) {
  Pair both = pair();
  expect_evaluations_agree(both, GetParam().sequences);
}

// A head of 3 floats, which no 128 bits fit; a context of more than one tile.
INSTANTIATE_TEST_SUITE_P(Shapes, CudaBackendOf,
                         testing::Values(Case{{.layers = 2, .width = 16, .heads = 2, .context = 16}, 3},
                                         Case{{.layers = 1, .width = 24, .heads = 8, .context = 8}, 2},
                                         Case{{.layers = 1, .width = 8, .heads = 1, .context = 72}, 1}));

constexpr Config kTiny{.layers = 1, .width = 8, .heads = 1, .context = 8};

TEST_F(CudaBackendTest, UpdatesAgreeWithTheCpus) {
  for (const float norm_max : {1.0f, 0.0f}) {
    Pair pair(make_cuda_backend(kTiny, 1).value(), 1);
    expect_updates_agree(pair, {.norm_max = norm_max});
  }
}

TEST_F(CudaBackendTest, ClearKeepsTheLoss) {
  Pair pair(make_cuda_backend(kTiny, 1).value(), 1);
  expect_clear_keeps_the_loss(pair);
}

TEST_F(CudaBackendTest, BeginsWithZerosAndTheSeedsWeights) {
  auto backend = make_cuda_backend(kTiny, 1).value();
  const Layout& layout = backend->layout();
  for (const float* buffer : {backend->buffers().gradients, backend->buffers().m, backend->buffers().v})
    EXPECT_EQ(read(*backend, buffer), Floats(layout.size(), 0.0f));
  Floats expected(layout.size());
  initialise(kTiny, layout, 9, expected);
  backend->initialise(9);
  EXPECT_TRUE(same_bits(read(*backend, backend->buffers().weights), expected));
}

// More than the staging memory holds goes in parts.
TEST_F(CudaBackendTest, CopiesLargeBuffersInParts) {
  const Config wide{.layers = 1, .width = 160, .heads = 1, .context = 8};
  auto backend = make_cuda_backend(wide, 1).value();
  ASSERT_GT(backend->layout().size() * sizeof(float), size_t{1} << 20);
  const Floats values = some_noise(backend->layout().size(), 1, 1);
  backend->write(values, backend->buffers().m);
  EXPECT_TRUE(same_bits(read(*backend, backend->buffers().m), values));
}

TEST_F(CudaBackendTest, IsOnTheDeviceOfItsNumberOnTheNode) {
  for (const auto& [rank, device] : {std::pair("0", 0), std::pair("5", 5), std::pair("11", 3)}) {
    setenv("MUSTER_LOCAL_RANK", rank, 1);
    auto backend = make_cuda_backend(kTiny, 1).value();
    EXPECT_EQ(fakes::cuda_device_of(backend->stream()), device);
    backend.reset();
  }
  unsetenv("MUSTER_LOCAL_RANK");
  (void)make_cuda_backend(kTiny, 1);  // back to device 0
}

TEST_F(CudaBackendTest, WithoutADeviceSaysSo) {
  constexpr int kInsufficientDriver = 35;
  for (const int error : {kInsufficientDriver, 0}) {
    fakes::cuda_set_devices(0, error);
    const auto backend = make_cuda_backend(kTiny, 1);
    ASSERT_FALSE(backend.ok());
    EXPECT_EQ(backend.error().code, muster::ErrorCode::kEnvironment);
    EXPECT_NE(backend.error().message.find(error == 0 ? "no CUDA-capable device" : "driver version"),
              std::string::npos)
        << backend.error().message;
  }
}

TEST_F(CudaBackendTest, RefusesShapesThatCannotBe) {
  const auto backend = make_cuda_backend({.layers = 1, .width = 12, .heads = 1, .context = 8}, 1);
  ASSERT_FALSE(backend.ok());
  EXPECT_NE(backend.error().message.find("multiples of 8"), std::string::npos);
}

// Every call of the CUDA run time fails once: it is told, as an error or an exception, and nothing is left.
TEST_F(CudaBackendTest, AFailureOfAnyCallIsToldAndLeaksNothing) {
  const auto attempt = [] {
    auto made = make_cuda_backend(kTiny, 1);
    if (!made) return false;
    (*made)->initialise(1);
    (*made)->forward_backward(some_windows(kTiny, 1, 1), {});
    (*made)->update({}, 0, 0.1f);
    (void)(*made)->training_loss();
    return true;
  };
  fakes::cuda_reset();
  ASSERT_TRUE(attempt());
  ASSERT_TRUE(nothing_lives());
  const int calls = fakes::cuda_calls();
  int told = 0, releases = 0;
  for (int call = 1; call <= calls; ++call) {
    fakes::cuda_reset();
    fakes::cuda_inject({.call = call, .code = 2});
    try {
      (attempt() ? releases : told) += 1;
    } catch (const std::runtime_error& error) {
      EXPECT_NE(std::string(error.what()).find("out of memory"), std::string::npos) << error.what();
      ++told;
    }
    ASSERT_TRUE(nothing_lives()) << "call " << call;
    (void)cudaGetLastError();  // of a release, which nobody asked
  }
  // All but the calls that release something at the end.
  EXPECT_GT(told, calls / 2);
  EXPECT_LT(releases, calls / 2);
}

}  // namespace
}  // namespace gpt
