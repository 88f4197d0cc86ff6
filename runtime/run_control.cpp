// The leader's side of a Run: messages go through MemberCore, and what it wants done is done here.
#include <algorithm>
#include <chrono>

#include "runtime/run.h"

namespace muster {

void Run::on_message(const control::Message& message) {
  const std::lock_guard lock(mutex_);
  perform(core_.receive(now(), message));
}

void Run::on_control_lost(const std::string& why) {
  const std::lock_guard lock(mutex_);
  perform(core_.control_lost(now(), why));
}

// Deadlines of the core (a torn update) and of the saver (a lease that nobody took).
void Run::tick_until_stopped() {
  Lock lock(mutex_);
  while (!stopping_) {
    const Instant next = core_.next_deadline();
    const Duration left =
        next == kNever ? kSecond : std::clamp<Duration>(next - now(), kMillisecond, kSecond);
    changed_.wait_for(lock, std::chrono::nanoseconds(left));
    savers_.expire(now());
    if (now() >= next) perform(core_.tick(now()));
  }
}

void Run::perform(control::MemberActions actions) {
  for (control::MemberAction& action : actions) perform_one(action);
  if (!actions.empty()) changed_.notify_all();
}

void Run::perform_one(control::MemberAction& action) {
  if (auto* send = std::get_if<control::Send>(&action)) {
    say(std::move(send->envelope.message));
  } else if (auto* revoke = std::get_if<control::RevokeGroup>(&action)) {
    if (revoked_at_ == 0) revoked_at_ = now();
    if (group_) group_->revoke(Error{ErrorCode::kReconfigure, revoke->why});
    if (devices_) devices_->revoke(revoke->why);
    drop_view_not_entered();
    session_.endpoint().cancel_formation({revoke->generation.incarnation, revoke->generation.counter});
  } else if (auto* form_group = std::get_if<control::FormGroup>(&action)) {
    forming_.post([this, install = std::move(form_group->install)] { form(install); });
  } else if (auto* enter = std::get_if<control::EnterView>(&action)) {
    savers_.view_begins(enter->base);
    entered_ = std::move(*enter);
  } else if (auto* digest = std::get_if<control::ComputeDigest>(&action)) {
    digesting_.post([this, asked = *digest] { compute_digest(asked); });
  } else if (auto* leave = std::get_if<control::LeaveLoop>(&action)) {
    if (group_) group_->revoke(Error{ErrorCode::kEnded, leave->why});
    if (devices_) devices_->revoke(leave->why);
    teacher_.end_all();
    emit(EventKind::kJobEnded, core_.version(), leave->why, leave->exit_code);
  } else if (auto* forwarded = std::get_if<control::Forward>(&action)) {
    forward(forwarded->message);
  } else if (auto* event = std::get_if<Event>(&action)) {
    session_.emit(std::move(*event));
  }
}

void Run::forward(const control::Message& message) {
  if (const auto* teach = std::get_if<control::Teach>(&message)) {
    teacher_.prepare(*teach, [this] {
      const std::lock_guard lock(mutex_);
      if (now() - step_began_ < step_took_ / 2) begin_lessons();
    });
  } else if (const auto* learn = std::get_if<control::Learn>(&message)) {
    learn_asked_ = *learn;
  } else if (const auto* over = std::get_if<control::LessonOver>(&message)) {
    teacher_.end(over->lesson);
  } else if (const auto* until = std::get_if<control::LearnUntil>(&message)) {
    learn_plan_ = until->plan;
  } else if (const auto* save = std::get_if<control::SaveOpen>(&message)) {
    if (save->rescue) {
      open_rescue_save(*save);
    } else if (save->stop) {
      stop_save_ = *save;
      open_stop_save();
    } else {
      savers_.open(*save);
    }
  } else if (const auto* rewrite = std::get_if<control::SaveRewrite>(&message)) {
    const bool is_held = core_.why_not_rewrite(*rewrite).empty();
    savers_.rewrite(*rewrite, is_held ? std::optional(core_.view().generation) : std::nullopt);
  } else if (const auto* publish = std::get_if<control::SavePublish>(&message)) {
    savers_.publish(*publish);
  } else if (const auto* closed = std::get_if<control::SaveClosed>(&message)) {
    if (stop_save_ && stop_save_->save == closed->save) stop_save_.reset();
    savers_.closed(*closed);
  } else if (const auto* schedule = std::get_if<control::SaveSchedule>(&message)) {
    savers_.schedule(*schedule);
  } else if (const auto* hurry = std::get_if<control::SaveHurry>(&message)) {
    savers_.shared().hurry(hurry->save);
  }
}

// A view that is over before the program's thread came by is never entered.
void Run::drop_view_not_entered() {
  entered_.reset();
  if (!formed_) return;
  // Its end may wait for peers' writes, which the control connection must not.
  auto dropped = std::make_shared<FormedView>(std::move(*formed_));
  formed_.reset();
  dropped->group->revoke(revoked_error());
  if (dropped->devices) dropped->devices->revoke(revoked_error().message);
  forming_.post([dropped] {});
}

// An urgent save begins as soon as this rank holds its version, be it now, after an update or after a
// transfer.
void Run::open_stop_save() {
  if (!stop_save_ || stop_save_->version != core_.version() || update_open_) return;
  const std::vector<uint32_t> held = core_.kept_shards();
  for (uint32_t shard = 0; shard < stop_save_->writers.size(); ++shard) {
    const uint32_t writer = stop_save_->writers[shard];
    const bool mine =
        writer < stop_save_->participants.size() && stop_save_->participants[writer] == self_.id;
    if (mine && !std::ranges::binary_search(held, shard)) return;  // it is on its way, or to be installed
  }
  savers_.open(*std::exchange(stop_save_, std::nullopt));
}

// The frozen member saves what it holds, under the history that it knows (PROTOCOL 12).
void Run::open_rescue_save(control::SaveOpen save) {
  if (!core_.frozen() || core_.version() != save.version || core_.update_open()) {
    return say(control::SaveVote{save.save, false, {}, "this member has gone on"});
  }
  save.lineage = core_.view().lineage;
  if (!savers_.shared().hold_for_rescue(save.version))
    return say(control::SaveVote{save.save, false, {}, "this member's state could not be kept for the save"});
  savers_.open(save);
}

// With the state as it stands while the step's reduction is still far, or else after the update: an update
// waits for what is copied, and less where a step's computing lies between.
void Run::begin_lessons() {
  if (update_open_ || reduced_ready_) return;
  teacher_.begin(core_.version());
}

void Run::say(control::Message message) {
  // A lost connection is told to the core by on_control_lost; there is nobody else to tell.
  if (Status sent = session_.send(std::move(message)); !sent.ok()) return;
}

void Run::emit(EventKind kind, control::Version version, std::string text, int64_t amount, int64_t subject,
               Tier tier) {
  Event event;
  event.kind = kind;
  event.at = now();
  event.generation = view_.generation.counter;
  event.version = version;
  event.subject = subject;
  event.amount = amount;
  event.text = std::move(text);
  event.tier = tier;
  session_.emit(std::move(event));
}

}  // namespace muster
