// Each codec has three implementations: the reference, Highway on every instruction set of this machine, and
// the CUDA kernels, in the SIMT shim and, where there is a device, on it. All must give the same bits for all
// inputs. What the bits mean is tested on the fastest of them.
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <numeric>

#include "kernels/float_mode.h"
#include "kernels/shared16.h"
#include "kernels/simd_choice.h"
#include "runtime/base/random.h"
#include "tests/kernels/codec_simt.h"
#include "tests/kernels/device_run.h"

namespace muster::codec {
namespace {

using simt::DeviceArray;
using simt::Schedule;

// Sanitizers make a switch of fibers ten to a hundred times as slow: there all sizes and rounds belong to the
// full run, which sets the variable.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
const bool kThorough = std::getenv("CODEC_TEST_THOROUGH") != nullptr;
#else
constexpr bool kThorough = true;
#endif

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr RandomSlot kSlot = {.seed = 42, .step = 7, .tensor = 3, .lane = 5, .stage = 1};

enum class Way { kNearest, kStochastic, kFeedback };
constexpr Way kWays[] = {Way::kNearest, Way::kStochastic, Way::kFeedback};
const char* name_of(Way way) {
  return way == Way::kNearest ? "nearest" : way == Way::kStochastic ? "stochastic" : "feedback";
}

// What an encoding left, as bits.
struct Encoded {
  std::vector<uint8_t> scales;
  std::vector<uint8_t> payload;
  std::vector<uint32_t> residual;
  friend bool operator==(const Encoded&, const Encoded&) = default;
};

std::vector<uint32_t> all_bits(const std::vector<float>& values) {
  std::vector<uint32_t> bits(values.size());
  for (size_t i = 0; i < values.size(); ++i) bits[i] = bits_of(values[i]);
  return bits;
}

struct Case {
  std::vector<float> values;
  std::vector<float> residual;
  Way way = Way::kNearest;
  size_t misalignment = 0;
  uint64_t first_index = 0;
};

// One implementation.
struct Functions {
  std::string name;
  std::function<void(const Encode&)> encode;
  std::function<void(const Decode&)> decode;
  std::function<void(const Decode&, const Encode&)> recode;
};

Functions functions_of(const Codec& codec, const std::string& name) {
  return {name, codec.encode, codec.decode, codec.recode};
}

Functions simt_functions(CodecId id, Schedule schedule) {
  const auto expect_ok = [](const Status& status) { EXPECT_TRUE(status.ok()) << status.error().message; };
  return {"simt " + simt::to_string(schedule),
          [=](const Encode& task) { expect_ok(encode_simt(id, task, schedule)); },
          [=](const Decode& task) { expect_ok(decode_simt(id, task, schedule)); },
          [=](const Decode& from, const Encode& to) { expect_ok(recode_simt(id, from, to, schedule)); }};
}

Encode place(DeviceRun& run, CodecId id, Encode task) {
  const Shape shape = shape_of(id);
  task.values = run.place(task.values, task.count);
  task.residual = run.place(task.residual, task.count);
  task.scales = run.place(task.scales, scales_bytes_of(shape, task.count));
  task.payload = run.place(task.payload, payload_bytes_of(shape, task.count));
  return task;
}

Decode place(DeviceRun& run, CodecId id, Decode task) {
  const Shape shape = shape_of(id);
  for (uint32_t s = 0; s < task.source_count; ++s) {
    task.sources[s] = {run.place(task.sources[s].scales, scales_bytes_of(shape, task.count)),
                       run.place(task.sources[s].payload, payload_bytes_of(shape, task.count))};
  }
  task.values = run.place(task.values, task.count);
  return task;
}

Functions device_functions(CodecId id, size_t bytes = kDeviceRunBytes) {
  return {
      "device",
      [=](const Encode& task) {
        DeviceRun run(bytes);
        const Encode there = place(run, id, task);
        run.run([&](const CudaTable& cuda, void* s) { return cuda.codec_encode(id, &there, s); });
      },
      [=](const Decode& task) {
        DeviceRun run(bytes);
        const Decode there = place(run, id, task);
        run.run([&](const CudaTable& cuda, void* s) { return cuda.codec_decode(id, &there, s); });
      },
      [=](const Decode& from, const Encode& to) {
        DeviceRun run(bytes);
        const Decode source = place(run, id, from);
        const Encode target = place(run, id, to);
        run.run([&](const CudaTable& cuda, void* s) { return cuda.codec_recode(id, &source, &target, s); });
      }};
}

Encode task_of(const Case& c, const float* values, float* residual, uint8_t* scales, uint8_t* payload) {
  return {.values = values,
          .residual = c.way == Way::kFeedback ? residual : nullptr,
          .scales = scales,
          .payload = payload,
          .count = c.values.size(),
          .first_index = c.first_index,
          .stochastic = c.way == Way::kStochastic,
          .slot = kSlot};
}

constexpr uint32_t kAdders = 3;

// Where a codec shares scales, those that ranks with these values would agree upon.
void agree_on_scales(const Shape& shape, const float* values, const float* residual, size_t count,
                     uint8_t* scales) {
  if (!shape.shared_scales) return;
  std::vector<uint32_t> max_bits(blocks_of(shape, count));
  largest_of_blocks(values, residual, count, max_bits.data());
  shared_scales(max_bits.data(), max_bits.size(), kAdders, scales);
}

Encoded run_encode(CodecId id, const Case& c, const Functions& with) {
  const Shape shape = shape_of(id);
  const size_t count = c.values.size();
  const DeviceArray<float> values(c.values, c.misalignment), residual(c.residual, c.misalignment);
  const DeviceArray<uint8_t> scales(scales_bytes_of(shape, count), c.misalignment),
      payload(payload_bytes_of(shape, count), 3 * c.misalignment);
  const Encode task = task_of(c, values.data(), residual.data(), scales.data(), payload.data());
  agree_on_scales(shape, task.values, task.residual, count, task.scales);
  with.encode(task);
  EXPECT_TRUE(values.intact() && residual.intact() && scales.intact() && payload.intact());
  return {scales.values(), payload.values(), all_bits(residual.values())};
}

struct Sources {
  std::vector<DeviceArray<uint8_t>> arrays;
  Decode task;

  Sources(const std::vector<Encoded>& all, const Case& c)
      : task(decode_one({}, nullptr, c.values.size(), c.first_index, kSlot)) {
    task.source_count = static_cast<uint32_t>(all.size());
    for (size_t s = 0; s < all.size(); ++s) {
      const auto& scales = arrays.emplace_back(all[s].scales, c.misalignment);
      const uint8_t* scales_at = scales.data();
      task.sources[s] = {scales_at, arrays.emplace_back(all[s].payload, 3 * c.misalignment).data()};
    }
  }
};

std::vector<uint32_t> run_decode(const std::vector<Encoded>& all, const Case& c, bool accumulate,
                                 float factor, const Functions& with) {
  const DeviceArray<float> values(c.residual, c.misalignment);
  Sources sources(all, c);
  sources.task.values = values.data();
  sources.task.accumulate = accumulate;
  sources.task.factor = factor;
  with.decode(sources.task);
  EXPECT_TRUE(values.intact());
  return all_bits(values.values());
}

// The sum of the sources, encoded again; with the bits of the sum, where it is wanted, behind the residual's.
enum class Sum : uint8_t { kWanted, kNotWanted };
Encoded run_recode(CodecId id, const std::vector<Encoded>& all, const Case& c, float factor,
                   const Functions& with, Sum wanted = Sum::kWanted) {
  const Shape shape = shape_of(id);
  const size_t count = c.values.size();
  const DeviceArray<float> sum(count, c.misalignment), residual(c.residual, c.misalignment);
  const DeviceArray<uint8_t> scales(scales_bytes_of(shape, count), c.misalignment),
      payload(payload_bytes_of(shape, count), 3 * c.misalignment);
  Sources sources(all, c);
  sources.task.values = wanted == Sum::kWanted ? sum.data() : nullptr;
  sources.task.factor = factor;
  agree_on_scales(shape, c.values.data(), c.way == Way::kFeedback ? c.residual.data() : nullptr, count,
                  scales.data());
  with.recode(sources.task, task_of(c, nullptr, residual.data(), scales.data(), payload.data()));
  EXPECT_TRUE(sum.intact() && residual.intact() && scales.intact() && payload.intact());
  Encoded result{scales.values(), payload.values(), all_bits(residual.values())};
  if (wanted == Sum::kNotWanted) return result;
  for (const float value : sum.values()) result.residual.push_back(bits_of(value));
  return result;
}

// Calls body for every instruction set that Highway compiled and this processor has.
void on_each_instruction_set(const std::function<void(const std::string&)>& body) {
  for (int64_t rest = simd_targets(); rest != 0; rest &= rest - 1) {
    limit_simd_targets(rest & -rest);
    body(hwy::TargetName(rest & -rest));
  }
  limit_simd_targets(0);
  body(hwy::TargetName(HWY_STATIC_TARGET));
  limit_simd_targets(-1);
}

struct Expected {
  Encoded encoded;
  std::vector<uint32_t> plain, added, summed;
  Encoded recoded, fused;
};

Expected results_of(CodecId id, const Case& c, const Functions& with, const Encoded& encoded) {
  const std::vector<Encoded> three(3, encoded);
  return {run_encode(id, c, with), run_decode({encoded}, c, false, 1.0f, with),
          run_decode({encoded}, c, true, 1.0f, with), run_decode(three, c, true, 1.0f / 3, with),
          run_recode(id, three, c, 1.0f / 3, with),
          // The kernels need a place for the sum where there is feedback.
          c.way == Way::kFeedback ? Encoded() : run_recode(id, three, c, 1.0f / 3, with, Sum::kNotWanted)};
}

void expect_same(const Expected& actual, const Expected& expected, const std::string& what) {
  EXPECT_TRUE(actual.encoded == expected.encoded) << "encode: " << what;
  EXPECT_TRUE(actual.plain == expected.plain) << "decode: " << what;
  EXPECT_TRUE(actual.added == expected.added) << "decode and accumulate: " << what;
  EXPECT_TRUE(actual.summed == expected.summed) << "three sources: " << what;
  EXPECT_TRUE(actual.recoded == expected.recoded) << "recode: " << what;
  EXPECT_TRUE(actual.fused == expected.fused) << "recode without a place for the sum: " << what;
}

void expect_all_agree(CodecId id, const Case& c, const std::string& what, int seeded_schedules) {
  if (c.way == Way::kStochastic && !shape_of(id).stochastic) return;
  const Functions reference = functions_of(reference_of(id), "reference");
  const Encoded encoded = run_encode(id, c, reference);
  const Expected expected = results_of(id, c, reference, encoded);
  const std::string in = std::string(codec_of(id).name) + " " + name_of(c.way) + " " + what + " ";
  on_each_instruction_set([&](const std::string& name) {
    expect_same(results_of(id, c, functions_of(codec_of(id), name), encoded), expected, in + name);
  });
  for (const Schedule schedule : simt::schedules(seeded_schedules)) {
    const Functions with = simt_functions(id, schedule);
    expect_same(results_of(id, c, with, encoded), expected, in + with.name);
  }
  if (missing_device().empty())
    expect_same(results_of(id, c, device_functions(id), encoded), expected, in + "device");
}

Case random_case(size_t count, uint64_t seed, float magnitude) {
  SeededRandom random(seed);
  Case c;
  for (size_t i = 0; i < count; ++i) {
    c.values.push_back(static_cast<float>(random.uniform() * 2 - 1) * magnitude);
    c.residual.push_back(static_cast<float>(random.uniform() * 2 - 1) * magnitude * 0.01f);
  }
  return c;
}

class CodecBits : public ::testing::TestWithParam<CodecId> {};
class CodecMeaning : public ::testing::TestWithParam<CodecId> {};
std::string test_name(const ::testing::TestParamInfo<CodecId>& info) {
  std::string name(codec_of(info.param).name);
  std::erase(name, '-');
  return name;
}
INSTANTIATE_TEST_SUITE_P(All, CodecBits, ::testing::ValuesIn(kCodecIds), test_name);
INSTANTIATE_TEST_SUITE_P(All, CodecMeaning, ::testing::ValuesIn(kCodecIds), test_name);

TEST_P(CodecBits, AllSizesAndAlignmentsAgree) {
  const uint32_t block = shape_of(GetParam()).block, grain = shape_of(GetParam()).grain;
  std::vector<size_t> counts = {0,     1,         2,         15,    16,        17,        block - 1,
                                block, block + 1, grain - 1, grain, grain + 1, 2 * grain, 2 * grain + 33,
                                5000};
  for (const size_t count : counts) {
    if (!kThorough && count > 300) continue;
    for (const size_t misalignment : {0, 1, 2, 3}) {
      if (!kThorough && misalignment > 1) continue;
      for (const Way way : kWays) {
        Case c = random_case(count, count + misalignment, 3.0f);
        c.way = way;
        c.misalignment = misalignment;
        c.first_index = grain * misalignment;
        expect_all_agree(GetParam(), c, std::to_string(count) + "+" + std::to_string(misalignment), 1);
      }
    }
  }
}

TEST_P(CodecBits, LargeRangesAgree) {
  for (const Way way : kWays) {
    Case c = random_case(kThorough ? 40001 : 3000, 3, 1.0f);
    c.way = way;
    expect_all_agree(GetParam(), c, "large", 0);
  }
}

// Ranges from 2^20 elements on are written around the caches.
TEST_P(CodecBits, StreamedRangesAgree) {
  const CodecId id = GetParam();
  if (!kThorough) GTEST_SKIP() << "minutes under a sanitizer: in the full run";
  for (const Way way : kWays) {
    if (way == Way::kStochastic && !shape_of(id).stochastic) continue;
    Case c = random_case((1 << 20) + 77, 29, 1.0f);
    c.way = way;
    const Functions reference = functions_of(reference_of(id), "reference"),
                    fast = functions_of(codec_of(id), "");
    const Encoded encoded = run_encode(id, c, reference);
    expect_same(results_of(id, c, fast, encoded), results_of(id, c, reference, encoded), name_of(way));
  }
}

// A grid covers at most 2^25 elements; beyond, its blocks go around once more.
TEST_P(CodecBits, RangesBeyondTheDevicesGridAgree) {
  // The shim's small grid goes around in every other test.
  if (!missing_device().empty()) GTEST_SKIP() << missing_device();
  constexpr size_t kCount = (size_t{1} << 25) + 5000, kBytes = 24 * kCount;
  const CodecId id = GetParam();
  for (const Way way : kWays) {
    if (way == Way::kStochastic && !shape_of(id).stochastic) continue;
    Case c = random_case(kCount, 41, 1.0f);
    c.way = way;
    const Functions fast = functions_of(codec_of(id), "");
    const Encoded encoded = run_encode(id, c, fast);
    expect_same(results_of(id, c, device_functions(id, kBytes), encoded), results_of(id, c, fast, encoded),
                name_of(way));
  }
}

// Every 32-bit pattern is an input that some program will send.
TEST_P(CodecBits, RandomBitPatternsAgree) {
  SeededRandom random(9);
  for (int round = 0; round < (kThorough ? 12 : 3); ++round) {
    Case c;
    // Stretches of one exponent range each, else a NaN would hide everything in every block.
    const uint32_t stretch = shape_of(GetParam()).grain == 1024 ? 1024 : 32 << (round % 4);
    while (c.values.size() < 4096) {
      const uint32_t exponent = static_cast<uint32_t>(random.below(256));
      for (uint32_t i = 0; i < stretch; ++i) {
        const uint32_t e = exponent - static_cast<uint32_t>(random.below(exponent < 12 ? exponent + 1 : 12));
        const auto sign_and_fraction = static_cast<uint32_t>(random.next()) & 0x807FFFFFu;
        c.values.push_back(float_of(sign_and_fraction | e << 23));
        c.residual.push_back(float_of((static_cast<uint32_t>(random.next()) & 0x807FFFFFu) | (e / 2) << 23));
      }
    }
    c.way = kWays[round % 3];
    expect_all_agree(GetParam(), c, "round " + std::to_string(round), 1);
  }
}

std::vector<std::pair<std::string, std::vector<float>>> special_blocks() {
  const float denormal = float_of(1), big_denormal = float_of(0x007FFFFF);
  const float just_enough = 0x1p-100f, just_too_small = std::nextafter(0x1p-100f, 0.0f);
  return {
      {"zeros", {0.0f, -0.0f, 0.0f}},
      {"negative zeros", {-0.0f, -0.0f}},
      {"a NaN", {1.0f, kNan, 2.0f}},
      {"a negative NaN with payload", {1.0f, float_of(0xFFC12345), 2.0f}},
      {"a signalling NaN", {1.0f, float_of(0x7F800001), 2.0f}},
      {"infinity", {1.0f, kInfinity}},
      {"both infinities", {kInfinity, -kInfinity, 1.0f}},
      {"denormals", {denormal, -big_denormal, big_denormal}},
      {"1e-37", {1e-37f, -1e-37f, 3e-38f}},
      {"below the smallest maximum", {just_too_small, -just_too_small}},
      {"the smallest maximum", {just_enough, -just_enough, just_enough / 3}},
      {"largest", {FLT_MAX, -FLT_MAX, FLT_MAX / 3}},
      {"just below largest", {std::nextafter(FLT_MAX, 0.0f), 1.0f}},
      {"one among denormals", {1.0f, denormal, -denormal, big_denormal}},
      {"halves", {127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 126.5f, -126.5f}},
      {"ends of float16", {65504.0f, 65519.9f, 65520.0f, -65536.0f, 6.1035e-5f, 6e-8f, -2.9e-8f, 3e-8f}},
      {"ends of bfloat16", {0x1.FEp127f, 0x1.FFp127f, -0x1.FEFFFEp127f, 0x1.01p0f, 0x1.03p0f}},
      {"ends of E4M3", {448.0f, 447.9f, 464.0f, -449.0f, 0x1p-6f, 0x1.8p-7f, 0x1p-9f, 0x1p-10f, 0x1.8p-10f}},
      {"too large for int4", {0x1p120f, 1.0f}},
      {"just not too large for int4", {std::nextafter(0x1p120f, 0.0f), -0x1p119f}},
      {"tiny beside large", {1e30f, 1e-30f, -1e-30f}}};
}

TEST_P(CodecBits, SpecialValuesAgree) {
  const uint32_t grain = shape_of(GetParam()).grain;
  for (const auto& [name, few] : special_blocks()) {
    for (const Way way : kWays) {
      for (const size_t count : {few.size(), size_t{grain}, size_t{grain} + 44}) {
        if (!kThorough && count != few.size()) continue;
        Case c;
        c.way = way;
        for (size_t i = 0; i < count; ++i) c.values.push_back(few[i % few.size()]);
        c.residual.assign(count, 0.25f);
        expect_all_agree(GetParam(), c, name, 0);
        c.residual.assign(count, -0.0f);
        expect_all_agree(GetParam(), c, name + " -0", 0);
        // The accumulator too may hold anything.
        for (size_t i = 0; i < count; ++i) c.residual[i] = few[(i + 1) % few.size()];
        expect_all_agree(GetParam(), c, name + " self", 0);
      }
    }
  }
}

// Planes that no encoder writes decode to the same bits everywhere, too.
TEST_P(CodecBits, ForeignPlanesAgree) {
  SeededRandom random(31);
  const Shape shape = shape_of(GetParam());
  for (int round = 0; round < 20; ++round) {
    Case c = random_case(random.below(3000) + 1, 37, 1.0f);
    Encoded planes{std::vector<uint8_t>(scales_bytes_of(shape, c.values.size())),
                   std::vector<uint8_t>(payload_bytes_of(shape, c.values.size())),
                   {}};
    for (auto& byte : planes.scales) byte = static_cast<uint8_t>(random.next());
    for (auto& byte : planes.payload) byte = static_cast<uint8_t>(random.next());
    const auto decoded = [&](const Functions& with) {
      return run_decode({planes, planes}, c, true, 0.5f, with);
    };
    const auto expected = decoded(functions_of(reference_of(GetParam()), "reference"));
    on_each_instruction_set([&](const std::string& name) {
      EXPECT_TRUE(decoded(functions_of(codec_of(GetParam()), name)) == expected)
          << name << " round " << round;
    });
    EXPECT_TRUE(decoded(simt_functions(GetParam(), {simt::Order::kReverse, 0})) == expected) << round;
    if (missing_device().empty()) {
      EXPECT_TRUE(decoded(device_functions(GetParam())) == expected) << round;
    }
  }
}

TEST_P(CodecBits, IndicesAboveFourGiAgree) {
  Case c = random_case(600, 13, 1.0f);
  c.way = shape_of(GetParam()).stochastic ? Way::kStochastic : Way::kFeedback;
  for (const uint64_t first : {uint64_t{8} << 32, (uint64_t{8} << 32) - 1024, uint64_t{1} << 50}) {
    c.first_index = first;
    expect_all_agree(GetParam(), c, "first index " + std::to_string(first), 0);
  }
}

#if defined(__x86_64__)
TEST_P(CodecBits, CallersFloatingPointModeChangesNothing) {
  const CodecId id = GetParam();
  Case c = random_case(600, 19, 1.0f);
  for (size_t i = 0; i < 600; i += 2) c.values[i] *= 1e-42f;
  c.way = Way::kFeedback;
  c.residual.assign(600, 0.0f);
  const Functions fast = functions_of(codec_of(id), ""), reference = functions_of(reference_of(id), "");
  const Encoded encoded = run_encode(id, c, reference);
  const Expected expected = results_of(id, c, reference, encoded);
  const uint32_t before = _mm_getcsr();
  _mm_setcsr(before | 0x8040 | 0x6000);  // flush to zero, denormals are zero, round towards zero
  const Expected simd = results_of(id, c, fast, encoded), plain = results_of(id, c, reference, encoded);
  const uint32_t after = _mm_getcsr();
  _mm_setcsr(before);
  EXPECT_EQ(after & 0xE040, 0xE040u);
  expect_same(simd, expected, "flushing");
  expect_same(plain, expected, "flushing, reference");
}
#endif

TEST_P(CodecBits, GridSizeChangesNothing) {
  const CodecId id = GetParam();
  Case c = random_case(kThorough ? 70000 : 9000, 23, 1.0f);
  c.way = shape_of(id).stochastic ? Way::kStochastic : Way::kFeedback;
  const Encoded expected = run_encode(id, c, functions_of(reference_of(id), "reference"));
  for (const unsigned grid : {1u, 7u, 1000u}) {
    Functions with;
    with.encode = [&](const Encode& task) {
      EXPECT_TRUE(encode_simt(id, task, {simt::Order::kReverse, 0}, grid).ok());
    };
    EXPECT_TRUE(run_encode(id, c, with) == expected) << grid;
  }
}

std::vector<float> through(CodecId id, const std::vector<float>& values, Way way = Way::kNearest,
                           uint64_t step = 0) {
  const Codec& codec = codec_of(id);
  std::vector<uint8_t> scales(scales_bytes_of(codec.shape, values.size())),
      payload(payload_bytes_of(codec.shape, values.size()));
  RandomSlot slot = kSlot;
  slot.step = step;
  agree_on_scales(codec.shape, values.data(), nullptr, values.size(), scales.data());
  codec.encode({.values = values.data(),
                .residual = nullptr,
                .scales = scales.data(),
                .payload = payload.data(),
                .count = values.size(),
                .first_index = 0,
                .stochastic = way == Way::kStochastic,
                .slot = slot});
  std::vector<float> out(values.size());
  codec.decode(decode_one({scales.data(), payload.data()}, out.data(), out.size(), 0, slot));
  return out;
}

bool is_elementwise(CodecId id) { return shape_of(id).block == 1; }
bool is_sparse(CodecId id) { return shape_of(id).kept > 0; }

TEST_P(CodecMeaning, NonFiniteBlocksDecodeToNanAndTheirNeighboursDoNot) {
  const uint32_t block = shape_of(GetParam()).block;
  for (const float bad : {kNan, kInfinity, -kInfinity}) {
    std::vector<float> values(3072, 1.0f);
    values[1030] = bad;
    const std::vector<float> out = through(GetParam(), values);
    for (size_t i = 0; i < out.size(); ++i) {
      if (is_sparse(GetParam()) && i / block != 1030 / block) {
        EXPECT_EQ(out[i], i % block < 11 ? 1.0f : 0.0f) << i;  // of equal ones the first
      } else if (i / block != 1030 / block) {
        EXPECT_NEAR(out[i], 1.0f, GetParam() == CodecId::kInt4 ? 1.5f : 1e-5f) << i;
      } else if (is_elementwise(GetParam()) && std::isinf(bad)) {
        EXPECT_EQ(out[i], bad);
      } else {
        EXPECT_EQ(bits_of(out[i]), kNanBits) << i;
      }
    }
  }
}

TEST_P(CodecMeaning, NonFiniteBlocksKeepTheirResidual) {
  const uint32_t block = shape_of(GetParam()).block;
  Case c{.values = std::vector<float>(3000, 1.001f), .residual = std::vector<float>(3000, 0.125f)};
  c.way = Way::kFeedback;
  c.values[2900] = kInfinity;
  const Encoded encoded = run_encode(GetParam(), c, functions_of(codec_of(GetParam()), ""));
  for (size_t i = 0; i < 3000; ++i) {
    EXPECT_EQ(encoded.residual[i] == bits_of(0.125f), i / block == 2900 / block) << i;
  }
}

TEST_P(CodecMeaning, TinyBlocksBecomeZeroOrKeepTheirSigns) {
  const std::vector<float> tiny(300, 1e-38f);
  for (const float value : through(GetParam(), tiny))
    EXPECT_TRUE(value == 0.0f || std::abs(value - 1e-38f) < 1e-40f);
  const std::vector<float> small(2048, GetParam() == CodecId::kInt4 ? -0x1p-90f : -0x1p-99f);
  if (GetParam() == CodecId::kFp16 || is_sparse(GetParam())) return;  // no such exponents; most become zero
  for (const float value : through(GetParam(), small)) EXPECT_LT(value, 0.0f);
}

TEST_P(CodecMeaning, LargestFiniteValuesStayFinite) {
  if (GetParam() == CodecId::kFp16 || GetParam() == CodecId::kBf16) return;  // round to infinity, as defined
  const float largest = GetParam() == CodecId::kInt4       ? std::nextafter(0x1p120f, 0.0f)
                        : GetParam() == CodecId::kMxfp8    ? 0x1.Ep127f
                        : GetParam() == CodecId::kOneBit   ? FLT_MAX / 1024
                        : GetParam() == CodecId::kShared16 ? 0x1p126f
                        : GetParam() == CodecId::kTopK     ? std::nextafter(0x1.FFp127f, 0.0f)
                                                           : FLT_MAX;
  for (const Way way : {Way::kNearest, Way::kStochastic}) {
    if (way == Way::kStochastic && !shape_of(GetParam()).stochastic) continue;
    std::vector<float> values = {largest, -largest, std::nextafter(largest, 0.0f), largest / 2};
    for (const float value : through(GetParam(), values, way)) EXPECT_TRUE(std::isfinite(value));
    values.assign(1024, largest);
    for (const float value : through(GetParam(), values, way)) EXPECT_TRUE(std::isfinite(value));
  }
}

// Largest error of an element, in parts of its block's largest magnitude, or of its own where `relative`.
struct Bound {
  double nearest;
  bool relative;
};
Bound bound_of(CodecId id) {
  switch (id) {
    case CodecId::kInt8:
      return {0.5 / 127, false};
    case CodecId::kBf16:
      return {1.0 / 256, true};
    case CodecId::kFp16:
      return {1.0 / 2048, true};
    case CodecId::kMxfp8:
      return {1.0 / 16, false};  // half of the last of 3 bits, of an element next to the maximum
    case CodecId::kShared16:
      return {0.5 / (32767 / kAdders - 1), false};
    case CodecId::kInt4:
    case CodecId::kOneBit:
    case CodecId::kTopK:
      break;
  }
  return {};
}

TEST_P(CodecMeaning, ErrorIsWithinHalfAStepAndStochasticWithinOne) {
  const Bound bound = bound_of(GetParam());
  if (bound.nearest == 0) return;  // tested by norms below
  const std::vector<float> values = random_case(4096, 5, 1.0f).values;
  const auto nearest = through(GetParam(), values);
  const auto stochastic = through(GetParam(), values, Way::kStochastic);
  const size_t block = shape_of(GetParam()).block;
  for (size_t i = 0; i < values.size(); ++i) {
    float max = 0;
    for (size_t k = i / block * block; k < (i / block + 1) * block; ++k)
      max = std::max(max, std::abs(values[k]));
    const double step =
        bound.nearest * static_cast<double>(bound.relative ? std::abs(values[i]) : max) + 1e-7;
    EXPECT_LE(std::abs(nearest[i] - values[i]), 1.0001 * step) << i;
    EXPECT_LE(std::abs(stochastic[i] - values[i]), 2.0001 * step) << i;
  }
}

double norm_of(const std::vector<float>& values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * static_cast<double>(value);
  return std::sqrt(sum);
}
double relative_error(const std::vector<float>& out, const std::vector<float>& in) {
  std::vector<float> difference(in.size());
  for (size_t i = 0; i < in.size(); ++i) difference[i] = out[i] - in[i];
  return norm_of(difference) / norm_of(in);
}

// With normal-looking data with outliers: rotation spreads an outlier over its block, so that int4 loses a
// part of the norm that does not depend on it.
TEST_P(CodecMeaning, RelativeErrorIsAsExpected) {
  std::vector<float> values(1 << 16);
  SeededRandom random(41);
  for (auto& value : values) {
    double sum = 0;
    for (int i = 0; i < 12; ++i) sum += random.uniform();
    value = static_cast<float>(sum - 6) * (random.chance(0.01) ? 20.0f : 1.0f);
  }
  const double error = relative_error(through(GetParam(), values), values);
  const auto expect_between = [&](double low, double high) {
    EXPECT_GT(error, low);
    EXPECT_LT(error, high);
  };
  switch (GetParam()) {
    case CodecId::kBf16:
      return expect_between(1e-3, 2e-3);
    case CodecId::kFp16:
      return expect_between(1e-4, 3e-4);
    case CodecId::kInt8:
      return expect_between(0.01, 0.06);
    case CodecId::kMxfp8:
      return expect_between(0.01, 0.04);
    case CodecId::kInt4:
      return expect_between(0.05, 0.15);
    case CodecId::kOneBit:
      return expect_between(0.5, 1.0);
    case CodecId::kShared16:
      return expect_between(1e-5, 1e-3);
    case CodecId::kTopK:
      return expect_between(0.3, 0.7);
  }
}

// Rounding with fresh random numbers each step: the mean approaches the value. Of single elements those are
// judged that were rounded both ways often enough for their errors' sum to be normally distributed.
TEST_P(CodecMeaning, StochasticRoundingIsUnbiased) {
  if (!shape_of(GetParam()).stochastic) return;
  constexpr int kSteps = 400, kOften = 40;
  const std::vector<float> values = random_case(4096, 43, 1.0f).values;
  std::vector<double> sum(values.size()), squares(values.size());
  std::vector<int> ups(values.size());
  for (int step = 0; step < kSteps; ++step) {
    const auto out = through(GetParam(), values, Way::kStochastic, static_cast<uint64_t>(step));
    for (size_t i = 0; i < values.size(); ++i) {
      const double error = static_cast<double>(out[i]) - static_cast<double>(values[i]);
      sum[i] += error, squares[i] += error * error, ups[i] += error > 0 ? 1 : 0;
    }
  }
  double all = 0, all_squares = 0;
  int far = 0, judged = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    all += sum[i], all_squares += squares[i];
    if (ups[i] < kOften || ups[i] > kSteps - kOften) continue;
    ++judged;
    far += std::abs(sum[i]) > 4.5 * std::sqrt(squares[i]) ? 1 : 0;
  }
  EXPECT_GT(judged, 2000);
  EXPECT_LE(far, 1);  // 4.5 σ: 0.03 of 4096 expected
  EXPECT_LT(std::abs(all), 5 * std::sqrt(all_squares));
}

TEST_P(CodecMeaning, StochasticRoundingDependsOnLogicalIndexOnly) {
  if (!shape_of(GetParam()).stochastic) return;
  const Functions fast = functions_of(codec_of(GetParam()), "");
  Case whole = random_case(2048, 11, 1.0f);
  whole.way = Way::kStochastic;
  Case part = whole;
  part.values = {whole.values.begin() + 512, whole.values.begin() + 1300};
  part.residual.resize(part.values.size());
  part.first_index = 512;
  const Encoded all = run_encode(GetParam(), whole, fast), some = run_encode(GetParam(), part, fast);
  const uint64_t before = payload_bytes_of(shape_of(GetParam()), 512);  // and as long are the compared blocks
  for (size_t i = 0; i < before; ++i) EXPECT_EQ(some.payload[i], all.payload[before + i]) << i;
  part.first_index = 768;
  EXPECT_NE(run_encode(GetParam(), part, fast).payload, some.payload);
}

// What one step loses the next ones send: the sum of what is decoded and the last residual is the sum of what
// was put in, to the rounding of the additions.
TEST_P(CodecMeaning, ErrorFeedbackConservesTheSum) {
  const Codec& codec = codec_of(GetParam());
  constexpr size_t kCount = 1500;
  const std::vector<float> values = random_case(kCount, 17, 1.0f).values;
  std::vector<float> residual(kCount, 0.0f), decoded(kCount);
  std::vector<double> in(kCount, 0.0), out(kCount, 0.0);
  std::vector<uint8_t> scales(scales_bytes_of(codec.shape, kCount)),
      payload(payload_bytes_of(codec.shape, kCount));
  float largest = 0;
  for (int step = 0; step < 50; ++step) {
    RandomSlot slot = kSlot;
    slot.step = static_cast<uint64_t>(step);
    agree_on_scales(codec.shape, values.data(), residual.data(), kCount, scales.data());
    codec.encode({values.data(), residual.data(), scales.data(), payload.data(), kCount, 0, false, slot});
    codec.decode(decode_one({scales.data(), payload.data()}, decoded.data(), kCount, 0, slot));
    for (size_t i = 0; i < kCount; ++i) in[i] += values[i], out[i] += decoded[i];
    for (size_t i = 0; i < kCount; ++i) largest = std::max(largest, std::abs(residual[i]));
  }
  // Two roundings a step, of numbers below 2·largest + 1.
  const double tolerance = 50 * 2 * 0x1p-24 * (2 * static_cast<double>(largest) + 1);
  for (size_t i = 0; i < kCount; ++i)
    EXPECT_NEAR(in[i], out[i] + static_cast<double>(residual[i]), tolerance);
  EXPECT_LT(largest, GetParam() == CodecId::kOneBit ? 20.0f : is_sparse(GetParam()) ? 51.0f : 1.0f);
}

TEST_P(CodecMeaning, RecodingNeedsNoPlaceForTheSum) {
  const Functions fast = functions_of(codec_of(GetParam()), "");
  const Case c = random_case(3000, 47, 1.0f);
  const std::vector<Encoded> two(2, run_encode(GetParam(), c, fast));
  Functions without = fast;
  without.recode = [&](Decode from, const Encode& to) {
    from.values = nullptr;
    fast.recode(from, to);
  };
  EXPECT_EQ(run_recode(GetParam(), two, c, 0.5f, without).payload,
            run_recode(GetParam(), two, c, 0.5f, fast).payload);
}

TEST_P(CodecMeaning, SumOfSourcesIsTheSumOfTheirValues) {
  const Functions fast = functions_of(codec_of(GetParam()), "");
  std::vector<Encoded> all;
  std::vector<double> expected(2100, 0.0);
  Case c;
  for (uint64_t s = 0; s < 5; ++s) {
    c = random_case(2100, 50 + s, 1.0f);
    all.push_back(run_encode(GetParam(), c, fast));
    const auto decoded = run_decode({all.back()}, c, false, 1.0f, fast);
    for (size_t i = 0; i < 2100; ++i) expected[i] += static_cast<double>(float_of(decoded[i]));
  }
  const auto sum = run_decode(all, c, false, 0.2f, fast);
  for (size_t i = 0; i < 2100; ++i) EXPECT_NEAR(float_of(sum[i]), 0.2 * expected[i], 2e-6) << i;
}

// Calls body with every implementation, the reference first.
void with_each(CodecId id, const std::function<void(const Functions&)>& body) {
  body(functions_of(reference_of(id), "reference"));
  on_each_instruction_set([&](const std::string& name) { body(functions_of(codec_of(id), name)); });
  for (const Schedule schedule : simt::schedules(2)) body(simt_functions(id, schedule));
  if (missing_device().empty()) body(device_functions(id));
}

uint32_t halfword(const std::vector<uint8_t>& plane, size_t r) {
  uint16_t value;
  std::memcpy(&value, plane.data() + 2 * r, 2);
  return value;
}
void set_halfword(std::vector<uint8_t>& plane, size_t r, uint32_t value) {
  const auto narrow = static_cast<uint16_t>(value);
  std::memcpy(plane.data() + 2 * r, &narrow, 2);
}

constexpr size_t kTopkBlock = 1024, kTopkKept = 11;

// What is defined: the largest of each block by a stable sort, in ascending order, as bfloat16.
Encoded largest_of(const Case& c) {
  Encoded expected{{}, {}, all_bits(c.residual)};
  for (size_t first = 0; first < c.values.size(); first += kTopkBlock) {
    const size_t live = std::min(kTopkBlock, c.values.size() - first);
    std::vector<size_t> order(live);
    std::iota(order.begin(), order.end(), size_t{0});
    const auto at = [&](size_t i) { return c.values[first + i] + c.residual[first + i]; };
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return std::abs(at(a)) > std::abs(at(b)); });
    order.resize((live * kTopkKept + kTopkBlock - 1) / kTopkBlock);
    std::sort(order.begin(), order.end());
    for (size_t i = 0; i < live; ++i) expected.residual[first + i] = bits_of(at(i));
    for (const size_t i : order) {
      const uint32_t code = Bf16::code(at(i), false, 0);
      expected.residual[first + i] = bits_of(at(i) - Bf16::value(code));
      const size_t r = expected.scales.size() / 2;
      expected.scales.resize(2 * r + 2), expected.payload.resize(2 * r + 2);
      set_halfword(expected.scales, r, static_cast<uint32_t>(i));
      set_halfword(expected.payload, r, code);
    }
  }
  return expected;
}

// With magnitudes of few kinds, so that equal ones meet the cut, in all places and across lanes.
TEST(Topk, KeepsTheLargestAndOfEqualOnesTheFirst) {
  SeededRandom random(83);
  for (int round = 0; round < (kThorough ? 60 : 9); ++round) {
    Case c;
    c.way = Way::kFeedback;
    const uint64_t kinds = round % 6 == 0 ? 1 : round % 6 == 1 ? 1'000'000 : 2 + random.below(20);
    const double rare = round % 3 == 2 ? 0.004 : 1.0;  // most are zeros
    c.values.resize(1 + random.below(3000));
    for (auto& value : c.values) {
      const float magnitude = static_cast<float>(random.below(kinds) + (rare < 1 || kinds == 1 ? 1 : 0));
      value = random.chance(rare) ? (random.chance(0.5) ? magnitude : -magnitude)
                                  : (random.chance(0.5) ? 0.0f : -0.0f);
    }
    c.residual.assign(c.values.size(), round % 2 == 0 ? 0.0f : -0.0f);
    const Encoded expected = largest_of(c);
    with_each(CodecId::kTopK, [&](const Functions& with) {
      EXPECT_TRUE(run_encode(CodecId::kTopK, c, with) == expected) << with.name << " round " << round;
    });
  }
}

// Of equal magnitudes at every place the cut may be.
TEST(Topk, EqualMagnitudesAreCutAtAnyPlace) {
  SeededRandom random(89);
  for (size_t above = 0; above <= kTopkKept + 1; ++above) {
    Case c;
    c.way = Way::kFeedback;
    c.values.assign(kTopkBlock, 1.0f);
    c.residual.assign(kTopkBlock, 0.0f);
    for (size_t n = 0; n < above; ++n) c.values[random.below(kTopkBlock)] = -2.0f;
    for (size_t n = 0; n < 500; ++n) c.values[random.below(kTopkBlock)] = 0.5f;
    const Encoded expected = largest_of(c);
    with_each(CodecId::kTopK, [&](const Functions& with) {
      EXPECT_TRUE(run_encode(CodecId::kTopK, c, with) == expected) << with.name << " " << above;
    });
  }
}

TEST(Topk, MarkedBlocksCarryNothingElse) {
  for (const float bad : {kNan, kInfinity, -0x1.FFp127f, FLT_MAX}) {
    Case c = random_case(1500, 97, 1.0f);
    c.values[700] = bad;
    with_each(CodecId::kTopK, [&](const Functions& with) {
      const Encoded encoded = run_encode(CodecId::kTopK, c, with);
      for (size_t r = 0; r < kTopkKept; ++r) {
        EXPECT_EQ(halfword(encoded.scales, r), 0xFFFFu) << with.name;
        EXPECT_EQ(halfword(encoded.payload, r), 0x7FC0u) << with.name;
      }
      EXPECT_LT(halfword(encoded.scales, kTopkKept), 476u) << with.name;
    });
  }
}

// As the format says of planes that no encoder writes: an entry counts if its offset is one of the block's
// elements and above all before it; the mark in the first place is the whole block's.
std::vector<float> decoded_by_definition(const Encoded& planes, size_t count) {
  std::vector<float> out(count);
  size_t r = 0;
  for (size_t first = 0; first < count; first += kTopkBlock) {
    const size_t live = std::min(kTopkBlock, count - first);
    int64_t largest = -1;
    const bool marked = halfword(planes.scales, r) == 0xFFFF;
    for (const size_t end = r + (live * kTopkKept + kTopkBlock - 1) / kTopkBlock; r < end; ++r) {
      const int64_t offset = halfword(planes.scales, r);
      if (offset < static_cast<int64_t>(live) && offset > largest)
        out[first + static_cast<size_t>(offset)] = Bf16::value(halfword(planes.payload, r));
      largest = std::max(largest, offset);
    }
    if (marked) std::fill_n(out.begin() + static_cast<ptrdiff_t>(first), live, kNan);
  }
  return out;
}

// Planes that were damaged, or are of offsets that repeat, come back or lead outside; values that are no
// numbers, and zeros with a sign. Nothing is written outside, and all agree on the sum.
TEST(Topk, DamagedPlanesDecodeAsDefined) {
  SeededRandom random(101);
  const uint32_t odd_codes[] = {0x8000, 0x0000, 0x7FC0, 0x7F80, 0xFF80, 0x7F81, 0x0001, 0x3F80};
  const uint32_t odd_offsets[] = {0, 1, 475, 476, 1023, 1024, 0xFFFE, 0xFFFF};
  for (int round = 0; round < (kThorough ? 60 : 12); ++round) {
    Case c = random_case(round % 2 == 0 ? 1500 : 1 + random.below(2500), 103, 1.0f);
    c.misalignment = random.below(2);
    const Encoded good = run_encode(CodecId::kTopK, c, functions_of(codec_of(CodecId::kTopK), ""));
    std::vector<Encoded> sources(1 + random.below(4), good);
    const uint64_t pool = round % 4 == 0 ? 14 : kTopkBlock;  // few elements: sources meet at them
    for (Encoded& source : sources) {
      for (size_t r = 0; r < source.scales.size() / 2; ++r) {
        if (pool < kTopkBlock)
          set_halfword(source.scales, r, static_cast<uint32_t>(r % kTopkKept + random.below(3)));
        if (random.chance(0.1)) set_halfword(source.scales, r, odd_offsets[random.below(8)]);
        if (random.chance(0.1)) set_halfword(source.scales, r, static_cast<uint32_t>(random.below(pool)));
        if (random.chance(0.5))
          set_halfword(source.payload, r, odd_codes[random.below(round % 3 == 0 ? 2 : 8)]);
      }
    }
    std::vector<float> sum;
    for (const Encoded& source : sources) {
      const std::vector<float> decoded = decoded_by_definition(source, c.values.size());
      if (sum.empty()) {
        sum = decoded;
      } else {
        for (size_t i = 0; i < sum.size(); ++i) sum[i] = sum[i] + decoded[i];
      }
    }
    std::vector<uint32_t> expected;
    for (const float value : sum) expected.push_back(bits_of(canonical(value * -0.5f)));
    const Functions reference = functions_of(reference_of(CodecId::kTopK), "reference");
    const Encoded recoded = run_recode(CodecId::kTopK, sources, c, -0.5f, reference, Sum::kNotWanted);
    with_each(CodecId::kTopK, [&](const Functions& with) {
      EXPECT_TRUE(run_decode(sources, c, false, -0.5f, with) == expected) << with.name << " round " << round;
      EXPECT_TRUE(run_recode(CodecId::kTopK, sources, c, -0.5f, with, Sum::kNotWanted) == recoded)
          << with.name << " recode, round " << round;
    });
  }
}

// Defects planted in the kernels, each of which the tests above have to notice.

struct WrongMask : ScaledLanes<Int8, 8> {
  // All lanes of the warp, although the two halves leave the loop at different times.
  MUSTER_DEVICE static Scale encode(const Lane& lane, const LaneTask& task, const float (&c)[kPerLane],
                                    uint32_t (&words)[kWords]) {
    return ScaledLanes::encode({0xFFFFFFFFu, lane.member}, task, c, words);
  }
};

struct WrongPartner : ScaledLanes<Int8, 8> {
  // The mask of the other half of the warp.
  MUSTER_DEVICE static Scale encode(const Lane& lane, const LaneTask& task, const float (&c)[kPerLane],
                                    uint32_t (&words)[kWords]) {
    return ScaledLanes::encode({~lane.mask, lane.member}, task, c, words);
  }
};

struct OffByOne : ScaledLanes<Int8, 8> {
  static constexpr unsigned kBits =
      9;  // a stride of 18 bytes for 16 codes: stores overlap the next lane's place
};

template <typename Lanes>
Status run_planted(const Case& c, Schedule schedule, Encoded& encoded, bool& intact) {
  const size_t count = c.values.size();
  const DeviceArray<float> values(c.values);
  const DeviceArray<uint8_t> scales(4 * (count / 256 + 1)), payload(2 * count);
  const Encode task = task_of(c, values.data(), nullptr, scales.data(), payload.data());
  const Status status = simt::launch({1}, {kThreads}, schedule, &encode_kernel<Lanes, Mode::kAny>, task);
  intact = payload.intact() && scales.intact();
  auto codes = payload.values();
  codes.resize(count);
  encoded = {{}, codes, {}};
  return status;
}

TEST(CodecPlanted, WrongShuffleMasksAreReported) {
  const Case c = random_case(256 * 17, 61, 1.0f);  // 17 blocks for 16 groups: one half-warp goes round alone
  Encoded right, wrong;
  bool intact = false;
  for (const Schedule schedule : simt::schedules(2)) {
    EXPECT_TRUE((run_planted<ScaledLanes<Int8, 8>>(c, schedule, right, intact).ok()));
    const Status all_lanes = run_planted<WrongMask>(c, schedule, wrong, intact);
    ASSERT_FALSE(all_lanes.ok()) << simt::to_string(schedule);
    const Status others = run_planted<WrongPartner>(c, schedule, wrong, intact);
    ASSERT_FALSE(others.ok()) << simt::to_string(schedule);
    EXPECT_NE(others.error().message.find("mask"), std::string::npos) << others.error().message;
  }
}

TEST(CodecPlanted, WrongStrideGivesOtherBits) {
  const Case c = random_case(600, 67, 1.0f);
  Encoded right, wrong;
  bool intact = false;
  EXPECT_TRUE((run_planted<ScaledLanes<Int8, 8>>(c, {}, right, intact).ok()));
  EXPECT_TRUE(intact);
  EXPECT_TRUE(run_planted<OffByOne>(c, {}, wrong, intact).ok());
  EXPECT_FALSE(right == wrong);
}

// A kernel that is told of one element more than there is.
void encode_one_too_many(CodecId id) {
  const Shape shape = shape_of(id);
  for (const size_t count : {size_t{shape.grain}, size_t{300}}) {
    Case c = random_case(count, 71, 1.0f);
    const DeviceArray<float> values(c.values), residual(c.residual);
    const DeviceArray<uint8_t> scales(scales_bytes_of(shape, count)), payload(payload_bytes_of(shape, count));
    c.way = Way::kFeedback;
    Encode task = task_of(c, values.data(), residual.data(), scales.data(), payload.data());
    ++task.count;
    agree_on_scales(shape, values.data(), residual.data(), count, scales.data());
    (void)encode_simt(id, task, {});
    if (residual.intact() && scales.intact() && payload.intact()) continue;
    std::fprintf(stderr, "written outside of the array\n");
    std::abort();
  }
}

TEST(CodecPlanted, OffByOneBoundsAreCaught) {
  for (const CodecId id : kCodecIds) {
    // AddressSanitizer names the access; without it the arrays' margins tell.
    EXPECT_DEATH(encode_one_too_many(id), "use-after-poison|written outside of the array")
        << codec_of(id).name;
  }
}

std::vector<uint8_t> codes_on(const std::vector<float>& values, const std::vector<uint8_t>& scales) {
  std::vector<uint8_t> payload(2 * values.size());
  codec_of(CodecId::kShared16)
      .encode({.values = values.data(),
               .residual = nullptr,
               .scales = const_cast<uint8_t*>(scales.data()),
               .payload = payload.data(),
               .count = values.size(),
               .first_index = 0,
               .stochastic = true,
               .slot = kSlot});
  return payload;
}

// The point of the codec: however the summands are grouped and ordered, the sum has the same bits.
TEST(Shared16, SumsHaveTheSameBitsInEveryOrder) {
  constexpr size_t kCount = 1000, kRanks = 7;
  std::vector<std::vector<float>> values;
  std::vector<uint32_t> max_bits(4, 0), own(4);
  for (uint64_t rank = 0; rank < kRanks; ++rank) {
    values.push_back(random_case(kCount, 80 + rank, rank == 3 ? 100.0f : 1.0f).values);
    largest_of_blocks(values.back().data(), nullptr, kCount, own.data());
    for (size_t k = 0; k < own.size(); ++k) max_bits[k] = std::max(max_bits[k], own[k]);
  }
  std::vector<uint8_t> scales(16);
  shared_scales(max_bits.data(), max_bits.size(), kRanks, scales.data());
  std::vector<std::vector<uint8_t>> codes;
  for (const auto& each : values) codes.push_back(codes_on(each, scales));
  std::vector<uint8_t> first;
  SeededRandom random(3);
  for (int order = 0; order < 20; ++order) {
    auto partial = codes;
    while (partial.size() > 1) {  // a random tree
      std::swap(partial[random.below(partial.size())], partial.back());
      const auto last = std::move(partial.back());
      partial.pop_back();
      add_codes(partial[random.below(partial.size())].data(), last.data(), kCount);
    }
    if (order == 0) first = partial[0];
    EXPECT_EQ(partial[0], first) << order;
  }
  std::vector<float> sum(kCount);
  codec_of(CodecId::kShared16).decode(decode_one({scales.data(), first.data()}, sum.data(), kCount));
  for (size_t i = 0; i < kCount; ++i) {
    double expected = 0;
    for (const auto& each : values) expected += static_cast<double>(each[i]);
    EXPECT_NEAR(sum[i], expected, kRanks * 100.0 / (32767 / kRanks - 1)) << i;
  }
}

// All summands at the largest magnitude, in either direction: the integers must not wrap.
TEST(Shared16, SumsOfTheLargestDoNotWrap) {
  for (const uint32_t adders : {1u, 2u, 100u, 8191u, kAddersMax}) {
    for (const float value : {0.3f, -0.3f}) {
      const std::vector<float> values(256, value);
      uint32_t max_bits;
      largest_of_blocks(values.data(), nullptr, 256, &max_bits);
      std::vector<uint8_t> scales(4), sum(512);
      shared_scales(&max_bits, 1, adders, scales.data());
      const auto codes = codes_on(values, scales);
      for (uint32_t rank = 0; rank < adders; ++rank) add_codes(sum.data(), codes.data(), 256);
      std::vector<float> decoded(256);
      codec_of(CodecId::kShared16).decode(decode_one({scales.data(), sum.data()}, decoded.data(), 256));
      for (const float each : decoded) EXPECT_NEAR(each / (value * static_cast<float>(adders)), 1.0f, 0.51f);
    }
  }
}

// In fp16 and MXFP8 the codes are those of the formats, as IEEE 754 and OCP write them.
TEST(Minifloat, CodesAreTheFormats) {
  EXPECT_EQ(Fp16::code(1.0f, false, 0), 0x3C00u);
  EXPECT_EQ(Fp16::code(-2.0f, false, 0), 0xC000u);
  EXPECT_EQ(Fp16::code(65504.0f, false, 0), 0x7BFFu);
  EXPECT_EQ(Fp16::code(65520.0f, false, 0), 0x7C00u);
  EXPECT_EQ(Fp16::code(0x1p-24f, false, 0), 0x0001u);
  EXPECT_EQ(Fp16::code(0x1p-25f, false, 0), 0x0000u);  // a tie, to even
  EXPECT_EQ(Fp16::code(0x1.8p-24f, false, 0), 0x0002u);
  EXPECT_EQ(Fp16::code(0x1.FFCp-15f, false, 0), 0x0400u);  // up into the normal numbers
  EXPECT_EQ(Bf16::code(0x1.01p0f, false, 0), 0x3F80u);     // a tie, to even
  EXPECT_EQ(Bf16::code(0x1.03p0f, false, 0), 0x3F82u);
  EXPECT_EQ(Bf16::code(kNan, false, 0), 0x7FC0u);
  EXPECT_EQ(Bf16::code(float_of(0xFF800001), false, 0), 0x7FC0u);
  EXPECT_EQ(Mxfp8::nearest(448.0f), 0x7Eu);
  EXPECT_EQ(Mxfp8::nearest(-1.0f), 0xB8u);
  EXPECT_EQ(Mxfp8::nearest(0x1p-9f), 0x01u);
  EXPECT_EQ(Mxfp8::nearest(0x1p-6f), 0x08u);
  for (uint32_t code = 0; code < 0x7C00; ++code) EXPECT_EQ(Fp16::code(Fp16::value(code), false, 0), code);
  for (uint32_t code = 0; code < 0x7F; ++code) EXPECT_EQ(Mxfp8::nearest(Mxfp8::value(code)), code);
  for (uint32_t code = 0; code < 0x7F80; ++code) EXPECT_EQ(Bf16::code(Bf16::value(code), false, 0), code);
}

TEST(Mxfp8Scale, IsTheSmallestPowerOfTwoThatDoesNotSaturate) {
  EXPECT_EQ(Mxfp8::scale_of(bits_of(448.0f)).wire, 127u);
  EXPECT_EQ(Mxfp8::scale_of(bits_of(std::nextafter(448.0f, 500.0f))).wire, 128u);
  EXPECT_EQ(Mxfp8::scale_of(bits_of(0x1.Ep127f)).wire, 127u + 120u);
  EXPECT_FALSE(Mxfp8::scale_of(bits_of(std::nextafter(0x1.Ep127f, kInfinity))).finite);
}

}  // namespace
}  // namespace muster::codec
