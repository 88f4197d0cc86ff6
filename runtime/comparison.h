// Whether all ranks of a view compute alike (rule 23 of the protocol): each rank's probe of its host and a
// digest of what its program told of itself, compared beside every step, and in full where they are not all
// the same.
//
// The program's thread alone.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "collectives/group.h"
#include "runtime/base/bytes.h"
#include "runtime/probe/verdict.h"

namespace muster {

// What to do where a rank computes otherwise than most.
enum class OnDifference : uint8_t { kNothing, kTell, kRefuse };

class Comparison {
 public:
  // What the program computes otherwise where it would compute gradients otherwise. Digests add up, in order.
  // Errors: kMisuse: the first step was begun.
  Status tell(ByteSpan results);
  // Probes this host, once. Takes some milliseconds.
  void begin();

  // Elements of a reduction by maximum that tells all ranks whether all have the same.
  static constexpr size_t kCount = 4;
  using Elements = std::array<int64_t, kCount>;
  Elements elements() const;
  static bool differ(std::span<const int64_t, kCount> combined);

  // Who differs, by rank; all ranks call it, and find the same. Empty: nobody any more. Errors: as
  // Work::wait, with `suspects`.
  Result<std::optional<probe::Difference>> find(Group& group, Instant deadline, std::vector<int>& suspects);
  // "rank 3 on host c computes otherwise than rank 0 on host a and most: denormals". After find().
  std::string describe(const probe::Difference& difference, size_t rank) const;

 private:
  std::optional<probe::HostProbe> host_;
  uint64_t program_ = 0;
  std::vector<probe::Answer> answers_;  // of the last find()
};

}  // namespace muster
