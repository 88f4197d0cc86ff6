#include "collectives/compressed_all_reduce.h"

#include <algorithm>
#include <string>

namespace muster {
namespace {

// Elements of a chunk, of all slices together: 4 MiB are encoded in a few milliseconds, and encoded they are
// still long messages.
constexpr size_t kChunkElements = size_t{1} << 20;
constexpr uint32_t kTensorLimit = uint32_t{1} << 30;

size_t chunk_of_slice(int ranks) {
  return round_up(std::max<size_t>(1, kChunkElements / static_cast<size_t>(ranks)), codec::kGrainMax);
}

// The first slice is the longest. An empty vector is one empty chunk, so that ranks which disagree about it
// are told.
size_t chunks_of(size_t count, int ranks) {
  const size_t chunk = chunk_of_slice(ranks);
  return std::max<size_t>(1, (owned_slice(count, 0, ranks).size() + chunk - 1) / chunk);
}

std::vector<LaneRange> one_lane_each(int ranks) {
  std::vector<LaneRange> lanes;
  for (int rank = 0; rank < ranks; ++rank) lanes.push_back({rank, rank + 1});
  return lanes;
}

Error misuse(const std::string& what) { return Error{ErrorCode::kMisuse, "compressed collective: " + what}; }

// Elements [at, at + length) of a slice, as far as it has them; else it stands at the slice's begin, which is
// at a grain.
ElementRange part_of(ElementRange slice, size_t at, size_t length) {
  if (at >= slice.size()) return {slice.begin, slice.begin};
  return {slice.begin + at, slice.begin + std::min(slice.size(), at + length)};
}

bool is_codec(codec::CodecId id) { return std::ranges::count(codec::kCodecIds, id) > 0; }

}  // namespace

CompressedCollectives::CompressedCollectives(Group& group)
    : group_(group),
      exchange_(group, with_own_slices(lists_of(one_lane_each(group.size()))),
                SliceExchange::Way::kInCommon) {}

Status CompressedCollectives::all_reduce(const CompressedCall& call, const float* in, float* out,
                                         size_t count, Feedback* feedback, Instant deadline) {
  return begin(Kind::kAllReduce, call, {in, out, count}, feedback, deadline);
}
Status CompressedCollectives::reduce_scatter(const CompressedCall& call, const float* in, float* out,
                                             size_t count, Feedback* feedback, Instant deadline) {
  return begin(Kind::kReduceScatter, call, {in, out, count}, feedback, deadline);
}
Status CompressedCollectives::all_gather(const CompressedCall& call, const float* in, float* out,
                                         size_t count, Feedback* feedback, Instant deadline) {
  return begin(Kind::kAllGather, call, {in, out, count}, feedback, deadline);
}

Feedback::Parts CompressedCollectives::residuals_of(Kind kind) {
  return {.contribution = kind != Kind::kAllGather, .mean = kind != Kind::kReduceScatter};
}

// All that ranks have to agree upon.
std::string CompressedCollectives::text_of(Kind kind, const CompressedCall& call, size_t count,
                                           bool feedback) {
  static constexpr const char* kNames[] = {"all_reduce", "reduce_scatter", "all_gather"};
  return "compressed " + std::string(kNames[static_cast<int>(kind)]) + " of " + std::to_string(count) +
         " elements by " + std::string(codec::codec_of(call.codec).name) +
         (call.average ? ", avg" : ", sum") + (feedback ? ", with" : ", without") + " error feedback, step " +
         std::to_string(call.step) + ", tensor " + std::to_string(call.tensor) + ", seed " +
         std::to_string(call.seed);
}

Status CompressedCollectives::check(Kind kind, const CompressedCall& call, const Buffers& buffers,
                                    const Feedback* feedback) const {
  if (under_way_) return misuse("the one before was not waited for");
  if (!is_codec(call.codec))
    return misuse("unknown codec " + std::to_string(static_cast<int>(call.codec)) +
                  "; use bf16, fp16, int8, int4, mxfp8, 1-bit or topk");
  const std::string name(codec::codec_of(call.codec).name);
  if (!reduces_with_feedback(call.codec)) return misuse(name + " is not for it; use another codec");
  if (feedback == nullptr && !reduces_without_feedback(call.codec))
    return misuse(name + " needs error feedback; give it residuals");
  if (call.tensor >= kTensorLimit) return misuse("a tensor number must be below 2^30");
  if (group_.size() > kCompressedLanesMax) return misuse("it is for at most 65535 ranks");
  if (buffers.count > kIndexMax) return misuse("count is larger than 2^51");
  const size_t owned = owned_slice(buffers.count, group_.rank(), group_.size()).size();
  const size_t read = kind == Kind::kAllGather ? owned : buffers.count;
  const size_t written = kind == Kind::kReduceScatter ? owned : buffers.count;
  if ((buffers.in == nullptr && read > 0) || (buffers.out == nullptr && written > 0))
    return misuse("a buffer is null; give one, or count 0");
  if (feedback == nullptr) return ok();
  const Residuals& residuals = feedback->residuals();
  if (residuals.count() == buffers.count && residuals.rank == group_.rank() &&
      residuals.ranks == group_.size())
    return ok();
  return misuse("the residuals are of " + std::to_string(residuals.count()) + " elements on rank " +
                std::to_string(residuals.rank) + " of " + std::to_string(residuals.ranks) +
                ", the vector has " + std::to_string(buffers.count) + " on rank " +
                std::to_string(group_.rank()) + " of " + std::to_string(group_.size()) +
                "; make new ones, or merge those of all ranks for this set of ranks");
}

Status CompressedCollectives::begin(Kind kind, const CompressedCall& call, const Buffers& buffers,
                                    Feedback* feedback, Instant deadline) {
  MUSTER_TRY(check(kind, call, buffers, feedback));
  return revoking_if_thrown([&]() -> Status {
    if (feedback != nullptr) MUSTER_TRY(feedback->begin(residuals_of(kind)));
    under_way_ = true;
    feedback_ = feedback;
    begin_chunks(kind, call, buffers, deadline);
    return ok();
  });
}

// The others wait for what this rank would have done: they are told.
template <typename Body>
Status CompressedCollectives::revoking_if_thrown(Body body) {
  try {
    return body();
  } catch (...) {
    end(false);
    group_.revoke_as_unable("compressed collective");
    throw;
  }
}

// Encoding may take long: what has failed meanwhile is told soon. An operation must be under way by then,
// for wait() to report.
void CompressedCollectives::begin_chunks(Kind kind, const CompressedCall& call, const Buffers& buffers,
                                         Instant deadline) {
  text_ = text_of(kind, call, buffers.count, feedback_ != nullptr);
  codec_.emplace(RankReduction{.compression = {call.codec, call.seed},
                               .ranks = group_.size(),
                               .average = call.average,
                               .feedback = feedback_ != nullptr,
                               .tensor = call.tensor});
  exchange_.restart(*codec_, call.step, digest_of(as_bytes(text_)).low);
  cut_short_ = false;
  const size_t chunks = chunks_of(buffers.count, group_.size());
  for (size_t chunk = 0; chunk < chunks && !cut_short_; ++chunk) {
    begin_chunk(kind, chunk, buffers, deadline);
    cut_short_ = chunk + 1 < chunks && (group_.failure() || now() >= deadline);
  }
}

void CompressedCollectives::begin_chunk(Kind kind, size_t chunk, const Buffers& buffers, Instant deadline) {
  const int me = group_.rank(), ranks = group_.size();
  const size_t length = chunk_of_slice(ranks);
  Piece piece{.first_half = kind == Kind::kReduceScatter};
  for (int rank = 0; rank < ranks; ++rank)
    piece.slices.push_back(part_of(owned_slice(buffers.count, rank, ranks), chunk * length, length));
  const ElementRange mine = piece.slices[static_cast<size_t>(me)];
  const size_t offset = mine.begin - owned_slice(buffers.count, me, ranks).begin;
  const auto [contribution, mean] = residuals_of(kind);
  if (feedback_ != nullptr && contribution) {
    piece.residuals.resize(1);
    for (const ElementRange slice : piece.slices) piece.residuals[0] = feedback_->contribution(slice);
  }
  if (feedback_ != nullptr && mean) {
    piece.mean_residuals.resize(piece.slices.size());
    piece.mean_residuals[static_cast<size_t>(me)] = feedback_->mean(mine);
  }
  if (kind == Kind::kReduceScatter) {
    piece.sum = buffers.out + offset;
  } else {
    piece.mean = buffers.out;
  }
  if (kind == Kind::kAllGather) return exchange_.begin_gather(piece, buffers.in + offset, deadline);
  piece.sums = {&buffers.in, 1};
  exchange_.begin(piece, deadline);
}

Status CompressedCollectives::wait(Instant deadline, std::vector<int>& suspects) {
  if (!under_way_) return misuse("none was begun; begin one, then wait");
  Status status = revoking_if_thrown([&] { return exchange_.wait(deadline, suspects); });
  if (status.ok() && cut_short_) status = why_cut_short(suspects);
  end(status.ok());
  if (status.ok() || status.error().code != ErrorCode::kMisuse) return status;
  return Error{ErrorCode::kMisuse, status.error().message + " (this rank: " + text_ + ")"};
}

// The chunks that were begun have ended well, before the group failed or in a deadline's last moment.
Status CompressedCollectives::why_cut_short(std::vector<int>& suspects) {
  group_.revoke(Error{ErrorCode::kReconfigure, "the deadline passed while rank " +
                                                   std::to_string(group_.rank()) + " encoded its part"},
                Group::Tell::kPeers);
  Failure failure = *group_.failure();  // the first one
  suspects = std::move(failure.suspects);
  return Error{failure.code, std::move(failure.reason)};
}

void CompressedCollectives::end(bool well) {
  if (feedback_ != nullptr) feedback_->end(well);
  feedback_ = nullptr;
  under_way_ = false;
}

}  // namespace muster
