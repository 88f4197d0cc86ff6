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

SliceExchange::SliceExchange(Group& group, std::vector<LaneRange> assignment, Way way)
    : group_(group),
      assignment_(std::move(assignment)),
      lanes_(std::ranges::max(assignment_, {}, &LaneRange::end).end),
      way_(way) {}

void SliceExchange::restart(const LaneCodec& codec, uint64_t step, uint64_t agreement) {
  wait_for_operations();
  codec_ = &codec;
  step_ = step;
  agreement_ = agreement;
  begun_ = summed_ = taken_ = 0;
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
  codec_->encode_mean(step_, slice(exchange, me), values, piece.mean_residual, mean_of(exchange, me));
  gather(exchange, deadline);
  ++summed_;
}

// All means are on their way before the first is waited for; what has come back by then is decoded meanwhile.
Status SliceExchange::wait(Instant deadline, std::vector<int>& suspects) {
  for (; summed_ < begun_; ++summed_) {
    MUSTER_TRY(sum_slice(exchanges_[summed_], deadline, suspects));
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
  exchange.sizes.clear();
  exchange.offsets.assign(1, 0);
  for (const ElementRange slice : exchange.piece.slices) {
    exchange.sizes.push_back(codec_->message_bytes(slice.size()));
    exchange.offsets.push_back(exchange.offsets.back() + exchange.sizes.back());
  }
  exchange.longest = std::ranges::max(exchange.sizes);
}

void SliceExchange::resize_lane_buffers(Exchange& exchange) {
  const int me = group_.rank();
  exchange.outgoing.resize(outgoing_offset(exchange, group_.size()) *
                           static_cast<size_t>(lanes_of(me).size()));
  exchange.incoming.resize(slot_bytes(exchange, me) * static_cast<size_t>(lanes_));
}

// A rank's slice of the mean, encoded.
MutableByteSpan SliceExchange::mean_of(Exchange& exchange, int rank) {
  return MutableByteSpan(exchange.means)
      .subspan(exchange.offsets[static_cast<size_t>(rank)], message_bytes(exchange, rank));
}

// Where the lanes of a rank are among those that come for this rank's slice.
MutableByteSpan SliceExchange::incoming_of(Exchange& exchange, int rank) {
  const size_t bytes = slot_bytes(exchange, group_.rank());
  const LaneRange lanes = lanes_of(rank);
  return MutableByteSpan(exchange.incoming)
      .subspan(static_cast<size_t>(lanes.begin) * bytes, static_cast<size_t>(lanes.size()) * bytes);
}

// What a lane has in `outgoing` before it comes to `rank`; for the number of ranks, all that it has there.
size_t SliceExchange::outgoing_offset(const Exchange& exchange, int rank) const {
  if (way_ == Way::kInCommon) return static_cast<size_t>(rank) * exchange.longest;
  const int me = group_.rank();
  return exchange.offsets[static_cast<size_t>(rank)] - (rank > me ? message_bytes(exchange, me) : 0);
}

// Where this rank's lanes are, as far as they are in the slice of `rank`; its own go nowhere by tag.
MutableByteSpan SliceExchange::outgoing_of(Exchange& exchange, int rank) {
  const int me = group_.rank();
  if (way_ == Way::kByTag && rank == me) return incoming_of(exchange, me);
  const auto lanes = static_cast<size_t>(lanes_of(me).size());
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
  if (lanes_of(me).size() == 0) return;
  for (int i = 1; i < group_.size(); ++i) {
    const int rank = (me + i) % group_.size();
    const MutableByteSpan block = outgoing_of(exchange, rank);
    encode_lanes(exchange, rank, block);
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

// This rank's lanes, as far as they are in the slice of `rank`.
void SliceExchange::encode_lanes(const Exchange& exchange, int rank, MutableByteSpan block) {
  const Piece& piece = exchange.piece;
  const ElementRange range = slice(exchange, rank);
  const size_t offset = range.begin - piece.first, slot = slot_bytes(exchange, rank);
  float* const residual = piece.residual != nullptr ? piece.residual + offset : nullptr;
  for (size_t i = 0; i < piece.sums.size(); ++i) {
    codec_->encode_lane(step_, lanes_of(group_.rank()).begin + static_cast<int>(i), range,
                        piece.sums[i] + offset, residual,
                        block.subspan(i * slot, message_bytes(exchange, rank)));
  }
}

void SliceExchange::gather(Exchange& exchange, Instant deadline) {
  exchange.gathering = group_.all_gather_v(mean_of(exchange, group_.rank()).data(), exchange.means.data(),
                                           exchange.sizes, DType::kUInt8, deadline, agreement_);
}

Status SliceExchange::sum_slice(Exchange& exchange, Instant deadline, std::vector<int>& suspects) {
  for (const Work& work : exchange.transfers) MUSTER_TRY(finished(work, suspects));
  MUSTER_ASSIGN(const std::vector<codec::Planes> lanes, open_lanes(exchange, suspects));
  const Piece& piece = exchange.piece;
  const int me = group_.rank();
  if (piece.first_half) {
    codec_->sum_lanes(step_, slice(exchange, me), lanes, piece.sum);
    return ok();
  }
  codec_->encode_mean(step_, slice(exchange, me), lanes, piece.mean_residual, mean_of(exchange, me));
  gather(exchange, deadline);
  return ok();
}

Result<std::vector<codec::Planes>> SliceExchange::open_lanes(const Exchange& exchange,
                                                             std::vector<int>& suspects) {
  const int me = group_.rank();
  const size_t bytes = message_bytes(exchange, me), slot = slot_bytes(exchange, me);
  std::vector<codec::Planes> planes;
  for (int rank = 0; rank < group_.size(); ++rank) {
    for (int lane = lanes_of(rank).begin; lane < lanes_of(rank).end; ++lane) {
      const auto message = ByteSpan(exchange.incoming).subspan(static_cast<size_t>(lane) * slot, bytes);
      MUSTER_ASSIGN(planes.emplace_back(), opened(lane, slice(exchange, me), rank, message, suspects));
    }
  }
  return planes;
}

Status SliceExchange::take_means(Exchange& exchange, std::vector<int>& suspects) {
  const Piece& piece = exchange.piece;
  if (piece.first_half) return ok();
  MUSTER_TRY(finished(exchange.gathering, suspects));
  for (int rank = 0; rank < group_.size(); ++rank) {
    const ElementRange range = slice(exchange, rank);
    MUSTER_ASSIGN(const codec::Planes planes, opened(lanes_, range, rank, mean_of(exchange, rank), suspects));
    codec_->decode_mean(step_, range, planes, piece.mean + (range.begin - piece.first));
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
