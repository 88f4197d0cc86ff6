#include "runtime/seal_key_file.h"

#include "runtime/agent/settings.h"

namespace muster {

Result<checkpoint::SealKeyPtr> read_seal_key(const std::string& path) {
  if (path.empty()) return checkpoint::SealKeyPtr();
  MUSTER_ASSIGN(ByteBuffer bytes, agent::read_private_bytes("the checkpoint key", path));
  return checkpoint::SealKey::of(std::move(bytes), "the checkpoint key " + path);
}

}  // namespace muster
