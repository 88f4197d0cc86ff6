#include "collectives/slice_exchange.h"

#include <algorithm>

namespace muster {
namespace {

Status finished(const Work& work, std::vector<int>& suspects) {
  Status status = work.wait();
  if (!status.ok()) suspects = work.suspects();
  return status;
}

}  // namespace

SliceOwners with_own_slices(LaneLists lanes) {
  SliceOwners owners{std::move(lanes), {}};
  for (size_t rank = 0; rank < owners.lanes.size(); ++rank) owners.slices.push_back({static_cast<int>(rank)});
  return owners;
}

SliceExchange::SliceExchange(Group& group, SliceOwners owners, Way way)
    : group_(group), owners_(std::move(owners)), lanes_(count_lanes(owners_.lanes)), way_(way) {
  size_t before = 0;
  for (const std::vector<int>& lanes : owners_.lanes) {
    lanes_before_.push_back(before);
    before += lanes.size();
  }
}

void SliceExchange::restart(const LaneCodec& codec, uint64_t step, uint64_t agreement) {
  wait_for_operations();
  codec_ = &codec;
  step_ = step;
  agreement_ = agreement;
  begun_ = summed_ = taken_ = 0;
  lane_elements_ = mean_elements_ = 0;
}

void SliceExchange::begin(const Piece& piece, Instant deadline) {
  Exchange& exchange = next_exchange(piece);
  resize_lane_buffers(exchange);
  // Room first: an operation that was issued and not kept would use buffers that nobody knows are in use.
  exchange.transfers.reserve(way_ == Way::kInCommon ? 1 : 2 * static_cast<size_t>(group_.size()));
  if (way_ == Way::kInCommon) {
    exchange_in_common(exchange, deadline);
  } else {
    receive_by_tag(exchange, deadline);
    send_by_tag(exchange, deadline);
  }
  exchange.piece.sums = {};  // the caller's array
}

void SliceExchange::begin_gather(const Piece& piece, const float* values, Instant deadline) {
  Exchange& exchange = next_exchange(piece);
  const int me = group_.rank();
  const Part part = parts_of(exchange, me).front();
  float* const residual = piece.mean_residuals.empty() ? nullptr : piece.mean_residuals[part.slice];
  codec_->encode_mean(step_, part.range, values, residual, mean_of(exchange, me));
  gather(exchange, deadline);
  ++summed_;
}

// All means are on their way before the first is waited for; what has come back by then is decoded meanwhile.
Status SliceExchange::wait(Instant deadline, std::vector<int>& suspects) {
  for (; summed_ < begun_; ++summed_) {
    MUSTER_TRY(sum_slices(exchanges_[summed_], deadline, suspects));
    for (; taken_ < summed_ && exchanges_[taken_].gathering.test(); ++taken_)
      MUSTER_TRY(take_means(exchanges_[taken_], suspects));
  }
  for (; taken_ < begun_; ++taken_) MUSTER_TRY(take_means(exchanges_[taken_], suspects));
  return ok();
}

void SliceExchange::wait_for_operations() {
  for (const Exchange& exchange : exchanges_) {
    for (const Work& work : exchange.transfers) (void)work.wait();
    (void)exchange.gathering.wait();
  }
}

SliceExchange::Exchange& SliceExchange::next_exchange(const Piece& piece) {
  if (begun_ == exchanges_.size()) exchanges_.emplace_back();
  Exchange& exchange = exchanges_[begun_++];
  exchange.piece = piece;
  exchange.transfers.clear();
  exchange.gathering = Work();
  measure(exchange);
  exchange.means.resize(exchange.offsets.back());
  return exchange;
}

// Once for a piece: with many ranks, sizes that each use works out anew would cost more than the encoding.
void SliceExchange::measure(Exchange& exchange) const {
  exchange.messages.clear();
  exchange.sizes.clear();
  exchange.offsets.assign(1, 0);
  for (const ElementRange slice : exchange.piece.slices) {
    const bool is_sent = slice.size() > 0 || !exchange.piece.skips_empty;
    exchange.messages.push_back(is_sent ? codec_->message_bytes(slice.size()) : 0);
  }
  for (const std::vector<int>& slices : owners_.slices) {
    size_t size = 0;
    for (const int slice : slices) size += exchange.messages[static_cast<size_t>(slice)];
    exchange.sizes.push_back(size);
    exchange.offsets.push_back(exchange.offsets.back() + size);
  }
  exchange.longest = std::ranges::max(exchange.sizes);
}

std::vector<SliceExchange::Part> SliceExchange::parts_of(const Exchange& exchange, int rank) const {
  std::vector<Part> parts;
  size_t offset = 0;
  for (const int slice : owners_.slices[static_cast<size_t>(rank)]) {
    const auto index = static_cast<size_t>(slice);
    if (exchange.messages[index] == 0) continue;
    parts.push_back({exchange.piece.slices[index], index, offset, exchange.messages[index]});
    offset += exchange.messages[index];
  }
  return parts;
}

void SliceExchange::resize_lane_buffers(Exchange& exchange) {
  const int me = group_.rank();
  exchange.outgoing.resize(outgoing_offset(exchange, group_.size()) * lanes_of(me).size());
  exchange.incoming.resize(slot_bytes(exchange, me) * static_cast<size_t>(lanes_));
}

// A rank's slices of the mean, encoded.
MutableByteSpan SliceExchange::mean_of(Exchange& exchange, int rank) {
  return MutableByteSpan(exchange.means)
      .subspan(exchange.offsets[static_cast<size_t>(rank)], message_bytes(exchange, rank));
}

// Where the lanes of a rank are among those that come for this rank's slices.
MutableByteSpan SliceExchange::incoming_of(Exchange& exchange, int rank) {
  const size_t bytes = slot_bytes(exchange, group_.rank());
  return MutableByteSpan(exchange.incoming)
      .subspan(lanes_before_[static_cast<size_t>(rank)] * bytes, lanes_of(rank).size() * bytes);
}

// What a lane has in `outgoing` before it comes to `rank`; for the number of ranks, all that it has there.
size_t SliceExchange::outgoing_offset(const Exchange& exchange, int rank) const {
  if (way_ == Way::kInCommon) return static_cast<size_t>(rank) * exchange.longest;
  const int me = group_.rank();
  return exchange.offsets[static_cast<size_t>(rank)] - (rank > me ? message_bytes(exchange, me) : 0);
}

// Where this rank's lanes are, as far as they are in the slices of `rank`; its own go nowhere by tag.
MutableByteSpan SliceExchange::outgoing_of(Exchange& exchange, int rank) {
  const int me = group_.rank();
  if (way_ == Way::kByTag && rank == me) return incoming_of(exchange, me);
  const size_t lanes = lanes_of(me).size();
  return MutableByteSpan(exchange.outgoing)
      .subspan(outgoing_offset(exchange, rank) * lanes, slot_bytes(exchange, rank) * lanes);
}

void SliceExchange::receive_by_tag(Exchange& exchange, Instant deadline) {
  for (int rank = 0; rank < group_.size(); ++rank) {
    const MutableByteSpan block = incoming_of(exchange, rank);
    if (rank == group_.rank() || block.empty()) continue;
    exchange.transfers.push_back(
        group_.recv(block.data(), block.size(), DType::kUInt8, rank, kLaneMessageTag, deadline));
  }
}

// For the next rank first, so that not all begin with the same one.
void SliceExchange::send_by_tag(Exchange& exchange, Instant deadline) {
  const int me = group_.rank();
  if (lanes_of(me).empty()) return;
  for (int i = 1; i < group_.size(); ++i) {
    const int rank = (me + i) % group_.size();
    const MutableByteSpan block = outgoing_of(exchange, rank);
    encode_lanes(exchange, rank, block);
    if (block.empty()) continue;
    exchange.transfers.push_back(
        group_.send(block.data(), block.size(), DType::kUInt8, rank, kLaneMessageTag, deadline));
  }
  encode_lanes(exchange, me, outgoing_of(exchange, me));
}

void SliceExchange::exchange_in_common(Exchange& exchange, Instant deadline) {
  for (int rank = 0; rank < group_.size(); ++rank) encode_lanes(exchange, rank, outgoing_of(exchange, rank));
  exchange.transfers.push_back(group_.all_to_all(exchange.outgoing.data(), exchange.incoming.data(),
                                                 slot_bytes(exchange, group_.rank()), DType::kUInt8, deadline,
                                                 agreement_));
}

// This rank's lanes, as far as they are in the slices of `rank`.
void SliceExchange::encode_lanes(const Exchange& exchange, int rank, MutableByteSpan block) {
  const Piece& piece = exchange.piece;
  const std::vector<int>& lanes = lanes_of(group_.rank());
  const size_t slot = slot_bytes(exchange, rank);
  for (const Part& part : parts_of(exchange, rank)) {
    const size_t offset = part.range.begin - piece.first;
    for (size_t i = 0; i < piece.sums.size(); ++i) {
      codec_->encode_lane(step_, lanes[i], part.range, piece.sums[i] + offset,
                          piece.residuals.empty() ? nullptr : piece.residuals[i] + offset,
                          block.subspan(i * slot + part.offset, part.bytes));
      lane_elements_ += part.range.size();
    }
  }
}

void SliceExchange::gather(Exchange& exchange, Instant deadline) {
  exchange.gathering = group_.all_gather_v(mean_of(exchange, group_.rank()).data(), exchange.means.data(),
                                           exchange.sizes, DType::kUInt8, deadline, agreement_);
}

Status SliceExchange::sum_slices(Exchange& exchange, Instant deadline, std::vector<int>& suspects) {
  for (const Work& work : exchange.transfers) MUSTER_TRY(finished(work, suspects));
  const Piece& piece = exchange.piece;
  const int me = group_.rank();
  for (const Part& part : parts_of(exchange, me)) {
    MUSTER_ASSIGN(const std::vector<codec::Planes> lanes, open_lanes(exchange, part, suspects));
    if (piece.first_half) {
      codec_->sum_lanes(step_, part.range, lanes, piece.sum);
      return ok();
    }
    float* const residual = piece.mean_residuals.empty() ? nullptr : piece.mean_residuals[part.slice];
    codec_->encode_mean(step_, part.range, lanes, residual,
                        mean_of(exchange, me).subspan(part.offset, part.bytes));
    mean_elements_ += part.range.size();
  }
  gather(exchange, deadline);
  return ok();
}

// By lane.
Result<std::vector<codec::Planes>> SliceExchange::open_lanes(const Exchange& exchange, const Part& part,
                                                             std::vector<int>& suspects) {
  const size_t slot = slot_bytes(exchange, group_.rank());
  std::vector<codec::Planes> planes(static_cast<size_t>(lanes_));
  for (int rank = 0; rank < group_.size(); ++rank) {
    size_t place = lanes_before_[static_cast<size_t>(rank)];
    for (const int lane : lanes_of(rank)) {
      const auto message = ByteSpan(exchange.incoming).subspan(place++ * slot + part.offset, part.bytes);
      MUSTER_ASSIGN(planes[static_cast<size_t>(lane)], opened(lane, part.range, rank, message, suspects));
    }
  }
  return planes;
}

Status SliceExchange::take_means(Exchange& exchange, std::vector<int>& suspects) {
  const Piece& piece = exchange.piece;
  if (piece.first_half) return ok();
  MUSTER_TRY(finished(exchange.gathering, suspects));
  for (int rank = 0; rank < group_.size(); ++rank) {
    for (const Part& part : parts_of(exchange, rank)) {
      const auto message = mean_of(exchange, rank).subspan(part.offset, part.bytes);
      MUSTER_ASSIGN(const codec::Planes planes, opened(lanes_, part.range, rank, message, suspects));
      codec_->decode_mean(step_, part.range, planes, piece.mean + (part.range.begin - piece.first));
    }
  }
  return ok();
}

// What is wrong here is right elsewhere: without being told, the others would wait for this rank.
Result<codec::Planes> SliceExchange::opened(int lane, ElementRange range, int rank, ByteSpan message,
                                            std::vector<int>& suspects) {
  auto planes = codec_->open(step_, lane, range, rank, message);
  if (!planes.ok()) {
    group_.revoke(Error{ErrorCode::kReconfigure, planes.error().message}, Group::Tell::kPeers);
    suspects = {rank};
  }
  return planes;
}

}  // namespace muster
