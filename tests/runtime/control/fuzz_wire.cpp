// libFuzzer's entry for the wire: whatever decodes must encode again to something that decodes to the same
// bytes. Also called by wire_test with a seeded mutator, where no libFuzzer is at hand.
#include <cstdint>
#include <cstdlib>

#include "runtime/control/wire.h"

namespace {

using namespace muster;

template <typename T>
void round_trip(const Result<T>& decoded, Result<T> (*decode)(ByteSpan)) {
  if (!decoded.ok()) return;
  const auto once = control::encode(*decoded);
  if (!once.ok()) std::abort();
  const auto again = decode(*once);
  if (!again.ok()) std::abort();
  const auto twice = control::encode(*again);
  if (!twice.ok() || *twice != *once) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const ByteSpan bytes(reinterpret_cast<const std::byte*>(data), size);
  round_trip(control::decode_envelope(bytes), &control::decode_envelope);
  round_trip(control::decode_view(bytes), &control::decode_view);
  round_trip(control::decode_event(bytes), &control::decode_event);
  return 0;
}
