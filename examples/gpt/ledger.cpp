#include "examples/gpt/ledger.h"

#include <fcntl.h>
#include <unistd.h>

#include <stdexcept>

namespace gpt {

Ledger::Ledger(std::string folder) {
  if (!folder.empty()) path_ = folder + "/ledger-" + std::to_string(getpid()) + ".txt";
}

void Ledger::note(uint64_t generation, int64_t step, const muster_microbatch& micro) {
  if (path_.empty()) return;
  if (step != step_ || generation != generation_) lines_.clear();
  step_ = step;
  generation_ = generation;
  lines_ +=
      "c " + std::to_string(step) + " " + std::to_string(generation) + " " + std::to_string(micro.index);
  for (int64_t i = 0; i < micro.count; ++i) lines_ += " " + std::to_string(micro.samples[i]);
  lines_ += "\n";
}

void Ledger::contribute() {
  append(lines_);
  lines_.clear();
}

void Ledger::apply() {
  if (step_ >= 0) append("a " + std::to_string(step_) + " " + std::to_string(generation_) + "\n");
}

// In one write, so that a kill leaves all lines of a step, or none.
void Ledger::append(const std::string& text) {
  if (path_.empty() || text.empty()) return;
  const int file = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file < 0 || write(file, text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    throw std::runtime_error("cannot write the ledger " + path_ + "; free its disk, or leave --ledger out");
  }
  close(file);
}

}  // namespace gpt
