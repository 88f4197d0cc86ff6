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

}  // namespace
}  // namespace muster::launcher
