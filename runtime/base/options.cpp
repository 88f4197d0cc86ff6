#include "runtime/base/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "runtime/base/check.h"

extern char** environ;

namespace muster {
namespace {

using enum OptionType;
using enum OptionUse;

constexpr double kDay = 86400;

constexpr Option kOptions[] = {
    {"nnodes", kRange, "1", 1, 65536, kRun,
     "nodes: MIN:MAX, or one number; the job runs with any count between"},
    {"nproc", kInteger, "1", 1, 4096, kRun, "workers on this node"},
    {"bind", kChoice, "auto", 0, 0, kRun,
     "which cpus each worker may use. core: whole cores of its own; numa: all of the NUMA nodes that these "
     "are on; auto: as core, where that can only help; none: all. A worker sees its cpus in MUSTER_CPUS, and "
     "OMP_NUM_THREADS, if it is not set, is the cores of the worker that has fewest, the same for all; "
     "MUSTER_LOCAL_DEVICE is its GPU by its local rank, near which its cpus are where that costs nobody a "
     "core, or with core and numa",
     "auto|core|numa|none"},
    {"rdzv", kText, "", 0, 0, kRun,
     "HOST:PORT of the first agent, or etcd://HOST:PORT[,HOST:PORT...], with TLS etcds://; needed where MAX "
     "> 1"},
    {"rdzv-lease", kSeconds, "5", 3, 600, kRun,
     "with etcd: whole seconds after which a leader that etcd does not hear is replaced"},
    {"etcd-cacert", kText, "", 0, 0, kRun,
     "with etcds://: PEM file of the CAs that may have signed etcd's certificates (default: the system's)"},
    {"etcd-cert", kText, "", 0, 0, kRun, "with etcds://: PEM file of the certificate to show to etcd"},
    {"etcd-key", kText, "", 0, 0, kRun, "with etcds://: PEM file of the key of --etcd-cert"},
    {"etcd-user", kText, "", 0, 0, kRun, "with etcds://: etcd's user whose role may use the job's keys"},
    {"etcd-password-file", kText, "", 0, 0, kRun,
     "file with the password of --etcd-user, readable by its owner only (0600)"},
    {"etcd-password", kText, "", 0, 0, kVariable, "in place of --etcd-password-file"},
    {"rdzv-timeout", kSeconds, "300", 0.1, kDay, kRun,
     "give up where the rendezvous does not answer within so long"},
    {"job", kText, "muster", 0, 0, kRun, "the job's name; agents of different jobs refuse each other"},
    {"secret-file", kText, "", 0, 0, kRun, "file with the job's secret, readable by its owner only (0600)"},
    {"secret-fd", kInteger, "-1", -1, 1 << 20, kVariable,
     "inherited descriptor to read the job's secret from"},
    {"log-dir", kText, "", 0, 0, kRun, "folder for one output and one error file per worker"},
    {"node-name", kText, "", 0, 0, kRun, "this node's name in messages (default: Slurm's, or the host's)"},
    {"grace", kSeconds, "30", 0, kDay, kRun,
     "from a signal to the agent until the workers are killed; under Slurm its own deadline"},
    {"finish-grace", kSeconds, "3600", 0, 7 * kDay, kRun,
     "after the last step a program may take so long to evaluate and export; then its workers are ended"},
    {"notices", kText, "", 0, 0, kRun,
     "whom to ask for notices: of aws, gcp, azure, slurm for node drains, pbs and lsf for the time limit, "
     "comma "
     "between; signals of schedulers are recognised without it"},
    {"drain-every", kSeconds, "30", 0.1, kDay, kRun,
     "with --notices slurm, pbs or lsf: between questions to the scheduler"},
    {"notice-file", kText, "", 0, 0, kRun,
     "file that is a notice while it exists: [job|node] [SECONDS] [WORDS]"},
    {"notice-listen", kText, "", 0, 0, kRun,
     "HOST:PORT on the loopback address where notices are taken over HTTP (see: muster notice)"},
    {"notice-lead", kSeconds, "120", 0, kDay, kRun,
     "a planned notice is acted on so long before its deadline; until then it may be withdrawn"},
    {"ready-file", kText, "", 0, 0, kRun, "file that exists while this node trains, for a readiness probe"},
    {"live-file", kText, "", 0, 0, kRun, "file that is touched every second, for a liveness probe"},
    {"metadata-url", kText, "", 0, 0, kVariable,
     "where the cloud's metadata service answers, if not at its own address"},
    {"requeue-max", kInteger, "1000", 0, 1000000, kRun,
     "under Slurm: so often a job that ended early asks to be queued again; 0: never"},
    {"requeue-marker", kText, "", 0, 0, kRun,
     "file in which muster counts launches without a step; write never into it to stop the requeues"},
    {"keep-store", kSwitch, "0", 0, 0, kRun,
     "a notice to the first agent's node stops the job; without it the store moves to another node"},
    {"quiet", kSwitch, "0", 0, 0, kRun, "print no events, only the workers' output and errors"},
    {"events", kText, "", 0, 0, kRun, "file to append all events to, one JSON object a line"},
    {"audit", kText, "", 0, 0, kRun,
     "file of this agent alone, named for its node, as in audit-$(hostname).log, to which its decisions are "
     "appended, with their reasons, in a chain that shows changes (see: muster audit)"},
    {"metrics-listen", kText, "", 0, 0, kRun,
     "HOST:PORT where Prometheus may fetch this agent's metrics, at /metrics; who reaches it can only read"},
    {"account", kText, "", 0, 0, kRun,
     "file that the job's launches share: what each preemption cost, one JSON object a line"},
    {"restarts", kInteger, "3", 0, 1000, kRun,
     "deaths of one worker within the window before it is given up"},
    {"restart-window", kSeconds, "600", 1, kDay, kRun, "the window of --restarts"},
    {"restart-delay", kSeconds, "1", 0, kDay, kRun,
     "wait before a restart; doubles with each death in the window"},
    {"form-wait", kSeconds, "2", 0, kDay, kRun, "once MIN nodes are complete, wait so long for more"},
    {"form-timeout", kSeconds, "300", 1, kDay, kRun, "end the job if MIN nodes are not complete by then"},
    {"heartbeat", kSeconds, "0.5", 0.01, 60, kRun, "between heartbeats of an agent"},
    {"node-silence", kSeconds, "5", 0.1, 3600, kRun,
     "a node that says nothing for so long is suspected lost"},
    {"worker-silence", kSeconds, "10", 0.1, 3600, kRun, "a worker that says nothing for so long is killed"},
    {"partition-wait", kSeconds, "30", 0, kDay, kRun, "the store's side of a split goes on alone after this"},
    {"frozen-timeout", kSeconds, "120", 0.1, kDay, kRun,
     "without a leader for so long, a node ends as requeue"},
    {"quarantine-losses", kInteger, "6", 0, 1000, kRun,
     "so many losses on one node within --quarantine-time keep it out of the job for as long, and twice as "
     "long the next time, unless the job cannot run without it; 0: never"},
    {"quarantine-time", kSeconds, "600", 1, 7 * kDay, kRun, "of the first quarantine of a node"},
    {"straggler-percent", kInteger, "200", 110, 100000, kRun,
     "a worker whose microbatches take so many percent of the others' is a straggler, if it is so in three "
     "windows of 10 s (of a minute where some worker computes nothing)"},
    {"straggler-action", kChoice, "tell", 0, 0, kRun,
     "replace: a straggler leaves between two steps, and is started anew", "off|tell|replace"},
    {"step-timeout", kSeconds, "600", 1, 7 * kDay, kRun,
     "a worker without progress for so long is suspected hung"},
    {"save-timeout", kSeconds, "600", 1, kDay, kRun, "a save that takes longer has failed"},
    {"node-mtbf", kSeconds, "22680000", 1, 36500 * kDay, kRun,
     "of one node, between losses, until more is seen; where the program leaves it to muster when to save"},
    {"ready-timeout", kSeconds, "60", 1, kDay, kRun,
     "a worker that does not enter a new view by then is lost; a state has 1 s more for each 32 MB to send"},
    {"update-timeout", kSeconds, "30", 0.1, kDay, kVariable,
     "an update scope that stays open so long is torn"},
    {"checkpoint-local-dir", kText, "", 0, 0, kVariable,
     "folder on each node for saves of its own workers, where the program names none and can have them"},
    {"checkpoint-local-every", kInteger, "0", 0, 1e15, kVariable,
     "steps between these, where the program does not say; auto: as often as it pays", "auto"},
    {"checkpoint-drain", kSwitch, "0", 0, 0, kVariable,
     "periodic saves in the folder that all share are made from these, in the background"},
    {"checkpoint-key-file", kText, "", 0, 0, kVariable,
     "file with the key that seals checkpoints, where the program names none: only you may read it. See "
     "docs/guides/checkpoints.md"},
    {"probe", kChoice, "tell", 0, 0, kVariable,
     "where a process computes otherwise than most (see: muster probe): tell: an event says so; refuse: that "
     "process also ends before what it computed counts",
     "off|tell|refuse"},
    {"keep-every", kInteger, "0", 0, 1e15, kVariable,
     "keep also checkpoints of versions that are multiples of this; 0: none for that reason"},
    {"keep-younger", kSeconds, "0", 0, 36500 * kDay, kVariable,
     "keep also checkpoints that are younger than this"},
    {"staging-mib", kInteger, "0", 0, 1 << 24, kVariable,
     "memory for a save on its way to disk, in MiB; 0: as much as a rank saves. Less makes update() wait"},
    {"save-rate-mib", kInteger, "0", 0, 1 << 24, kVariable,
     "what a worker writes of a save in a second at most, in MiB; 0: no limit. Saves on notice and the last "
     "one have none, "
     "and one that these wait for. "
     "With MUSTER_STAGING_MIB updates wait for it"},
    {"lesson-log-mib", kInteger, "512", 0, 1 << 20, kVariable,
     "gradients that may wait for a worker that learns, in MiB, or one of any size; 0: none. One for which "
     "more would wait starts again once; then it is sent the state between two steps, while all wait"},
    {"ucx-transports", kText, "tcp,self", 0, 0, kVariable,
     "what workers of different nodes talk over, as UCX_TLS has it: rc,ud,tcp,self on InfiniBand"},
    {"comm-form-timeout", kSeconds, "120", 0.1, kDay, kVariable,
     "a communicator whose ranks have not all come by then is not formed"},
    {"comm-timeout", kSeconds, "600", 0.001, 7 * kDay, kVariable,
     "an operation of a communicator that takes longer fails, and says who held it up"},
    {"comm-tune", kSwitch, "0", 0, 0, kVariable,
     "communicators measure their links when they are formed, and choose algorithms by that"},
    {"pmpi-report", kSwitch, "0", 0, 0, kVariable,
     "a program with libmuster_pmpi.so preloaded says at its end which operations of MPI Muster did"},
    {"shared-memory", kSwitch, "1", 0, 0, kVariable,
     "ranks on one node share memory; 0: they use the network too, as on different nodes"},
    {"link-unchanged", kSwitch, "1", 0, 0, kVariable,
     "a shard whose bytes did not change becomes a hard link to an earlier one, and of one that did in part "
     "the file system shares the rest, where it can; the newest that are kept never share bytes"},
    {"cpu-claims", kText, "/dev/shm/muster-cpus", 0, 0, kVariable,
     "file by which agents of one machine tell each other which cpus they have bound workers to"},
    {"module-path", kText, "", 0, 0, kVariable, "folder of libmuster_*.so"},
    {"control-fd", kText, "", 0, 0, kInternal, "the worker's socket to its agent, FD:INODE"},
    {"local-rank", kInteger, "0", 0, 65535, kInternal, "the worker's slot on its node"},
    {"local-size", kInteger, "1", 1, 65536, kInternal, "slots on the node"},
    {"node-id", kText, "", 0, 0, kInternal, "the agent's incarnation"},
    {"incarnation", kText, "", 0, 0, kInternal, "marks all processes that one worker started"},
    {"cpus", kText, "", 0, 0, kInternal, "that the worker is bound to, as 0-3,8"},
    {"local-device", kInteger, "0", 0, 65535, kInternal, "the GPU that its cpus are chosen for"},
};

constexpr std::string_view kPrefix = "MUSTER_";

template <typename T>
std::optional<T> parsed(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<bool> parsed_switch(std::string_view text) {
  for (const std::string_view word : {"1", "true", "on", "yes"})
    if (text == word) return true;
  for (const std::string_view word : {"0", "false", "off", "no"})
    if (text == word) return false;
  return std::nullopt;
}

std::optional<std::pair<int64_t, int64_t>> parsed_range(std::string_view text) {
  const size_t colon = text.find(':');
  const auto low = parsed<int64_t>(text.substr(0, colon));
  const auto high = colon == std::string_view::npos ? low : parsed<int64_t>(text.substr(colon + 1));
  if (!low || !high) return std::nullopt;
  return std::pair{*low, *high};
}

std::string shown(double number) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", number);
  return text;
}

std::vector<std::string> words_of(std::string_view choices) {
  std::vector<std::string> words;
  while (!choices.empty()) {
    words.emplace_back(choices.substr(0, choices.find('|')));
    choices.remove_prefix(std::min(choices.size(), words.back().size() + 1));
  }
  return words;
}

// "auto, core or none", with what may have been meant.
std::string advice(const std::vector<std::string>& words, const std::string& value) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i)
    text += (i == 0 ? "" : i + 1 == words.size() ? " or " : ", ") + words[i];
  return text + suggestion(value, words);
}

// Empty: fine. Else what the value must be.
std::string complaint(const Option& option, const std::string& value) {
  const auto inside = [&](double number) { return number >= option.low && number <= option.high; };
  const std::string bounds = " from " + shown(option.low) + " to " + shown(option.high);
  switch (option.type) {
    case kText:
      return "";
    case kInteger: {
      const auto number = parsed<int64_t>(value);
      if ((number && inside(static_cast<double>(*number))) || (!value.empty() && value == option.choices))
        return "";
      return "a whole number" + bounds +
             (option.choices.empty() ? "" : ", or " + std::string(option.choices));
    }
    case kSeconds: {
      const auto number = parsed<double>(value);
      return number && std::isfinite(*number) && inside(*number) ? "" : "seconds," + bounds;
    }
    case kSwitch:
      return parsed_switch(value) ? "" : "1 or 0";
    case kRange: {
      const auto both = parsed_range(value);
      if (!both) return "MIN:MAX or one number";
      if (both->first > both->second)
        return "MIN:MAX with MIN not above MAX (did you mean " + std::to_string(both->second) + ":" +
               std::to_string(both->first) + "?)";
      return inside(static_cast<double>(both->first)) && inside(static_cast<double>(both->second))
                 ? ""
                 : "MIN:MAX, both" + bounds;
    }
    case kChoice: {
      const auto words = words_of(option.choices);
      return std::find(words.begin(), words.end(), value) != words.end() ? "" : advice(words, value);
    }
  }
  return "";
}

// Optimal string alignment: insertions, deletions, substitutions, swaps of neighbours.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      d[i][j] =
          std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

std::span<const Option> options() { return kOptions; }

const Option* find_option(std::string_view name) {
  for (const Option& option : kOptions)
    if (option.name == name) return &option;
  return nullptr;
}

std::string flag_of(const Option& option) { return "--" + std::string(option.name); }

std::string variable_of(const Option& option) {
  std::string variable(kPrefix);
  for (const char c : option.name) variable += c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return variable;
}

std::string suggestion(std::string_view word, std::span<const std::string> candidates) {
  const std::string* nearest = nullptr;
  size_t nearest_distance = word.size() / 4 + 1;  // farther is a different word
  for (const std::string& candidate : candidates) {
    const size_t far = distance(word.substr(0, 64), candidate);
    if (far < nearest_distance) {
      nearest = &candidate;
      nearest_distance = far;
    }
  }
  return nearest != nullptr ? ", did you mean '" + *nearest + "'?" : "";
}

Result<OptionValues> OptionValues::from_environment(const char* const* environment) {
  OptionValues values;
  for (; *environment != nullptr; ++environment) {
    const std::string_view entry = *environment;
    if (!entry.starts_with(kPrefix)) continue;
    const size_t equals = entry.find('=');
    const std::string variable(entry.substr(0, equals));
    const Option* known = nullptr;
    std::vector<std::string> variables;
    for (const Option& option : kOptions) {
      if (variable_of(option) == variable) known = &option;
      if (option.use != kInternal) variables.push_back(variable_of(option));
    }
    if (known == nullptr) {
      return Error{ErrorCode::kMisuse, "unknown environment variable '" + variable + "'" +
                                           suggestion(variable, variables) +
                                           "; unset it, or see `muster run --help` for all options"};
    }
    if (equals == std::string_view::npos || equals + 1 == entry.size()) continue;  // set to nothing: not set
    MUSTER_TRY(values.set(known->name, std::string(entry.substr(equals + 1)), variable));
  }
  return values;
}

Result<OptionValues> OptionValues::from_environment() { return from_environment(environ); }

Status OptionValues::set(std::string_view name, std::string value, const std::string& source) {
  const Option* option = find_option(name);
  MUSTER_CHECK(option != nullptr, "no option " + std::string(name));
  const std::string wrong = complaint(*option, value);
  if (!wrong.empty()) return Error{ErrorCode::kMisuse, source + " is '" + value + "'; it must be " + wrong};
  values_[std::string(name)] = std::move(value);
  return ok();
}

bool OptionValues::is_set(std::string_view name) const { return values_.find(name) != values_.end(); }

std::vector<std::string> OptionValues::durations_as_variables() const {
  std::vector<std::string> assignments;
  for (const auto& [name, value] : values_) {
    const Option& option = *find_option(name);
    if (option.type == OptionType::kSeconds) assignments.push_back(variable_of(option) + "=" + value);
  }
  return assignments;
}

std::string OptionValues::text(std::string_view name) const {
  const auto found = values_.find(name);
  if (found != values_.end()) return found->second;
  const Option* option = find_option(name);
  MUSTER_CHECK(option != nullptr, "no option " + std::string(name));
  return std::string(option->default_value);
}

int64_t OptionValues::integer(std::string_view name) const { return parsed<int64_t>(text(name)).value_or(0); }
Duration OptionValues::duration(std::string_view name) const {
  return static_cast<Duration>(std::llround(parsed<double>(text(name)).value_or(0) * 1e9));
}
bool OptionValues::on(std::string_view name) const { return parsed_switch(text(name)).value_or(false); }
std::pair<int64_t, int64_t> OptionValues::range(std::string_view name) const {
  return parsed_range(text(name)).value_or(std::pair<int64_t, int64_t>{0, 0});
}

}  // namespace muster
