// The one table of options. Each is a flag of `muster run` and a MUSTER_ variable; a flag wins. Whoever adds
// an option adds one line to the table in options.cpp, and nothing else: flags, variables, checks, help and
// suggestions follow.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/result.h"

namespace muster {

enum class OptionType : uint8_t { kText, kInteger, kSeconds, kSwitch, kRange, kChoice };

enum class OptionUse : uint8_t {
  kRun,       // a flag of `muster run` and a variable
  kVariable,  // a variable only
  kInternal,  // a variable that the agent sets for its workers; not in the help
};

struct Option {
  std::string_view name;  // "node-name": flag --node-name, variable MUSTER_NODE_NAME
  OptionType type;
  std::string_view default_value;
  double low, high;  // kInteger, kSeconds, and both ends of kRange
  OptionUse use;
  std::string_view help;
  std::string_view choices = {};  // kChoice: "auto|core"; kInteger: a word in place of it
};

std::span<const Option> options();
const Option* find_option(std::string_view name);
std::string flag_of(const Option& option);
std::string variable_of(const Option& option);

// ", did you mean 'X'?" for the nearest candidate, or nothing where none is near.
std::string suggestion(std::string_view word, std::span<const std::string> candidates);

class OptionValues {
 public:
  // Reads the MUSTER_ variables of an environment block. Errors: kMisuse: an unknown one, a bad value.
  static Result<OptionValues> from_environment(const char* const* environment);
  static Result<OptionValues> from_environment();  // of this process

  // `source` is what the user wrote, for the message: "--nproc". Errors: kMisuse.
  Status set(std::string_view name, std::string value, const std::string& source);

  // REQUIRES: the table has `name` with this type; the values were checked when they were set.
  bool is_set(std::string_view name) const;
  // The durations that were set, by flag or variable, as "MUSTER_…=…": so a worker knows its agent's limits.
  std::vector<std::string> durations_as_variables() const;
  std::string text(std::string_view name) const;
  int64_t integer(std::string_view name) const;
  Duration duration(std::string_view name) const;
  bool on(std::string_view name) const;
  std::pair<int64_t, int64_t> range(std::string_view name) const;  // "4" is 4:4

 private:
  std::map<std::string, std::string, std::less<>> values_;
};

}  // namespace muster
