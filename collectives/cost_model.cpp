#include "collectives/cost_model.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <sstream>
#include <string_view>

namespace muster {
namespace {

constexpr size_t kLookedAtMost = 8;

// What a rank sends over a class in a round, or receives.
struct Traffic {
  double messages = 0;
  double bytes = 0;

  void add(uint64_t size) {
    messages += static_cast<double>(std::max<uint64_t>(1, (size + kPayloadBytes - 1) / kPayloadBytes));
    bytes += static_cast<double>(size);
  }
};

// What takes cores: with as much in both directions, as it was measured, that much.
double mean(double sent, double received) { return (sent + received) / 2; }

// What a rank's round takes of each resource.
struct RoundLoad {
  double latency_s = 0;
  double cores_s = 0;  // messages, and bytes that the node's cores copy
  double link_s = 0;   // bytes between nodes
  double fold_s = 0;

  double moving_s(double unhidden) const {
    return std::max(cores_s, link_s) + unhidden * std::min(cores_s, link_s);
  }
};

// Of a node's ranks that are looked at, in a round. Both directions of a link work at once.
struct LinkBytes {
  double sent = 0;
  double received = 0;
};

// Of one node: what its ranks that are looked at do, round after round.
struct NodeLoads {
  std::vector<std::vector<RoundLoad>> rounds;  // of each rank that has it
  std::vector<LinkBytes> between;
  std::vector<double> cores;  // of each rank, over all rounds
};

class Costing {
 public:
  Costing(const CostNumbers& numbers, std::span<const uint64_t> nodes, size_t element)
      : numbers_(numbers), nodes_(nodes), element_(element) {}

  void add(int rank, const Schedule& schedule, NodeLoads& node) const {
    const size_t rounds = std::max(node.rounds.size(), schedule.rounds.size());
    node.rounds.resize(rounds);
    node.between.resize(rounds);
    double cores = 0;
    for (size_t round = 0; round < schedule.rounds.size(); ++round) {
      const RoundLoad load = load_of(rank, schedule.rounds[round], node.between[round]);
      node.rounds[round].push_back(load);
      cores += load.cores_s + load.fold_s;
    }
    node.cores.push_back(cores);
  }

 private:
  // `between` gets what goes over the link, which is the node's: link_s is left to the caller.
  RoundLoad load_of(int rank, const Round& round, LinkBytes& between) const {
    Traffic sent[2], received[2];
    for (const Transfer& transfer : round.sends) sent[is_far(rank, transfer.peer)].add(bytes(transfer));
    for (const Transfer& transfer : round.receives)
      received[is_far(rank, transfer.peer)].add(bytes(transfer));
    const double near = mean(sent[0].messages, received[0].messages);
    const double far = mean(sent[1].messages, received[1].messages);
    RoundLoad load;
    if (near > 0) load.latency_s = numbers_.on_node.latency_s;
    if (far > 0) load.latency_s = std::max(load.latency_s, numbers_.between.latency_s);
    load.cores_s = near * numbers_.on_node.message_s + far * numbers_.between.message_s +
                   mean(sent[0].bytes, received[0].bytes) * numbers_.on_node.byte_s;
    between.sent += sent[1].bytes;
    between.received += received[1].bytes;
    for (const Fold& fold : round.folds) {
      for (const Region& source : fold.sources)
        load.fold_s += static_cast<double>(source.count * element_) * numbers_.fold_byte_s;
    }
    return load;
  }

  bool is_far(int rank, int peer) const {
    return nodes_[static_cast<size_t>(rank)] != nodes_[static_cast<size_t>(peer)];
  }
  uint64_t bytes(const Transfer& transfer) const { return transfer.region.count * element_; }

  const CostNumbers& numbers_;
  const std::span<const uint64_t> nodes_;
  const size_t element_;
};

// `longest`, of each round on any node, grows by what this node takes. What its busiest resource takes.
double settle(const CostNumbers& numbers, NodeLoads& node, std::vector<double>& longest) {
  longest.resize(std::max(longest.size(), node.rounds.size()));
  double link = 0;
  for (size_t round = 0; round < node.rounds.size(); ++round) {
    // byte_s is a rank's while its mates send as much: with the mean of all, the node's link takes as long.
    const double link_bytes = std::max(node.between[round].sent, node.between[round].received);
    const double link_s = link_bytes / static_cast<double>(node.cores.size()) * numbers.between.byte_s;
    for (RoundLoad& load : node.rounds[round]) {
      load.link_s = link_s;
      longest[round] =
          std::max(longest[round], load.latency_s + load.moving_s(numbers.unhidden) + load.fold_s);
    }
    link += link_s;
  }
  return RoundLoad{0, *std::ranges::max_element(node.cores), link, 0}.moving_s(numbers.unhidden);
}

// A clock that was set, or a probe that was swapped out, must not make numbers that cannot be said.
double not_negative(double value) { return std::isfinite(value) && value > 0 ? std::min(value, 1e3) : 0; }

LinkCost cost_of_link(const RoundTimes& times) {
  if (!(times.one >= 0) || !std::isfinite(times.one)) return {};
  LinkCost link;
  link.known = true;
  const double more = kProbeMessages - 1;
  // A single message cannot cost more than its round.
  link.message_s = std::min(not_negative((times.several - times.one) / more), not_negative(times.one));
  link.latency_s = not_negative(times.one - link.message_s);
  // Two times of which most is noise may differ by nothing, and bytes that cost nothing would be sent to all:
  // a quarter of what full messages took is theirs at the least.
  const double bytes_s = std::max(times.full - times.several, times.full / 4);
  link.byte_s = not_negative(bytes_s / (kProbeMessages * static_cast<double>(kPayloadBytes)));
  return link;
}

// Six digits, with a point whatever the program's locale is.
std::string text_of(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value, std::chars_format::general, 6).ptr;
  return {text, end};
}

std::string text_of(const char* name, const LinkCost& link) {
  if (!link.known) return "";
  return std::string(name) + "=" + text_of(link.latency_s * 1e6) + "," + text_of(link.message_s * 1e6) + "," +
         text_of(link.byte_s * 1e9) + " ";
}

// Numbers with commas in between, as many as are asked for.
template <size_t Count>
bool read_numbers(std::string_view text, double most, std::array<double, Count>& numbers) {
  const char* at = text.data();
  const char* const end = at + text.size();
  for (size_t i = 0; i < Count; ++i) {
    const auto [next, error] = std::from_chars(at, end, numbers[i]);
    if (error != std::errc() || !(numbers[i] >= 0 && numbers[i] <= most)) return false;
    const bool last = i + 1 == Count;
    if (last ? next != end : next == end || *next != ',') return false;
    at = next + 1;
  }
  return true;
}

constexpr double kNumberMost = 1e12;  // beyond any link, and far from what a double cannot hold

bool read_link(std::string_view text, LinkCost& link) {
  std::array<double, 3> numbers{};
  if (!read_numbers(text, kNumberMost, numbers)) return false;
  link = {numbers[0] * 1e-6, numbers[1] * 1e-6, numbers[2] * 1e-9, true};
  return true;
}

bool read_number(std::string_view text, double most, double scale, double& number) {
  std::array<double, 1> numbers{};
  if (!read_numbers(text, most, numbers)) return false;
  number = numbers[0] * scale;
  return true;
}

}  // namespace

std::string to_text(const CostNumbers& numbers) {
  return text_of("on-node", numbers.on_node) + text_of("between", numbers.between) +
         "fold=" + text_of(numbers.fold_byte_s * 1e9) + " unhidden=" + text_of(numbers.unhidden);
}

Result<CostNumbers> parse_costs(const std::string& text) {
  CostNumbers numbers;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const size_t equals = std::min(word.find('='), word.size());
    const std::string name = word.substr(0, equals);
    const std::string value = word.substr(std::min(equals + 1, word.size()));
    const bool read = (name == "on-node" && read_link(value, numbers.on_node)) ||
                      (name == "between" && read_link(value, numbers.between)) ||
                      (name == "fold" && read_number(value, kNumberMost, 1e-9, numbers.fold_byte_s)) ||
                      (name == "unhidden" && read_number(value, 1, 1, numbers.unhidden));
    if (!read)
      return Error{ErrorCode::kMisuse,
                   "'" + word +
                       "' is no cost; give on-node=US,US,NS between=US,US,NS fold=NS unhidden=0..1 " +
                       "(latency, each message, each byte)"};
  }
  return numbers;
}

std::vector<int> ranks_looked_at(std::span<const uint64_t> nodes, int root) {
  std::vector<int> ranks{root};
  for (int rank = 0; rank < static_cast<int>(nodes.size()) && ranks.size() < kLookedAtMost; ++rank) {
    if (rank != root && nodes[static_cast<size_t>(rank)] == nodes[static_cast<size_t>(root)])
      ranks.push_back(rank);
  }
  return ranks;
}

std::vector<int> ranks_along_trees(std::span<const uint64_t> nodes, std::span<const int> order, int root) {
  const auto place = static_cast<size_t>(std::ranges::find(order, root) - order.begin());
  std::set<uint64_t> seen;  // nodes
  std::vector<int> ranks;
  const auto look_at = [&](size_t behind_root) {
    const int rank = order[(place + behind_root) % order.size()];
    if (!seen.insert(nodes[static_cast<size_t>(rank)]).second) return;
    for (const int mate : ranks_looked_at(nodes, rank)) ranks.push_back(mate);
  };
  // Trees over the others count from the rank behind the root, trees over all from the root. Down a binomial
  // tree it is longest to places of many one bits.
  look_at(0);
  for (size_t step = 1; step < order.size(); step *= 2) {
    look_at(step);
    look_at(step - 1);
    const size_t many_ones = std::bit_ceil(order.size()) - step;
    if (many_ones < order.size()) look_at(many_ones);
  }
  return ranks;
}

double ScheduleCost::total_s(uint64_t parts) const {
  const double behind = static_cast<double>(parts - 1);
  const uint64_t begun_late = (parts - 1) / kPartsAtOnce;  // times that a part waited for another's end
  const double last_few = static_cast<double>((parts - 1) % kPartsAtOnce);
  return path_s +
         std::max(behind * busiest_s, static_cast<double>(begun_late) * path_s + last_few * busiest_s);
}

ScheduleCost cost_of(const CostNumbers& numbers, std::span<const uint64_t> nodes,
                     std::span<const int> looked_at, size_t element,
                     const std::function<Schedule(int rank)>& schedule_of) {
  const Costing costing(numbers, nodes, element);
  std::map<uint64_t, NodeLoads> loads;
  ScheduleCost cost;
  for (const int rank : looked_at) {
    const Schedule schedule = schedule_of(rank);
    costing.add(rank, schedule, loads[nodes[static_cast<size_t>(rank)]]);
    cost.rounds += schedule.rounds.size();
  }
  std::vector<double> longest;
  for (auto& [name, node] : loads) cost.busiest_s = std::max(cost.busiest_s, settle(numbers, node, longest));
  cost.path_s = std::accumulate(longest.begin(), longest.end(), 0.0);
  return cost;
}

CostNumbers numbers_of(const ProbeTimes& times) {
  CostNumbers numbers;
  numbers.on_node = cost_of_link(times.on_node);
  numbers.between = cost_of_link(times.between);
  numbers.fold_byte_s = not_negative(times.fold_byte);
  const double shorter = std::min(times.on_node.full, times.between.full);
  if (numbers.on_node.known && numbers.between.known && shorter > 0) {
    const double longer = std::max(times.on_node.full, times.between.full);
    numbers.unhidden = std::clamp((times.both_full - longer) / shorter, 0.0, 1.0);
    if (!std::isfinite(numbers.unhidden)) numbers.unhidden = 1;
  }
  return parse_costs(to_text(numbers)).value();
}

}  // namespace muster
