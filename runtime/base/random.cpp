#include "runtime/base/random.h"

#include <sys/random.h>

#include <cerrno>

#include "runtime/base/check.h"

namespace muster {

ByteBuffer random_bytes(size_t count) {
  ByteBuffer bytes(count);
  size_t filled = 0;
  while (filled < count) {
    const ssize_t got = getrandom(bytes.data() + filled, count - filled, 0);
    if (got < 0 && errno == EINTR) continue;
    MUSTER_CHECK(got > 0, "getrandom(2) failed");
    filled += static_cast<size_t>(got);
  }
  return bytes;
}

uint64_t random_nonce() {
  uint64_t nonce = 0;
  while (nonce == 0) {
    const ByteBuffer bytes = random_bytes(sizeof nonce);
    std::memcpy(&nonce, bytes.data(), sizeof nonce);
  }
  return nonce;
}

}  // namespace muster
