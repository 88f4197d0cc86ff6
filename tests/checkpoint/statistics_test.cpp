#include "checkpoint/statistics.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

namespace muster::testing {
namespace {

using namespace muster::checkpoint;

template <typename T>
ByteSpan bytes_of_all(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

template <typename T>
std::vector<double> decoded(DType dtype, const std::vector<T>& raw) {
  std::vector<double> values(raw.size());
  to_doubles(dtype, bytes_of_all(raw), values);
  return values;
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(Elements, SmallFloatsByTheirFields) {
  using ::testing::ElementsAre;
  EXPECT_THAT(decoded<uint16_t>(DType::kBFloat16, {0x3f80, 0xc040, 0x7f80, 0x0001}),
              ElementsAre(1, -3, kInfinity, std::ldexp(1.0, -133)));
  EXPECT_THAT(decoded<uint16_t>(DType::kFloat16, {0x3c00, 0xfbff, 0x0001, 0xfc00, 0x7bff}),
              ElementsAre(1, -65504, std::ldexp(1.0, -24), -kInfinity, 65504));
  // E4M3 has no infinity: its largest exponent holds 256 to 448, and only 0x7f and 0xff are NaN.
  EXPECT_THAT(decoded<uint8_t>(DType::kFloat8E4M3, {0x38, 0x7e, 0x78, 0x01, 0xb8}),
              ElementsAre(1, 448, 256, std::ldexp(1.0, -9), -1));
  EXPECT_TRUE(std::isnan(decoded<uint8_t>(DType::kFloat8E4M3, {0xff})[0]));
  EXPECT_THAT(decoded<uint8_t>(DType::kFloat8E5M2, {0x3c, 0x7b, 0x7c, 0xc4, 0x01}),
              ElementsAre(1, 57344, kInfinity, -4, std::ldexp(1.0, -16)));
  EXPECT_TRUE(std::isnan(decoded<uint8_t>(DType::kFloat8E5M2, {0x7d})[0]));
}

TEST(Elements, Integers) {
  EXPECT_THAT(decoded<int8_t>(DType::kInt8, {-128, 127}), ::testing::ElementsAre(-128, 127));
  EXPECT_THAT(decoded<uint16_t>(DType::kUInt16, {65535}), ::testing::ElementsAre(65535));
  EXPECT_THAT(decoded<int64_t>(DType::kInt64, {-(int64_t{1} << 53)}),
              ::testing::ElementsAre(-9007199254740992.0));
}

TEST(Statistics, CountsWhatIsThere) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> values = {nan, -2, 0, inf, 6, -inf, -0.0F, 1e-30F};
  Statistics statistics;
  // In two pieces, as a reader would hand them over; the first begins with a NaN.
  statistics.add(DType::kFloat32, bytes_of_all(values).first(12));
  statistics.add(DType::kFloat32, bytes_of_all(values).subspan(12));
  EXPECT_EQ(statistics.count, 8U);
  EXPECT_EQ(statistics.nans, 1U);
  EXPECT_EQ(statistics.infinities, 2U);
  EXPECT_EQ(statistics.zeros, 2U);
  EXPECT_EQ(statistics.min, -2);
  EXPECT_EQ(statistics.max, 6);
  EXPECT_DOUBLE_EQ(statistics.mean(), 4.0 / 5);
  EXPECT_EQ(statistics.magnitudes[12], 2U) << "2 and 6 lie in [2^0, 2^4)";
  EXPECT_EQ(statistics.magnitudes[0], 1U) << "1e-30 lies below 2^-44";
}

TEST(Statistics, NothingAndOnlyNaNs) {
  Statistics statistics;
  EXPECT_EQ(statistics.mean(), 0);
  statistics.add(DType::kFloat64, bytes_of_all(std::vector<double>{std::nan("")}));
  EXPECT_EQ(statistics.mean(), 0);
  EXPECT_EQ(statistics.finite(), 0U);
}

TEST(Statistics, LargeTensorsKeepTheirMean) {
  const std::vector<float> values(300'000, 0.1F);
  Statistics statistics;
  statistics.add(DType::kFloat32, bytes_of_all(values));
  EXPECT_NEAR(statistics.mean(), static_cast<double>(0.1F), 1e-12);
}

TEST(Difference, FindsTheFirstAndTheLargest) {
  std::vector<int32_t> a(5000, 1);
  std::vector<int32_t> b = a;
  b[4097] = 4;
  b[4999] = -9;
  Difference difference;
  difference.add(DType::kInt32, bytes_of_all(a).first(4000), bytes_of_all(b).first(4000));
  difference.add(DType::kInt32, bytes_of_all(a).subspan(4000), bytes_of_all(b).subspan(4000));
  EXPECT_EQ(difference.count, 5000U);
  EXPECT_EQ(difference.differing, 2U);
  EXPECT_EQ(difference.first_differing, 4097U);
  EXPECT_EQ(difference.largest, 10);
}

TEST(Difference, GoesByBytes) {
  const std::vector<float> a = {0.0F, std::nanf("1"), 1};
  const std::vector<float> b = {-0.0F, 2, std::numeric_limits<float>::infinity()};
  Difference difference;
  difference.add(DType::kFloat32, bytes_of_all(a), bytes_of_all(b));
  EXPECT_EQ(difference.differing, 3U);
  EXPECT_EQ(difference.first_differing, 0U);
  EXPECT_EQ(difference.largest, 0);
  EXPECT_EQ(difference.not_finite, 2U);
}

TEST(Difference, OfGreatNumbersIsNotLeftOut) {
  const double most = std::numeric_limits<double>::max();
  Difference difference;
  difference.add(DType::kFloat64, bytes_of_all(std::vector{most}), bytes_of_all(std::vector{-most}));
  EXPECT_EQ(difference.largest, std::numeric_limits<double>::infinity());
  EXPECT_EQ(difference.not_finite, 0U);
}

}  // namespace
}  // namespace muster::testing
