#include "runtime/notice/notice.h"

#include <algorithm>

namespace muster::notice {
namespace {

// Clocks of schedulers tell seconds, and answers take time: a smaller move is no news.
constexpr Duration kSameDeadline = 2 * kSecond;
// A source that invents notices must not fill the memory.
constexpr size_t kStandingMax = 1000;

bool nearer(Instant deadline, Instant than) {
  return deadline != kNever && (than == kNever || deadline < than - kSameDeadline);
}

}  // namespace

const char* to_string(Source source) {
  switch (source) {
    case Source::kSignal:
      return "signal";
    case Source::kSlurm:
      return "Slurm";
    case Source::kKubernetes:
      return "Kubernetes";
    case Source::kPbs:
      return "PBS";
    case Source::kLsf:
      return "LSF";
    case Source::kFile:
      return "notice file";
    case Source::kHttp:
      return "HTTP call";
    case Source::kAws:
      return "AWS";
    case Source::kGcp:
      return "GCP";
    case Source::kAzure:
      return "Azure";
  }
  return "?";
}

bool NoticeBoard::waits(Instant now, const Notice& notice) const {
  return notice.may_wait && notice.deadline != kNever && notice.deadline - now > lead_;
}

std::optional<BoardAction> NoticeBoard::act_if_new(Instant now, const Notice& notice) {
  if (notice.is_warning || waits(now, notice)) return std::nullopt;
  due_.insert({notice.source, notice.id});
  Notice next = notice;
  if (acted_) {
    const bool wider = notice.scope > acted_->scope;
    if (!wider && !nearer(notice.deadline, acted_->deadline)) return std::nullopt;
    next.scope = std::max(notice.scope, acted_->scope);
    next.deadline = std::min(notice.deadline, acted_->deadline);
  }
  acted_ = next;
  return BoardAction{BoardAction::kAct, next, ""};
}

std::vector<BoardAction> NoticeBoard::raise(Instant now, const Notice& notice) {
  const Key key{notice.source, notice.id};
  const auto known = standing_.find(key);
  const bool is_new = known == standing_.end();
  if (is_new && standing_.size() >= kStandingMax) return {};
  const bool turned_final = !is_new && known->second.is_warning && !notice.is_warning;
  const bool moved = !is_new && nearer(notice.deadline, known->second.deadline);
  standing_[key] = notice;
  if (auto action = act_if_new(now, notice)) return {*action};
  if (!is_new && !turned_final && !moved) return {};
  if (notice.is_warning) return {{BoardAction::kSay, notice, "only a warning, nothing is done about it"}};
  return {{BoardAction::kSay, notice,
           waits(now, notice)
               ? "acted on " + std::to_string(lead_ / kSecond) + " s before its deadline, unless withdrawn"
               : "known already from another source"}};
}

std::vector<BoardAction> NoticeBoard::withdraw(Source source, const std::string& id) {
  const auto found = standing_.find({source, id});
  if (found == standing_.end()) return {};
  const Notice notice = found->second;
  standing_.erase(found);
  const bool late = due_.erase({source, id}) > 0;
  return {
      {BoardAction::kSay, notice,
       late ? "withdrawn, but it was acted on: what was begun is finished" : "withdrawn, nothing was lost"}};
}

std::vector<BoardAction> NoticeBoard::tick(Instant now) {
  std::vector<BoardAction> actions;
  for (const auto& [key, notice] : standing_) {
    if (auto action = act_if_new(now, notice)) actions.push_back(*action);
  }
  return actions;
}

Instant NoticeBoard::next_deadline() const {
  Instant next = kNever;
  for (const auto& [key, notice] : standing_) {
    if (!notice.is_warning && notice.deadline != kNever && !due_.contains(key))
      next = std::min(next, notice.deadline - lead_);
  }
  return next;
}

}  // namespace muster::notice
