// Operations × types × operators × counts × in place or not, on every world size and medium; and the
// canonical reduction's bits.
#include "collectives/group.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "collectives/node/message_blocks.h"
#include "collectives/reducer.h"
#include "collectives/small_floats.h"
#include "tests/collectives/world.h"

namespace muster {
namespace {

// A buffer of any element type, read and written as numbers. Rounding is that of small_floats.h, which has a
// test of its own.
class Numbers {
 public:
  Numbers(DType dtype, size_t count)
      : dtype_(dtype), own_(count * size_of(dtype) + 1), data_(own_.data() + 1) {}
  // In the group's memory. Off by one byte, like the others: any alignment is allowed.
  Numbers(const Member& member, bool shared, DType dtype, size_t count) : Numbers(dtype, count) {
    if (!shared) return;
    auto buffer = member.group.allocate(own_.size());
    if (!buffer.ok()) {
      member.fail(buffer.error().message);
      return;
    }
    shared_ = std::move(*buffer);
    data_ = shared_.data() + 1;
  }
  std::byte* data() { return data_; }
  std::byte* at(size_t i) { return data_ + i * size_of(dtype_); }

  void set(size_t i, double value) { write(at(i), value); }
  // Asked of millions of elements, so nothing is allocated.
  bool equals(size_t i, double value) const {
    std::array<std::byte, sizeof(double)> expected;
    write(expected.data(), value);
    return std::memcmp(data_ + i * size_of(dtype_), expected.data(), size_of(dtype_)) == 0;
  }

 private:
  void write(std::byte* to, double value) const {
    const auto whole = static_cast<int64_t>(value);
    const auto small = static_cast<float>(value);
    switch (dtype_) {
      case DType::kFloat32:
        return put(to, small);
      case DType::kFloat64:
        return put(to, value);
      case DType::kBFloat16:
        return put(to, narrow_bfloat16(small));
      case DType::kFloat16:
        return put(to, narrow_float16(small));
      case DType::kFloat8E4M3:
        return put(to, narrow_float8_e4m3(small));
      case DType::kFloat8E5M2:
        return put(to, narrow_float8_e5m2(small));
      case DType::kInt8:
      case DType::kUInt8:
        return put(to, static_cast<int8_t>(whole));
      case DType::kInt16:
      case DType::kUInt16:
        return put(to, static_cast<int16_t>(whole));
      case DType::kInt32:
      case DType::kUInt32:
        return put(to, static_cast<int32_t>(whole));
      case DType::kInt64:
      case DType::kUInt64:
        return put(to, whole);
    }
  }
  template <typename T>
  static void put(std::byte* to, T value) {
    std::memcpy(to, &value, sizeof value);
  }
  DType dtype_;
  std::vector<std::byte> own_;
  SharedBuffer shared_;
  std::byte* data_;
};

bool is_unsigned(DType dtype) {
  return dtype == DType::kUInt8 || dtype == DType::kUInt16 || dtype == DType::kUInt32 ||
         dtype == DType::kUInt64;
}
bool is_whole(DType dtype) {
  return is_unsigned(dtype) || dtype == DType::kInt8 || dtype == DType::kInt16 || dtype == DType::kInt32 ||
         dtype == DType::kInt64;
}

enum class What {
  kAllReduce,
  kReduce,
  kReduceScatter,
  kReduceScatterV,
  kAllGather,
  kAllGatherV,
  kGather,
  kGatherV,
  kScatter,
  kScatterV,
  kAllToAll,
  kAllToAllV,
  kBroadcast,
};
constexpr const char* kWhatNames[] = {
    "all_reduce", "reduce",  "reduce_scatter", "reduce_scatter_v", "all_gather",   "all_gather_v", "gather",
    "gather_v",   "scatter", "scatter_v",      "all_to_all",       "all_to_all_v", "broadcast"};
constexpr size_t kCounts[] = {0, 1, 7, 1031, 5003, 70'001};

struct Row {
  What what;
  DType dtype;
  ReduceOp op;
  size_t count;
  int root;
  bool in_place;
  bool shared;

  bool reduces() const { return what <= What::kReduceScatterV; }
  bool uneven() const {
    return what == What::kReduceScatterV || what == What::kAllGatherV || what == What::kGatherV ||
           what == What::kScatterV;
  }
  std::string text() const {
    return std::string(kWhatNames[static_cast<int>(what)]) + " " + std::string(to_string(dtype)) + " " +
           std::string(to_string(op)) + " × " + std::to_string(count) + " root " + std::to_string(root) +
           (in_place ? " in place" : "") + (shared ? " shared" : "");
  }
};

// Small, so that sums and products of nine ranks fit into every type. They repeat after kPeriod elements.
constexpr size_t kPeriod = 11 * 5 * 3;
double value_of(const Row& row, int rank, size_t i) {
  const auto mixed = i * 7 + static_cast<size_t>(rank) * 3;
  if (row.op == ReduceOp::kProd && row.reduces()) {
    const double sign = is_unsigned(row.dtype) || mixed % 5 != 0 ? 1 : -1;
    return mixed % 3 == 0 ? 2 * sign : sign;
  }
  return static_cast<double>(mixed % 11) - (is_unsigned(row.dtype) ? 0 : 5);
}

double factor_of(DType dtype) { return is_whole(dtype) ? 3 : 0.5; }

double combined(const Row& row, int ranks, size_t i) {
  const double factor = row.op == ReduceOp::kPremulSum ? factor_of(row.dtype) : 1;
  double result = value_of(row, 0, i) * factor;
  for (int rank = 1; rank < ranks; ++rank) {
    const double value = value_of(row, rank, i) * factor;
    if (row.op == ReduceOp::kMin) {
      result = std::min(result, value);
    } else if (row.op == ReduceOp::kMax) {
      result = std::max(result, value);
    } else if (row.op == ReduceOp::kProd) {
      result *= value;
    } else {
      result += value;
    }
  }
  if (row.op != ReduceOp::kAvg) return result;
  if (row.dtype == DType::kFloat64) return result / ranks;
  if (is_whole(row.dtype)) return std::trunc(result / ranks);
  return static_cast<double>(static_cast<float>(result) / static_cast<float>(ranks));
}

// combined() of the first elements, after which they repeat.
std::vector<double> combined_of_a_period(const Row& row, int ranks) {
  std::vector<double> values;
  for (size_t i = 0; i < kPeriod; ++i) values.push_back(combined(row, ranks, i));
  return values;
}

// Block sizes of the operations with uneven ones: some empty.
std::vector<size_t> counts_of(const Row& row, int ranks) {
  std::vector<size_t> counts;
  for (int rank = 0; rank < ranks; ++rank)
    counts.push_back(!row.uneven()                ? row.count
                     : (rank + row.root) % 3 == 1 ? 0
                                                  : row.count / static_cast<size_t>(rank + 1));
  return counts;
}

Work issue(const Member& member, const Row& row, const std::vector<size_t>& counts, const void* in,
           void* out) {
  Group& group = member.group;
  const double factor = factor_of(row.dtype);
  switch (row.what) {
    case What::kAllReduce:
      return group.all_reduce(in, out, row.count, row.dtype, row.op, member.soon(), factor);
    case What::kReduce:
      return group.reduce(in, out, row.count, row.dtype, row.op, row.root, member.soon(), factor);
    case What::kReduceScatter:
      return group.reduce_scatter(in, out, row.count, row.dtype, row.op, member.soon(), factor);
    case What::kReduceScatterV:
      return group.reduce_scatter_v(in, out, counts, row.dtype, row.op, member.soon(), factor);
    case What::kAllGather:
      return group.all_gather(in, out, row.count, row.dtype, member.soon());
    case What::kAllGatherV:
      return group.all_gather_v(in, out, counts, row.dtype, member.soon());
    case What::kGather:
      return group.gather(in, out, row.count, row.dtype, row.root, member.soon());
    case What::kGatherV:
      return group.gather_v(in, out, counts, row.dtype, row.root, member.soon());
    case What::kScatter:
      return group.scatter(in, out, row.count, row.dtype, row.root, member.soon());
    case What::kScatterV:
      return group.scatter_v(in, out, counts, row.dtype, row.root, member.soon());
    case What::kAllToAll:
      return group.all_to_all(in, out, row.count, row.dtype, member.soon());
    case What::kAllToAllV:
      break;  // see test_pairs
    case What::kBroadcast:
      return group.broadcast(in, out, row.count, row.dtype, row.root, member.soon());
  }
  return {};
}

// all_to_all_v: what one rank has for another. Some have nothing, and nobody has the same for all.
size_t count_between(const Row& row, int from, int to) {
  return (from + 2 * to + row.root) % 3 == 1 ? 0 : row.count / static_cast<size_t>(1 + (3 * from + to) % 4);
}

// Never in place.
void test_pairs(const Member& member, const Row& row) {
  const auto before = [&](int from, int to) {
    size_t count = 0;
    for (int other = 0; other < to; ++other) count += count_between(row, from, other);
    return count;
  };
  std::vector<size_t> sent, received;
  for (int peer = 0; peer < member.size; ++peer) {
    sent.push_back(count_between(row, member.rank, peer));
    received.push_back(count_between(row, peer, member.rank));
  }
  const size_t in_count = before(member.rank, member.size);
  const size_t out_count = std::accumulate(received.begin(), received.end(), size_t{0});
  Numbers in(member, row.shared, row.dtype, in_count);
  Numbers out(member, row.shared, row.dtype, out_count + 1);
  for (size_t i = 0; i < in_count; ++i) in.set(i, value_of(row, member.rank, i));
  out.set(out_count, 1);
  const Status status =
      member.group.all_to_all_v(in.data(), sent, out.data(), received, row.dtype, member.soon()).wait();
  if (!status.ok()) return member.fail(row.text() + ": " + status.error().message);
  size_t i = 0;
  for (int peer = 0; peer < member.size; ++peer) {
    const size_t first = before(peer, member.rank);
    for (size_t k = 0; k < received[static_cast<size_t>(peer)]; ++k, ++i)
      if (!out.equals(i, value_of(row, peer, first + k)))
        return member.fail(row.text() + ": element " + std::to_string(k) + " of " + std::to_string(peer));
  }
  member.expect(out.equals(out_count, 1), row.text() + ": wrote behind its output");
  for (i = 0; i < in_count; ++i)
    if (!in.equals(i, value_of(row, member.rank, i))) return member.fail(row.text() + ": the input changed");
}

void test_row(const Member& member, const Row& row) {
  if (row.what == What::kAllToAllV) return test_pairs(member, row);
  const std::vector<size_t> counts = counts_of(row, member.size);
  const auto me = static_cast<size_t>(member.rank);
  const size_t mine = counts[me];
  const size_t all = std::accumulate(counts.begin(), counts.end(), size_t{0});
  const size_t offset = std::accumulate(counts.begin(), counts.begin() + member.rank, size_t{0});
  const bool is_root = member.rank == row.root;
  const bool exchanges = row.what == What::kAllToAll;
  const bool gathers = row.what >= What::kAllGather && row.what <= What::kGatherV;
  const bool scatters = row.what == What::kScatter || row.what == What::kScatterV;
  const bool splits = scatters || row.what == What::kReduceScatter || row.what == What::kReduceScatterV;
  const size_t in_count = splits || exchanges ? all : gathers ? mine : row.count;
  const size_t out_count = gathers || exchanges ? all : splits ? mine : row.count;

  // The larger buffer holds the smaller one where an operation works in place.
  Numbers in(member, row.shared, row.dtype, row.in_place ? std::max(in_count, out_count) : in_count);
  Numbers out(member, row.shared, row.dtype, out_count);
  const bool one_writes =
      row.what == What::kReduce || row.what == What::kGather || row.what == What::kGatherV;
  const bool rooted_in_place = scatters || row.what == What::kGather || row.what == What::kGatherV;
  const bool in_place = row.in_place && (!rooted_in_place || is_root);
  const size_t read_from = in_place && gathers ? offset : 0;
  for (size_t i = 0; i < in_count; ++i) in.set(read_from + i, value_of(row, member.rank, i));
  std::byte* output = !in_place ? out.data() : splits ? in.at(offset) : in.data();
  const bool one_reads = scatters || row.what == What::kBroadcast;
  const void* source =
      one_reads && !is_root && !(row.what == What::kBroadcast && in_place) ? nullptr : in.at(read_from);

  const Status status =
      issue(member, row, counts, source, one_writes && !is_root && !in_place ? nullptr : output).wait();
  if (!status.ok()) return member.fail(row.text() + ": " + status.error().message);
  if (one_writes && !is_root) return;

  Numbers& result = in_place ? in : out;
  const size_t first = in_place && splits ? offset : 0;
  const std::vector<double> sums = combined_of_a_period(row, member.size);
  size_t block = 0;
  size_t within = 0;
  for (size_t i = 0; i < out_count; ++i) {
    while ((gathers || exchanges) && within == counts[block]) {
      ++block;
      within = 0;
    }
    double expected = 0;
    if (row.what == What::kAllReduce || row.what == What::kReduce) expected = sums[i % kPeriod];
    if (splits && !scatters) expected = sums[(offset + i) % kPeriod];
    if (gathers) expected = value_of(row, static_cast<int>(block), within);
    if (exchanges) expected = value_of(row, static_cast<int>(block), offset + within);
    if (scatters) expected = value_of(row, row.root, offset + i);
    if (row.what == What::kBroadcast) expected = value_of(row, row.root, i);
    if (!result.equals(first + i, expected))
      return member.fail(row.text() + ": element " + std::to_string(i));
    ++within;
  }
  for (size_t i = 0; !in_place && source != nullptr && i < in_count; ++i)
    if (!in.equals(i, value_of(row, member.rank, i))) return member.fail(row.text() + ": the input changed");
}

constexpr size_t kWidths[] = {
    std::size(kWhatNames), kDTypeCount, kReduceOpCount, std::size(kCounts), 3, 2, 2};
using Choice = std::array<size_t, std::size(kWidths)>;

Row row_of(const Choice& choice, int ranks) {
  const int roots[] = {0, ranks - 1, ranks / 2};
  return {static_cast<What>(choice[0]),
          static_cast<DType>(choice[1]),
          static_cast<ReduceOp>(choice[2]),
          kCounts[choice[3]],
          roots[choice[4]],
          choice[5] == 1,
          choice[6] == 1};
}

// Rows in which every two values of every two columns meet. Greedy: each row is the best of some random ones
// that hold a pair that is still missing. The same on every rank.
std::vector<Choice> all_pairs() {
  std::set<std::array<size_t, 4>> missing;  // column, value, later column, value
  for (size_t a = 0; a < std::size(kWidths); ++a)
    for (size_t b = a + 1; b < std::size(kWidths); ++b)
      for (size_t x = 0; x < kWidths[a]; ++x)
        for (size_t y = 0; y < kWidths[b]; ++y) missing.insert({a, x, b, y});
  uint64_t random = 1;
  const auto pairs_of = [](const Choice& choice) {
    std::vector<std::array<size_t, 4>> pairs;
    for (size_t a = 0; a < choice.size(); ++a)
      for (size_t b = a + 1; b < choice.size(); ++b) pairs.push_back({a, choice[a], b, choice[b]});
    return pairs;
  };
  std::vector<Choice> rows;
  while (!missing.empty()) {
    Choice best{};
    int most = -1;
    for (int attempt = 0; attempt < 20; ++attempt) {
      Choice choice;
      for (size_t column = 0; column < choice.size(); ++column) {
        random = mix64(random + 1);
        choice[column] = random % kWidths[column];
      }
      const auto wanted = *missing.begin();
      choice[wanted[0]] = wanted[1];
      choice[wanted[2]] = wanted[3];
      int gain = 0;
      for (const auto& pair : pairs_of(choice)) gain += missing.contains(pair);
      if (gain <= most) continue;
      most = gain;
      best = choice;
    }
    for (const auto& pair : pairs_of(best)) missing.erase(pair);
    rows.push_back(best);
  }
  return rows;
}

// Everything but what differs in nothing: operators of operations that have none, roots likewise.
std::vector<Choice> all_rows() {
  std::vector<Choice> rows;
  Choice choice{};
  for (;;) {
    const auto what = static_cast<What>(choice[0]);
    const bool reduces = what <= What::kReduceScatterV;
    const bool rooted = what == What::kReduce || what == What::kBroadcast ||
                        (what >= What::kGather && what <= What::kScatterV) || what == What::kAllToAllV;
    if ((reduces || choice[2] == 0) && (rooted || choice[4] == 0)) rows.push_back(choice);
    size_t column = 0;
    while (column < choice.size() && ++choice[column] == kWidths[column]) choice[column++] = 0;
    if (column == choice.size()) return rows;
  }
}

void test_in_flight(const Member& member) {
  constexpr size_t kCount = 3000;
  std::vector<std::vector<float>> buffers;
  std::vector<Work> works;
  for (int i = 0; i < 12; ++i) {
    buffers.emplace_back(kCount * static_cast<size_t>(i % 3 == 2 ? 20 : 1),
                         static_cast<float>(member.rank + i));
    works.push_back(member.group.all_reduce(buffers.back().data(), buffers.back().data(),
                                            buffers.back().size(), DType::kFloat32, ReduceOp::kMax,
                                            member.soon()));
    if (i % 4 == 0) works.push_back(member.group.barrier(member.soon()));
  }
  for (auto work = works.rbegin(); work != works.rend(); ++work) member.expect_ok(work->wait(), "in flight");
  for (size_t i = 0; i < buffers.size(); ++i) {
    for (float value : buffers[i])
      if (value != static_cast<float>(member.size - 1 + static_cast<int>(i)))
        return member.fail("in flight: value");
  }
}

// On a node an all_to_all_v learns only while it runs how many tiles it has, and what comes after waits for
// that: some of one tile, some of many, small and large ones between.
void test_pairs_in_flight(const Member& member) {
  constexpr size_t kMost[] = {3, 90'000, 0, 40'000, 1, 150'000};
  const auto ranks = static_cast<size_t>(member.size);
  std::vector<std::vector<int32_t>> ins, outs;
  std::vector<int32_t> sums(2 * std::size(kMost), 1);
  std::vector<Work> works;
  for (size_t i = 0; i < std::size(kMost); ++i) {
    // To the ranks before it a rank sends nothing, to the others the same.
    const auto count_of = [&](int from, int to) {
      return from > to ? 0 : kMost[i] / static_cast<size_t>(from + 1);
    };
    std::vector<size_t> sent, received;
    for (int peer = 0; peer < member.size; ++peer) {
      sent.push_back(count_of(member.rank, peer));
      received.push_back(count_of(peer, member.rank));
    }
    ins.emplace_back(std::accumulate(sent.begin(), sent.end(), size_t{0}),
                     static_cast<int32_t>(i) + member.rank * 100);
    outs.emplace_back(std::accumulate(received.begin(), received.end(), size_t{0}), -1);
    works.push_back(member.group.all_to_all_v(ins.back().data(), sent, outs.back().data(), received,
                                              DType::kInt32, member.soon()));
    for (size_t k = 0; k < i % 3; ++k)
      works.push_back(member.group.all_reduce(&sums[2 * i + k], &sums[2 * i + k], 1, DType::kInt32,
                                              ReduceOp::kSum, member.soon()));
  }
  for (auto work = works.rbegin(); work != works.rend(); ++work) member.expect_ok(work->wait(), "in flight");
  for (size_t i = 0; i < std::size(kMost); ++i) {
    size_t at = 0;
    for (int peer = 0; peer <= member.rank; ++peer)
      for (size_t k = 0; k < kMost[i] / static_cast<size_t>(peer + 1); ++k, ++at)
        if (outs[i][at] != static_cast<int32_t>(i) + peer * 100)
          return member.fail("in flight: all_to_all_v");
    for (size_t k = 0; k < i % 3; ++k)
      member.expect(sums[2 * i + k] == static_cast<int32_t>(ranks), "in flight: a sum after an all_to_all_v");
  }
}

// Nobody waits: the progress thread does it all.
void test_background(const Member& member) {
  std::vector<float> buffer(50'000, 1.0F);
  const Work work = member.group.all_reduce(buffer.data(), buffer.data(), buffer.size(), DType::kFloat32,
                                            ReduceOp::kSum, member.soon());
  const Instant limit = now() + 20 * kSecond;
  std::vector<float> small(3, 1.0F);
  const Work tail =
      member.group.all_reduce(small.data(), small.data(), 3, DType::kFloat32, ReduceOp::kSum, member.soon());
  usleep(20'000);
  while (!(tail.test() && work.test()) && now() < limit) usleep(5'000);
  member.expect(work.test() && tail.test(), "did not complete in the background");
  member.expect(tail.wait().ok() && small[0] == static_cast<float>(member.size), "wrong in the background");
}

void matrix(const Member& member, const std::vector<Choice>& rows) {
  for (const Choice& choice : rows) test_row(member, row_of(choice, member.size));
  member.expect_ok(member.group.barrier(member.soon()).wait(), "barrier");
  test_in_flight(member);
  test_pairs_in_flight(member);
  test_background(member);
}

struct Case {
  Medium medium;
  int ranks;
};
std::string case_name(const testing::TestParamInfo<Case>& info) {
  return std::string(name_of(info.param.medium)) + std::to_string(info.param.ranks);
}

class Operations : public testing::TestWithParam<Case> {};

TEST_P(Operations, AllPairs) {
  static const std::vector<Choice> rows = all_pairs();
  run_world(GetParam().medium, GetParam().ranks, [&](Member& member) {
    matrix(member, rows);
    const bool has_mates = on_nodes(GetParam().medium) && GetParam().ranks >= 4;
    member.expect(!has_mates || MessageBlocks::put_in_all() > 0, "nothing went by blocks");
  });
}

// Minutes: labelled `full`.
class Whole : public testing::TestWithParam<Case> {};

TEST_P(Whole, Matrix) {
  const std::vector<Choice> rows = all_rows();
  WorldOptions options;
  options.spawn.limit = 600 * kSecond;
  run_world(
      GetParam().medium, GetParam().ranks, [&](Member& member) { matrix(member, rows); }, options);
}

std::vector<Case> sizes(Medium medium, std::vector<int> ranks) {
  std::vector<Case> cases;
  for (int size : ranks) cases.push_back({medium, size});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(InProcess, Operations,
                         testing::ValuesIn(sizes(Medium::kInProcess, {1, 2, 3, 4, 5, 6, 7, 8, 9})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(NodeThreads, Operations,
                         testing::ValuesIn(sizes(Medium::kNodeThreads, {2, 3, 4, 5, 6, 7, 8, 9})), case_name);
INSTANTIATE_TEST_SUITE_P(NodeProcesses, Operations,
                         testing::ValuesIn(sizes(Medium::kNodeProcesses, {1, 2, 3, 4, 5, 6, 7, 8, 9})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Ucx, Operations,
                         testing::ValuesIn(sizes(Medium::kUcxProcesses, {1, 2, 3, 4, 5, 6, 7, 8, 9})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Both, Operations, testing::ValuesIn(sizes(Medium::kBothProcesses, {2, 4})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(NodesThreads, Operations, testing::ValuesIn(sizes(Medium::kNodesThreads, {3, 4, 7})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(NodesProcesses, Operations,
                         testing::ValuesIn(sizes(Medium::kNodesProcesses, {4, 5})), case_name);

INSTANTIATE_TEST_SUITE_P(InProcess, Whole, testing::ValuesIn(sizes(Medium::kInProcess, {1, 2, 3, 5, 9})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(NodeProcesses, Whole,
                         testing::ValuesIn(sizes(Medium::kNodeProcesses, {2, 3, 4, 7, 9})), case_name);
INSTANTIATE_TEST_SUITE_P(Ucx, Whole, testing::ValuesIn(sizes(Medium::kUcxProcesses, {2, 4})), case_name);
INSTANTIATE_TEST_SUITE_P(NodesProcesses, Whole, testing::ValuesIn(sizes(Medium::kNodesProcesses, {4})),
                         case_name);

class Algorithms : public testing::TestWithParam<const char*> {};

TEST_P(Algorithms, EachGivesTheRightNumbers) {
  for (int ranks : {1, 2, 3, 6}) {
    run_world(Medium::kInProcess, ranks,
              [](Member& member) {
                for (const What what : {What::kAllReduce, What::kReduceScatter, What::kAllGather})
                  for (const DType dtype : {DType::kFloat32, DType::kInt64, DType::kFloat16})
                    for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kAvg, ReduceOp::kPremulSum})
                      for (const size_t count : {1, 5, 1031, 70'001})
                        for (const bool in_place : {false, true})
                          test_row(member, {what, dtype, op, count, 0, in_place, false});
              },
              {.algorithm = GetParam()});
  }
}

INSTANTIATE_TEST_SUITE_P(All, Algorithms,
                         testing::Values("one-shot", "recursive doubling", "direct", "ring", "Bruck"));

// Those that no size fixed in code chooses, on every world; counts of one chunk or part, and of several.
class NamedAlgorithms : public testing::TestWithParam<Case> {};

TEST_P(NamedAlgorithms, GiveTheRightNumbers) {
  struct Doing {
    const char* algorithm;
    std::vector<What> what;
  };
  const std::vector<Doing> all = {{"Rabenseifner", {What::kAllReduce}},
                                  {"double tree", {What::kAllReduce, What::kReduce, What::kBroadcast}},
                                  {"recursive halving", {What::kReduceScatter}},
                                  {"recursive doubling", {What::kAllGather}}};
  // The last two are folded once, by the sizes fixed in code, where they are folded.
  constexpr std::pair<DType, ReduceOp> kElements[] = {{DType::kFloat32, ReduceOp::kSum},
                                                      {DType::kInt64, ReduceOp::kAvg},
                                                      {DType::kFloat16, ReduceOp::kMax},
                                                      {DType::kFloat32, ReduceOp::kPremulSum}};
  for (const Doing& doing : all) {
    run_world(GetParam().medium, GetParam().ranks,
              [&](Member& member) {
                const int last = member.size - 1;
                for (const What what : doing.what)
                  for (const auto& [dtype, op] : kElements)
                    for (const size_t count : {0, 1, 7, 70'001})
                      for (const bool in_place : {false, true}) {
                        const int root = count % 2 == 1 ? last : 0;
                        test_row(member, {what, dtype, op, count, root, in_place, false});
                      }
              },
              {.algorithm = doing.algorithm});
  }
}

INSTANTIATE_TEST_SUITE_P(InProcess, NamedAlgorithms,
                         testing::ValuesIn(sizes(Medium::kInProcess, {1, 2, 3, 4, 5, 6, 7, 8, 9})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Ucx, NamedAlgorithms,
                         testing::ValuesIn(sizes(Medium::kUcxProcesses, {1, 2, 3, 4, 5, 6, 7, 8, 9})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(NodesThreads, NamedAlgorithms,
                         testing::ValuesIn(sizes(Medium::kNodesThreads, {4, 6, 7})), case_name);
INSTANTIATE_TEST_SUITE_P(NodesProcesses, NamedAlgorithms,
                         testing::ValuesIn(sizes(Medium::kNodesProcesses, {4})), case_name);

void expect_same_bits(Member& member) {
  constexpr size_t kCount = 70'001;
  std::vector<float> values(kCount);
  for (size_t i = 0; i < kCount; ++i)
    values[i] = 1.0F / static_cast<float>(1 + i % 97 + 13 * static_cast<size_t>(member.rank));
  member.expect_ok(
      member.group
          .all_reduce(values.data(), values.data(), kCount, DType::kFloat32, ReduceOp::kAvg, member.soon())
          .wait(),
      "all_reduce");
  std::vector<float> all(kCount * static_cast<size_t>(member.size));
  member.expect_ok(
      member.group.all_gather(values.data(), all.data(), kCount, DType::kFloat32, member.soon()).wait(),
      "all_gather");
  for (int rank = 0; rank < member.size; ++rank)
    member.expect(std::memcmp(all.data() + static_cast<size_t>(rank) * kCount, values.data(),
                              kCount * sizeof(float)) == 0,
                  "other bits on rank " + std::to_string(rank));
}

// Each element is added up in one place, so sums that depend on their order are the same on all ranks. Of
// values that no float can add without rounding. On nodes of several ranks too, in order and dealt out.
TEST(NamedAlgorithmsOnFloats, GiveAllRanksTheSameBits) {
  const std::vector<std::vector<uint64_t>> worlds = {
      {1, 2, 3},          {1, 2, 3, 4, 5},          {1, 2, 3, 4, 5, 6}, {1, 2, 3, 4, 5, 6, 7, 8},
      {8, 8, 7, 7, 9, 9}, {9, 3, 5, 3, 5, 9, 4, 4}, {8, 7, 7, 8, 8, 7}};
  for (const char* algorithm : {"Rabenseifner", "double tree"}) {
    for (const auto& nodes : worlds)
      run_world(Medium::kInProcess, static_cast<int>(nodes.size()), expect_same_bits,
                {.algorithm = algorithm, .nodes = nodes});
  }
}

// Ranks that share nodes reduce there first. Small ones do not, nor types that round at each fold.
class Nodes : public testing::TestWithParam<Medium> {};
TEST_P(Nodes, RanksOnSeveralGiveTheRightNumbers) {
  const std::vector<std::vector<uint64_t>> worlds = {
      {7, 7, 8, 8}, {8, 7, 8, 7}, {5, 5, 5, 9, 9, 9}, {3, 1, 2, 2, 3, 1}, {7, 7, 8}};
  for (const auto& nodes : worlds) {
    run_world(
        GetParam(), static_cast<int>(nodes.size()),
        [](Member& member) {
          for (const What what : {What::kAllReduce, What::kReduceScatter, What::kAllGather, What::kBroadcast})
            for (const DType dtype : {DType::kFloat32, DType::kInt64, DType::kFloat16})
              for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kAvg, ReduceOp::kPremulSum})
                for (const size_t count : {1, 5, 4099, 70'001})
                  for (const bool in_place : {false, true})
                    test_row(member, {what, dtype, op, count, 0, in_place, false});
        },
        {.nodes = nodes});
  }
}
INSTANTIATE_TEST_SUITE_P(All, Nodes, testing::Values(Medium::kInProcess, Medium::kNodesThreads),
                         [](const auto& parameter) { return std::string(name_of(parameter.param)); });

// Large operations go in parts, several at once. The first row has more parts than tags tell apart.
TEST(Parts, OfALargeOperationArriveWhereTheyBelong) {
  constexpr size_t kPartOfOne = 512 * 1024 / sizeof(float);
  run_world(Medium::kInProcess, 2, [](Member& member) {
    test_row(member,
             {What::kAllReduce, DType::kFloat32, ReduceOp::kSum, 70 * 2 * kPartOfOne + 5, 0, false, false});
  });
  for (const std::vector<uint64_t>& nodes : {std::vector<uint64_t>{7, 7, 7}, {7, 7, 8, 8}}) {
    run_world(nodes.size() == 3 ? Medium::kInProcess : Medium::kNodesThreads, static_cast<int>(nodes.size()),
              [](Member& member) {
                const size_t part = kPartOfOne * static_cast<size_t>(member.size);
                for (const What what : {What::kAllReduce, What::kReduce, What::kBroadcast})
                  for (const size_t count : {part + 1, 6 * part + 70'001})
                    for (const bool in_place : {false, true})
                      test_row(member, {what, DType::kFloat32, ReduceOp::kAvg, count, 1, in_place, false});
              },
              {.nodes = nodes});
  }
}

// So do those of Rabenseifner, which are smaller; a double tree goes as a whole, in many chunks.
TEST(Parts, OfNamedAlgorithmsArriveWhereTheyBelong) {
  constexpr size_t kFew = (9 << 20) / sizeof(float) + 5;
  for (const char* algorithm : {"Rabenseifner", "double tree"}) {
    for (const std::vector<uint64_t>& nodes : {std::vector<uint64_t>{7, 7, 7}, {7, 7, 8, 8}}) {
      run_world(nodes.size() == 3 ? Medium::kInProcess : Medium::kNodesThreads,
                static_cast<int>(nodes.size()),
                [](Member& member) {
                  for (const What what : {What::kAllReduce, What::kReduce, What::kBroadcast})
                    for (const bool in_place : {false, true})
                      test_row(member, {what, DType::kFloat32, ReduceOp::kAvg, kFew, 1, in_place, false});
                },
                {.algorithm = algorithm, .nodes = nodes});
    }
  }
}

// What has arrived of a large round is folded, or copied, while the rest is on its way.
class Folds : public testing::TestWithParam<Case> {};
TEST_P(Folds, OfWhatHasArrivedAreRight) {
  run_world(GetParam().medium, GetParam().ranks, [](Member& member) {
    for (const What what :
         {What::kAllReduce, What::kReduceScatter, What::kReduceScatterV, What::kAllGather, What::kAllGatherV,
          What::kAllToAll, What::kAllToAllV, What::kGather, What::kScatter})
      for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kAvg})
        for (const bool in_place : {false, true}) {
          if (op != ReduceOp::kSum && what != What::kReduceScatter) continue;
          test_row(member, {what, DType::kFloat32, op, 300'007, 0, in_place, false});
        }
  });
}
INSTANTIATE_TEST_SUITE_P(InProcess, Folds, testing::ValuesIn(sizes(Medium::kInProcess, {2, 3})), case_name);
INSTANTIATE_TEST_SUITE_P(Ucx, Folds, testing::ValuesIn(sizes(Medium::kUcxProcesses, {2, 3})), case_name);
INSTANTIATE_TEST_SUITE_P(NodesProcesses, Folds, testing::ValuesIn(sizes(Medium::kNodesProcesses, {3})),
                         case_name);

// ---- canonical reduction

float tree_sum(const std::vector<float>& values, int begin, int end) {
  if (end - begin == 1) return values[static_cast<size_t>(begin)];
  const int middle = begin + (end - begin + 1) / 2;
  const float left = tree_sum(values, begin, middle);
  const float right = tree_sum(values, middle, end);
  return left + right;
}

float gradient(int microbatch, size_t i) {
  const uint64_t bits = mix64(static_cast<uint64_t>(microbatch) * 1'000'003 + i);
  const double fraction = static_cast<double>(bits >> 40) * 0x1.0p-24 - 0.5;
  return static_cast<float>(fraction * std::exp2(static_cast<double>(bits % 24)));
}

float reference(int microbatches, int lanes, size_t i, bool zeros) {
  const int per_lane = microbatches / lanes;
  std::vector<float> values, sums;
  for (int m = 0; m < microbatches; ++m) values.push_back(zeros ? -0.0F : gradient(m, i));
  for (int lane = 0; lane < lanes; ++lane)
    sums.push_back(tree_sum(values, lane * per_lane, (lane + 1) * per_lane));
  return (1.0F / static_cast<float>(microbatches)) * tree_sum(sums, 0, lanes);
}

// A microbatch's gradient in three parts: as a backward pass gives it, or the other way round.
void add_in_parts(const Member& member, Reducer& reducer, int microbatch, std::vector<float>& whole,
                  bool backward) {
  const size_t cuts[] = {0, whole.size() / 3, whole.size() / 2, whole.size()};
  for (size_t i = 0; i < (whole.empty() ? 1 : 3); ++i) {
    const size_t part = backward ? 2 - i : i;
    const std::span<float> piece(whole.data() + cuts[part], cuts[part + 1] - cuts[part]);
    member.expect_ok(reducer.add(microbatch, cuts[part], piece, member.soon()), "accumulate");
  }
}

void check_canonical(const Member& member, Reducer& reducer, const CanonicalLayout& layout, bool zeros) {
  const int microbatches = layout.microbatches, lanes = layout.lanes;
  const LaneRange mine = layout.assignment[static_cast<size_t>(member.rank)];
  const int per_lane = microbatches / lanes;
  const size_t count = reducer.count();
  std::vector<float> incoming(count);
  for (int m = mine.begin * per_lane; m < mine.end * per_lane; ++m) {
    for (size_t i = 0; i < count; ++i) incoming[i] = zeros ? -0.0F : gradient(m, i);
    add_in_parts(member, reducer, m, incoming, member.rank % 2 == 0);
    member.expect(incoming == std::vector<float>(count), "what was added is not zeroed");
  }
  const std::string what = "canonical " + std::to_string(microbatches) + "/" + std::to_string(lanes);
  member.expect(reducer.complete(), what + ": not complete");
  member.expect_ok(reducer.begin_rest(member.soon(), 20 * kSecond), what);
  std::vector<int> suspects;
  member.expect_ok(reducer.wait(member.soon(), suspects), what);
  const std::span<const float> out = reducer.mean();
  int sequential_differs = 0;
  for (size_t i = 0; i < count; ++i) {
    const float expected = reference(microbatches, lanes, i, zeros);
    if (std::bit_cast<uint32_t>(out[i]) != std::bit_cast<uint32_t>(expected))
      return member.fail(what + ": other bits at " + std::to_string(i));
    float sequential = 0;
    for (int m = 0; m < microbatches; ++m) sequential += zeros ? -0.0F : gradient(m, i);
    sequential_differs += sequential * (1.0F / static_cast<float>(microbatches)) != expected;
  }
  // The test could not fail if order did not matter.
  if (!zeros && count > 100 && microbatches >= 8)
    member.expect(sequential_differs > 0, what + ": order does not matter");
}

// With sums and mean in memory of this process, and of the group, where that has some.
void test_canonical(const Member& member, int microbatches, int lanes, size_t count, bool zeros,
                    size_t bucket = 1000) {
  const CanonicalLayout layout{microbatches, lanes, assign_lanes(lanes, member.size)};
  Reducer own(member.group, layout, count, bucket);
  check_canonical(member, own, layout, zeros);
  const auto plan = Reducer::accumulation(layout, member.rank, false);
  const auto shared = Reducer::in_memory_of(member.group, layout, plan, count, bucket, 3);
  member.expect((shared != nullptr) == (member.group.medium() == "shared memory"), "memory of the group");
  if (shared == nullptr) return;
  for (uint64_t step = 0; step < 2; ++step) {
    shared->begin(step);
    check_canonical(member, *shared, layout, zeros);
    member.expect(shared->beside().size() == 3, "beside the mean");
    std::ranges::fill(shared->beside(), 1.0F);
  }
}

class Canonical : public testing::TestWithParam<Case> {};

TEST_P(Canonical, SameBitsOnEveryWorld) {
  run_world(GetParam().medium, GetParam().ranks, [](Member& member) {
    for (const auto& [microbatches, lanes] :
         {std::pair{8, 8}, {16, 8}, {16, 16}, {12, 12}, {24, 8}, {64, 16}, {4, 2}}) {
      test_canonical(member, microbatches, lanes, 257, false);
      test_canonical(member, microbatches, lanes, 5, true);
    }
    test_canonical(member, 16, 8, 3000, false);  // beyond one-shot
    test_canonical(member, 12, 12, 50'001, false);
    test_canonical(member, 16, 8, 301, false, 7);
    test_canonical(member, 16, 16, 0, false);
  });
}

INSTANTIATE_TEST_SUITE_P(InProcess, Canonical,
                         testing::ValuesIn(sizes(Medium::kInProcess, {1, 2, 3, 4, 5, 6, 7, 8})), case_name);
INSTANTIATE_TEST_SUITE_P(NodeThreads, Canonical, testing::ValuesIn(sizes(Medium::kNodeThreads, {2, 3, 5, 8})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(NodeProcesses, Canonical,
                         testing::ValuesIn(sizes(Medium::kNodeProcesses, {1, 2, 3, 4, 5, 6, 7, 8})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Ucx, Canonical, testing::ValuesIn(sizes(Medium::kUcxProcesses, {2, 3, 4, 8})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(NodesThreads, Canonical, testing::ValuesIn(sizes(Medium::kNodesThreads, {3, 4, 8})),
                         case_name);

// ---- special values and bad arguments

// A bucket is reduced while the rest of the last microbatch is still computed, and a step can be begun again.
TEST(Reducing, BeginsBeforeTheBackwardPassEnds) {
  for (const Medium medium : {Medium::kInProcess, Medium::kNodeThreads}) {
    run_world(medium, 3, [](Member& member) {
      constexpr size_t kCount = 1000, kBucket = 300;  // cut at 700, 400, 100
      const CanonicalLayout layout{4, 2, assign_lanes(2, 3)};
      const LaneRange mine = layout.assignment[static_cast<size_t>(member.rank)];
      Reducer reducer(member.group, layout, kCount, kBucket);
      std::vector<int> suspects;
      const auto whole = [](int m) {
        std::vector<float> values(kCount);
        for (size_t i = 0; i < kCount; ++i) values[i] = gradient(m, i);
        return values;
      };
      for (int round = 0; round < 3; ++round) {
        reducer.begin(static_cast<uint64_t>(round));
        for (int m = mine.begin * 2; m < mine.end * 2; ++m) {
          std::vector<float> values = whole(m);
          const bool last = m + 1 == mine.end * 2;
          const auto add = [&](size_t begin, size_t end) {
            member.expect_ok(
                reducer.add(m, begin, std::span(values).subspan(begin, end - begin), member.soon()),
                "accumulate");
          };
          add(700, 1000);
          member.expect(reducer.buckets_begun() == (last ? 1 : 0), "the last bucket is not begun on time");
          add(100, 400);
          member.expect(reducer.buckets_begun() == (last ? 1 : 0), "a bucket came before the one after it");
          add(400, 700);
          member.expect(reducer.buckets_begun() == (last ? 3 : 0), "the buckets after are not begun");
          add(0, 100);
        }
        if (mine.size() == 0) {
          float one = 1;
          member.expect(reducer.add(0, 0, {&one, 1}, member.soon()).error().code == ErrorCode::kMisuse,
                        "a rank without microbatches added one");
        }
        member.expect_ok(reducer.begin_rest(member.soon(), 20 * kSecond), "reduce");
        member.expect_ok(reducer.wait(member.soon(), suspects), "reduce");
        for (size_t i = 0; i < kCount; ++i)
          if (reducer.mean()[i] != reference(4, 2, i, false)) return member.fail("other bits");
      }
    });
  }
}

// Sums that come late, as those of a device do: when a test lets them, or somebody waits.
class LateSums final : public GradientSums {
 public:
  LateSums(AccumulationPlan plan, size_t count) : sums_(host_sums(std::move(plan), count)) {}
  void reset() override {
    sums_->reset();
    arrived = 0;
  }
  Status add(int microbatch, size_t begin, std::span<float> piece) override {
    return sums_->add(microbatch, begin, piece);
  }
  bool complete() const override { return sums_->complete(); }
  bool covers(size_t begin, size_t end) const override { return sums_->covers(begin, end); }
  Status fetch(ElementRange range) override { return sums_->fetch(range); }
  Result<size_t> fetched(size_t at_least, Instant deadline) override {
    if (broken) return Error{ErrorCode::kEnvironment, "the device is broken"};
    MUSTER_ASSIGN(const size_t begun, sums_->fetched(at_least, deadline));
    arrived = std::max(arrived, at_least);
    return std::min(arrived, begun);
  }
  std::vector<const float*> partials(size_t begin) const override { return sums_->partials(begin); }

  size_t arrived = 0;
  bool broken = false;

 private:
  const std::unique_ptr<GradientSums> sums_;
};

// A bucket is reduced when its sums are there, and nobody who adds waits for them.
TEST(Reducing, BeginsWhenTheSumsHaveCome) {
  for (const bool compressed : {false, true}) {
    run_world(Medium::kInProcess, 2, [compressed](Member& member) {
      constexpr size_t kCount = 3000, kBucket = 1024;  // three buckets
      const CanonicalLayout layout{2, 2, assign_lanes(2, 2)};
      std::optional<Compression> compression;
      if (compressed) compression = {codec::CodecId::kBf16, 1};
      auto made = std::make_unique<LateSums>(Reducer::accumulation(layout, member.rank, compressed), kCount);
      LateSums& sums = *made;
      Reducer reducer(member.group, layout, kCount, kBucket, compression, std::move(made));
      for (uint64_t step = 0; step < 2; ++step) {
        reducer.begin(step);
        std::vector<float> values(kCount, 1.0F + static_cast<float>(step));
        const std::span<float> whole(values);
        member.expect_ok(reducer.add(member.rank, 1500, whole.subspan(1500), member.soon()), "accumulate");
        member.expect(reducer.buckets_begun() == 0, "begun without its sums");
        if (member.rank == 0) sums.arrived = 1;
        member.expect_ok(reducer.add(member.rank, 1000, whole.subspan(1000, 500), member.soon()),
                         "accumulate");
        member.expect(reducer.buckets_begun() == (member.rank == 0 ? 1U : 0U), "not begun on time");
        member.expect_ok(reducer.add(member.rank, 0, whole.first(1000), member.soon()), "accumulate");
        member.expect_ok(reducer.begin_rest(member.soon(), 20 * kSecond), "begin");
        std::vector<int> suspects;
        member.expect_ok(reducer.wait(member.soon(), suspects), "reduce");
        member.expect(
            std::ranges::equal(reducer.mean(), std::vector<float>(kCount, 1.0F + static_cast<float>(step))),
            "another mean");
      }
    });
  }
}

TEST(Reducing, SumsThatDoNotComeEndTheStep) {
  run_world(Medium::kInProcess, 1, [](Member& member) {
    const CanonicalLayout layout{1, 1, assign_lanes(1, 1)};
    auto made = std::make_unique<LateSums>(Reducer::accumulation(layout, 0, false), 10);
    LateSums& sums = *made;
    Reducer reducer(member.group, layout, 10, 10, std::nullopt, std::move(made));
    reducer.begin(0);
    std::vector<float> values(10);
    member.expect_ok(reducer.add(0, 0, values, member.soon()), "accumulate");
    sums.broken = true;
    const Status begun = reducer.begin_rest(member.soon(), 20 * kSecond);
    member.expect(!begun.ok() && begun.error().code == ErrorCode::kEnvironment, "the failure was not told");
  });
}

// Ranks that disagree about their gradients, or their buckets, are told, by the next operation at the latest.
TEST(Reducing, TellsOtherSizes) {
  for (const size_t own : {size_t{8}, size_t{4}}) {
    run_world(Medium::kInProcess, 2, [own](Member& member) {
      const CanonicalLayout layout{2, 2, assign_lanes(2, 2)};
      const bool odd = member.rank == 1;
      const size_t count = odd && own == 8 ? 10 : 8, bucket = odd && own == 4 ? 3 : 4;
      Reducer reducer(member.group, layout, count, bucket);
      std::vector<float> values(count, 1.0F);
      member.expect_ok(reducer.add(member.rank, 0, values, member.soon()), "accumulate");
      member.expect_ok(reducer.begin_rest(member.soon(), 20 * kSecond), "begin");
      std::vector<int> suspects;
      Status status = reducer.wait(member.soon(), suspects);
      int64_t mine = 1, most = 0;
      if (status.ok())
        status =
            member.group.all_reduce(&mine, &most, 1, DType::kInt64, ReduceOp::kMax, member.soon()).wait();
      member.expect(!status.ok() && status.error().code == ErrorCode::kMisuse, "other sizes were not told");
    });
  }
}

#if defined(__SSE__)
TEST(Values, TheProgramsFloatModeDoesNotCount) {
  for (const Medium medium : {Medium::kInProcess, Medium::kNodeThreads}) {
    run_world(medium, 3, [](Member& member) {
      for (const size_t count : {size_t{3}, size_t{20'000}}) {
        const std::vector<float> in(count, 1e-40F);  // subnormal
        std::vector<float> out(count), gradient = in;
        Reducer reducer(member.group, {3, 3, assign_lanes(3, 3)}, count, count);
        const float sum = 1e-40F + 1e-40F + 1e-40F, mean = (1.0F / 3.0F) * sum;
        const unsigned before = _mm_getcsr(), own = 0x1f80 | 0x8000 | 0x0040 | 0x6000;  // to zero, truncated
        _mm_setcsr(own);
        const Status added = reducer.add(member.rank, 0, gradient, member.soon());
        const Status begun = reducer.begin_rest(member.soon(), 20 * kSecond);
        std::vector<int> suspects;
        const Status reduced = reducer.wait(member.soon(), suspects);
        const Status summed =
            member.group
                .all_reduce(in.data(), out.data(), count, DType::kFloat32, ReduceOp::kSum, member.soon())
                .wait();
        const bool kept = (_mm_getcsr() & ~0x3FU) == own;
        _mm_setcsr(before);
        member.expect(kept, "the program's mode was changed");
        for (const Status& status : {added, begun, reduced, summed}) member.expect_ok(status, "subnormals");
        for (const float value : out) member.expect(value == sum, "a subnormal sum was lost");
        for (const float value : reducer.mean()) member.expect(value == mean, "a subnormal mean was lost");
      }
    });
  }
}
#endif

TEST(Values, NaNIsNotLostAndIntegersWrap) {
  for (const Medium medium : {Medium::kInProcess, Medium::kNodeThreads}) {
    run_world(medium, 3, [](Member& member) {
      const float nan = std::numeric_limits<float>::quiet_NaN();
      for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMin, ReduceOp::kMax, ReduceOp::kAvg}) {
        float in[2] = {member.rank == 1 ? nan : 1.0F, -0.0F}, out[2] = {};
        member.expect_ok(member.group.all_reduce(in, out, 2, DType::kFloat32, op, member.soon()).wait(),
                         "nan");
        member.expect(std::isnan(out[0]), "NaN was lost by " + std::string(to_string(op)));
        member.expect(std::signbit(out[1]), "−0 was lost by " + std::string(to_string(op)));
      }
      int32_t big = std::numeric_limits<int32_t>::max(), sum = 0;
      member.expect_ok(
          member.group.all_reduce(&big, &sum, 1, DType::kInt32, ReduceOp::kSum, member.soon()).wait(), "");
      member.expect(sum == static_cast<int32_t>(3U * static_cast<uint32_t>(big)),
                    "integer sum does not wrap");
    });
  }
}

TEST(Values, BFloat16IsRoundedOnce) {
  for (const Medium medium : {Medium::kInProcess, Medium::kNodeThreads}) {
    run_world(medium, 5, [](Member& member) {
      for (const size_t count : {1, 9000}) {
        // 256 + 1 + 1 + 1 + 1 = 260 in float32; in bfloat16 step by step it would stay at 256.
        std::vector<BFloat16> in(count, narrow_bfloat16(member.rank == 0 ? 256.0F : 1.0F)), out(count);
        member.expect_ok(
            member.group
                .all_reduce(in.data(), out.data(), count, DType::kBFloat16, ReduceOp::kSum, member.soon())
                .wait(),
            "bf16");
        for (BFloat16 value : out) member.expect(widen(value) == 260.0F, "rounded more than once");
      }
    });
  }
}

// A root needs nobody for its part of a broadcast: it could fill the others' memory.
TEST(RunningAhead, ARootWaitsForThoseWhoLag) {
  constexpr int kOperations = 400;
  run_world(Medium::kUcxProcesses, 2, [](Member& member) {
    constexpr Duration kLag = 600 * kMillisecond;
    const Instant begin = now();
    std::vector<float> values(16 * 1024);
    if (member.rank == 1) usleep(kLag / kMicrosecond);  // Reason for the wait: it lags
    int early = 0;
    for (int i = 0; i < kOperations; ++i) {
      std::ranges::fill(values, static_cast<float>(member.rank == 0 ? i : -1));
      member.expect_ok(
          member.group
              .broadcast(values.data(), values.data(), values.size(), DType::kFloat32, 0, member.soon())
              .wait(),
          "broadcast " + std::to_string(i));
      member.expect(values.front() == static_cast<float>(i) && values.back() == values.front(), "its value");
      if (now() - begin < kLag / 2) ++early;
    }
    if (member.rank == 0)
      member.expect(early < 100, std::to_string(early) + " were ended before any was taken");
  });
}

// What is sent of the first waits for its receiver, who takes nothing of the others before it has ended.
TEST(RunningAhead, WhatIsLaterDoesNotHoldWhatIsBefore) {
  run_world(Medium::kUcxProcesses, 2, [](Member& member) {
    constexpr size_t kLarge = 4 * 1024 * 1024, kSmall = 16 * 1024, kOperations = 200;
    std::vector<std::vector<float>> values(kOperations, std::vector<float>(kSmall));
    values.front().resize(kLarge);
    if (member.rank == 1) usleep(200'000);  // Reason for the wait: the other one has issued all that it may
    std::vector<Work> works;
    for (size_t i = 0; i < kOperations; ++i) {
      std::ranges::fill(values[i], member.rank == 0 ? static_cast<float>(i) : -1.0F);
      works.push_back(member.group.broadcast(values[i].data(), values[i].data(), values[i].size(),
                                             DType::kFloat32, 0, member.soon()));
      if (member.rank == 1) member.expect_ok(works.back().wait(), "broadcast " + std::to_string(i));
    }
    for (size_t i = 0; i < kOperations; ++i) {
      member.expect_ok(works[i].wait(), "broadcast " + std::to_string(i));
      member.expect(values[i].back() == static_cast<float>(i), "its value");
    }
  });
}

// UCX likes to rewrite the functions that a process maps memory with.
TEST(QuietGuest, UcxLeavesTheProcessAsItWas) {
  testing_support::spawn(1, [](testing_support::Rank& rank) {
    constexpr const char* kFunctions[] = {"mmap", "munmap", "mremap", "madvise",
                                          "brk",  "sbrk",   "shmat",  "shmdt"};
    const auto code_of = [](const char* name) {
      std::array<unsigned char, 32> code;
      std::memcpy(code.data(), dlsym(RTLD_DEFAULT, name), code.size());
      return code;
    };
    std::vector<std::array<unsigned char, 32>> before;
    for (const char* name : kFunctions) before.push_back(code_of(name));
    auto transport = open_ucx();
    if (!transport.ok()) return rank.fail(transport.error().message);
    for (size_t i = 0; i < before.size(); ++i)
      if (code_of(kFunctions[i]) != before[i]) rank.fail(std::string(kFunctions[i]) + " was rewritten");
  });
}

// Rank 0 sends nothing, and so has no input; what it gets is there all the same.
TEST(Arguments, OfNothingThereIsNoBuffer) {
  for (const Medium medium : {Medium::kInProcess, Medium::kNodeThreads}) {
    run_world(medium, 2, [](Member& member) {
      const bool first = member.rank == 0;
      const float two[] = {1, 2};
      float out[2] = {};
      const size_t nothing[] = {0, 0}, to_first[] = {2, 0}, from_second[] = {0, 2};
      const Work work =
          member.group.all_to_all_v(first ? nullptr : two, first ? nothing : to_first, first ? out : nullptr,
                                    first ? from_second : nothing, DType::kFloat32, member.soon());
      member.expect_ok(work.wait(), "all_to_all_v");
      member.expect(!first || (out[0] == 1 && out[1] == 2), "other numbers");
    });
  }
}

TEST(Arguments, AreRefusedWithReason) {
  run_world(Medium::kInProcess, 2, [](Member& member) {
    float value = 1;
    const auto code = [](const Work& work) {
      return work.wait().ok() ? ErrorCode::kEnded : work.wait().error().code;
    };
    Group& group = member.group;
    const Instant soon = member.soon();
    member.expect(code(group.all_reduce(nullptr, &value, 1, DType::kFloat32, ReduceOp::kSum, soon)) ==
                      ErrorCode::kMisuse,
                  "null in");
    member.expect(code(group.all_reduce(&value, nullptr, 1, DType::kFloat32, ReduceOp::kSum, soon)) ==
                      ErrorCode::kMisuse,
                  "null out");
    const size_t one_count[] = {1};
    member.expect(
        code(group.all_gather_v(&value, &value, one_count, DType::kFloat32, soon)) == ErrorCode::kMisuse,
        "counts");
    const size_t ones[] = {1, 1}, twos[] = {2, 2};
    float pair[2] = {}, other[4] = {};
    const std::pair<std::span<const size_t>, std::span<const size_t>> bad[] = {
        {one_count, ones}, {ones, one_count}, {ones, {}}, {{}, ones}, {ones, twos}};
    for (const auto& [sent, received] : bad)
      member.expect(
          code(group.all_to_all_v(pair, sent, other, received, DType::kFloat32, soon)) == ErrorCode::kMisuse,
          "counts of all_to_all_v");
    member.expect(
        code(group.all_to_all_v(pair, ones, pair, ones, DType::kFloat32, soon)) == ErrorCode::kMisuse,
        "all_to_all_v in place");
    member.expect(
        code(group.gather(&value, nullptr, 1, DType::kFloat32, member.rank, soon)) == ErrorCode::kMisuse,
        "null at the root");
    member.expect(code(group.all_reduce(&value, &value, 1, DType::kFloat32, static_cast<ReduceOp>(9),
                                        soon)) == ErrorCode::kMisuse,
                  "op");
    member.expect(code(group.all_reduce(&value, &value, 1, static_cast<DType>(99), ReduceOp::kSum, soon)) ==
                      ErrorCode::kMisuse,
                  "dtype");
    member.expect(code(group.all_reduce(&value, &value, SIZE_MAX / 2, DType::kFloat32, ReduceOp::kSum,
                                        soon)) == ErrorCode::kMisuse,
                  "count");
    member.expect(code(group.broadcast(&value, &value, 1, DType::kFloat32, 2, soon)) == ErrorCode::kMisuse,
                  "root");
    member.expect(code(group.broadcast(&value, &value, 1, DType::kFloat32, -1, soon)) == ErrorCode::kMisuse,
                  "root");
    const float* partials[] = {&value};
    const CanonicalLayout short_layout{4, 4, {{0, 4}}};
    member.expect(
        code(group.canonical_all_reduce(partials, &value, 1, short_layout, soon)) == ErrorCode::kMisuse,
        "layout");
    const CanonicalLayout gap{4, 4, {{0, 2}, {3, 4}}};
    member.expect(code(group.canonical_all_reduce(partials, &value, 1, gap, soon)) == ErrorCode::kMisuse,
                  "gap");
    const CanonicalLayout odd{5, 4, {{0, 2}, {2, 4}}};
    member.expect(code(group.canonical_all_reduce(partials, &value, 1, odd, soon)) == ErrorCode::kMisuse,
                  "lanes");
    // Nothing of it harmed the group.
    member.expect_ok(group.barrier(soon).wait(), "barrier after refusals");
  });
}

}  // namespace
}  // namespace muster
