// Schedules: what one rank sends, receives and computes for one operation, as data.
//
// An algorithm is a pure function of (ranks, my rank, elements) to a Schedule. One engine executes schedules
// over any transport (transport_engine.h); one checker proves them right (schedule_check.h). A schedule is a
// list of rounds. A rank's round starts all its transfers at once; its folds run in order, as far as what
// they read has arrived; when all is done the next round starts. Ranks do not wait for each other's rounds.
// Within a round no received region may overlap one that is sent or received. Between two ranks, transfers of
// an operation match in the order of rounds, and within a round in the order of the list. Offsets and counts
// are in elements.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "collectives/lane_tree.h"

namespace muster {

// Bytes of one message at most: a longer region goes in several.
constexpr size_t kPayloadBytes = 256 * 1024;
// Parts of an operation, each with a schedule of its own, that move at once.
constexpr size_t kPartsAtOnce = 4;

enum class BufferKind : uint8_t { kInput, kOutput, kScratch };

struct Region {
  BufferKind buffer = BufferKind::kInput;
  uint32_t piece = 0;  // which of several inputs: canonical reductions have one for each aligned node
  uint64_t offset = 0;
  uint64_t count = 0;

  bool operator==(const Region&) const = default;
};

struct Transfer {
  int peer = 0;
  Region region;  // count 0: a message without payload
};

struct Fold {
  Region target;
  std::vector<Region> sources;  // folded left to right, or along the operation's combine plan
  bool along_tree = false;
  bool last = false;  // the value is final: avg divides
};

struct Round {
  std::vector<Transfer> sends;
  std::vector<Transfer> receives;
  std::vector<Fold> folds;
};

struct Schedule {
  std::string_view algorithm;
  std::vector<Round> rounds;
  uint64_t scratch_count = 0;
};

// Slice of a message of `count` elements that part `part` of `parts` owns: even to one element, larger ones
// first.
struct Slice {
  uint64_t offset;
  uint64_t count;
};
constexpr Slice slice_of(uint64_t count, int parts, int part) {
  const uint64_t base = count / parts;
  const uint64_t extra = count % parts;
  const uint64_t index = static_cast<uint64_t>(part);
  return {index * base + (index < extra ? index : extra), base + (index < extra ? 1 : 0)};
}

// all_reduce: `count` elements from input to output.
Schedule all_reduce_one_shot(int ranks, int rank, uint64_t count);            // 1 round, (p−1)·n received
Schedule all_reduce_recursive_doubling(int ranks, int rank, uint64_t count);  // ⌈log₂ p⌉ (+2) rounds of n
Schedule all_reduce_direct(int ranks, int rank, uint64_t count);              // 2 rounds, 2(p−1)/p·n
Schedule all_reduce_ring(int ranks, int rank, uint64_t count);          // 2(p−1) rounds, 2(p−1)/p·n
Schedule all_reduce_rabenseifner(int ranks, int rank, uint64_t count);  // 2⌈log₂ p⌉ rounds, 2(p−1)/p·n

// The ranks of each node, nodes by their first ranks: not by their ids, which are hashes, so that neither
// sums nor costs depend on how nodes are called. `nodes`: the node of each rank.
std::vector<std::vector<int>> ranks_by_node(std::span<const uint64_t> nodes);

// Ranks by the node that they are on, where each node has as many of them. The hierarchical schedules below
// reduce on a node before they talk to others and spread on it afterwards, and each rank of a node talks for
// its share only: what leaves a node is what leaves it with one rank per node, sent by all its ranks at once.
struct Grid {
  int nodes = 1;
  int locals = 1;           // ranks of a node
  std::vector<int> ranks;   // node by node
  std::vector<int> places;  // of each rank in `ranks`

  int at(int node, int local) const { return ranks[static_cast<size_t>(node * locals + local)]; }
  int node_of(int rank) const { return places[static_cast<size_t>(rank)] / locals; }
  int local_of(int rank) const { return places[static_cast<size_t>(rank)] % locals; }
};
// Nothing where nodes have different numbers of ranks, or there is nothing to gain: one node, or one rank on
// each.
std::optional<Grid> grid_of(std::span<const uint64_t> nodes);

Schedule all_reduce_hierarchical(const Grid& grid, int rank, uint64_t count);      // 4 rounds
Schedule all_reduce_rabenseifner(const Grid& grid, int rank, uint64_t count);      // 2⌈log₂ nodes⌉ + 2
Schedule reduce_scatter_hierarchical(const Grid& grid, int rank, uint64_t count);  // 2 rounds
Schedule all_gather_hierarchical(const Grid& grid, int rank, uint64_t count);      // 2 rounds

// reduce_scatter: input is ranks × `count`, output `count`.
Schedule reduce_scatter_direct(int ranks, int rank, uint64_t count);
Schedule reduce_scatter_ring(int ranks, int rank, uint64_t count);
Schedule reduce_scatter_halving(int ranks, int rank, uint64_t count);  // ⌈log₂ p⌉ rounds

// all_gather: input is `count`, output ranks × `count`.
Schedule all_gather_direct(int ranks, int rank, uint64_t count);
Schedule all_gather_ring(int ranks, int rank, uint64_t count);
Schedule all_gather_bruck(int ranks, int rank, uint64_t count);
Schedule all_gather_doubling(int ranks, int rank, uint64_t count);  // as many rounds, without its copies

// broadcast: input of `root` to every output.
Schedule broadcast_binomial(int ranks, int rank, uint64_t count, int root);

// By two trees, for half of the elements each, in chunks of at most `chunk` elements, so many rounds: chunks
// of a half, and once (all_reduce: twice) a depth of about log₂ p. A rank sends and receives n (all_reduce:
// 2n), and has up to three chunks of scratch. `order`: all ranks, those of a node together: most edges are
// then within a node. Once both ways are full, all rounds are alike until they empty.
int tree_chunks(uint64_t count, uint64_t chunk);  // of each half; saturates
Schedule all_reduce_double_tree(std::span<const int> order, int rank, uint64_t count, uint64_t chunk);
Schedule reduce_double_tree(std::span<const int> order, int rank, uint64_t count, int root, uint64_t chunk);
Schedule broadcast_double_tree(std::span<const int> order, int rank, uint64_t count, int root,
                               uint64_t chunk);

// The others go straight from where data is to where it belongs. `blocks[r]`: rank r's part of the larger
// buffer. reduce: through the owners of slices where `by_slices`, else everything to the root.
Schedule reduce_direct(int ranks, int rank, uint64_t count, int root, bool by_slices);
Schedule reduce_scatter_blocks(int rank, std::span<const Slice> blocks);
Schedule all_gather_blocks(int rank, std::span<const Slice> blocks);
Schedule gather_direct(int rank, std::span<const Slice> blocks, int root);
Schedule scatter_direct(int rank, std::span<const Slice> blocks, int root);
Schedule all_to_all_direct(int ranks, int rank, uint64_t count);
// Nobody knows of two others whether one has something for the other: between all there is a message, which
// may be empty. REQUIRES: sent[r].count on each rank is received[that rank].count on rank r.
Schedule all_to_all_blocks(int rank, std::span<const Slice> sent, std::span<const Slice> received);

Schedule barrier_dissemination(int ranks, int rank);

// Measures links (cost_tuning.h): in each round, `messages` of `count` elements to each of `partners` and as
// many from it. Input and output hold a block of messages × count elements for each partner.
Schedule exchange_with(std::span<const int> partners, int rounds, int messages, uint64_t count);

// Canonical all_reduce: rank r has partials[r] inputs of `count` elements; slice j goes to rank j, which
// folds it along the combine plan, whose leaves are in the order of ranks and of pieces, and sends it to all.
Schedule canonical_direct(int ranks, int rank, uint64_t count, std::span<const int> partials);

}  // namespace muster
