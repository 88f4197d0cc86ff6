#include "collectives/lane_codec.h"

#include <algorithm>
#include <string>

#include "collectives/reduce.h"
#include "collectives/schedule.h"
#include "runtime/base/check.h"

namespace muster {
namespace {

// Which encoding of the vector it is, in the random numbers and on the wire.
constexpr uint8_t kLaneStage = 0, kMeanStage = 1;
// All gradients are one vector.
constexpr uint32_t kTensor = 0;

// Elements that are decoded, summed and encoded at a time, so that all of it stays in the caches.
constexpr size_t kTile = codec::kGrainMax;

std::string text_of(const wire::Description& description, int lanes) {
  const std::string part = description.stage == kMeanStage && description.lane == lanes
                               ? "the mean"
                               : "lane " + std::to_string(description.lane);
  return part + ", elements [" + std::to_string(description.first_index) + ", " +
         std::to_string(description.first_index + description.count) + "), by " +
         std::string(codec::codec_of(description.codec).name);
}

}  // namespace

LaneCodec::LaneCodec(Compression compression, int microbatches, int lanes)
    : codec_(codec::codec_of(compression.codec)),
      seed_(compression.seed),
      lanes_(lanes),
      plan_(plan_combine_lanes(lanes)),
      scale_(1.0F / static_cast<float>(microbatches)) {
  MUSTER_CHECK(reduces_without_feedback(compression.codec), "this codec needs error feedback");
  MUSTER_CHECK(lanes <= kCompressedLanesMax && microbatches % lanes == 0,
               "lanes must divide microbatches, and be few enough for the messages' lane field");
}

size_t LaneCodec::message_bytes(size_t count) const {
  return wire::lay_out(codec_.id, count).value().message_bytes;
}

ElementRange LaneCodec::slice(ElementRange bucket, int rank, int ranks) const {
  const Slice grains = slice_of((bucket.size() + grain() - 1) / grain(), ranks, rank);
  if (grains.count == 0) return {bucket.begin, bucket.begin};
  const size_t begin = bucket.begin + grains.offset * grain();
  return {begin, std::min(bucket.end, begin + grains.count * grain())};
}

RandomSlot LaneCodec::slot(uint64_t step, int lane) const {
  return {seed_, step, kTensor, static_cast<uint16_t>(lane), lane == lanes_ ? kMeanStage : kLaneStage};
}

wire::Description LaneCodec::describe(uint64_t step, int lane, ElementRange range) const {
  return {.codec = codec_.id,
          .stochastic = true,
          .lane = static_cast<uint16_t>(lane),
          .stage = lane == lanes_ ? kMeanStage : kLaneStage,
          .tensor = kTensor,
          .step = step,
          .first_index = range.begin,
          .count = range.size()};
}

codec::Encode LaneCodec::encoding(uint64_t step, int lane, ElementRange range,
                                  MutableByteSpan message) const {
  const wire::Layout layout = wire::lay_out(codec_.id, range.size()).value();
  auto* const bytes = reinterpret_cast<uint8_t*>(message.data());
  return {.values = nullptr,
          .residual = nullptr,
          .scales = bytes + layout.scales_offset,
          .payload = bytes + layout.payload_offset,
          .count = range.size(),
          .first_index = range.begin,
          .stochastic = true,
          .slot = slot(step, lane)};
}

void LaneCodec::seal(uint64_t step, int lane, ElementRange range, MutableByteSpan message) const {
  const Status sealed = wire::seal(describe(step, lane, range), message);
  MUSTER_CHECK(sealed.ok(), sealed.error().message);
}

void LaneCodec::encode_lane(uint64_t step, int lane, ElementRange range, const float* sums,
                            MutableByteSpan message) const {
  codec::Encode task = encoding(step, lane, range, message);
  task.values = sums;
  codec_.encode(task);
  seal(step, lane, range, message);
}

Result<codec::Planes> LaneCodec::open(uint64_t step, int lane, ElementRange range, int rank,
                                      ByteSpan message) const {
  const auto parsed = wire::parse(message);
  const wire::Description expected = describe(step, lane, range);
  if (!parsed.ok()) {
    return Error{ErrorCode::kReconfigure, "what rank " + std::to_string(rank) + " sent of " +
                                              text_of(expected, lanes_) +
                                              ", is unusable: " + parsed.error().message};
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
    return Error{ErrorCode::kMisuse, "rank " + std::to_string(rank) + " sent " + text_of(found, lanes_) +
                                         ", where this rank expects " + text_of(expected, lanes_) +
                                         "; pass gradients of one size, and the same options, on all ranks"};
  }
  return codec::Planes{reinterpret_cast<const uint8_t*>(parsed->scales.data()),
                       reinterpret_cast<const uint8_t*>(parsed->payload.data())};
}

void LaneCodec::encode_mean(uint64_t step, ElementRange range, std::span<const codec::Planes> lanes,
                            MutableByteSpan message) const {
  MUSTER_CHECK(lanes.size() == static_cast<size_t>(lanes_), "the mean is over all lanes");
  const codec::Encode whole = encoding(step, lanes_, range, message);
  std::vector<float> decoded(lanes.size() * kTile);
  std::vector<const std::byte*> leaves;
  for (size_t lane = 0; lane < lanes.size(); ++lane)
    leaves.push_back(reinterpret_cast<const std::byte*>(decoded.data() + lane * kTile));
  alignas(64) float mean[kTile];
  std::byte* const target = reinterpret_cast<std::byte*>(mean);

  for (size_t at = 0; at < range.size(); at += kTile) {
    const size_t count = std::min(kTile, range.size() - at), index = range.begin + at;
    for (size_t lane = 0; lane < lanes.size(); ++lane) {
      const codec::Planes planes = {lanes[lane].scales + scales_before(at),
                                    lanes[lane].payload + payload_before(at)};
      codec_.decode(codec::decode_one(planes, decoded.data() + lane * kTile, count, index,
                                      slot(step, static_cast<int>(lane))));
    }
    fold_tree(plan_, scale_, {&target, 1}, 0, leaves, count);
    codec::Encode part = whole;
    part.values = mean;
    part.scales += scales_before(at);
    part.payload += payload_before(at);
    part.count = count;
    part.first_index = index;
    codec_.encode(part);
  }
  seal(step, lanes_, range, message);
}

void LaneCodec::decode_mean(uint64_t step, ElementRange range, const codec::Planes& planes,
                            float* mean) const {
  codec_.decode(codec::decode_one(planes, mean, range.size(), range.begin, slot(step, lanes_)));
}

}  // namespace muster
