// What names a version: its number, its lineage, its nonce. Pure values, no input or output.
#pragma once

#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace muster::checkpoint {

// One entry for each installed view and each resume: which generation went on from which version.
struct LineageEntry {
  uint64_t store_nonce = 0;  // the incarnation of the store that issued the generation
  uint64_t generation = 0;
  uint64_t base = 0;
  friend auto operator<=>(const LineageEntry&, const LineageEntry&) = default;
};
using Lineage = std::vector<LineageEntry>;

bool is_prefix(std::span<const LineageEntry> shorter, std::span<const LineageEntry> longer);

// Version `version` of `lineage` is part of the history of `branch`: a prefix of it, with no later entry of
// the branch that went on from below.
bool is_on_branch(uint64_t version, std::span<const LineageEntry> lineage,
                  std::span<const LineageEntry> branch);

// Versions are counted by signed numbers elsewhere: what is beyond is no version, in files and on command
// lines.
constexpr uint64_t kVersionMax = (uint64_t{1} << 63) - 1;

// One save. Two saves of the same version differ in their nonce.
struct VersionId {
  uint64_t version = 0;
  uint64_t nonce = 0;
  friend auto operator<=>(const VersionId&, const VersionId&) = default;
};
std::string to_string(const VersionId& id);  // "version 200 (save 0123456789abcdef)"

std::string hex64(uint64_t value);  // 16 digits, most significant first

}  // namespace muster::checkpoint
