#include "runtime/session.h"

#include <signal.h>

#include <algorithm>

#include "runtime/data_plane.h"

namespace muster {

Result<std::unique_ptr<Session>> Session::join(SessionOptions options) {
  std::unique_ptr<Session> session(new Session(std::move(options)));

  MUSTER_ASSIGN(DataPlane data_plane, open_data_plane());
  session->endpoint_ = std::move(data_plane.endpoint);
  if (!data_plane.lacks.empty()) {
    Event event;
    event.at = now();
    event.text = data_plane.lacks;
    session->events_.push(std::move(event));
  }

  agent::ControlCallbacks callbacks;
  callbacks.on_message = [raw = session.get()](const control::Message& message) { raw->deliver(message); };
  callbacks.on_lost = [raw = session.get()](const Error& error) { raw->control_lost(error); };
  callbacks.on_event = [raw = session.get()](const Event& event) { raw->events_.push(event); };
  MUSTER_ASSIGN(session->control_, agent::ControlClient::connect({}, std::move(callbacks)));
  if (!session->options_.keep_signals) {
    MUSTER_ASSIGN(
        session->signals_, SignalIntake::install({SIGTERM, SIGUSR1}, [raw = session.get()](int signal) {
          // Lost with the connection: then the run ends by other means.
          (void)raw->notice(-1, std::string(signal == SIGTERM ? "SIGTERM" : "SIGUSR1") + " to a worker");
        }));
  }
  return session;
}

Session::~Session() {
  signals_.reset();
  std::unique_ptr<agent::ControlClient> control;
  {
    const std::lock_guard lock(control_mutex_);
    control = std::move(control_);
  }
  control.reset();  // no callback of it runs after this; the program's own may, until events_ has told all
  endpoint_.reset();
}

Status Session::begin_run() {
  if (!had_run_.exchange(true)) return ok();
  return Error{
      ErrorCode::kMisuse,
      "this session has had its run; leave it and join again, or start another process, for the next one"};
}

void Session::attach(Listener* listener) {
  const std::lock_guard lock(listener_mutex_);
  listener_ = listener;
  if (listener_ != nullptr && !lost_.empty()) listener_->on_control_lost(lost_);
}

void Session::deliver(const control::Message& message) {
  const std::lock_guard lock(listener_mutex_);
  if (listener_ != nullptr) listener_->on_message(message);
}

void Session::control_lost(const Error& error) {
  const std::lock_guard lock(listener_mutex_);
  lost_ = error.message.empty() ? "the control connection ended" : error.message;
  if (listener_ != nullptr) listener_->on_control_lost(lost_);
}

Status Session::notice(Duration time_left, std::string source) {
  const std::lock_guard lock(control_mutex_);
  if (!control_) return Error{ErrorCode::kEnded, "the session is being left; there is nobody to tell"};
  control::NoticeRaised notice;
  notice.scope = control::Scope::kRank;
  notice.member = control_->member();
  notice.time_left = time_left;
  notice.source = std::move(source);
  return control_->send(std::move(notice));
}

void Session::emit(Event event) {
  events_.push(event);
  // Events are told as far as they can be; a lost connection is told by other means.
  const std::lock_guard lock(control_mutex_);
  if (control_ && control_->world() == agent::World::kElastic)
    (void)control_->send(control::WorkerEvent{std::move(event)});
}

control::Member Session::self() const { return control_->as_member(endpoint_->contact()); }

bool Session::elastic() const { return control_->world() == agent::World::kElastic; }

}  // namespace muster
