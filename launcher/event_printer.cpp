#include "launcher/event_printer.h"

#include <time.h>

#include <nlohmann/json.hpp>

namespace muster::launcher {
namespace {

std::string time_of_day() {
  const time_t now = static_cast<time_t>(wall_time_ms() / 1000);
  tm parts{};
  localtime_r(&now, &parts);
  char text[16];
  std::strftime(text, sizeof text, "%H:%M:%S", &parts);
  return text;
}

std::string milliseconds(int64_t nanoseconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f ms", static_cast<double>(nanoseconds) * 1e-6);
  return text;
}

// What the event's numbers mean, by kind (events.h).
std::string numbers_of(const Event& event) {
  const std::string version =
      "version " + std::to_string(event.version) + (event.tier == Tier::kLocal ? ", local" : "");
  const std::string subject = std::to_string(event.subject);
  switch (event.kind) {
    case EventKind::kWorkerStarted:
      return "worker " + subject + ", process " + std::to_string(event.amount);
    case EventKind::kWorkerEnded:
      return "worker " + subject;
    case EventKind::kMemberLost:
      return event.subject >= 0 ? "rank " + subject : "";
    case EventKind::kViewInstalled:
      return "generation " + std::to_string(event.generation) + ", world of " + std::to_string(event.amount) +
             (event.version >= 0 ? ", from " + version : "");
    case EventKind::kViewReady:
      return "generation " + std::to_string(event.generation) + " after " + milliseconds(event.amount);
    case EventKind::kTransfer:
      return std::to_string(event.amount) + " bytes";
    case EventKind::kSaveStaged:
      return version + ", update() waited " + milliseconds(event.amount);
    case EventKind::kSaveDurable:
      return version + ", " + std::to_string(event.amount) + " bytes";
    case EventKind::kNotice:
      return event.amount >= 0 ? "time left " + std::to_string(event.amount / kSecond) + " s" : "";
    case EventKind::kPlanned:
      return std::to_string(event.amount);
    case EventKind::kNoticePlan:
    case EventKind::kRefused:
    case EventKind::kLeaderChanged:
    case EventKind::kPreemptionCost:
      return "";
    case EventKind::kSafeToKill:
      return (event.version >= 0 ? version + " is saved" : "") +
             (event.amount >= 0 ? ", " + milliseconds(event.amount) + " before the deadline" : "");
    case EventKind::kJobEnded:
      return "exit code " + std::to_string(event.amount);
    default:
      return event.version >= 0 ? version : "";
  }
}

// One line for each step and rank would hide the rest.
bool is_for_people(EventKind kind) {
  return kind != EventKind::kStepCommitted && kind != EventKind::kSaveStaged;
}

}  // namespace

std::string words_of(const Event& event) {
  const std::string numbers = numbers_of(event);
  std::string line = event.kind == EventKind::kLog ? "" : std::string(to_string(event.kind));
  for (const std::string& part : {numbers, event.text}) {
    if (part.empty()) continue;
    line += (line.empty() ? "" : ": ") + part;
  }
  return line;
}

EventPrinter::EventPrinter(agent::Output& output, std::string node_name, bool quiet)
    : output_(output), node_name_(std::move(node_name)), quiet_(quiet) {}

Status EventPrinter::append_json_to(const std::string& path) {
  auto file = output_.open_file(path);
  if (!file.ok()) return std::move(file).error();
  json_ = *file;
  return ok();
}

void EventPrinter::show(const std::string& source, const Event& event, bool always) {
  if (json_) {
    nlohmann::json line = {{"time_ms", wall_time_ms()},
                           {"at_ns", event.at},
                           {"node", node_name_},
                           {"from", source},
                           {"event", to_string(event.kind)},
                           {"generation", event.generation},
                           {"version", event.version},
                           {"subject", event.subject},
                           {"amount", event.amount},
                           {"text", event.text}};
    if (event.tier == Tier::kLocal) line["tier"] = "local";
    output_.write(*json_, line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  }
  if ((quiet_ && !always) || !is_for_people(event.kind)) return;
  output_.write(2, "muster " + time_of_day() + " [" + node_name_ + (source == "agent" ? "" : " " + source) +
                       "] " + words_of(event) + "\n");
}

void EventPrinter::say(const std::string& text) { output_.write(2, "muster: " + text + "\n"); }

}  // namespace muster::launcher
