// One codec, three implementations: the reference, Highway on every instruction set of this machine, and the
// CUDA kernel bodies in the SIMT shim. All must give the same bits for all inputs.
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cfloat>
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/float_mode.h"
#include "kernels/int8_codec.h"
#include "kernels/int8_math.h"
#include "runtime/base/random.h"
#include "tests/kernels/int8_simt.h"

namespace muster::int8 {
namespace {

using simt::DeviceArray;
using simt::Schedule;

// ThreadSanitizer makes a switch of fibers a hundred times as slow, and has nothing to find where one thread
// computes.
#if defined(__SANITIZE_THREAD__)
constexpr bool kThorough = false;
#else
constexpr bool kThorough = true;
#endif

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

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

enum class Mode { kNearest, kStochastic, kFeedback };

struct Case {
  std::vector<float> values;
  std::vector<float> residual;
  Mode mode = Mode::kNearest;
  size_t misalignment = 0;
  uint64_t first_index = 0;
};

using Encoder = std::function<void(const Encode&)>;
using Decoder = std::function<void(const Decode&)>;

Encoded run_encode(const Case& c, const Encoder& encoder) {
  const size_t count = c.values.size();
  const DeviceArray<float> values(c.values, c.misalignment), residual(c.residual, c.misalignment);
  const DeviceArray<uint8_t> scales(4 * blocks_of(count), c.misalignment), payload(count, 3 * c.misalignment);
  encoder({.values = values.data(),
           .residual = c.mode == Mode::kFeedback ? residual.data() : nullptr,
           .scales = scales.data(),
           .payload = payload.data(),
           .count = count,
           .first_index = c.first_index,
           .stochastic = c.mode == Mode::kStochastic,
           .slot = {.seed = 42, .step = 7, .tensor = 3, .lane = 5, .stage = 1}});
  EXPECT_TRUE(values.intact() && residual.intact() && scales.intact() && payload.intact());
  return {scales.values(), payload.values(), all_bits(residual.values())};
}

std::vector<uint32_t> run_decode(const Encoded& encoded, const std::vector<float>& before, bool accumulate,
                                 size_t misalignment, const Decoder& decoder) {
  const DeviceArray<float> values(before, misalignment);
  const DeviceArray<uint8_t> scales(encoded.scales, misalignment), payload(encoded.payload, 3 * misalignment);
  decoder({scales.data(), payload.data(), values.data(), before.size(), accumulate});
  EXPECT_TRUE(values.intact() && scales.intact() && payload.intact());
  return all_bits(values.values());
}

// Calls body for every instruction set that Highway compiled and this processor has.
void on_each_instruction_set(const std::function<void(const std::string&)>& body) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    body(hwy::TargetName(target));
  }
  hwy::SetSupportedTargetsForTest(0);
}

void expect_all_agree(const Case& c, const std::string& what, int seeded_schedules) {
  const Encoded expected = run_encode(c, &encode_reference);
  std::vector<float> before = c.residual;
  const auto plain = run_decode(expected, before, false, c.misalignment, &decode_reference);
  const auto added = run_decode(expected, before, true, c.misalignment, &decode_reference);
  on_each_instruction_set([&](const std::string& name) {
    EXPECT_TRUE(run_encode(c, &encode) == expected) << what << " encode " << name;
    EXPECT_TRUE(run_decode(expected, before, false, c.misalignment, &decode) == plain) << what << " " << name;
    EXPECT_TRUE(run_decode(expected, before, true, c.misalignment, &decode) == added) << what << " " << name;
  });
  for (const Schedule schedule : simt::schedules(seeded_schedules)) {
    const auto by_encode = [&](const Encode& task) {
      const Status status = encode_simt(task, schedule);
      EXPECT_TRUE(status.ok()) << status.error().message;
    };
    const auto by_decode = [&](const Decode& task) {
      const Status status = decode_simt(task, schedule);
      EXPECT_TRUE(status.ok()) << status.error().message;
    };
    const std::string with = what + " simt " + simt::to_string(schedule);
    EXPECT_TRUE(run_encode(c, by_encode) == expected) << with;
    EXPECT_TRUE(run_decode(expected, before, false, c.misalignment, by_decode) == plain) << with;
    EXPECT_TRUE(run_decode(expected, before, true, c.misalignment, by_decode) == added) << with;
  }
}

constexpr Mode kModes[] = {Mode::kNearest, Mode::kStochastic, Mode::kFeedback};
const char* name_of(Mode mode) {
  return mode == Mode::kNearest ? "nearest" : mode == Mode::kStochastic ? "stochastic" : "feedback";
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

TEST(Int8, AllSizesAndAlignmentsAgree) {
  for (const size_t count : {0, 1, 2, 15, 16, 17, 255, 256, 257, 511, 512, 513, 4096, 5000, 20001}) {
    if (!kThorough && count > 300) continue;
    for (const size_t misalignment : {0, 1, 2, 3}) {
      if (!kThorough && misalignment > 1) continue;
      for (const Mode mode : kModes) {
        Case c = random_case(count, count + misalignment, 3.0f);
        c.mode = mode;
        c.misalignment = misalignment;
        c.first_index = 256 * misalignment;
        expect_all_agree(c, std::to_string(count) + "+" + std::to_string(misalignment) + " " + name_of(mode),
                         1);
      }
    }
  }
}

// Every 32-bit pattern is an input that some program will send.
TEST(Int8, RandomBitPatternsAgree) {
  SeededRandom random(9);
  for (int round = 0; round < (kThorough ? 12 : 3); ++round) {
    Case c;
    // Blocks of one exponent range each, else a NaN would hide everything in every block.
    for (int block = 0; block < 16; ++block) {
      const uint32_t exponent = static_cast<uint32_t>(random.below(256));
      for (uint32_t i = 0; i < kBlock; ++i) {
        const uint32_t e = exponent - static_cast<uint32_t>(random.below(exponent < 12 ? exponent + 1 : 12));
        const auto sign_and_fraction = static_cast<uint32_t>(random.next()) & 0x807FFFFFu;
        c.values.push_back(float_of(sign_and_fraction | e << 23));
        c.residual.push_back(float_of((static_cast<uint32_t>(random.next()) & 0x807FFFFFu) | (e / 2) << 23));
      }
    }
    c.mode = kModes[round % 3];
    expect_all_agree(c, "round " + std::to_string(round) + " " + name_of(c.mode), 1);
  }
}

std::vector<std::pair<std::string, std::vector<float>>> special_blocks() {
  const float denormal = float_of(1), big_denormal = float_of(0x007FFFFF);
  const float just_enough = 0x1p-100f, just_too_small = std::nextafter(0x1p-100f, 0.0f);
  return {{"zeros", {0.0f, -0.0f, 0.0f}},
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
          {"tiny beside large", {1e30f, 1e-30f, -1e-30f}}};
}

TEST(Int8, SpecialValuesAgree) {
  for (const auto& [name, few] : special_blocks()) {
    for (const Mode mode : kModes) {
      for (const size_t count : {few.size(), size_t{256}, size_t{300}, size_t{768}}) {
        if (!kThorough && count != 300) continue;
        Case c;
        c.mode = mode;
        for (size_t i = 0; i < count; ++i) c.values.push_back(few[i % few.size()]);
        c.residual.assign(count, 0.25f);
        expect_all_agree(c, name + " " + name_of(mode), 0);
        c.residual.assign(count, -0.0f);
        expect_all_agree(c, name + " -0 " + name_of(mode), 0);
        // The accumulator too may hold anything.
        for (size_t i = 0; i < count; ++i) c.residual[i] = few[(i + 1) % few.size()];
        expect_all_agree(c, name + " self " + name_of(mode), 0);
      }
    }
  }
}

std::vector<float> through(const std::vector<float>& values, Mode mode = Mode::kNearest) {
  Case c{.values = values, .residual = std::vector<float>(values.size(), 0.0f), .mode = mode};
  const Encoded encoded = run_encode(c, &encode);
  std::vector<float> out(values.size());
  decode({encoded.scales.data(), encoded.payload.data(), out.data(), out.size(), false});
  return out;
}

TEST(Int8, NonFiniteBlockDecodesToNanAndItsNeighboursDoNot) {
  for (const float bad : {kNan, kInfinity, -kInfinity}) {
    std::vector<float> values(768, 1.0f);
    values[300] = bad;
    const std::vector<float> out = through(values);
    for (size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(bits_of(out[i]), i / 256 == 1 ? kNanBits : bits_of(1.0f)) << i;
    }
  }
}

TEST(Int8, NonFiniteBlockKeepsItsResidual) {
  Case c{.values = std::vector<float>(300, 1.0f), .residual = std::vector<float>(300, 0.125f)};
  c.mode = Mode::kFeedback;
  c.values[280] = kInfinity;
  const Encoded encoded = run_encode(c, &encode);
  for (size_t i = 256; i < 300; ++i) EXPECT_EQ(encoded.residual[i], bits_of(0.125f));
  EXPECT_NE(encoded.residual[0], bits_of(0.125f));
}

// FLT_MAX/127 rounded to nearest, times 127, is infinity: the scale has to be a little smaller.
TEST(Int8, LargestFiniteValuesStayFinite) {
  for (const Mode mode : {Mode::kNearest, Mode::kStochastic}) {
    for (const float value : through({FLT_MAX, -FLT_MAX, std::nextafter(FLT_MAX, 0.0f), FLT_MAX / 2}, mode)) {
      EXPECT_TRUE(std::isfinite(value));
    }
  }
  EXPECT_FALSE(std::isfinite(127.0f * std::nextafter(kScaleMax, kInfinity)));
}

TEST(Int8, TinyBlocksBecomeZeroAndKeepTheirSigns) {
  for (const float value : through({1e-37f, -1e-37f})) EXPECT_EQ(bits_of(value), 0u);
  const auto kept = through({0x1p-99f, -0x1p-99f});
  EXPECT_GT(kept[0], 0.0f);
  EXPECT_LT(kept[1], 0.0f);
}

TEST(Int8, ErrorIsWithinHalfAStepAndStochasticWithinOne) {
  const Case c = random_case(4096, 5, 1.0f);
  const auto nearest = through(c.values), stochastic = through(c.values, Mode::kStochastic);
  for (size_t block = 0; block < 16; ++block) {
    float max = 0;
    for (size_t i = 0; i < 256; ++i) max = std::max(max, std::abs(c.values[256 * block + i]));
    for (size_t i = 256 * block; i < 256 * (block + 1); ++i) {
      EXPECT_LE(std::abs(nearest[i] - c.values[i]), max / 127 * 0.50001f);
      EXPECT_LE(std::abs(stochastic[i] - c.values[i]), max / 127 * 1.00001f);
    }
  }
}

// The mean of n draws deviates from the value by about step/√(12n)…step/√(4n); five sigma, and 16 bits' bias.
TEST(Int8, StochasticRoundingIsUnbiased) {
  constexpr size_t kCount = 256 * 400;
  std::vector<float> values(kCount, 0.3f);
  for (size_t i = 0; i < kCount; i += 256) values[i] = 127.0f;  // step is 1
  double sum = 0;
  const auto out = through(values, Mode::kStochastic);
  for (size_t i = 0; i < kCount; ++i) sum += i % 256 == 0 ? 0.0 : static_cast<double>(out[i]);
  const double n = kCount / 256.0 * 255.0;
  EXPECT_NEAR(sum / n, 0.3, 5 * std::sqrt(0.3 * 0.7 / n) + 0x1p-17);
}

TEST(Int8, StochasticRoundingDependsOnLogicalIndexOnly) {
  Case whole = random_case(2048, 11, 1.0f);
  whole.mode = Mode::kStochastic;
  Case part = whole;
  part.values = {whole.values.begin() + 512, whole.values.begin() + 1300};
  part.residual.resize(part.values.size());
  part.first_index = 512;
  const Encoded all = run_encode(whole, &encode), some = run_encode(part, &encode);
  for (size_t i = 0; i < 512; ++i) EXPECT_EQ(some.payload[i], all.payload[512 + i]);  // the whole blocks
  part.first_index = 768;
  EXPECT_NE(run_encode(part, &encode).payload, some.payload);
}

TEST(Int8, IndicesAboveFourGiAgree) {
  Case c = random_case(600, 13, 1.0f);
  c.mode = Mode::kStochastic;
  for (const uint64_t first : {uint64_t{8} << 32, (uint64_t{8} << 32) - 256, uint64_t{1} << 50}) {
    c.first_index = first;
    expect_all_agree(c, "first index " + std::to_string(first), 0);
  }
}

// What one step loses the next ones send: the sum of what is decoded follows the sum of what is put in.
TEST(Int8, ErrorFeedbackConservesTheSum) {
  Case c = random_case(1000, 17, 1.0f);
  std::vector<float> residual(1000, 0.0f);
  std::vector<double> in(1000, 0.0), out(1000, 0.0);
  for (int step = 0; step < 50; ++step) {
    std::vector<uint8_t> scales(16), payload(1000);
    encode({.values = c.values.data(),
            .residual = residual.data(),
            .scales = scales.data(),
            .payload = payload.data(),
            .count = 1000,
            .first_index = 0,
            .stochastic = false,
            .slot = {}});
    std::vector<float> decoded(1000);
    decode({scales.data(), payload.data(), decoded.data(), 1000, false});
    for (size_t i = 0; i < 1000; ++i) in[i] += c.values[i], out[i] += decoded[i];
  }
  for (size_t i = 0; i < 1000; ++i) EXPECT_NEAR(in[i], out[i] + residual[i], 1e-4);
}

#if defined(__x86_64__)
TEST(Int8, CallersFloatingPointModeChangesNothing) {
  Case c = random_case(600, 19, 1.0f);
  for (size_t i = 0; i < 600; i += 2) c.values[i] *= 1e-42f;
  c.mode = Mode::kFeedback;
  c.residual.assign(600, 0.0f);
  const Encoded expected = run_encode(c, &encode);
  const uint32_t before = _mm_getcsr();
  _mm_setcsr(before | 0x8040 | 0x6000);  // flush to zero, denormals are zero, round towards zero
  const Encoded simd = run_encode(c, &encode), reference = run_encode(c, &encode_reference);
  const uint32_t after = _mm_getcsr();
  _mm_setcsr(before);
  EXPECT_EQ(after & 0xE040, 0xE040u);
  EXPECT_TRUE(simd == expected);
  EXPECT_TRUE(reference == expected);
}
#endif

TEST(Int8, GridSizeChangesNothing) {
  Case c = random_case(kThorough ? 70000 : 9000, 23, 1.0f);
  c.mode = Mode::kStochastic;
  const Encoded expected = run_encode(c, &encode_reference);
  for (const unsigned grid : {1u, 7u, 1000u}) {
    EXPECT_TRUE(run_encode(c, [&](const Encode& task) {
                  EXPECT_TRUE(encode_simt(task, {simt::Order::kReverse, 0}, grid).ok());
                }) == expected);
  }
}

}  // namespace
}  // namespace muster::int8
