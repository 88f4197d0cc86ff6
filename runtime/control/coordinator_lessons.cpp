// Learners (rule 17): they catch up while the others train, and join at a planned boundary, all of a batch at
// once.
#include <algorithm>
#include <tuple>

#include "runtime/control/coordinator_state.h"
#include "runtime/control/transfer_time.h"

namespace muster::control {

namespace {
constexpr uint32_t kLessonTriesMax = 2;
// Whom one source teaches together. It copies its state once for all of them, and an update may wait for
// that: as few as can are to copy theirs. But it sends it to each, so what it sends in all stays this small.
constexpr int kPupilsTogetherMax = 8;
constexpr uint64_t kTaughtTogetherBytesMax = 1ULL << 30;
constexpr uint32_t kRetryDoublingsMax = 7;
}  // namespace

void Coordinator::State::settle_lessons() {
  std::vector<MemberId> overdue;
  for (const auto& [id, lesson] : lessons) {
    if (now >= lesson.deadline) overdue.push_back(id);
  }
  for (MemberId id : overdue) lesson_overdue(id);
  if (lessons.empty()) start_lessons();
  const bool all_level =
      std::all_of(lessons.begin(), lessons.end(), [](const auto& entry) { return entry.second.level; });
  if (!lessons.empty() && all_level) want_plan(std::to_string(lessons.size()) + " learners are level");
  if (cannot_keep_up.empty() || !all_level || !committed) return;
  if (const size_t count = laggards_due().size(); count > 0)
    want_plan(std::to_string(count) + " learners cannot keep up, the others wait for them once");
}

// One whose program does not go on may be hung: in a view it would hold all others up. Or its sources are at
// fault, so it is not killed for it.
void Coordinator::State::lesson_overdue(MemberId id) {
  const Lesson& lesson = lessons.at(id);
  const bool computes = lesson.computed_at != kNever && now - lesson.computed_at < limits.learn_timeout / 4;
  fail_lesson(id, "not level in time", computes);
}

// Joins wait until a step was committed in the view (rule 18). A new node's workers are waited for, so that
// they join together; a node beyond MAX is a spare.
std::vector<MemberId> Coordinator::State::learners_due() const {
  // At once, a few hundred bytes each; the others come next.
  constexpr size_t kViewEntriesToldMax = 1'000'000;
  std::vector<MemberId> due;
  if ((!committed && limits.rules.joins_wait_for_step) || outsiders.empty()) return due;
  size_t room = limits.nodes_max > first_ranks.size() ? limits.nodes_max - first_ranks.size() : 0;
  std::map<uint64_t, std::pair<const NodeRecord*, std::vector<MemberId>>> by_order;
  for (MemberId id : outsiders) {
    const NodeRecord& node = nodes.at(members.at(id).member.node);
    auto& [home, ids] = by_order[node.order];
    home = &node;
    ids.push_back(id);
  }
  for (const auto& [order, entry] : by_order) {
    const auto& [node, ids] = entry;
    if (!node->connected || node->draining || held_in_quarantine(*node)) continue;
    // Each is told the whole view.
    const size_t told = lessons.size() + due.size();
    if (told > 0 && (told + ids.size()) * view.members.size() > kViewEntriesToldMax) break;
    const bool fresh = !of_view(node->id);
    const bool gathered = node_complete(*node) || now - node->hello_at >= limits.form_wait;
    if (fresh && (room == 0 || !gathered)) continue;
    if (fresh) --room;
    for (MemberId id : ids) {
      if (members.at(id).leaving || members.at(id).draining || cannot_keep_up.contains(id)) continue;
      const auto wait = learn_not_before.find(id);
      if (wait == learn_not_before.end() || now >= wait->second) due.push_back(id);
    }
  }
  return due;
}

// Of the learners that cannot keep up, those that may be in the next view; their nodes within MAX.
std::vector<MemberId> Coordinator::State::laggards_due() const {
  std::vector<MemberId> due;
  std::set<NodeId> fresh;  // that come, these and who learns
  for (const auto& [id, lesson] : lessons) {
    if (!of_view(members.at(id).member.node)) fresh.insert(members.at(id).member.node);
  }
  for (MemberId id : cannot_keep_up) {
    const MemberRecord& record = members.at(id);
    const NodeRecord& node = nodes.at(record.member.node);
    if (!node.connected || node_silent(node.id) || node.draining || held_in_quarantine(node)) continue;
    if (record.draining || record.leaving) continue;
    const bool has_room =
        of_view(node.id) || fresh.contains(node.id) || first_ranks.size() + fresh.size() < limits.nodes_max;
    if (!has_room) continue;
    if (!of_view(node.id)) fresh.insert(node.id);
    due.push_back(id);
  }
  return due;
}

void Coordinator::State::start_lessons() {
  if (!have_left.empty() || boundary) return;
  for (MemberId learner : learners_due()) {
    learn_not_before.erase(learner);
    teach(learner, 1);
  }
}

// One that teaches already, while it may take another, or who on the learner's own node has no pupil; then
// the one with the fewest pupils. `before` taught the learner in vain: then the work is spread, since that it
// sends each gradient to many may be why.
MemberId Coordinator::State::source_for(MemberId learner, MemberId before) const {
  const NodeId home = members.at(learner).member.node;
  std::map<MemberId, int> pupils_of;
  for (const auto& [id, lesson] : lessons) ++pupils_of[lesson.source];
  const auto takes_another = [&](int pupils) {
    const auto then = static_cast<uint64_t>(pupils) + 1;
    return before == 0 && pupils > 0 && pupils < kPupilsTogetherMax &&
           then * state_size.replicated <= kTaughtTogetherBytesMax;
  };
  MemberId best = 0;
  std::optional<std::tuple<bool, int, bool>> best_cost;
  for (MemberId id : living_of(view)) {
    const auto entry = pupils_of.find(id);
    const int pupils = entry == pupils_of.end() ? 0 : entry->second;
    const bool far = members.at(id).member.node != home;
    const int free = pupils == 0 && !far ? -1 : pupils;
    const std::tuple cost(id == before, takes_another(pupils) ? (far ? -1 : -2) : free, far);
    if (best_cost && *best_cost <= cost) continue;
    best_cost = cost;
    best = id;
  }
  return best;
}

void Coordinator::State::teach(MemberId learner, uint32_t tries, MemberId before) {
  Lesson lesson;
  lesson.id = nonce();
  lesson.learner = learner;
  lesson.source = source_for(learner, before);
  lesson.tries = tries;
  lesson.deadline = now + limits.learn_timeout + lesson_time(state_size.replicated, 0);
  lessons[learner] = lesson;
  const auto rank = rank_of(lesson.source);
  Event& event = say(EventKind::kLearnerStarted, named(learner) + " learns from " + named(lesson.source));
  event.subject = rank ? static_cast<int64_t>(*rank) : -1;
  to_member(learner, Learn{lesson.id, members.at(lesson.source).member, view});
  to_member(lesson.source, Teach{lesson.id, members.at(learner).member});
}

void Coordinator::State::on(NodeId, MemberId id, const Level& level) {
  const auto lesson = lessons.find(id);
  if (lesson == lessons.end() || lesson->second.level) return;
  lesson->second.level = true;
  say(EventKind::kLearnerLevel, named(id)).version = level.version;
}

// Said by the learner or by its source. While a view that has the learner is being stored, it has learnt
// enough: a lesson's end would void what the view counts on.
void Coordinator::State::on(NodeId, MemberId, const LearnFailed& failed) {
  if (phase != Phase::kRunning) return;
  for (const auto& [learner, lesson] : lessons) {
    if (lesson.id == failed.lesson) return fail_lesson(MemberId{learner}, failed.why, failed.lags);
  }
}

// One that lags behind starts again once. Then only a pause of the others can help it, which costs them no
// more than the state takes on its way: they make it at their next boundary (rule 17).
void Coordinator::State::fail_lesson(MemberId learner, const std::string& why, bool lags) {
  const Lesson lesson = lessons.at(learner);
  lessons.erase(learner);
  say(EventKind::kDecided, named(learner) + " could not learn: " + why);
  to_member(lesson.source, LessonOver{lesson.id});
  to_member(learner, LessonOver{lesson.id});
  const bool again = phase == Phase::kRunning && !losses_pending && !stop && !lesson.held && lives(learner);
  if (again && lesson.tries < kLessonTriesMax) return teach(learner, lesson.tries + 1, lesson.source);
  if (again && lags && limits.rules.laggards_waited_for) {
    cannot_keep_up.insert(learner);
  } else {
    // Ever more seldom: meanwhile who comes after it waits for the end of its lesson.
    const uint32_t doublings = std::min(members.at(learner).lessons_failed++, kRetryDoublingsMax);
    learn_not_before[learner] = now + (limits.learn_retry_wait << doublings);
  }
}

void Coordinator::State::cancel_lessons(const std::string& why) {
  if (!lessons.empty()) say(EventKind::kDecided, "lessons end: " + why);
  for (const auto& [learner, lesson] : std::exchange(lessons, {})) {
    to_member(lesson.source, LessonOver{lesson.id});
    to_member(learner, LessonOver{lesson.id});
  }
}

// A learner's death changes no view.
void Coordinator::State::lesson_member_lost(MemberId id) {
  const auto lesson = lessons.find(id);
  if (lesson == lessons.end()) return;
  to_member(lesson->second.source, LessonOver{lesson->second.id});
  lessons.erase(lesson);
}

void Coordinator::State::hold_learners() {
  for (auto& [id, lesson] : lessons) {
    if (!lesson.level) continue;
    lesson.held = true;
    to_member(id, LearnUntil{boundary->plan, boundary->version});
  }
}

}  // namespace muster::control
