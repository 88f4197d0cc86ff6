// The codecs' wire format: a 64-byte header, a plane of scales, a plane of payload, one checksum over all.
// docs/formats/codec.md is the definition. Start at lay_out (before encoding), seal (after), parse
// (receiving).
#pragma once

#include <cstdint>

#include "kernels/codec.h"
#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster::wire {

using codec::CodecId;

constexpr uint32_t kMagic = 0x4353554Du;  // "MUSC" in memory
constexpr uint16_t kVersion = 1;
constexpr size_t kHeaderBytes = 64;
constexpr uint64_t kAlignment = 16;  // of both planes, from the start of the message

// What a message says of itself.
struct Description {
  CodecId codec = CodecId::kInt8;
  bool stochastic = false;
  uint16_t lane = 0;
  uint8_t stage = 0;
  uint32_t tensor = 0;
  uint64_t step = 0;
  uint64_t first_index = 0;  // a multiple of the codec's grain
  uint64_t count = 0;        // elements
  friend bool operator==(const Description&, const Description&) = default;
};

struct Layout {
  uint64_t scales_offset;
  uint64_t scales_bytes;
  uint64_t payload_offset;
  uint64_t payload_bytes;
  uint64_t message_bytes;
};

// Where the planes of a message of `count` elements are. Errors: kMisuse for counts above 2^51.
Result<Layout> lay_out(CodecId codec, uint64_t count);

// Writes header, padding and checksum around the planes, which are already in place.
// REQUIRES: message.size() == lay_out(...).message_bytes.
Status seal(const Description& description, MutableByteSpan message);

struct Message {
  Description description;
  ByteSpan scales;
  ByteSpan payload;
};

// The message in `bytes`, which must be exactly one. The spans point into `bytes`.
// Everything is verified before anything is believed: lengths, version, fields, zero padding, checksum,
// scales, offsets. Errors: kRetry where the bytes are not such a message (ask for them again); the message
// says what is wrong. Payload codes are not judged one by one: a code that no encoder writes decodes to some
// number.
Result<Message> parse(ByteSpan bytes);

// Length of the message that begins with these 64 bytes, for a reader of a stream. Not verified by checksum,
// so `limit_bytes` bounds what a damaged header may ask for. Errors: as parse.
Result<uint64_t> message_bytes_of(ByteSpan header, uint64_t limit_bytes);

}  // namespace muster::wire
