#include "collectives/schedule.h"

#include <algorithm>
#include <bit>
#include <map>
#include <numeric>

#include "collectives/schedule_build.h"

namespace muster {

using namespace schedules;

namespace {

// Everybody but me, starting after me, so that not all ranks send to the same one first.
std::vector<int> others(int ranks, int rank) {
  std::vector<int> peers;
  for (int i = 1; i < ranks; ++i) peers.push_back((rank + i) % ranks);
  return peers;
}

// My slice of the output is complete; give it to all, take theirs.
Round gather_slices_direct(int ranks, int rank, uint64_t count) {
  Round round;
  for (int peer : others(ranks, rank)) {
    send(round, peer, slice_at(BufferKind::kOutput, count, ranks, rank));
    receive(round, peer, slice_at(BufferKind::kOutput, count, ranks, peer));
  }
  return round;
}

// Sources in rank order: mine from the input, the others' from scratch, where `stride` elements lie per rank.
std::vector<Region> in_rank_order(int ranks, int rank, Region mine, uint64_t stride) {
  std::vector<Region> sources;
  for (int peer = 0; peer < ranks; ++peer)
    sources.push_back(peer == rank ? mine : scratch(static_cast<uint64_t>(peer) * stride, mine.count));
  return sources;
}

// Ring reduce-scatter over `blocks(i)` of the input; afterwards this rank holds block `rank`, folded, in
// `target`. Step s passes on the partial of block rank − s − 1, kept in scratch of `stride` elements, twice.
template <typename Blocks>
void ring_reduce(Schedule& schedule, int ranks, int rank, uint64_t stride, Region target, Blocks blocks) {
  const int next = (rank + 1) % ranks;
  const int previous = wrap(rank - 1, ranks);
  schedule.scratch_count = 2 * stride;
  for (int step = 0; step < ranks - 1; ++step) {
    Round round;
    const Region outgoing = blocks(wrap(rank - step - 1, ranks));
    const Region own = blocks(wrap(rank - step - 2, ranks));
    const uint64_t send_half = (step % 2 == 0) ? stride : 0;  // filled by the step before
    const uint64_t receive_half = stride - send_half;
    send(round, next, step == 0 ? outgoing : scratch(send_half, outgoing.count));
    receive(round, previous, scratch(receive_half, own.count));
    const bool last = step == ranks - 2;
    fold(round, last ? target : scratch(receive_half, own.count), {scratch(receive_half, own.count), own},
         last);
    schedule.rounds.push_back(std::move(round));
  }
}

// Ring all-gather over `blocks(i)` of the output; this rank's own block is in place.
template <typename Blocks>
void ring_gather(Schedule& schedule, int ranks, int rank, Blocks blocks) {
  for (int step = 0; step < ranks - 1; ++step) {
    Round round;
    send(round, (rank + 1) % ranks, blocks(wrap(rank - step, ranks)));
    receive(round, wrap(rank - 1, ranks), blocks(wrap(rank - step - 1, ranks)));
    schedule.rounds.push_back(std::move(round));
  }
}

}  // namespace

Schedule schedules::copy_only(std::string_view algorithm, uint64_t count) {
  Schedule schedule{algorithm, {}, 0};
  Round round;
  fold(round, output(0, count), {input(0, count)}, true);
  schedule.rounds.push_back(std::move(round));
  return schedule;
}

Schedule all_reduce_one_shot(int ranks, int rank, uint64_t count) {
  Schedule schedule{"one-shot", {}, static_cast<uint64_t>(ranks) * count};
  Round round;
  for (int peer : others(ranks, rank)) {
    send(round, peer, input(0, count));
    receive(round, peer, scratch(static_cast<uint64_t>(peer) * count, count));
  }
  fold(round, output(0, count), in_rank_order(ranks, rank, input(0, count), count), true);
  schedule.rounds.push_back(std::move(round));
  return schedule;
}

// With p not a power of two, the first 2·(p − 2^k) ranks pair up: the odd one hands its input to the even one
// and gets the result at the end.
Schedule all_reduce_recursive_doubling(int ranks, int rank, uint64_t count) {
  if (ranks == 1) return copy_only("recursive doubling", count);
  Schedule schedule{"recursive doubling", {}, count};
  const int power = static_cast<int>(std::bit_floor(static_cast<unsigned>(ranks)));
  const int paired = 2 * (ranks - power);
  const bool in_pair = rank < paired;
  if (in_pair && rank % 2 == 1) {
    Round give;
    send(give, rank - 1, input(0, count));
    Round take;
    receive(take, rank - 1, output(0, count));
    schedule.rounds = {std::move(give), std::move(take)};
    return schedule;
  }

  Round first;
  if (in_pair) {
    receive(first, rank + 1, scratch(0, count));
    fold(first, output(0, count), {input(0, count), scratch(0, count)}, false);
  } else {
    fold(first, output(0, count), {input(0, count)}, false);
  }
  schedule.rounds.push_back(std::move(first));

  const int virtual_rank = in_pair ? rank / 2 : rank - paired / 2;
  for (int distance = 1; distance < power; distance *= 2) {
    const int partner = virtual_rank ^ distance;
    const int peer = partner < paired / 2 ? partner * 2 : partner + paired / 2;
    Round round;
    send(round, peer, output(0, count));
    receive(round, peer, scratch(0, count));
    const bool last = distance * 2 >= power;
    const Region mine = output(0, count);
    const Region theirs = scratch(0, count);
    fold(round, mine, rank < peer ? std::vector{mine, theirs} : std::vector{theirs, mine}, last);
    schedule.rounds.push_back(std::move(round));
  }
  if (in_pair) {
    Round back;
    send(back, rank + 1, output(0, count));
    schedule.rounds.push_back(std::move(back));
  }
  return schedule;
}

Schedule all_reduce_direct(int ranks, int rank, uint64_t count) {
  const Slice mine = slice_of(count, ranks, rank);
  Schedule schedule{"direct", {}, static_cast<uint64_t>(ranks) * mine.count};
  Round scatter;
  for (int peer : others(ranks, rank)) {
    send(scatter, peer, slice_at(BufferKind::kInput, count, ranks, peer));
    receive(scatter, peer, scratch(static_cast<uint64_t>(peer) * mine.count, mine.count));
  }
  fold(scatter, output(mine.offset, mine.count),
       in_rank_order(ranks, rank, input(mine.offset, mine.count), mine.count), true);
  schedule.rounds.push_back(std::move(scatter));
  schedule.rounds.push_back(gather_slices_direct(ranks, rank, count));
  return schedule;
}

Schedule all_reduce_ring(int ranks, int rank, uint64_t count) {
  if (ranks == 1) return copy_only("ring", count);
  Schedule schedule{"ring", {}, 0};
  const Region mine = slice_at(BufferKind::kOutput, count, ranks, rank);
  ring_reduce(schedule, ranks, rank, slice_of(count, ranks, 0).count, mine,
              [&](int part) { return slice_at(BufferKind::kInput, count, ranks, part); });
  ring_gather(schedule, ranks, rank,
              [&](int part) { return slice_at(BufferKind::kOutput, count, ranks, part); });
  return schedule;
}

std::vector<std::vector<int>> ranks_by_node(std::span<const uint64_t> nodes) {
  std::map<uint64_t, size_t> places;
  std::vector<std::vector<int>> by_node;
  for (size_t rank = 0; rank < nodes.size(); ++rank) {
    const auto [found, is_new] = places.try_emplace(nodes[rank], by_node.size());
    if (is_new) by_node.emplace_back();
    by_node[found->second].push_back(static_cast<int>(rank));
  }
  return by_node;
}

std::optional<Grid> grid_of(std::span<const uint64_t> nodes) {
  const std::vector<std::vector<int>> by_node = ranks_by_node(nodes);
  Grid grid{static_cast<int>(by_node.size()), 1, {}, std::vector<int>(nodes.size())};
  if (!by_node.empty()) grid.locals = static_cast<int>(by_node.front().size());
  if (grid.nodes < 2 || grid.locals < 2) return std::nullopt;
  for (const std::vector<int>& ranks : by_node) {
    if (ranks.size() != static_cast<size_t>(grid.locals)) return std::nullopt;
    for (const int rank : ranks) {
      grid.places[static_cast<size_t>(rank)] = static_cast<int>(grid.ranks.size());
      grid.ranks.push_back(rank);
    }
  }
  return grid;
}

schedules::OnNode schedules::on_node(const Grid& grid, int rank, uint64_t count) {
  const int me = grid.local_of(rank);
  const int node = grid.node_of(rank);
  OnNode found;
  found.slice = slice_of(count, grid.locals, me);
  const Slice slice = found.slice;
  found.sum = scratch(static_cast<uint64_t>(me) * slice.count, slice.count);  // where my input would lie
  for (const int mate : others(grid.locals, me)) {
    const int peer = grid.at(node, mate);
    send(found.reduce, peer, slice_at(BufferKind::kInput, count, grid.locals, mate));
    receive(found.reduce, peer, scratch(static_cast<uint64_t>(mate) * slice.count, slice.count));
    send(found.spread, peer, output(slice.offset, slice.count));
    receive(found.spread, peer, slice_at(BufferKind::kOutput, count, grid.locals, mate));
  }
  fold(found.reduce, found.sum, in_rank_order(grid.locals, me, input(slice.offset, slice.count), slice.count),
       false);
  return found;
}

// On the node, rank l sums slice l of its mates' inputs; across nodes, the ranks l sum and gather that slice;
// on the node, mates give each other their slices.
Schedule all_reduce_hierarchical(const Grid& grid, int rank, uint64_t count) {
  const int me = grid.local_of(rank);
  const int node = grid.node_of(rank);
  OnNode mates = on_node(grid, rank, count);
  const Slice slice = mates.slice;
  const Slice part = slice_of(slice.count, grid.nodes, node);  // of my slice: what this rank finishes
  const uint64_t parts = static_cast<uint64_t>(grid.locals) * slice.count;  // in scratch, behind
  Schedule schedule{"hierarchical", {}, parts + static_cast<uint64_t>(grid.nodes) * part.count};

  Round scatter, gather;
  std::vector<Region> sources(static_cast<size_t>(grid.nodes),
                              scratch(mates.sum.offset + part.offset, part.count));
  for (const int other : others(grid.nodes, node)) {
    const Slice theirs = slice_of(slice.count, grid.nodes, other);
    const Region arriving = scratch(parts + static_cast<uint64_t>(other) * part.count, part.count);
    send(scatter, grid.at(other, me), scratch(mates.sum.offset + theirs.offset, theirs.count));
    receive(scatter, grid.at(other, me), arriving);
    sources[static_cast<size_t>(other)] = arriving;
    send(gather, grid.at(other, me), output(slice.offset + part.offset, part.count));
    receive(gather, grid.at(other, me), output(slice.offset + theirs.offset, theirs.count));
  }
  fold(scatter, output(slice.offset + part.offset, part.count), std::move(sources), true);
  schedule.rounds = {std::move(mates.reduce), std::move(scatter), std::move(gather), std::move(mates.spread)};
  return schedule;
}

// On the node, rank l sums its mates' blocks for the ranks l of all nodes, and then sends each its block.
Schedule reduce_scatter_hierarchical(const Grid& grid, int rank, uint64_t count) {
  const int me = grid.local_of(rank);
  const int node = grid.node_of(rank);
  const uint64_t column = static_cast<uint64_t>(grid.nodes) * count;  // a block for each node
  const uint64_t arrived = static_cast<uint64_t>(grid.locals) * column;
  Schedule schedule{"hierarchical", {}, arrived + column};
  const auto block_for = [&](int to_node, int local) {
    return input(static_cast<uint64_t>(grid.at(to_node, local)) * count, count);
  };
  const auto place = [&](int local, int to_node) {
    return scratch(static_cast<uint64_t>(local) * column + static_cast<uint64_t>(to_node) * count, count);
  };

  Round reduce;
  for (int to_node = 0; to_node < grid.nodes; ++to_node) {
    std::vector<Region> sources(static_cast<size_t>(grid.locals), block_for(to_node, me));
    for (const int mate : others(grid.locals, me)) {
      send(reduce, grid.at(node, mate), block_for(to_node, mate));
      receive(reduce, grid.at(node, mate), place(mate, to_node));
      sources[static_cast<size_t>(mate)] = place(mate, to_node);
    }
    fold(reduce, place(me, to_node), std::move(sources), false);
  }

  Round scatter;
  std::vector<Region> sources(static_cast<size_t>(grid.nodes), place(me, node));
  for (const int other : others(grid.nodes, node)) {
    const Region arriving = scratch(arrived + static_cast<uint64_t>(other) * count, count);
    send(scatter, grid.at(other, me), place(me, other));
    receive(scatter, grid.at(other, me), arriving);
    sources[static_cast<size_t>(other)] = arriving;
  }
  fold(scatter, output(0, count), std::move(sources), true);
  schedule.rounds = {std::move(reduce), std::move(scatter)};
  return schedule;
}

// Across nodes, the ranks l gather their blocks; on the node, mates give each other what they have.
Schedule all_gather_hierarchical(const Grid& grid, int rank, uint64_t count) {
  Schedule schedule{"hierarchical", {}, 0};
  const int me = grid.local_of(rank);
  const int node = grid.node_of(rank);
  const auto block_of = [&](int of_node, int local) {
    return output(static_cast<uint64_t>(grid.at(of_node, local)) * count, count);
  };
  Round gather, spread;
  for (const int other : others(grid.nodes, node)) {
    send(gather, grid.at(other, me), input(0, count));
    receive(gather, grid.at(other, me), block_of(other, me));
  }
  fold(gather, block_of(node, me), {input(0, count)}, true);
  for (const int mate : others(grid.locals, me)) {
    for (int of_node = 0; of_node < grid.nodes; ++of_node) {
      send(spread, grid.at(node, mate), block_of(of_node, me));
      receive(spread, grid.at(node, mate), block_of(of_node, mate));
    }
  }
  schedule.rounds = {std::move(gather), std::move(spread)};
  return schedule;
}

Schedule reduce_scatter_direct(int ranks, int rank, uint64_t count) {
  Schedule schedule{"direct", {}, static_cast<uint64_t>(ranks) * count};
  Round round;
  for (int peer : others(ranks, rank)) {
    send(round, peer, input(static_cast<uint64_t>(peer) * count, count));
    receive(round, peer, scratch(static_cast<uint64_t>(peer) * count, count));
  }
  fold(round, output(0, count),
       in_rank_order(ranks, rank, input(static_cast<uint64_t>(rank) * count, count), count), true);
  schedule.rounds.push_back(std::move(round));
  return schedule;
}

Schedule reduce_scatter_ring(int ranks, int rank, uint64_t count) {
  if (ranks == 1) return copy_only("ring", count);
  Schedule schedule{"ring", {}, 0};
  ring_reduce(schedule, ranks, rank, count, output(0, count),
              [&](int part) { return input(static_cast<uint64_t>(part) * count, count); });
  return schedule;
}

Schedule all_gather_direct(int ranks, int rank, uint64_t count) {
  Schedule schedule{"direct", {}, 0};
  Round round;
  for (int peer : others(ranks, rank)) {
    send(round, peer, input(0, count));
    receive(round, peer, output(static_cast<uint64_t>(peer) * count, count));
  }
  fold(round, output(static_cast<uint64_t>(rank) * count, count), {input(0, count)}, true);
  schedule.rounds.push_back(std::move(round));
  return schedule;
}

Schedule all_gather_ring(int ranks, int rank, uint64_t count) {
  Schedule schedule{"ring", {}, 0};
  const auto block = [&](int part) { return output(static_cast<uint64_t>(part) * count, count); };
  Round own;
  fold(own, block(rank), {input(0, count)}, true);
  schedule.rounds.push_back(std::move(own));
  ring_gather(schedule, ranks, rank, block);
  return schedule;
}

// Scratch block i is that of rank `rank + i`; each round doubles the number of blocks held.
Schedule all_gather_bruck(int ranks, int rank, uint64_t count) {
  Schedule schedule{"Bruck", {}, static_cast<uint64_t>(ranks) * count};
  Round own;
  fold(own, scratch(0, count), {input(0, count)}, false);
  schedule.rounds.push_back(std::move(own));
  for (int held = 1; held < ranks; held *= 2) {
    const uint64_t blocks = static_cast<uint64_t>(std::min(held, ranks - held));
    Round round;
    send(round, wrap(rank - held, ranks), scratch(0, blocks * count));
    receive(round, wrap(rank + held, ranks), scratch(static_cast<uint64_t>(held) * count, blocks * count));
    schedule.rounds.push_back(std::move(round));
  }
  Round unrotate;
  for (int i = 0; i < ranks; ++i) {
    const auto target = static_cast<uint64_t>((rank + i) % ranks);
    fold(unrotate, output(target * count, count), {scratch(static_cast<uint64_t>(i) * count, count)}, true);
  }
  schedule.rounds.push_back(std::move(unrotate));
  return schedule;
}

// A rank gives to all its children in one round: their messages share its link. The rounds before are as many
// as there are ranks between the root and it, so that the cost model sees who waits for whom.
Schedule broadcast_binomial(int ranks, int rank, uint64_t count, int root) {
  const int relative = wrap(rank - root, ranks);
  const auto absolute = [&](int value) { return (value + root) % ranks; };
  const auto depth = static_cast<size_t>(std::popcount(static_cast<unsigned>(relative)));
  Schedule schedule{"binomial", std::vector<Round>(depth), 0};
  int lowest = static_cast<int>(std::bit_ceil(static_cast<unsigned>(ranks)));
  if (relative != 0) {
    lowest = relative & -relative;
    receive(schedule.rounds.back(), absolute(relative - lowest), output(0, count));
  }
  Round give;
  for (int distance = lowest / 2; distance >= 1; distance /= 2) {
    if (relative + distance < ranks)
      send(give, absolute(relative + distance), relative == 0 ? input(0, count) : output(0, count));
  }
  if (relative == 0) fold(give, output(0, count), {input(0, count)}, true);
  schedule.rounds.push_back(std::move(give));
  return schedule;
}

Schedule reduce_direct(int ranks, int rank, uint64_t count, int root, bool by_slices) {
  Schedule schedule{by_slices ? "direct" : "to the root", {}, 0};
  const auto slice_for = [&](int owner) {
    if (by_slices) return slice_of(count, ranks, owner);
    return owner == root ? Slice{0, count} : Slice{0, 0};
  };
  const Slice mine = slice_for(rank);
  schedule.scratch_count = static_cast<uint64_t>(ranks) * mine.count;
  Round scatter;
  for (int peer : others(ranks, rank)) {
    const Slice theirs = slice_for(peer);
    send(scatter, peer, input(theirs.offset, theirs.count));
    receive(scatter, peer, scratch(static_cast<uint64_t>(peer) * mine.count, mine.count));
  }
  // Off the root, where my own contribution would lie.
  const Region folded = rank == root ? output(mine.offset, mine.count)
                                     : scratch(static_cast<uint64_t>(rank) * mine.count, mine.count);
  fold(scatter, folded, in_rank_order(ranks, rank, input(mine.offset, mine.count), mine.count), true);
  schedule.rounds.push_back(std::move(scatter));
  Round collect;
  if (rank != root) send(collect, root, folded);
  for (int peer : others(ranks, rank)) {
    const Slice theirs = slice_for(peer);
    if (rank == root) receive(collect, peer, output(theirs.offset, theirs.count));
  }
  schedule.rounds.push_back(std::move(collect));
  return schedule;
}

Schedule reduce_scatter_blocks(int rank, std::span<const Slice> blocks) {
  const int ranks = static_cast<int>(blocks.size());
  const Slice mine = blocks[rank];
  Schedule schedule{"direct", {}, static_cast<uint64_t>(ranks) * mine.count};
  Round round;
  for (int peer : others(ranks, rank)) {
    send(round, peer, input(blocks[peer].offset, blocks[peer].count));
    receive(round, peer, scratch(static_cast<uint64_t>(peer) * mine.count, mine.count));
  }
  fold(round, output(0, mine.count), in_rank_order(ranks, rank, input(mine.offset, mine.count), mine.count),
       true);
  schedule.rounds.push_back(std::move(round));
  return schedule;
}

Schedule all_gather_blocks(int rank, std::span<const Slice> blocks) {
  Schedule schedule{"direct", {}, 0};
  Round round;
  for (int peer : others(static_cast<int>(blocks.size()), rank)) {
    send(round, peer, input(0, blocks[rank].count));
    receive(round, peer, output(blocks[peer].offset, blocks[peer].count));
  }
  fold(round, output(blocks[rank].offset, blocks[rank].count), {input(0, blocks[rank].count)}, true);
  schedule.rounds.push_back(std::move(round));
  return schedule;
}

Schedule gather_direct(int rank, std::span<const Slice> blocks, int root) {
  Schedule schedule{"direct", {}, 0};
  Round round;
  if (rank != root) {
    send(round, root, input(0, blocks[rank].count));
  } else {
    for (int peer : others(static_cast<int>(blocks.size()), rank))
      receive(round, peer, output(blocks[peer].offset, blocks[peer].count));
    fold(round, output(blocks[rank].offset, blocks[rank].count), {input(0, blocks[rank].count)}, true);
  }
  schedule.rounds.push_back(std::move(round));
  return schedule;
}

Schedule scatter_direct(int rank, std::span<const Slice> blocks, int root) {
  Schedule schedule{"direct", {}, 0};
  Round round;
  if (rank != root) {
    receive(round, root, output(0, blocks[rank].count));
  } else {
    for (int peer : others(static_cast<int>(blocks.size()), rank))
      send(round, peer, input(blocks[peer].offset, blocks[peer].count));
    fold(round, output(0, blocks[rank].count), {input(blocks[rank].offset, blocks[rank].count)}, true);
  }
  schedule.rounds.push_back(std::move(round));
  return schedule;
}

// Through scratch, so that in place a block is not overwritten before it was sent.
Schedule all_to_all_direct(int ranks, int rank, uint64_t count) {
  Schedule schedule{"direct", {}, static_cast<uint64_t>(ranks) * count};
  Round round;
  const auto block = [&](int part) { return static_cast<uint64_t>(part) * count; };
  for (int peer : others(ranks, rank)) {
    send(round, peer, input(block(peer), count));
    receive(round, peer, scratch(block(peer), count));
  }
  for (int peer = 0; peer < ranks; ++peer) {
    fold(round, output(block(peer), count),
         {peer == rank ? input(block(rank), count) : scratch(block(peer), count)}, true);
  }
  schedule.rounds.push_back(std::move(round));
  return schedule;
}

Schedule all_to_all_blocks(int rank, std::span<const Slice> sent, std::span<const Slice> received) {
  Schedule schedule{"direct", {}, 0};
  Round round;
  for (int peer : others(static_cast<int>(sent.size()), rank)) {
    round.sends.push_back({peer, input(sent[peer].offset, sent[peer].count)});
    round.receives.push_back({peer, output(received[peer].offset, received[peer].count)});
  }
  fold(round, output(received[rank].offset, received[rank].count),
       {input(sent[rank].offset, sent[rank].count)}, true);
  schedule.rounds.push_back(std::move(round));
  return schedule;
}

Schedule barrier_dissemination(int ranks, int rank) {
  Schedule schedule{"dissemination", {}, 0};
  for (int distance = 1; distance < ranks; distance *= 2) {
    Round round;
    round.sends.push_back({(rank + distance) % ranks, {}});
    round.receives.push_back({wrap(rank - distance, ranks), {}});
    schedule.rounds.push_back(std::move(round));
  }
  return schedule;
}

Schedule exchange_with(std::span<const int> partners, int rounds, int messages, uint64_t count) {
  Schedule schedule{"exchange", {}, 0};
  Round round;
  uint64_t place = 0;
  for (const int partner : partners) {
    for (int message = 0; message < messages; ++message, place += count) {
      round.sends.push_back({partner, input(place, count)});
      round.receives.push_back({partner, output(place, count)});
    }
  }
  schedule.rounds.assign(static_cast<size_t>(rounds), round);
  return schedule;
}

Schedule canonical_direct(int ranks, int rank, uint64_t count, std::span<const int> partials) {
  const Slice mine = slice_of(count, ranks, rank);
  const int total = std::accumulate(partials.begin(), partials.end(), 0);
  Schedule schedule{"canonical direct", {}, static_cast<uint64_t>(total - partials[rank]) * mine.count};
  Round scatter;
  for (int peer : others(ranks, rank)) {
    const Slice theirs = slice_of(count, ranks, peer);
    for (int piece = 0; piece < partials[rank]; ++piece)
      send(scatter, peer, input(theirs.offset, theirs.count, static_cast<uint32_t>(piece)));
  }
  Fold root{output(mine.offset, mine.count), {}, true, true};
  uint64_t place = 0;
  for (int peer = 0; peer < ranks; ++peer) {
    for (int piece = 0; piece < partials[peer]; ++piece) {
      if (peer == rank) {
        root.sources.push_back(input(mine.offset, mine.count, static_cast<uint32_t>(piece)));
        continue;
      }
      root.sources.push_back(scratch(place, mine.count));
      receive(scatter, peer, root.sources.back());
      place += mine.count;
    }
  }
  if (mine.count > 0) scatter.folds.push_back(std::move(root));
  schedule.rounds.push_back(std::move(scatter));
  schedule.rounds.push_back(gather_slices_direct(ranks, rank, count));
  return schedule;
}

}  // namespace muster
