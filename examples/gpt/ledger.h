// Who trained on what: one text file per process, a line for each microbatch of an update that this process
// applied. `scripts/demo` and the system tests read them to show that every sample of every step was seen
// exactly once.
#pragma once

#include <muster/muster.h>

#include <string>
#include <vector>

namespace gpt {

class Ledger {
 public:
  // Empty folder: nothing is written.
  explicit Ledger(std::string folder);

  void note(uint64_t generation, int64_t step, const muster_microbatch& micro);
  // The step's update is being applied: what was noted for it counts. A step that is repeated was noted anew,
  // under another generation.
  void commit();

 private:
  std::string path_;
  int64_t step_ = -1;
  uint64_t generation_ = 0;
  std::vector<std::string> lines_;
};

}  // namespace gpt
