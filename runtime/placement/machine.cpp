#include "runtime/placement/machine.h"

#include <algorithm>
#include <charconv>
#include <string_view>

namespace muster::placement {
namespace {

Numbers sorted(Numbers numbers) {
  std::sort(numbers.begin(), numbers.end());
  numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
  return numbers;
}

Numbers collect(const std::vector<Core>& cores, uint32_t Core::*member) {
  Numbers found;
  for (const Core& core : cores) found.push_back(core.*member);
  return sorted(std::move(found));
}

}  // namespace

Numbers cpus_of(const std::vector<Core>& cores) {
  Numbers found;
  for (const Core& core : cores) found.insert(found.end(), core.cpus.begin(), core.cpus.end());
  return sorted(std::move(found));
}

Numbers nodes_of(const std::vector<Core>& cores) { return collect(cores, &Core::node); }
Numbers packages_of(const std::vector<Core>& cores) { return collect(cores, &Core::package); }
Numbers kinds_of(const std::vector<Core>& cores) { return collect(cores, &Core::kind); }

std::vector<Core> allowed_cores(const Machine& machine, const Numbers& allowed) {
  std::vector<Core> kept;
  for (Core core : machine.cores) {
    std::erase_if(core.cpus,
                  [&](uint32_t cpu) { return !std::binary_search(allowed.begin(), allowed.end(), cpu); });
    if (!core.cpus.empty()) kept.push_back(std::move(core));
  }
  return kept;
}

std::vector<std::optional<uint32_t>> visible_gpus(const std::vector<Gpu>& gpus, const char* visible) {
  std::vector<std::optional<uint32_t>> seen;
  if (visible == nullptr) {
    for (uint32_t i = 0; i < gpus.size(); ++i) seen.emplace_back(i);
    return seen;
  }
  std::string_view left = visible;
  while (!left.empty()) {
    const std::string_view word = left.substr(0, left.find(','));
    left.remove_prefix(std::min(left.size(), word.size() + 1));
    int64_t number = -1;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
    const bool is_number = error == std::errc() && end == word.data() + word.size();
    const bool is_name = word.starts_with("GPU-") || word.starts_with("MIG-");
    if (is_name)
      seen.emplace_back(std::nullopt);
    else if (is_number && number >= 0 && number < static_cast<int64_t>(gpus.size()))
      seen.emplace_back(static_cast<uint32_t>(number));
    else
      break;
  }
  return seen;
}

std::vector<std::string> nearest_networks(const Machine& machine, uint32_t node) {
  std::vector<std::string> near, unplaced, all;
  for (const NetworkDevice& device : machine.networks) {
    if (device.node == node) near.push_back(device.name);
    if (!device.node) unplaced.push_back(device.name);
    all.push_back(device.name);
  }
  if (!near.empty()) return near;
  return unplaced.empty() ? all : unplaced;
}

std::string list_of(const Numbers& numbers) {
  std::string text;
  for (size_t first = 0; first < numbers.size();) {
    size_t last = first;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    if (!text.empty()) text += ',';
    text += std::to_string(numbers[first]);
    if (last > first) text += '-' + std::to_string(numbers[last]);
    first = last + 1;
  }
  return text;
}

std::string counted(size_t count, const std::string& noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

}  // namespace muster::placement
