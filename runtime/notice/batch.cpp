#include "runtime/notice/batch.h"

#include <algorithm>
#include <charconv>
#include <string>
#include <vector>

namespace muster::notice {
namespace {

constexpr int64_t kPartMax = 1'000'000'000;  // of a time; more is nonsense, and would overflow

std::string_view trimmed(std::string_view text) {
  const auto is_space = [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; };
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

// "26:03" → {26, 3}; empty: no such list of numbers.
std::vector<int64_t> numbers_between_colons(std::string_view text) {
  std::vector<int64_t> numbers;
  while (true) {
    const size_t colon = std::min(text.find(':'), text.size());
    int64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + colon, number);
    if (colon == 0 || error != std::errc() || end != text.data() + colon || number < 0 || number > kPartMax)
      return {};
    numbers.push_back(number);
    if (colon == text.size()) return numbers;
    text.remove_prefix(colon + 1);
  }
}

// "[[hours:]minutes:]seconds"
std::optional<int64_t> seconds_of(std::string_view text) {
  const std::vector<int64_t> parts = numbers_between_colons(text);
  if (parts.empty() || parts.size() > 3) return std::nullopt;
  int64_t seconds = 0;
  for (const int64_t part : parts) seconds = 60 * seconds + part;
  return seconds;
}

std::optional<std::string_view> attribute(std::string_view text, std::string_view name) {
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = trimmed(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    const size_t equals = line.find('=');
    if (equals != std::string_view::npos && trimmed(line.substr(0, equals)) == name)
      return trimmed(line.substr(equals + 1));
  }
  return std::nullopt;
}

Error not_understood(const char* tool, std::string_view text) {
  return {ErrorCode::kEnvironment,
          std::string(tool) + " answers what cannot be read: " +
              std::string(trimmed(text.substr(0, std::min<size_t>(text.find('\n'), 200))))};
}

}  // namespace

Result<std::optional<BatchTime>> parse_pbs_time(std::string_view text) {
  if (!trimmed(text).starts_with("Job Id:")) return not_understood("qstat", text);
  const auto limit = attribute(text, "Resource_List.walltime");
  if (!limit) return std::optional<BatchTime>();
  const auto used = attribute(text, "resources_used.walltime");  // missing until the first is told
  const auto limit_s = seconds_of(*limit);
  const auto used_s = used ? seconds_of(*used) : 0;
  if (!limit_s || !used_s) return not_understood("qstat", "a wall time of " + std::string(*limit));
  return std::optional(BatchTime{*limit_s, std::max<int64_t>(0, *limit_s - *used_s)});
}

Result<std::optional<BatchTime>> parse_lsf_time(std::string_view text) {
  const std::string_view answer = trimmed(text);
  if (answer == "-") return std::optional<BatchTime>();
  const size_t space = answer.find(' ');
  const std::string_view kind = space == std::string_view::npos ? "" : trimmed(answer.substr(space));
  if (kind == "E" || kind == "X") return std::optional<BatchTime>();
  const std::vector<int64_t> parts = numbers_between_colons(answer.substr(0, space));
  if (kind != "L" || parts.size() != 2) return not_understood("bjobs", text);
  return std::optional(BatchTime{0, 60 * (60 * parts[0] + parts[1])});
}

}  // namespace muster::notice
