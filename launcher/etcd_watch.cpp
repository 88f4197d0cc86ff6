#include "launcher/etcd_watch.h"

#include <algorithm>

#include "launcher/etcd_json.h"
#include "runtime/base/threads.h"

namespace muster::launcher {
namespace {

using nlohmann::json;

constexpr size_t kLineBytesMax = 1 << 20;  // an event is a few hundred

Error over(const std::string& why) { return {ErrorCode::kRetry, "etcd's watch is over: " + why}; }

Result<std::string> key_of_event(const json& object) {
  if (!object.is_object()) return strange_answer("an event is no object");
  const auto kv = object.find("kv");
  if (kv == object.end() || !kv->is_object()) return strange_answer("an event without a key");
  MUSTER_ASSIGN(const ByteBuffer key, bytes_in(*kv, "key"));
  return std::string(reinterpret_cast<const char*>(key.data()), key.size());
}

}  // namespace

WatchReader::WatchReader(std::string key) : key_(std::move(key)) {}

std::string WatchReader::request() const {
  return json{{"create_request", {{"key", key_in_json(key_)}}}}.dump();
}

Status WatchReader::take(std::string_view piece, bool& changed) {
  while (!piece.empty()) {
    const size_t end = piece.find('\n');
    line_.append(piece.substr(0, end));
    if (line_.size() > kLineBytesMax) return strange_answer("a line of a watch has no end");
    if (end == std::string_view::npos) break;
    piece.remove_prefix(end + 1);
    const std::string line = std::exchange(line_, {});
    if (!line.empty()) MUSTER_TRY(take_line(line, changed));
  }
  return ok();
}

Status WatchReader::take_line(std::string_view line, bool& changed) {
  MUSTER_ASSIGN(const json answer, parse_answer(line));
  if (const auto error = answer.find("error"); error != answer.end())
    return cancelled(words_of_error(error->is_object() ? *error : answer));
  const auto result = answer.find("result");
  if (result == answer.end() || !result->is_object()) return strange_answer("no result");
  if (flag_in(*result, "canceled")) return cancelled(words_of_error(*result));
  if (flag_in(*result, "created")) {
    open_ = true;
    changed = true;  // perhaps, before it began
    return ok();
  }
  const auto events = result->find("events");
  if (events == result->end()) return ok();
  if (!events->is_array()) return strange_answer("events is no list");
  for (const json& each : *events) {
    MUSTER_ASSIGN(const std::string key, key_of_event(each));
    if (key == key_) changed = true;
  }
  return ok();
}

Error WatchReader::cancelled(const std::string& words) {
  const auto says = [&words](const char* part) { return words.find(part) != std::string::npos; };
  token_refused_ = says("invalid auth token") || says("auth store is old");
  if (says("permission denied"))
    return {ErrorCode::kMisuse, "etcd refuses to be watched: " + words +
                                    "; a role of --etcd-user must read all keys that begin with /muster/ and "
                                    "the job's name (docs/guides/etcd.md)"};
  return over(words.empty() ? "it was cancelled" : words);
}

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
