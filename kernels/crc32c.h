// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), the checksum of the codecs' wire format.
#pragma once

#include <cstdint>

#include "runtime/base/bytes.h"

namespace muster {

// Continues from `crc`, so that crc32c(b, crc32c(a)) is the checksum of a followed by b.
uint32_t crc32c(ByteSpan bytes, uint32_t crc = 0);

// In plain C++, where the processor has no instruction for it; exposed so that tests compare the two.
uint32_t crc32c_portable(ByteSpan bytes, uint32_t crc = 0);

}  // namespace muster
