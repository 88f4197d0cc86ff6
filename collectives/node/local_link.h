// How ranks find that they share a node: by trying. Each endpoint listens on an abstract Unix socket; ranks
// of a group connect in pairs and pass each other two memfds and the descriptor of a bell (an eventfd). The
// connection stays open while the group lives: its end tells of the mate's death at once.
//
// By the same sockets a process hands one memfd to a process of its node, outside any group: see feed.h.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collectives/contact.h"
#include "collectives/core.h"
#include "collectives/node/arena.h"
#include "collectives/node/segment.h"
#include "runtime/base/fork.h"

namespace muster {

// What one rank got from a mate.
struct LocalMate {
  OwnFd connection;
  UniqueFd memory;
  UniqueFd arena;
  std::shared_ptr<const UniqueFd> bell;  // one for all groups with that process
};

// A memfd that a process of this node handed over, and the connection that it came by.
struct Handover {
  OwnFd connection;
  UniqueFd memory;
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

  // The bell of the endpoint with that nonce: the one that another group has already, else what was passed.
  // REQUIRES the mutex.
  std::shared_ptr<const UniqueFd> share_bell(uint64_t nonce, std::shared_ptr<const UniqueFd> passed);

  // What the endpoint `sender` handed over under `tag`, if it came and did not give up. REQUIRES the mutex.
  std::optional<Handover> claim_handover(uint64_t sender, uint64_t tag);

  void readable(int fd) override;

 private:
  LocalListener(std::shared_ptr<Core> core, uint64_t nonce) : core_(std::move(core)), nonce_(nonce) {}
  void accept_all();
  bool refuse_one();
  void read_hello(int fd);
  bool drop_handover(int fd);

  struct Arrival {
    Generation generation;
    int rank;
    std::unique_ptr<LocalMate> mate;
  };
  struct Unclaimed {
    uint64_t sender;
    uint64_t tag;
    Handover handover;
  };

  const std::shared_ptr<Core> core_;
  const uint64_t nonce_;
  std::string name_;
  OwnFd socket_;
  UniqueFd spare_;                  // given up where there is no other descriptor
  std::map<int, OwnFd> strangers_;  // accepted, nothing said yet
  std::vector<Arrival> arrivals_;
  std::map<uint64_t, std::weak_ptr<const UniqueFd>> bells_;  // by nonce
  // Watched for the end of their connections, so that memory which nobody wants does not stay.
  std::vector<Unclaimed> handovers_;
};

// Hands `memory` to the endpoint at `contact`; `sender` is the nonce of this one. The connection that it went
// by: whoever claims it speaks there. Errors: kEnvironment where the peer is not reached on this node.
Result<OwnFd> hand_over(const Contact& contact, uint64_t sender, uint64_t tag, int memory);

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
