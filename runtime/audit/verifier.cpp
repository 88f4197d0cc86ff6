#include "runtime/audit/verifier.h"

namespace muster::audit {

std::string_view to_string(FaultKind kind) {
  static constexpr std::string_view kNames[] = {"changed",   "missing", "reordered", "torn",
                                                "truncated", "empty",   "seal",      "format"};
  return kNames[static_cast<size_t>(kind)];
}

Verifier::~Verifier() {
  if (options_.secret) crypto::forget(*options_.secret);
  if (key_) crypto::forget(*key_);
}

void Verifier::fail(FaultKind kind, std::string words) {
  report_.fault = Fault{kind, line_, std::move(words)};
}

std::optional<Record> Verifier::add(std::string_view line, bool whole) {
  ++line_;
  if (report_.fault) {
    if (looks_for_) look_for_missing(line);
    return std::nullopt;
  }
  auto record = check(line);
  // Of a line that is whole but for its line feed, what is wrong with it is no crash's doing.
  if (!record && !whole && !is_whole_object(line))
    fail(FaultKind::kTorn, "it ends in its middle, as a crash may leave it, or it was cut there");
  if (!record) return record;
  report_.bytes += line.size() + (whole ? 1 : 0);
  report_.whole = whole;
  return record;
}

std::optional<Record> Verifier::check(std::string_view line) {
  const auto parts = line.size() <= kLineBytesMax ? split_line(line) : std::nullopt;
  if (!parts) {
    const bool has_hole = line.find('\0') != std::string_view::npos;
    fail(FaultKind::kChanged,
         has_hole ? "it has NUL bytes, as a power failure leaves them where writes were not yet durable; the "
                    "next muster run --audit mends that near the end of a file"
                  : "it is no record of an audit log");
    return std::nullopt;
  }
  auto read = read_content(parts->content);
  if (!read.ok()) {
    const bool later = read.error().code == ErrorCode::kMisuse;
    fail(later ? FaultKind::kFormat : FaultKind::kChanged, read.error().message);
    return std::nullopt;
  }
  Record record = std::move(read).value();
  if (record.sequence != report_.end.sequence) {
    judge_order(record);
    return std::nullopt;
  }
  if (record.sequence == 0 && !begin(record)) return std::nullopt;
  if (record.opening && !continues(*record.opening)) return std::nullopt;
  const auto hash =
      options_.unchecked ? Result<Hash>(parts->hash) : hash_of(key_, report_.end.head, parts->content);
  if (!hash.ok() || *hash != parts->hash) {
    const bool first = record.sequence == 0 && key_;
    fail(FaultKind::kChanged, first ? "it was changed, or written with another secret"
                                    : "it was changed, or the one before it was, together with its hash");
    return std::nullopt;
  }
  if (report_.records++ == 0) report_.first_ms = record.time_ms;
  report_.last_ms = record.time_ms;
  if (record.opening && report_.nodes.size() < kNodesMax) report_.nodes.insert(record.node);
  if (record.opening) report_.last_node = record.node;
  report_.end = {record.sequence + 1, *hash};
  if (options_.anchor == *hash) report_.anchored = record.sequence;
  return record;
}

// The first record says how the others are sealed.
bool Verifier::begin(const Record& record) {
  if (!record.opening) {
    fail(FaultKind::kChanged, "the first record does not open an audit log");
    return false;
  }
  report_.opening = record.opening;
  if (options_.unchecked) return true;
  const bool sealed = record.opening->seal == Seal::kHmacSha256;
  if (sealed != options_.secret.has_value()) {
    fail(FaultKind::kSeal,
         sealed ? "it is sealed with the job's secret: give the same --secret-file"
                : "it is not sealed with a secret, so anybody could have written it anew; "
                  "check it without --secret-file and MUSTER_SECRET_FILE if that is what you expect");
    return false;
  }
  if (!sealed) return true;
  auto key = audit_key(*options_.secret, record.opening->job);
  if (!key.ok()) {
    fail(FaultKind::kSeal, key.error().message);
    return false;
  }
  key_ = *key;
  return true;
}

// Job and seal are those of the first record, for good.
bool Verifier::continues(const Opening& opening) {
  if (opening.seal != report_.opening->seal)
    fail(FaultKind::kSeal, "it says that what follows is sealed in another way");
  else if (opening.job != report_.opening->job)
    fail(FaultKind::kChanged, "it says that what follows is of job '" + opening.job + "'");
  return !report_.fault;
}

void Verifier::judge_order(const Record& record) {
  const uint64_t awaited = report_.end.sequence;
  const std::string stands = "record " + std::to_string(record.sequence) + " stands where record " +
                             std::to_string(awaited) + " belongs";
  if (record.sequence < awaited) return fail(FaultKind::kReordered, stands);
  looks_for_ = awaited;
  fail(FaultKind::kMissing, stands + "; what is between them is gone");
}

// A record that stands further down was moved, and is not missing.
void Verifier::look_for_missing(std::string_view line) {
  const auto parts = line.size() <= kLineBytesMax ? split_line(line) : std::nullopt;
  if (!parts) return;
  const auto record = read_content(parts->content);
  if (!record.ok() || record->sequence != *looks_for_) return;
  report_.fault->kind = FaultKind::kReordered;
  report_.fault->words = "another record stands where record " + std::to_string(*looks_for_) +
                         " belongs, which is in line " + std::to_string(line_);
  looks_for_.reset();
}

Report Verifier::finish() {
  if (line_ == 0) {
    line_ = 1;
    fail(FaultKind::kEmpty, "the file is empty: it was never begun, or cut down to nothing");
  }
  if (!report_.fault && options_.anchor && !report_.anchored)
    fail(FaultKind::kTruncated,
         "the head that was kept is not in the file: its end was cut off behind this line, or all was "
         "written anew");
  return report_;
}

}  // namespace muster::audit
