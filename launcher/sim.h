// `muster sim`: what a preemption trace would do to a job of a given shape; plans, and runs nothing.
#pragma once

#include <memory>

namespace CLI {
class App;
}

namespace muster::launcher {

class SimCommand {
 public:
  explicit SimCommand(CLI::App& app);
  ~SimCommand();
  bool parsed() const;
  int run() const;  // prints its report; 0, or 78 with a sentence

 private:
  struct Flags;
  CLI::App* command_;
  std::unique_ptr<Flags> flags_;
};

}  // namespace muster::launcher
