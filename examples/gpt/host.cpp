#include "examples/gpt/host.h"

namespace gpt {

muster::Status require_processor() {
#ifdef MUSTER_GPT_MARCH
  __builtin_cpu_init();
  if (!__builtin_cpu_supports(MUSTER_GPT_MARCH)) {
    return muster::Error{muster::ErrorCode::kEnvironment,
                         "this processor is below " MUSTER_GPT_MARCH
                         ", for which the GPT example was compiled; configure again with "
                         "-DMUSTER_GPT_MARCH=x86-64, for all hosts of a job alike"};
  }
#endif
  return muster::ok();
}

}  // namespace gpt
