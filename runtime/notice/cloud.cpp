#include "runtime/notice/cloud.h"

#include <time.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace muster::notice {
namespace {

using Json = nlohmann::json;

// From the soft power-off of a Spot VM to the hard one; the documents promise no more.
constexpr int64_t kGcpPreemptionSeconds = 30;
// Least notice of a host event that ends the VM; VMs with GPUs get an hour.
constexpr int64_t kGcpMaintenanceSeconds = 60;
constexpr size_t kAzureEventsMax = 100;

Error not_understood(const std::string& what, const HttpAnswer& answer) {
  return {ErrorCode::kRetry, what + " (HTTP " + std::to_string(answer.status) + ", " +
                                 std::to_string(answer.body.size()) + " bytes)"};
}

std::optional<int64_t> parse_time(std::string_view text, const char* format) {
  const std::string copy(text);
  tm parts{};
  const char* const end = strptime(copy.c_str(), format, &parts);
  if (end == nullptr || *end != 0) return std::nullopt;
  return timegm(&parts);
}

Json parsed(const std::string& body) { return Json::parse(body, nullptr, false); }

std::string text_in(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

std::string trimmed(std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
  return text;
}

int64_t left_until(int64_t when_s, int64_t now_s) { return std::max<int64_t>(0, when_s - now_s); }

// Anything may answer at a link-local address; Google's server says who it is.
Result<std::string> google_text(const HttpAnswer& answer, const std::string& what) {
  if (answer.status != 200) return not_understood("GCP does not answer for " + what, answer);
  if (answer.metadata_flavor != "Google")
    return not_understood("no metadata server of Google answers for " + what, answer);
  return trimmed(answer.body);
}

Result<AzureEvent> azure_event(const Json& event, const HttpAnswer& answer, int64_t now_s) {
  AzureEvent found;
  const std::string type = event.is_object() ? text_in(event, "EventType") : "";
  found.id = event.is_object() ? text_in(event, "EventId") : "";
  if (found.id.empty() || type.empty())
    return not_understood("Azure tells of an event without name or type", answer);
  const std::string not_before = text_in(event, "NotBefore");
  const bool started = text_in(event, "EventStatus") == "Started";
  const auto when = parse_http_time(not_before);
  if (started || not_before.empty())
    found.left_s = 0;  // it has begun, or may begin at any moment
  else if (when)
    found.left_s = left_until(*when, now_s);
  // Freeze pauses the machine for seconds and gives it back: no reason to stop.
  found.is_warning = type == "Freeze";
  const std::string description = text_in(event, "Description");
  found.words = "Azure: " + type + (description.empty() ? "" : ", " + description.substr(0, 200));
  return found;
}

}  // namespace

std::optional<int64_t> parse_iso_time(std::string_view text) {
  return parse_time(text, "%Y-%m-%dT%H:%M:%SZ");
}

std::optional<int64_t> parse_http_time(std::string_view text) {
  return parse_time(text, "%a, %d %b %Y %H:%M:%S GMT");
}

Result<std::optional<CloudEvent>> read_aws_interruption(const HttpAnswer& answer, int64_t now_s) {
  if (answer.status == 404) return std::optional<CloudEvent>();
  const Json document = answer.status == 200 ? parsed(answer.body) : Json();
  const std::string action = document.is_object() ? text_in(document, "action") : "";
  const auto when = document.is_object() ? parse_iso_time(text_in(document, "time")) : std::nullopt;
  if ((action != "terminate" && action != "stop" && action != "hibernate") || !when)
    return not_understood("AWS's interruption notice cannot be read", answer);
  CloudEvent event;
  event.id = "interruption " + text_in(document, "time");
  event.words = "AWS: spot interruption, " + action;
  event.left_s = left_until(*when, now_s);
  return std::optional(event);
}

Result<std::optional<CloudEvent>> read_aws_rebalance(const HttpAnswer& answer) {
  if (answer.status == 404) return std::optional<CloudEvent>();
  const Json document = answer.status == 200 ? parsed(answer.body) : Json();
  const std::string since = document.is_object() ? text_in(document, "noticeTime") : "";
  if (!parse_iso_time(since)) return not_understood("AWS's rebalance recommendation cannot be read", answer);
  CloudEvent event;
  event.id = "rebalance " + since;
  event.words = "AWS: rebalance recommendation, an interruption is likely";
  event.is_warning = true;
  return std::optional(event);
}

Result<std::optional<CloudEvent>> read_gcp_preempted(const HttpAnswer& answer) {
  MUSTER_ASSIGN(const std::string text, google_text(answer, "instance/preempted"));
  if (text == "FALSE") return std::optional<CloudEvent>();
  if (text != "TRUE") return not_understood("GCP's instance/preempted is neither TRUE nor FALSE", answer);
  CloudEvent event;
  event.id = "preempted";
  event.words = "GCP: the instance is preempted";
  event.left_s = kGcpPreemptionSeconds;
  return std::optional(event);
}

Result<std::optional<CloudEvent>> read_gcp_maintenance(const HttpAnswer& answer) {
  MUSTER_ASSIGN(const std::string text, google_text(answer, "instance/maintenance-event"));
  if (text == "NONE") return std::optional<CloudEvent>();
  const bool migrates = text == "MIGRATE_ON_HOST_MAINTENANCE";
  if (!migrates && text != "TERMINATE_ON_HOST_MAINTENANCE")
    return not_understood("GCP's instance/maintenance-event has an unknown value", answer);
  CloudEvent event;
  event.id = "maintenance";
  event.words = migrates ? "GCP: live migration" : "GCP: the host's maintenance ends the instance";
  event.is_warning = migrates;
  if (!migrates) event.left_s = kGcpMaintenanceSeconds;
  return std::optional(event);
}

Result<std::vector<AzureEvent>> read_azure_events(const HttpAnswer& answer, const std::string& machine,
                                                  int64_t now_s) {
  const Json document = answer.status == 200 ? parsed(answer.body) : Json();
  const auto events = document.is_object() ? document.find("Events") : document.end();
  if (!document.is_object() || !document.contains("DocumentIncarnation") || events == document.end() ||
      !events->is_array() || events->size() > kAzureEventsMax)
    return not_understood("Azure's scheduled events cannot be read", answer);
  std::vector<AzureEvent> found;
  for (const Json& entry : *events) {
    MUSTER_ASSIGN(AzureEvent event, azure_event(entry, answer, now_s));
    const auto resources = entry.find("Resources");
    bool listed = false;
    bool others = resources == entry.end() || !resources->is_array() || resources->empty();
    if (!others) {
      for (const Json& name : *resources) (name == machine ? listed : others) = true;
    }
    if (!listed && !machine.empty()) continue;  // the service tells every machine of a set about all of them
    event.only_this_machine = listed && !others;
    found.push_back(std::move(event));
  }
  return found;
}

std::string azure_acknowledgement(const std::string& event_id) {
  return Json{{"StartRequests", {{{"EventId", event_id}}}}}.dump();
}

}  // namespace muster::notice
