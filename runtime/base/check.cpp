#include "runtime/base/check.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "runtime/base/result.h"

namespace muster {
namespace {

void write_and_abort(const char* text) {
  std::fprintf(stderr, "muster: broken invariant: %s\n", text);
  std::abort();
}

std::atomic<CheckHandler> current_handler{&write_and_abort};

}  // namespace

CheckHandler set_check_handler(CheckHandler handler) {
  return current_handler.exchange(handler != nullptr ? handler : &write_and_abort);
}

void check_failed(const char* condition, const char* file, int line, const std::string& detail) {
  const std::string text =
      std::string(condition) + ": " + detail + " (" + file + ":" + std::to_string(line) + ")";
  current_handler.load()(text.c_str());
  std::abort();
}

const char* to_string(ErrorCode code) {
  switch (code) {
    case ErrorCode::kRetry:
      return "retry";
    case ErrorCode::kReconfigure:
      return "reconfigure";
    case ErrorCode::kDropCheckpoint:
      return "drop checkpoint";
    case ErrorCode::kMisuse:
      return "misuse";
    case ErrorCode::kEnvironment:
      return "environment";
    case ErrorCode::kEnded:
      return "ended";
  }
  return "unknown";
}

}  // namespace muster
