#include "launcher/audit_file.h"

#include <algorithm>

namespace muster::launcher {
namespace {

constexpr size_t kReadBytes = 256 << 10;

// Takes bytes as they come and hands out lines. Of a line that is longer than any record the rest is dropped.
class Lines {
 public:
  template <typename Use>
  void take(std::string_view bytes, Use&& use) {
    while (!bytes.empty()) {
      const size_t end = bytes.find('\n');
      keep(bytes.substr(0, end));
      if (end == std::string_view::npos) return;
      use(line_, true);
      line_.clear();
      bytes.remove_prefix(end + 1);
    }
  }
  const std::string& rest() const { return line_; }

 private:
  void keep(std::string_view part) {
    const size_t room = audit::kLineBytesMax + 1 - std::min(line_.size(), audit::kLineBytesMax + 1);
    line_ += part.substr(0, room);
  }
  std::string line_;
};

}  // namespace

Result<audit::Report> verify_audit(File& file, audit::VerifierOptions options,
                                   const std::function<void(const audit::Record&)>& use) {
  audit::Verifier verifier(std::move(options));
  Lines lines;
  const auto add = [&](std::string_view line, bool whole) {
    const auto record = verifier.add(line, whole);
    if (record && use) use(*record);
  };
  ByteBuffer buffer(kReadBytes);
  for (uint64_t at = 0; !verifier.done();) {
    MUSTER_ASSIGN(const size_t got, file.pread(buffer, at));
    if (got == 0) break;
    lines.take({reinterpret_cast<const char*>(buffer.data()), got}, add);
    at += got;
  }
  if (!lines.rest().empty()) add(lines.rest(), false);
  return verifier.finish();
}

namespace {

// The bytes of the character at `at` that must not reach a terminal; 0: it may.
size_t harmful_bytes(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) -> unsigned {
    return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0;
  };
  if (byte(0) < 0x20 || byte(0) == 0x7f) return 1;
  // Also the control characters U+0080 to U+009F, which UTF-8 writes in two bytes.
  if (byte(0) == 0xc2 && byte(1) >= 0x80 && byte(1) < 0xa0) return 2;
  if (byte(0) == 0xd8 && byte(1) == 0x9c) return 2;  // U+061C
  if (byte(0) != 0xe2) return 0;
  const bool marks = byte(1) == 0x80 && (byte(2) == 0x8e || byte(2) == 0x8f);     // U+200E, U+200F
  const bool embeddings = byte(1) == 0x80 && byte(2) >= 0xa8 && byte(2) <= 0xae;  // U+2028 to U+202E
  const bool isolates = byte(1) == 0x81 && byte(2) >= 0xa6 && byte(2) <= 0xa9;    // U+2066 to U+2069
  return marks || embeddings || isolates ? 3 : 0;
}

}  // namespace

std::string harmless(std::string text) {
  for (size_t at = 0; at < text.size(); ++at)
    if (const size_t bytes = harmful_bytes(text, at); bytes > 0) text.replace(at, bytes, "?");
  return text;
}

std::string words_of(const audit::Fault& fault) {
  return "line " + std::to_string(fault.line) + ": " + std::string(to_string(fault.kind)) + ": " +
         fault.words;
}

}  // namespace muster::launcher
