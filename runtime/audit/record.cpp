#include "runtime/audit/record.h"

#include <nlohmann/json.hpp>

namespace muster::audit {
namespace {

using Json = nlohmann::json;

constexpr char kCut[] = " [cut]";

// Valid UTF-8 of so many bytes at most, cut between two characters. What has gone through it stays as it is.
std::string fitted(const std::string& text, size_t bytes_max) {
  const Json fit = Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace));
  const auto& valid = fit.get_ref<const std::string&>();
  if (valid.size() <= bytes_max) return valid;
  size_t end = bytes_max - (sizeof kCut - 1);
  while (end > 0 && (static_cast<unsigned char>(valid[end]) & 0xc0) == 0x80) --end;
  return valid.substr(0, end) + kCut;
}

std::string quoted(const std::string& text, size_t bytes_max) { return Json(fitted(text, bytes_max)).dump(); }

class Writer {
 public:
  void number(const char* name, auto value) { field(name) += std::to_string(value); }
  void text(const char* name, const std::string& value, size_t bytes_max = kNameBytesMax) {
    field(name) += quoted(value, bytes_max);
  }
  std::string take() { return std::move(line_); }

 private:
  std::string& field(const char* name) {
    line_ += line_.empty() ? "{\"" : ",\"";
    line_ += name;
    return line_ += "\":";
  }
  std::string line_;
};

Error no_record(const std::string& why) { return {ErrorCode::kDropCheckpoint, why}; }

// A record is flat.
std::optional<Json> parse(std::string text) {
  constexpr int kDepthMax = 1;
  bool too_deep = false;
  const auto watch_depth = [&too_deep](int depth, Json::parse_event_t, Json&) {
    too_deep |= depth > kDepthMax;
    return !too_deep;
  };
  Json json = Json::parse(text, watch_depth, false);
  if (json.is_discarded() || too_deep || !json.is_object()) return std::nullopt;
  return json;
}

// What is missing or of another type stays as it is: the canonical form of that is another.
class Reader {
 public:
  explicit Reader(const Json& json) : json_(json) {}
  template <typename Integer>
  void number(const char* name, Integer& value) const {
    const auto found = json_.find(name);
    if (found == json_.end() || !found->is_number_integer()) return;
    if (const auto* large = found->template get_ptr<const Json::number_unsigned_t*>())
      value = static_cast<Integer>(*large);
    else
      value = static_cast<Integer>(found->template get<int64_t>());
  }
  void text(const char* name, std::string& value) const {
    const auto found = json_.find(name);
    if (found == json_.end()) return;
    if (const auto* words = found->get_ptr<const Json::string_t*>()) value = *words;
  }
  bool has(const char* name) const { return json_.contains(name); }

 private:
  const Json& json_;
};

}  // namespace

std::string_view to_string(Seal seal) { return seal == Seal::kSha256 ? "sha256" : "hmac-sha256"; }

std::string canonical_name(const std::string& name) { return fitted(name, kNameBytesMax); }

bool is_whole_object(std::string_view line) {
  return line.size() <= kLineBytesMax && parse(std::string(line)).has_value();
}

std::string canonical_content(const Record& record) {
  Writer out;
  out.number("seq", record.sequence);
  out.number("time_ms", record.time_ms);
  out.number("at_ns", record.at);
  out.text("node", record.node);
  out.text("from", record.from);
  out.text("event", record.event);
  out.number("generation", record.generation);
  out.number("version", record.version);
  out.number("subject", record.subject);
  out.number("amount", record.amount);
  if (record.tier == Tier::kLocal) out.text("tier", "local");
  if (record.opening) {
    out.number("format", record.opening->format);
    out.text("seal", std::string(to_string(record.opening->seal)));
    out.text("job", record.opening->job);
    out.text("incarnation", record.opening->incarnation);
  }
  out.text("text", record.text, kTextBytesMax);
  return out.take();
}

Result<Record> read_content(std::string_view content) {
  if (content.size() > kLineBytesMax) return no_record("it is longer than any record");
  const auto json = parse(std::string(content) + "}");
  if (!json) return no_record("it is not one flat JSON object");
  const Reader in(*json);
  Record record;
  in.number("seq", record.sequence);
  in.number("time_ms", record.time_ms);
  in.number("at_ns", record.at);
  in.text("node", record.node);
  in.text("from", record.from);
  in.text("event", record.event);
  in.number("generation", record.generation);
  in.number("version", record.version);
  in.number("subject", record.subject);
  in.number("amount", record.amount);
  in.text("text", record.text);
  if (in.has("tier")) record.tier = Tier::kLocal;
  if (in.has("format")) {
    Opening opening;
    std::string seal;
    in.number("format", opening.format);
    in.text("seal", seal);
    in.text("job", opening.job);
    in.text("incarnation", opening.incarnation);
    if (opening.format > kFormatVersion)
      return Error{ErrorCode::kMisuse, "it is of format " + std::to_string(opening.format) +
                                           ", and this muster reads up to " + std::to_string(kFormatVersion) +
                                           "; use a newer one"};
    if (opening.format == 0) return no_record("no format has the number 0");
    if (seal == to_string(Seal::kHmacSha256)) opening.seal = Seal::kHmacSha256;
    record.opening = opening;
  }
  if ((record.event == kOpened) != record.opening.has_value())
    return no_record("only an opening names a format, and each does");
  if (canonical_content(record) != content) return no_record("its fields are not as a record has them");
  return record;
}

}  // namespace muster::audit
