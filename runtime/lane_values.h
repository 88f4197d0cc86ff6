// Values that the forward pass changes, a row for each lane (PROTOCOL 7): what a random generator that does
// not count, or a state carried from batch to batch, has become.
//
// The program computes with its own memory. What counts is a copy that the library keeps, which is state like
// any other: a replicated tensor. A step begins with that copy, whoever began it before; its reduction brings
// each row from who computes the lane to all ranks; an update makes them count.
//
// INVARIANTS
//  - The copy that counts changes only in commit(), and by an installation of state.
//  - Rows travel beside the gradient of their step, so that whoever applies it later, a learner or a member
//  that missed the update, has them too.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "collectives/group.h"
#include "collectives/lane_tree.h"

namespace muster {

// One thread at a time, but for words().
class LaneValues {
 public:
  // Of `bytes` bytes in `lanes` rows at `data`, which outlives the last call. The copy that counts, aligned
  // for all types, which lives as long as this.
  std::byte* add(std::byte* data, uint64_t bytes, int64_t lanes);
  bool empty() const { return values_.empty(); }
  int64_t lanes() const { return lanes_; }
  // Whether memory of the program's overlaps with a value's.
  bool overlaps(const std::byte* data, uint64_t bytes) const;
  // Errors: kMisuse where a value has not `lanes` rows.
  Status check(int32_t lanes) const;

  void reset();   // the program's copy becomes the one that counts
  void commit();  // the reverse

  // On their way rows stand lane after lane, of each lane all values'; beside a gradient they take words() of
  // its elements.
  size_t lane_bytes() const;
  size_t words() const;
  void take(int lane, std::byte* row) const;  // from the program's copy
  void put(std::span<const float> rows);      // of all lanes, into it

 private:
  struct Value {
    std::byte* data = nullptr;
    std::unique_ptr<std::byte[]> committed;
    size_t row_bytes = 0;
  };

  std::vector<Value> values_;
  int64_t lanes_ = 0;
};

// Brings the rows of all lanes to all ranks of a view. Its end comes after the group's, which may still
// write.
class LaneExchange {
 public:
  LaneExchange(const LaneValues& values, LaneLists lanes_by_rank, int rank);

  // This rank's rows, as they are now. Collective; all ranks call it at the same place in the order of their
  // operations. One at a time.
  Work begin(Group& group, Instant deadline);
  // Once that was ok.
  std::span<const float> rows();

 private:
  const LaneValues& values_;
  const LaneLists lanes_by_rank_;
  const size_t rank_;
  std::vector<size_t> counts_;  // bytes of each rank
  std::vector<std::byte> sent_;
  std::vector<std::byte> arrived_;  // in the order of ranks
  std::vector<float> rows_;         // in that of lanes
};

}  // namespace muster
