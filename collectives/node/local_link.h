// How ranks find that they share a node: by trying. Each endpoint listens on an abstract Unix socket; ranks
// of a group connect in pairs and pass each other two memfds and the descriptor of a bell (an eventfd). The
// connection stays open while the group lives: its end tells of the mate's death at once.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "collectives/contact.h"
#include "collectives/core.h"
#include "collectives/node/arena.h"
#include "collectives/node/segment.h"

namespace muster {

// What one rank got from a mate.
struct LocalMate {
  UniqueFd connection;
  UniqueFd memory;
  UniqueFd arena;
  UniqueFd bell;
};

// Who came to our socket, waiting to be claimed by the group they name. Core's mutex guards it.
class LocalListener final : public Watcher {
 public:
  // Listens under a name that nobody guesses; `nonce` is asked of those who come.
  static Result<std::unique_ptr<LocalListener>> open(std::shared_ptr<Core> core, uint64_t nonce);
  ~LocalListener();

  const std::string& name() const { return name_; }

  // The mate of that rank and group, if it came. REQUIRES the mutex.
  std::unique_ptr<LocalMate> claim(const Generation& generation, int rank);
  // What nobody will claim any more. REQUIRES the mutex.
  void forget(const Generation& generation);

  void readable(int fd) override;

 private:
  LocalListener(std::shared_ptr<Core> core, uint64_t nonce) : core_(std::move(core)), nonce_(nonce) {}
  void accept_all();
  void read_hello(int fd);

  struct Arrival {
    Generation generation;
    int rank;
    std::unique_ptr<LocalMate> mate;
  };

  const std::shared_ptr<Core> core_;
  const uint64_t nonce_;
  std::string name_;
  UniqueFd socket_;
  std::map<int, UniqueFd> strangers_;  // accepted, nothing said yet
  std::vector<Arrival> arrivals_;
};

// One rank's side of the exchange with all its mates.
class LocalExchange {
 public:
  LocalExchange(Core& core, LocalListener& listener, const Generation& generation, int rank,
                std::vector<Contact> contacts);

  // Tries to have everybody's segment mapped by the deadline. `missing`: who was not reached.
  // Takes the mutex itself.
  Status run(const Segment& mine, const Arena& arena, Instant deadline, std::vector<int>& missing);

  std::vector<std::unique_ptr<LocalMate>>& mates() { return mates_; }
  std::vector<Segment>& segments() { return segments_; }
  std::vector<ArenaView>& arenas() { return arenas_; }

 private:
  bool step(const Segment& mine, const Arena& arena);  // true: complete, or hopeless
  void try_connect(size_t rank, const Segment& mine, const Arena& arena);
  void try_reply(size_t rank);
  void map(size_t rank);

  Core& core_;
  LocalListener& listener_;
  const Generation generation_;
  const int rank_;
  const std::vector<Contact> contacts_;
  std::vector<std::unique_ptr<LocalMate>> mates_;
  std::vector<Segment> segments_;
  std::vector<ArenaView> arenas_;
  std::vector<bool> mapped_;
  std::string fault_;
};

}  // namespace muster
