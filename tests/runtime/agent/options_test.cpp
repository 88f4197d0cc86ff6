#include "runtime/base/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace muster {
namespace {

using testing::HasSubstr;

Result<OptionValues> from(std::vector<const char*> environment) {
  environment.push_back(nullptr);
  return OptionValues::from_environment(environment.data());
}

TEST(Options, DefaultsAreValid) {
  OptionValues values;
  std::set<std::string_view> names;
  for (const Option& option : options()) {
    EXPECT_TRUE(names.insert(option.name).second) << option.name;
    if (option.default_value.empty()) continue;
    EXPECT_TRUE(values.set(option.name, std::string(option.default_value), "default").ok()) << option.name;
  }
}

TEST(Options, NamesBecomeFlagsAndVariables) {
  const Option* option = find_option("node-name");
  ASSERT_NE(option, nullptr);
  EXPECT_EQ(flag_of(*option), "--node-name");
  EXPECT_EQ(variable_of(*option), "MUSTER_NODE_NAME");
}

TEST(Options, AChoiceIsOneOfItsWords) {
  EXPECT_EQ(OptionValues().text("bind"), "auto");
  const auto core = from({"MUSTER_BIND=core"});
  ASSERT_TRUE(core.ok()) << core.error().message;
  EXPECT_EQ(core->text("bind"), "core");
  for (const char* wrong :
       {"MUSTER_BIND=cores", "MUSTER_BIND=auto|core", "MUSTER_BIND=Core", "MUSTER_BIND= "}) {
    const auto refused = from({wrong});
    ASSERT_FALSE(refused.ok()) << wrong;
    EXPECT_THAT(refused.error().message, HasSubstr("it must be auto, core, numa or none"));
  }
  EXPECT_THAT(from({"MUSTER_BIND=cores"}).error().message, HasSubstr(", did you mean 'core'?"));
}

TEST(Options, ReadsTheEnvironment) {
  const auto values =
      from({"PATH=/bin", "MUSTER_NPROC=4", "MUSTER_GRACE=1.5", "MUSTER_NNODES=2:8", "MUSTER_JOB="});
  ASSERT_TRUE(values.ok()) << values.error().message;
  EXPECT_EQ(values->integer("nproc"), 4);
  EXPECT_EQ(values->duration("grace"), 3 * kSecond / 2);
  EXPECT_EQ(values->range("nnodes"), (std::pair<int64_t, int64_t>{2, 8}));
  EXPECT_FALSE(values->is_set("job"));
  EXPECT_EQ(values->text("job"), "muster");
}

TEST(Options, UnknownVariableIsAnErrorWithASuggestion) {
  const auto values = from({"MUSTER_NPORC=4"});
  ASSERT_FALSE(values.ok());
  EXPECT_EQ(values.error().code, ErrorCode::kMisuse);
  EXPECT_THAT(values.error().message, HasSubstr("'MUSTER_NPORC', did you mean 'MUSTER_NPROC'?"));
  const auto strange = from({"MUSTER_XQZZY=4"});
  ASSERT_FALSE(strange.ok());
  EXPECT_THAT(strange.error().message, Not(HasSubstr("did you mean")));
}

TEST(Options, BadValuesNameTheirSourceAndRange) {
  OptionValues values;
  for (const char* bad : {"", "x", "4x", "0", "-1", "99999", "1e3", " 4"}) {
    const Status set = values.set("nproc", bad, "--nproc");
    ASSERT_FALSE(set.ok()) << bad;
    EXPECT_THAT(set.error().message, HasSubstr("--nproc is '"));
    EXPECT_THAT(set.error().message, HasSubstr("from 1 to 4096"));
  }
  for (const char* bad : {"nan", "inf", "-3", "soon"})
    EXPECT_FALSE(values.set("grace", bad, "--grace").ok()) << bad;
  for (const char* bad : {"4:2", "0", "1:", ":", "a:b", "1:2:3"})
    EXPECT_FALSE(values.set("nnodes", bad, "--nnodes").ok()) << bad;
  EXPECT_THAT(values.set("nnodes", "4:2", "--nnodes").error().message, HasSubstr("2:4"));
}

// An agent's limits hold for its workers too, and nothing else of its command line is theirs.
TEST(Options, DurationsBecomeVariables) {
  OptionValues values;
  ASSERT_TRUE(values.set("frozen-timeout", "7.5", "--frozen-timeout").ok());
  ASSERT_TRUE(values.set("secret-file", "/etc/hidden", "--secret-file").ok());
  EXPECT_EQ(values.durations_as_variables(), std::vector<std::string>{"MUSTER_FROZEN_TIMEOUT=7.5"});
}

}  // namespace
}  // namespace muster
