// The arithmetic of XXH3-128 with its default secret and seed 0, restated for kernels: what digest_of() is on
// the CPU. Source: Y. Collet, xxHash 0.8, xxhash.h (XXH3_128bits and what it calls); a test holds constants
// and values against that header.
//
// Over 240 bytes, eight 64-bit lanes take the input in stripes of 64 bytes, sixteen of which are a block. A
// stripe only adds to the lanes, so the sums of a block need nothing of the blocks before it; scramble(),
// which follows each block but the last, is the one serial step.
#pragma once

#include "kernels/target.h"

namespace muster::xxh3 {

constexpr unsigned kLanes = 8, kStripe = 64, kStripesPerBlock = 16, kBlock = kStripe * kStripesPerBlock;
constexpr uint64_t kShortMax = 240;  // bytes up to which there are no lanes
constexpr unsigned kSecretWords = 24;

constexpr uint64_t kPrime32A = 0x9E3779B1, kPrime32B = 0x85EBCA77, kPrime32C = 0xC2B2AE3D;
constexpr uint64_t kPrime64A = 0x9E3779B185EBCA87, kPrime64B = 0xC2B2AE3D27D4EB4F,
                   kPrime64C = 0x165667B19E3779F9, kPrime64D = 0x85EBCA77C2B2AE63,
                   kPrime64E = 0x27D4EB2F165667C5, kPrimeMix = 0x9FB21C651E98DF25;

// The secret, in little-endian words. Kernels get it as a parameter: device code cannot index a host array.
struct Secret {
  uint64_t words[kSecretWords];
};
constexpr Secret kSecret = {{0xBE4BA423396CFEB8, 0x1CAD21F72C81017C, 0xDB979083E96DD4DE, 0x1F67B3B7A4A44072,
                             0x78E5C0CC4EE679CB, 0x2172FFCC7DD05A82, 0x8E2443F7744608B8, 0x4C263A81E69035E0,
                             0xCB00C391BB52283C, 0xA32E531B8B65D088, 0x4EF90DA297486471, 0xD8ACDEA946EF1938,
                             0x3F349CE33F76FAA8, 0x1D4F0BC7C7BBDCF9, 0x3159B4CD4BE0518A, 0x647378D9C97E9FC8,
                             0xC3EBD33483ACC5EA, 0xEB6313FAFFA081C5, 0x49DAF0B751DD0D17, 0x9E68D429265516D3,
                             0xFCA1477D58BE162B, 0xCE31D07AD1B8F88F, 0x280416958F3ACB45, 0x7E404BBBCAFBD7AF}};

// Where parts of the secret begin, in bytes.
constexpr unsigned kScrambleAt = 128, kLastStripeAt = 121, kMergeLowAt = 11, kMergeHighAt = 117;

// Whole blocks before the last bytes, which are never a block of their own.
MUSTER_HD uint64_t blocks_of(uint64_t bytes) { return bytes == 0 ? 0 : (bytes - 1) / kBlock; }

struct Words {
  uint64_t low, high;
};

MUSTER_HD uint64_t secret_at(const Secret& secret, unsigned byte) {
  const unsigned word = byte / 8, shift = byte % 8 * 8;
  if (shift == 0) return secret.words[word];
  return secret.words[word] >> shift | secret.words[word + 1] << (64 - shift);
}

// Of any alignment.
MUSTER_HD uint64_t read_bytes(const uint8_t* from, unsigned count) {
  uint64_t value = 0;
  for (unsigned byte = 0; byte < count; ++byte) value |= uint64_t{from[byte]} << (8 * byte);
  return value;
}
MUSTER_HD uint64_t read32(const uint8_t* from) { return read_bytes(from, 4); }
MUSTER_HD uint64_t read64(const uint8_t* from) { return read_bytes(from, 8); }

MUSTER_HD uint32_t swapped(uint32_t value) {
  return value << 24 | (value << 8 & 0x00FF0000u) | (value >> 8 & 0x0000FF00u) | value >> 24;
}
MUSTER_HD uint64_t swapped(uint64_t value) {
  return uint64_t{swapped(static_cast<uint32_t>(value))} << 32 | swapped(static_cast<uint32_t>(value >> 32));
}

MUSTER_HD Words product(uint64_t left, uint64_t right) {
#if defined(__CUDA_ARCH__)
  return {left * right, __umul64hi(left, right)};
#else
  __extension__ typedef unsigned __int128 Wide;
  const Wide wide = static_cast<Wide>(left) * right;
  return {static_cast<uint64_t>(wide), static_cast<uint64_t>(wide >> 64)};
#endif
}
MUSTER_HD uint64_t folded_product(uint64_t left, uint64_t right) {
  const Words wide = product(left, right);
  return wide.low ^ wide.high;
}

MUSTER_HD uint64_t avalanche(uint64_t value) {
  value = (value ^ value >> 37) * 0x165667919E3779F9;
  return value ^ value >> 32;
}
// The one of XXH64, which the shortest inputs use.
MUSTER_HD uint64_t avalanche64(uint64_t value) {
  value = (value ^ value >> 33) * kPrime64B;
  value = (value ^ value >> 29) * kPrime64C;
  return value ^ value >> 32;
}

// What a lane gets of its own eight bytes under its key; its neighbour (lane ^ 1) gets the bytes themselves.
MUSTER_HD uint64_t keyed_product(uint64_t bytes, uint64_t key) {
  const uint64_t keyed = bytes ^ key;
  return uint64_t{static_cast<uint32_t>(keyed)} * (keyed >> 32);
}
MUSTER_HD uint64_t scramble(uint64_t lane, uint64_t key) { return (lane ^ lane >> 47 ^ key) * kPrime32A; }

MUSTER_HD uint64_t first_value(unsigned lane) {
  switch (lane) {
    case 0:
      return kPrime32C;
    case 1:
      return kPrime64A;
    case 2:
      return kPrime64B;
    case 3:
      return kPrime64C;
    case 4:
      return kPrime64D;
    case 5:
      return kPrime32B;
    case 6:
      return kPrime64E;
    default:
      return kPrime32A;
  }
}

// What follows digests up to kShortMax bytes, on one thread.

MUSTER_HD Words short_1_to_3(const uint8_t* in, uint64_t bytes, const Secret& secret) {
  const uint32_t low = uint32_t{in[0]} << 16 | uint32_t{in[bytes / 2]} << 24 | uint32_t{in[bytes - 1]} |
                       static_cast<uint32_t>(bytes) << 8;
  const uint32_t back = swapped(low), high = back << 13 | back >> 19;
  const uint64_t a = secret.words[0], b = secret.words[1];
  return {avalanche64(low ^ ((a ^ a >> 32) & 0xFFFFFFFF)), avalanche64(high ^ ((b ^ b >> 32) & 0xFFFFFFFF))};
}

MUSTER_HD Words short_4_to_8(const uint8_t* in, uint64_t bytes, const Secret& secret) {
  const uint64_t value = read32(in) | read32(in + bytes - 4) << 32;
  Words hash = product(value ^ secret.words[2] ^ secret.words[3], kPrime64A + (bytes << 2));
  hash.high += hash.low << 1;
  hash.low ^= hash.high >> 3;
  hash.low = (hash.low ^ hash.low >> 35) * kPrimeMix;
  return {hash.low ^ hash.low >> 28, avalanche(hash.high)};
}

MUSTER_HD Words short_9_to_16(const uint8_t* in, uint64_t bytes, const Secret& secret) {
  const uint64_t low = read64(in), high = read64(in + bytes - 8);
  Words mixed = product(low ^ high ^ secret.words[4] ^ secret.words[5], kPrime64A);
  mixed.low += (bytes - 1) << 54;
  const uint64_t keyed = high ^ secret.words[6] ^ secret.words[7];
  mixed.high += keyed + (keyed & 0xFFFFFFFF) * (kPrime32B - 1);
  mixed.low ^= swapped(mixed.high);
  const Words hash = product(mixed.low, kPrime64B);
  return {avalanche(hash.low), avalanche(hash.high + mixed.high * kPrime64B)};
}

MUSTER_HD uint64_t mix16(const uint8_t* in, const Secret& secret, unsigned at) {
  return folded_product(read64(in) ^ secret_at(secret, at), read64(in + 8) ^ secret_at(secret, at + 8));
}
MUSTER_HD Words mix32(Words sum, const uint8_t* one, const uint8_t* two, const Secret& secret, unsigned at) {
  sum.low = (sum.low + mix16(one, secret, at)) ^ (read64(two) + read64(two + 8));
  sum.high = (sum.high + mix16(two, secret, at + 16)) ^ (read64(one) + read64(one + 8));
  return sum;
}
MUSTER_HD Words finished(Words sum, uint64_t bytes) {
  const uint64_t high = sum.low * kPrime64A + sum.high * kPrime64D + bytes * kPrime64B;
  return {avalanche(sum.low + sum.high), 0 - avalanche(high)};
}

// From both ends towards the middle.
MUSTER_HD Words short_17_to_128(const uint8_t* in, uint64_t bytes, const Secret& secret) {
  Words sum{bytes * kPrime64A, 0};
  for (unsigned pair = static_cast<unsigned>(bytes - 1) / 32 + 1; pair-- > 0;)
    sum = mix32(sum, in + 16 * pair, in + bytes - 16 * (pair + 1), secret, 32 * pair);
  return finished(sum, bytes);
}

MUSTER_HD Words short_129_to_240(const uint8_t* in, uint64_t bytes, const Secret& secret) {
  constexpr unsigned kFirstRounds = 4, kLaterSecretAt = 3, kLastSecretAt = 103;
  const unsigned rounds = static_cast<unsigned>(bytes / 32);
  Words sum{bytes * kPrime64A, 0};
  for (unsigned r = 0; r < rounds; ++r) {
    if (r == kFirstRounds) sum = {avalanche(sum.low), avalanche(sum.high)};
    const unsigned at = r < kFirstRounds ? 32 * r : kLaterSecretAt + 32 * (r - kFirstRounds);
    sum = mix32(sum, in + 32 * r, in + 32 * r + 16, secret, at);
  }
  if (rounds == kFirstRounds) sum = {avalanche(sum.low), avalanche(sum.high)};
  return finished(mix32(sum, in + bytes - 16, in + bytes - 32, secret, kLastSecretAt), bytes);
}

MUSTER_HD Words short_digest(const uint8_t* in, uint64_t bytes, const Secret& secret) {
  if (bytes > 128) return short_129_to_240(in, bytes, secret);
  if (bytes > 16) return short_17_to_128(in, bytes, secret);
  if (bytes > 8) return short_9_to_16(in, bytes, secret);
  if (bytes >= 4) return short_4_to_8(in, bytes, secret);
  if (bytes >= 1) return short_1_to_3(in, bytes, secret);
  return {avalanche64(secret.words[8] ^ secret.words[9]), avalanche64(secret.words[10] ^ secret.words[11])};
}

}  // namespace muster::xxh3
