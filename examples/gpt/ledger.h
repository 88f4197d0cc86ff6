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

  // A microbatch was computed; what was noted for another try of a step is forgotten.
  void note(uint64_t generation, int64_t step, const muster_microbatch& micro);
  void contribute();  // all noted microbatches go into the reduction now
  void apply();       // the update of that step is being applied

 private:
  void append(const std::string& text);

  std::string path_;
  int64_t step_ = -1;
  uint64_t generation_ = 0;
  std::string lines_;
};

}  // namespace gpt
