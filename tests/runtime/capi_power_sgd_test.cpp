// PowerSGD of communicators as a careless program uses it, in a process alone. Worlds of several processes:
// tests/system/comm.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <muster/muster.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace {

using testing::HasSubstr;

// The first pays; the second is a vector, the third nothing.
constexpr muster_matrix kMatrices[] = {{30, 50}, {1, 40}, {0, 7}};
constexpr size_t kCount = 3;

class PowerSgdApi : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(muster_comm_create(nullptr, &comm), MUSTER_OK) << muster_last_error();
    options.size = sizeof options;
    options.low_rank = 2;
    ASSERT_EQ(muster_power_sgd_create(comm, &options, kMatrices, kCount, &state), MUSTER_OK)
        << muster_last_error();
    for (size_t i = 0; i < matrix.size(); ++i) matrix[i] = std::sin(static_cast<float>(i * i));
    for (size_t i = 0; i < vector.size(); ++i) vector[i] = static_cast<float>(i);
  }
  void TearDown() override {
    muster_power_sgd_destroy(state);
    muster_comm_destroy(comm);
  }
  muster_status reduce(const muster_call* call = nullptr) {
    const float* const in[] = {matrix.data(), vector.data(), nullptr};
    float* const out[] = {matrix_out.data(), vector_out.data(), nullptr};
    return muster_comm_all_reduce_power_sgd(comm, in, out, kCount, MUSTER_AVG, state, call);
  }
  std::vector<unsigned char> exported() {
    std::vector<unsigned char> bytes(muster_power_sgd_bytes(state));
    EXPECT_EQ(muster_power_sgd_export(state, bytes.data(), bytes.size()), MUSTER_OK);
    return bytes;
  }

  muster_comm* comm = nullptr;
  muster_power_sgd* state = nullptr;
  muster_power_sgd_options options{};
  std::vector<float> matrix = std::vector<float>(1500), matrix_out = matrix;
  std::vector<float> vector = std::vector<float>(40), vector_out = vector;
};

TEST_F(PowerSgdApi, StepsAddUpToTheTrueSum) {
  std::vector<double> applied(matrix.size());
  constexpr int kSteps = 400;
  for (int step = 0; step < kSteps; ++step) {
    ASSERT_EQ(reduce(), MUSTER_OK) << muster_last_error();
    ASSERT_EQ(muster_power_sgd_commit(state), MUSTER_OK) << muster_last_error();
    EXPECT_EQ(vector_out, vector);
    for (size_t i = 0; i < matrix.size(); ++i) applied[i] += matrix_out[i];
  }
  // What is owed is some fifteen gradients: 30 directions, two of which are sent in a step.
  for (size_t i = 0; i < matrix.size(); ++i) ASSERT_NEAR(applied[i] / kSteps, matrix[i], 40.0 / kSteps) << i;
  EXPECT_EQ(muster_power_sgd_sent(state), 2U * (30 + 50) + 40);
}

TEST_F(PowerSgdApi, AStepCountsOnceItIsCommitted) {
  const std::vector<unsigned char> before = exported();
  ASSERT_EQ(reduce(), MUSTER_OK) << muster_last_error();
  const std::vector<float> first = matrix_out;
  ASSERT_EQ(reduce(), MUSTER_OK);
  EXPECT_EQ(matrix_out, first) << "the step again";
  EXPECT_EQ(exported(), before);
  ASSERT_EQ(muster_power_sgd_commit(state), MUSTER_OK);
  EXPECT_NE(exported(), before);
  EXPECT_EQ(muster_power_sgd_commit(state), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("nothing to commit"));

  const std::vector<unsigned char> kept = exported();
  ASSERT_EQ(muster_comm_revoke(comm, "enough of it"), MUSTER_OK);
  std::vector<float> untouched = matrix_out;
  EXPECT_EQ(reduce(), MUSTER_AGAIN);
  EXPECT_THAT(muster_last_error(), HasSubstr("enough of it"));
  EXPECT_EQ(muster_power_sgd_commit(state), MUSTER_MISUSE) << "what failed counts";
  EXPECT_EQ(exported(), kept);
  EXPECT_EQ(matrix_out, untouched);
}

TEST_F(PowerSgdApi, WhatIsNotFiniteIsSeen) {
  ASSERT_EQ(reduce(), MUSTER_OK);
  ASSERT_EQ(muster_power_sgd_commit(state), MUSTER_OK);
  const std::vector<unsigned char> before = exported();
  matrix[77] = std::numeric_limits<float>::infinity();
  ASSERT_EQ(reduce(), MUSTER_OK) << muster_last_error();
  for (const float value : matrix_out) EXPECT_TRUE(std::isnan(value));
  ASSERT_EQ(muster_power_sgd_commit(state), MUSTER_OK);
  std::vector<unsigned char> after = exported();
  // The step's number and the checksum differ, the rest does not.
  EXPECT_TRUE(std::equal(before.begin() + 48, before.end(), after.begin() + 48));
}

TEST_F(PowerSgdApi, StateComesBackAndIsMerged) {
  ASSERT_EQ(reduce(), MUSTER_OK);
  ASSERT_EQ(muster_power_sgd_commit(state), MUSTER_OK);
  const std::vector<unsigned char> bytes = exported();
  muster_power_sgd* back = nullptr;
  ASSERT_EQ(muster_power_sgd_import(bytes.data(), bytes.size(), &back), MUSTER_OK) << muster_last_error();
  EXPECT_EQ(muster_power_sgd_bytes(back), bytes.size());
  EXPECT_EQ(muster_power_sgd_sent(back), muster_power_sgd_sent(state));
  muster_power_sgd_destroy(back);

  // One rank becomes two, and one again: twice as large, since the mean halves it, and half of that.
  const int32_t origins[] = {0, -1};
  muster_power_sgd* two[2] = {};
  for (int32_t rank = 0; rank < 2; ++rank)
    ASSERT_EQ(muster_power_sgd_merge(&state, 1, origins, 2, rank, MUSTER_AVG, &two[rank]), MUSTER_OK)
        << muster_last_error();
  muster_power_sgd* one = nullptr;
  const int32_t stays[] = {1};
  ASSERT_EQ(muster_power_sgd_merge(two, 2, stays, 1, 0, MUSTER_AVG, &one), MUSTER_OK);
  std::swap(one, state);
  EXPECT_EQ(exported(), bytes);
  std::swap(two[1], state);
  EXPECT_EQ(reduce(), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("of rank 1 of 2"));
  for (muster_power_sgd* each : {two[0], two[1], one}) muster_power_sgd_destroy(each);
}

TEST_F(PowerSgdApi, ArgumentsThatMakeNoSenseAreNamed) {
  const float* const in[] = {matrix.data(), vector.data(), nullptr};
  float* const out[] = {matrix_out.data(), vector_out.data(), nullptr};
  EXPECT_EQ(muster_comm_all_reduce_power_sgd(comm, in, out, 2, MUSTER_AVG, state, nullptr), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("2 inputs and 2 outputs for the 3 matrices"));
  EXPECT_EQ(muster_comm_all_reduce_power_sgd(comm, in, out, kCount, MUSTER_MAX, state, nullptr),
            MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("operator 2"));
  const float* const none[] = {nullptr, vector.data(), nullptr};
  EXPECT_EQ(muster_comm_all_reduce_power_sgd(comm, none, out, kCount, MUSTER_AVG, state, nullptr),
            MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("matrix 0, of 30 × 50, is null"));
  muster_call call{};
  EXPECT_EQ(reduce(&call), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("muster_call.size"));

  muster_power_sgd* made = reinterpret_cast<muster_power_sgd*>(8);
  const auto refused = [&](const muster_matrix& only) {
    EXPECT_EQ(muster_power_sgd_create(comm, &options, &only, 1, &made), MUSTER_MISUSE);
    EXPECT_EQ(made, nullptr);
    return std::string(muster_last_error());
  };
  EXPECT_THAT(refused({SIZE_MAX, SIZE_MAX}), HasSubstr("2^51"));
  for (const uint32_t low_rank : {0U, 1025U}) {
    options.low_rank = low_rank;
    EXPECT_THAT(refused({4, 4}), HasSubstr("is " + std::to_string(low_rank)));
  }
  options.size = 0;
  EXPECT_THAT(refused({4, 4}), HasSubstr("muster_power_sgd_options.size"));

  std::vector<unsigned char> bytes = exported();
  EXPECT_EQ(muster_power_sgd_export(state, bytes.data(), bytes.size() - 1), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("room for"));
  bytes[120] ^= 1;
  EXPECT_EQ(muster_power_sgd_import(bytes.data(), bytes.size(), &made), MUSTER_DROP_CHECKPOINT);
  EXPECT_THAT(muster_last_error(), HasSubstr("PowerSGD state: the bytes are damaged"));
  EXPECT_EQ(reduce(), MUSTER_OK) << "none of it harmed the communicator: " << muster_last_error();
}

TEST_F(PowerSgdApi, ARefusalInABatchIsToldAtItsEnd) {
  ASSERT_EQ(muster_group_start(), MUSTER_OK);
  EXPECT_EQ(muster_comm_all_reduce_power_sgd(comm, nullptr, nullptr, 0, MUSTER_AVG, state, nullptr),
            MUSTER_MISUSE);
  EXPECT_EQ(reduce(), MUSTER_OK) << muster_last_error();
  EXPECT_EQ(muster_group_end(), MUSTER_MISUSE);
}

TEST_F(PowerSgdApi, NullsAreRefusedEverywhere) {
  muster_power_sgd* made = nullptr;
  EXPECT_EQ(muster_power_sgd_create(nullptr, &options, kMatrices, kCount, &made), MUSTER_MISUSE);
  EXPECT_EQ(muster_power_sgd_create(comm, nullptr, kMatrices, kCount, &made), MUSTER_MISUSE);
  EXPECT_EQ(muster_power_sgd_create(comm, &options, nullptr, kCount, &made), MUSTER_MISUSE);
  EXPECT_EQ(muster_power_sgd_create(comm, &options, kMatrices, kCount, nullptr), MUSTER_MISUSE);
  EXPECT_EQ(muster_comm_all_reduce_power_sgd(nullptr, nullptr, nullptr, 0, MUSTER_AVG, state, nullptr),
            MUSTER_MISUSE);
  EXPECT_EQ(muster_comm_all_reduce_power_sgd(comm, nullptr, nullptr, kCount, MUSTER_AVG, state, nullptr),
            MUSTER_MISUSE);
  EXPECT_EQ(muster_comm_all_reduce_power_sgd(comm, nullptr, nullptr, 0, MUSTER_AVG, nullptr, nullptr),
            MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("muster_comm_all_reduce_power_sgd"));
  EXPECT_EQ(muster_power_sgd_commit(nullptr), MUSTER_MISUSE);
  EXPECT_EQ(muster_power_sgd_bytes(nullptr), 0U);
  EXPECT_EQ(muster_power_sgd_sent(nullptr), 0U);
  EXPECT_EQ(muster_power_sgd_export(nullptr, nullptr, 0), MUSTER_MISUSE);
  EXPECT_EQ(muster_power_sgd_import(nullptr, 0, nullptr), MUSTER_MISUSE);
  const muster_power_sgd* none[] = {nullptr};
  const int32_t origin = 0;
  EXPECT_EQ(muster_power_sgd_merge(none, 1, &origin, 1, 0, MUSTER_AVG, &made), MUSTER_MISUSE);
  EXPECT_EQ(muster_power_sgd_merge(nullptr, 1, &origin, 1, 0, MUSTER_AVG, &made), MUSTER_MISUSE);
  muster_power_sgd_destroy(nullptr);
  // No matrix at all is a list, too.
  ASSERT_EQ(muster_power_sgd_create(comm, &options, nullptr, 0, &made), MUSTER_OK) << muster_last_error();
  EXPECT_EQ(muster_comm_all_reduce_power_sgd(comm, nullptr, nullptr, 0, MUSTER_AVG, made, nullptr), MUSTER_OK)
      << muster_last_error();
  muster_power_sgd_destroy(made);
}

TEST(PowerSgdApiWrapper, ReducesAndKeepsState) {
  muster::Communicator comm;
  muster::PowerSgd state(comm, {{60, 60}, {1, 5}}, 1, 7);
  EXPECT_EQ(state.sent(), 120U + 5);
  std::vector<float> matrix(3600), vector(5, 2.0F);
  for (size_t i = 0; i < matrix.size(); ++i) matrix[i] = static_cast<float>(i / 60 + 1) * 0.25F;
  const std::vector<float> in = matrix;
  comm.all_reduce_power_sgd({in.data(), vector.data()}, {matrix.data(), vector.data()}, state.handle());
  state.commit();
  for (size_t i = 0; i < matrix.size(); ++i) ASSERT_NEAR(matrix[i], in[i], 1e-4) << "a matrix of rank 1";
  EXPECT_EQ(muster::PowerSgd::from_bytes(state.bytes()).bytes(), state.bytes());
  EXPECT_EQ(muster::PowerSgd::merged({state.handle()}, {0}, 0).bytes(), state.bytes());
  EXPECT_THROW(state.commit(), muster::Failure);
  EXPECT_THROW(comm.all_reduce_power_sgd({nullptr}, {}, state.handle()), muster::Failure);
  try {
    (void)muster::PowerSgd::from_bytes({});
    ADD_FAILURE() << "no bytes make a state";
  } catch (const muster::Failure& failure) {
    EXPECT_EQ(failure.status(), MUSTER_DROP_CHECKPOINT) << failure.what();
  }
}

}  // namespace
