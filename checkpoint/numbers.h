// Numbers in names.
#pragma once

#include <charconv>
#include <optional>
#include <string_view>

namespace muster::checkpoint {

// Empty where the text is anything but a number that fits.
template <typename T>
std::optional<T> parse_number(std::string_view text, int base) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace muster::checkpoint
