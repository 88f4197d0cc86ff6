// How encoded vectors travel: the part that the canonical reduction (compressed_reduction.h) and the fast
// mode's operations (compressed_all_reduce.h) have in common.
//
// A piece of the vector is cut in slices, at grains of the codec, of which each rank has one or several. In
// begin() every rank encodes its lanes and sends each rank what is in its slices; in wait() every rank sums
// its slices over all lanes, encodes the mean, and all gather the encoded slices and decode them, the owner
// included. Several pieces are under
// way: one is encoded, or summed, while those before it are on the wire.
//
// A message that is damaged or not the expected one ends all as a failed operation does: the group is
// revoked, on all ranks, with a sentence that names the sender.
//
// INVARIANT: what is under way reads and writes this object's buffers only. The caller's memory is touched
// within its calls.
#pragma once

#include <span>
#include <vector>

#include "collectives/group.h"
#include "collectives/lane_codec.h"
#include "collectives/lane_feedback.h"

namespace muster {

// Who has which lanes, and which slices, each by rank. Each is in one list.
struct SliceOwners {
  LaneLists lanes;
  LaneLists slices;
};
// A slice for each rank, in their order.
SliceOwners with_own_slices(LaneLists lanes);

// The tag of the lanes' messages; they are all that is sent and received in a reducer's group.
constexpr int32_t kLaneMessageTag = 1;

// One piece of the vector, as a rank takes part in it. Pointers begin with element `first`, but for
// mean_residuals and sum, which begin with this rank's slice. Null where there is none, or nothing in it.
struct Piece {
  std::vector<ElementRange> slices;
  size_t first = 0;
  std::span<const float* const> sums;  // of this rank's lanes
  std::vector<float*> residuals;       // the same, where there is error feedback; else empty
  std::vector<float*> mean_residuals;  // of all slices, likewise; of this rank's they are read
  float* mean = nullptr;               // result, of all slices
  float* sum = nullptr;                // result of the first half
  bool skips_empty =
      false;  // nothing travels for a slice without elements; else ranks are told of other sizes
  bool first_half = false;  // ends with this rank's slice of the sum: nothing is gathered
};

class SliceExchange {
 public:
  // How lanes get to the owners of slices: each by itself with a tag, whatever their numbers, or in one
  // all_to_all, which needs one lane and one slice on each rank, and takes its place in the order of the
  // group's operations.
  enum class Way : uint8_t { kByTag, kInCommon };

  SliceExchange(Group& group, SliceOwners owners, Way way);
  ~SliceExchange() { wait_for_operations(); }
  SliceExchange(const SliceExchange&) = delete;
  SliceExchange& operator=(const SliceExchange&) = delete;

  // Begins anew, with no piece. Waits for what is under way. `codec` stays until the next restart or the end;
  // `agreement`: see Group::all_to_all.
  void restart(const LaneCodec& codec, uint64_t step, uint64_t agreement = 0);

  // The next piece. `mean` and `sum` are written in wait().
  void begin(const Piece& piece, Instant deadline);

  // The next piece, of which only the way back is left: `values` is this rank's slice of the mean.
  void begin_gather(const Piece& piece, const float* values, Instant deadline);

  // Ends all pieces. It issues operations, too, for which `deadline` is. Errors: the first failed
  // operation's, see Work::wait, and LaneCodec::open's; `suspects` gets its suspects.
  Status wait(Instant deadline, std::vector<int>& suspects);

  // Elements that this rank has encoded since the last restart, of its lanes and of the mean.
  size_t lane_elements() const { return lane_elements_; }
  size_t mean_elements() const { return mean_elements_; }

 private:
  // A piece on its way. The buffers stay from step to step: its place and size are the same in each.
  struct Exchange {
    Piece piece;
    std::vector<size_t> messages;  // how long that of each slice is
    std::vector<size_t> sizes;     // of all of a rank's slices
    std::vector<size_t> offsets;   // where they begin, one after the other, and where the last one ends
    size_t longest = 0;            // of them
    ByteBuffer outgoing;           // this rank's lanes, for each rank
    ByteBuffer incoming;           // all lanes of this rank's slices, in the order of ranks
    ByteBuffer means;              // of all slices, encoded, in the order of ranks
    std::vector<Work> transfers;   // of the lanes
    Work gathering;                // of the means
  };

  // One of a rank's slices, and where its message lies among those of the rank's.
  struct Part {
    ElementRange range;
    size_t slice = 0;
    size_t offset = 0;
    size_t bytes = 0;
  };

  const std::vector<int>& lanes_of(int rank) const { return owners_.lanes[static_cast<size_t>(rank)]; }
  std::vector<Part> parts_of(const Exchange& exchange, int rank) const;
  static size_t message_bytes(const Exchange& exchange, int rank) {
    return exchange.sizes[static_cast<size_t>(rank)];
  }
  // In an all_to_all all blocks are as long as the longest; what a shorter message leaves is not read.
  size_t slot_bytes(const Exchange& exchange, int rank) const {
    return way_ == Way::kByTag ? message_bytes(exchange, rank) : exchange.longest;
  }
  size_t outgoing_offset(const Exchange& exchange, int rank) const;
  void wait_for_operations();
  Exchange& next_exchange(const Piece& piece);
  void measure(Exchange& exchange) const;
  void resize_lane_buffers(Exchange& exchange);
  MutableByteSpan mean_of(Exchange& exchange, int rank);
  MutableByteSpan incoming_of(Exchange& exchange, int rank);
  MutableByteSpan outgoing_of(Exchange& exchange, int rank);
  void receive_by_tag(Exchange& exchange, Instant deadline);
  void send_by_tag(Exchange& exchange, Instant deadline);
  void exchange_in_common(Exchange& exchange, Instant deadline);
  void encode_lanes(const Exchange& exchange, int rank, MutableByteSpan block);
  void gather(Exchange& exchange, Instant deadline);
  Status sum_slices(Exchange& exchange, Instant deadline, std::vector<int>& suspects);
  Result<std::vector<codec::Planes>> open_lanes(const Exchange& exchange, const Part& part,
                                                std::vector<int>& suspects);
  Status take_means(Exchange& exchange, std::vector<int>& suspects);
  Result<codec::Planes> opened(int lane, ElementRange range, int rank, ByteSpan message,
                               std::vector<int>& suspects);

  Group& group_;
  const SliceOwners owners_;
  std::vector<size_t> lanes_before_;  // how many the ranks before each have
  const int lanes_;
  const Way way_;
  const LaneCodec* codec_ = nullptr;
  uint64_t step_ = 0;
  uint64_t agreement_ = 0;
  std::vector<Exchange> exchanges_;
  size_t begun_ = 0;   // of the pieces
  size_t summed_ = 0;  // their means are here, or on their way
  size_t taken_ = 0;   // they are decoded
  size_t lane_elements_ = 0;
  size_t mean_elements_ = 0;
};

}  // namespace muster
