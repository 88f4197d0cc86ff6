#include "runtime/agent/knock.h"

#include <map>
#include <optional>
#include <utility>

#include "runtime/agent/link.h"

namespace muster::agent {

using control::HostAnswer;

struct Knock::State : std::enable_shared_from_this<Knock::State> {
  State(Loop& l, KnockTimes t, std::function<void(HostAnswer)> done)
      : loop(l), times(t), tell(std::move(done)), next(loop, [this] { knock(); }), patience(loop, [this] {
          none_has_come_soon();
        }) {}

  void begin(std::vector<SocketAddress> found) {
    addresses = std::move(found);
    patience.after(times.patience);
    knock();
  }

  void knock() {
    const uint64_t number = ++knocks;
    auto done = [this, number](const Result<UniqueFd>& socket, const std::string&) {
      const bool refused = attempts.at(number)->refused();
      loop.post([weak = weak_from_this(), number] {  // it is on the stack
        if (const auto self = weak.lock()) self->attempts.erase(number);
      });
      if (socket.ok() || refused) answered(socket.ok() ? HostAnswer::kTaken : HostAnswer::kRefused);
    };
    attempts[number] = std::make_unique<Connector>(loop, addresses, times.each, std::move(done));
    next.after(told ? pause() : times.every);
  }

  Duration pause() const { return told == HostAnswer::kTaken ? times.each : times.patience; }

  void answered(HostAnswer answer) {
    if (over) return;
    knocks_unanswered_since = knocks;
    patience.after(times.each + times.patience);
    say(answer);
  }

  void say(HostAnswer answer) {
    if (told == answer) return;
    told = answer;
    const auto keep = shared_from_this();
    tell(answer);
  }

  // After what has already arrived: one that was starved must not take waiting answers for silence.
  void none_has_come_soon() {
    loop.post([weak = weak_from_this()] {
      const auto self = weak.lock();
      if (!self || self->over) return;
      const auto due = self->told ? 1 : static_cast<uint64_t>(self->times.patience / self->times.every);
      if (self->knocks - self->knocks_unanswered_since < due)
        return self->patience.after(self->times.every);  // it had no time to ask
      self->say(HostAnswer::kNone);
    });
  }

  Loop& loop;
  const KnockTimes times;
  const std::function<void(HostAnswer)> tell;
  Timer next;
  Timer patience;
  std::vector<SocketAddress> addresses;
  std::map<uint64_t, std::unique_ptr<Connector>> attempts;  // by number
  uint64_t knocks = 0;
  uint64_t knocks_unanswered_since = 0;
  std::optional<HostAnswer> told;
  bool over = false;
};

Knock::Knock(Loop& loop, const std::string& host, uint16_t port, KnockTimes times,
             std::function<void(HostAnswer)> tell)
    : state_(std::make_shared<State>(loop, times, std::move(tell))) {
  resolve(loop, state_, host, port, [weak = std::weak_ptr(state_)](Result<std::vector<SocketAddress>> found) {
    const auto self = weak.lock();
    if (self && !self->over && found.ok()) self->begin(std::move(found).value());
  });
}

Knock::~Knock() {
  state_->over = true;
  state_->next.cancel();
  state_->patience.cancel();
  state_->attempts.clear();
}

}  // namespace muster::agent
