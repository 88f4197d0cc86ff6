// Joining without a stall (PROTOCOL 17): a teacher sends a learner one version of the state and then each
// reduced gradient, over the data plane, until the learner is level and joins the next view.
//
// On the data plane a lesson is a feed (feed.h), of a LessonHeader, the state and a StateEnd, and a sequence
// of items under tags derived from the lesson's nonce and the item's number: a greeting, which is a
// GradientHeader without data, so that the two are connected before any gradient hurries, and then pairs of a
// GradientHeader and the gradient's floats.
//
// INVARIANTS
//  - Gradients go out in the order of their versions, each once: a step that is repeated under a new view has
//  the same
//    bits (canonical mode), so its second reduction is skipped.
//  - One copy of the state serves all lessons that begin at one version: an update waits once for them.
//  - What waits to be sent is bounded; a learner that falls behind by more is told so by the end of its
//  lesson.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "collectives/endpoint.h"
#include "runtime/base/large_buffer.h"
#include "runtime/control/messages.h"
#include "runtime/state.h"

namespace muster {

struct LessonLimits {
  // Of the time, that a teacher's states take together on their way: the rest is the training's. A learner
  // whose gradients pile up meanwhile gets all of it, since else it might never be level.
  double share = 0.25;
  // Of gradients that wait to be sent, and of those not yet taken: more than one only within it. 0: none.
  uint64_t log_bytes_max = 512ULL << 20;
  Duration item_timeout = 60 * kSecond;  // for one item on the wire, a large one longer (transfer_time.h)
};

// What a teacher and its learner must know of each other's data before any of it is trusted.
struct LessonHeader {
  int64_t version;
  uint64_t state_bytes;
};
struct StateEnd {
  Digest digest{};
  uint64_t waiting = 0;  // gradients that the teacher has yet to send
};
struct GradientHeader {
  static constexpr int64_t kOver = -1;    // no data follows
  static constexpr int64_t kLags = -2;    // likewise, since more wait to be sent than may
  static constexpr int64_t kGreets = -3;  // likewise; the first
  int64_t version = kOver;
  uint64_t count = 0;
  Digest digest{};       // of the data
  uint64_t waiting = 0;  // after this one
};

// The tags of a lesson: the feed's, the greeting's, and then the gradients' in pairs.
uint64_t lesson_tag(uint64_t lesson, uint64_t item);
constexpr uint64_t kFeedItem = 0;
constexpr uint64_t kGreetingItem = 1;

// The teaching side of a Run. All calls from any thread.
class Teacher {
 public:
  using Notify = std::function<void()>;

  Teacher(Endpoint& endpoint, State& state, LessonLimits limits = {});
  ~Teacher();

  // Gets the memory for a copy of the state, since its pages take longer than the copying, for which an
  // update waits; or shares the copy of lessons that have not begun yet. `ready` is called once begin() may
  // be, on a thread of a lesson's, without any lock.
  void prepare(const control::Teach& teach, Notify ready);
  // Begins the lessons that are ready with the state as it is now, which is `version`. The caller guarantees
  // that the reduction of `version` has not been noted yet. A read lease is taken here and held until the
  // copy is made. Nothing begins while an update is open, nor a lesson that has ended meanwhile.
  void begin(control::Version version);
  void end(uint64_t lesson);
  void end_all();

  // The reduced gradient of `version`, before the program can change it.
  void note(control::Version version, std::span<const float> gradient);
  // Whether note() would read that version's gradient.
  bool wants(control::Version version) const;

 private:
  struct Copy;
  struct Lesson;
  bool wanted(const Copy& copy) const;
  void make(Copy& copy, const Notify& ready);
  Status copy_state(const Result<LargeBuffer>& memory);
  void teach(Lesson& lesson);
  Status teach_state(Lesson& lesson);
  Status send_state(Lesson& lesson, const Copy& copy);
  double share_of(const Lesson& lesson) const;
  Status send(Lesson& lesson, uint64_t item, ByteSpan bytes);
  bool is_unwanted(const Lesson& lesson) const;
  void reap(bool all);

  Endpoint& endpoint_;
  State& state_;
  const LessonLimits limits_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::shared_ptr<Lesson>> lessons_;
};

// The learning side: receives on a thread of its own; the Run installs and applies.
class Learner {
 public:
  using Notify = std::function<void()>;  // something arrived, or the lesson failed; called without any lock

  Learner(Endpoint& endpoint, const control::Learn& learn, uint64_t state_bytes, Notify notify,
          LessonLimits limits = {});
  ~Learner();

  // The staged state, once, when it has arrived and its digest matched.
  struct Snapshot {
    control::Version version;
    LargeBuffer bytes;
  };
  bool has_snapshot() const;
  std::optional<Snapshot> take_snapshot();

  // The gradient of `version`, once it has arrived.
  std::optional<std::vector<float>> take_gradient(control::Version version);
  bool level() const;  // all was taken that the teacher had to send when it sent the newest

  uint64_t lesson() const { return learn_.lesson; }
  std::optional<std::string> failure() const;
  bool lags() const;  // the failure is that gradients came faster than they went

 private:
  void learn();
  bool is_stopping() const;
  Status receive_greeting();
  Status receive_snapshot();
  Result<bool> receive_gradient(uint64_t item);
  Error behind_by_too_much() const;
  Status receive(uint64_t item, MutableByteSpan bytes, Duration timeout);

  Endpoint& endpoint_;
  const control::Learn learn_;
  const uint64_t state_bytes_;
  const Notify notify_;
  const LessonLimits limits_;
  PeerId source_{};
  mutable std::mutex mutex_;
  bool stopping_ = false;
  std::optional<Snapshot> snapshot_;
  std::deque<std::pair<control::Version, std::vector<float>>> gradients_;
  uint64_t waiting_bytes_ = 0;  // of gradients_
  uint64_t to_come_ = 0;        // gradients that waited at the teacher when it sent the newest
  std::optional<std::string> failure_;
  bool lags_ = false;
  std::thread thread_;
};

}  // namespace muster
