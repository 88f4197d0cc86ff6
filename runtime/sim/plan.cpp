#include "runtime/sim/plan.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <queue>
#include <set>

#include "runtime/base/random.h"

namespace muster::sim {
namespace {

Error bad_line(const std::string& name, size_t line, const std::string& what) {
  return {ErrorCode::kMisuse,
          name + ", line " + std::to_string(line) + ": " + what + "; a line is time_ms,add|remove,node"};
}

}  // namespace

Result<Trace> parse_trace(std::string_view text, const std::string& name) {
  Trace trace;
  std::map<std::string, uint32_t, std::less<>> ids;
  std::vector<bool> present;
  size_t line_number = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++line_number;
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty()) continue;
    const size_t first = line.find(',');
    const size_t second = first == line.npos ? line.npos : line.find(',', first + 1);
    if (second == line.npos || second + 1 == line.size())
      return bad_line(name, line_number, "not three fields");
    int64_t time_ms = 0;
    const auto [stop, error] = std::from_chars(line.data(), line.data() + first, time_ms);
    if (error != std::errc() || stop != line.data() + first || time_ms < 0)
      return bad_line(name, line_number, "'" + std::string(line.substr(0, first)) + "' is no time");
    const std::string_view what = line.substr(first + 1, second - first - 1);
    if (what != "add" && what != "remove")
      return bad_line(name, line_number, "'" + std::string(what) + "' is neither add nor remove");
    TraceEvent event;
    event.at = static_cast<double>(time_ms) / 1000;
    event.add = what == "add";
    const std::string node(line.substr(second + 1));
    const auto [id, is_new] = ids.emplace(node, static_cast<uint32_t>(ids.size()));
    event.node = id->second;
    if (is_new) {
      trace.nodes.push_back(node);
      present.push_back(false);
    }
    if (event.at < trace.end) return bad_line(name, line_number, "the time goes back");
    if (present[event.node] == event.add)
      return bad_line(name, line_number, node + (event.add ? " is there already" : " is not there"));
    present[event.node] = event.add;
    trace.end = event.at;
    trace.events.push_back(event);
  }
  if (trace.events.empty()) return Error{ErrorCode::kMisuse, name + " holds no event"};
  return trace;
}

Trace random_trace(uint32_t nodes, double mtbf_s, double repair_s, double end_s, uint64_t seed) {
  SeededRandom random(seed);
  const auto exponential = [&](double mean) {
    const double uniform = (static_cast<double>(random.next() >> 11) + 0.5) * 0x1p-53;
    return -mean * std::log(uniform);
  };
  Trace trace;
  trace.end = end_s;
  for (uint32_t node = 0; node < nodes; ++node) {
    trace.nodes.push_back("node" + std::to_string(node + 1));
    double at = 0;
    for (bool add = true; at < end_s; add = !add) {
      trace.events.push_back({at, add, node});
      at += exponential(add ? mtbf_s : repair_s);
    }
  }
  std::stable_sort(trace.events.begin(), trace.events.end(),
                   [](const TraceEvent& a, const TraceEvent& b) { return a.at < b.at; });
  return trace;
}

const char* name_of(Cause cause) {
  static constexpr const char* kNames[] = {"waiting for nodes", "restart",   "rollback",
                                           "repeated step",     "detection", "view change",
                                           "join, drain",       "saves",     "stop-save"};
  return kNames[static_cast<size_t>(cause)];
}

namespace {

// One replay. The job waits for nodes, or pauses for some cause, or trains.
class Replay {
 public:
  Replay(const Trace& trace, const PlanOptions& options)
      : trace_(trace), options_(options), nodes_(trace.nodes.size()) {}

  PlanReport run() {
    size_t next = 0;
    while (true) {
      const double event_at = next < trace_.events.size() ? trace_.events[next].at : kForever;
      const double arrival_at = arrivals_.empty() ? kForever : arrivals_.top().at;
      const double at = std::min(event_at, arrival_at);
      if (at > trace_.end) break;
      advance(at);
      // All that happens at one moment makes one view.
      for (; next < trace_.events.size() && trace_.events[next].at == at; ++next) apply(trace_.events[next]);
      for (; !arrivals_.empty() && arrivals_.top().at == at; arrivals_.pop()) arrive(arrivals_.top());
      settle();
    }
    advance(trace_.end);
    return finish();
  }

 private:
  static constexpr double kForever = 1e300;
  struct Node {
    enum { kAbsent, kStarting, kReady, kInWorld } phase = kAbsent;
    uint32_t comings = 0;  // an arrival of an earlier one is void
  };
  struct Arrival {
    double at;
    uint32_t node;
    uint32_t coming;
    bool operator>(const Arrival& other) const { return at > other.at; }
  };
  struct Pause {
    Cause cause;
    double left_s;
  };
  struct Mark {  // what a save holds
    double useful_s = 0;
    double steps = 0;
  };

  double step_s() const {
    return options_.step_s * options_.nodes_max / static_cast<double>(world_.size()) + options_.reduce_s;
  }
  double save_s() const { return options_.state_bytes / options_.storage_bytes_per_s; }
  double& lost(Cause cause) { return report_.lost_s[static_cast<size_t>(cause)]; }
  void pause(Cause cause, double for_s) {
    if (for_s > 0) pauses_.push_back({cause, for_s});
  }

  // Books the time up to `at`.
  void advance(double at) {
    report_.node_hours += static_cast<double>(present_) * (at - now_) / 3600;
    while (now_ < at) {
      if (!pauses_.empty()) {
        Pause& first = pauses_.front();
        const double part = std::min(first.left_s, at - now_);
        book(first.cause, part);
        first.left_s -= part;
        if (first.left_s <= 0) pauses_.erase(pauses_.begin());
      } else if (world_.empty()) {
        book(Cause::kWaiting, at - now_);
      } else {
        train(at);
      }
    }
  }
  void book(Cause cause, double part) {
    lost(cause) += part;
    now_ += part;
    if (now_ + part == now_) now_ = std::nextafter(now_, kForever);  // a rest too small to be added
  }

  void train(double at) {
    const double part = std::min(at - now_, options_.interval_s - since_save_);
    world_seconds_ += static_cast<double>(world_.size()) * part;
    trained_s_ += part;
    report_.useful_s += part;
    report_.steps += part / step_s();
    since_save_ += part;
    const bool due = since_save_ >= options_.interval_s || now_ + part == now_;
    now_ = due && now_ + part == now_ ? std::nextafter(now_, kForever) : now_ + part;
    if (!due) return;
    // Staged now, durable when it is written: a loss before that falls back to the one before.
    look_at_save();
    pending_ = Mark{report_.useful_s, report_.steps};
    pending_at_ = now_ + options_.stall_s + save_s();
    since_save_ = 0;
    pause(Cause::kSaves, options_.stall_s);
  }
  void look_at_save() {
    if (now_ < pending_at_) return;
    durable_ = pending_;
    pending_at_ = kForever;
  }

  void apply(const TraceEvent& event) {
    Node& node = nodes_[event.node];
    if (event.add) {
      ++present_;
      node.phase = Node::kStarting;
      const double copy = world_.empty() ? 0 : options_.state_bytes / options_.network_bytes_per_s;
      arrivals_.push({event.at + options_.start_s + copy, event.node, ++node.comings});
      return;
    }
    --present_;
    ready_.erase(event.node);
    if (world_.count(event.node) > 0) going_.push_back(event.node);
    node.phase = Node::kAbsent;
  }

  void arrive(const Arrival& arrival) {
    Node& node = nodes_[arrival.node];
    if (node.phase != Node::kStarting || node.comings != arrival.coming) return;
    node.phase = Node::kReady;
    ready_.insert(arrival.node);
  }

  void settle() {
    if (!going_.empty()) lose();
    if (world_.empty()) {
      if (ready_.size() >= options_.nodes_min) begin();
    } else if (!ready_.empty() && world_.size() < options_.nodes_max && options_.elastic) {
      take_ready();
      ++report_.joins;
      pause(Cause::kJoins, options_.join_s);
    }
  }

  void take_ready() {
    while (!ready_.empty() && world_.size() < options_.nodes_max) {
      const uint32_t id = *ready_.begin();
      ready_.erase(ready_.begin());
      if (world_.empty()) store_node_ = id;
      world_.insert(id);
      nodes_[id].phase = Node::kInWorld;
    }
  }

  void begin() {
    take_ready();
    since_save_ = 0;
    if (started_) pause(Cause::kRestart, options_.restart_s + save_s());
    started_ = true;
  }

  void lose() {
    ++report_.losses;
    const bool noticed = options_.notice_s > 0;
    const bool training = pauses_.empty();
    if (!noticed && training) repeat_step();
    bool store_lost = false;
    for (uint32_t id : going_) {
      world_.erase(id);
      store_lost = store_lost || (options_.store_on_node && id == store_node_);
    }
    going_.clear();
    if (options_.elastic && world_.size() >= options_.nodes_min && !store_lost) {
      std::erase_if(pauses_, [](const Pause& one) {  // a change that was under way begins anew
        return one.cause == Cause::kDetection || one.cause == Cause::kViewChange;
      });
      if (noticed) return pause(Cause::kJoins, options_.join_s);
      pause(Cause::kDetection, options_.detect_s);
      return pause(Cause::kViewChange, options_.view_change_s);
    }
    requeue(store_lost);
  }

  // The end of this run of the job. On notice, or where survivors still reach the store, what they hold is
  // saved first.
  void requeue(bool store_lost) {
    const double stop_save_s = save_s() + options_.stall_s;
    const bool in_time = options_.notice_s > 0 && options_.notice_s >= stop_save_s;
    const bool by_survivors = options_.elastic && !world_.empty() && !store_lost;
    ++report_.requeues;
    pauses_.clear();
    if (in_time || by_survivors) {
      pause(Cause::kStopSaves, stop_save_s);
      durable_ = Mark{report_.useful_s, report_.steps};
    } else {
      look_at_save();
      roll_back();
    }
    pending_at_ = kForever;
    for (uint32_t id : world_) {
      nodes_[id].phase = Node::kReady;
      ready_.insert(id);
    }
    world_.clear();
  }

  // The step in flight was for nothing.
  void repeat_step() {
    const double fraction = report_.steps - std::floor(report_.steps);
    const double part = std::min(fraction * step_s(), report_.useful_s);
    report_.steps -= fraction;
    report_.useful_s -= part;
    lost(Cause::kRepeated) += part;
  }

  void roll_back() {
    ++report_.rollbacks;
    lost(Cause::kRollback) += std::max(0.0, report_.useful_s - durable_.useful_s);
    report_.useful_s = std::min(report_.useful_s, durable_.useful_s);
    report_.steps = std::min(report_.steps, durable_.steps);
  }

  PlanReport finish() {
    report_.total_s = trace_.end;
    const double seconds = std::max(trace_.end, 1e-9);
    report_.goodput = report_.useful_s / seconds;
    report_.full_rate = report_.steps * (options_.step_s + options_.reduce_s) / seconds;
    report_.cost = report_.node_hours * options_.price_per_node_hour;
    report_.cost_per_1000_steps = report_.steps > 0 ? 1000 * report_.cost / report_.steps : 0;
    report_.mean_world = trained_s_ > 0 ? world_seconds_ / trained_s_ : 0;
    return report_;
  }

  const Trace& trace_;
  const PlanOptions& options_;
  PlanReport report_;
  std::vector<Node> nodes_;
  std::set<uint32_t> ready_;
  std::set<uint32_t> world_;
  std::vector<uint32_t> going_;  // of the world, at this moment
  std::priority_queue<Arrival, std::vector<Arrival>, std::greater<>> arrivals_;
  std::vector<Pause> pauses_;  // in order
  uint32_t store_node_ = 0;
  size_t present_ = 0;
  bool started_ = false;
  double now_ = 0;
  double since_save_ = 0;  // seconds of training
  Mark durable_;
  Mark pending_;
  double pending_at_ = kForever;
  double world_seconds_ = 0;
  double trained_s_ = 0;
};

}  // namespace

Result<PlanReport> plan(const Trace& trace, const PlanOptions& options) {
  const auto misuse = [](const char* what) { return Error{ErrorCode::kMisuse, what}; };
  if (options.nodes_min < 1 || options.nodes_max < options.nodes_min)
    return misuse("the cluster's size must be MIN:MAX nodes with 1 <= MIN <= MAX");
  if (!(options.step_s > 0) || !(options.interval_s > 0))
    return misuse("the step's time and the interval of saves must be above 0");
  if (!(options.network_bytes_per_s > 0) || !(options.storage_bytes_per_s > 0))
    return misuse("bandwidths must be above 0");
  for (const double value :
       {options.reduce_s, options.state_bytes, options.stall_s, options.detect_s, options.view_change_s,
        options.join_s, options.start_s, options.restart_s, options.notice_s, options.price_per_node_hour}) {
    if (!(value >= 0)) return misuse("times, sizes and prices must not be negative");
  }
  return Replay(trace, options).run();
}

double best_interval(const Trace& trace, PlanOptions options) {
  const auto steps_at = [&](double log_interval) {
    options.interval_s = std::exp(log_interval);
    const auto report = plan(trace, options);
    return report.ok() ? report->steps : -1;
  };
  // The number of steps jumps with single losses, so a grid comes first.
  const double low = std::log(std::max(options.step_s, 1e-3));
  const double high = std::max(low + 1e-3, std::log(std::max(trace.end, 2 * options.step_s)));
  constexpr int kGrid = 60;
  int best = 0;
  double best_steps = -1;
  for (int i = 0; i <= kGrid; ++i) {
    const double steps = steps_at(low + (high - low) * i / kGrid);
    if (steps <= best_steps) continue;
    best_steps = steps;
    best = i;
  }
  return std::exp(low + (high - low) * best / kGrid);
}

uint32_t best_minimum(const Trace& trace, PlanOptions options) {
  uint32_t best = options.nodes_min;
  double best_value = -1;
  const uint32_t stride = std::max<uint32_t>(1, options.nodes_max / 64);
  for (uint32_t candidate = 1; candidate <= options.nodes_max; candidate += stride) {
    options.nodes_min = candidate;
    const auto report = plan(trace, options);
    if (!report.ok() || report->steps <= best_value) continue;
    best_value = report->steps;
    best = candidate;
  }
  return best;
}

}  // namespace muster::sim
