#include "collectives/lane_codec.h"

#include <algorithm>
#include <string>

#include "collectives/reduce.h"
#include "collectives/schedule.h"
#include "runtime/base/check.h"

namespace muster {
namespace {

// Which encoding of the vector it is, in the random numbers and on the wire: of a lane, then of the mean. A
// sum has its own numbers, so that a rank that averages does not take it.
constexpr uint8_t kMeanStages = 0, kSumStages = 2;
// Of the canonical mode, where all gradients are one vector.
constexpr uint32_t kTensor = 0;

// Elements that are decoded, summed and encoded at a time, so that all of it stays in the caches.
constexpr size_t kTile = codec::kGrainMax;

}  // namespace

ElementRange slice_at_grains(ElementRange whole, size_t grain, int part, int parts) {
  const Slice grains = slice_of((whole.size() + grain - 1) / grain, parts, part);
  if (grains.count == 0) return {whole.begin, whole.begin};
  const size_t begin = whole.begin + grains.offset * grain;
  return {begin, std::min(whole.end, begin + grains.count * grain)};
}

LaneCodec::LaneCodec(Compression compression, int microbatches, int lanes, bool feedback)
    : codec_(codec::codec_of(compression.codec)),
      seed_(compression.seed),
      lanes_(lanes),
      in_order_(false),
      feedback_(feedback),
      stage_(kMeanStages),
      tensor_(kTensor),
      plan_(plan_combine_lanes(lanes)),
      scale_(1.0F / static_cast<float>(microbatches)) {
  MUSTER_CHECK(feedback ? reduces_with_feedback(codec_.id) : reduces_without_feedback(codec_.id),
               "this codec cannot reduce so");
  MUSTER_CHECK(lanes <= kCompressedLanesMax && microbatches % lanes == 0,
               "lanes must divide microbatches, and be few enough for the messages' lane field");
}

LaneCodec::LaneCodec(const RankReduction& reduction)
    : codec_(codec::codec_of(reduction.compression.codec)),
      seed_(reduction.compression.seed),
      lanes_(reduction.ranks),
      in_order_(true),
      feedback_(reduction.feedback),
      stage_(reduction.average ? kMeanStages : kSumStages),
      tensor_(reduction.tensor),
      scale_(reduction.average ? 1.0F / static_cast<float>(reduction.ranks) : 1.0F) {
  MUSTER_CHECK(feedback_ ? reduces_with_feedback(codec_.id) : reduces_without_feedback(codec_.id),
               "this codec cannot reduce so");
  MUSTER_CHECK(lanes_ <= kCompressedLanesMax, "too many ranks for the messages' lane field");
}

size_t LaneCodec::message_bytes(size_t count) const {
  return wire::lay_out(codec_.id, count).value().message_bytes;
}

uint8_t LaneCodec::stage_of(int lane) const {
  return static_cast<uint8_t>(lane == lanes_ ? stage_ + 1 : stage_);
}

RandomSlot LaneCodec::slot(uint64_t step, int lane) const {
  return {seed_, step, tensor_, static_cast<uint16_t>(lane), stage_of(lane)};
}

wire::Description LaneCodec::describe(uint64_t step, int lane, ElementRange range) const {
  return {.codec = codec_.id,
          .stochastic = !feedback_,
          .lane = static_cast<uint16_t>(lane),
          .stage = stage_of(lane),
          .tensor = tensor_,
          .step = step,
          .first_index = range.begin,
          .count = range.size()};
}

std::string LaneCodec::text_of(const wire::Description& description) const {
  const bool way_back = description.stage % 2 == 1 && description.lane == lanes_;
  const std::string lane = (in_order_ ? "the part of rank " : "lane ") + std::to_string(description.lane);
  std::string text = (way_back ? (description.stage < kSumStages ? "the mean" : "the sum") : lane) +
                     ", elements [" + std::to_string(description.first_index) + ", " +
                     std::to_string(description.first_index + description.count) + "), by " +
                     std::string(codec::codec_of(description.codec).name);
  if (!in_order_) return description.stochastic ? text : text + ", with error feedback";
  if (!way_back) text += description.stage < kSumStages ? " for a mean" : " for a sum";
  text += description.stochastic ? ", rounded stochastically" : ", with error feedback";
  return text + ", tensor " + std::to_string(description.tensor);
}

codec::Encode LaneCodec::encoding(uint64_t step, int lane, ElementRange range, const float* values,
                                  uint8_t* scales, uint8_t* payload) const {
  return {.values = values,
          .residual = nullptr,
          .scales = scales,
          .payload = payload,
          .count = range.size(),
          .first_index = range.begin,
          .stochastic = !feedback_,
          .slot = slot(step, lane)};
}

codec::Encode LaneCodec::encoding_into(uint64_t step, int lane, ElementRange range, const float* values,
                                       float* residual, MutableByteSpan message) const {
  const wire::Layout layout = wire::lay_out(codec_.id, range.size()).value();
  auto* const bytes = reinterpret_cast<uint8_t*>(message.data());
  codec::Encode task =
      encoding(step, lane, range, values, bytes + layout.scales_offset, bytes + layout.payload_offset);
  task.residual = residual;
  return task;
}

void LaneCodec::seal(uint64_t step, int lane, ElementRange range, MutableByteSpan message) const {
  const Status sealed = wire::seal(describe(step, lane, range), message);
  MUSTER_CHECK(sealed.ok(), sealed.error().message);
}

void LaneCodec::encode(uint64_t step, int lane, ElementRange range, const float* values, float* residual,
                       MutableByteSpan message) const {
  codec_.encode(encoding_into(step, lane, range, values, residual, message));
  seal(step, lane, range, message);
}

void LaneCodec::encode_lane(uint64_t step, int lane, ElementRange range, const float* sums, float* residual,
                            MutableByteSpan message) const {
  encode(step, lane, range, sums, residual, message);
}

Result<codec::Planes> LaneCodec::open(uint64_t step, int lane, ElementRange range, int rank,
                                      ByteSpan message) const {
  const auto parsed = wire::parse(message);
  const wire::Description expected = describe(step, lane, range);
  if (!parsed.ok()) {
    return Error{ErrorCode::kReconfigure, "what rank " + std::to_string(rank) + " sent of " +
                                              text_of(expected) + ", is unusable: " + parsed.error().message};
  }
  const wire::Description& found = parsed->description;
  if (found.step != step) {
    return Error{ErrorCode::kReconfigure,
                 "the ranks are at different steps, rank " + std::to_string(rank) + " at " +
                     std::to_string(found.step) + " and this one at " + std::to_string(step) +
                     ": a rank left an update out, or could not open it in time; every rank must update in "
                     "every step"};
  }
  if (found != expected) {
    return Error{ErrorCode::kMisuse, "rank " + std::to_string(rank) + " sent " + text_of(found) +
                                         ", where this rank expects " + text_of(expected) +
                                         "; pass gradients of one size, and the same options, on all ranks"};
  }
  return codec::Planes{reinterpret_cast<const uint8_t*>(parsed->scales.data()),
                       reinterpret_cast<const uint8_t*>(parsed->payload.data())};
}

// Sums all lanes of a range, tile by tile.
class LaneCodec::TileSum {
 public:
  TileSum(const LaneCodec& codec, uint64_t step, ElementRange range, std::span<const codec::Planes> lanes)
      : codec_(codec), step_(step), range_(range), lanes_(lanes) {
    MUSTER_CHECK(lanes.size() == static_cast<size_t>(codec.lanes_), "the mean is over all lanes");
    if (codec.in_order_) return;
    decoded_.resize(lanes.size() * kTile);
    for (size_t lane = 0; lane < lanes.size(); ++lane)
      leaves_.push_back(reinterpret_cast<const std::byte*>(decoded_.data() + lane * kTile));
  }

  // sum[0, count): of the elements from range.begin + at on. REQUIRES: count ≤ kTile.
  void operator()(size_t at, size_t count, float* sum) {
    codec_.in_order_ ? add_in_order(at, count, sum) : add_along_tree(at, count, sum);
  }

 private:
  void add_along_tree(size_t at, size_t count, float* sum) {
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      const ElementRange tile{range_.begin + at, range_.begin + at + count};
      codec_.codec_.decode(codec_.decoding(step_, static_cast<int>(lane), tile,
                                           codec_.planes_from(lanes_[lane], at),
                                           decoded_.data() + lane * kTile));
    }
    std::byte* const target = reinterpret_cast<std::byte*>(sum);
    fold_tree(codec_.plan_, codec_.scale_, {&target, 1}, 0, leaves_, count);
  }

  // More sources than one decoding takes are added in runs of as many, each scaled by itself.
  void add_in_order(size_t at, size_t count, float* sum) const {
    for (size_t first = 0; first < lanes_.size(); first += codec::kSourcesMax) {
      const size_t sources = std::min<size_t>(codec::kSourcesMax, lanes_.size() - first);
      codec::Decode task = codec::decode_one({}, sum, count, range_.begin + at, codec_.slot(step_, 0));
      for (size_t i = 0; i < sources; ++i) task.sources[i] = codec_.planes_from(lanes_[first + i], at);
      task.source_count = static_cast<uint32_t>(sources);
      task.factor = codec_.scale_;
      task.accumulate = first > 0;
      codec_.codec_.decode(task);
    }
  }

  const LaneCodec& codec_;
  const uint64_t step_;
  const ElementRange range_;
  const std::span<const codec::Planes> lanes_;
  std::vector<float> decoded_;  // a tile of each lane
  std::vector<const std::byte*> leaves_;
};

void LaneCodec::encode_mean(uint64_t step, ElementRange range, std::span<const codec::Planes> lanes,
                            float* residual, MutableByteSpan message) const {
  const codec::Encode whole = encoding_into(step, lanes_, range, nullptr, residual, message);
  TileSum sum(*this, step, range, lanes);
  alignas(64) float mean[kTile];
  for (size_t at = 0; at < range.size(); at += kTile) {
    codec::Encode part = whole;
    part.count = std::min(kTile, range.size() - at);
    sum(at, part.count, mean);
    part.values = mean;
    if (residual != nullptr) part.residual += at;
    part.scales += scales_before(at);
    part.payload += payload_before(at);
    part.first_index = range.begin + at;
    codec_.encode(part);
  }
  seal(step, lanes_, range, message);
}

void LaneCodec::sum_lanes(uint64_t step, ElementRange range, std::span<const codec::Planes> lanes,
                          float* sum) const {
  TileSum sum_tile(*this, step, range, lanes);
  for (size_t at = 0; at < range.size(); at += kTile)
    sum_tile(at, std::min(kTile, range.size() - at), sum + at);
}

void LaneCodec::decode_mean(uint64_t step, ElementRange range, const codec::Planes& planes,
                            float* mean) const {
  codec_.decode(decoding(step, lanes_, range, planes, mean));
}

}  // namespace muster
