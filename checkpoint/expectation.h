// What a program expects of a tensor's bytes from one save to the next; see changes.h.
#pragma once

#include <cstdint>

namespace muster::checkpoint {

enum class Expectation : uint8_t {
  kWatched = 0,   // changes with every step, or never: told when it stops
  kConstant = 1,  // frozen: told when it changes
  kChanging = 2,  // must change between any two saves
  kFree = 3,      // may do either: nothing is told
};

}  // namespace muster::checkpoint
