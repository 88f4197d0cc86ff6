#include "launcher/cpu_quota.h"

#include <algorithm>
#include <fstream>

namespace muster::launcher {
namespace {

// Version 2: "QUOTA PERIOD", or "max PERIOD".
std::optional<double> limit_of_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  double quota = 0, period = 0;
  if (!(file >> quota >> period) || quota <= 0 || period <= 0) return std::nullopt;
  return quota / period;
}

// Version 1: a file each; a quota of -1 is none.
std::optional<double> limit_of_v1(const std::string& folder) {
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us"), period_file(folder + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  if (!(quota_file >> quota) || !(period_file >> period) || quota <= 0 || period <= 0) return std::nullopt;
  return quota / period;
}

using LimitOf = std::optional<double> (*)(const std::string& folder);

// Of a group and all around it. In a container the path may be the host's, which does not exist there; its
// root does.
std::optional<double> least_limit(const std::string& root, std::string path, LimitOf limit_of) {
  std::optional<double> least;
  for (;;) {
    if (const auto limit = limit_of(root + path)) least = std::min(*limit, least.value_or(*limit));
    if (path.empty()) return least;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

bool has_word(const std::string& list, const std::string& word) {
  return ("," + list + ",").find("," + word + ",") != std::string::npos;
}

}  // namespace

std::optional<double> cpu_quota(const std::string& groups, const std::string& mount) {
  std::optional<double> least;
  std::ifstream file(groups);
  for (std::string line; std::getline(file, line);) {  // "HIERARCHY:CONTROLLERS:PATH"
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    std::optional<double> limit;
    if (controllers.empty()) limit = least_limit(mount, path, limit_of_v2);
    if (has_word(controllers, "cpu")) limit = least_limit(mount + "/cpu", path, limit_of_v1);
    if (limit) least = std::min(*limit, least.value_or(*limit));
  }
  return least;
}

}  // namespace muster::launcher
