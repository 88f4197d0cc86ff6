#include "runtime/state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

namespace muster {
namespace {

TEST(State, RefusesBadTensorsByName) {
  State state;
  float data[6] = {};
  ASSERT_TRUE(state.add_replicated("w", data, DType::kFloat32, {2, 3}).ok());
  const auto message = [&](const std::string& name, void* pointer, std::vector<int64_t> shape) {
    const Status status = state.add_replicated(name, pointer, DType::kFloat32, std::move(shape));
    return status.ok() ? std::string("accepted") : status.error().message;
  };
  EXPECT_NE(message("w", data, {6}).find("two tensors are named 'w'"), std::string::npos);
  EXPECT_NE(message("", data, {6}).find("needs a name"), std::string::npos);
  EXPECT_NE(message("n", nullptr, {6}).find("'n'"), std::string::npos);
  EXPECT_NE(message("neg", data, {-1}).find("[-1]"), std::string::npos);
  EXPECT_NE(message("big", data, {INT64_MAX, 16}).find("too large"), std::string::npos);
  char* const odd = reinterpret_cast<char*>(data) + 2;
  EXPECT_NE(message("odd", odd, {1}).find("no multiple of 4"), std::string::npos);
  EXPECT_NE(message("tied", data + 5, {1}).find("'w' and 'tied' share memory"), std::string::npos);
  EXPECT_TRUE(state.add_replicated("empty", nullptr, DType::kFloat32, {0}).ok());
  state.seal();
  EXPECT_NE(message("late", data, {6}).find("after the run had started"), std::string::npos);
  EXPECT_EQ(state.bytes(), sizeof data);
}

TEST(State, ExpectationsAreOfTensorsThatAreThereBeforeTheStart) {
  State state;
  float data[6] = {};
  ASSERT_TRUE(state.add_replicated("w", data, DType::kFloat32, {6}).ok());
  const auto message = [&](const std::string& name) {
    const Status status = state.expect(name, checkpoint::Expectation::kConstant);
    return status.ok() ? std::string("accepted") : status.error().message;
  };
  EXPECT_EQ(state.tensors()[0].expectation, checkpoint::Expectation::kWatched);
  EXPECT_EQ(message("w"), "accepted");
  EXPECT_EQ(state.tensors()[0].expectation, checkpoint::Expectation::kConstant);
  EXPECT_NE(message("v").find("no tensor is named 'v'"), std::string::npos);
  state.seal();
  EXPECT_NE(message("w").find("after the run had started"), std::string::npos);
}

TEST(State, DigestSeesEveryByteAndFingerprintSeesEveryShape) {
  float data[6] = {1, 2, 3, 4, 5, 6};
  State a;
  ASSERT_TRUE(a.add_replicated("w", data, DType::kFloat32, {2, 3}).ok());
  State b;
  ASSERT_TRUE(b.add_replicated("w", data, DType::kFloat32, {3, 2}).ok());
  EXPECT_NE(a.fingerprint(), b.fingerprint());
  const Digest before = a.digest();
  EXPECT_EQ(before, b.digest());
  for (float& value : data) {
    const float old = value;
    value = -value;
    EXPECT_NE(a.digest(), before);
    value = old;
  }
  EXPECT_EQ(a.digest(), before);
}

TEST(State, CopiesOutAndBack) {
  float w[3] = {1, 2, 3};
  int64_t step = 9;
  State state;
  ASSERT_TRUE(state.add_replicated("w", w, DType::kFloat32, {3}).ok());
  ASSERT_TRUE(state.add_replicated("step", &step, DType::kInt64, {}).ok());
  ByteBuffer copy(state.bytes());
  state.copy_to(copy);
  w[1] = 0;
  step = 0;
  ASSERT_TRUE(state.install(copy, kNever).ok());
  EXPECT_EQ(w[1], 2);
  EXPECT_EQ(step, 9);
}

// A save may still be staging the version before when a view change brings another one (PROTOCOL 4, 8).
TEST(State, AnInstallationWaitsForReadersOrWritesNothing) {
  float w[3] = {1, 2, 3};
  State state;
  ASSERT_TRUE(state.add_replicated("w", w, DType::kFloat32, {3}).ok());
  const ByteBuffer zeros(state.bytes());
  ASSERT_TRUE(state.acquire_read(now()).ok());
  EXPECT_EQ(state.install(zeros, now() + 5 * kMillisecond).error().code, ErrorCode::kRetry);
  EXPECT_EQ(w[0], 1);
  state.release_read();
  ASSERT_TRUE(state.install(zeros, now()).ok());
  EXPECT_EQ(w[0], 0);
  EXPECT_TRUE(state.acquire_read(now()).ok());
  state.release_read();
}

TEST(State, AnUpdateWaitsForReadersAndIsCounted) {
  State state;
  ASSERT_TRUE(state.acquire_read(kNever).ok());
  std::atomic<bool> writing = false;
  std::thread writer([&] {
    ASSERT_TRUE(state.begin_write(kNever).ok());
    writing = true;
    state.end_write();
  });
  std::this_thread::sleep_for(
      std::chrono::milliseconds(20));  // the writer must have had time to get it wrong
  EXPECT_FALSE(writing);
  state.release_read();
  writer.join();
  EXPECT_TRUE(writing);
  EXPECT_GT(state.stall(), 0);
}

TEST(State, WaitsEndAtTheirDeadline) {
  State state;
  ASSERT_TRUE(state.begin_write(kNever).ok());
  EXPECT_EQ(state.acquire_read(now() + 5 * kMillisecond).error().code, ErrorCode::kRetry);
  EXPECT_EQ(state.begin_write(now() + 5 * kMillisecond).error().code, ErrorCode::kRetry);
  state.end_write();
  ASSERT_TRUE(state.acquire_read(now()).ok());
  EXPECT_EQ(state.begin_write(now() + 5 * kMillisecond).error().code, ErrorCode::kRetry);
  state.release_read();
}

}  // namespace
}  // namespace muster
