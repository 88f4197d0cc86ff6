#include "checkpoint/layout.h"

#include <algorithm>
#include <functional>
#include <unordered_map>
#include <unordered_set>

#include "checkpoint/elements.h"

namespace muster::checkpoint {
namespace {

Error misuse(std::string message) { return {ErrorCode::kMisuse, std::move(message)}; }

std::string shape_text(std::span<const uint64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

// Length of the UTF-8 sequence at `at`, or 0. Overlong forms, surrogates and values past U+10FFFF are
// refused.
size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  const unsigned first = byte(at);
  const auto follows = [&](size_t i) { return (byte(at + i) & 0xc0U) == 0x80U; };
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return follows(1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    const unsigned second = byte(at + 1);
    const bool valid = (first != 0xe0 || second >= 0xa0) && (first != 0xed || second < 0xa0);
    return valid && follows(1) && follows(2) ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    const unsigned second = byte(at + 1);
    const bool valid = (first != 0xf0 || second >= 0x90) && (first != 0xf4 || second < 0x90);
    return valid && follows(1) && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}

bool is_plain_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const auto byte = static_cast<unsigned char>(text[at]);
    const size_t length = utf8_length(text, at);
    if (length == 0 || byte < 0x20 || byte == 0x7f) return false;
    at += length;
  }
  return true;
}

Status check_name(const std::string& name) {
  if (name.empty()) return misuse("a tensor has an empty name; give each tensor a name");
  if (name.size() > kTensorNameBytesMax)
    return misuse("the tensor name '" + name.substr(0, 40) + "…' has " + std::to_string(name.size()) +
                  " bytes; use at most " + std::to_string(kTensorNameBytesMax));
  if (!is_plain_utf8(name))
    return misuse("a tensor name is not UTF-8 without control characters (in hexadecimal: " +
                  to_hex(as_bytes(name)) + "); rename that tensor");
  return ok();
}

Status check_shape(const TensorSpec& spec) {
  if (static_cast<int>(spec.dtype) >= kDTypeCount)
    return misuse("tensor '" + spec.name + "' has an unknown element type");
  if (spec.shape.size() > kRankMax)
    return misuse("tensor '" + spec.name + "' has " + std::to_string(spec.shape.size()) +
                  " dimensions; at most " + std::to_string(kRankMax) + " can be saved");
  if (spec.split == kSharded && spec.shape.empty())
    return misuse("tensor '" + spec.name + "' is a scalar, which cannot be sharded; make it replicated");
  if (spec.split < kSharded || spec.split >= static_cast<int>(spec.shape.size()))
    return misuse("tensor '" + spec.name + "' is split along dimension " + std::to_string(spec.split) +
                  " but has the shape " + shape_text(spec.shape));
  // Also with a dimension of 0, so that products of the others cannot overflow.
  uint64_t bytes = size_of(spec.dtype);
  for (uint64_t extent : spec.shape) {
    if (extent > kStateBytesMax / bytes)
      return misuse("tensor '" + spec.name + "' of shape " + shape_text(spec.shape) + " is too large");
    bytes *= std::max<uint64_t>(extent, 1);
  }
  return ok();
}

uint64_t product(std::span<const uint64_t> extents) {
  uint64_t value = 1;
  for (uint64_t extent : extents) value *= extent;
  return value;
}

// Elements before the split dimension, its own extent, and bytes of all that lies behind one index of it.
struct SplitShape {
  uint64_t outer = 1;
  uint64_t extent = 1;
  uint64_t inner_bytes = 1;
};
SplitShape around(const TensorSpec& spec, int dimension) {
  const std::span<const uint64_t> shape(spec.shape);
  const auto d = static_cast<size_t>(dimension);
  return {product(shape.first(d)), shape[d], product(shape.subspan(d + 1)) * size_of(spec.dtype)};
}

// The part that has this index; see part_of.
uint32_t part_with(uint64_t count, uint64_t index, uint32_t parts) {
  const uint64_t least = count / parts;
  const uint64_t larger = count % parts;
  if (index < larger * (least + 1)) return static_cast<uint32_t>(index / (least + 1));
  return static_cast<uint32_t>(least == 0 ? parts : larger + (index - larger * (least + 1)) / least);
}

Range intersection(Range a, Range b) {
  const uint64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

// The allowed cut of the line that is nearest to `wish`; see SavePlan.
uint64_t allowed_cut(std::span<const uint64_t> line_begin, uint64_t wish) {
  const auto after = std::upper_bound(line_begin.begin(), line_begin.end(), wish);
  if (after == line_begin.end()) return line_begin.back();
  const uint64_t begin = *(after - 1);
  const uint64_t lower = begin + (wish - begin) / kSlabBytes * kSlabBytes;
  const uint64_t upper = std::min(lower + kSlabBytes, *after);
  return wish - lower <= upper - wish ? lower : upper;
}

std::vector<uint64_t> line_of(std::span<const TensorSpec> specs) {
  std::vector<uint64_t> begin{0};
  for (const TensorSpec& spec : specs)
    begin.push_back(begin.back() + (spec.split == kReplicated ? total_bytes(spec) : 0));
  return begin;
}

std::vector<uint64_t> split_bytes_of(std::span<const TensorSpec> specs, uint32_t participants,
                                     std::span<const uint32_t> owners) {
  const auto shards = static_cast<uint32_t>(owners.size());
  std::vector<uint64_t> bytes(participants, 0);
  for (const TensorSpec& spec : specs) {
    if (spec.split == kReplicated) continue;
    if (spec.split == kSharded) {
      for (uint32_t shard = 0; shard < shards; ++shard)
        bytes[owners[shard]] += shard_bytes(spec, shard, shards).size();
      continue;
    }
    for (uint32_t p = 0; p < participants; ++p) bytes[p] += local_bytes(spec, p, participants);
  }
  return bytes;
}

Status check_owners(std::span<const TensorSpec> specs, uint32_t participants,
                    std::span<const uint32_t> owners) {
  const auto sharded = static_cast<uint64_t>(std::count_if(
      specs.begin(), specs.end(), [](const TensorSpec& spec) { return spec.split == kSharded; }));
  if (owners.size() > kShardsMax || sharded * owners.size() > kShardPartsMax)
    return misuse(std::to_string(sharded) + " sharded tensors in " + std::to_string(owners.size()) +
                  " shards are more than can be saved: at most " + std::to_string(kShardsMax) +
                  " shards, and " + std::to_string(kShardPartsMax) + " parts of tensors");
  for (size_t shard = 0; shard < owners.size(); ++shard) {
    if (owners[shard] < participants) continue;
    return misuse("shard " + std::to_string(shard) + " is saved by participant " +
                  std::to_string(owners[shard]) + " of " + std::to_string(participants));
  }
  if (!owners.empty() || sharded == 0) return ok();
  const auto first =
      std::find_if(specs.begin(), specs.end(), [](const TensorSpec& spec) { return spec.split == kSharded; });
  return misuse("tensor '" + first->name + "' is sharded, and nobody is said to save its shards");
}

Status check_held(std::span<const TensorSpec> wanted, const HeldShards& held) {
  const bool ascending = std::is_sorted(held.mine.begin(), held.mine.end(), std::less_equal<>());
  if (!ascending || (!held.mine.empty() && held.mine.back() >= held.count))
    return misuse("the shards to restore are not ascending ones of " + std::to_string(held.count));
  for (const TensorSpec& spec : wanted) {
    if (spec.split == kSharded && held.count == 0)
      return misuse("tensor '" + spec.name + "' is sharded, and the number of shards is not given");
  }
  return ok();
}

// How much of the line each participant should take so that all save about the same.
std::vector<uint64_t> shares_of(uint64_t line_bytes, std::span<const uint64_t> split_bytes) {
  std::vector<uint64_t> sorted(split_bytes.begin(), split_bytes.end());
  std::sort(sorted.begin(), sorted.end());
  // Fill up the emptiest participants to a common level, as water would.
  uint64_t below = 0;
  uint64_t level = 0;
  for (size_t n = 1; n <= sorted.size(); ++n) {
    below += sorted[n - 1];
    level = (line_bytes + below + n - 1) / n;
    if (n == sorted.size() || level <= sorted[n]) break;
  }
  std::vector<uint64_t> shares;
  for (uint64_t bytes : split_bytes) shares.push_back(level > bytes ? level - bytes : 0);
  return shares;
}

std::vector<uint64_t> cuts_of(std::span<const uint64_t> line_begin, std::span<const uint64_t> shares) {
  std::vector<uint64_t> cuts{0};
  uint64_t wish = 0;
  for (size_t p = 0; p + 1 < shares.size(); ++p) {
    wish = std::min(wish + shares[p], line_begin.back());
    cuts.push_back(std::max(cuts.back(), allowed_cut(line_begin, wish)));
  }
  cuts.push_back(line_begin.back());
  return cuts;
}

}  // namespace

std::string to_string(const TensorSpec& spec) {
  return spec.name + " " + std::string(to_string(spec.dtype)) + " " + shape_text(spec.shape);
}

Status check_specs(std::span<const TensorSpec> specs) {
  if (specs.size() > kTensorsMax) return misuse("the state has more than a million tensors");
  std::unordered_set<std::string_view> names;
  uint64_t bytes = 0;
  for (const TensorSpec& spec : specs) {
    MUSTER_TRY(check_name(spec.name));
    MUSTER_TRY(check_shape(spec));
    if (!names.insert(spec.name).second)
      return misuse("two tensors are named '" + spec.name + "'; give each its own name");
    bytes += total_bytes(spec);
    if (bytes > kStateBytesMax) return misuse("the state is larger than " + human_bytes(kStateBytesMax));
  }
  return ok();
}

uint64_t total_bytes(const TensorSpec& spec) { return product(spec.shape) * size_of(spec.dtype); }

Range part_of(uint64_t count, uint32_t part, uint32_t parts) {
  const uint64_t each = count / parts;
  const uint64_t larger = count % parts;
  const auto begin = [&](uint64_t p) { return each * p + std::min(p, larger); };
  return {begin(part), begin(uint64_t{part} + 1)};
}

std::vector<uint64_t> local_shape(const TensorSpec& spec, uint32_t part, uint32_t parts) {
  std::vector<uint64_t> shape = spec.shape;
  if (spec.split != kReplicated) {
    uint64_t& extent = shape[static_cast<size_t>(spec.split)];
    extent = part_of(extent, part, parts).size();
  }
  return shape;
}

Range shard_bytes(const TensorSpec& spec, uint32_t shard, uint32_t shards) {
  const SplitShape shape = around(spec, 0);
  const Range rows = part_of(shape.extent, shard, shards);
  return {rows.begin * shape.inner_bytes, rows.end * shape.inner_bytes};
}

uint64_t local_bytes(const TensorSpec& spec, const HeldShards& held) {
  uint64_t bytes = 0;
  for (uint32_t shard : held.mine) bytes += shard_bytes(spec, shard, held.count).size();
  return bytes;
}

uint64_t local_bytes(const TensorSpec& spec, uint32_t part, uint32_t parts) {
  if (spec.split == kReplicated) return total_bytes(spec);
  const SplitShape shape = around(spec, spec.split);
  return shape.outer * part_of(shape.extent, part, parts).size() * shape.inner_bytes;
}

Result<SavePlan> plan_save(std::vector<TensorSpec> specs, uint32_t participants,
                           std::vector<uint32_t> owners) {
  if (participants == 0 || participants > kParticipantsMax)
    return misuse("a save with " + std::to_string(participants) + " participants");
  MUSTER_TRY(check_specs(specs));
  MUSTER_TRY(check_owners(specs, participants, owners));
  SavePlan plan;
  plan.participants_ = participants;
  plan.line_begin_ = line_of(specs);
  const auto shares = shares_of(plan.line_begin_.back(), split_bytes_of(specs, participants, owners));
  plan.owned_.resize(participants, {static_cast<uint32_t>(owners.size()), {}});
  for (uint32_t shard = 0; shard < owners.size(); ++shard) {
    plan.place_.push_back(static_cast<uint32_t>(plan.owned_[owners[shard]].mine.size()));
    plan.owned_[owners[shard]].mine.push_back(shard);
  }
  plan.owners_ = std::move(owners);
  plan.cuts_ = cuts_of(plan.line_begin_, shares);
  plan.specs_ = std::move(specs);
  return plan;
}

Range SavePlan::replicated_piece(uint32_t tensor, uint32_t participant) const {
  const Range on_line = intersection({line_begin_[tensor], line_begin_[tensor + 1]},
                                     {cuts_[participant], cuts_[participant + 1]});
  if (on_line.size() == 0) return {};
  return {on_line.begin - line_begin_[tensor], on_line.end - line_begin_[tensor]};
}

Range SavePlan::holders(uint32_t tensor, Range bytes) const {
  if (bytes.size() == 0) return {};
  const uint64_t first = line_begin_[tensor] + bytes.begin;
  const uint64_t last = line_begin_[tensor] + bytes.end - 1;
  const auto participant = [&](uint64_t at) {
    return static_cast<uint64_t>(std::upper_bound(cuts_.begin(), cuts_.end(), at) - cuts_.begin()) - 1;
  };
  return {participant(first), participant(last) + 1};
}

std::vector<WholeRun> SavePlan::runs(uint32_t tensor, Range bytes) const {
  if (specs_[tensor].split == kSharded) return shard_runs(tensor, bytes);
  const Range participants = holders(tensor, bytes);
  std::vector<WholeRun> runs;
  for (auto p = static_cast<uint32_t>(participants.begin); p < participants.end; ++p)
    runs.push_back({p, replicated_piece(tensor, p), 0});
  return runs;
}

std::vector<WholeRun> SavePlan::shard_runs(uint32_t tensor, Range bytes) const {
  std::vector<WholeRun> runs;
  if (bytes.size() == 0) return runs;
  const SplitShape shape = around(specs_[tensor], 0);
  const auto shards = static_cast<uint32_t>(owners_.size());
  const uint64_t least = shape.extent / shards;                      // rows of a shard
  const auto larger = static_cast<uint32_t>(shape.extent % shards);  // so many, the first, have one more
  for (uint32_t shard = part_with(shape.extent, bytes.begin / shape.inner_bytes, shards); shard < shards;
       ++shard) {
    const Range run = shard_bytes(specs_[tensor], shard, shards);
    if (run.begin >= bytes.end) break;
    if (run.size() == 0) continue;
    // The larger ones come first among the owner's, too.
    const std::vector<uint32_t>& mine = owned_[owners_[shard]].mine;
    const auto larger_before =
        std::lower_bound(mine.begin(), mine.begin() + place_[shard], larger) - mine.begin();
    const uint64_t rows = place_[shard] * least + static_cast<uint64_t>(larger_before);
    runs.push_back({owners_[shard], run, rows * shape.inner_bytes});
  }
  return runs;
}

std::vector<Piece> SavePlan::pieces(uint32_t participant) const {
  std::vector<Piece> pieces;
  for (uint32_t t = 0; t < specs_.size(); ++t) {
    const Range bytes = specs_[t].split == kReplicated ? replicated_piece(t, participant)
                                                       : Range{0, piece_bytes(t, participant)};
    if (bytes.size() != 0) pieces.push_back({t, bytes});
  }
  return pieces;
}

uint64_t SavePlan::piece_bytes(uint32_t tensor, uint32_t participant) const {
  const TensorSpec& spec = specs_[tensor];
  if (spec.split == kReplicated) return replicated_piece(tensor, participant).size();
  if (spec.split != kSharded) return local_bytes(spec, participant, participants_);
  return local_bytes(spec, owned_by(participant));
}

uint64_t SavePlan::bytes(uint32_t participant) const {
  uint64_t sum = 0;
  for (const Piece& piece : pieces(participant)) sum += piece.bytes.size();
  return sum;
}

ShardLayout shard_layout(const SavePlan& plan, uint32_t participant) {
  ShardLayout layout{plan.pieces(participant), {}, kShardIdentityBytes};
  for (const Piece& piece : layout.pieces) {
    const bool is_small = piece.bytes.size() < kBlockBytes;
    layout.bytes = round_up(layout.bytes, is_small ? kSmallAlignment : kBlockBytes);
    layout.offsets.push_back(layout.bytes);
    layout.bytes += piece.bytes.size();
  }
  return layout;
}

namespace {

enum class Side : uint8_t { kSource, kTarget };

uint64_t& start(Copy& copy, Side side) { return side == Side::kSource ? copy.source : copy.target; }
uint64_t stride(const Copy& copy, Side side) {
  return side == Side::kSource ? copy.source_strides[0] : copy.target_strides[0];
}

// `copy` from its run `run` on, `skipped` bytes into it, as `count` runs of `run_bytes`.
Copy part_of_copy(const Copy& copy, uint64_t run, uint64_t skipped, uint64_t run_bytes, uint64_t count) {
  Copy part = copy;
  part.source += run * copy.source_strides[0] + skipped;
  part.target += run * copy.target_strides[0] + skipped;
  part.run_bytes = run_bytes;
  part.counts[0] = count;
  return part;
}

// Appends what of `copy` lies within `bytes` on one side: a cut first run, whole ones, a cut last run.
// REQUIRES: one level of runs, strides that are not shorter than a run.
void clip(const Copy& copy, Side side, Range bytes, std::vector<Copy>& out) {
  Copy whole = copy;
  const uint64_t begin = start(whole, side);
  const uint64_t step = std::max(stride(copy, side), copy.run_bytes);
  const auto run_range = [&](uint64_t run) {
    return Range{begin + run * step, begin + run * step + copy.run_bytes};
  };
  const auto add_cut = [&](uint64_t run) {
    const Range full = run_range(run);
    const Range kept = intersection(full, bytes);
    if (kept.size() != 0) out.push_back(part_of_copy(copy, run, kept.begin - full.begin, kept.size(), 1));
  };
  const uint64_t first = bytes.begin <= begin ? 0 : (bytes.begin - begin) / step;
  const uint64_t end =
      std::min(copy.counts[0], bytes.end <= begin ? 0 : (bytes.end - begin + step - 1) / step);
  if (first >= end) return;
  add_cut(first);
  if (end - first > 2) out.push_back(part_of_copy(copy, first + 1, 0, copy.run_bytes, end - first - 2));
  if (end - first > 1) add_cut(end - 1);
}

// One tensor's way from its saved pieces into one rank's local memory. Sources are counted from the beginning
// of the piece's local memory until `placed`.
struct TensorMove {
  const SavePlan& saved;
  uint32_t saved_tensor;
  const TensorSpec& wanted;
  uint32_t wanted_tensor;
  uint32_t part, parts;
  Range wanted_bytes;  // of the local memory; less than all only of a replicated tensor
  std::vector<Copy>& out;

  const TensorSpec& spec() const { return saved.specs()[saved_tensor]; }
  Copy blank(uint32_t participant) const {
    Copy copy;
    copy.participant = participant;
    copy.tensor = wanted_tensor;
    return copy;
  }

  void plan() const {
    if (wanted_bytes.size() == 0) return;
    const bool from_whole = spec().split == kReplicated || spec().split == kSharded;
    if (from_whole && wanted.split == kReplicated) return whole_to_whole();
    if (from_whole) return whole_to_part();
    if (wanted.split == kReplicated) return parts_to_whole();
    if (spec().split == wanted.split) return parts_to_part();
    return parts_across();
  }

  void whole_to_whole() const {
    Copy copy = blank(0);
    copy.source = copy.target = wanted_bytes.begin;
    copy.run_bytes = wanted_bytes.size();
    from_pieces(copy, wanted_bytes);
  }

  void whole_to_part() const {
    const SplitShape shape = around(wanted, wanted.split);
    const Range mine = part_of(shape.extent, part, parts);
    Copy copy = blank(0);
    copy.source = mine.begin * shape.inner_bytes;
    copy.run_bytes = mine.size() * shape.inner_bytes;
    copy.counts[0] = shape.outer;
    copy.source_strides[0] = shape.extent * shape.inner_bytes;
    copy.target_strides[0] = copy.run_bytes;
    from_pieces(copy,
                {copy.source, copy.source + (shape.outer - 1) * copy.source_strides[0] + copy.run_bytes});
  }

  // Sources of `copy` are bytes of the whole tensor here.
  void from_pieces(const Copy& copy, Range bytes) const {
    for (const WholeRun& run : saved.runs(saved_tensor, bytes)) {
      const size_t before = out.size();
      clip(copy, Side::kSource, run.bytes, out);
      for (size_t i = before; i < out.size(); ++i) {
        out[i].participant = run.participant;
        out[i].source = out[i].source - run.bytes.begin + run.offset;
      }
    }
  }

  void parts_to_whole() const {
    const SplitShape shape = around(spec(), spec().split);
    for (uint32_t p = 0; p < saved.participants(); ++p) {
      const Range theirs = part_of(shape.extent, p, saved.participants());
      if (theirs.size() == 0) continue;
      Copy copy = blank(p);
      copy.target = theirs.begin * shape.inner_bytes;
      copy.run_bytes = theirs.size() * shape.inner_bytes;
      copy.counts[0] = shape.outer;
      copy.source_strides[0] = copy.run_bytes;
      copy.target_strides[0] = shape.extent * shape.inner_bytes;
      clip(copy, Side::kTarget, wanted_bytes, out);
    }
  }

  void parts_to_part() const {
    const SplitShape shape = around(wanted, wanted.split);
    const Range mine = part_of(shape.extent, part, parts);
    for (uint32_t p = first_holder(shape.extent, mine.begin); p < saved.participants(); ++p) {
      const Range theirs = part_of(shape.extent, p, saved.participants());
      const Range shared = intersection(mine, theirs);
      if (theirs.begin >= mine.end) break;
      if (shared.size() == 0) continue;
      Copy copy = blank(p);
      copy.source = (shared.begin - theirs.begin) * shape.inner_bytes;
      copy.target = (shared.begin - mine.begin) * shape.inner_bytes;
      copy.run_bytes = shared.size() * shape.inner_bytes;
      copy.counts[0] = shape.outer;
      copy.source_strides[0] = theirs.size() * shape.inner_bytes;
      copy.target_strides[0] = mine.size() * shape.inner_bytes;
      out.push_back(copy);
    }
  }

  uint32_t first_holder(uint64_t extent, uint64_t index) const {
    uint32_t low = 0;
    uint32_t high = saved.participants();
    while (low + 1 < high) {
      const uint32_t middle = low + (high - low) / 2;
      (part_of(extent, middle, saved.participants()).begin <= index ? low : high) = middle;
    }
    return low;
  }

  // Split along one dimension there, along another here: with a = outer, i = the earlier of the two
  // dimensions, b = between them, j = the later one, c = inner, the bytes (a, i, b, [j], c) are runs over
  // [j]; i and b step together, because each side is dense in (i, b).
  void parts_across() const {
    const bool source_is_outer = spec().split < wanted.split;
    const int d1 = std::min(spec().split, wanted.split);
    const int d2 = std::max(spec().split, wanted.split);
    const SplitShape first = around(spec(), d1);
    const SplitShape second = around(spec(), d2);
    const uint64_t between = second.outer / (first.outer * first.extent);
    const uint64_t mine_extent = source_is_outer ? second.extent : first.extent;
    const uint64_t their_extent = source_is_outer ? first.extent : second.extent;
    const Range mine = part_of(mine_extent, part, parts);
    for (uint32_t p = 0; p < saved.participants(); ++p) {
      const Range theirs = part_of(their_extent, p, saved.participants());
      if (theirs.size() == 0) continue;
      const Range i = source_is_outer ? theirs : mine;
      const Range j = source_is_outer ? mine : theirs;
      Copy copy = blank(p);
      copy.run_bytes = j.size() * second.inner_bytes;
      copy.counts[0] = first.outer;
      copy.counts[1] = i.size() * between;
      // A side that is split along i holds all of j, and the other way round.
      const uint64_t row_of_i = second.extent * second.inner_bytes;
      const uint64_t row_of_j = copy.run_bytes;
      const uint64_t outer_of_i = i.size() * between * row_of_i;
      const uint64_t outer_of_j = first.extent * between * row_of_j;
      const uint64_t begin_of_i = j.begin * second.inner_bytes;
      const uint64_t begin_of_j = i.begin * between * row_of_j;
      copy.source = source_is_outer ? begin_of_i : begin_of_j;
      copy.target = source_is_outer ? begin_of_j : begin_of_i;
      copy.source_strides[0] = source_is_outer ? outer_of_i : outer_of_j;
      copy.target_strides[0] = source_is_outer ? outer_of_j : outer_of_i;
      copy.source_strides[1] = source_is_outer ? row_of_i : row_of_j;
      copy.target_strides[1] = source_is_outer ? row_of_j : row_of_i;
      out.push_back(copy);
    }
  }
};

// Each wanted shard is a range of the whole tensor, that lies elsewhere in the local memory.
void plan_shards(const SavePlan& saved, uint32_t saved_tensor, const TensorSpec& wanted,
                 uint32_t wanted_tensor, const HeldShards& held, std::vector<Copy>& out) {
  TensorSpec whole = wanted;
  whole.split = kReplicated;
  uint64_t offset = 0;
  for (uint32_t shard : held.mine) {
    const Range bytes = shard_bytes(wanted, shard, held.count);
    const size_t before = out.size();
    TensorMove{saved, saved_tensor, whole, wanted_tensor, 0, 1, bytes, out}.plan();
    for (size_t i = before; i < out.size(); ++i) out[i].target = out[i].target - bytes.begin + offset;
    offset += bytes.size();
  }
}

// From piece-relative sources to offsets in the shard, and into reading order. Layouts are made one shard at
// a time, since all of them together could be larger than the state.
void place(const SavePlan& saved, std::span<const std::optional<uint32_t>> saved_index,
           std::vector<Copy>& copies) {
  std::stable_sort(copies.begin(), copies.end(),
                   [](const Copy& a, const Copy& b) { return a.participant < b.participant; });
  std::vector<uint64_t> offset_of_tensor(saved.specs().size());
  for (size_t i = 0; i < copies.size();) {
    const uint32_t participant = copies[i].participant;
    const ShardLayout layout = shard_layout(saved, participant);
    for (size_t k = 0; k < layout.pieces.size(); ++k)
      offset_of_tensor[layout.pieces[k].tensor] = layout.offsets[k];
    const size_t first = i;
    for (; i < copies.size() && copies[i].participant == participant; ++i)
      copies[i].source += offset_of_tensor[saved_index[copies[i].tensor].value()];
    std::sort(copies.begin() + static_cast<ptrdiff_t>(first), copies.begin() + static_cast<ptrdiff_t>(i),
              [](const Copy& a, const Copy& b) { return a.source < b.source; });
  }
}

}  // namespace

Result<TensorMatch> match_tensors(std::span<const TensorSpec> saved, std::span<const TensorSpec> wanted,
                                  const RestoreRules& rules) {
  std::unordered_map<std::string_view, uint32_t> index;
  for (uint32_t t = 0; t < saved.size(); ++t) index[saved[t].name] = t;
  TensorMatch match;
  for (const TensorSpec& spec : wanted) {
    const auto found = index.find(spec.name);
    if (found == index.end()) {
      if (!rules.missing)
        return misuse("the checkpoint has no tensor '" + spec.name +
                      "'; resume with the program that saved it, or start in another folder");
      match.saved.emplace_back();
      match.missing.push_back(spec.name);
      continue;
    }
    const TensorSpec& there = saved[found->second];
    if (there.shape != spec.shape) {
      const std::string shapes = "tensor '" + spec.name + "' has the shape " + shape_text(there.shape) +
                                 " in the checkpoint and " + shape_text(spec.shape) + " in the program; ";
      if (!rules.reshaped) return misuse(shapes + "make them the same, or start in another folder");
      if (total_bytes(there) / size_of(there.dtype) != total_bytes(spec) / size_of(spec.dtype))
        return misuse(shapes + "these have different numbers of elements, which is no reshaping");
      if (spec.split != kReplicated)
        return misuse(shapes + "a tensor that the program splits is not reshaped; make them the same");
      match.reshaped.push_back(spec.name);
    }
    if (there.dtype != spec.dtype) {
      const std::string types = "tensor '" + spec.name + "' is " + std::string(to_string(there.dtype)) +
                                " in the checkpoint and " + std::string(to_string(spec.dtype)) +
                                " in the program; ";
      if (!rules.casts) return misuse(types + "make them the same, or start in another folder");
      if (!can_cast(there.dtype, spec.dtype))
        return misuse(types + "only float32, float64, bfloat16 and float16 are cast into each other");
      match.cast.push_back(spec.name);
    }
    match.saved.emplace_back(found->second);
    index.erase(found);
  }
  for (const TensorSpec& there : saved)
    if (index.contains(there.name)) match.extra.push_back(there.name);
  if (!match.extra.empty() && !rules.extra)
    return misuse("the checkpoint has a tensor '" + match.extra.front() +
                  "' that the program does not have; resume with the program that saved it");
  return match;
}

// Who holds shards is not known alike to all, so they count for nothing here.
Result<SavePlan> plan_shares(std::span<const TensorSpec> wanted, uint32_t parts) {
  std::vector<TensorSpec> specs(wanted.begin(), wanted.end());
  for (TensorSpec& spec : specs) {
    if (spec.split == kSharded) spec = {spec.name, spec.dtype, {0}, 0};
  }
  return plan_save(std::move(specs), parts);
}

Result<std::vector<Copy>> plan_restore(const SavePlan& saved, std::span<const TensorSpec> wanted,
                                       uint32_t part, uint32_t parts, ReadShare share,
                                       const RestoreRules& rules, const HeldShards& held) {
  if (part >= parts) return misuse("rank " + std::to_string(part) + " of " + std::to_string(parts));
  MUSTER_TRY(check_specs(wanted));
  MUSTER_TRY(check_held(wanted, held));
  MUSTER_ASSIGN(const SavePlan shares, plan_shares(wanted, parts));
  MUSTER_ASSIGN(const TensorMatch match, match_tensors(saved.specs(), wanted, rules));
  std::vector<Copy> copies;
  for (uint32_t t = 0; t < wanted.size(); ++t) {
    if (!match.saved[t]) continue;
    const TensorSpec& there = saved.specs()[*match.saved[t]];
    // As the program wants it, but of the checkpoint's type; and a reshaped one in the checkpoint's shape,
    // whose bytes come in the same order.
    TensorSpec spec = wanted[t];
    spec.dtype = there.dtype;
    spec.shape = there.shape;
    if (spec.split == kSharded) {
      plan_shards(saved, *match.saved[t], spec, t, held, copies);
      continue;
    }
    Range bytes{0, local_bytes(spec, part, parts)};
    if (share == ReadShare::kPart && spec.split == kReplicated) {
      const Range share_of = shares.replicated_piece(t, part);
      const uint64_t unit = size_of(wanted[t].dtype);
      bytes = {share_of.begin / unit * size_of(there.dtype), share_of.end / unit * size_of(there.dtype)};
    }
    TensorMove{saved, *match.saved[t], spec, t, part, parts, bytes, copies}.plan();
  }
  place(saved, match.saved, copies);
  return copies;
}

std::vector<Copy> plan_read(const SavePlan& saved, uint32_t tensor, Range bytes) {
  TensorSpec whole = saved.specs()[tensor];
  whole.split = kReplicated;
  std::vector<Copy> copies;
  TensorMove{saved, tensor, whole, tensor, 0, 1, bytes, copies}.plan();
  for (Copy& copy : copies) copy.target -= bytes.begin;
  return copies;
}

}  // namespace muster::checkpoint
