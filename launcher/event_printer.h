// The agent's readers of the event stream: readable lines on standard error, and a file of JSON lines.
#pragma once

#include <optional>
#include <string>

#include "runtime/agent/output.h"
#include "runtime/base/events.h"

namespace muster::launcher {

class EventPrinter {
 public:
  EventPrinter(agent::Output& output, std::string node_name, bool quiet);

  Status append_json_to(const std::string& path);
  // source: "agent", "leader", "worker 2"; `always`: also where nothing but errors is to be shown.
  void show(const std::string& source, const Event& event, bool always = false);
  void say(const std::string& text);  // an error or a state of the agent: always shown

 private:
  agent::Output& output_;
  std::string node_name_;
  bool quiet_;
  std::optional<agent::Output::Sink> json_;
};

// "view installed: world of 4 from version 12, generation 3: node b joined"
std::string words_of(const Event& event);

}  // namespace muster::launcher
