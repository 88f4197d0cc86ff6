// Golden vectors of the wire format, and hostile messages.
#include "kernels/wire.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "kernels/codec.h"
#include "kernels/crc32c.h"
#include "kernels/shared16.h"
#include "runtime/base/random.h"

namespace muster::wire {
namespace {

using EncodeFunction = void (*)(const codec::Encode&);

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
  if (codec::shape_of(description.codec).shared_scales) {
    std::vector<uint32_t> max_bits(layout.scales_bytes / 4);
    codec::largest_of_blocks(values.data(), nullptr, values.size(), max_bits.data());
    codec::shared_scales(max_bits.data(), max_bits.size(), 3, bytes + layout.scales_offset);
  }
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

Description example(size_t count, bool stochastic = false, CodecId codec = CodecId::kInt8) {
  return {.codec = codec,
          .stochastic = stochastic,
          .lane = 3,
          .stage = 1,
          .tensor = 77,
          .step = 123456789,
          .first_index = 2048,
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

// golden.py computes them from docs/formats/codec.md, apart from this code.
struct Golden {
  CodecId codec;
  bool stochastic;
  size_t count;
  std::string hex;
};

std::vector<Golden> goldens() {
  std::vector<Golden> all;
  std::ifstream file(MUSTER_GOLDEN_FILE);
  std::string name, rounding, hex;
  for (size_t count; file >> name >> rounding >> count >> hex;) {
    for (const CodecId id : codec::kCodecIds) {
      if (codec::codec_of(id).name == name) all.push_back({id, rounding == "stochastic", count, hex});
    }
  }
  return all;
}

std::vector<float> golden_values(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    const double value = (static_cast<double>(i * 37 % 101) - 50) / 8;
    values[i] = static_cast<float>(i % 7 == 3 ? value * 0.001 : value);
  }
  return values;
}

TEST(Wire, GoldenVectors) {
  const auto all = goldens();
  ASSERT_EQ(all.size(), 29u);
  for (const Golden& golden : all) {
    Description description = example(golden.count, golden.stochastic);
    description.codec = golden.codec;
    description.first_index = 1024;
    for (const auto& implementation : {codec::codec_of(golden.codec), codec::reference_of(golden.codec)}) {
      const auto message = message_of(description, golden_values(golden.count), implementation.encode);
      EXPECT_EQ(to_hex(message), golden.hex) << implementation.name << " " << golden.count;
    }
  }
}

ByteBuffer message_of(CodecId id, size_t count, bool stochastic = false) {
  return message_of(example(count, stochastic, id), ramp(count), codec::codec_of(id).encode);
}

TEST(Wire, RoundTrip) {
  for (const CodecId id : codec::kCodecIds) {
    const codec::Shape shape = codec::shape_of(id);
    for (const size_t count : {0, 1, 7, 127, 128, 129, 255, 256, 257, 1023, 1024, 1025, 5000}) {
      for (const bool stochastic : {false, true}) {
        if (stochastic && !shape.stochastic) continue;
        const ByteBuffer bytes = message_of(id, count, stochastic);
        EXPECT_EQ(bytes.size() % 16, 0u);
        const auto parsed = parse(bytes);
        ASSERT_TRUE(parsed.ok()) << parsed.error().message;
        EXPECT_EQ(parsed->description, example(count, stochastic, id));
        EXPECT_EQ(parsed->payload.size(), codec::payload_bytes_of(shape, count));
        EXPECT_EQ(parsed->scales.size(), codec::scales_bytes_of(shape, count));
        EXPECT_EQ(message_bytes_of(ByteSpan(bytes).first(64), 1 << 20).value(), bytes.size());
      }
    }
  }
}

// What an encoder makes of extreme values has to pass as well.
TEST(Wire, ExtremeScalesAreAccepted) {
  for (const CodecId id : codec::kCodecIds) {
    for (const float value : {0x1p-100f, 0x1.FFFFFEp-101f, 0x1.FFFFFEp119f, 0x1p120f, 0x1.FFFFFEp127f, 1e-45f,
                              std::numeric_limits<float>::infinity(), std::nanf("")}) {
      const std::vector<float> values(300, value);
      const ByteBuffer bytes = message_of(example(300, false, id), values, codec::codec_of(id).encode);
      const auto parsed = parse(bytes);
      EXPECT_TRUE(parsed.ok()) << parsed.error().message;
    }
  }
}

TEST(WireHostile, EveryTruncationAndExtensionIsRefused) {
  for (const CodecId id : codec::kCodecIds) {
    const ByteBuffer message = message_of(id, 300);
    for (size_t length = 0; length < message.size(); ++length) {
      // A copy of its own at the exact size, so that AddressSanitizer sees a read past its end.
      const ByteBuffer cut(message.begin(), message.begin() + static_cast<ptrdiff_t>(length));
      EXPECT_FALSE(parse(cut).ok()) << length;
    }
    ByteBuffer longer = message;
    longer.resize(message.size() + 16);
    expect_refused(longer, "should have");
  }
}

TEST(WireHostile, EveryFlippedBitIsRefused) {
  for (const CodecId id : codec::kCodecIds) {
    ByteBuffer message = message_of(id, 40);
    for (size_t bit = 0; bit < 8 * message.size(); ++bit) {
      message[bit / 8] ^= std::byte{1} << (bit % 8);
      EXPECT_FALSE(parse(message).ok()) << "bit " << bit;
      message[bit / 8] ^= std::byte{1} << (bit % 8);
    }
    EXPECT_TRUE(parse(message).ok());
  }
}

// With a right checksum, as a peer of another version or a defective one would send it.
TEST(WireHostile, ForeignFieldsAreRefusedEvenWithARightChecksum) {
  const ByteBuffer good = message_of(example(300), ramp(300), codec::codec_of(CodecId::kInt8).encode);
  const std::pair<size_t, std::string> planted[] = {
      {0, "mark"},      {4, "version"},      {6, "header length"}, {8, "codec"},     {9, "flags"},
      {12, "block"},    {16, "should have"}, {37, "reserved"},     {48, "reserved"}, {56, "reserved"},
      {40, "multiple"}, {36, "stage"},       {35, "tensor"}};
  for (const auto& [offset, why] : planted) {
    ByteBuffer bad = good;
    bad[offset] ^= std::byte{0x44};
    reseal(bad);
    expect_refused(bad, why);
  }
}

TEST(WireHostile, HugeCountsDoNotOverflow) {
  for (const uint64_t count : {UINT64_MAX, UINT64_MAX - 255, uint64_t{1} << 63, uint64_t{1} << 51}) {
    ByteBuffer bad = message_of(example(300), ramp(300), codec::codec_of(CodecId::kInt8).encode);
    std::memcpy(bad.data() + 16, &count, 8);
    reseal(bad);
    EXPECT_FALSE(parse(bad).ok());
    EXPECT_FALSE(message_bytes_of(bad, 1 << 30).ok());
    EXPECT_FALSE(lay_out(CodecId::kInt8, count).ok());
  }
  const uint64_t large = uint64_t{1} << 40;
  ByteBuffer bad = message_of(example(300), ramp(300), codec::codec_of(CodecId::kInt8).encode);
  std::memcpy(bad.data() + 16, &large, 8);
  reseal(bad);
  expect_refused(bad, "should have");
  EXPECT_FALSE(message_bytes_of(bad, 1 << 30).ok());
}

TEST(WireHostile, PaddingAndScalesAreChecked) {
  const ByteBuffer good = message_of(example(300), ramp(300), codec::codec_of(CodecId::kInt8).encode);
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
  for (int round = 0; round < 6000; ++round) {
    ByteBuffer bytes = message_of(codec::kCodecIds[round / 2 % std::size(codec::kCodecIds)], 600);
    for (uint64_t n = random.below(6) + 1; n > 0; --n) {
      bytes[random.below(round % 2 == 0 ? 64 : bytes.size())] = static_cast<std::byte>(random.next());
    }
    bytes.resize(random.chance(0.3) ? random.below(bytes.size() + 100) : bytes.size());
    if (random.chance(0.7) && bytes.size() >= 64) reseal(bytes);
    const auto parsed = parse(bytes);
    if (!parsed.ok()) continue;
    EXPECT_LE(parsed->payload.size() + parsed->scales.size() + 64, bytes.size());
    std::vector<float> out(parsed->description.count);
    codec::codec_of(parsed->description.codec)
        .decode(codec::decode_one({reinterpret_cast<const uint8_t*>(parsed->scales.data()),
                                   reinterpret_cast<const uint8_t*>(parsed->payload.data())},
                                  out.data(), out.size()));
  }
}

TEST(WireHostile, MessagesOfAnotherCodecAreRefused) {
  for (const CodecId id : codec::kCodecIds) {
    for (const CodecId other : codec::kCodecIds) {
      if (codec::shape_of(id).block == codec::shape_of(other).block) continue;  // bf16 and fp16 look alike
      ByteBuffer bad = message_of(id, 300);
      bad[8] = static_cast<std::byte>(other);
      reseal(bad);
      expect_refused(bad, "block");
    }
  }
  ByteBuffer bad = message_of(CodecId::kOneBit, 300);
  bad[9] = std::byte{1};
  reseal(bad);
  expect_refused(bad, "flags of another codec");
}

TEST(WireHostile, BitsBehindTheLastElementAreChecked) {
  ByteBuffer bad = message_of(CodecId::kOneBit, 300);
  bad[64 + 16 + 300 / 8] |= std::byte{0x80};
  reseal(bad);
  expect_refused(bad, "padding");
}

// The offsets of top-k are what a decoder writes at: all of a block are marks, or they ascend and are of its
// elements.
TEST(WireHostile, OffsetsAreChecked) {
  constexpr size_t kCount = 1500, kKept = 11, kScales = 64;  // 1500 − 1024 elements keep 6
  const ByteBuffer good = message_of(CodecId::kTopK, kCount);
  ASSERT_TRUE(parse(good).ok());
  const auto offset_at = [](ByteBuffer& message, size_t r) {
    return reinterpret_cast<std::byte*>(message.data() + kScales + 2 * r);
  };
  const auto with = [&](size_t r, uint16_t offset) {
    ByteBuffer bad = good;
    std::memcpy(offset_at(bad, r), &offset, 2);
    reseal(bad);
    return bad;
  };
  const auto offset_of = [&](size_t r) {
    ByteBuffer copy = good;
    uint16_t offset;
    std::memcpy(&offset, offset_at(copy, r), 2);
    return offset;
  };
  expect_refused(with(1, offset_of(0)), "offsets in block 0");           // twice
  expect_refused(with(3, offset_of(5)), "offsets in block 0");           // not ascending
  expect_refused(with(kKept - 1, 1024), "offsets in block 0");           // outside
  expect_refused(with(kKept + 5, kCount - 1024), "offsets in block 1");  // of the shorter block
  EXPECT_TRUE(parse(with(kKept + 5, kCount - 1024 - 1)).ok());
  expect_refused(with(0, 0xFFFF), "offsets in block 0");  // one mark alone
  ByteBuffer marked = good;
  std::memset(offset_at(marked, kKept), 0xFF, 12);
  reseal(marked);
  EXPECT_TRUE(parse(marked).ok());
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
