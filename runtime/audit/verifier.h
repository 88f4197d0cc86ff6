// Reads a chain line by line and says whether it holds, or which line is the first that does not fit, and
// what must have happened to it. Of hostile bytes it says the same: nothing in them makes it grow or fail.
#pragma once

#include <optional>
#include <set>
#include <string>

#include "runtime/audit/chain.h"

namespace muster::audit {

enum class FaultKind : uint8_t {
  kChanged,    // bytes of the line, or of the one before it
  kMissing,    // records are gone between two lines, or at the beginning
  kReordered,  // the record belongs elsewhere
  kTorn,       // the last line is cut off in its middle, as by a crash
  kTruncated,  // the head that was kept elsewhere is not there
  kEmpty,      // no record at all
  kSeal,       // it cannot be checked with what was given: a secret is needed, or none was used
  kFormat,     // of a later version
};
std::string_view to_string(FaultKind kind);

struct Fault {
  FaultKind kind;
  uint64_t line;  // the first is 1
  std::string words;
};

constexpr size_t kNodesMax = 64;

struct Report {
  uint64_t records = 0;  // that hold, from the first on
  uint64_t bytes = 0;    // their lines, line feeds included
  bool whole = true;     // their last line has its line feed
  Position end;          // behind them
  std::optional<Fault> fault;
  std::optional<Opening> opening;     // of the first record
  std::optional<uint64_t> anchored;   // the number of the record whose hash was kept elsewhere
  int64_t first_ms = 0, last_ms = 0;  // wall times
  std::set<std::string> nodes;        // whose agents wrote it; kNodesMax at most
  std::string last_node;              // of the newest opening
};

struct VerifierOptions {
  std::optional<ByteBuffer> secret;  // of the job, where it has one
  std::optional<Hash> anchor;        // a head that was kept elsewhere
  bool unchecked = false;            // takes every hash for right: to show a file without its secret
};

class Verifier {
 public:
  explicit Verifier(VerifierOptions options) : options_(std::move(options)) {}
  ~Verifier();  // forgets the secret
  Verifier(const Verifier&) = delete;
  Verifier& operator=(const Verifier&) = delete;

  // The next line, without its line feed; `whole`: it had one. The record, if all holds up to here.
  // REQUIRES: lines longer than kLineBytesMax are handed over cut, but still longer than that.
  std::optional<Record> add(std::string_view line, bool whole = true);
  // Nothing more will change the report: what follows need not be read.
  bool done() const { return report_.fault && !looks_for_; }
  Report finish();

 private:
  std::optional<Record> check(std::string_view line);
  bool begin(const Record& record);
  bool continues(const Opening& opening);
  void judge_order(const Record& record);
  void look_for_missing(std::string_view line);
  void fail(FaultKind kind, std::string words);

  VerifierOptions options_;
  std::optional<Key> key_;
  uint64_t line_ = 0;
  std::optional<uint64_t> looks_for_;  // a record that should have come: it may stand further down
  Report report_;
};

}  // namespace muster::audit
