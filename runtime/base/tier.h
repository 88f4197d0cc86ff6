// Where checkpoints are kept: the word that saves, their messages and their events share.
#pragma once

#include <cstdint>

namespace muster {

enum class Tier : uint8_t {
  kShared,  // the folder that all nodes see: what it says is durable, and which history counts
  kLocal,   // a folder of each node, for that node's members: nearer, and lost with the node
};

}  // namespace muster
