// `muster bench --explain`: which algorithm each operation gets, what that would take, and why; of the world
// that mpirun or srun has started it in, measured, or of one that is only described.
#pragma once

#include <string>

namespace CLI {
class App;
}

namespace muster::launcher {

class BenchCommand {
 public:
  explicit BenchCommand(CLI::App& app);
  bool parsed() const;
  int run() const;  // prints its report; 0, or 78 or 75 with a sentence

 private:
  CLI::App* command_;
  bool explain_ = false;
  bool json_ = false;
  int ranks_ = 0;
  int nodes_ = 1;
  std::string costs_;
};

}  // namespace muster::launcher
