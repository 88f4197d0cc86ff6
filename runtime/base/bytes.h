// Bytes: borrowed spans, owned buffers, hexadecimal, digests.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace muster {

using ByteSpan = std::span<const std::byte>;
using MutableByteSpan = std::span<std::byte>;
using ByteBuffer = std::vector<std::byte>;

inline ByteSpan as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

template <typename T>
ByteSpan bytes_of(const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  return {reinterpret_cast<const std::byte*>(&value), sizeof(T)};
}
template <typename T>
MutableByteSpan writable_bytes_of(T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  return {reinterpret_cast<std::byte*>(&value), sizeof value};
}

std::string to_hex(ByteSpan bytes);
// Empty where the text is not an even number of hexadecimal digits.
ByteBuffer from_hex(std::string_view text);

// XXH3-128: an integrity digest against accidents, not against an adversary. Equal on every host.
struct Digest {
  uint64_t low = 0;
  uint64_t high = 0;
  friend auto operator<=>(const Digest&, const Digest&) = default;
};
Digest digest_of(ByteSpan bytes);
std::string to_string(const Digest& digest);  // 32 hexadecimal digits

// Digest of a sequence of digests, in order: the root over a file's slabs or a state's tensors.
Digest digest_of(std::span<const Digest> parts);

std::string human_bytes(uint64_t bytes);  // "1.5 MiB"

constexpr uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace muster
