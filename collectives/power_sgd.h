// PowerSGD in the fast mode: what a rank keeps of a list of matrices, and the all_reduce that sends thin
// factors of them. Source: Vogels, Karimireddy, Jaggi 2019, "PowerSGD: Practical Low-Rank Gradient
// Compression for Distributed Optimization"; kernels/power_sgd.h has the arithmetic.
//
// For each matrix of a rows and b columns that pays (below), r being the columns of a factor, G the gradient
// of a rank, e its residual, W the number of ranks:
//
//     M = G + e            on each rank
//     P = orthonormal columns of (1/W)·Σ M·Q            all_reduce of a·r floats, the same on all ranks
//     R = Mᵀ·P             on each rank
//     e' = M − P·Rᵀ        on each rank, while the next one is on its way
//     S = (1/W)·Σ R        all_reduce of b·r floats, the same on all ranks
//     out = P·Sᵀ           the mean; or with Σ for 1/W, the sum
//     Q' = orthonormal columns of S                     the next step's start
//
// Matrices that do not pay, 2·r·(a + b) >= a·b, vectors among them, go along with the first all_reduce in
// plain float32, without a residual. So there are two all_reduces for all matrices of a call together,
// whatever their number and shapes; the second is left out where none pays.
//
// DETERMINISTIC: bits depend on the gradients, the state, the number of ranks and their order; not on how
// ranks talk, nor on the instruction sets of their processors (the sum over ranks is along the canonical tree
// of one lane each). All ranks end with the same bits. The price: in each all_reduce a rank exchanges 2·(W −
// 1) messages with all others, where one that may differ would need some log2 W; with hundreds of ranks that
// is more latency than factors of a few kilobytes deserve.
//
// CONSERVED: what was to be applied minus what was applied is (1/W)·Σe for means, Σe for sums, but for the
// roundings of G + e, of Σ over r of P·Rᵀ and P·Sᵀ, of the mean of R and of M − P·Rᵀ, to nearest float32:
// some (r + W + 2)·2^-24 of the magnitudes in a row of P times those of R. Matrices that do not pay owe
// nothing.
//
// NOT FINITE: a NaN, an infinity or a magnitude of kMagnitudeLimit in M on any rank makes the whole of that
// matrix NaN on all ranks; its residuals and its start stay as they were. Where a residual by itself is that
// large, it remains so until a new state is made.
#pragma once

#include <span>
#include <vector>

#include "collectives/group.h"
#include "collectives/residuals.h"
#include "kernels/power_sgd.h"

namespace muster {

// A value: no operation changes it.
struct PowerSgdState {
  // What all ranks give alike.
  struct Setup {
    std::vector<power_sgd::Shape> shapes;  // of the matrices, in the order in which operations take them
    uint32_t factors = 1;                  // r: columns of each factor
    uint64_t seed = 0;                     // the first starts are random
  };
  // Without residuals, and with random starts. Errors: kMisuse: `factors` not in 1 … kRankMax, more than
  // 2^30 matrices or 2^51 elements, a rank that there is not.
  static Result<PowerSgdState> create(Setup setup, int rank, int ranks);

  // Floats of this list: what all_reduces of it send, each times 2·(W − 1)/W; residual and starts.
  struct Sizes {
    uint64_t elements = 0;  // of all matrices
    uint64_t first = 0;     // all P, and matrices that do not pay
    uint64_t second = 0;    // all S: as many as starts
    uint64_t residual = 0;  // elements of the matrices that pay
  };
  Sizes sizes() const;

  friend bool operator==(const PowerSgdState&, const PowerSgdState&) = default;

  int rank = 0;
  int ranks = 1;
  uint32_t factors = 1;
  uint64_t seed = 0;
  uint64_t steps = 0;  // that were committed
  std::vector<power_sgd::Shape> shapes;
  std::vector<float> residual;  // e of the matrices that pay, one after the other
  std::vector<float> start;     // Q of each of them; the same on all ranks
};

// The state of rank `rank` among others than before: a planned shrink, growth or exchange. Residuals are
// merged, and (1/W)·Σe or Σe conserved, as merge_contributions says; starts stay as they are, and so a rank
// that is new has them. Errors: kMisuse: as there, or states of other lists, seeds or steps.
Result<PowerSgdState> merge_power_sgd(std::span<const PowerSgdState* const> all, std::span<const int> origins,
                                      int rank, bool average);

// As bytes, to be kept in a checkpoint: docs/formats/codec.md.
size_t power_sgd_bytes(const PowerSgdState& state);
void write_power_sgd(const PowerSgdState& state, MutableByteSpan bytes);
// Everything is verified before it is believed, sizes before memory is asked for. Errors: kDropCheckpoint:
// other bytes than were written, or of another version.
Result<PowerSgdState> read_power_sgd(ByteSpan bytes);

// A state and, beside it, what it becomes by an operation under way: that counts only once it is committed.
// So an operation that failed, or is repeated, has changed nothing.
// Memory: residuals and starts twice, the first all_reduce's floats once and the second's twice.
class PowerSgdFeedback {
 public:
  explicit PowerSgdFeedback(PowerSgdState state) : current_(std::move(state)) {}

  const PowerSgdState& state() const { return current_; }

  // What the operation since the last commit() has left takes the place of the state.
  // Errors: kMisuse where none has ended well since then, or one is under way.
  Status commit();

 private:
  friend class PowerSgdOperation;
  PowerSgdState current_;
  CommitTurns turns_;
  // Of operations; empty before the first one.
  std::vector<float> next_residual_, next_start_;
  std::vector<float> first_, second_, summed_;
};

// One operation, from its begin to its end; blocking. `in` and `out`: a pointer for each of the state's
// matrices, which lie row by row; null where the matrix is empty; out[i] may be in[i], other overlap is not
// allowed. All ranks call it at the same place in the order of the group's operations, with states of the
// same list, seed, steps and starts; what differs ends it on all of them with kMisuse.
//
// When it is ok, feedback.commit() makes the new state count. Else the state is as before, and nothing was
// written to `out`. Errors: kMisuse at once, and nothing is sent: a null pointer, too few or too many, a
// state of another rank or number of ranks, or in use. Else as Work::wait; `suspects`: the ranks to blame.
// What is thrown for want of memory revokes the group: the others would wait for this rank.
Status power_sgd_all_reduce(Group& group, std::span<const float* const> in, std::span<float* const> out,
                            bool average, PowerSgdFeedback& feedback, Instant deadline,
                            std::vector<int>& suspects);

}  // namespace muster
