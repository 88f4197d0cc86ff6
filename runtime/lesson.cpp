#include "runtime/lesson.h"

#include <algorithm>
#include <chrono>

#include "collectives/feed.h"
#include "runtime/base/digest.h"
#include "runtime/base/random.h"
#include "runtime/base/threads.h"
#include "runtime/state_transfer.h"

namespace muster {
namespace {

constexpr std::ptrdiff_t kShared = 8;               // more lessons than so many do not become slower still
constexpr uint64_t kGradientBytesMax = 1ULL << 37;  // what a peer may have this process allocate
constexpr Duration kPoll = 200 * kMillisecond;      // how soon an ended lesson is noticed while nothing moves

// The end of a transfer, or kEnded once `closing` says so: then its memory is the caller's again.
template <typename Closing>
Status await(Endpoint& endpoint, const Work& work, const Closing& closing) {
  while (true) {
    if (Status status = work.wait(now() + kPoll); status.ok()) return status;
    if (work.test()) return work.wait();
    if (!closing()) continue;  // at its deadline the transfer ends by itself
    endpoint.cancel(work);     // or what is about to be given back would be read or written still
    return Error{ErrorCode::kEnded, "the lesson is over"};
  }
}

}  // namespace

uint64_t lesson_tag(uint64_t lesson, uint64_t item) { return mix64(lesson ^ mix64(item)); }

// ---- teaching

// Of the state, for the lessons that hold it; the first one's thread makes it.
struct Teacher::Copy {
  Result<LargeBuffer> memory = Error{ErrorCode::kEnded, "the lessons ended before they began"};
  bool ready = false;  // the memory has been asked for
  control::Version version =
      control::kNoVersion;  // until it has begun; then there is a lease until it is made
  bool made = false;        // or never will be
};

using Gradient = std::shared_ptr<const std::vector<float>>;  // one for all lessons

struct Teacher::Lesson {
  control::Teach teach;
  std::shared_ptr<Copy> copy;                   // until it has been sent
  control::Version next = control::kNoVersion;  // whose gradient is logged next
  std::deque<std::pair<control::Version, Gradient>> log;
  uint64_t log_bytes = 0;
  bool over = false;
  bool lags = false;
  bool unwanted = false;  // the leader ended it, or the run is over: what is under way is for nobody
  bool sends_state = false;
  bool finished = false;
  std::thread thread;
};

Teacher::Teacher(Endpoint& endpoint, State& state, LessonLimits limits)
    : endpoint_(endpoint), state_(state), limits_(limits) {}

Teacher::~Teacher() {
  end_all();
  reap(true);
}

void Teacher::prepare(const control::Teach& teach, Notify ready) {
  auto lesson = std::make_shared<Lesson>();
  lesson->teach = teach;
  const std::lock_guard lock(mutex_);
  const auto shared = std::ranges::find_if(lessons_, [](const auto& one) {
    return one->copy && one->copy->version == control::kNoVersion && !one->copy->made;
  });
  const bool first = shared == lessons_.end();
  lesson->copy = first ? std::make_shared<Copy>() : (*shared)->copy;
  lessons_.push_back(lesson);
  lesson->thread = start_thread("muster-teach", [this, lesson, first, ready = std::move(ready)] {
    if (first) make(*lesson->copy, ready);
    this->teach(*lesson);
  });
}

bool Teacher::wanted(const Copy& copy) const {
  return std::ranges::any_of(
      lessons_, [&](const auto& lesson) { return lesson->copy.get() == &copy && !lesson->over; });
}

void Teacher::begin(control::Version version) {
  if (version == control::kNoVersion) return;  // an update was torn
  const std::lock_guard lock(mutex_);
  for (const auto& lesson : lessons_) {
    Copy* const copy = lesson->copy.get();
    if (copy == nullptr || !copy->ready || copy->made || lesson->over) continue;
    if (copy->version == control::kNoVersion) {
      if (!state_.acquire_read(now()).ok()) return;
      copy->version = version;
    }
    if (lesson->next == control::kNoVersion) lesson->next = copy->version;
  }
  changed_.notify_all();
}

void Teacher::end(uint64_t nonce) {
  reap(false);
  const std::lock_guard lock(mutex_);
  for (const auto& lesson : lessons_) {
    if (lesson->teach.lesson != nonce) continue;
    lesson->over = lesson->unwanted = true;
  }
  changed_.notify_all();
}

void Teacher::end_all() {
  const std::lock_guard lock(mutex_);
  for (const auto& lesson : lessons_) lesson->over = lesson->unwanted = true;
  changed_.notify_all();
}

void Teacher::note(control::Version version, std::span<const float> gradient) {
  const std::lock_guard lock(mutex_);
  Gradient copy;
  for (const auto& lesson : lessons_) {
    if (lesson->over || version != lesson->next) continue;
    lesson->next = version + 1;
    lesson->log_bytes += gradient.size_bytes();
    // One may wait whatever its size, unless none may.
    const bool fits = lesson->log_bytes <= limits_.log_bytes_max;
    if (!fits && (limits_.log_bytes_max == 0 || !lesson->log.empty())) {
      lesson->over = lesson->lags = true;  // the learner starts again, or all take one bounded stall
    } else {
      if (!copy) copy = std::make_shared<const std::vector<float>>(gradient.begin(), gradient.end());
      lesson->log.emplace_back(version, copy);
    }
  }
  changed_.notify_all();
}

bool Teacher::wants(control::Version version) const {
  const std::lock_guard lock(mutex_);
  return std::ranges::any_of(lessons_,
                             [&](const auto& lesson) { return !lesson->over && lesson->next == version; });
}

Status Teacher::send(Lesson& lesson, uint64_t item, ByteSpan bytes) {
  MUSTER_ASSIGN(const PeerId peer, endpoint_.peer(lesson.teach.learner.contact));
  const Instant deadline = now() + control::lesson_time(bytes.size(), limits_.item_timeout);
  return await(endpoint_, endpoint_.send(peer, lesson_tag(lesson.teach.lesson, item), bytes, deadline),
               [&] { return is_unwanted(lesson); });
}

bool Teacher::is_unwanted(const Lesson& lesson) const {
  const std::lock_guard lock(mutex_);
  return lesson.unwanted;
}

// A copy, because the next update waits for the lease, which ends here.
Status Teacher::copy_state(const Result<LargeBuffer>& memory) {
  const Status readable = state_.wait_readable(now() + limits_.item_timeout);
  if (memory.ok() && readable.ok()) state_.copy_to(*memory);
  state_.release_read();
  return readable;
}

void Teacher::make(Copy& copy, const Notify& ready) {
  auto memory = LargeBuffer::allocate(state_.bytes());
  if (memory.ok()) memory->populate();
  {
    const std::lock_guard lock(mutex_);
    copy.ready = true;
  }
  ready();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return copy.version != control::kNoVersion || !wanted(copy); });
  if (copy.version != control::kNoVersion) {
    lock.unlock();
    if (const Status copied = copy_state(memory); !copied.ok()) memory = copied.error();
    lock.lock();
    copy.memory = std::move(memory);
  }
  copy.made = true;
  changed_.notify_all();
}

Status Teacher::send_state(Lesson& lesson, const Copy& copy) {
  if (!copy.memory.ok()) return copy.memory.error();
  const LargeBuffer& bytes = *copy.memory;
  const Instant deadline = now() + control::lesson_time(bytes.size(), limits_.item_timeout);
  // The transport's connection may take longer to make than a step, and the state may go another way.
  const GradientHeader greeting{.version = GradientHeader::kGreets};
  MUSTER_ASSIGN(const PeerId peer, endpoint_.peer(lesson.teach.learner.contact));
  const Work greeted =
      endpoint_.send(peer, lesson_tag(lesson.teach.lesson, kGreetingItem), bytes_of(greeting), deadline);
  // Nobody else waits for this feed, so a slow learner has its time.
  FeedSource feed(endpoint_, lesson_tag(lesson.teach.lesson, kFeedItem), deadline, limits_.item_timeout,
                  [&] { return is_unwanted(lesson); });
  feed.pace([&] { return share_of(lesson); });
  feed.add(lesson.teach.learner.contact);
  feed.note(bytes_of(LessonHeader{copy.version, bytes.size()}));
  DigestStream digest;
  feed.run({bytes}, [&](ByteSpan piece) { digest.add(piece); });
  const auto waiting = [&] {
    const std::lock_guard lock(mutex_);
    return lesson.log.size();
  };
  feed.note(bytes_of(StateEnd{digest.digest(), waiting()}));
  const Status fed = feed.finish().front();
  const Status arrived = await(endpoint_, greeted, [&] { return !fed.ok() || is_unwanted(lesson); });
  return fed.ok() ? arrived : fed;
}

double Teacher::share_of(const Lesson& lesson) const {
  const std::lock_guard lock(mutex_);
  if (lesson.log_bytes > limits_.log_bytes_max / 4) return 1;
  const auto sending =
      std::count_if(lessons_.begin(), lessons_.end(), [](const auto& one) { return one->sends_state; });
  return limits_.share / static_cast<double>(std::clamp<std::ptrdiff_t>(sending, 1, kShared));
}

// The copy is given back when it has gone to all that it is for.
Status Teacher::teach_state(Lesson& lesson) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return lesson.unwanted || lesson.copy->made; });
  Status sent = Error{ErrorCode::kEnded, "the lesson ended before it began"};
  if (lesson.next != control::kNoVersion && lesson.copy->made) {
    lesson.sends_state = true;
    lock.unlock();
    sent = send_state(lesson, *lesson.copy);
    lock.lock();
    lesson.sends_state = false;
  }
  const std::shared_ptr<Copy> sent_copy = std::move(lesson.copy);
  lock.unlock();  // to give back much memory takes time, and an update may note its gradient
  return sent;
}

void Teacher::teach(Lesson& lesson) {
  Status sent = teach_state(lesson);
  uint64_t item = kGreetingItem + 1;
  while (sent.ok()) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return lesson.over || !lesson.log.empty(); });
    if (lesson.unwanted || lesson.log.empty()) break;
    const auto [version, gradient] = std::move(lesson.log.front());
    lesson.log.pop_front();
    const uint64_t waiting = lesson.log.size();
    lock.unlock();
    const ByteSpan bytes = std::as_bytes(std::span(*gradient));
    sent = send(lesson, item, bytes_of(GradientHeader{version, gradient->size(), digest_of(bytes), waiting}));
    if (sent.ok()) sent = send(lesson, item + 1, bytes);
    item += 2;
    lock.lock();
    lesson.log_bytes -= gradient->size() * sizeof(float);
  }
  GradientHeader last;
  {
    const std::lock_guard lock(mutex_);
    if (lesson.lags) last.version = GradientHeader::kLags;
  }
  if (sent.ok()) sent = send(lesson, item, bytes_of(last));
  // A learner that is gone is the leader's business; the lesson just ends.
  const std::lock_guard lock(mutex_);
  lesson.over = true;
  lesson.finished = true;
}

void Teacher::reap(bool all) {
  std::vector<std::shared_ptr<Lesson>> ended;
  {
    const std::lock_guard lock(mutex_);
    const auto live = std::partition(lessons_.begin(), lessons_.end(),
                                     [&](const auto& lesson) { return !all && !lesson->finished; });
    ended.assign(live, lessons_.end());
    lessons_.erase(live, lessons_.end());
  }
  for (const auto& lesson : ended) lesson->thread.join();
}

// ---- learning

Learner::Learner(Endpoint& endpoint, const control::Learn& learn, uint64_t state_bytes, Notify notify,
                 LessonLimits limits)
    : endpoint_(endpoint),
      learn_(learn),
      state_bytes_(state_bytes),
      notify_(std::move(notify)),
      limits_(limits),
      thread_(start_thread("muster-learn", [this] { this->learn(); })) {}

Learner::~Learner() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  thread_.join();
}

bool Learner::has_snapshot() const {
  const std::lock_guard lock(mutex_);
  return snapshot_.has_value();
}

std::optional<Learner::Snapshot> Learner::take_snapshot() {
  const std::lock_guard lock(mutex_);
  return std::exchange(snapshot_, std::nullopt);
}

std::optional<std::vector<float>> Learner::take_gradient(control::Version version) {
  const std::lock_guard lock(mutex_);
  std::optional<std::vector<float>> gradient;
  while (!gradients_.empty() && gradients_.front().first <= version && !gradient) {
    auto [of, floats] = std::move(gradients_.front());
    gradients_.pop_front();
    waiting_bytes_ -= floats.size() * sizeof(float);
    if (of == version) gradient = std::move(floats);
  }
  return gradient;
}

bool Learner::level() const {
  const std::lock_guard lock(mutex_);
  return !snapshot_ && gradients_.empty() && to_come_ == 0;
}

bool Learner::lags() const {
  const std::lock_guard lock(mutex_);
  return lags_;
}

std::optional<std::string> Learner::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

bool Learner::is_stopping() const {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

void Learner::learn() {
  Status status = receive_snapshot();
  notify_();
  if (status.ok()) status = receive_greeting();
  bool more = status.ok();
  for (uint64_t item = kGreetingItem + 1; more; item += 2) {
    auto received = receive_gradient(item);
    more = received.ok() && *received;
    if (!received.ok()) status = received.error();
    notify_();
  }
  const std::lock_guard lock(mutex_);
  failure_ = status.ok() ? "the teacher ended the lesson" : status.error().message;
}

Status Learner::receive(uint64_t item, MutableByteSpan bytes, Duration timeout) {
  MUSTER_ASSIGN(const PeerId peer, endpoint_.peer(learn_.source.contact));
  const Instant deadline = timeout == kNever ? kNever : now() + timeout;
  return await(endpoint_, endpoint_.recv(peer, lesson_tag(learn_.lesson, item), bytes, deadline),
               [this] { return is_stopping(); });
}

Status Learner::receive_greeting() {
  GradientHeader header{};
  MUSTER_TRY(receive(kGreetingItem, writable_bytes_of(header), limits_.item_timeout));
  if (header.version == GradientHeader::kGreets) return ok();
  return Error{ErrorCode::kMisuse, "the teacher begins with something that is no greeting"};
}

Status Learner::receive_snapshot() {
  MUSTER_ASSIGN(LargeBuffer bytes, LargeBuffer::allocate(state_bytes_));
  FeedTarget feed(endpoint_, learn_.source.contact, lesson_tag(learn_.lesson, kFeedItem),
                  now() + limits_.item_timeout, [this] { return is_stopping(); });
  LessonHeader header{};
  MUSTER_TRY(feed.note(writable_bytes_of(header)));
  if (header.version < 0 || header.state_bytes != state_bytes_) {
    return Error{ErrorCode::kMisuse, "the teacher's state has " + std::to_string(header.state_bytes) +
                                         " bytes, this process registered " + std::to_string(state_bytes_) +
                                         "; start the same program with the same options"};
  }
  feed.extend(now() + control::lesson_time(state_bytes_, limits_.item_timeout));
  DigestStream arrived;
  MUSTER_TRY(feed.run(bytes, [&](ByteSpan piece) { arrived.add(piece); }));
  StateEnd end;
  MUSTER_TRY(feed.note(writable_bytes_of(end)));
  if (arrived.digest() != end.digest) {
    return Error{ErrorCode::kRetry,
                 "the state received from the teacher does not match its digest; asking again"};
  }
  const std::lock_guard lock(mutex_);
  snapshot_ = Snapshot{header.version, std::move(bytes)};
  to_come_ = end.waiting;
  return ok();
}

Error Learner::behind_by_too_much() const {
  return Error{ErrorCode::kRetry, "this process falls behind by more than " +
                                      human_bytes(limits_.log_bytes_max) +
                                      " of gradients, so it has to begin again"};
}

Result<bool> Learner::receive_gradient(uint64_t item) {
  GradientHeader header{};
  // Steps may take as long as they like; the teacher's death ends this wait.
  MUSTER_TRY(receive(item, writable_bytes_of(header), kNever));
  if (header.version == GradientHeader::kLags) {
    const std::lock_guard lock(mutex_);
    lags_ = true;
    return behind_by_too_much();
  }
  if (header.version < 0) return false;
  if (header.count > kGradientBytesMax / sizeof(float)) {
    return Error{ErrorCode::kMisuse, "the teacher announced a gradient of " + std::to_string(header.count) +
                                         " elements, more than a lesson may hold"};
  }
  std::vector<float> gradient;
  try {
    gradient.resize(header.count);
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::kEnvironment, "there is no memory for a gradient of " +
                                              human_bytes(header.count * sizeof(float)) + " to learn from"};
  }
  const MutableByteSpan bytes = std::as_writable_bytes(std::span(gradient));
  MUSTER_TRY(receive(item + 1, bytes, control::lesson_time(bytes.size(), limits_.item_timeout)));
  if (digest_of(bytes) != header.digest) {
    return Error{ErrorCode::kRetry, "the gradient of version " + std::to_string(header.version) +
                                        " does not match its digest; the lesson begins again"};
  }
  const std::lock_guard lock(mutex_);
  waiting_bytes_ += gradient.size() * sizeof(float);
  if (waiting_bytes_ > limits_.log_bytes_max && !gradients_.empty()) {  // one may wait whatever its size
    lags_ = true;
    return behind_by_too_much();
  }
  gradients_.emplace_back(header.version, std::move(gradient));
  to_come_ = header.waiting;
  return true;
}

}  // namespace muster
