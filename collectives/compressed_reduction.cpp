#include "collectives/compressed_reduction.h"

#include <numeric>

namespace muster {
namespace {

// One bucket on its way. The buffers stay from step to step: its place and size are the same in each.
struct Exchange {
  ElementRange bucket;
  float* mean = nullptr;
  ByteBuffer outgoing;          // this rank's lanes, for each other rank
  ByteBuffer incoming;          // all lanes of this rank's slice, in their order
  ByteBuffer means;             // of all slices, encoded, in the order of ranks
  std::vector<Work> transfers;  // of the lanes
  Work gathering;               // of the means
};

class CompressedReduction final : public BucketReduction {
 public:
  CompressedReduction(Group& group, CanonicalLayout layout, Compression compression)
      : group_(group), layout_(std::move(layout)), codec_(compression, layout_.microbatches, layout_.lanes) {}
  ~CompressedReduction() override { wait_for_operations(); }

  AccumulationPlan accumulation(LaneRange mine) const override {
    return plan_lane_accumulation(layout_.microbatches, layout_.lanes, mine);
  }
  size_t grain() const override { return codec_.grain(); }

  void begin_step(uint64_t step) override {
    wait_for_operations();
    step_ = step;
    begun_ = gathered_ = 0;
  }

  void begin(ElementRange bucket, std::span<const float* const> sums, float* mean,
             Instant deadline) override {
    Exchange& exchange = next_exchange(bucket, mean);
    receive_lanes(exchange, deadline);
    send_lanes(exchange, sums, deadline);
  }

  // All means are on their way before the first is waited for.
  Status wait(Instant deadline, std::vector<int>& suspects) override {
    for (; gathered_ < begun_; ++gathered_) MUSTER_TRY(sum_slice(exchanges_[gathered_], deadline, suspects));
    for (size_t i = 0; i < begun_; ++i) MUSTER_TRY(take_means(exchanges_[i], suspects));
    return ok();
  }

 private:
  LaneRange lanes_of(int rank) const { return layout_.assignment[static_cast<size_t>(rank)]; }
  ElementRange slice(const Exchange& exchange, int rank) const {
    return codec_.slice(exchange.bucket, rank, group_.size());
  }
  size_t message_bytes(const Exchange& exchange, int rank) const {
    return codec_.message_bytes(slice(exchange, rank).size());
  }

  void wait_for_operations() {
    for (const Exchange& exchange : exchanges_) {
      for (const Work& work : exchange.transfers) (void)work.wait();
      (void)exchange.gathering.wait();
    }
  }

  Exchange& next_exchange(ElementRange bucket, float* mean) {
    if (begun_ == exchanges_.size()) exchanges_.emplace_back();
    Exchange& exchange = exchanges_[begun_++];
    exchange.bucket = bucket;
    exchange.mean = mean;
    exchange.transfers.clear();
    exchange.gathering = Work();
    const int me = group_.rank();
    size_t outgoing = 0, means = 0;
    for (int rank = 0; rank < group_.size(); ++rank) {
      const size_t bytes = message_bytes(exchange, rank);
      means += bytes;
      if (rank != me) outgoing += bytes * static_cast<size_t>(lanes_of(me).size());
    }
    exchange.outgoing.resize(outgoing);
    exchange.incoming.resize(message_bytes(exchange, me) * static_cast<size_t>(layout_.lanes));
    exchange.means.resize(means);
    return exchange;
  }

  // Where the lanes of a rank are among those that come for this rank's slice.
  MutableByteSpan incoming_of(Exchange& exchange, int rank) {
    const size_t bytes = message_bytes(exchange, group_.rank());
    const LaneRange lanes = lanes_of(rank);
    return MutableByteSpan(exchange.incoming)
        .subspan(static_cast<size_t>(lanes.begin) * bytes, static_cast<size_t>(lanes.size()) * bytes);
  }

  void receive_lanes(Exchange& exchange, Instant deadline) {
    for (int rank = 0; rank < group_.size(); ++rank) {
      const MutableByteSpan block = incoming_of(exchange, rank);
      if (rank == group_.rank() || block.empty()) continue;
      exchange.transfers.push_back(
          group_.recv(block.data(), block.size(), DType::kUInt8, rank, kLaneMessageTag, deadline));
    }
  }

  // For the next rank first, so that not all begin with the same one.
  void send_lanes(Exchange& exchange, std::span<const float* const> sums, Instant deadline) {
    MutableByteSpan rest(exchange.outgoing);
    const int me = group_.rank();
    const auto lanes = static_cast<size_t>(lanes_of(me).size());
    if (lanes == 0) return;
    for (int i = 1; i < group_.size(); ++i) {
      const int rank = (me + i) % group_.size();
      const MutableByteSpan block = rest.first(lanes * message_bytes(exchange, rank));
      rest = rest.subspan(block.size());
      encode_lanes(exchange, rank, sums, block);
      exchange.transfers.push_back(
          group_.send(block.data(), block.size(), DType::kUInt8, rank, kLaneMessageTag, deadline));
    }
    encode_lanes(exchange, me, sums, incoming_of(exchange, me));
  }

  // This rank's lanes, as far as they are in the slice of `rank`.
  void encode_lanes(const Exchange& exchange, int rank, std::span<const float* const> sums,
                    MutableByteSpan block) {
    const ElementRange range = slice(exchange, rank);
    const size_t bytes = message_bytes(exchange, rank);
    for (size_t i = 0; i < sums.size(); ++i) {
      codec_.encode_lane(step_, lanes_of(group_.rank()).begin + static_cast<int>(i), range,
                         sums[i] + (range.begin - exchange.bucket.begin), block.subspan(i * bytes, bytes));
    }
  }

  Status sum_slice(Exchange& exchange, Instant deadline, std::vector<int>& suspects) {
    for (const Work& work : exchange.transfers) MUSTER_TRY(finished(work, suspects));
    MUSTER_ASSIGN(const std::vector<codec::Planes> lanes, open_lanes(exchange, suspects));
    std::vector<size_t> counts;
    for (int rank = 0; rank < group_.size(); ++rank) counts.push_back(message_bytes(exchange, rank));
    const int me = group_.rank();
    const size_t before = std::accumulate(counts.begin(), counts.begin() + me, size_t{0});
    const auto mean = MutableByteSpan(exchange.means).subspan(before, counts[static_cast<size_t>(me)]);
    codec_.encode_mean(step_, slice(exchange, me), lanes, mean);
    exchange.gathering =
        group_.all_gather_v(mean.data(), exchange.means.data(), counts, DType::kUInt8, deadline);
    return ok();
  }

  Result<std::vector<codec::Planes>> open_lanes(const Exchange& exchange, std::vector<int>& suspects) {
    const ElementRange range = slice(exchange, group_.rank());
    const size_t bytes = codec_.message_bytes(range.size());
    std::vector<codec::Planes> lanes;
    for (int rank = 0; rank < group_.size(); ++rank) {
      for (int lane = lanes_of(rank).begin; lane < lanes_of(rank).end; ++lane) {
        const auto message = ByteSpan(exchange.incoming).subspan(static_cast<size_t>(lane) * bytes, bytes);
        MUSTER_ASSIGN(lanes.emplace_back(), opened(lane, range, rank, message, suspects));
      }
    }
    return lanes;
  }

  Status take_means(const Exchange& exchange, std::vector<int>& suspects) {
    MUSTER_TRY(finished(exchange.gathering, suspects));
    ByteSpan rest(exchange.means);
    for (int rank = 0; rank < group_.size(); ++rank) {
      const ElementRange range = slice(exchange, rank);
      const ByteSpan message = rest.first(message_bytes(exchange, rank));
      rest = rest.subspan(message.size());
      MUSTER_ASSIGN(const codec::Planes planes, opened(layout_.lanes, range, rank, message, suspects));
      codec_.decode_mean(step_, range, planes, exchange.mean + (range.begin - exchange.bucket.begin));
    }
    return ok();
  }

  static Status finished(const Work& work, std::vector<int>& suspects) {
    Status status = work.wait();
    if (!status.ok()) suspects = work.suspects();
    return status;
  }

  // What is wrong here is right elsewhere: without being told, the others would wait for this rank.
  Result<codec::Planes> opened(int lane, ElementRange range, int rank, ByteSpan message,
                               std::vector<int>& suspects) {
    auto planes = codec_.open(step_, lane, range, rank, message);
    if (!planes.ok()) {
      group_.revoke(Error{ErrorCode::kReconfigure, planes.error().message}, Group::Tell::kPeers);
      suspects = {rank};
    }
    return planes;
  }

  Group& group_;
  const CanonicalLayout layout_;
  const LaneCodec codec_;
  uint64_t step_ = 0;
  std::vector<Exchange> exchanges_;  // of all buckets, in order
  size_t begun_ = 0;                 // of the step
  size_t gathered_ = 0;              // or on their way to it
};

}  // namespace

std::unique_ptr<BucketReduction> compressed_reduction(Group& group, CanonicalLayout layout,
                                                      Compression compression) {
  return std::make_unique<CompressedReduction>(group, std::move(layout), compression);
}

}  // namespace muster
