// `muster audit`: looks at audit logs, as `muster run --audit` writes them. Changes none.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

namespace muster::launcher {

class AuditCommand {
 public:
  void add_to(CLI::App& app);
  bool parsed() const { return audit_->parsed(); }
  int run() const;  // 0: it holds; else kExitFound, kExitTrouble or kExitMisuse

 private:
  CLI::App* audit_ = nullptr;
  CLI::App* verify_ = nullptr;
  std::vector<std::string> files_;
  std::string head_;
  std::optional<std::string> secret_file_;
  bool json_ = false;
};

}  // namespace muster::launcher
