#include "runtime/comparison.h"

#include <algorithm>
#include <cstring>

#include "runtime/agent/settings.h"
#include "runtime/base/digest.h"

namespace muster {
namespace {

// As it travels.
struct Row {
  probe::HostProbe host;
  uint64_t program;
  char name[64];  // ends with 0
};
static_assert(sizeof(Row) == (probe::kParts + 1) * sizeof(uint64_t) + 64);

uint64_t digest_of_host(const probe::HostProbe& host) {
  return digest_of(std::as_bytes(std::span(host))).low;
}

}  // namespace

Status Comparison::tell(ByteSpan results) {
  if (host_) {
    return Error{ErrorCode::kMisuse,
                 "muster_run_probe was called after muster_run_next; tell the results before the first step"};
  }
  const Digest parts[] = {{program_, 1}, digest_of(results)};
  program_ = digest_of(as_bytes(std::span<const Digest>(parts))).low;
  return ok();
}

void Comparison::begin() {
  if (!host_) host_ = probe::probe_host();
}

// Of a number and its complement the maxima are complements of each other where all have the same.
Comparison::Elements Comparison::elements() const {
  const auto host = static_cast<int64_t>(host_ ? digest_of_host(*host_) : 0);
  const auto program = static_cast<int64_t>(program_);
  return {host, ~host, program, ~program};
}

bool Comparison::differ(std::span<const int64_t, kCount> combined) {
  return combined[0] != ~combined[1] || combined[2] != ~combined[3];
}

Result<std::optional<probe::Difference>> Comparison::find(Group& group, Instant deadline,
                                                          std::vector<int>& suspects) {
  Row mine{host_.value_or(probe::HostProbe{}), program_, {}};
  const std::string name = agent::host_name();
  name.copy(mine.name, sizeof mine.name - 1);
  std::vector<Row> rows(static_cast<size_t>(group.size()));
  const Work gathered = group.all_gather(&mine, rows.data(), sizeof mine, DType::kUInt8, deadline);
  if (const Status status = gathered.wait(); !status.ok()) {
    suspects = gathered.suspects();
    return status.error();
  }
  answers_.clear();
  for (const Row& row : rows)
    answers_.push_back({row.host, row.program, std::string(row.name, strnlen(row.name, sizeof row.name))});
  return probe::find_difference(answers_);
}

std::string Comparison::describe(const probe::Difference& difference, size_t rank) const {
  const auto named = [&](size_t which) {
    return "rank " + std::to_string(which) + " on host " + answers_[which].name;
  };
  return named(rank) + " computes otherwise than " + named(difference.reference) +
         " and most: " + difference.how[rank] + "; see: muster probe";
}

}  // namespace muster
