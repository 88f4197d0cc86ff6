// A watch of one key of etcd, through the gateway's `POST /v3/watch`: one request, and an answer that goes on
// for as long as both sides want, a JSON object a line.
//
// INVARIANT: a watch decides nothing. It says that a read may be worth its while, no more: who leads is what
// a guarded read and a guarded transaction say (election.h). An event that is late, false or repeated costs a
// read; one that is lost is made up for by whoever asks again anyway.
//
// A connection can die without a word, and the gateway lets nobody ask after it while the answer goes on. So
// each watch is given up when nothing has come for `quiet_max`, and opened anew at the next member. Every
// opening begins at the present, and is itself worth a read, which finds what the watch before it has missed.
// To begin at a revision of the past would cost more: etcd reads all that was written since to any key, for
// each of its watches.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "launcher/etcd.h"
#include "runtime/agent/loop.h"

namespace muster::launcher {

struct WatchTimes {
  Duration answer = kSecond;          // a member that does not begin to watch by then is passed over
  Duration quiet_max = 30 * kSecond;  // one small request and one read each, for each agent
  Duration pause_first = 50 * kMillisecond;
  Duration pause_max = 5 * kSecond;  // between attempts that come to nothing
};

// Callbacks come on the loop's thread, and none after the destructor, which waits for nothing that etcd does:
// at most for one attempt to log in.
class EtcdWatch {
 public:
  struct Callbacks {
    std::function<void()> changed;                   // or may have: at each opening, and at each event
    std::function<void(std::string words)> trouble;  // once no member can be watched, and once one can again
  };
  EtcdWatch(agent::Loop& loop, EtcdAccess access, std::string key, WatchTimes times, Callbacks callbacks);
  ~EtcdWatch();

 private:
  void run();
  Status watch_once(bool& opened);
  void note_open();
  void note_failure(const Status& ended);
  void pause(Duration duration);
  void tell(std::function<void()> call);

  agent::Loop& loop_;
  const std::string key_;
  const WatchTimes times_;
  const size_t members_;
  const Callbacks callbacks_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // touched on the loop's thread only
  Etcd etcd_;                                                         // this and the next two: the thread's
  size_t failures_ = 0;                                               // one after the other
  bool troubled_ = false;
  HttpStream stream_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace muster::launcher
