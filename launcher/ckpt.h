// `muster ckpt`: looking at checkpoint folders, and changing them with care. Each command prints a table for
// people or, with --json, one JSON object; progress goes to a terminal's stderr.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace muster::launcher {

// Exit codes of `muster ckpt`, beside kExitMisuse.
constexpr int kExitFound = 1;    // it looked, and found damage or a difference
constexpr int kExitTrouble = 2;  // it could not look: files, permissions, a living owner

struct CkptArguments {
  std::string first;   // a folder, FOLDER@VERSION, or a file to import
  std::string second;  // what to compare with, or the target
  std::vector<std::string> tensors;
  std::string cast;              // a type
  std::vector<std::string> job;  // NAME=VALUE
  std::string key_file;          // empty: none
  uint64_t version = 0;
  bool version_given = false;
  uint32_t shards = 1;
  uint64_t keep = 2;
  uint64_t keep_every = 0;
  uint64_t keep_younger_s = 0;
  uint32_t parity = 0;  // shards of a group
  int zstd_level = 0;   // 0: plain
  bool json = false;
  bool all = false;
  bool mark = false;
  bool statistics = false;
  bool dry_run = false;
};

class CkptCommand {
 public:
  void add_to(CLI::App& app);
  bool parsed() const { return ckpt_->parsed(); }
  int run() const;

 private:
  CLI::App* ckpt_ = nullptr;
  std::vector<std::pair<CLI::App*, int (*)(const CkptArguments&)>> commands_;
  CkptArguments arguments_;
};

}  // namespace muster::launcher
