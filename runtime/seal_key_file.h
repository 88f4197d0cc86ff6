// The file of the key that seals checkpoints, for the library and for `muster ckpt`.
#pragma once

#include <string>

#include "checkpoint/seal.h"

namespace muster {

// All bytes of the file are the key. Null where `path` is empty. Errors: kMisuse: it is missing, no regular
// file, too short or too long, another user's (root's is fine), or group or others may read or change it.
Result<checkpoint::SealKeyPtr> read_seal_key(const std::string& path);

}  // namespace muster
