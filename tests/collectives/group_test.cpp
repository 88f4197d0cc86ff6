// Operations × types × operators × counts × in place or not, on every world size and medium; and the
// canonical reduction's bits.
#include "collectives/group.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "tests/collectives/world.h"

namespace muster {
namespace {

float widen(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
uint16_t narrow(float value) {  // to nearest even; the tests have no NaN here
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// A buffer of any element type, read and written as numbers that all of them hold exactly.
class Numbers {
 public:
  Numbers(DType dtype, size_t count) : dtype_(dtype), bytes_(count * size_of(dtype) + 1) {}
  // Off by one byte: any alignment is allowed.
  std::byte* data() { return bytes_.data() + 1; }
  size_t count() const { return (bytes_.size() - 1) / size_of(dtype_); }

  void set(size_t i, double value) {
    switch (dtype_) {
      case DType::kFloat32:
        return put(i, static_cast<float>(value));
      case DType::kFloat64:
        return put(i, value);
      case DType::kBFloat16:
        return put(i, narrow(static_cast<float>(value)));
      case DType::kInt32:
        return put(i, static_cast<int32_t>(value));
      default:
        return put(i, static_cast<int64_t>(value));
    }
  }
  bool equals(size_t i, double value) const {
    Numbers other(dtype_, 1);
    other.set(0, value);
    return std::memcmp(bytes_.data() + 1 + i * size_of(dtype_), other.data(), size_of(dtype_)) == 0;
  }

 private:
  template <typename T>
  void put(size_t i, T value) {
    std::memcpy(data() + i * sizeof(T), &value, sizeof value);
  }
  DType dtype_;
  std::vector<std::byte> bytes_;
};

double value_of(int rank, size_t i) {
  return static_cast<double>((i * 7 + static_cast<size_t>(rank) * 3) % 11) - 5;
}

double combined(ReduceOp op, DType dtype, int ranks, size_t i) {
  double result = value_of(0, i);
  for (int rank = 1; rank < ranks; ++rank) {
    const double value = value_of(rank, i);
    if (op == ReduceOp::kMin) result = std::min(result, value);
    if (op == ReduceOp::kMax) result = std::max(result, value);
    if (op == ReduceOp::kSum || op == ReduceOp::kAvg) result += value;
  }
  if (op != ReduceOp::kAvg) return result;
  if (dtype == DType::kFloat64) return result / ranks;
  if (dtype == DType::kInt32 || dtype == DType::kInt64) return std::trunc(result / ranks);
  return static_cast<double>(static_cast<float>(result) / static_cast<float>(ranks));
}

constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kInt32, DType::kInt64};
constexpr ReduceOp kOps[] = {ReduceOp::kSum, ReduceOp::kMin, ReduceOp::kMax, ReduceOp::kAvg};

std::string label(const char* what, DType dtype, ReduceOp op, size_t count, bool in_place) {
  return std::string(what) + " " + std::string(to_string(dtype)) + " " + std::string(to_string(op)) + " × " +
         std::to_string(count) + (in_place ? " in place" : "");
}

void check(const Member& member, const Numbers& numbers, size_t count,
           const std::function<double(size_t)>& expected, const std::string& what) {
  for (size_t i = 0; i < count; ++i) {
    if (!numbers.equals(i, expected(i))) return member.fail(what + ": element " + std::to_string(i));
  }
}

void test_all_reduce(const Member& member, DType dtype, ReduceOp op, size_t count, bool in_place) {
  Numbers in(dtype, count), out(dtype, count);
  for (size_t i = 0; i < count; ++i) in.set(i, value_of(member.rank, i));
  Numbers& target = in_place ? in : out;
  const std::string what = label("all_reduce", dtype, op, count, in_place);
  member.expect_ok(member.group.all_reduce(in.data(), target.data(), count, dtype, op, member.soon()).wait(),
                   what);
  check(
      member, target, count, [&](size_t i) { return combined(op, dtype, member.size, i); }, what);
  if (!in_place)
    check(
        member, in, count, [&](size_t i) { return value_of(member.rank, i); }, what + " (input)");
}

void test_reduce_scatter(const Member& member, DType dtype, ReduceOp op, size_t count, bool in_place) {
  const size_t total = count * static_cast<size_t>(member.size);
  const size_t offset = count * static_cast<size_t>(member.rank);
  Numbers in(dtype, total), out(dtype, count);
  for (size_t i = 0; i < total; ++i) in.set(i, value_of(member.rank, i));
  std::byte* target = in_place ? in.data() + offset * size_of(dtype) : out.data();
  const std::string what = label("reduce_scatter", dtype, op, count, in_place);
  member.expect_ok(member.group.reduce_scatter(in.data(), target, count, dtype, op, member.soon()).wait(),
                   what);
  if (in_place && count > 0) std::memcpy(out.data(), target, count * size_of(dtype));
  check(
      member, out, count, [&](size_t i) { return combined(op, dtype, member.size, offset + i); }, what);
}

void test_all_gather(const Member& member, DType dtype, size_t count, bool in_place) {
  const size_t offset = count * static_cast<size_t>(member.rank);
  Numbers in(dtype, count), out(dtype, count * static_cast<size_t>(member.size));
  for (size_t i = 0; i < count; ++i) {
    in.set(i, value_of(member.rank, i));
    if (in_place) out.set(offset + i, value_of(member.rank, i));
  }
  const std::byte* source = in_place ? out.data() + offset * size_of(dtype) : in.data();
  const std::string what = label("all_gather", dtype, ReduceOp::kSum, count, in_place);
  member.expect_ok(member.group.all_gather(source, out.data(), count, dtype, member.soon()).wait(), what);
  check(
      member, out, out.count(), [&](size_t i) { return value_of(static_cast<int>(i / count), i % count); },
      what);
}

void test_broadcast(const Member& member, DType dtype, size_t count, int root, bool in_place) {
  Numbers in(dtype, count), out(dtype, count);
  for (size_t i = 0; i < count; ++i) (in_place ? out : in).set(i, value_of(member.rank, i));
  const bool is_root = member.rank == root;
  const std::byte* source = !is_root ? nullptr : in_place ? out.data() : in.data();
  const std::string what = label("broadcast", dtype, ReduceOp::kSum, count, in_place);
  member.expect_ok(member.group.broadcast(source, out.data(), count, dtype, root, member.soon()).wait(),
                   what);
  check(
      member, out, count, [&](size_t i) { return value_of(root, i); }, what);
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

void matrix(const Member& member, bool full) {
  for (const DType dtype : kTypes) {
    for (const ReduceOp op : kOps) {
      for (const size_t count : {0, 1, 7, 1031, 5003}) {
        const bool in_place = (count + static_cast<size_t>(op)) % 2 == 0;
        test_all_reduce(member, dtype, op, count, in_place);
        test_reduce_scatter(member, dtype, op, count, !in_place);
        if (!full) continue;
        test_all_reduce(member, dtype, op, count, !in_place);
        test_reduce_scatter(member, dtype, op, count, in_place);
      }
    }
    test_all_reduce(member, dtype, ReduceOp::kSum, 150'001, dtype == DType::kFloat32);
    test_reduce_scatter(member, dtype, ReduceOp::kAvg, 40'001, dtype == DType::kInt64);
    for (const size_t count : {0, 1, 7, 1031, 90'001}) {
      for (const bool in_place : {false, true}) {
        test_all_gather(member, dtype, count, in_place);
        test_broadcast(member, dtype, count, static_cast<int>(count) % member.size, in_place);
        member.expect_ok(member.group.barrier(member.soon()).wait(), "barrier");
      }
    }
  }
  test_in_flight(member);
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

TEST_P(Operations, Matrix) {
  run_world(GetParam().medium, GetParam().ranks, [](Member& member) { matrix(member, false); });
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

class Algorithms : public testing::TestWithParam<const char*> {};

TEST_P(Algorithms, EachGivesTheRightNumbers) {
  for (int ranks : {1, 2, 3, 6}) {
    run_world(Medium::kInProcess, ranks,
              [](Member& member) {
                for (const DType dtype : {DType::kFloat32, DType::kInt64}) {
                  for (const size_t count : {1, 5, 1031, 70'001}) {
                    for (const bool in_place : {false, true}) {
                      test_all_reduce(member, dtype, ReduceOp::kSum, count, in_place);
                      test_all_reduce(member, dtype, ReduceOp::kAvg, count, in_place);
                      test_reduce_scatter(member, dtype, ReduceOp::kAvg, count, in_place);
                      test_all_gather(member, dtype, count, in_place);
                    }
                  }
                }
              },
              {.algorithm = GetParam()});
  }
}

INSTANTIATE_TEST_SUITE_P(All, Algorithms,
                         testing::Values("one-shot", "recursive doubling", "direct", "ring", "Bruck"));

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

void test_canonical(const Member& member, int microbatches, int lanes, size_t count, bool zeros) {
  const CanonicalLayout layout{microbatches, lanes, assign_lanes(lanes, member.size)};
  const LaneRange mine = layout.assignment[static_cast<size_t>(member.rank)];
  const AccumulationPlan plan = plan_accumulation(microbatches, lanes, mine);
  std::vector<std::vector<float>> storage(static_cast<size_t>(plan.buffers), std::vector<float>(count, NAN));
  std::vector<float*> buffers;
  for (auto& buffer : storage) buffers.push_back(buffer.data());
  Accumulator accumulator(plan, buffers, count);
  std::vector<float> incoming(count);
  for (int m = accumulator.next_microbatch(); m >= 0; m = accumulator.next_microbatch()) {
    for (size_t i = 0; i < count; ++i) incoming[i] = zeros ? -0.0F : gradient(m, i);
    member.expect_ok(accumulator.add(m, incoming), "accumulate");
  }
  std::vector<float> out(count, NAN);
  const std::string what = "canonical " + std::to_string(microbatches) + "/" + std::to_string(lanes);
  member.expect_ok(
      member.group.canonical_all_reduce(accumulator.partials(), out.data(), count, layout, member.soon())
          .wait(),
      what);
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

// ---- special values and bad arguments

TEST(Values, NaNIsNotLostAndIntegersWrap) {
  for (const Medium medium : {Medium::kInProcess, Medium::kNodeThreads}) {
    run_world(medium, 3, [](Member& member) {
      const float nan = std::numeric_limits<float>::quiet_NaN();
      for (const ReduceOp op : kOps) {
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
        std::vector<uint16_t> in(count, narrow(member.rank == 0 ? 256.0F : 1.0F)), out(count);
        member.expect_ok(
            member.group
                .all_reduce(in.data(), out.data(), count, DType::kBFloat16, ReduceOp::kSum, member.soon())
                .wait(),
            "bf16");
        for (uint16_t value : out) member.expect(widen(value) == 260.0F, "rounded more than once");
      }
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
    member.expect(
        code(group.all_reduce(&value, &value, 1, DType::kInt8, ReduceOp::kSum, soon)) == ErrorCode::kMisuse,
        "type");
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
