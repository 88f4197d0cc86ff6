// Two trees over the same ranks, each for half of a message, in chunks: while one chunk goes up or down an
// edge, the next one follows. Nobody who has children in one tree has any in the other, so that all ranks
// send and receive about as much (P. Sanders, J. Speck, J. L. Träff, "Two-tree algorithms for full bandwidth
// broadcast, reduction and scan", 2009).
//
// A tree over m members is the in-order one: member i of 1 … m has as many levels below it as i has trailing
// zero bits, and leaves are the odd ones. The second tree counts from the other end where m is even, and from
// the second member on where it is odd: its leaves are, but for one, those that have children in the first.
// The root of a broadcast or reduce stands above both trees, which are over the others.
//
// INVARIANT: round t of all ranks is one step of the pipeline: a rank at depth d of trees of depth D sends
// chunk t − (D − d) up, and chunk t − d down, D later where what goes down came up before. So what is sent in
// a round is received in the same one, and rounds in which a rank rests are empty.
#include <algorithm>
#include <bit>
#include <limits>

#include "collectives/schedule_build.h"

namespace muster {

using namespace schedules;

namespace {

constexpr int kTrees = 2;

// A rank's place in one tree.
struct Place {
  int parent = -1;  // -1: none
  std::vector<int> children;
  int depth = 0;
};
struct Trees {
  Place of[kTrees];
  int depth = 0;  // of the deepest rank
};

int lowest_bit(int i) { return i & -i; }

// In the in-order tree over 1 … members; 0: none.
int parent_of(int i, int members) {
  const int bit = lowest_bit(i);
  const int above = (i ^ bit) | (2 * bit);
  return above <= members ? above : i ^ bit;
}
std::vector<int> children_of(int i, int members) {
  const int bit = lowest_bit(i);
  std::vector<int> children;
  if (bit > 1) children.push_back(i - bit / 2);
  for (int step = bit / 2; step >= 1; step /= 2) {
    if (i + step > members) continue;
    children.push_back(i + step);
    break;
  }
  return children;
}

// Member `index` of 0 … members − 1 is number 1 … members in the tree, and back.
int number_of(int index, int tree, int members) {
  if (tree == 0) return index + 1;
  return members % 2 == 0 ? members - index : (index + 1) % members + 1;
}
int index_of(int number, int tree, int members) {
  if (tree == 0) return number - 1;
  return members % 2 == 0 ? members - number : wrap(number - 2, members);
}

// `members`: the ranks; `top`: a rank above both trees, or -1.
Trees trees_over(const std::vector<int>& members, int top, int rank) {
  const int count = static_cast<int>(members.size());
  const int below_top = top >= 0 ? 1 : 0;
  Trees trees;
  trees.depth = static_cast<int>(std::bit_width(static_cast<unsigned>(count))) - 1 + below_top;
  for (int tree = 0; tree < kTrees; ++tree) {
    const auto rank_of = [&](int number) {
      return number == 0 ? top : members[static_cast<size_t>(index_of(number, tree, count))];
    };
    Place& place = trees.of[tree];
    if (rank == top) {
      place.children = {rank_of(static_cast<int>(std::bit_floor(static_cast<unsigned>(count))))};
      continue;
    }
    const auto index = static_cast<int>(std::ranges::find(members, rank) - members.begin());
    const int mine = number_of(index, tree, count);
    place.parent = rank_of(parent_of(mine, count));
    for (const int child : children_of(mine, count)) place.children.push_back(rank_of(child));
    place.depth = below_top;
    for (int above = parent_of(mine, count); above != 0; above = parent_of(above, count)) ++place.depth;
  }
  return trees;
}

// The message in halves, one for each tree, and these in chunks, as many of each.
struct Chunks {
  uint64_t count;
  int of_half;

  Slice at(int tree, int chunk) const {
    const Slice half = slice_of(count, kTrees, tree);
    const Slice part = slice_of(half.count, of_half, chunk);
    return {half.offset + part.offset, part.count};
  }
  uint64_t most() const { return at(0, 0).count; }
};
Chunks chunks_of(uint64_t count, uint64_t chunk) { return {count, tree_chunks(count, chunk)}; }

Region at(BufferKind buffer, Slice slice) { return {buffer, 0, slice.offset, slice.count}; }

// The schedule of one rank, as its rounds are filled.
class Pipeline {
 public:
  Pipeline(const Trees& trees, const Chunks& chunks, int steps) : trees_(trees), chunks_(chunks) {
    schedule_.algorithm = "double tree";
    schedule_.rounds.resize(static_cast<size_t>(chunks.of_half - 1 + steps));
  }

  // Partial sums from the leaves to the root, which ends with the output. The others keep theirs in the
  // output where `in_output`, which is written again before the operation ends; else in scratch.
  void up(bool in_output) {
    for (int tree = 0; tree < kTrees; ++tree) {
      const Place& place = trees_.of[tree];
      // Arrived chunks are added in the round in which they come, after the sum of those before was sent.
      const uint64_t arrivals = take(place.children.size());
      const bool keeps = !place.children.empty() && place.parent >= 0 && !in_output;
      const uint64_t sum_at = take(keeps ? 1 : 0);
      for (int chunk = 0; chunk < chunks_.of_half; ++chunk) {
        const Slice slice = chunks_.at(tree, chunk);
        Region sum = keeps ? scratch(sum_at, slice.count) : at(BufferKind::kOutput, slice);
        if (place.children.empty()) sum = at(BufferKind::kInput, slice);
        add_children(place, chunk, slice, sum, arrivals);
        if (place.parent >= 0) send(round(trees_.depth - place.depth + chunk), place.parent, sum);
      }
    }
  }

  // From the root to the leaves, `later` rounds late. `held`: what the root has it in.
  void down(int later, BufferKind held) {
    for (int tree = 0; tree < kTrees; ++tree) {
      const Place& place = trees_.of[tree];
      const bool is_root = place.parent < 0;
      for (int chunk = 0; chunk < chunks_.of_half; ++chunk) {
        const Region region = at(is_root ? held : BufferKind::kOutput, chunks_.at(tree, chunk));
        const int step = later + place.depth + chunk;
        if (!is_root) receive(round(step - 1), place.parent, region);
        for (const int child : place.children) send(round(step), child, region);
      }
    }
  }

  Schedule take_schedule() { return std::move(schedule_); }

 private:
  Round& round(int step) { return schedule_.rounds[static_cast<size_t>(step)]; }

  // So many chunks of scratch; where they begin.
  uint64_t take(size_t chunks) {
    const uint64_t begin = schedule_.scratch_count;
    schedule_.scratch_count += chunks * chunks_.most();
    return begin;
  }

  void add_children(const Place& place, int chunk, Slice slice, Region sum, uint64_t arrivals) {
    if (place.children.empty()) return;
    Round& comes = round(trees_.depth - place.depth - 1 + chunk);
    std::vector<Region> sources{at(BufferKind::kInput, slice)};
    for (const int child : place.children) {
      sources.push_back(scratch(arrivals + (sources.size() - 1) * chunks_.most(), slice.count));
      receive(comes, child, sources.back());
    }
    fold(comes, sum, std::move(sources), place.parent < 0);
  }

  const Trees& trees_;
  const Chunks& chunks_;
  Schedule schedule_;
};

// The others, from the root on.
std::vector<int> below(std::span<const int> order, int root) {
  const auto found = static_cast<size_t>(std::ranges::find(order, root) - order.begin());
  std::vector<int> members;
  for (size_t i = 1; i < order.size(); ++i) members.push_back(order[(found + i) % order.size()]);
  return members;
}

}  // namespace

int tree_chunks(uint64_t count, uint64_t chunk) {
  const uint64_t half = slice_of(count, kTrees, 0).count;
  const uint64_t chunks = half / chunk + (half % chunk > 0 ? 1 : 0);
  return static_cast<int>(std::clamp<uint64_t>(chunks, 1, std::numeric_limits<int>::max()));
}

Schedule all_reduce_double_tree(std::span<const int> order, int rank, uint64_t count, uint64_t chunk) {
  if (order.size() == 1) return copy_only("double tree", count);
  const Trees trees = trees_over({order.begin(), order.end()}, -1, rank);
  const Chunks chunks = chunks_of(count, chunk);
  Pipeline pipeline(trees, chunks, 2 * trees.depth);
  pipeline.up(true);
  pipeline.down(trees.depth, BufferKind::kOutput);
  return pipeline.take_schedule();
}

Schedule reduce_double_tree(std::span<const int> order, int rank, uint64_t count, int root, uint64_t chunk) {
  if (order.size() == 1) return copy_only("double tree", count);
  const Trees trees = trees_over(below(order, root), root, rank);
  const Chunks chunks = chunks_of(count, chunk);
  Pipeline pipeline(trees, chunks, trees.depth);
  pipeline.up(false);
  return pipeline.take_schedule();
}

Schedule broadcast_double_tree(std::span<const int> order, int rank, uint64_t count, int root,
                               uint64_t chunk) {
  if (order.size() == 1) return copy_only("double tree", count);
  const Trees trees = trees_over(below(order, root), root, rank);
  const Chunks chunks = chunks_of(count, chunk);
  Pipeline pipeline(trees, chunks, trees.depth);
  pipeline.down(0, BufferKind::kInput);
  Schedule schedule = pipeline.take_schedule();
  if (rank == root) fold(schedule.rounds.back(), output(0, count), {input(0, count)}, true);
  return schedule;
}

}  // namespace muster
