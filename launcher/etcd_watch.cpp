#include "launcher/etcd_watch.h"

#include <algorithm>

#include "runtime/base/threads.h"

namespace muster::launcher {

EtcdWatch::EtcdWatch(agent::Loop& loop, EtcdAccess access, std::string key, WatchTimes times,
                     Callbacks callbacks)
    : loop_(loop),
      key_(std::move(key)),
      times_(times),
      members_(access.members.size()),
      callbacks_(std::move(callbacks)),
      etcd_(std::move(access), times.answer),
      thread_(start_thread("muster-watch", [this] { run(); })) {}

EtcdWatch::~EtcdWatch() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  stream_.end();
  thread_.join();
}

void EtcdWatch::run() {
  Duration wait = times_.pause_first;
  while (!stop_) {
    const Instant began_at = now();
    bool opened = false;
    const Status ended = watch_once(opened);
    if (stop_) return;
    if (!opened) note_failure(ended);
    // A member that opens a watch only to end it is no better than one that refuses.
    const bool lasted = opened && now() - began_at >= std::min(times_.pause_max, times_.quiet_max);
    if (lasted) wait = times_.pause_first;
    pause(wait);
    wait = std::min(2 * wait, times_.pause_max);
  }
}

// One connection, from its request to its end.
Status EtcdWatch::watch_once(bool& opened) {
  WatchReader reader(key_);
  Status ended = ok();
  const auto take = [&](std::string_view piece) {
    bool changed = false;
    ended = reader.take(piece, changed);
    if (reader.is_open() && !std::exchange(opened, true)) note_open();
    if (changed) tell([this] { callbacks_.changed(); });
    return ended.ok();
  };
  const Status read = etcd_.watch(stream_, reader.request(), times_.quiet_max, take, stop_);
  if (reader.is_token_refused()) etcd_.forget_token();
  return ended.ok() ? read : ended;
}

void EtcdWatch::note_open() {
  failures_ = 0;
  if (!std::exchange(troubled_, false)) return;
  tell([this] { callbacks_.trouble("etcd can be watched again"); });
}

void EtcdWatch::note_failure(const Status& ended) {
  // As often as there are members may mean a single one that is lost, or a token that has got too old.
  if (++failures_ <= members_ || std::exchange(troubled_, true)) return;
  const std::string why = ended.ok() ? "its members end each watch at once" : ended.error().message;
  tell([this, words = "etcd cannot be watched, and is asked again and again instead: " + why] {
    callbacks_.trouble(words);
  });
}

void EtcdWatch::pause(Duration duration) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::nanoseconds(duration), [this] { return stop_.load(); });
}

void EtcdWatch::tell(std::function<void()> call) {
  loop_.post([weak = std::weak_ptr<bool>(alive_), call = std::move(call)] {
    if (!weak.expired()) call();
  });
}

}  // namespace muster::launcher
