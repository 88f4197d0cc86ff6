#include "kernels/wire.h"

#include <algorithm>
#include <bit>
#include <string>

#include "kernels/crc32c.h"
#include "kernels/int4_math.h"
#include "kernels/int8_math.h"
#include "kernels/minifloat.h"
#include "kernels/shared16_math.h"
#include "kernels/topk_math.h"

namespace muster::wire {
namespace {

static_assert(std::endian::native == std::endian::little, "the wire is little-endian, as every CUDA host is");

// The bytes as they travel.
struct Header {
  uint32_t magic;
  uint16_t version;
  uint16_t header_bytes;
  uint8_t codec;
  uint8_t flags;
  uint16_t lane;
  uint32_t block;
  uint64_t count;
  uint64_t step;
  uint32_t tensor;
  uint8_t stage;
  uint8_t reserved0[3];
  uint64_t first_index;
  uint64_t reserved1;
  uint32_t reserved2;
  uint32_t crc;
};
static_assert(sizeof(Header) == kHeaderBytes && offsetof(Header, crc) == 60);

constexpr uint8_t kStochasticFlag = 1;
constexpr uint32_t kTensorLimit = uint32_t{1} << 30;
constexpr uint8_t kStageLimit = 4;

Error damaged(const std::string& what) {
  return Error{ErrorCode::kRetry, "a codec message " + what + "; discard it and ask its sender again"};
}

uint32_t checksum(const Header& header, ByteSpan message) {
  const ByteSpan head = bytes_of(header).first(offsetof(Header, crc));
  return crc32c(message.subspan(kHeaderBytes), crc32c(head));
}

Description description_of(const Header& header) {
  return {.codec = static_cast<CodecId>(header.codec),
          .stochastic = (header.flags & kStochasticFlag) != 0,
          .lane = header.lane,
          .stage = header.stage,
          .tensor = header.tensor,
          .step = header.step,
          .first_index = header.first_index,
          .count = header.count};
}

bool is_codec(CodecId id) {
  return std::find(std::begin(codec::kCodecIds), std::end(codec::kCodecIds), id) !=
         std::end(codec::kCodecIds);
}

// What is wrong with the fields, or empty.
std::string objection(const Header& header) {
  if (header.magic != kMagic) return "does not begin with its mark";
  if (header.version != kVersion) {
    return "has version " + std::to_string(header.version) + ", and this library reads version " +
           std::to_string(kVersion);
  }
  if (header.header_bytes != kHeaderBytes) return "states another header length";
  if (!is_codec(static_cast<CodecId>(header.codec))) {
    return "has the unknown codec " + std::to_string(header.codec);
  }
  const codec::Shape shape = codec::shape_of(static_cast<CodecId>(header.codec));
  if (header.block != shape.block) return "states block " + std::to_string(header.block);
  if ((header.flags & ~kStochasticFlag) != 0) return "has unknown flags";
  if (header.flags != 0 && !shape.stochastic) return "has flags of another codec";
  if (header.tensor >= kTensorLimit || header.stage >= kStageLimit)
    return "has a tensor or stage out of range";
  if (header.first_index % shape.grain != 0) {
    return "does not begin at a multiple of " + std::to_string(shape.grain) + " elements";
  }
  if (header.count > kIndexMax || header.first_index > kIndexMax - header.count)
    return "counts too many elements";
  const bool reserved = header.reserved0[0] == 0 && header.reserved0[1] == 0 && header.reserved0[2] == 0 &&
                        header.reserved1 == 0 && header.reserved2 == 0;
  return reserved ? "" : "uses reserved fields";
}

Result<Header> read_header(ByteSpan bytes) {
  if (bytes.size() < kHeaderBytes) {
    return damaged("of " + std::to_string(bytes.size()) + " bytes is shorter than a header");
  }
  Header header;
  std::memcpy(&header, bytes.data(), sizeof header);
  if (const std::string wrong = objection(header); !wrong.empty()) return damaged(wrong);
  return header;
}

bool all_zero(ByteSpan bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

// Padding after each plane.
struct Gaps {
  uint64_t first_offset, first_bytes, second_offset, second_bytes;
};
Gaps gaps_of(const Layout& layout) {
  const uint64_t scales_end = layout.scales_offset + layout.scales_bytes;
  const uint64_t payload_end = layout.payload_offset + layout.payload_bytes;
  return {scales_end, layout.payload_offset - scales_end, payload_end, layout.message_bytes - payload_end};
}

bool is_within(uint32_t bits, float low, float high) {
  return bits >= bits_of(low) && bits <= bits_of(high);  // of positive floats, as integers
}

// Whether an encoder writes such a scale: 0, one in the range that its definition leaves, or its one NaN.
bool is_scale(CodecId id, uint32_t wire) {
  using namespace codec;
  const float smallest_max = float_of(kSmallestMaxBits);
  switch (id) {
    case CodecId::kInt8:
      return wire == 0 || wire == kNanBits || is_within(wire, smallest_max / 127.0f, Int8::kScaleMax);
    case CodecId::kInt4: {
      const uint32_t lowest = Int4::scale_of(kSmallestMaxBits).wire;
      const uint32_t highest = Int4::scale_of(Int4::kTooLargeBits).wire;
      return wire == 0 || wire == Int4::kNanScale || (wire >= lowest && wire <= highest);
    }
    case CodecId::kMxfp8: {
      const uint32_t lowest = Mxfp8::scale_of(kSmallestMaxBits).wire;
      const uint32_t highest = Mxfp8::scale_of(Mxfp8::kLargestMaxBits).wire;
      return wire == 0 || wire == Mxfp8::kNanScale || (wire >= lowest && wire <= highest);
    }
    case CodecId::kOneBit:
      return wire < kInfinityBits || wire == kNanBits;
    case CodecId::kShared16:
      return wire == 0 || wire == kNanBits ||
             is_within(wire, smallest_max / 32766.0f, float_of(Shared16::kLargestMaxBits));
    case CodecId::kBf16:
    case CodecId::kFp16:
    case CodecId::kTopK:
      return false;  // have no scales
  }
  return false;
}

// Whether an encoder writes such offsets: marks only, or ascending ones of elements that the block has.
bool are_offsets(ByteSpan offsets, uint32_t live) {
  using codec::Topk;
  uint32_t next = 0;
  bool ascends = true, marks = true;
  for (size_t r = 0; r < offsets.size() / Topk::kScaleBytes; ++r) {
    uint16_t offset = 0;
    std::memcpy(&offset, offsets.data() + Topk::kScaleBytes * r, Topk::kScaleBytes);
    ascends = ascends && offset >= next && offset < live;
    marks = marks && offset == Topk::kMark;
    next = offset + 1u;
  }
  return ascends || marks;
}

std::string offset_objection(uint64_t count, ByteSpan offsets) {
  using codec::Topk;
  for (uint64_t first = 0; first < count; first += Topk::kBlock) {
    const auto live = static_cast<uint32_t>(std::min<uint64_t>(count - first, Topk::kBlock));
    const uint64_t bytes = Topk::kept_of(live) * Topk::kScaleBytes;
    const uint64_t block = first / Topk::kBlock;
    if (!are_offsets(offsets.subspan(block * Topk::kKept * Topk::kScaleBytes, bytes), live))
      return "has offsets in block " + std::to_string(block) + " that no encoder writes";
  }
  return "";
}

std::string scale_objection(CodecId id, uint64_t count, ByteSpan scales) {
  if (id == CodecId::kTopK) return offset_objection(count, scales);
  const uint32_t bytes = codec::shape_of(id).scale_bytes;
  for (size_t i = 0; bytes > 0 && i < scales.size() / bytes; ++i) {
    uint32_t wire = 0;
    std::memcpy(&wire, scales.data() + bytes * i, bytes);
    if (!is_scale(id, wire)) return "has a scale in block " + std::to_string(i) + " that no encoder writes";
  }
  return "";
}

// Bits of the last byte of payload that belong to no element are zero.
bool has_clean_end(const codec::Shape& shape, uint64_t count, ByteSpan payload) {
  const uint64_t used = count * shape.payload_bits % 8;
  if (shape.whole_blocks || used == 0) return true;
  return (static_cast<uint32_t>(payload.back()) >> used) == 0;
}

}  // namespace

Result<Layout> lay_out(CodecId codec, uint64_t count) {
  if (!is_codec(codec) || count > kIndexMax) {
    return Error{ErrorCode::kMisuse, "a message of codec " + std::to_string(static_cast<int>(codec)) +
                                         " with " + std::to_string(count) +
                                         " elements was asked for; codecs are 1 to 8, the limit is 2^51"};
  }
  const codec::Shape shape = codec::shape_of(codec);
  Layout layout{};
  layout.scales_offset = kHeaderBytes;
  layout.scales_bytes = codec::scales_bytes_of(shape, count);
  layout.payload_offset = round_up(layout.scales_offset + layout.scales_bytes, kAlignment);
  layout.payload_bytes = codec::payload_bytes_of(shape, count);
  layout.message_bytes = round_up(layout.payload_offset + layout.payload_bytes, kAlignment);
  return layout;
}

Status seal(const Description& description, MutableByteSpan message) {
  MUSTER_ASSIGN(const Layout layout, lay_out(description.codec, description.count));
  if (message.size() != layout.message_bytes) {
    return Error{ErrorCode::kMisuse, "a codec message of " + std::to_string(description.count) +
                                         " elements takes " + std::to_string(layout.message_bytes) +
                                         " bytes, not " + std::to_string(message.size())};
  }
  Header header{.magic = kMagic,
                .version = kVersion,
                .header_bytes = kHeaderBytes,
                .codec = static_cast<uint8_t>(description.codec),
                .flags = description.stochastic ? kStochasticFlag : uint8_t{0},
                .lane = description.lane,
                .block = codec::shape_of(description.codec).block,
                .count = description.count,
                .step = description.step,
                .tensor = description.tensor,
                .stage = description.stage,
                .reserved0 = {},
                .first_index = description.first_index,
                .reserved1 = 0,
                .reserved2 = 0,
                .crc = 0};
  if (const std::string wrong = objection(header); !wrong.empty()) {
    return Error{ErrorCode::kMisuse, "a codec message would be invalid: it " + wrong};
  }
  const Gaps gaps = gaps_of(layout);
  std::fill_n(message.begin() + static_cast<ptrdiff_t>(gaps.first_offset), gaps.first_bytes, std::byte{0});
  std::fill_n(message.begin() + static_cast<ptrdiff_t>(gaps.second_offset), gaps.second_bytes, std::byte{0});
  header.crc = checksum(header, message);
  std::memcpy(message.data(), &header, sizeof header);
  return ok();
}

Result<uint64_t> message_bytes_of(ByteSpan bytes, uint64_t limit_bytes) {
  MUSTER_ASSIGN(const Header header, read_header(bytes));
  MUSTER_ASSIGN(const Layout layout, lay_out(static_cast<CodecId>(header.codec), header.count));
  if (layout.message_bytes > limit_bytes) {
    return damaged("claims " + std::to_string(layout.message_bytes) + " bytes, above the limit of " +
                   std::to_string(limit_bytes));
  }
  return layout.message_bytes;
}

Result<Message> parse(ByteSpan bytes) {
  MUSTER_ASSIGN(const Header header, read_header(bytes));
  MUSTER_ASSIGN(const Layout layout, lay_out(static_cast<CodecId>(header.codec), header.count));
  if (bytes.size() != layout.message_bytes) {
    return damaged("of " + std::to_string(bytes.size()) + " bytes should have " +
                   std::to_string(layout.message_bytes));
  }
  if (checksum(header, bytes) != header.crc) return damaged("fails its checksum");
  const Gaps gaps = gaps_of(layout);
  if (!all_zero(bytes.subspan(gaps.first_offset, gaps.first_bytes)) ||
      !all_zero(bytes.subspan(gaps.second_offset, gaps.second_bytes))) {
    return damaged("has padding that is not zero");
  }
  const Message message{description_of(header), bytes.subspan(layout.scales_offset, layout.scales_bytes),
                        bytes.subspan(layout.payload_offset, layout.payload_bytes)};
  const CodecId id = message.description.codec;
  if (const std::string wrong = scale_objection(id, header.count, message.scales); !wrong.empty())
    return damaged(wrong);
  if (!has_clean_end(codec::shape_of(id), header.count, message.payload)) {
    return damaged("has padding that is not zero");
  }
  return message;
}

}  // namespace muster::wire
