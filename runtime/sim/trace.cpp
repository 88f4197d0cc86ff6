#include "runtime/sim/trace.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <optional>
#include <unordered_map>

#include "runtime/base/random.h"

namespace muster::sim {
namespace {

constexpr size_t kShownMax = 40;  // bytes of a line that an error repeats

// What stands in a file goes to a terminal: only what cannot command it.
std::string shown(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes.substr(0, kShownMax)) {
    const auto code = static_cast<unsigned char>(byte);
    if (code >= 0x20 && code < 0x7f) {
      text += byte;
      continue;
    }
    char hex[8];
    std::snprintf(hex, sizeof hex, "\\x%02x", code);
    text += hex;
  }
  return "'" + text + (bytes.size() > kShownMax ? "…'" : "'");
}

bool is_printable(std::string_view name) {
  return std::ranges::all_of(name, [](char byte) { return byte > 0x20 && byte < 0x7f; });
}

struct Line {
  int64_t time_ms = 0;
  bool add = true;
  std::string_view node;
};

// Nothing: `line` is filled.
std::optional<std::string> read_line(std::string_view text, Line& line) {
  const size_t first = text.find(',');
  const size_t second = first == text.npos ? text.npos : text.find(',', first + 1);
  if (second == text.npos || second + 1 == text.size()) return shown(text) + " has not three fields";
  const std::string_view time = text.substr(0, first);
  const auto [stop, error] = std::from_chars(time.data(), time.data() + time.size(), line.time_ms);
  if (error == std::errc::result_out_of_range) return shown(time) + " is beyond all times";
  if (error != std::errc() || stop != time.data() + time.size())
    return shown(time) + " is no time in whole milliseconds";
  if (line.time_ms < 0) return "the time " + shown(time) + " is negative";
  if (static_cast<double>(line.time_ms) > kTraceEndMax * 1000)
    return shown(time) + " ms are more than 100 years; times are milliseconds from the trace's beginning";
  const std::string_view what = text.substr(first + 1, second - first - 1);
  if (what != "add" && what != "remove") return shown(what) + " is neither add nor remove";
  line.add = what == "add";
  line.node = text.substr(second + 1);
  if (!is_printable(line.node))
    return "the node's name " + shown(line.node) + " has other bytes than printable ASCII without blanks";
  return std::nullopt;
}

class Reader {
 public:
  // Nothing: the event is in the trace.
  std::optional<std::string> add(const Line& line) {
    const auto [id, is_new] = ids_.emplace(std::string(line.node), static_cast<uint32_t>(trace.nodes.size()));
    const uint32_t node = id->second;
    if (is_new) {
      if (trace.nodes.size() == kTraceNodesMax) return "more than a million nodes";
      trace.nodes.emplace_back(line.node);
      present_.push_back(false);
    }
    const double at = static_cast<double>(line.time_ms) / 1000;
    if (at < trace.end) return "the time goes back; sort the lines by time";
    if (present_[node] && line.add) return shown(line.node) + " is added, and is there already";
    if (!present_[node] && !line.add)
      return shown(line.node) + " is removed, and is not there" + (is_new ? ": it was never added" : "");
    if (static_cast<double>(trace.events.size()) >= kTraceEventsMax)
      return "more than three million events; take a shorter part of the trace";
    present_[node] = line.add;
    trace.end = at;
    trace.events.push_back({at, line.add, node});
    return std::nullopt;
  }

  Trace trace;

 private:
  std::unordered_map<std::string, uint32_t> ids_;
  std::vector<bool> present_;
};

}  // namespace

Result<Trace> parse_trace(std::string_view text, const std::string& name) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // as spreadsheets write it
  Reader reader;
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view row = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!row.empty() && row.back() == '\r') row.remove_suffix(1);
    if (row.empty()) continue;
    Line line;
    std::optional<std::string> problem = read_line(row, line);
    if (!problem) problem = reader.add(line);
    if (problem)
      return Error{ErrorCode::kMisuse, name + ", line " + std::to_string(number) + ": " + *problem +
                                           "; a line is time_ms,add|remove,node"};
  }
  if (reader.trace.events.empty())
    return Error{ErrorCode::kMisuse, name + " holds no event; a line is time_ms,add|remove,node"};
  return std::move(reader.trace);
}

Result<Trace> random_trace(const RandomTrace& options) {
  const auto misuse = [](const std::string& what) { return Error{ErrorCode::kMisuse, what}; };
  if (options.nodes < 1 || options.nodes > kTraceNodesMax) return misuse("1 to 1000000 nodes can be drawn");
  if (!(options.mtbf_s > 0) || !(options.repair_s > 0))
    return misuse("the times between failures and of repair must be above 0");
  if (!(options.end_s > 0) || !(options.end_s <= kTraceEndMax))
    return misuse("the time that is drawn must be above 0 and at most 100 years");
  if (!(2 * options.nodes * (1 + options.end_s / (options.mtbf_s + options.repair_s)) < kTraceEventsMax))
    return misuse("more than three million events would be drawn; take a shorter time, or rarer failures");
  SeededRandom random(options.seed);
  const auto exponential = [&](double mean) {
    const double uniform = (static_cast<double>(random.next() >> 11) + 0.5) * 0x1p-53;
    return -mean * std::log(uniform);
  };
  Trace trace;
  trace.end = options.end_s;
  for (uint32_t node = 0; node < options.nodes; ++node) {
    trace.nodes.push_back("node" + std::to_string(node + 1));
    double at = 0;
    for (bool add = true; at < options.end_s; add = !add) {
      trace.events.push_back({at, add, node});
      at += exponential(add ? options.mtbf_s : options.repair_s);
    }
  }
  std::ranges::stable_sort(trace.events, {}, &TraceEvent::at);
  return trace;
}

void end_at(Trace& trace, double end_s) {
  const auto beyond = std::ranges::upper_bound(trace.events, end_s, {}, &TraceEvent::at);
  trace.events.erase(beyond, trace.events.end());
  trace.end = end_s;
}

uint32_t most_present(const Trace& trace) {
  uint32_t present = 0;
  uint32_t most = 0;
  for (const TraceEvent& event : trace.events) most = std::max(most, event.add ? ++present : --present);
  return most;
}

}  // namespace muster::sim
