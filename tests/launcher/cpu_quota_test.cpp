#include "launcher/cpu_quota.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;

class CpuQuota : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "muster_quota_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  void write(const std::string& path, const std::string& text) const {
    fs::create_directories((folder_ / path).parent_path());
    std::ofstream(folder_ / path) << text << "\n";
  }
  std::optional<double> quota() const { return cpu_quota(folder_ / "groups", folder_ / "mount"); }

  fs::path folder_;
};

TEST_F(CpuQuota, TheLeastOfTheGroupsAroundCounts) {
  write("groups", "0::/pod/trainer");
  EXPECT_EQ(quota(), std::nullopt);
  write("mount/cpu.max", "max 100000");
  EXPECT_EQ(quota(), std::nullopt);
  write("mount/pod/cpu.max", "250000 100000");
  EXPECT_EQ(quota(), 2.5);
  write("mount/pod/trainer/cpu.max", "400000 100000");
  EXPECT_EQ(quota(), 2.5);
}

TEST_F(CpuQuota, IsReadFromGroupsOfVersionOne) {
  write("groups", "4:memory:/job\n1:cpu,cpuacct:/job\n0::/");
  write("mount/cpu/job/cpu.cfs_quota_us", "-1");
  write("mount/cpu/job/cpu.cfs_period_us", "100000");
  EXPECT_EQ(quota(), std::nullopt);
  write("mount/cpu/job/cpu.cfs_quota_us", "50000");
  EXPECT_EQ(quota(), 0.5);
}

// A container sees its own group as the root of the mount, and may be told the host's path.
TEST_F(CpuQuota, APathOfTheHostLeadsToTheContainersRoot) {
  write("groups", "0::/kubepods/pod17/abc");
  write("mount/cpu.max", "150000 100000");
  EXPECT_EQ(quota(), 1.5);
}

TEST_F(CpuQuota, NonsenseIsNoLimit) {
  EXPECT_EQ(quota(), std::nullopt) << "no file";
  write("groups", "nonsense\n0:\n::\n0::/a");
  write("mount/a/cpu.max", "100000");
  EXPECT_EQ(quota(), std::nullopt);
  write("mount/a/cpu.max", "100000 0");
  EXPECT_EQ(quota(), std::nullopt);
}

}  // namespace
}  // namespace muster::launcher
