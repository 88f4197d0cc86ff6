// Whether this host can run the model at all.
#pragma once

#include "runtime/base/result.h"

namespace gpt {

// REQUIRES: called before anything else of the model, which would end in an illegal instruction.
// Errors: kEnvironment where the processor lacks what the arithmetic was compiled for (MUSTER_GPT_MARCH).
muster::Status require_processor();

}  // namespace gpt
