#include "launcher/probe.h"

#include <gnu/libc-version.h>

#include <cstdio>
#include <fstream>
#include <iostream>

#include "checkpoint/numbers.h"
#include "launcher/ckpt_text.h"
#include "launcher/run.h"
#include "runtime/agent/settings.h"
#include "runtime/probe/verdict.h"

namespace muster::launcher {
namespace {

using namespace probe;
using checkpoint::hex64;

constexpr char kHelp[] =
    "show what this host makes of arithmetic and of the C library's functions, which all hosts of a job must "
    "make alike; with "
    "files, which hosts differ, and in what: srun muster probe --json | muster probe - ; exit code 0: fine, "
    "1: one differs, 2: a "
    "file cannot be read, 78: the command is wrong";

Json json_of(const HostProbe& host) {
  Json parts = Json::object();
  for (size_t p = 0; p < kParts; ++p) parts[name_of(static_cast<Part>(p))] = hex64(host[p]);
  return {{"host", agent::host_name()},
          {"libc", gnu_get_libc_version()},
          {"muster", MUSTER_VERSION},
          {"parts", parts}};
}

int show(bool json) {
  const HostProbe host = probe_host();
  if (json) {
    std::printf("%s\n", json_of(host).dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    return 0;
  }
  Table table({"part", "digest on " + agent::host_name()});
  for (size_t p = 0; p < kParts; ++p) table.add({name_of(static_cast<Part>(p)), hex64(host[p])});
  table.print();
  return 0;
}

std::optional<Answer> answer_from(const std::string& line) {
  const Json json = Json::parse(line, nullptr, false);
  if (!json.is_object() || !json.contains("host") || !json["host"].is_string() || !json.contains("parts") ||
      !json["parts"].is_object() || json["parts"].size() != kParts)
    return std::nullopt;
  Answer answer;
  answer.name = json["host"];
  for (size_t p = 0; p < kParts; ++p) {
    const auto part = json["parts"].find(name_of(static_cast<Part>(p)));
    if (part == json["parts"].end() || !part->is_string()) return std::nullopt;
    const auto digest = checkpoint::parse_number<uint64_t>(part->get_ref<const std::string&>(), 16);
    if (!digest) return std::nullopt;
    answer.host[p] = *digest;
  }
  return answer;
}

Status read_answers(std::istream& lines, const std::string& name, std::vector<Answer>& answers) {
  std::string line;
  for (size_t number = 1; std::getline(lines, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    auto answer = answer_from(line);
    if (!answer)
      return Error{ErrorCode::kMisuse, name + ", line " + std::to_string(number) +
                                           ": is not what this version's muster probe --json prints"};
    answers.push_back(*std::move(answer));
  }
  if (lines.bad()) return Error{ErrorCode::kEnvironment, "cannot read " + name};
  return ok();
}

Result<std::vector<Answer>> read_all(const std::vector<std::string>& files) {
  std::vector<Answer> answers;
  for (const std::string& name : files) {
    if (name == "-") {
      MUSTER_TRY(read_answers(std::cin, "standard input", answers));
      continue;
    }
    std::ifstream file(name);
    if (!file) return Error{ErrorCode::kEnvironment, "cannot open " + name};
    MUSTER_TRY(read_answers(file, name, answers));
  }
  if (answers.size() < 2)
    return Error{ErrorCode::kMisuse,
                 "there are probes of " + std::to_string(answers.size()) +
                     " hosts; give those of two or more, each a line of muster probe --json"};
  return answers;
}

int compare(const std::vector<std::string>& files, bool json) {
  const auto answers = read_all(files);
  if (!answers.ok()) return report(answers.error());
  const auto difference = find_difference(*answers);
  Json others = Json::array();
  if (difference)
    for (const size_t i : difference->others)
      others.push_back({{"host", (*answers)[i].name}, {"differs_in", difference->how[i]}});
  if (json) {
    print({{"hosts", answers->size()}, {"differ", others}});
  } else if (!difference) {
    std::printf("%zu hosts compute alike\n", answers->size());
  } else {
    for (const Json& other : others)
      std::printf("%s computes otherwise than %s and most: %s\n",
                  printable(other["host"].get_ref<const std::string&>()).c_str(),
                  printable((*answers)[difference->reference].name).c_str(),
                  other["differs_in"].get_ref<const std::string&>().c_str());
  }
  return difference ? kExitFound : 0;
}

}  // namespace

void ProbeCommand::add_to(CLI::App& app) {
  probe_ = app.add_subcommand("probe", kHelp);
  probe_->add_option("FILE", files_, "lines of muster probe --json, one of each host; - is standard input");
  probe_->add_flag("--json", json_, "one JSON object instead of a table, in one line where it is a probe");
}

int ProbeCommand::run() const { return files_.empty() ? show(json_) : compare(files_, json_); }

}  // namespace muster::launcher
