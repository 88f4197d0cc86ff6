// How `muster ckpt` speaks: tables, progress, versions by name, errors as exit codes.
#pragma once

#include <nlohmann/json.hpp>

#include "checkpoint/state_reader.h"
#include "checkpoint/statistics.h"
#include "checkpoint/store.h"
#include "launcher/ckpt.h"
#include "runtime/base/clock.h"

namespace muster::launcher {

using Json = nlohmann::json;

// Names and sentences may come from files that anybody wrote: control characters, which would move a
// terminal's cursor or worse, become \xNN. Line breaks stay where `lines`.
std::string printable(const std::string& text, bool lines = false);
// Prints the error and returns the exit code for it.
int report(const Error& error);
void print(const Json& json);

class Table {
 public:
  explicit Table(std::vector<std::string> heads);
  void add(std::vector<std::string> cells);
  void print() const;  // columns of numbers are aligned to the right

 private:
  std::vector<std::vector<std::string>> rows_;
};

// On stderr, where that is a terminal and no JSON was asked for.
class ProgressBar {
 public:
  ProgressBar(std::string label, uint64_t bytes_total, bool quiet);
  ~ProgressBar();
  void show(uint64_t bytes_done);

 private:
  std::string label_;
  uint64_t total_;
  bool visible_;
  Instant began_ = 0;
  Instant shown_ = 0;
};

// That was given by --key-file or its variable. Errors: those of read_seal_key().
Result<checkpoint::SealKeyPtr> key_of(const CkptArguments& arguments);
// A folder to look at, with the key that was given for it.
Result<checkpoint::Folder> look(const std::string& folder, const checkpoint::SealKeyPtr& key);

std::string who_am_i();                // for the owner's file
std::string age_text(int64_t age_ms);  // "3 h ago"
std::string shape_text(const std::vector<uint64_t>& shape);
std::string number_text(double value);

// A version that the user named.
struct Chosen {
  std::string folder;  // of all saves
  checkpoint::Candidate candidate;
};
// FOLDER (its newest usable version), FOLDER@VERSION, FOLDER@VERSION-NONCE, or the folder of one save.
// Errors: kMisuse: there is none such; the sentence names those that there are.
// With a key: only what is sealed with it; kMisuse also where what was named, or is newer, is not.
Result<Chosen> choose(const std::string& name, const checkpoint::SealKeyPtr& key = {});
// That one version or, with `all`, all saves of a folder that were finished, newest first.
struct ChosenSaves {
  std::string folder;
  std::vector<checkpoint::Candidate> candidates;
};
Result<ChosenSaves> choose_some(const std::string& name, bool all, const checkpoint::SealKeyPtr& key);
bool names_version(const std::string& name);
Result<checkpoint::StateReader> open_state(const Chosen& chosen);

// Reads a whole tensor in chunks of whole elements: use(offset, bytes).
Status for_each_chunk(checkpoint::StateReader& state, uint32_t tensor,
                      const std::function<Status(uint64_t, ByteSpan)>& use);

Json to_json(const checkpoint::VersionId& id);
Json to_json(const checkpoint::Statistics& statistics);
std::string histogram_text(const checkpoint::Statistics& statistics);  // a bar for each magnitude

uint64_t bytes_of(const checkpoint::Manifest& manifest);         // of its shard files, where they were plain
uint64_t stored_bytes_of(const checkpoint::Manifest& manifest);  // as they are
std::string state_text(const checkpoint::Candidate& candidate);

// The commands, each in its own file where it is long.
int ckpt_ls(const CkptArguments& arguments);
int ckpt_show(const CkptArguments& arguments);
int ckpt_verify(const CkptArguments& arguments);
int ckpt_repair(const CkptArguments& arguments);
int ckpt_diff(const CkptArguments& arguments);
int ckpt_export(const CkptArguments& arguments);
int ckpt_import(const CkptArguments& arguments);
int ckpt_copy(const CkptArguments& arguments);
int ckpt_keygen(const CkptArguments& arguments);
int ckpt_index(const CkptArguments& arguments);
int ckpt_prune(const CkptArguments& arguments);

}  // namespace muster::launcher
