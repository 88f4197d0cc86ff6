#include "examples/gpt/ledger.h"

#include <unistd.h>

#include <fstream>

namespace gpt {

Ledger::Ledger(std::string folder) {
  if (!folder.empty()) path_ = folder + "/ledger-" + std::to_string(getpid()) + ".txt";
}

void Ledger::note(uint64_t generation, int64_t step, const muster_microbatch& micro) {
  if (path_.empty()) return;
  if (step != step_ || generation != generation_) lines_.clear();
  step_ = step;
  generation_ = generation;
  std::string line =
      std::to_string(step) + " " + std::to_string(generation) + " " + std::to_string(micro.index);
  for (int64_t i = 0; i < micro.count; ++i) line += " " + std::to_string(micro.samples[i]);
  lines_.push_back(line + "\n");
}

void Ledger::commit() {
  if (path_.empty() || lines_.empty()) return;
  std::string text;
  for (const std::string& line : lines_) text += line;
  std::ofstream(path_, std::ios::app) << text;  // one write: a kill leaves all lines of a step, or none
  lines_.clear();
}

}  // namespace gpt
