// Compressed operations of communicators as a careless program uses them, in a process alone. Worlds of
// several processes: tests/system/comm.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <muster/muster.hpp>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

namespace {

using testing::HasSubstr;

constexpr size_t kCount = 3001;

class CompressedApi : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(muster_comm_create(nullptr, &comm), MUSTER_OK) << muster_last_error();
    ASSERT_EQ(muster_residuals_create(comm, kCount, &residuals), MUSTER_OK) << muster_last_error();
    how.size = sizeof how;
    how.codec = MUSTER_CODEC_INT4;
    how.residuals = residuals;
    for (size_t i = 0; i < kCount; ++i) in[i] = std::sin(static_cast<float>(i)) * 0.01F;
  }
  void TearDown() override {
    muster_residuals_destroy(residuals);
    muster_comm_destroy(comm);
  }
  muster_status reduce() {
    return muster_comm_all_reduce_compressed(comm, in.data(), out.data(), kCount, MUSTER_AVG, &how, nullptr);
  }
  std::vector<unsigned char> exported() {
    std::vector<unsigned char> bytes(muster_residuals_bytes(residuals));
    EXPECT_EQ(muster_residuals_export(residuals, bytes.data(), bytes.size()), MUSTER_OK);
    return bytes;
  }

  muster_comm* comm = nullptr;
  muster_residuals* residuals = nullptr;
  muster_compression how{};
  std::vector<float> in = std::vector<float>(kCount), out = std::vector<float>(kCount);
};

TEST_F(CompressedApi, StepsAddUpToTheTrueSum) {
  for (const int32_t codec : {MUSTER_CODEC_BF16, MUSTER_CODEC_FP16, MUSTER_CODEC_INT8, MUSTER_CODEC_INT4,
                              MUSTER_CODEC_MXFP8, MUSTER_CODEC_ONE_BIT, MUSTER_CODEC_TOPK}) {
    muster_residuals_destroy(residuals);
    ASSERT_EQ(muster_residuals_create(comm, kCount, &residuals), MUSTER_OK);
    how.residuals = residuals;
    how.codec = codec;
    std::vector<double> applied(kCount);
    // With topk an element may wait for a hundred steps at either end.
    const bool waits = codec == MUSTER_CODEC_TOPK;
    const uint64_t steps = waits ? 1000 : 100;
    for (how.step = 0; how.step < steps; ++how.step) {
      ASSERT_EQ(reduce(), MUSTER_OK) << muster_last_error();
      ASSERT_EQ(muster_residuals_commit(residuals), MUSTER_OK) << muster_last_error();
      for (size_t i = 0; i < kCount; ++i) applied[i] += out[i];
    }
    for (size_t i = 0; i < kCount; ++i)
      ASSERT_NEAR(applied[i] / static_cast<double>(steps), in[i],
                  0.01 * (waits ? 200 : 5) / static_cast<double>(steps))
          << "codec " << codec << " element " << i;
  }
}

TEST_F(CompressedApi, AStepCountsOnceItIsCommitted) {
  const std::vector<unsigned char> before = exported();
  ASSERT_EQ(reduce(), MUSTER_OK) << muster_last_error();
  const std::vector<float> first = out;
  ASSERT_EQ(reduce(), MUSTER_OK);
  EXPECT_EQ(out, first) << "the step again";
  EXPECT_EQ(exported(), before);
  ASSERT_EQ(muster_residuals_commit(residuals), MUSTER_OK);
  EXPECT_NE(exported(), before);
  EXPECT_EQ(muster_residuals_commit(residuals), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("nothing to commit"));

  const std::vector<unsigned char> kept = exported();
  ASSERT_EQ(reduce(), MUSTER_OK);
  ASSERT_EQ(muster_comm_revoke(comm, "enough of it"), MUSTER_OK);
  EXPECT_EQ(reduce(), MUSTER_AGAIN);
  EXPECT_THAT(muster_last_error(), HasSubstr("enough of it"));
  EXPECT_EQ(muster_residuals_commit(residuals), MUSTER_MISUSE) << "what failed counts";
  EXPECT_EQ(exported(), kept);
}

TEST_F(CompressedApi, HalvesAreTheWhole) {
  size_t begin = 1, end = 0;
  ASSERT_EQ(muster_compressed_slice(kCount, 0, 1, &begin, &end), MUSTER_OK);
  EXPECT_EQ(begin, 0U);
  EXPECT_EQ(end, kCount);
  ASSERT_EQ(reduce(), MUSTER_OK);
  const std::vector<float> whole = out;
  std::vector<float> sum(kCount);
  ASSERT_EQ(
      muster_comm_reduce_scatter_compressed(comm, in.data(), sum.data(), kCount, MUSTER_AVG, &how, nullptr),
      MUSTER_OK);
  ASSERT_EQ(
      muster_comm_all_gather_compressed(comm, sum.data(), out.data(), kCount, MUSTER_AVG, &how, nullptr),
      MUSTER_OK);
  EXPECT_EQ(out, whole);
  EXPECT_EQ(muster_residuals_commit(residuals), MUSTER_OK);
}

TEST_F(CompressedApi, ResidualsComeBackAndAreMerged) {
  ASSERT_EQ(reduce(), MUSTER_OK);
  ASSERT_EQ(muster_residuals_commit(residuals), MUSTER_OK);
  const std::vector<unsigned char> bytes = exported();
  muster_residuals* back = nullptr;
  ASSERT_EQ(muster_residuals_import(bytes.data(), bytes.size(), &back), MUSTER_OK) << muster_last_error();
  EXPECT_EQ(muster_residuals_bytes(back), bytes.size());
  muster_residuals_destroy(back);

  // One rank becomes two: the first goes on, twice as large, since the mean halves it.
  const int32_t origins[] = {0, -1};
  muster_residuals* two[2] = {};
  for (int32_t rank = 0; rank < 2; ++rank)
    ASSERT_EQ(muster_residuals_merge(&residuals, 1, origins, 2, rank, MUSTER_AVG, &two[rank]), MUSTER_OK)
        << muster_last_error();
  const auto float_at = [](const muster_residuals* one, size_t i) {
    std::vector<unsigned char> all(muster_residuals_bytes(one));
    EXPECT_EQ(muster_residuals_export(one, all.data(), all.size()), MUSTER_OK);
    float value = 0;
    std::memcpy(&value, all.data() + 32 + i * sizeof value, sizeof value);
    return value;
  };
  EXPECT_NE(float_at(residuals, 7), 0.0F);
  EXPECT_EQ(float_at(two[0], 7), 2 * float_at(residuals, 7));
  EXPECT_EQ(float_at(two[1], 7), 0.0F);
  how.residuals = two[1];
  EXPECT_EQ(reduce(), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("3001 elements on rank 1 of 2"));
  muster_residuals* one = nullptr;
  const int32_t stays[] = {1};
  ASSERT_EQ(muster_residuals_merge(two, 2, stays, 1, 0, MUSTER_SUM, &one), MUSTER_OK);
  EXPECT_EQ(float_at(one, 7), 2 * float_at(residuals, 7));
  for (muster_residuals* each : {two[0], two[1], one}) muster_residuals_destroy(each);
}

TEST_F(CompressedApi, ACodecThatIsLeftOpenIsToldWithItsReason) {
  int32_t chosen = -5;
  const char* why = nullptr;
  EXPECT_EQ(muster_comm_chosen_codec(comm, 0, &chosen, &why), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("nothing was chosen for tensor 0"));
  how.codec = MUSTER_CODEC_AUTO;
  for (how.step = 0; how.step < 3; ++how.step) {
    ASSERT_EQ(reduce(), MUSTER_OK) << muster_last_error();
    ASSERT_EQ(muster_residuals_commit(residuals), MUSTER_OK) << muster_last_error();
  }
  ASSERT_EQ(muster_comm_chosen_codec(comm, 0, &chosen, &why), MUSTER_OK) << muster_last_error();
  EXPECT_EQ(chosen, MUSTER_CODEC_BF16);  // float32 would leave out the residuals
  EXPECT_THAT(why, HasSubstr("a world of one"));
  how.residuals = nullptr;
  how.tensor = 1;
  ASSERT_EQ(reduce(), MUSTER_OK) << muster_last_error();
  EXPECT_EQ(out, in);
  ASSERT_EQ(muster_comm_chosen_codec(comm, 1, &chosen, nullptr), MUSTER_OK) << muster_last_error();
  EXPECT_EQ(chosen, MUSTER_CODEC_NONE);
  EXPECT_EQ(muster_comm_chosen_codec(nullptr, 1, &chosen, nullptr), MUSTER_MISUSE);
  std::vector<float> slice(kCount);
  EXPECT_EQ(
      muster_comm_reduce_scatter_compressed(comm, in.data(), slice.data(), kCount, MUSTER_AVG, &how, nullptr),
      MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("MUSTER_CODEC_AUTO is for"));
}

TEST_F(CompressedApi, ArgumentsThatMakeNoSenseAreNamed) {
  const auto refused = [&](muster_reduce_op op = MUSTER_AVG, size_t count = kCount) {
    EXPECT_EQ(muster_comm_all_reduce_compressed(comm, in.data(), out.data(), count, op, &how, nullptr),
              MUSTER_MISUSE);
    return std::string(muster_last_error());
  };
  EXPECT_THAT(refused(MUSTER_MAX), HasSubstr("operator 2"));
  EXPECT_THAT(refused(MUSTER_AVG, kCount - 1), HasSubstr("make new ones"));
  for (const int32_t codec : {0, 99, -2}) {
    how.codec = codec;
    EXPECT_THAT(refused(), HasSubstr("codec is " + std::to_string(codec)));
  }
  how.residuals = nullptr;
  for (const int32_t codec : {MUSTER_CODEC_ONE_BIT, MUSTER_CODEC_TOPK}) {
    how.codec = codec;
    EXPECT_THAT(refused(), HasSubstr("needs error feedback"));
  }
  how.codec = MUSTER_CODEC_INT8;
  how.tensor = UINT32_MAX;
  EXPECT_THAT(refused(), HasSubstr("below 2^30"));
  how.tensor = 0;
  how.size = 0;
  EXPECT_THAT(refused(), HasSubstr("muster_compression.size"));
  how.size = sizeof how;
  muster_call call{};
  EXPECT_EQ(muster_comm_all_reduce_compressed(comm, in.data(), out.data(), kCount, MUSTER_AVG, &how, &call),
            MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("muster_call.size"));
  call.size = sizeof call;
  call.timeout_seconds = -1;
  EXPECT_EQ(muster_comm_all_reduce_compressed(comm, in.data(), out.data(), kCount, MUSTER_AVG, &how, &call),
            MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("timeout_seconds"));
  EXPECT_EQ(muster_comm_all_reduce_compressed(comm, in.data(), nullptr, kCount, MUSTER_AVG, &how, nullptr),
            MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("buffer is null"));

  std::vector<unsigned char> bytes = exported();
  EXPECT_EQ(muster_residuals_export(residuals, bytes.data(), bytes.size() - 1), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("room for"));
  bytes[40] ^= 1;
  muster_residuals* back = reinterpret_cast<muster_residuals*>(8);
  EXPECT_EQ(muster_residuals_import(bytes.data(), bytes.size(), &back), MUSTER_DROP_CHECKPOINT);
  EXPECT_THAT(muster_last_error(), HasSubstr("damaged"));
  EXPECT_EQ(back, nullptr);
  size_t begin = 0, end = 0;
  EXPECT_EQ(muster_compressed_slice(10, 2, 2, &begin, &end), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("rank 2 is not one of 2"));

  // None of it harmed the communicator, and without residuals rounding is at random.
  EXPECT_EQ(reduce(), MUSTER_OK) << muster_last_error();
}

TEST_F(CompressedApi, ARefusalInABatchIsToldAtItsEnd) {
  ASSERT_EQ(muster_group_start(), MUSTER_OK);
  how.codec = 8;
  EXPECT_EQ(reduce(), MUSTER_MISUSE);
  how.codec = MUSTER_CODEC_INT8;
  EXPECT_EQ(reduce(), MUSTER_OK) << muster_last_error();
  EXPECT_EQ(muster_group_end(), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("codec is 8"));
  ASSERT_EQ(muster_group_start(), MUSTER_OK);
  EXPECT_EQ(reduce(), MUSTER_OK) << muster_last_error();
  EXPECT_EQ(muster_group_end(), MUSTER_OK) << muster_last_error();
}

TEST_F(CompressedApi, CountsThatNoOperationTakesAreRefused) {
  constexpr size_t kMost = (size_t{1} << 51) - 1;
  size_t begin = 0, end = 0;
  ASSERT_EQ(muster_compressed_slice(kMost, 1, 2, &begin, &end), MUSTER_OK) << muster_last_error();
  EXPECT_EQ(end, kMost);
  muster_residuals* none = residuals;
  for (const size_t count : {kMost + 1, SIZE_MAX}) {
    EXPECT_EQ(muster_compressed_slice(count, 1, 2, &begin, &end), MUSTER_MISUSE);
    EXPECT_THAT(muster_last_error(), HasSubstr("count is " + std::to_string(count)));
    EXPECT_EQ(muster_residuals_create(comm, count, &none), MUSTER_MISUSE);
    EXPECT_THAT(muster_last_error(), HasSubstr("count is " + std::to_string(count)));
    EXPECT_EQ(none, nullptr);
  }
}

TEST_F(CompressedApi, NullsAreRefusedEverywhere) {
  EXPECT_EQ(muster_comm_all_reduce_compressed(nullptr, nullptr, nullptr, 0, MUSTER_SUM, &how, nullptr),
            MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), HasSubstr("muster_comm_all_reduce_compressed"));
  EXPECT_EQ(muster_comm_all_reduce_compressed(comm, nullptr, nullptr, 0, MUSTER_SUM, nullptr, nullptr),
            MUSTER_MISUSE);
  EXPECT_EQ(muster_comm_reduce_scatter_compressed(nullptr, nullptr, nullptr, 0, MUSTER_SUM, &how, nullptr),
            MUSTER_MISUSE);
  EXPECT_EQ(muster_comm_all_gather_compressed(nullptr, nullptr, nullptr, 0, MUSTER_SUM, &how, nullptr),
            MUSTER_MISUSE);
  EXPECT_EQ(muster_compressed_slice(0, 0, 1, nullptr, nullptr), MUSTER_MISUSE);
  EXPECT_EQ(muster_residuals_create(nullptr, 1, nullptr), MUSTER_MISUSE);
  EXPECT_EQ(muster_residuals_commit(nullptr), MUSTER_MISUSE);
  EXPECT_EQ(muster_residuals_bytes(nullptr), 0U);
  EXPECT_EQ(muster_residuals_export(nullptr, nullptr, 0), MUSTER_MISUSE);
  EXPECT_EQ(muster_residuals_import(nullptr, 0, nullptr), MUSTER_MISUSE);
  const muster_residuals* none[] = {nullptr};
  const int32_t origin = 0;
  muster_residuals* merged = nullptr;
  EXPECT_EQ(muster_residuals_merge(nullptr, 1, &origin, 1, 0, MUSTER_AVG, &merged), MUSTER_MISUSE);
  EXPECT_EQ(muster_residuals_merge(none, 1, &origin, 1, 0, MUSTER_AVG, &merged), MUSTER_MISUSE);
  muster_residuals_destroy(nullptr);
}

TEST(CompressedApiWrapper, ReducesAndKeepsResiduals) {
  muster::Communicator comm;
  std::vector<float> values(5000, 0.3F), slice(5000);
  muster::Residuals residuals(comm, values.size());
  muster_compression how{};
  how.size = sizeof how;
  how.codec = MUSTER_CODEC_INT8;
  how.residuals = residuals.handle();
  comm.all_reduce_compressed(values.data(), values.data(), values.size(), how);
  residuals.commit();
  comm.reduce_scatter_compressed(values.data(), slice.data(), values.size(), how);
  comm.all_gather_compressed(slice.data(), values.data(), values.size(), how);
  residuals.commit();
  EXPECT_NEAR(values[4999], 0.3F, 1e-6);
  EXPECT_EQ(muster::Residuals::from_bytes(residuals.bytes()).bytes(), residuals.bytes());
  EXPECT_EQ(muster::Residuals::merged({residuals.handle()}, {0}, 0).bytes(), residuals.bytes());
  EXPECT_THROW(residuals.commit(), muster::Failure);
  try {
    (void)muster::Residuals::from_bytes({});
    ADD_FAILURE() << "no bytes make residuals";
  } catch (const muster::Failure& failure) {
    EXPECT_EQ(failure.status(), MUSTER_DROP_CHECKPOINT) << failure.what();
  }
}

}  // namespace
