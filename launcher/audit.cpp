#include "launcher/audit.h"

#include <time.h>

#include <algorithm>
#include <cstdio>

#include "launcher/audit_file.h"
#include "launcher/ckpt_text.h"
#include "launcher/event_printer.h"
#include "launcher/run.h"
#include "runtime/agent/settings.h"

namespace muster::launcher {
namespace {

using namespace audit;

constexpr char kHelp[] =
    "check the audit logs of muster run --audit, one of each agent, and show them; exit code 0: fine, 1: a "
    "log "
    "was changed, 2: it could not look, or lacks the secret to check, 78: the command is wrong";

std::string time_text(int64_t time_ms) {
  const time_t seconds = static_cast<time_t>(time_ms / 1000);
  tm parts{};
  if (gmtime_r(&seconds, &parts) == nullptr) return std::to_string(time_ms) + " ms";
  char text[48];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &parts);
  char milliseconds[8];
  std::snprintf(milliseconds, sizeof milliseconds, ".%03d",
                static_cast<int>(time_ms % 1000 < 0 ? 0 : time_ms % 1000));
  return text + std::string(milliseconds) + "Z";
}

std::optional<EventKind> kind_of(const std::string& name) {
  for (uint16_t number = 0; number <= static_cast<uint16_t>(kNewestEventKind); ++number)
    if (to_string(static_cast<EventKind>(number)) == name) return static_cast<EventKind>(number);
  return std::nullopt;
}

std::string words_of(const Record& record) {
  if (const auto kind = kind_of(record.event)) {
    Event event{*kind,          record.at,     record.generation, record.version,
                record.subject, record.amount, record.text,       record.tier};
    return launcher::words_of(event);
  }
  std::string words = record.event;
  if (record.event == kAgentEnded) words += ": exit code " + std::to_string(record.amount);
  if (record.event == kMended) words += ": " + std::to_string(record.amount) + " bytes";
  if (record.event == kGap) words += ": " + std::to_string(record.amount) + " records";
  if (record.opening)
    words += ": job " + record.opening->job + ", agent " + record.opening->incarnation + ", " +
             std::string(to_string(record.opening->seal));
  return words + (record.text.empty() ? "" : ": " + record.text);
}

void print_line(const Record& record) {
  const std::string line = std::to_string(record.sequence) + "  " + time_text(record.time_ms) + " [" +
                           record.node + (record.from == "agent" ? "" : " " + record.from) + "] " +
                           words_of(record);
  std::printf("%s\n", harmless(line).c_str());
}

Json to_json(const Record& record) { return Json::parse(canonical_content(record) + "}"); }

Json to_json(const std::string& path, const Report& report) {
  Json json = {{"file", path},
               {"holds", !report.fault},
               {"records", report.records},
               {"head", to_hex(report.end.head)},
               {"nodes", report.nodes}};
  if (report.opening) json.update({{"job", report.opening->job}, {"seal", to_string(report.opening->seal)}});
  if (report.anchored) json["anchored"] = *report.anchored;
  if (report.fault)
    json["fault"] = {
        {"line", report.fault->line}, {"kind", to_string(report.fault->kind)}, {"text", report.fault->words}};
  return json;
}

std::string nodes_text(const Report& report) {
  std::string text;
  for (const std::string& node : report.nodes) text += (text.empty() ? "" : ", ") + node;
  return (report.nodes.size() == 1 ? ", of node " : ", of the nodes ") + text;
}

// The first record says that a secret is needed, and none was given.
bool is_sealed(const Report& report) {
  return report.fault && report.fault->kind == FaultKind::kSeal && report.fault->line == 1;
}

void print_report(const std::string& path, const Report& report) {
  if (report.fault) {
    const std::string line = path + ": " + launcher::words_of(*report.fault) + "; " +
                             std::to_string(report.records) + " records before it hold";
    std::printf("%s\n", harmless(line).c_str());
    return;
  }
  std::string line = path + ": holds: " + std::to_string(report.records) + " records of job " +
                     report.opening->job + nodes_text(report) + ", " + time_text(report.first_ms) + " to " +
                     time_text(report.last_ms) + ", " + std::string(to_string(report.opening->seal)) +
                     ", head " + to_hex(report.end.head);
  if (report.anchored)
    line += "; the head that was given is record " + std::to_string(*report.anchored) + ", " +
            std::to_string(report.records - 1 - *report.anchored) + " came after it";
  std::printf("%s\n", harmless(line).c_str());
}

// What was found out, as an exit code. A file that lacks the seal it should have was found out; so was one
// that changes its seal on the way.
int code_of(const Report& report, bool with_secret) {
  if (!report.fault) return 0;
  const bool blind = report.fault->kind == FaultKind::kFormat || (is_sealed(report) && !with_secret);
  return blind ? kExitTrouble : kExitFound;
}

// What was found in one file is not hidden by that another could not be looked at.
int worse_of(int code, int other) {
  return code == kExitFound || other == kExitFound ? kExitFound : std::max(code, other);
}

// As muster run takes it, so that the same environment serves both.
Result<std::optional<ByteBuffer>> secret_of(const std::optional<std::string>& secret_file) {
  MUSTER_ASSIGN(OptionValues values, OptionValues::from_environment());
  if (secret_file) MUSTER_TRY(values.set("secret-file", *secret_file, "--secret-file"));
  MUSTER_ASSIGN(ByteBuffer secret, agent::read_secret(values));
  if (secret.empty()) return std::optional<ByteBuffer>();
  return std::optional(std::move(secret));
}

Result<VerifierOptions> options_of(const std::string& head, const std::optional<std::string>& secret_file) {
  VerifierOptions options;
  if (!head.empty()) {
    const ByteBuffer bytes = from_hex(head);
    if (bytes.size() != sizeof(Hash))
      return Error{ErrorCode::kMisuse,
                   "--head takes the 64 hexadecimal digits that muster audit verify has printed"};
    options.anchor.emplace();
    std::copy(bytes.begin(), bytes.end(), options.anchor->begin());
  }
  MUSTER_ASSIGN(options.secret, secret_of(secret_file));
  return options;
}

Result<Report> verify_file(const std::string& path, const VerifierOptions& options,
                           const std::function<void(const Record&)>& use = {}) {
  MUSTER_ASSIGN(auto file, real_files().open(path, OpenMode::kRead));
  return verify_audit(*file, options, use);
}

int verify(const std::vector<std::string>& paths, const VerifierOptions& options, bool json) {
  int code = 0;
  Json list = Json::array();
  for (const std::string& path : paths) {
    const auto found = verify_file(path, options);
    if (!found.ok()) {
      code = worse_of(code, report(found.error()));
      list.push_back({{"file", path}, {"error", found.error().message}});
      continue;
    }
    code = worse_of(code, code_of(*found, options.secret.has_value()));
    if (json)
      list.push_back(to_json(path, *found));
    else
      print_report(path, *found);
  }
  if (json) print({{"logs", list}});
  return code;
}

// Without the secret a sealed file is shown all the same, and the end says that nobody has checked it.
int show(const std::string& path, VerifierOptions options, bool json) {
  Json list = Json::array();
  const auto use = [&](const Record& record) {
    if (json)
      list.push_back(to_json(record));
    else
      print_line(record);
  };
  const bool with_secret = options.secret.has_value();
  auto found = verify_file(path, options, use);
  const bool blind = found.ok() && is_sealed(*found) && !with_secret;
  if (blind) {
    options.unchecked = true;
    found = verify_file(path, options, use);
  }
  if (!found.ok()) return report(found.error());
  if (json) print({{"records", list}, {"checked", !blind}, {"log", to_json(path, *found)}});
  if (found->fault)
    std::fprintf(stderr, "muster: %s\n", harmless(path + ": " + launcher::words_of(*found->fault)).c_str());
  if (blind)
    std::fprintf(stderr,
                 "muster: %s is sealed with the job's secret, and was NOT checked: give --secret-file\n",
                 harmless(path).c_str());
  return worse_of(code_of(*found, with_secret), blind ? kExitTrouble : 0);
}

// A full disk or a closed pipe must not pass for an answer.
int with_output(int code) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  return worse_of(code, report({ErrorCode::kEnvironment, "the answer could not be written to its end"}));
}

}  // namespace

void AuditCommand::add_to(CLI::App& app) {
  audit_ = app.add_subcommand("audit", kHelp);
  audit_->require_subcommand(1);
  const auto add = [this](const char* name, const char* help) {
    CLI::App* command = audit_->add_subcommand(name, help);
    command->add_flag("--json", json_, "one JSON object");
    command->add_option("--secret-file", secret_file_,
                        "the job's secret, with which its log is sealed (also MUSTER_SECRET_FILE)");
    return command;
  };
  verify_ = add("verify", "check every record, and name the first that does not fit");
  verify_->add_option("FILE", files_)->required();
  verify_->add_option("--head", head_,
                      "a head that was printed before, and was kept elsewhere than the log: the log must "
                      "still have that record; "
                      "so a cut end shows, and an older or another log in its place");
  CLI::App* show_command = add("show", "the decisions, with their reasons");
  show_command->add_option("FILE", files_)->required()->expected(1);
}

int AuditCommand::run() const {
  if (!head_.empty() && files_.size() > 1)
    return report(
        {ErrorCode::kMisuse, "--head is of one log, and " + std::to_string(files_.size()) + " are named"});
  auto options = options_of(head_, secret_file_);
  if (!options.ok()) return report(options.error());
  const int code =
      verify_->parsed() ? verify(files_, *options, json_) : show(files_.front(), *options, json_);
  if (options->secret) crypto::forget(*options->secret);
  return with_output(code);
}

}  // namespace muster::launcher
