// libFuzzer's entries for the wire (scripts/fuzz): whatever decodes must encode again to something that
// decodes to the same bytes. wire_test calls the first one, too, with seeded mutations and with the inputs
// that libFuzzer has found.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "runtime/control/wire.h"
#include "tests/runtime/control/sample_messages.h"

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

#ifdef MUSTER_LIBFUZZER
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t capacity);

// Mutations of what was found so far, and now and then of a real message: from noise alone it would not find
// one that the verifier takes.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t capacity, unsigned seed) {
  if (seed % 16 == 0) {
    const auto messages = control::all_messages();
    const auto sample = control::encode({seed, messages[seed / 16 % messages.size()]});
    size = std::min(sample->size(), capacity);
    std::memcpy(data, sample->data(), size);
  }
  return LLVMFuzzerMutate(data, size, capacity);
}
#endif
