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

std::string words_of(const audit::Fault& fault) {
  return "line " + std::to_string(fault.line) + ": " + std::string(to_string(fault.kind)) + ": " +
         fault.words;
}

}  // namespace muster::launcher
