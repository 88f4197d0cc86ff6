// One record of the audit log, and its canonical form: the bytes of its line up to its hash. There is exactly
// one such form for each record, so whatever else says the same is no record. docs/formats/audit.md has it
// for other readers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/base/events.h"
#include "runtime/base/result.h"

namespace muster::audit {

constexpr uint32_t kFormatVersion = 1;
constexpr size_t kTextBytesMax = 8 << 10;  // longer texts are cut, and say so
constexpr size_t kNameBytesMax = 256;      // node, source, event, job
// No record is longer: each byte of a text takes six at most.
constexpr size_t kLineBytesMax = 64 << 10;

enum class Seal : uint8_t {
  kSha256,      // shows accidents, and changes by who cannot write the whole file anew
  kHmacSha256,  // needs the job's secret
};
std::string_view to_string(Seal seal);

// What the record of an opening says of those behind it.
struct Opening {
  uint32_t format = kFormatVersion;
  Seal seal = Seal::kSha256;
  std::string job;
  std::string incarnation;  // of the agent, 16 hexadecimal digits
  friend bool operator==(const Opening&, const Opening&) = default;
};

struct Record {
  uint64_t sequence = 0;
  int64_t time_ms = 0;  // wall time
  Instant at = 0;
  std::string node;
  std::string from;   // "leader", "agent", "worker 2"; "audit" of the log itself
  std::string event;  // to_string(EventKind), or one of the names below
  uint64_t generation = 0;
  int64_t version = -1;
  int64_t subject = -1;
  int64_t amount = 0;
  std::string text;
  Tier tier = Tier::kShared;
  std::optional<Opening> opening;  // of kOpened alone
  friend bool operator==(const Record&, const Record&) = default;
};

// Records of the log itself.
constexpr std::string_view kOpened = "audit opened";     // an agent begins, or goes on; text: how
constexpr std::string_view kMended = "audit mended";     // amount: bytes of a torn line that was cut off
constexpr std::string_view kGap = "audit gap";           // amount: records that were lost; text: why
constexpr std::string_view kAgentEnded = "agent ended";  // amount: exit code; text: why

// A name as its record has it: cut, or with U+FFFD, where it is too long or is not UTF-8. What it gives stays
// as it is when it goes through again.
std::string canonical_name(const std::string& name);

// Of what is too long, or is not UTF-8, as it will be read again.
std::string canonical_content(const Record& record);  // `{"seq":0,…"text":"…"`, without the last brace

// Errors: kDropCheckpoint: it is no canonical form of a record; kMisuse: of a later format.
Result<Record> read_content(std::string_view content);

// Whether nothing is missing at its end, as it is of a line that a crash has torn.
bool is_whole_object(std::string_view line);

}  // namespace muster::audit
