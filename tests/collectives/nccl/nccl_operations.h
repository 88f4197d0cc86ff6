// Every operation of NcclCommunicator as data: what it is given, how it is called, what has to come out. The
// same table serves the fakes and the real library.
#pragma once

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "collectives/nccl/nccl_communicator.h"

namespace muster {

using Issued = Result<NcclCommunicator::Operation>;

struct NcclCase {
  int world = 1;
  int rank = 0;
  size_t count = 0;
  int root = 0;
  size_t total() const { return static_cast<size_t>(world) * count; }
};

// Element i of a rank's input: small whole numbers, whose sums and products are exact in any order.
inline float input_of(int rank, size_t i) {
  return static_cast<float>((rank + 1) * static_cast<int>(i % 13) + 1);
}

// Sizes of blocks, one of them empty.
inline std::vector<size_t> block_counts(const NcclCase& c) {
  std::vector<size_t> counts;
  for (size_t r = 0; r < static_cast<size_t>(c.world); ++r)
    counts.push_back(c.count == 0 || r % 3 == 1 ? 0 : c.count + r);
  return counts;
}
// What `from` sends to `to` in all_to_all_v.
inline size_t pair_count(const NcclCase& c, int from, int to) {
  return c.count == 0 || (from + 2 * to) % 4 == 1 ? 0 : c.count + static_cast<size_t>(from + 2 * to);
}
inline std::vector<size_t> sent_counts(const NcclCase& c, int from) {
  std::vector<size_t> counts;
  for (int to = 0; to < c.world; ++to) counts.push_back(pair_count(c, from, to));
  return counts;
}
inline std::vector<size_t> received_counts(const NcclCase& c, int to) {
  std::vector<size_t> counts;
  for (int from = 0; from < c.world; ++from) counts.push_back(pair_count(c, from, to));
  return counts;
}
inline size_t sum_of(const std::vector<size_t>& counts, int until) {
  size_t sum = 0;
  for (int r = 0; r < until; ++r) sum += counts[static_cast<size_t>(r)];
  return sum;
}

inline float sum_over_ranks(int world, size_t i) {
  float sum = 0;
  for (int rank = 0; rank < world; ++rank) sum += input_of(rank, i);
  return sum;
}

// Elements [offset, offset + count) of a rank's input, or of the sum of all where rank is −1.
inline void append(std::vector<float>& to, const NcclCase& c, int rank, size_t offset, size_t count) {
  for (size_t i = offset; i < offset + count; ++i)
    to.push_back(rank < 0 ? sum_over_ranks(c.world, i) : input_of(rank, i));
}
inline std::vector<float> elements(const NcclCase& c, int rank, size_t offset, size_t count) {
  std::vector<float> values;
  append(values, c, rank, offset, count);
  return values;
}

enum class InPlace : uint8_t { kApart, kSame, kOutIsBlockOfIn, kInIsBlockOfOut };

struct NcclOperation {
  std::string name;
  std::function<size_t(const NcclCase&)> in_count;
  std::function<std::vector<float>(const NcclCase&)> expected;  // `out` of this rank
  std::function<Issued(NcclCommunicator&, const NcclCase&, const float* in, float* out, void* stream,
                       Instant)>
      issue;
  InPlace in_place = InPlace::kApart;
  std::function<size_t(const NcclCase&)> block_offset = [](const NcclCase&) { return size_t{0}; };
};

inline void PrintTo(const NcclOperation& operation, std::ostream* to) { *to << operation.name; }

inline size_t own_block(const NcclCase& c) { return static_cast<size_t>(c.rank) * c.count; }
inline size_t own_block_v(const NcclCase& c) { return sum_of(block_counts(c), c.rank); }
inline size_t own_count_v(const NcclCase& c) { return block_counts(c)[static_cast<size_t>(c.rank)]; }
inline size_t one_count(const NcclCase& c) { return c.count; }
inline size_t total_count(const NcclCase& c) { return c.total(); }
inline size_t total_count_v(const NcclCase& c) { return sum_of(block_counts(c), c.world); }
inline std::vector<float> nothing_unless(bool there, std::vector<float> values) {
  return there ? std::move(values) : std::vector<float>();
}
inline std::vector<float> blocks_of_all(const NcclCase& c, const std::vector<size_t>& counts) {
  std::vector<float> values;
  for (int r = 0; r < c.world; ++r) append(values, c, r, 0, counts[static_cast<size_t>(r)]);
  return values;
}
inline std::vector<size_t> same_counts(const NcclCase& c) {
  return std::vector<size_t>(static_cast<size_t>(c.world), c.count);
}

constexpr DType kF32 = DType::kFloat32;
constexpr DeviceReduction kAdd32 = DeviceReduction::kSum;

inline std::vector<NcclOperation> reducing_operations() {
  using C = NcclCase;
  using N = NcclCommunicator;
  return {
      {"all_reduce", one_count, [](const C& c) { return elements(c, -1, 0, c.count); },
       [](N& n, const C& c, const float* in, float* out, void* s, Instant d) {
         return n.all_reduce(in, out, c.count, kF32, kAdd32, s, d);
       },
       InPlace::kSame},
      {"reduce", one_count,
       [](const C& c) { return nothing_unless(c.rank == c.root, elements(c, -1, 0, c.count)); },
       [](N& n, const C& c, const float* in, float* out, void* s, Instant d) {
         return n.reduce(in, c.rank == c.root ? out : nullptr, c.count, kF32, kAdd32, c.root, s, d);
       },
       InPlace::kSame},
      {"reduce_scatter", total_count, [](const C& c) { return elements(c, -1, own_block(c), c.count); },
       [](N& n, const C& c, const float* in, float* out, void* s, Instant d) {
         return n.reduce_scatter(in, out, c.count, kF32, kAdd32, s, d);
       },
       InPlace::kOutIsBlockOfIn, own_block},
      {"reduce_scatter_v", total_count_v,
       [](const C& c) { return elements(c, -1, own_block_v(c), own_count_v(c)); },
       [](N& n, const C& c, const float* in, float* out, void* s, Instant d) {
         return n.reduce_scatter_v(in, out, block_counts(c), kF32, kAdd32, s, d);
       },
       InPlace::kOutIsBlockOfIn, own_block_v},
  };
}

inline std::vector<NcclOperation> moving_operations() {
  using C = NcclCase;
  using N = NcclCommunicator;
  return {
      {"broadcast", one_count, [](const C& c) { return elements(c, c.root, 0, c.count); },
       [](N& n, const C& c, const float* in, float* out, void* s, Instant d) {
         return n.broadcast(c.rank == c.root ? in : nullptr, out, c.count, kF32, c.root, s, d);
       },
       InPlace::kSame},
      {"all_gather", one_count, [](const C& c) { return blocks_of_all(c, same_counts(c)); },
       [](N& n, const C& c, const float* in, float* out, void* s, Instant d) {
         return n.all_gather(in, out, c.count, kF32, s, d);
       },
       InPlace::kInIsBlockOfOut, own_block},
      {"all_gather_v", own_count_v, [](const C& c) { return blocks_of_all(c, block_counts(c)); },
       [](N& n, const C& c, const float* in, float* out, void* s, Instant d) {
         return n.all_gather_v(in, out, block_counts(c), kF32, s, d);
       },
       InPlace::kInIsBlockOfOut, own_block_v},
      {"gather", one_count,
       [](const C& c) { return nothing_unless(c.rank == c.root, blocks_of_all(c, same_counts(c))); },
       [](N& n, const C& c, const float* in, float* out, void* s, Instant d) {
         return n.gather(in, c.rank == c.root ? out : nullptr, c.count, kF32, c.root, s, d);
       },
       InPlace::kInIsBlockOfOut, own_block},
      {"gather_v", own_count_v,
       [](const C& c) { return nothing_unless(c.rank == c.root, blocks_of_all(c, block_counts(c))); },
       [](N& n, const C& c, const float* in, float* out, void* s, Instant d) {
         return n.gather_v(in, c.rank == c.root ? out : nullptr, block_counts(c), kF32, c.root, s, d);
       },
       InPlace::kInIsBlockOfOut, own_block_v},
      {"scatter", total_count, [](const C& c) { return elements(c, c.root, own_block(c), c.count); },
       [](N& n, const C& c, const float* in, float* out, void* s, Instant d) {
         return n.scatter(c.rank == c.root ? in : nullptr, out, c.count, kF32, c.root, s, d);
       },
       InPlace::kOutIsBlockOfIn, own_block},
      {"scatter_v", total_count_v,
       [](const C& c) { return elements(c, c.root, own_block_v(c), own_count_v(c)); },
       [](N& n, const C& c, const float* in, float* out, void* s, Instant d) {
         return n.scatter_v(c.rank == c.root ? in : nullptr, out, block_counts(c), kF32, c.root, s, d);
       },
       InPlace::kOutIsBlockOfIn, own_block_v},
      {"all_to_all", total_count,
       [](const C& c) {
         std::vector<float> values;
         for (int r = 0; r < c.world; ++r) append(values, c, r, own_block(c), c.count);
         return values;
       },
       [](N& n, const C& c, const float* in, float* out, void* s, Instant d) {
         return n.all_to_all(in, out, c.count, kF32, s, d);
       }},
      {"all_to_all_v", [](const C& c) { return sum_of(sent_counts(c, c.rank), c.world); },
       [](const C& c) {
         std::vector<float> values;
         for (int r = 0; r < c.world; ++r)
           append(values, c, r, sum_of(sent_counts(c, r), c.rank), pair_count(c, r, c.rank));
         return values;
       },
       [](N& n, const C& c, const float* in, float* out, void* s, Instant d) {
         return n.all_to_all_v(in, sent_counts(c, c.rank), out, received_counts(c, c.rank), kF32, s, d);
       }},
  };
}

// Along a ring, by exchange, and from the root to the next rank by a send and a receive alone.
inline std::vector<NcclOperation> pair_operations() {
  using C = NcclCase;
  using N = NcclCommunicator;
  return {
      {"exchange", one_count,
       [](const C& c) { return elements(c, (c.rank + c.world - 1) % c.world, 0, c.count); },
       [](N& n, const C& c, const float* in, float* out, void* s, Instant d) {
         const NcclSend send{in, c.count, (c.rank + 1) % c.world};
         const NcclReceive receive{out, c.count, (c.rank + c.world - 1) % c.world};
         return n.exchange({&send, 1}, {&receive, 1}, kF32, s, d);
       }},
      {"send and receive", one_count,
       [](const C& c) {
         return nothing_unless(c.world > 1 && c.rank == (c.root + 1) % c.world,
                               elements(c, c.root, 0, c.count));
       },
       [](N& n, const C& c, const float* in, float* out, void* s, Instant d) {
         const int next = (c.root + 1) % c.world;
         if (c.world > 1 && c.rank == c.root) return n.send(in, c.count, kF32, next, s, d);
         if (c.world > 1 && c.rank == next) return n.receive(out, c.count, kF32, c.root, s, d);
         return n.exchange({}, {}, kF32, s, d);
       }},
  };
}

inline std::vector<NcclOperation> all_operations() {
  std::vector<NcclOperation> all = reducing_operations();
  for (auto& each : moving_operations()) all.push_back(each);
  for (auto& each : pair_operations()) all.push_back(each);
  return all;
}

// Where the input and the output of a case lie in `memory`, the input written, all else −1.
struct NcclBuffers {
  static constexpr size_t kGuard = 16;
  float* in;
  float* out;
  size_t out_count;

  static size_t floats_needed(int world, size_t count) {
    return 2 * (static_cast<size_t>(world) * (count + 3 * static_cast<size_t>(world)) + 2 * kGuard);
  }

  NcclBuffers(const NcclOperation& operation, const NcclCase& c, bool in_place, float* memory, size_t floats)
      : in(memory + kGuard), out(memory + floats / 2 + kGuard), out_count(operation.expected(c).size()) {
    if (in_place && operation.in_place == InPlace::kSame) out = in;
    if (in_place && operation.in_place == InPlace::kOutIsBlockOfIn) out = in + operation.block_offset(c);
    if (in_place && operation.in_place == InPlace::kInIsBlockOfOut) in = out + operation.block_offset(c);
  }

  static void fill(const NcclOperation& operation, const NcclCase& c, float* host, size_t floats,
                   ptrdiff_t in_offset) {
    for (size_t i = 0; i < floats; ++i) host[i] = -1;
    for (size_t i = 0; i < operation.in_count(c); ++i)
      host[static_cast<size_t>(in_offset) + i] = input_of(c.rank, i);
  }

  // What is wrong in a host copy of the memory, or nothing.
  static std::string errors(const NcclOperation& operation, const NcclCase& c, bool in_place,
                            const float* host, size_t floats, ptrdiff_t in_offset, ptrdiff_t out_offset) {
    const std::vector<float> expected = operation.expected(c);
    for (size_t i = 0; i < floats; ++i) {
      const ptrdiff_t place = static_cast<ptrdiff_t>(i);
      const size_t from_out = i - static_cast<size_t>(out_offset),
                   from_in = i - static_cast<size_t>(in_offset);
      float wanted = -1;
      if (place >= in_offset && from_in < operation.in_count(c)) wanted = input_of(c.rank, from_in);
      if (place >= out_offset && from_out < expected.size()) wanted = expected[from_out];
      if (host[i] == wanted) continue;
      // What an operation in place leaves in the rest of its input is undefined.
      if (in_place && place >= in_offset && from_in < operation.in_count(c) && from_out >= expected.size())
        continue;
      return "element " + std::to_string(place - out_offset) + " of out is " + std::to_string(host[i]) +
             ", not " + std::to_string(wanted);
    }
    return "";
  }
};

inline std::string to_string(const NcclOperation& operation, const NcclCase& c, bool in_place) {
  return operation.name + (in_place ? " in place" : "") + ", rank " + std::to_string(c.rank) + " of " +
         std::to_string(c.world) + ", count " + std::to_string(c.count) + ", root " + std::to_string(c.root);
}

}  // namespace muster
