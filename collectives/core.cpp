#include "collectives/core.h"

#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>

#include "runtime/base/check.h"
#include "runtime/base/threads.h"

namespace muster {
namespace {

// How long a waiter looks before it sleeps. With more ranks than cores, long spinning multiplies latency
// (measured: 2,000 pauses make a 4 µs exchange take 60 µs); 20 pauses and some yields do not. With a core for
// each rank a switch of threads costs more than it gives.
constexpr int kSpinsCrowded = 20;
constexpr int kSpins = 2000;
constexpr int kYields = 16;          // with more no operation was faster (8 to 300; 2 to 8 ranks on 2 cores)
constexpr int kSpinsUnderLock = 32;  // then others may have the mutex
constexpr int kLooksPerClock = 32;   // reading the clock costs as much as looking
constexpr int kPollEvery = 64;       // calls of progress()
// The progress thread rests this long after a wait, since another usually follows; while there are waiters,
// longer and longer, and whoever leaves as the last of them ends such a rest.
constexpr Duration kRest = 500 * kMicrosecond;
constexpr Duration kRestMost = 4 * kMillisecond;
// A waiter looks again after so long asleep: no promise of a transport to wake it is worth a hang.
constexpr Duration kDoze = 50 * kMillisecond;
// Where looking finds nothing, yet there is no sleeping, or sleep is over at once, after so many rounds who
// looks stays away for so long: what is in the way may need this processor.
constexpr int kRefusals = 64;
constexpr Duration kNap = 100 * kMicrosecond;
// Of closed tags so many are swept again: two for each group.
constexpr size_t kClosedTagsKept = 16;

inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

void drain(int fd) {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = read(fd, &count, sizeof count);
}

timespec timespec_of(Duration duration) {
  const Duration left = std::max<Duration>(duration, 0);
  return {.tv_sec = left / kSecond, .tv_nsec = left % kSecond};
}

void nap() {
  const timespec time = timespec_of(kNap);
  nanosleep(&time, nullptr);
}

Status add_to_epoll(int epoll, int fd, uint32_t events = EPOLLIN) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0) return ok();
  return Error{ErrorCode::kEnvironment, std::string("cannot watch a descriptor: ") + strerror(errno)};
}

}  // namespace

// Blocks return here when the last reference is gone, which may be after the core is gone.
struct Core::Pool {
  std::mutex mutex;
  std::vector<std::unique_ptr<Message>> free;
};

std::shared_ptr<const Port> Ports::reserve(const std::shared_ptr<Ports>& ports) {
  constexpr size_t kAll = size_t{1} << kPortBits;
  const std::lock_guard lock(ports->mutex_);
  if (ports->taken_.size() == kAll) return nullptr;
  Port& next = ports->next_;
  while (!ports->taken_.insert(next).second) next = (next + 1) % kAll;
  const auto* const given = new Port(std::exchange(next, (next + 1) % kAll));
  return {given, [ports](const Port* port) {
            const std::lock_guard hold(ports->mutex_);
            ports->taken_.erase(*port);
            delete port;
          }};
}

Core::Core(std::unique_ptr<Transport> transport)
    : rest_(kRest), pool_(std::make_shared<Pool>()), transport_(std::move(transport)) {}

void Core::expect_crowd(int ranks) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  const bool known = sched_getaffinity(0, sizeof allowed, &allowed) == 0;
  // A rank bound to one core knows that there are others only from the number of those online.
  const int bound = known ? CPU_COUNT(&allowed) : 1;
  const int cores = bound > 1 ? bound : static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  crowded_ = ranks > cores;
}

Result<std::shared_ptr<Core>> Core::start(std::unique_ptr<Transport> transport) {
  std::shared_ptr<Core> core(new Core(std::move(transport)));
  MUSTER_TRY(core->open_descriptors());
  core->thread_ = start_thread("muster-data", [raw = core.get()] { raw->run(); });
  return core;
}

Core::~Core() { stop(); }

void Core::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_all();
    thread_rest_.notify_all();
    followers_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  const std::lock_guard lock(mutex_);
  MUSTER_CHECK(driven_.empty(), "an endpoint ended before its groups");
  if (transport_ != nullptr) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, transport_->event_fd(), nullptr);
  transport_.reset();
}

Status Core::open_descriptors() {
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  bell_.reset(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  for (Sleeper* sleeper : {&thread_sleeper_, &waiter_sleeper_})
    sleeper->wake.reset(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!epoll_ || !bell_ || !thread_sleeper_.wake || !waiter_sleeper_.wake) {
    return Error{ErrorCode::kEnvironment, std::string("cannot open event descriptors: ") + strerror(errno) +
                                              "; raise the limit (ulimit -n)"};
  }
  MUSTER_TRY(add_to_epoll(epoll_.get(), bell_.get()));
  if (transport_ != nullptr) MUSTER_TRY(add_to_epoll(epoll_.get(), transport_->event_fd()));
  return ok();
}

// A message to a peer that is gone is lost: whoever depends on the peer hears of its death.
TransferId Core::send(PeerId peer, uint64_t tag, MessagePtr message, TransferOwner* owner, uint64_t cookie) {
  if (!connect(peer)) return 0;
  const TransferId id = transport_->send(peers_[peer].transport_peer, tag, std::move(message));
  if (owner != nullptr) targets_[id] = {owner, cookie};
  return id;
}

TransferId Core::receive(uint64_t tag, MessagePtr message, TransferOwner* owner, uint64_t cookie) {
  const TransferId id = transport_->receive(tag, std::move(message));
  targets_[id] = {owner, cookie};
  return id;
}

void Core::cancel(TransferId id) {
  if (targets_.erase(id) > 0) transport_->cancel(id);
}

void Core::forget(TransferId id) { targets_.erase(id); }

bool Core::hand_over(TransferId id, TransferOwner* owner, uint64_t cookie) {
  const auto found = targets_.find(id);
  if (found == targets_.end()) return false;
  found->second = {owner, cookie};
  return true;
}

void Core::close_tags(uint64_t value, uint64_t mask) {
  if (transport_ == nullptr) return;
  closed_tags_.emplace_back(value, mask);
  if (closed_tags_.size() > kClosedTagsKept) closed_tags_.pop_front();
  for (const auto& [closed, its_mask] : closed_tags_) transport_->discard(closed, its_mask);
}

void Core::forget_all(const TransferOwner* owner) {
  std::erase_if(targets_, [&](const auto& target) { return target.second.owner == owner; });
}

MessagePtr Core::take_message() {
  std::unique_ptr<Message> message;
  {
    const std::lock_guard lock(pool_->mutex);
    if (!pool_->free.empty()) {
      message = std::move(pool_->free.back());
      pool_->free.pop_back();
    }
  }
  if (message == nullptr) message = std::make_unique<Message>(kMessageBytes);
  message->size = kMessageBytes;
  return {message.release(), [pool = pool_](Message* block) {
            const std::lock_guard lock(pool->mutex);
            pool->free.emplace_back(block);
          }};
}

PeerId Core::add_peer(ByteSpan address) {
  for (PeerId peer = 0; peer < peers_.size(); ++peer) {
    if (std::ranges::equal(peers_[peer].address, address)) return peer;
  }
  Peer peer;
  peer.address.assign(address.begin(), address.end());
  peers_.push_back(std::move(peer));
  return static_cast<PeerId>(peers_.size() - 1);
}

bool Core::connect(PeerId id) {
  Peer& peer = peers_[id];
  if (peer.unreachable || peer.gone) return false;
  if (peer.connected) return true;
  const auto connected = transport_->connect(peer.address);
  if (!connected) {
    peer.unreachable = true;
    unreachable_.emplace_back(id, connected.error().message);
    return false;
  }
  peer.connected = true;
  peer.transport_peer = *connected;
  by_transport_peer_[*connected] = id;
  return true;
}

void Core::join(Driven* driven) { driven_.push_back(driven); }
void Core::leave(Driven* driven) { std::erase(driven_, driven); }

void Core::watch(int fd, Watcher* watcher) { watch(fd, watcher, EPOLLIN); }
void Core::watch_end(int fd, Watcher* watcher) { watch(fd, watcher, 0); }  // EPOLLHUP is always reported

void Core::watch(int fd, Watcher* watcher, uint32_t events) {
  watchers_[fd] = watcher;
  const Status added = add_to_epoll(epoll_.get(), fd, events);
  if (!added) watcher->readable(fd);  // it will find the end of file, or whatever is wrong
}

void Core::unwatch(int fd) {
  if (watchers_.erase(fd) > 0) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

void Core::complete(Operation& operation, Status result, std::vector<int> suspects) {
  operation.result = std::move(result);
  operation.suspects = std::move(suspects);
  operation.done.store(true, std::memory_order_release);
  tell_waiters();
}

void Core::transfer_ended(TransferId id, TransferStatus status, size_t bytes) {
  const auto found = targets_.find(id);
  if (found == targets_.end()) return;
  const Target target = found->second;
  targets_.erase(found);
  target.owner->transfer_ended(target.cookie, status, bytes);
}

void Core::peer_failed(TransportPeer transport_peer, const std::string& reason) {
  const auto found = by_transport_peer_.find(transport_peer);
  if (found != by_transport_peer_.end()) lose(found->second, reason);
}

void Core::lose(PeerId id, const std::string& reason) {
  Peer& peer = peers_[id];
  if (peer.gone) return;
  peer.gone = true;
  peer.reason = reason;
  for (Driven* driven : std::vector(driven_)) driven->peer_gone(id, reason);
  tell_waiters();
}

void Core::wake(Sleeper& sleeper) {
  if (!sleeper.is_deaf()) return;
  sleeper.woken = true;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t wrote = write(sleeper.wake.get(), &one, sizeof one);
}

void Core::wake_all() {
  wake(thread_sleeper_);
  wake(waiter_sleeper_);
}

void Core::wake_thread() {
  if (!thread_sleeper_.is_deaf()) return;
  wake(thread_sleeper_);
  spare_the_bell();
}

void Core::attend() {
  constexpr int kProgressEvery = 8;
  constexpr size_t kDrivenAlone = 2;  // one group, and the point-to-point transfers
  waited_ = true;
  wake_thread();
  const bool others = driven_.size() > kDrivenAlone || !targets_.empty();
  if (!others && ++since_attended_ < kProgressEvery) return;
  since_attended_ = 0;
  if (progress() == 0) return;
  kicked_ = true;
  thread_rest_.notify_one();
}

void Core::stir(bool urgent) {
  if (waiters_ > 0) followers_.notify_all();
  if (urgent) {
    kicked_ = true;
    thread_rest_.notify_one();
    wake_all();
  } else {
    keep_sleepers_armed();
  }
}

size_t Core::progress(bool look) {
  size_t moved = 0;
  // Also while nobody ever sleeps: a busy or an overloaded process must hear its connections too.
  if (descriptors_ready_ || ++since_poll_ >= kPollEvery) {
    descriptors_ready_ = false;
    since_poll_ = 0;
    look = true;
    moved += poll_descriptors(0);
  }
  if (transport_ != nullptr && (look || !targets_.empty())) moved += transport_->progress(*this);
  for (const auto& [peer, reason] : std::exchange(unreachable_, {})) {
    lose(peer, reason);
    ++moved;
  }
  for (size_t i = 0; i < driven_.size(); ++i) moved += driven_[i]->advance();
  return moved;
}

// Handles what epoll reports for descriptors that have a watcher; the others only wake.
size_t Core::poll_descriptors(int timeout) {
  epoll_event events[32];
  const int count = epoll_wait(epoll_.get(), events, 32, timeout);
  size_t handled = 0;
  for (int i = 0; i < count; ++i) {
    const int fd = events[i].data.fd;
    if (fd == bell_.get()) {
      drain(fd);  // what it rang for is seen to by this call of progress(), which tells who waits for it
    } else if (const auto found = watchers_.find(fd); found != watchers_.end()) {
      found->second->readable(fd);
      ++handled;
    }
  }
  return handled;
}

Instant Core::next_deadline() const {
  Instant earliest = kNever;
  for (const Driven* driven : driven_) earliest = std::min(earliest, driven->next_deadline());
  return earliest;
}

// Order matters: first tell the peers to ring, then look once more.
bool Core::prepare_sleep() {
  for (Driven* driven : driven_) driven->set_sleeping(true);
  if (progress(true) == 0 && (transport_ == nullptr || transport_->arm())) return true;
  spare_the_bell();
  return false;
}

void Core::spare_the_bell() {
  if (anybody_sleeps()) return;
  for (Driven* driven : driven_) driven->set_sleeping(false);
}

void Core::sleep(std::unique_lock<std::mutex>& lock, Sleeper& sleeper, Instant deadline) {
  const Instant until = std::min(deadline, next_deadline());
  const timespec timeout = until == kNever ? timespec{} : timespec_of(until - now());
  sleeper.until = until;
  sleeper.asleep = true;
  lock.unlock();
  pollfd fds[] = {{epoll_.get(), POLLIN, 0}, {sleeper.wake.get(), POLLIN, 0}};
  ppoll(fds, std::size(fds), until == kNever ? nullptr : &timeout, nullptr);
  lock.lock();
  if (std::exchange(sleeper.woken, false)) drain(sleeper.wake.get());
  sleeper.asleep = false;
  descriptors_ready_ = true;
  spare_the_bell();
}

// Another thread sleeps on what this one has just looked at, and knows no deadlines that came since.
void Core::keep_sleepers_armed() {
  if (!anybody_sleeps()) return;
  const Instant deadline = next_deadline();
  const auto oversleeps = [&](const Sleeper& one) { return one.is_deaf() && deadline < one.until; };
  if (!prepare_sleep() || oversleeps(thread_sleeper_) || oversleeps(waiter_sleeper_)) wake_all();
}

void Core::give_way(std::unique_lock<std::mutex>& lock, bool for_long) {
  lock.unlock();
  for_long ? nap() : static_cast<void>(sched_yield());
  lock.lock();
}

void Core::run() {
  std::unique_lock lock(mutex_);
  int idle = 0, vain = 0;
  while (!stopping_) {
    if (waiters_ > 0) kicked_ = false;
    if (waiters_ > 0 || (!kicked_ && std::exchange(waited_, false))) {
      thread_rest_.wait_for(lock, std::chrono::nanoseconds(rest_));
      rest_ = waiters_ > 0 ? std::min(2 * rest_, kRestMost) : kRest;
      continue;
    }
    rest_ = kRest;
    kicked_ = false;
    if (progress() > 0) {
      idle = vain = 0;
      kicked_ = true;
      give_way(lock, false);
    } else if (++idle <= 8) {
      kicked_ = true;
      give_way(lock, false);
    } else if (prepare_sleep()) {
      sleep(lock, thread_sleeper_, kNever);
      kicked_ = kicked_ || !waited_;
      idle = 0;
      if (++vain > kRefusals) give_way(lock, true);
    } else {
      give_way(lock, idle > kRefusals);
    }
  }
}

bool Core::drive_until(const std::function<bool()>& done, Instant deadline, Wait how) {
  std::unique_lock lock(mutex_);
  if (done()) return true;
  const int spins = how == Wait::kAsleep ? 0 : crowded_ ? kSpinsCrowded : kSpins;
  const int yields = how == Wait::kAsleep ? 0 : kYields;
  ++waiters_;
  wake_thread();
  int idle = 0, vain = 0;
  int looks = 0;
  while (!done() && !stopping_) {
    if (++looks % kLooksPerClock == 0 && now() >= deadline) break;
    if (driven_by_waiter_) {
      if (now() >= deadline) break;
      const Instant until = std::min(deadline, now() + 100 * kMillisecond);
      followers_.wait_for(lock, std::chrono::nanoseconds(std::max<Duration>(until - now(), 0)));
      continue;
    }
    driven_by_waiter_ = true;
    if (progress() > 0) {
      idle = vain = 0;
    } else if (!done()) {
      ++idle;
      if (idle > spins + yields && prepare_sleep()) {
        sleep(lock, waiter_sleeper_, std::min(deadline, now() + kDoze));
        idle = spins;
        looks = -1;  // the clock, next
        if (++vain > kRefusals && !done()) give_way(lock, true);
      } else if (idle <= spins && idle % kSpinsUnderLock != 0) {
        if (idle > kEagerLooks) pause_cpu();
      } else if (idle <= spins) {
        lock.unlock();
        lock.lock();
      } else if (!done()) {
        give_way(lock, idle > spins + yields + kRefusals);
      }
    }
    driven_by_waiter_ = false;
  }
  --waiters_;
  waited_ = true;
  if (waiters_ > 0) {
    followers_.notify_one();
  } else if (rest_ > kRest) {
    rest_ = kRest;
    thread_rest_.notify_one();
  }
  return done();
}

}  // namespace muster
