#include "checkpoint/identity.h"

#include <algorithm>
#include <cstdio>

namespace muster::checkpoint {

bool is_prefix(std::span<const LineageEntry> shorter, std::span<const LineageEntry> longer) {
  return shorter.size() <= longer.size() && std::equal(shorter.begin(), shorter.end(), longer.begin());
}

bool is_on_branch(uint64_t version, std::span<const LineageEntry> lineage,
                  std::span<const LineageEntry> branch) {
  if (!is_prefix(lineage, branch)) return false;
  const auto later = branch.subspan(lineage.size());
  return std::none_of(later.begin(), later.end(),
                      [version](const LineageEntry& entry) { return entry.base < version; });
}

std::string to_string(const VersionId& id) {
  return "version " + std::to_string(id.version) + " (save " + hex64(id.nonce) + ")";
}

std::string hex64(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace muster::checkpoint
