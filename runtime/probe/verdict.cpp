#include "runtime/probe/verdict.h"

#include <algorithm>

namespace muster::probe {
namespace {

size_t count_like(std::span<const Answer> answers, const Answer& one) {
  return static_cast<size_t>(std::count_if(answers.begin(), answers.end(),
                                           [&](const Answer& other) { return other.computes_as(one); }));
}

// The first of those that most are like. A job has few ways to compute, however many ranks, so few are
// counted.
size_t find_reference(std::span<const Answer> answers) {
  std::vector<size_t> firsts;  // of each way to compute
  size_t best = 0, most = 0;
  for (size_t i = 0; i < answers.size() && most * 2 <= answers.size(); ++i) {
    const bool is_known = std::any_of(firsts.begin(), firsts.end(),
                                      [&](size_t first) { return answers[first].computes_as(answers[i]); });
    if (is_known) continue;
    firsts.push_back(i);
    if (const size_t count = count_like(answers, answers[i]); count > most) {
      best = i;
      most = count;
    }
  }
  return best;
}

std::string describe(const Answer& one, const Answer& reference) {
  std::vector<std::string> parts;
  for (size_t p = 0; p < kParts; ++p)
    if (one.host[p] != reference.host[p]) parts.emplace_back(name_of(static_cast<Part>(p)));
  if (one.program != reference.program) parts.emplace_back("the program's own results");
  std::string text;
  for (size_t i = 0; i < parts.size(); ++i)
    text += (i == 0 ? "" : i + 1 == parts.size() ? " and " : ", ") + parts[i];
  return text;
}

}  // namespace

std::optional<Difference> find_difference(std::span<const Answer> answers) {
  if (answers.empty()) return std::nullopt;
  Difference difference;
  difference.reference = find_reference(answers);
  for (size_t i = 0; i < answers.size(); ++i) {
    difference.how.push_back(describe(answers[i], answers[difference.reference]));
    if (!difference.how.back().empty()) difference.others.push_back(i);
  }
  if (difference.others.empty()) return std::nullopt;
  return difference;
}

}  // namespace muster::probe
