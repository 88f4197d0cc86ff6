// Golden vectors of the wire format, and hostile messages.
#include "kernels/wire.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/crc32c.h"
#include "kernels/int8_codec.h"
#include "runtime/base/random.h"

namespace muster::wire {
namespace {

using EncodeFunction = void (*)(const int8::Encode&);

std::vector<float> ramp(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i)
    values[i] = static_cast<float>(static_cast<int>(i * 37 % 101) - 50) / 8.0f;
  return values;
}

ByteBuffer message_of(const Description& description, const std::vector<float>& values,
                      EncodeFunction encode) {
  const Layout layout = lay_out(description.codec, values.size()).value();
  ByteBuffer message(layout.message_bytes, std::byte{0xEE});  // padding must be written, not hoped for
  auto* bytes = reinterpret_cast<uint8_t*>(message.data());
  encode({.values = values.data(),
          .residual = nullptr,
          .scales = bytes + layout.scales_offset,
          .payload = bytes + layout.payload_offset,
          .count = values.size(),
          .first_index = description.first_index,
          .stochastic = description.stochastic,
          .slot = {.seed = 0x0123456789ABCDEF,
                   .step = description.step,
                   .tensor = description.tensor,
                   .lane = description.lane,
                   .stage = description.stage}});
  EXPECT_TRUE(seal(description, message).ok());
  return message;
}

Description example(size_t count, bool stochastic = false) {
  return {.codec = Codec::kInt8,
          .stochastic = stochastic,
          .lane = 3,
          .stage = 1,
          .tensor = 77,
          .step = 123456789,
          .first_index = 512,
          .count = count};
}

void reseal(ByteBuffer& message) {
  const uint32_t crc = crc32c(ByteSpan(message).subspan(64), crc32c(ByteSpan(message).first(60)));
  std::memcpy(message.data() + 60, &crc, 4);
}

void expect_refused(const ByteBuffer& bytes, const std::string& why) {
  const auto parsed = parse(bytes);
  ASSERT_FALSE(parsed.ok()) << why;
  EXPECT_EQ(parsed.error().code, ErrorCode::kRetry);
  EXPECT_NE(parsed.error().message.find(why), std::string::npos) << parsed.error().message;
}

// Computed apart from this code, with exact fractions in another language from docs/formats/codec.md. A
// change of these bytes is a new version of the format.
constexpr const char* kGoldenNearest =
    "4d555343010040000100030000010000150000000000000015cd5b07000000004d000000010000000002000000000000"
    "000000000000000000000000771cca9e2693493d00000000000000000000000081df3d9af856b41270cd2b89e745a200"
    "5ebb1977d50000000000000000000000";
constexpr const char* kGoldenStochastic =
    "4d555343010040000101030000010000150000000000000015cd5b07000000004d000000010000000002000000000000"
    "000000000000000000000000571b0ab02693493d00000000000000000000000081df3d9bf856b41270cd2b89e644a300"
    "5ebc1a78d50000000000000000000000";

TEST(Wire, GoldenVectors) {
  for (const EncodeFunction encode :
       {EncodeFunction{&int8::encode}, EncodeFunction{&int8::encode_reference}}) {
    EXPECT_EQ(to_hex(message_of(example(21), ramp(21), encode)), kGoldenNearest);
    EXPECT_EQ(to_hex(message_of(example(21, true), ramp(21), encode)), kGoldenStochastic);
  }
}

TEST(Wire, RoundTrip) {
  for (const size_t count : {0, 1, 255, 256, 257, 1024, 1025, 5000}) {
    for (const bool stochastic : {false, true}) {
      const Description description = example(count, stochastic);
      const ByteBuffer bytes = message_of(description, ramp(count), &int8::encode);
      EXPECT_EQ(bytes.size() % 16, 0u);
      const auto parsed = parse(bytes);
      ASSERT_TRUE(parsed.ok()) << parsed.error().message;
      EXPECT_EQ(parsed->description, description);
      EXPECT_EQ(parsed->payload.size(), count);
      EXPECT_EQ(parsed->scales.size(), (count + 255) / 256 * 4);
      EXPECT_EQ(message_bytes_of(ByteSpan(bytes).first(64), 1 << 20).value(), bytes.size());
    }
  }
}

TEST(WireHostile, EveryTruncationAndExtensionIsRefused) {
  const ByteBuffer message = message_of(example(300), ramp(300), &int8::encode);
  for (size_t length = 0; length < message.size(); ++length) {
    // A copy of its own at the exact size, so that AddressSanitizer sees a read past its end.
    const ByteBuffer cut(message.begin(), message.begin() + static_cast<ptrdiff_t>(length));
    EXPECT_FALSE(parse(cut).ok()) << length;
  }
  ByteBuffer longer = message;
  longer.resize(message.size() + 16);
  expect_refused(longer, "should have");
}

TEST(WireHostile, EveryFlippedBitIsRefused) {
  ByteBuffer message = message_of(example(40), ramp(40), &int8::encode);
  for (size_t bit = 0; bit < 8 * message.size(); ++bit) {
    message[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_FALSE(parse(message).ok()) << "bit " << bit;
    message[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  EXPECT_TRUE(parse(message).ok());
}

// With a right checksum, as a peer of another version or a defective one would send it.
TEST(WireHostile, ForeignFieldsAreRefusedEvenWithARightChecksum) {
  const ByteBuffer good = message_of(example(300), ramp(300), &int8::encode);
  const std::pair<size_t, std::string> planted[] = {
      {0, "mark"},   {4, "version"},      {6, "header length"}, {8, "codec"},     {9, "flags"},
      {12, "block"}, {16, "should have"}, {37, "reserved"},     {48, "reserved"}, {56, "reserved"},
      {40, "block"}, {36, "stage"},       {35, "tensor"}};
  for (const auto& [offset, why] : planted) {
    ByteBuffer bad = good;
    bad[offset] ^= std::byte{0x44};
    reseal(bad);
    expect_refused(bad, why);
  }
}

TEST(WireHostile, HugeCountsDoNotOverflow) {
  for (const uint64_t count : {UINT64_MAX, UINT64_MAX - 255, uint64_t{1} << 63, uint64_t{1} << 51}) {
    ByteBuffer bad = message_of(example(300), ramp(300), &int8::encode);
    std::memcpy(bad.data() + 16, &count, 8);
    reseal(bad);
    EXPECT_FALSE(parse(bad).ok());
    EXPECT_FALSE(message_bytes_of(bad, 1 << 30).ok());
    EXPECT_FALSE(lay_out(Codec::kInt8, count).ok());
  }
  const uint64_t large = uint64_t{1} << 40;
  ByteBuffer bad = message_of(example(300), ramp(300), &int8::encode);
  std::memcpy(bad.data() + 16, &large, 8);
  reseal(bad);
  expect_refused(bad, "should have");
  EXPECT_FALSE(message_bytes_of(bad, 1 << 30).ok());
}

TEST(WireHostile, PaddingAndScalesAreChecked) {
  const ByteBuffer good = message_of(example(300), ramp(300), &int8::encode);
  ByteBuffer bad = good;
  bad[64 + 8] = std::byte{1};  // after two scales
  reseal(bad);
  expect_refused(bad, "padding");
  bad = good;
  bad.back() = std::byte{1};
  reseal(bad);
  expect_refused(bad, "padding");
  const float wrong[] = {-1.0f, -0.0f, std::numeric_limits<float>::infinity(), std::nanf("7"), 1e-40f, 3e38f};
  for (const float scale : wrong) {
    bad = good;
    std::memcpy(bad.data() + 64 + 4, &scale, 4);
    reseal(bad);
    expect_refused(bad, "scale in block 1");
  }
}

TEST(WireHostile, RandomBytesAndRandomDamage) {
  SeededRandom random(4);
  const ByteBuffer good = message_of(example(600, true), ramp(600), &int8::encode);
  for (int round = 0; round < 4000; ++round) {
    ByteBuffer bytes = good;
    for (uint64_t n = random.below(6) + 1; n > 0; --n) {
      bytes[random.below(round % 2 == 0 ? 64 : bytes.size())] = static_cast<std::byte>(random.next());
    }
    bytes.resize(random.chance(0.3) ? random.below(bytes.size() + 100) : bytes.size());
    if (random.chance(0.7) && bytes.size() >= 64) reseal(bytes);
    const auto parsed = parse(bytes);
    if (!parsed.ok()) continue;
    EXPECT_LE(parsed->payload.size() + parsed->scales.size() + 64, bytes.size());
    std::vector<float> out(parsed->description.count);
    int8::decode({reinterpret_cast<const uint8_t*>(parsed->scales.data()),
                  reinterpret_cast<const uint8_t*>(parsed->payload.data()), out.data(), out.size(), false});
  }
}

TEST(Wire, SealRefusesWhatParseWould) {
  ByteBuffer message(96);
  Description description = example(1);
  EXPECT_TRUE(seal(description, message).ok());
  description.first_index = 100;
  EXPECT_EQ(seal(description, message).error().code, ErrorCode::kMisuse);
  description = example(1);
  description.stage = 4;
  EXPECT_FALSE(seal(description, message).ok());
  description = example(17);
  EXPECT_FALSE(seal(description, message).ok());
}

}  // namespace
}  // namespace muster::wire
