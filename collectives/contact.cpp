#include "collectives/contact.h"

namespace muster {
namespace {

constexpr uint32_t kMagic = 0x3243554dU;  // "MUC2": format version 2, with lists of listeners
constexpr uint32_t kMaxField = 64 * 1024;

void append(ByteBuffer& out, ByteSpan field) {
  const auto size = static_cast<uint32_t>(field.size());
  out.insert(out.end(), bytes_of(size).begin(), bytes_of(size).end());
  out.insert(out.end(), field.begin(), field.end());
}

// Takes `size` bytes from the front of `rest`, or says no.
bool take(ByteSpan& rest, void* target, size_t size) {
  if (rest.size() < size) return false;
  if (size > 0) std::memcpy(target, rest.data(), size);
  rest = rest.subspan(size);
  return true;
}

template <typename Bytes>
bool take_field(ByteSpan& rest, Bytes& field) {
  uint32_t size = 0;
  if (!take(rest, &size, sizeof size) || size > kMaxField || size > rest.size()) return false;
  field.resize(size);
  return take(rest, field.data(), size);
}

}  // namespace

ByteBuffer Contact::encode() const {
  ByteBuffer out;
  out.insert(out.end(), bytes_of(kMagic).begin(), bytes_of(kMagic).end());
  out.insert(out.end(), bytes_of(nonce).begin(), bytes_of(nonce).end());
  append(out, as_bytes(local_socket));
  append(out, as_bytes(transport));
  append(out, address);
  return out;
}

Result<Contact> Contact::parse(ByteSpan bytes) {
  Contact contact;
  uint32_t magic = 0;
  const bool whole = take(bytes, &magic, sizeof magic) && magic == kMagic &&
                     take(bytes, &contact.nonce, sizeof contact.nonce) &&
                     take_field(bytes, contact.local_socket) && take_field(bytes, contact.transport) &&
                     take_field(bytes, contact.address) && bytes.empty();
  if (whole && contact.nonce != 0) return contact;
  return Error{ErrorCode::kMisuse,
               "a peer's contact cannot be read; all processes must run the same version of muster"};
}

}  // namespace muster
