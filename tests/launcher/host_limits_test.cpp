#include "launcher/host_limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

namespace muster::launcher {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(HostLimits, NothingIsMissingWhereNothingIsLimited) {
  EXPECT_EQ(describe_limits({}, 4096),
            "limits        descriptors unlimited, locked memory unlimited, address space unlimited\n");
}

TEST(HostLimits, EachMissingThingHasItsPrice) {
  HostLimits limits;
  limits.io_uring = "Operation not permitted";
  limits.memfd = limits.pidfd = "Function not implemented";
  limits.locked_bytes = 8 << 20;
  limits.address_bytes = 1 << 30;
  const std::string text = describe_limits(limits, 1);
  for (const char* part :
       {"locked memory 8 MiB, address space 1024 MiB\n", "io_uring (Operation not permitted): checkpoints",
        "memfd_create (Function not implemented): ranks of a node", "pidfd_open (Function not implemented)",
        "ulimit -l", "ulimit -v"})
    EXPECT_THAT(text, HasSubstr(part));
}

TEST(HostLimits, DescriptorsAreMissingWhereAnAgentNeedsMore) {
  HostLimits limits;
  limits.descriptors = 256;
  EXPECT_THAT(describe_limits(limits, 8), Not(HasSubstr("lacks")));
  EXPECT_THAT(describe_limits(limits, 64),
              HasSubstr("an agent of 64 workers needs about 448; raise ulimit -n"));
}

TEST(HostLimits, AreThoseOfThisProcess) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit lower = before;
  lower.rlim_cur = 100;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &lower), 0);
  const HostLimits limits = measure_limits();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(limits.descriptors, 100U);
  EXPECT_EQ(limits.pidfd, "") << "muster run needs it";
}

}  // namespace
}  // namespace muster::launcher
