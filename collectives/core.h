// Internal: the heart of an endpoint. One mutex, one progress thread, one place to sleep.
//
// Everything moves inside progress(), under the mutex, on whichever thread has a reason: the thread that
// issues an operation, the one that waits for it, or else the progress thread. While somebody waits, the
// progress thread stays away, so that a small operation costs no switch of threads. Who has nothing to do
// spins briefly, yields, then sleeps until the transport, a peer on this node or another thread has something
// for it. User memory is touched under the mutex only, and only for operations that have not ended; that is
// why nothing touches it after wait() returned or revoke() was called.
//
// INVARIANT: at most two threads sleep, the progress thread and the waiter that drives. Each has its own
// means to be woken: with one for both, a thread that was woken and got no processor yet would keep it
// raised, and the other one, finding it so, would never sleep (seen: for seconds, on a machine whose
// scheduler then gave the first none).
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>

#include "collectives/operation.h"
#include "collectives/transport/transport.h"
#include "runtime/base/handle.h"

namespace muster {

using PeerId = uint32_t;
constexpr PeerId kSelf = UINT32_MAX;  // stands for this process in lists of ranks; never sent to

// Gets the ends of transfers that it posted. Called under the mutex.
class TransferOwner {
 public:
  virtual void transfer_ended(uint64_t cookie, TransferStatus status, size_t bytes) = 0;

 protected:
  ~TransferOwner() = default;
};

// Something that progress() moves: a group's engine, the point-to-point transfers. Called under the mutex.
class Driven {
 public:
  virtual size_t advance() = 0;                  // how many things happened
  virtual Instant next_deadline() const = 0;     // advance() must be called then; kNever
  virtual void set_sleeping(bool sleeping) = 0;  // tells peers on this node whether they must ring
  virtual void peer_gone(PeerId peer, const std::string& reason) = 0;

 protected:
  ~Driven() = default;
};

// Gets word that a descriptor is readable, or came to its end. Called under the mutex.
class Watcher {
 public:
  virtual void readable(int fd) = 0;

 protected:
  ~Watcher() = default;
};

// A block of the pool: message payloads never exceed kMessageBytes.
constexpr size_t kMessageBytes = 256 * 1024 + 128;

// Tags. The two highest bits tell who matches the message.
enum class TagKind : uint64_t { kPointToPoint = 0, kCollective = 1, kControl = 2, kFormation = 3 };
constexpr uint64_t make_tag(TagKind kind, uint64_t rest) {
  return (static_cast<uint64_t>(kind) << 62) | (rest & ((uint64_t{1} << 62) - 1));
}

// What tells the groups of one receiver apart in the tags of its messages.
using Port = uint32_t;
constexpr int kPortBits = 20;

// Numbers for the groups of one endpoint: no two that live at once have the same. They are given in turn, so
// that one comes again only after a million others, when nothing of its last group is under way any more.
// From any thread.
class Ports {
 public:
  // Free again when the last reference is gone. Null: all are taken.
  static std::shared_ptr<const Port> reserve(const std::shared_ptr<Ports>& ports);

 private:
  std::mutex mutex_;
  std::set<Port> taken_;
  Port next_ = 0;
};

class Core final : public std::enable_shared_from_this<Core>, private TransportSink {
 public:
  static Result<std::shared_ptr<Core>> start(std::unique_ptr<Transport> transport);
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  // Ends the progress thread and the transport. Everything driven must have left before.
  void stop();

  std::mutex& mutex() { return mutex_; }
  Transport* transport() { return transport_.get(); }
  int bell() const { return bell_.get(); }

  // Below: REQUIRES the mutex, unless said otherwise.

  TransferId send(PeerId peer, uint64_t tag, MessagePtr message, TransferOwner* owner, uint64_t cookie);
  TransferId receive(uint64_t tag, MessagePtr message, TransferOwner* owner, uint64_t cookie);
  void cancel(TransferId id);  // a receive: its memory stays with the transport, its end is not reported
  void forget(TransferId id);  // a send: it goes on, its end is not reported
  // Its end is reported to another owner from now on. False: it has ended, or has none.
  bool hand_over(TransferId id, TransferOwner* owner, uint64_t cookie);
  void forget_all(const TransferOwner* owner);  // sends; for an owner that ends
  // Nobody receives these any more: they are dropped, and what is still on its way when the next tags are
  // closed.
  void close_tags(uint64_t value, uint64_t mask);
  // They are in use again.
  void open_tags(uint64_t value) {
    std::erase_if(closed_tags_, [&](const auto& tags) { return tags.first == value; });
  }
  MessagePtr take_message();  // kMessageBytes, from the pool

  // The peer at `address`; the same address gives the same peer. Connected when first used.
  PeerId add_peer(ByteSpan address);
  // Whoever waits for a message of `peer` calls this, so that its death is heard of.
  void expect(PeerId peer) { connect(peer); }
  bool is_gone(PeerId peer) const { return peer != kSelf && peers_[peer].gone; }
  const std::string& why_gone(PeerId peer) const { return peers_[peer].reason; }

  void join(Driven* driven);
  void leave(Driven* driven);
  void watch(int fd, Watcher* watcher);
  void watch_end(int fd, Watcher* watcher);  // what can be read there waits for somebody else
  void unwatch(int fd);

  // No group of this or an earlier generation will be formed any more.
  void cancel_formation(const Generation& generation) {
    cancelled_formation_ = generation;
    stir(true);
  }
  // So many ranks of a group share this node: with more than cores, waiters yield soon.
  void expect_crowd(int ranks);
  // How often to look for the end of a small operation before it is left to a waiter, and that without a
  // pause in between: one takes 65 ns on Skylake and later, as much as a cache line needs to the next core.
  static constexpr int kEagerLooks = 32;
  int eager_looks() const { return crowded_ ? 0 : kEagerLooks; }
  // Who looks like that does what a waiter does: the progress thread stays away, and mates need not ring.
  // What else is under way gets its turn, and the progress thread where it moves. Call it before beginning
  // anything.
  void attend();
  bool formation_cancelled(const Generation& generation) const {
    return generation.nonce == cancelled_formation_.nonce &&
           generation.counter <= cancelled_formation_.counter;
  }

  void complete(Operation& operation, Status result, std::vector<int> suspects);

  // What a waiter's done() looks at has changed, and it is no operation. Whichever thread has seen to it: a
  // sleeping waiter does not hear what another one has taken from a descriptor.
  void tell_waiters() {
    wake(waiter_sleeper_);
    if (waiters_ > 1) followers_.notify_all();
  }

  // After an operation was issued or revoked. `urgent`: the progress thread must not wait for its next tick.
  void stir(bool urgent);

  // `look`: also at the descriptors, and at a transport that nobody waits for, which cost system calls;
  // otherwise they get their turn now and then.
  size_t progress(bool look = false);

  // progress(), by a thread that neither waits nor sleeps.
  void poke() {
    progress();
    keep_sleepers_armed();
  }

  // How a wait begins: looking again and again, which suits operations that end within microseconds, or
  // asleep, which suits what comes by descriptors. On a crowded machine each look may cost a time slice of
  // others, and most looks leave the descriptors out: a hand-over that lay there was seen 60 ms late.
  enum class Wait : uint8_t { kLooking, kAsleep };
  // Without the mutex: drives until done(), which is called under the mutex, or until `deadline`; returns
  // done().
  bool drive_until(const std::function<bool()>& done, Instant deadline, Wait how = Wait::kLooking);

 private:
  struct Peer {
    ByteBuffer address;
    TransportPeer transport_peer = 0;
    bool connected = false;
    bool unreachable = false;  // which progress() makes it gone for
    bool gone = false;
    std::string reason;
  };
  struct Target {
    TransferOwner* owner;
    uint64_t cookie;
  };
  struct Pool;

  // One place to sleep. `woken` ends it, though the thread may not have come round yet.
  struct Sleeper {
    UniqueFd wake;
    Instant until = kNever;  // while asleep
    bool asleep = false;
    bool woken = false;
    bool is_deaf() const { return asleep && !woken; }
  };

  explicit Core(std::unique_ptr<Transport> transport);
  Status open_descriptors();
  bool connect(PeerId peer);
  void lose(PeerId peer, const std::string& reason);
  void transfer_ended(TransferId id, TransferStatus status, size_t bytes) override;
  void peer_failed(TransportPeer peer, const std::string& reason) override;

  void run();          // the progress thread
  void wake_thread();  // so that it stays away
  static void give_way(std::unique_lock<std::mutex>& lock, bool for_long);
  bool prepare_sleep();  // false: there is something to do
  void sleep(std::unique_lock<std::mutex>& lock, Sleeper& sleeper, Instant deadline);
  bool anybody_sleeps() const { return thread_sleeper_.is_deaf() || waiter_sleeper_.is_deaf(); }
  void spare_the_bell();
  static void wake(Sleeper& sleeper);
  void wake_all();
  void keep_sleepers_armed();
  void watch(int fd, Watcher* watcher, uint32_t events);
  size_t poll_descriptors(int timeout_ms);
  Instant next_deadline() const;

  std::mutex mutex_;
  Generation cancelled_formation_;
  std::condition_variable followers_;  // waiters that do not drive
  std::condition_variable thread_rest_;
  std::thread thread_;
  bool stopping_ = false;
  int waiters_ = 0;
  bool driven_by_waiter_ = false;
  Duration rest_;        // how long the progress thread rests
  bool waited_ = false;  // somebody did, since the progress thread looked
  bool kicked_ = false;
  Sleeper thread_sleeper_;  // the progress thread's
  Sleeper waiter_sleeper_;  // the driving waiter's
  bool descriptors_ready_ = false;
  int since_poll_ = 0;
  int since_attended_ = 0;
  bool crowded_ = true;  // more ranks than cores

  std::shared_ptr<Pool> pool_;
  std::unique_ptr<Transport> transport_;
  std::unordered_map<TransferId, Target> targets_;
  std::deque<std::pair<uint64_t, uint64_t>> closed_tags_;  // values and masks of some of the newest
  std::vector<Peer> peers_;
  std::map<TransportPeer, PeerId> by_transport_peer_;
  std::vector<std::pair<PeerId, std::string>> unreachable_;  // to be reported by the next progress()
  std::vector<Driven*> driven_;
  std::unordered_map<int, Watcher*> watchers_;

  UniqueFd epoll_;  // readable where the transport, the bell or a watched descriptor is
  UniqueFd bell_;   // rung by peers on this node
};

}  // namespace muster
