// A process's place in its job: the control connection, the data plane's endpoint, and the event stream.
// Lives across views. Start reading at Session::join, then run.h.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>

#include "collectives/endpoint.h"
#include "runtime/agent/control_client.h"
#include "runtime/base/events.h"
#include "runtime/event_queue.h"
#include "runtime/signal_intake.h"

namespace muster {

struct SessionOptions {
  EventSink on_event;         // may be empty; called in order, on a thread of its own
  bool keep_signals = false;  // true: no signal becomes a notice
};

class Session {
 public:
  // Finds out how the process was launched, connects, and opens the data plane. Blocks up to the join
  // deadline.
  static Result<std::unique_ptr<Session>> join(SessionOptions options);
  ~Session();

  // Any thread. The agent, or the coordinator of a world without agents, decides what the notice means.
  Status notice(Duration time_left, std::string source);

  // Says it to the program's sink and, where there is one, to the agent.
  void emit(Event event);
  // Waits for the call of the program's sink that goes on, if one does; not from within it.
  void wait_for_sink() { events_.wait_for_sink(); }

  // Who receives the leader's messages. One run at a time; null detaches and returns only when no call is
  // running.
  class Listener {
   public:
    virtual ~Listener() = default;
    virtual void on_message(const control::Message& message) = 0;
    virtual void on_control_lost(const std::string& why) = 0;
  };
  void attach(Listener* listener);
  // A session has one run: the leader knows this process as one member, which ends with it. Errors: kMisuse.
  Status begin_run();

  Status send(control::Message message) { return control_->send(std::move(message)); }
  Endpoint& endpoint() { return *endpoint_; }
  control::Member self() const;  // with the data plane's contact
  control::MemberLimits limits() const { return control_->limits(); }
  bool elastic() const;  // false: a fixed world, in which any loss ends the job

 private:
  explicit Session(SessionOptions options) : options_(std::move(options)), events_(options_.on_event) {}
  void deliver(const control::Message& message);
  void control_lost(const Error& error);

  SessionOptions options_;
  EventQueue events_;  // outlives all that emits
  std::atomic<bool> had_run_ = false;
  std::recursive_mutex listener_mutex_;
  Listener* listener_ = nullptr;
  std::string lost_;  // why the control connection ended; empty while it lives
  std::unique_ptr<Endpoint> endpoint_;
  std::mutex control_mutex_;  // of the pointer, against its end; a leaf
  std::unique_ptr<agent::ControlClient> control_;
  std::unique_ptr<SignalIntake> signals_;
};

}  // namespace muster
