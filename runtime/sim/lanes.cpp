// Who computes what of a step: each process divides the lanes by the view that it knows, with the function
// that runs divide them with (Run::entered_new_view), and computes the microbatches of its own.
#include <algorithm>

#include "runtime/sim/world.h"

namespace muster::sim {

// Fewer lanes than ranks, too: then some compute nothing. From numbers of its own, so that all else comes as
// it would.
void World::choose_lanes() {
  SeededRandom own(mix64(options.seed ^ 0x1a9e5));
  lanes = static_cast<int>(1 + own.below(16));
  microbatches = lanes * static_cast<int>(1 + own.below(3));
}

void World::take_lanes(Process& process, const View& view) {
  std::vector<LaneRange>& division = lane_divisions[view.members.size()];
  if (division.empty()) division = assign_lanes(lanes, static_cast<int>(view.members.size()));
  const auto rank = view.rank_of(process.id);
  expect(rank.has_value(), named(process.id) + " is in a view that does not name it");
  process.lanes = rank ? division[*rank] : LaneRange{};
}

void World::compute_microbatches(const Process& process, Group::Reduction& reduction) const {
  reduction.taken.resize(static_cast<size_t>(microbatches));
  const int of_lane = microbatches / lanes;
  for (int i = process.lanes.begin * of_lane; i < process.lanes.end * of_lane; ++i)
    ++reduction.taken[static_cast<size_t>(i)];
}

// 20: each microbatch exactly once, under the one generation that the reduction belongs to.
void World::check_microbatches(const Group::Reduction& reduction, Version version) {
  const bool once = std::ranges::all_of(reduction.taken, [](uint32_t times) { return times == 1; });
  if (once && reduction.taken.size() == static_cast<size_t>(microbatches)) return;
  for (size_t i = 0; i < reduction.taken.size(); ++i) {
    expect(reduction.taken[i] == 1, "step " + std::to_string(version) + " has microbatch " +
                                        std::to_string(i) + " " + std::to_string(reduction.taken[i]) +
                                        " times");
  }
}

}  // namespace muster::sim
