// libFuzzer's entry for etcd's answers (scripts/fuzz etcd): whatever a gateway, or what stands in its place,
// writes is read, or is an error. A watch says the same of a text however it is cut. etcd_answers_test calls
// it, too, with seeded mutations.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "launcher/etcd_answers.h"
#include "launcher/etcd_json.h"
#include "tests/launcher/sample_answers.h"

namespace {

using namespace muster;
using namespace muster::launcher;

struct Heard {
  bool ok = true;
  bool changed = false;
  bool is_open = false;
  friend bool operator==(const Heard&, const Heard&) = default;
};

Heard hear(std::string_view text, size_t piece) {
  WatchReader reader("/muster/t/leader");
  Heard heard;
  while (!text.empty() && heard.ok) {
    heard.ok = reader.take(text.substr(0, piece), heard.changed).ok();
    text.remove_prefix(std::min(piece, text.size()));
  }
  heard.is_open = reader.is_open();
  return heard;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto entries = entries_in(text);
  (void)outcome_in(text);
  (void)lease_in(text);
  (void)seconds_left_in(text);
  (void)token_in(text);
  if (const auto answer = parse_answer(text); answer.ok()) {
    for (const char c : words_of_error(*answer))
      if (c < ' ' || c > '~') std::abort();
  }
  if (const auto bytes = from_base64(std::string(text)); bytes.ok()) {
    const auto again = from_base64(to_base64(*bytes));
    if (!again.ok() || *again != *bytes) std::abort();
  }
  if (hear(text, size + 1) != hear(text, 1)) std::abort();
  return 0;
}

#ifdef MUSTER_LIBFUZZER
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t capacity);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t capacity, unsigned seed) {
  if (seed % 16 == 0) {
    const auto samples = sample_answers();
    const std::string& sample = samples[seed / 16 % samples.size()];
    size = std::min(sample.size(), capacity);
    std::memcpy(data, sample.data(), size);
  }
  return LLVMFuzzerMutate(data, size, capacity);
}
#endif
