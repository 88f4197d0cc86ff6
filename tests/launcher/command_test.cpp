// What a scheduler's tool is given, and what is kept from it.
#include "launcher/command.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

#include "runtime/base/handle.h"

namespace muster::launcher {
namespace {

CommandResult run(const std::string& script, const std::vector<std::string>& variables = {}) {
  const std::atomic<bool> go_on = false;
  const auto result = run_command({"/bin/sh", "-c", script}, variables, 30 * kSecond, go_on);
  EXPECT_TRUE(result.ok()) << result.error().message;
  return result.ok() ? *result : CommandResult{};
}

TEST(Command, GetsTheEnvironmentWithoutSecrets) {
  for (const char* name :
       {"MUSTER_SECRET_FILE", "MUSTER_SECRET_FD", "MUSTER_ETCD_PASSWORD", "MUSTER_ETCD_USER"})
    setenv(name, "secret", 1);
  setenv("MUSTER_JOB", "kept", 1);
  setenv("TZ", "Mars", 1);
  const std::string variables = run("env", {"TZ=UTC0"}).output;
  EXPECT_EQ(variables.find("secret"), std::string::npos);
  EXPECT_NE(variables.find("MUSTER_JOB=kept"), std::string::npos);
  EXPECT_NE(variables.find("TZ=UTC0"), std::string::npos);
  EXPECT_EQ(variables.find("Mars"), std::string::npos);
}

TEST(Command, GetsNoFileOfItsParent) {
  const UniqueFd open_for_all(fcntl(0, F_DUPFD, 9));
  ASSERT_GE(open_for_all.get(), 9);
  const std::string number = std::to_string(open_for_all.get());
  EXPECT_EQ(run("[ -e /proc/$$/fd/" + number + " ] && echo open || echo closed").output, "closed\n");
}

}  // namespace
}  // namespace muster::launcher
