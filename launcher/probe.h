// `muster probe`: what this host makes of arithmetic (runtime/probe), and which of several hosts computes
// otherwise.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace muster::launcher {

class ProbeCommand {
 public:
  void add_to(CLI::App& app);
  bool parsed() const { return probe_->parsed(); }
  int run() const;  // 0: probed, or all are alike; kExitFound: one differs; kExitTrouble, kExitMisuse

 private:
  CLI::App* probe_ = nullptr;
  std::vector<std::string> files_;
  bool json_ = false;
};

}  // namespace muster::launcher
