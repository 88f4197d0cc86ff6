// Recursive halving and doubling, and Rabenseifner's all_reduce, which is one after the other.
//
// By skips around a circle, not by exclusive or: of p ranks, each holds partials of the `held` blocks that
// begin with its own, at first all p. In each round it sends the second half of them `skip` = ⌈held/2⌉ ranks
// on, whose first half they are, and adds what comes from as far back; so after ⌈log₂ p⌉ rounds it holds its
// own block, and has sent each other block once. Doubling is the same backwards. Where p is a power of two
// this is in rounds and bytes what the exchange by exclusive or is. Where it is not, that one folds p − 2^k
// ranks away first, which costs two more rounds and up to 2n more bytes, and 3-2 elimination saves part of
// it; this one needs nothing (J. L. Träff, "Optimal, Non-pipelined Reduce-scatter and Allreduce Algorithms",
// 2024). Each element is added up in one place only, so all ranks get the same bits.
//
// INVARIANT: both sides cut what they exchange into the same regions: where the blocks wrap around from the
// last to the first, and where what was added to ends.
#include <algorithm>
#include <functional>
#include <numeric>

#include "collectives/schedule_build.h"

namespace muster {

using namespace schedules;

namespace {

// Blocks are counted from this rank's own: number i is that of the rank i places on.
struct Circle {
  std::vector<int> ranks;
  int me = 0;  // place

  int size() const { return static_cast<int>(ranks.size()); }
  int block(int i) const { return (me + i) % size(); }
  int peer(int skip) const { return ranks[static_cast<size_t>(wrap(me + skip, size()))]; }
};

// Where block i lies, of a rank that counts from its own.
using Place = std::function<Region(int i)>;

// Blocks first … last − 1, in one piece.
struct Run {
  int first;
  int last;
};

// Cut before `border`, and where blocks wrap around.
std::vector<Run> runs_of(const Circle& circle, int first, int last, int border) {
  std::vector<Run> runs;
  for (int i = first; i < last; ++i) {
    if (i == first || i == border || circle.block(i) == 0) runs.push_back({i, i});
    runs.back().last = i + 1;
  }
  return runs;
}

Region joined(const Run& run, const Place& place) {
  Region region = place(run.first);
  for (int i = run.first + 1; i < run.last; ++i) region.count += place(i).count;
  return region;
}

// p, ⌈p/2⌉, ⌈p/4⌉, …, 1.
std::vector<int> blocks_held(int ranks) {
  std::vector<int> held{ranks};
  while (held.back() > 1) held.push_back((held.back() + 1) / 2);
  return held;
}

struct Halving {
  Place given;            // before anything is added
  Place sum;              // from then on; may be the same
  Region result;          // of this rank's own block
  uint64_t arriving = 0;  // in scratch: up to half of the blocks
};

// REQUIRES: more than one rank.
void reduce_by_halving(Schedule& schedule, const Circle& circle, const Halving& places) {
  const std::vector<int> held = blocks_held(circle.size());
  int summed = 0;  // blocks that something was added to
  for (size_t step = 0; step + 1 < held.size(); ++step) {
    const int skip = held[step + 1];
    const int moved = held[step] - skip;
    const Place& mine = summed == 0 ? places.given : places.sum;  // of the blocks that are added to
    Round round;
    for (const Run& run : runs_of(circle, skip, held[step], summed))
      send(round, circle.peer(skip), joined(run, run.first < summed ? places.sum : places.given));
    uint64_t arriving = places.arriving;
    for (const Run& run : runs_of(circle, 0, moved, summed - skip)) {
      const Region own = joined(run, mine);
      const Region arrived = scratch(arriving, own.count);
      arriving += own.count;
      receive(round, circle.peer(-skip), arrived);
      const bool last = skip == 1;
      fold(round, last ? places.result : joined(run, places.sum), {own, arrived}, last);
    }
    summed = std::max(summed, moved);
    schedule.rounds.push_back(std::move(round));
  }
}

// This rank's own block is in place.
void gather_by_doubling(Schedule& schedule, const Circle& circle, const Place& place) {
  const std::vector<int> held = blocks_held(circle.size());
  for (size_t step = held.size() - 1; step > 0; --step) {
    const int skip = held[step];
    Round round;
    for (const Run& run : runs_of(circle, 0, held[step - 1] - skip, 0))
      send(round, circle.peer(-skip), joined(run, place));
    for (const Run& run : runs_of(circle, skip, held[step - 1], skip))
      receive(round, circle.peer(skip), joined(run, place));
    schedule.rounds.push_back(std::move(round));
  }
}

Circle all_of(int ranks, int rank) {
  Circle circle{std::vector<int>(static_cast<size_t>(ranks)), rank};
  std::iota(circle.ranks.begin(), circle.ranks.end(), 0);
  return circle;
}

// Slices of `whole`, one for each of the circle.
Place slices_of(const Circle& circle, Region whole) {
  return [&circle, whole](int i) {
    const Slice slice = slice_of(whole.count, circle.size(), circle.block(i));
    return Region{whole.buffer, whole.piece, whole.offset + slice.offset, slice.count};
  };
}

// Elements that arrive in the first round, when most do: those of half of the circle, from this rank's on.
uint64_t arriving_most(const Circle& circle, const Place& place) {
  uint64_t count = 0;
  for (int i = 0; i < circle.size() / 2; ++i) count += place(i).count;
  return count;
}

}  // namespace

Schedule all_reduce_rabenseifner(int ranks, int rank, uint64_t count) {
  if (ranks == 1) return copy_only("Rabenseifner", count);
  const Circle circle = all_of(ranks, rank);
  const Place result = slices_of(circle, output(0, count));
  Schedule schedule{"Rabenseifner", {}, arriving_most(circle, result)};
  reduce_by_halving(schedule, circle, {slices_of(circle, input(0, count)), result, result(0), 0});
  gather_by_doubling(schedule, circle, result);
  return schedule;
}

Schedule all_reduce_rabenseifner(const Grid& grid, int rank, uint64_t count) {
  OnNode mates = on_node(grid, rank, count);
  Circle circle{{}, grid.node_of(rank)};
  for (int node = 0; node < grid.nodes; ++node) circle.ranks.push_back(grid.at(node, grid.local_of(rank)));
  const Place sum = slices_of(circle, mates.sum);
  const Place result = slices_of(circle, output(mates.slice.offset, mates.slice.count));
  const uint64_t behind = static_cast<uint64_t>(grid.locals) * mates.slice.count;
  Schedule schedule{"Rabenseifner", {std::move(mates.reduce)}, behind + arriving_most(circle, sum)};
  reduce_by_halving(schedule, circle, {sum, sum, result(0), behind});
  gather_by_doubling(schedule, circle, result);
  schedule.rounds.push_back(std::move(mates.spread));
  return schedule;
}

// Blocks that were added to lie in scratch by their number, since the output holds one block only.
Schedule reduce_scatter_halving(int ranks, int rank, uint64_t count) {
  if (ranks == 1) return copy_only("recursive halving", count);
  const Circle circle = all_of(ranks, rank);
  const auto given = [&](int i) { return input(static_cast<uint64_t>(circle.block(i)) * count, count); };
  const auto sum = [&](int i) { return scratch(static_cast<uint64_t>(i) * count, count); };
  const uint64_t half = static_cast<uint64_t>(ranks / 2) * count;
  Schedule schedule{"recursive halving", {}, 2 * half};
  reduce_by_halving(schedule, circle, {given, sum, output(0, count), half});
  return schedule;
}

Schedule all_gather_doubling(int ranks, int rank, uint64_t count) {
  const Circle circle = all_of(ranks, rank);
  const auto place = [&](int i) { return output(static_cast<uint64_t>(circle.block(i)) * count, count); };
  Schedule schedule{"recursive doubling", {}, 0};
  Round own;
  fold(own, place(0), {input(0, count)}, true);
  schedule.rounds.push_back(std::move(own));
  gather_by_doubling(schedule, circle, place);
  return schedule;
}

}  // namespace muster
