#include "runtime/agent/binding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

namespace muster::agent {
namespace {

using testing::HasSubstr;

int memory_mode() {
  int mode = -1;
  return syscall(SYS_get_mempolicy, &mode, nullptr, 0, nullptr, 0) == 0 ? mode : -1;
}

TEST(BoundThread, HasItsCpusAndGivesThemBack) {
  const auto before = own_cpus();
  ASSERT_FALSE(before.empty());
  {
    const BoundThread bound({{before.back()}, {}});
    EXPECT_EQ(bound.refused(), "");
    EXPECT_EQ(own_cpus(), std::vector<uint32_t>{before.back()});
    std::vector<uint32_t> inherited;
    std::thread([&] { inherited = own_cpus(); }).join();
    EXPECT_EQ(inherited, std::vector<uint32_t>{before.back()}) << "what is started meanwhile has them, too";
  }
  EXPECT_EQ(own_cpus(), before);
}

TEST(BoundThread, AnEmptyBindingChangesNothing) {
  const auto before = own_cpus();
  const BoundThread bound({});
  EXPECT_EQ(bound.refused(), "");
  EXPECT_EQ(own_cpus(), before);
}

TEST(BoundThread, SaysWhatIsRefused) {
  const auto before = own_cpus();
  const BoundThread bound({{65000}, {}});
  EXPECT_THAT(bound.refused(), HasSubstr("cpus: Invalid argument"));
  EXPECT_TRUE(bound.cpus_refused());
  EXPECT_EQ(own_cpus(), before);
}

TEST(BoundThread, PrefersMemoryNodesWhileItLives) {
  const int before = memory_mode();
  // Containers may be refused these calls; then the refusal is what can be tested.
  if (before < 0) {
    const BoundThread bound({{}, {0}});
    EXPECT_THAT(bound.refused(), HasSubstr("memory preference: " + std::string(std::strerror(EPERM))));
    return;
  }
  {
    const BoundThread bound({{}, {0}});
    EXPECT_EQ(bound.refused(), "");
    EXPECT_EQ(memory_mode(), MPOL_PREFERRED);
  }
  EXPECT_EQ(memory_mode(), before);
  const BoundThread nowhere({{}, {1000}});
  EXPECT_FALSE(nowhere.cpus_refused());
  EXPECT_THAT(nowhere.refused(), HasSubstr("memory preference: Invalid argument"));
  EXPECT_EQ(memory_mode(), before);
}

}  // namespace
}  // namespace muster::agent
