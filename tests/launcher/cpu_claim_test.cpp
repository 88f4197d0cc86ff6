#include "launcher/cpu_claim.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <optional>

namespace muster::launcher {
namespace {

using testing::HasSubstr;

class CpuClaims : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "muster_claims_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    path_ = folder_ / "cpus";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(CpuClaims, ACpuHasOneClaimantAtATime) {
  std::optional<Result<CpuClaim>> first = CpuClaim::take({0, 1, 70}, path_);
  ASSERT_TRUE(first->ok()) << first->error().message;
  EXPECT_TRUE(CpuClaim::take({2, 3}, path_).ok()) << "others are free";
  const auto second = CpuClaim::take({2, 70}, path_);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, ErrorCode::kRetry);
  EXPECT_THAT(second.error().message, HasSubstr("has bound workers to cpu 70"));
  EXPECT_TRUE(CpuClaim::take({2}, path_).ok()) << "the one that failed kept something";
  first.reset();
  EXPECT_TRUE(CpuClaim::take({70}, path_).ok());
}

// One that binds in any case is not to be bound upon by those that ask.
TEST_F(CpuClaims, WhatIsFreeIsHeldWhereTheRestIsTaken) {
  const auto first = CpuClaim::take({1, 3}, path_);
  ASSERT_TRUE(first.ok());
  Status missed = ok();
  const CpuClaim second = CpuClaim::take_what_is_free({0, 1, 2, 3, 4}, path_, missed);
  ASSERT_FALSE(missed.ok());
  EXPECT_THAT(missed.error().message, HasSubstr("has bound workers to cpu 1")) << "the first of them";
  for (const uint32_t cpu : {0U, 2U, 4U})
    EXPECT_FALSE(CpuClaim::take({cpu}, path_).ok()) << "cpu " << cpu << " is not held";
  missed = ok();
  (void)CpuClaim::take_what_is_free({7}, path_, missed);
  EXPECT_TRUE(missed.ok());
  (void)CpuClaim::take_what_is_free({7}, folder_ / "none" / "cpus", missed);
  EXPECT_FALSE(missed.ok());
}

TEST_F(CpuClaims, EveryUserMayClaim) {
  const mode_t before = umask(077);
  EXPECT_TRUE(CpuClaim::take({0}, path_).ok());
  umask(before);
  struct stat status {};
  ASSERT_EQ(stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0666U);
}

TEST_F(CpuClaims, SaysWhereItCannotBeKnown) {
  const auto nowhere = CpuClaim::take({0}, folder_ / "none" / "cpus");
  ASSERT_FALSE(nowhere.ok());
  EXPECT_EQ(nowhere.error().code, ErrorCode::kEnvironment);
  EXPECT_THAT(nowhere.error().message, HasSubstr("No such file or directory"));
  std::filesystem::create_symlink(folder_ / "elsewhere", path_);  // another user's trap
  EXPECT_FALSE(CpuClaim::take({0}, path_).ok());
  EXPECT_FALSE(std::filesystem::exists(folder_ / "elsewhere"));
}

// Locks on what is no file hold for nobody, or not as they should.
TEST_F(CpuClaims, OnlyARegularFileWillDo) {
  ASSERT_EQ(mkfifo(path_.c_str(), 0666), 0);
  for (const std::string& path : {path_, std::string("/dev/null")}) {
    const auto claim = CpuClaim::take({0}, path);
    ASSERT_FALSE(claim.ok()) << path;
    EXPECT_EQ(claim.error().code, ErrorCode::kEnvironment);
    EXPECT_THAT(claim.error().message, HasSubstr(path + ", by which"));
    EXPECT_THAT(claim.error().message, HasSubstr("it is not a regular file"));
  }
}

}  // namespace
}  // namespace muster::launcher
