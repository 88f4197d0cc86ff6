// What error feedback keeps of a vector in the fast mode: what roundings have left out, to be added to what
// is encoded next.
//
// The vector is cut in one slice for each rank, at multiples of kGrainMax elements, a whole number of blocks
// of every codec: so the residuals outlive a change of codec. A rank has the residual of its own
// contribution, of the whole vector, and that of the mean (or sum) of its slice, which it encodes for all.
//
// CONSERVED: after any number of operations, what was to be applied minus what was applied is the debt,
// (1/W)·Σe + E for means and Σe + E for sums, e being the contributions' residuals and E the mean's, but for
// the rounding of each g + e, mean + E and of the differences that become residuals, to nearest float32. An
// element that was not finite leaves its residual as it was. So where a residual by itself makes g + e too
// large for the codec (another codec, or 1-bit and topk with huge values), the block stays infinite or NaN
// until new residuals are made.
#pragma once

#include <span>
#include <vector>

#include "collectives/bucket_reduction.h"
#include "runtime/base/bytes.h"

namespace muster {

// What `rank` owns of a vector of `count` elements.
ElementRange owned_slice(size_t count, int rank, int ranks);

// A value: no operation changes it. Zeros to begin with.
struct Residuals {
  Residuals() = default;
  Residuals(size_t elements, int my_rank, int world)
      : rank(my_rank),
        ranks(world),
        contribution(elements),
        mean(owned_slice(elements, my_rank, world).size()) {}

  size_t count() const { return contribution.size(); }
  ElementRange owned() const { return owned_slice(count(), rank, ranks); }
  friend bool operator==(const Residuals&, const Residuals&) = default;

  int rank = 0;
  int ranks = 1;
  std::vector<float> contribution;
  std::vector<float> mean;  // of owned()
};

// What a rank has not yet contributed, whatever the operation that left it out.
struct Contribution {
  int rank = 0;
  int ranks = 1;
  std::span<const float> residual;
};

// The residual of rank `rank` among others than before: a planned shrink, growth or exchange.
//
// `all`: of the ranks so far, in their order. `origins`: of each new rank, the rank that it has been, each at
// most once, or −1 for one that is new. A rank that stays keeps its own; what those that leave have goes to
// those that stay, in turn (to all in turn where none stays); one that is new has zeros, else. For means they
// are then scaled by W'/W, so that (1/W)·Σe is conserved; for sums Σe is. Each new residual is computed in
// float64 and rounded once, to the nearest float32 that is finite: unless it is beyond the largest, (1/W)·Σe
// changes by 2^-24·(1/W')·Σ|e'| + 2^-52·Σ|e| + 2^-149 at most.
// Errors: kMisuse: not all ranks of one set, of one size; a bad origin or rank.
Result<std::vector<float>> merge_contributions(std::span<const Contribution> all,
                                               std::span<const int> origins, int rank, bool average);

// Likewise; E is cut anew, its bits are the same.
Result<Residuals> merge_residuals(std::span<const Residuals* const> all, std::span<const int> origins,
                                  int rank, bool average);

// As bytes, to be kept in a checkpoint: docs/formats/codec.md.
size_t residual_bytes(const Residuals& residuals);
void write_residuals(const Residuals& residuals, MutableByteSpan bytes);
// Everything is verified. Errors: kDropCheckpoint: other bytes than were written, or of another version.
Result<Residuals> read_residuals(ByteSpan bytes);

// When what operations leave counts: once it is committed, and only that of operations which ended well.
// A state has parts, each a bit, of which an operation changes some. The error feedback of all kinds goes
// by it; the parts themselves, and their shadows, are their owners'.
class CommitTurns {
 public:
  // Errors: kMisuse where another operation is under way.
  Status check_begin() const;
  // REQUIRES: check_begin(). Forgets what was ready of these parts.
  void begin(unsigned parts);
  void end(bool well);
  // The parts that count from now on. Errors: kMisuse where no operation has ended well since the last time,
  // or one is under way.
  Result<unsigned> commit();

 private:
  unsigned under_way_ = 0;
  unsigned ready_ = 0;  // in the shadow, to be committed
};

// Residuals and, beside them, what they become by an operation under way: that counts only once it is
// committed. So an operation that failed, or is repeated, has changed nothing.
class Feedback {
 public:
  explicit Feedback(Residuals residuals) : current_(std::move(residuals)) {}

  const Residuals& residuals() const { return current_; }

  // What the operations since the last commit() have left takes the place of the residuals.
  // Errors: kMisuse where none has ended well since then, or one is under way.
  Status commit();

  // ---- for operations

  // Which residuals an operation changes.
  struct Parts {
    bool contribution = false;
    bool mean = false;
  };
  // Errors: kMisuse where another one is under way.
  Status begin(Parts parts);
  void end(bool well);
  // Where the operation changes the elements of `range`, which are as they were. contribution() points to
  // element 0 of the vector, mean() to range.begin. REQUIRES: begin(); for the mean, a range in owned().
  float* contribution(ElementRange range);
  float* mean(ElementRange range);

 private:
  Residuals current_;
  Residuals next_;  // empty before the first operation
  CommitTurns turns_;
};

}  // namespace muster
