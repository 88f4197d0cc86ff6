#include "collectives/nccl/nccl_compressed.h"

#include <string>

#include "collectives/nccl/nccl_canonical.h"
#include "runtime/base/bytes.h"

namespace muster {
namespace {

constexpr size_t kAlignment = 16;  // of planes, and of decoded lanes

// Both planes of an encoding.
struct Area {
  uint8_t* scales = nullptr;
  uint8_t* payload = nullptr;
  codec::Planes planes() const { return {scales, payload}; }
};

// How much of everything there is on a rank.
struct Sizes {
  codec::Shape shape;
  size_t own_lanes, other_lanes;
  size_t range, slice;  // elements

  Sizes(NcclPlace place, const LaneCodec& codec, std::span<const LaneRange> assignment, ElementRange all)
      : shape(codec::shape_of(codec.id())),
        own_lanes(static_cast<size_t>(assignment[static_cast<size_t>(place.rank)].size())),
        other_lanes(static_cast<size_t>(codec.lanes()) - own_lanes),
        range(all.size()),
        slice(codec.slice(all, place.rank, place.world).size()) {}

  size_t scales_bytes(size_t count) const { return codec::scales_bytes_of(shape, count); }
  size_t payload_bytes(size_t count) const { return codec::payload_bytes_of(shape, count); }
  size_t area_bytes(size_t count) const {
    return round_up(scales_bytes(count), kAlignment) + round_up(payload_bytes(count), kAlignment);
  }
  size_t lane_bytes() const { return round_up(slice * sizeof(float), kAlignment); }
  // This rank's lanes, the others' in its slice, all of these decoded, and the mean.
  size_t total_bytes() const {
    return (own_lanes + 1) * area_bytes(range) + other_lanes * area_bytes(slice) +
           (own_lanes + other_lanes) * lane_bytes();
  }
};

// Hands out the scratch piece by piece.
class Scratch {
 public:
  Scratch(const Sizes& sizes, float* memory) : sizes_(sizes), next_(reinterpret_cast<uint8_t*>(memory)) {}
  Area area(size_t count) {
    uint8_t* const begin = next_;
    next_ += sizes_.area_bytes(count);
    return {begin, begin + round_up(sizes_.scales_bytes(count), kAlignment)};
  }
  float* lane() {
    uint8_t* const begin = next_;
    next_ += sizes_.lane_bytes();
    return reinterpret_cast<float*>(begin);
  }

 private:
  const Sizes& sizes_;
  uint8_t* next_;
};

class Builder {
 public:
  Builder(NcclPlace place, const NcclCompressed& task)
      : place_(place),
        task_(task),
        codec_(task.codec),
        sizes_(place, codec_, task.assignment, task.range),
        own_(slice_of(place.rank)) {
    Scratch scratch(sizes_, task.scratch);
    for (size_t i = 0; i < sizes_.own_lanes; ++i) outgoing_.push_back(scratch.area(sizes_.range));
    mean_ = scratch.area(sizes_.range);
    for (int rank = 0; rank < place.world; ++rank) take_lanes_of(rank, scratch);
    for (int lane = 0; lane < codec_.lanes(); ++lane) decoded_.push_back(scratch.lane());
  }

  NcclStages build(TreeFold fold, float* mean) const {
    NcclStages stages;
    stages.push_back({{}, encoding()});
    stages.push_back({exchange(), {}});
    if (own_.size() > 0) stages.push_back({{}, summing(fold)});
    stages.push_back({spreading(), {}});
    const codec::Decode last = codec_.decoding(task_.step, codec_.lanes(), task_.range, mean_.planes(), mean);
    stages.push_back({{}, [id = codec_.id(), last](const CudaTable& table, void* stream) {
                        return last.count == 0 ? 0 : table.codec_decode(id, &last, stream);
                      }});
    return stages;
  }

 private:
  ElementRange slice_of(int rank) const { return codec_.slice(task_.range, rank, place_.world); }
  Area part_of(const Area& whole, ElementRange slice) const {
    const size_t at = slice.begin - task_.range.begin;
    return {whole.scales + sizes_.scales_bytes(at), whole.payload + sizes_.payload_bytes(at)};
  }

  // Where the lanes of this rank's slice are: its own among what it sends, the others' as they come.
  void take_lanes_of(int rank, Scratch& scratch) {
    for (int i = 0; i < task_.assignment[static_cast<size_t>(rank)].size(); ++i) {
      incoming_.push_back(rank == place_.rank ? part_of(outgoing_[static_cast<size_t>(i)], own_)
                                              : scratch.area(sizes_.slice));
    }
  }

  DeviceWork encoding() const {
    std::vector<codec::Encode> tasks;
    const int first = task_.assignment[static_cast<size_t>(place_.rank)].begin;
    for (size_t i = 0; i < outgoing_.size() && sizes_.range > 0; ++i) {
      tasks.push_back(codec_.encoding(task_.step, first + static_cast<int>(i), task_.range, task_.sums[i],
                                      outgoing_[i].scales, outgoing_[i].payload));
    }
    return [id = codec_.id(), tasks = std::move(tasks)](const CudaTable& table, void* stream) {
      int code = 0;
      for (size_t i = 0; i < tasks.size() && code == 0; ++i) code = table.codec_encode(id, &tasks[i], stream);
      return code;
    };
  }

  // A part of both planes, as bytes.
  void add(NcclCalls& calls, NcclKind kind, const Area& area, size_t count, int peer) const {
    const bool sends = kind != NcclKind::kReceive, receives = kind != NcclKind::kSend;
    for (const auto& [plane, bytes] : {std::pair{area.scales, sizes_.scales_bytes(count)},
                                       std::pair{area.payload, sizes_.payload_bytes(count)}}) {
      if (bytes > 0)
        calls.push_back({kind, sends ? plane : nullptr, receives ? plane : nullptr, bytes, peer});
    }
  }

  NcclCalls exchange() const {
    NcclCalls calls;
    size_t lane = 0;
    for (int peer = 0; peer < place_.world; ++peer) {
      const ElementRange theirs = slice_of(peer);
      for (size_t i = 0; i < outgoing_.size() && peer != place_.rank; ++i)
        add(calls, NcclKind::kSend, part_of(outgoing_[i], theirs), theirs.size(), peer);
      for (int i = 0; i < task_.assignment[static_cast<size_t>(peer)].size(); ++i, ++lane) {
        if (peer != place_.rank) add(calls, NcclKind::kReceive, incoming_[lane], own_.size(), peer);
      }
    }
    return calls;
  }

  // The mean of this rank's slice, from the lanes' planes.
  DeviceWork summing(TreeFold fold) const {
    std::vector<codec::Decode> lanes;
    for (size_t lane = 0; lane < decoded_.size(); ++lane) {
      lanes.push_back(codec_.decoding(task_.step, static_cast<int>(lane), own_, incoming_[lane].planes(),
                                      decoded_[lane]));
      fold.leaves[lane] = decoded_[lane];
    }
    fold.target = decoded_[0];
    fold.count = own_.size();
    const Area to = part_of(mean_, own_);
    const codec::Encode mean =
        codec_.encoding(task_.step, codec_.lanes(), own_, fold.target, to.scales, to.payload);
    return [id = codec_.id(), lanes = std::move(lanes), fold, mean](const CudaTable& table, void* stream) {
      int code = 0;
      for (size_t i = 0; i < lanes.size() && code == 0; ++i) code = table.codec_decode(id, &lanes[i], stream);
      if (code == 0) code = table.tree_fold(&fold, stream);
      return code == 0 ? table.codec_encode(id, &mean, stream) : code;
    };
  }

  NcclCalls spreading() const {
    NcclCalls calls;
    for (int root = 0; root < place_.world && place_.world > 1; ++root) {
      const ElementRange slice = slice_of(root);
      add(calls, NcclKind::kBroadcast, part_of(mean_, slice), slice.size(), root);
    }
    return calls;
  }

  const NcclPlace place_;
  const NcclCompressed& task_;
  const LaneCodec& codec_;
  const Sizes sizes_;
  const ElementRange own_;
  std::vector<Area> outgoing_;   // this rank's lanes, of the whole range
  std::vector<Area> incoming_;   // all lanes, of this rank's slice
  std::vector<float*> decoded_;  // the same
  Area mean_;                    // of the whole range
};

Status check(NcclPlace place, const NcclCompressed& task) {
  const auto misuse = [&](const std::string& text) {
    return Error{ErrorCode::kMisuse,
                 "compressed reduction on rank " + std::to_string(place.rank) + ": " + text};
  };
  if (task.assignment.size() != static_cast<size_t>(place.world))
    return misuse("lanes are assigned to " + std::to_string(task.assignment.size()) + " ranks of " +
                  std::to_string(place.world));
  if (task.codec.lanes() > kTreeLeavesMax)
    return misuse(std::to_string(task.codec.lanes()) + " lanes; the kernel takes up to " +
                  std::to_string(kTreeLeavesMax));
  int next = 0;
  for (const LaneRange& lanes : task.assignment) {
    if (lanes.size() > 0 && lanes.begin != next) return misuse("the lanes are not in the order of ranks");
    next = lanes.size() > 0 ? lanes.end : next;
  }
  if (next != task.codec.lanes()) return misuse("not all lanes are assigned");
  const LaneRange own = task.assignment[static_cast<size_t>(place.rank)];
  if (task.sums.size() != static_cast<size_t>(own.size()))
    return misuse(std::to_string(task.sums.size()) + " sums; it has " + std::to_string(own.size()) +
                  " lanes");
  const size_t needed = Sizes(place, task.codec, task.assignment, task.range).total_bytes() / sizeof(float);
  if (task.scratch_count < needed)
    return misuse(std::to_string(task.scratch_count) + " floats of scratch; it needs " +
                  std::to_string(needed));
  return ok();
}

}  // namespace

size_t compressed_scratch_count(NcclPlace place, const LaneCodec& codec,
                                std::span<const LaneRange> assignment, size_t count) {
  return Sizes(place, codec, assignment, {0, count}).total_bytes() / sizeof(float);
}

Result<NcclStages> compressed_stages(NcclPlace place, const NcclCompressed& task, float* mean) {
  MUSTER_TRY(check(place, task));
  MUSTER_ASSIGN(const TreeFold fold, fold_along(place, task.codec.plan(), task.codec.scale()));
  return Builder(place, task).build(fold, mean);
}

}  // namespace muster
