// The documents of three clouds' metadata services, judged. Pure: answers in, what stands in them out.
//
// Sources: Amazon EC2 User Guide, "Spot Instance interruption notices" and "EC2 instance rebalance
// recommendations"; Google Compute Engine, "Preemptible VM instances" and "Handle host maintenance events";
// Azure, "Scheduled Events for Linux VMs" (api-version 2020-07-01).
//
// INVARIANT: an answer is believed only if it says what its document must say. An error page, another service
// behind the same address, or half a document is an error, never a notice and never "all is well".
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/result.h"

namespace muster::notice {

struct HttpAnswer {
  int status = 0;
  std::string body;
  std::string metadata_flavor;  // the header of that name; Google's own mark
};

// What a metadata service says now. `left_s` is counted from the answer; nothing: no time is stated.
struct CloudEvent {
  std::string id;
  std::string words;
  std::optional<int64_t> left_s;
  bool is_warning = false;
};

// "2026-11-22T15:02:39Z"; nothing for what is no such time.
std::optional<int64_t> parse_iso_time(std::string_view text);
// "Mon, 19 Sep 2016 18:29:47 GMT", as Azure writes it.
std::optional<int64_t> parse_http_time(std::string_view text);

// ---- AWS: 404 means that nothing is planned.
// `now_s`: wall time. Errors: kRetry.
Result<std::optional<CloudEvent>> read_aws_interruption(const HttpAnswer& answer, int64_t now_s);
Result<std::optional<CloudEvent>> read_aws_rebalance(const HttpAnswer& answer);

// ---- GCP
Result<std::optional<CloudEvent>> read_gcp_preempted(const HttpAnswer& answer);
Result<std::optional<CloudEvent>> read_gcp_maintenance(const HttpAnswer& answer);

// ---- Azure
struct AzureEvent : CloudEvent {
  // Acknowledging lets Azure begin at once, for all machines that the event lists: only right if it lists
  // this one alone.
  bool only_this_machine = false;
};
// `machine`: this VM's name; empty: not known, then events of any machine count. Errors: kRetry.
Result<std::vector<AzureEvent>> read_azure_events(const HttpAnswer& answer, const std::string& machine,
                                                  int64_t now_s);
std::string azure_acknowledgement(const std::string& event_id);

}  // namespace muster::notice
