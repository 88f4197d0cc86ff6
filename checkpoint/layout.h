// Who saves which bytes, and who needs which. PURE: values in, a plan out; the same on every rank, so plans
// are never sent, and a manifest need not hold them.
//
// A participant is one of the processes that take part in a save, numbered from 0. A tensor is either
// replicated (each participant holds all of it) or split along one dimension (participant p holds the p-th of
// nearly equal runs of indices) or sharded: cut along its first dimension into as many nearly equal runs as
// the state has shards, of which participants hold any. "Local memory" is what a participant holds of a
// tensor: dense, row-major, its shards in ascending order.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/bytes.h"
#include "runtime/base/dtype.h"
#include "runtime/base/result.h"

namespace muster::checkpoint {

constexpr uint64_t kSlabBytes =
    256 * 1024;                         // the unit of digests, counted from the beginning of a shard file
constexpr uint64_t kBlockBytes = 4096;  // what direct I/O aligns to
constexpr int kReplicated = -1;
constexpr int kSharded = -2;
constexpr size_t kTensorNameBytesMax = 255;
constexpr size_t kRankMax = 16;
constexpr uint64_t kTensorsMax = 1'000'000;
constexpr uint32_t kParticipantsMax = 1'000'000;
constexpr uint32_t kShardsMax = 1 << 16;
constexpr uint64_t kShardPartsMax = 100'000'000;  // sharded tensors times shards
constexpr uint64_t kStateBytesMax = uint64_t{1} << 60;

struct TensorSpec {
  std::string name;  // UTF-8 without control characters
  DType dtype = DType::kFloat32;
  std::vector<uint64_t> shape;  // of the whole tensor; empty: a scalar
  int split = kReplicated;      // or kSharded, or the dimension that is split over the participants
  friend bool operator==(const TensorSpec&, const TensorSpec&) = default;
};

std::string to_string(const TensorSpec& spec);  // "wte float32 [50257, 768]"

// Errors: kMisuse; the sentence names the tensor.
Status check_specs(std::span<const TensorSpec> specs);

// The rest of this header REQUIRES specs that passed check_specs.
uint64_t total_bytes(const TensorSpec& spec);

struct Range {
  uint64_t begin = 0;
  uint64_t end = 0;
  uint64_t size() const { return end - begin; }
  friend bool operator==(const Range&, const Range&) = default;
};

// Part `part` of `parts` of [0, count): sizes differ by at most one, larger ones first.
Range part_of(uint64_t count, uint32_t part, uint32_t parts);
// Of a tensor that is not sharded.
std::vector<uint64_t> local_shape(const TensorSpec& spec, uint32_t part, uint32_t parts);
uint64_t local_bytes(const TensorSpec& spec, uint32_t part, uint32_t parts);

// Which shards of `count` a rank holds, ascending.
struct HeldShards {
  uint32_t count = 0;
  std::vector<uint32_t> mine;
};
// The bytes of a sharded tensor that are shard `shard` of `shards`. None where it has fewer rows.
Range shard_bytes(const TensorSpec& spec, uint32_t shard, uint32_t shards);
uint64_t local_bytes(const TensorSpec& spec, const HeldShards& held);

// A run of bytes of one participant's local memory of one tensor: what becomes one dataset of its shard.
struct Piece {
  uint32_t tensor = 0;  // index into the specs
  Range bytes;          // of the local memory
  friend bool operator==(const Piece&, const Piece&) = default;
};

// A run of a tensor's bytes that lies in one participant's piece of it.
struct WholeRun {
  uint32_t participant = 0;
  Range bytes;          // of the whole tensor
  uint64_t offset = 0;  // of the first of them, in the piece
};

// Each byte of the state belongs to exactly one piece. Split tensors are saved by those who hold them, and of
// a sharded one each shard by one of those who do, its owner.
// Replicated tensors lie end to end on a line in the order of the specs, and each participant takes one
// stretch of it, so long that all participants save about the same number of bytes. Stretches end between
// tensors or at multiples of kSlabBytes within one, so a small tensor is never cut.
class SavePlan {
 public:
  uint32_t participants() const { return participants_; }
  const std::vector<TensorSpec>& specs() const { return specs_; }
  const std::vector<uint32_t>& owners() const { return owners_; }  // by shard: a participant

  // In the order of the specs, each tensor at most once, no empty piece.
  std::vector<Piece> pieces(uint32_t participant) const;
  uint64_t piece_bytes(uint32_t tensor, uint32_t participant) const;  // 0: it has none of the tensor
  uint64_t bytes(uint32_t participant) const;                         // the sum over its pieces
  const HeldShards& owned_by(uint32_t participant) const { return owned_[participant]; }

  // The piece of a replicated tensor that a participant has, empty where it has none.
  Range replicated_piece(uint32_t tensor, uint32_t participant) const;
  // The participants [begin, end) among whom are all that have bytes of this range of a replicated tensor.
  Range holders(uint32_t tensor, Range bytes) const;
  // Where these bytes of a replicated or sharded tensor are, in ascending order; runs that reach beyond the
  // range are not cut.
  std::vector<WholeRun> runs(uint32_t tensor, Range bytes) const;

 private:
  friend Result<SavePlan> plan_save(std::vector<TensorSpec> specs, uint32_t participants,
                                    std::vector<uint32_t> owners);
  std::vector<WholeRun> shard_runs(uint32_t tensor, Range bytes) const;
  std::vector<TensorSpec> specs_;
  std::vector<uint32_t> owners_;
  std::vector<HeldShards> owned_;  // by participant
  std::vector<uint32_t> place_;    // of each shard, among its owner's
  uint32_t participants_ = 1;
  std::vector<uint64_t> line_begin_;  // of each tensor, and the end of the last; split ones have no length
  std::vector<uint64_t> cuts_;        // participant p takes [cuts[p], cuts[p + 1]) of the line
};

// `owners`: by shard, where any tensor is sharded.
Result<SavePlan> plan_save(std::vector<TensorSpec> specs, uint32_t participants,
                           std::vector<uint32_t> owners = {});

// Where a participant's pieces lie in its shard file, counted from the end of the file's metadata. First
// comes a record that says whose shard it is; then the pieces in order, each at a multiple of kBlockBytes or,
// shorter than that, of kSmallAlignment.
constexpr uint64_t kShardIdentityBytes = 64;
constexpr uint64_t kSmallAlignment = 64;
struct ShardLayout {
  std::vector<Piece> pieces;
  std::vector<uint64_t> offsets;  // of each piece
  uint64_t bytes = 0;             // up to the end of the last piece
};
ShardLayout shard_layout(const SavePlan& plan, uint32_t participant);

// Who of `parts` ranks reads which bytes of the replicated tensors, and then gives them to the others:
// SavePlan::replicated_piece() of it.
Result<SavePlan> plan_shares(std::span<const TensorSpec> wanted, uint32_t parts);

// Bytes to be copied from one shard into one rank's local memory of one tensor: a run for each of
// counts[0] × counts[1] steps. Sources only go up from run to run.
struct Copy {
  uint32_t participant = 0;
  uint32_t tensor = 0;  // index into the wanted specs
  uint64_t source = 0;  // of the first run, from the end of the shard's metadata
  uint64_t target = 0;  // of the first run, in the local memory
  uint64_t run_bytes = 0;
  uint64_t counts[2] = {1, 1};
  uint64_t source_strides[2] = {0, 0};
  uint64_t target_strides[2] = {0, 0};
};

enum class ReadShare : uint8_t {
  kAll,   // all that this rank holds
  kPart,  // of replicated tensors only what plan_shares(wanted, parts) gives this rank; others read the rest
};

// What may differ between a checkpoint and the program that restores it; by default nothing.
struct RestoreRules {
  bool missing = false;   // a tensor that the checkpoint lacks: its memory is left as it is
  bool extra = false;     // a tensor that the program does not want: not read
  bool reshaped = false;  // as many elements in another shape, in row-major order; not into a split tensor
  bool casts = false;     // float32, float64, bfloat16 and float16 into each other
};

// For each wanted tensor the one of the checkpoint, by name.
struct TensorMatch {
  std::vector<std::optional<uint32_t>> saved;               // its index there; empty: missing
  std::vector<std::string> missing, extra, reshaped, cast;  // names, in the order of the specs
};
// Errors: kMisuse, in one sentence that names the tensor: what differs, and is not allowed to.
Result<TensorMatch> match_tensors(std::span<const TensorSpec> saved, std::span<const TensorSpec> wanted,
                                  const RestoreRules& rules);

// What rank `part` of `parts` reads, in the order of the shards and of the bytes within each. `held`: its
// shards, of as many as the program has now, where a wanted tensor is sharded.
// Targets are counted in the checkpoint's type of the tensor, which may be another than the program's.
// Errors: those of match_tensors.
Result<std::vector<Copy>> plan_restore(const SavePlan& saved, std::span<const TensorSpec> wanted,
                                       uint32_t part, uint32_t parts, ReadShare share = ReadShare::kAll,
                                       const RestoreRules& rules = {}, const HeldShards& held = {});

// What gives bytes [bytes.begin, bytes.end) of a saved tensor as a whole, in row-major order, in memory that
// begins with them. Sources are counted from the beginning of the participant's piece of the tensor.
std::vector<Copy> plan_read(const SavePlan& saved, uint32_t tensor, Range bytes);

}  // namespace muster::checkpoint
