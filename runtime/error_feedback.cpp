#include "runtime/error_feedback.h"

#include <algorithm>

#include "kernels/codec.h"
#include "runtime/base/check.h"

namespace muster {
namespace {

constexpr const char* kLanes = "muster.error_feedback.lanes";
constexpr const char* kMean = "muster.error_feedback.mean";

}  // namespace

LaneLists lanes_by_holder(const control::ShardMap& map, size_t ranks) {
  LaneLists lists;
  for (size_t rank = 0; rank < ranks; ++rank) {
    std::vector<int>& lanes = lists.emplace_back();
    for (const uint32_t shard : map.held_by(static_cast<uint32_t>(rank)))
      lanes.push_back(static_cast<int>(shard));
  }
  return lists;
}

bool ErrorFeedback::is_tensor(const std::string& name) { return name == kLanes || name == kMean; }

Status ErrorFeedback::check_state(const State& state, uint64_t elements) {
  const std::string feedback = "error_feedback is " + std::to_string(elements);
  if (state.on_device()) {
    return Error{ErrorCode::kMisuse, feedback +
                                         ", and a tensor of the state is in a device's memory; a state "
                                         "beside which residuals are kept lies in the host's"};
  }
  if (state.sharded().empty()) return ok();
  return Error{ErrorCode::kMisuse, feedback + ", and tensor '" + state.sharded().tensors()[0].name +
                                       "' is sharded; a run has one or the other: register it replicated, "
                                       "or give 0"};
}

// The mean's rows are what its parts are cut at.
Status ErrorFeedback::add_tensors(State& state, uint64_t elements, int32_t lanes) {
  const auto rows = static_cast<int64_t>((elements + codec::kGrainMax - 1) / codec::kGrainMax);
  const std::pair<const char*, std::vector<int64_t>> tensors[] = {
      {kLanes, {lanes, static_cast<int64_t>(elements)}}, {kMean, {rows, codec::kGrainMax}}};
  for (const auto& [name, shape] : tensors) {
    MUSTER_TRY(state.add_sharded(name, nullptr, DType::kFloat32, shape));
    MUSTER_TRY(state.expect(name, checkpoint::Expectation::kFree));
  }
  return ok();
}

Result<LaneFeedback*> ErrorFeedback::begin_view(LaneLists lanes_by_rank, int rank) {
  view_.reset();
  const std::vector<int>& mine = lanes_by_rank[static_cast<size_t>(rank)];
  std::erase_if(next_, [&](const auto& entry) {
    return !std::ranges::binary_search(mine, static_cast<int>(entry.first));
  });
  for (const int lane : mine) {
    const auto shard = static_cast<uint32_t>(lane);
    if (next_.contains(shard)) continue;
    MUSTER_ASSIGN(LargeBuffer buffer, LargeBuffer::allocate(tensors_.block_bytes(shard)));
    next_.emplace(shard, std::move(buffer));
  }
  view_ = std::make_unique<LaneFeedback>(elements_, std::move(lanes_by_rank), rank);
  point();
  return view_.get();
}

bool ErrorFeedback::has(control::Version step, std::span<const uint32_t> shards) const {
  if (shards.empty()) return true;
  return view_ && view_->complete(static_cast<uint64_t>(step)) &&
         std::ranges::all_of(shards, [&](uint32_t shard) {
           return std::ranges::binary_search(view_->mine(), static_cast<int>(shard));
         });
}

// What counted so far is what the next step's reduction writes over.
void ErrorFeedback::commit(control::Version step, std::span<const uint32_t> shards) {
  MUSTER_CHECK(has(step, shards), "the update of a step whose residuals are not here");
  for (const uint32_t shard : shards) tensors_.exchange(shard, next_.at(shard));
  if (view_) point();
}

void ErrorFeedback::point() {
  std::vector<LaneResiduals> residuals;
  for (const int lane : view_->mine()) {
    const uint32_t shard[] = {static_cast<uint32_t>(lane)};
    if (!tensors_.holds(*shard)) {  // the view is over
      residuals.emplace_back();
      continue;
    }
    std::byte* const next = next_.at(*shard).data();
    const std::byte* const now = tensors_.block(*shard).data();
    const auto of = [&](const char* name) {
      const std::vector<ShardPiece> pieces = tensors_.pieces(*tensors_.index_of(name), shard);
      if (pieces.empty()) return std::pair<const float*, float*>();  // of a short mean some have no part
      const std::byte* const counts = pieces.front().data;
      return std::pair(reinterpret_cast<const float*>(counts),
                       reinterpret_cast<float*>(next + (counts - now)));
    };
    const auto [of_lane, next_of_lane] = of(kLanes);
    const auto [of_mean, next_of_mean] = of(kMean);
    residuals.push_back({of_lane, next_of_lane, of_mean, next_of_mean});
  }
  view_->set(std::move(residuals));
}

}  // namespace muster
