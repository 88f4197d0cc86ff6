#include "collectives/node/local_link.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <span>

#include "runtime/base/random.h"

namespace muster {
namespace {

constexpr size_t kMaxStrangers = 1024;
constexpr size_t kMaxHandovers = 4096;  // which nobody has claimed yet
constexpr size_t kPassedMax = 3;        // descriptors with a hello: memory, arena, bell

// Of a rank to a mate of its group.
struct Hello {
  static constexpr uint32_t kMagic = 0x324c554dU;  // "MUL2": version 2
  uint32_t magic = kMagic;
  int32_t rank = 0;
  uint64_t nonce = 0;  // of the endpoint that is spoken to: from its contact
  Generation generation;
};

// Of an endpoint that hands memory over.
struct HandoverHello {
  static constexpr uint32_t kMagic = 0x3148554dU;  // "MUH1": version 1
  uint32_t magic = kMagic;
  uint32_t reserved = 0;
  uint64_t nonce = 0;  // as above
  uint64_t sender = 0;
  uint64_t tag = 0;
};

sockaddr_un address_of(const std::string& name, socklen_t& size) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t length = std::min(name.size(), sizeof address.sun_path - 1);
  std::memcpy(address.sun_path + 1, name.data(), length);
  size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
  return address;
}

// Some bytes, and descriptors beside them.
bool send_greeting(int fd, ByteSpan bytes, std::span<const int> descriptors) {
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kPassedMax * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
  std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
  return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == static_cast<ssize_t>(bytes.size());
}

bool send_hello(int fd, const Hello& hello, const Segment& memory, const Arena& arena, int bell) {
  const int fds[] = {memory.fd(), arena.fd(), bell};
  return send_greeting(fd, bytes_of(hello), fds);
}

struct Greeting {
  std::byte bytes[64];
  size_t size = 0;
  UniqueFd descriptors[kPassedMax];

  // False where it is not a T.
  template <typename T>
  bool read(T& value) const {
    if (size != sizeof value) return false;
    std::memcpy(&value, bytes, sizeof value);
    return value.magic == T::kMagic;
  }
};

enum class Received { kNothingYet, kGreeting, kBroken };

Received receive_greeting(int fd, Greeting& greeting) {
  iovec part{greeting.bytes, sizeof greeting.bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(kPassedMax * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return Received::kNothingYet;
  size_t taken = 0;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); got >= 0 && header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int passed = -1;
      std::memcpy(&passed, CMSG_DATA(header) + i * sizeof(int), sizeof passed);
      UniqueFd owner(passed);
      if (taken < kPassedMax) greeting.descriptors[taken++] = std::move(owner);
    }
  }
  greeting.size = got > 0 ? static_cast<size_t>(got) : 0;
  return got > 0 && (message.msg_flags & MSG_TRUNC) == 0 ? Received::kGreeting : Received::kBroken;
}

// False where the greeting is none, or lacks a descriptor.
bool take_hello(Greeting& greeting, Hello& hello, LocalMate& mate) {
  mate.memory = std::move(greeting.descriptors[0]);
  mate.arena = std::move(greeting.descriptors[1]);
  mate.bell = std::make_shared<UniqueFd>(std::move(greeting.descriptors[2]));
  return greeting.read(hello) && mate.memory && mate.arena && *mate.bell;
}

OwnFd open_socket() {
  return open_own([] { return socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); });
}

// Of a socket that listens; with errno.
OwnFd connect_to(const std::string& name) {
  socklen_t size = 0;
  const sockaddr_un address = address_of(name, size);
  OwnFd fd = open_socket();
  if (fd && connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0) return {};
  return fd;
}

UniqueFd spare_descriptor() { return UniqueFd(eventfd(0, EFD_CLOEXEC)); }

bool same_user(int fd) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

}  // namespace

Result<std::unique_ptr<LocalListener>> LocalListener::open(std::shared_ptr<Core> core, uint64_t nonce) {
  std::unique_ptr<LocalListener> listener(new LocalListener(std::move(core), nonce));
  listener->name_ = "muster-" + to_hex(random_bytes(16));
  socklen_t size = 0;
  const sockaddr_un address = address_of(listener->name_, size);
  listener->socket_ = open_socket();
  const int fd = listener->socket_.get();
  if (fd < 0 || bind(fd, reinterpret_cast<const sockaddr*>(&address), size) != 0 || listen(fd, 256) != 0)
    return Error{ErrorCode::kEnvironment, std::string("cannot listen on a local socket: ") + strerror(errno)};
  listener->spare_ = spare_descriptor();
  const std::lock_guard lock(listener->core_->mutex());
  listener->core_->watch(fd, listener.get());
  return listener;
}

LocalListener::~LocalListener() {
  const std::lock_guard lock(core_->mutex());
  for (const auto& [fd, owner] : strangers_) core_->unwatch(fd);
  for (const Unclaimed& one : handovers_) core_->unwatch(one.handover.connection.get());
  core_->unwatch(socket_.get());
}

void LocalListener::readable(int fd) {
  if (fd == socket_.get()) return accept_all();
  if (!drop_handover(fd)) read_hello(fd);
}

// Its sender gave up, or ended. False where this is no handover's connection.
bool LocalListener::drop_handover(int fd) {
  const auto found = std::ranges::find_if(
      handovers_, [fd](const Unclaimed& one) { return one.handover.connection.get() == fd; });
  if (found == handovers_.end()) return false;
  core_->unwatch(fd);
  handovers_.erase(found);
  return true;
}

void LocalListener::accept_all() {
  for (;;) {
    if (!spare_) spare_ = spare_descriptor();
    OwnFd accepted =
        open_own([&] { return accept4(socket_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC); });
    if (!accepted && (errno == EMFILE || errno == ENFILE) && refuse_one()) continue;
    if (!accepted) return;
    if (!same_user(accepted.get()) || strangers_.size() + arrivals_.size() >= kMaxStrangers) continue;
    const int fd = accepted.get();
    strangers_[fd] = std::move(accepted);
    core_->watch(fd, this);
  }
}

// With no descriptor left nobody can be accepted, and whoever came would keep the socket readable: it hears
// that it is refused, and does without shared memory.
bool LocalListener::refuse_one() {
  if (!spare_) return false;
  spare_.reset();
  const UniqueFd refused(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  return static_cast<bool>(refused);
}

void LocalListener::read_hello(int fd) {
  const auto found = strangers_.find(fd);
  if (found == strangers_.end()) return;
  Greeting greeting;
  const Received received = receive_greeting(fd, greeting);
  if (received == Received::kNothingYet) return;
  core_->unwatch(fd);
  OwnFd connection = std::move(found->second);
  strangers_.erase(found);
  if (received == Received::kBroken) return;
  if (HandoverHello hello; greeting.read(hello)) {
    if (hello.nonce != nonce_ || !greeting.descriptors[0] || handovers_.size() >= kMaxHandovers) return;
    handovers_.push_back(
        {hello.sender, hello.tag, {std::move(connection), std::move(greeting.descriptors[0])}});
    core_->watch_end(fd, this);
    core_->tell_waiters();
    return;
  }
  Hello hello;
  auto mate = std::make_unique<LocalMate>();
  if (!take_hello(greeting, hello, *mate) || hello.nonce != nonce_) return;
  mate->connection = std::move(connection);
  arrivals_.push_back({hello.generation, hello.rank, std::move(mate)});
  core_->tell_waiters();
}

std::optional<Handover> LocalListener::claim_handover(uint64_t sender, uint64_t tag) {
  const auto found = std::ranges::find_if(
      handovers_, [&](const Unclaimed& one) { return one.sender == sender && one.tag == tag; });
  if (found == handovers_.end()) return std::nullopt;
  core_->unwatch(found->handover.connection.get());
  Handover handover = std::move(found->handover);
  handovers_.erase(found);
  return handover;
}

std::unique_ptr<LocalMate> LocalListener::claim(const Generation& generation, int rank) {
  for (auto it = arrivals_.begin(); it != arrivals_.end(); ++it) {
    if (it->rank != rank || !(it->generation == generation)) continue;
    auto mate = std::move(it->mate);
    arrivals_.erase(it);
    return mate;
  }
  return nullptr;
}

void LocalListener::forget(const Generation& generation) {
  std::erase_if(arrivals_, [&](const Arrival& arrival) { return arrival.generation == generation; });
  std::erase_if(bells_, [](const auto& entry) { return entry.second.expired(); });
}

std::shared_ptr<const UniqueFd> LocalListener::share_bell(uint64_t nonce,
                                                          std::shared_ptr<const UniqueFd> passed) {
  std::weak_ptr<const UniqueFd>& known = bells_[nonce];
  if (auto bell = known.lock()) return bell;
  known = passed;
  return passed;
}

LocalExchange::LocalExchange(Core& core, LocalListener& listener, const Generation& generation, int rank,
                             std::vector<Contact> contacts)
    : core_(core),
      listener_(listener),
      generation_(generation),
      rank_(rank),
      contacts_(std::move(contacts)),
      mates_(contacts_.size()),
      segments_(contacts_.size()),
      arenas_(contacts_.size()),
      mapped_(contacts_.size(), false) {
  mapped_[static_cast<size_t>(rank)] = true;
}

// The lower rank connects and speaks first.
void LocalExchange::try_connect(size_t rank, const Segment& mine, const Arena& arena) {
  OwnFd fd = connect_to(contacts_[rank].local_socket);
  if (!fd) {
    if (errno == EAGAIN) return;  // its queue is full: again
    fault_ = "rank " + std::to_string(rank) + " is not reached on this node: " + strerror(errno);
    return;
  }
  const Hello hello{Hello::kMagic, rank_, contacts_[rank].nonce, generation_};
  if (!send_hello(fd.get(), hello, mine, arena, core_.bell())) {
    fault_ = "cannot pass memory to rank " + std::to_string(rank) + ": " + strerror(errno);
    return;
  }
  mates_[rank] = std::make_unique<LocalMate>();
  mates_[rank]->connection = std::move(fd);
}

void LocalExchange::try_reply(size_t rank) {
  LocalMate& mate = *mates_[rank];
  Greeting greeting;
  const Received received = receive_greeting(mate.connection.get(), greeting);
  if (received == Received::kNothingYet) return;
  Hello hello;
  const bool right = received == Received::kGreeting && take_hello(greeting, hello, mate) &&
                     hello.generation == generation_ && hello.rank == static_cast<int>(rank) &&
                     hello.nonce == contacts_[static_cast<size_t>(rank_)].nonce;
  right ? map(rank)
        : static_cast<void>(fault_ = "rank " + std::to_string(rank) + " closed its local connection");
}

void LocalExchange::map(size_t rank) {
  auto segment = Segment::map(mates_[rank]->memory.get(), generation_, static_cast<int>(rank),
                              static_cast<int>(mates_.size()));
  if (!segment) {
    fault_ = segment.error().message;
    return;
  }
  auto arena = ArenaView::map(mates_[rank]->arena.get());
  if (!arena) {
    fault_ = arena.error().message;
    return;
  }
  segments_[rank] = std::move(*segment);
  arenas_[rank] = std::move(*arena);
  mates_[rank]->bell = listener_.share_bell(contacts_[rank].nonce, std::move(mates_[rank]->bell));
  mates_[rank]->memory.reset();  // the mappings are enough
  mates_[rank]->arena.reset();
  mapped_[rank] = true;
}

bool LocalExchange::step(const Segment& mine, const Arena& arena) {
  for (size_t rank = 0; rank < contacts_.size() && fault_.empty(); ++rank) {
    if (mapped_[rank]) continue;
    if (static_cast<int>(rank) > rank_) {
      mates_[rank] == nullptr ? try_connect(rank, mine, arena) : try_reply(rank);
      continue;
    }
    mates_[rank] = listener_.claim(generation_, static_cast<int>(rank));
    if (mates_[rank] == nullptr) continue;
    const Hello hello{Hello::kMagic, rank_, contacts_[rank].nonce, generation_};
    if (!send_hello(mates_[rank]->connection.get(), hello, mine, arena, core_.bell())) {
      fault_ = "cannot pass memory to rank " + std::to_string(rank) + ": " + strerror(errno);
      break;
    }
    map(rank);
  }
  return !fault_.empty() || std::ranges::find(mapped_, false) == mapped_.end();
}

Status LocalExchange::run(const Segment& mine, const Arena& arena, Instant deadline,
                          std::vector<int>& missing) {
  // Replies come on connections that nobody watches, so this looks every millisecond; it is the setting up.
  bool complete = false;
  while (!complete && now() < deadline)
    complete = core_.drive_until([&] { return complete || (complete = step(mine, arena)); },
                                 std::min(deadline, now() + kMillisecond));
  if (complete && fault_.empty()) return ok();
  for (size_t rank = 0; rank < mapped_.size(); ++rank) {
    if (!mapped_[rank]) missing.push_back(static_cast<int>(rank));
  }
  return Error{ErrorCode::kEnvironment,
               fault_.empty() ? "not all ranks of the node came to exchange shared memory" : fault_};
}

Result<OwnFd> hand_over(const Contact& contact, uint64_t sender, uint64_t tag, int memory) {
  OwnFd fd = connect_to(contact.local_socket);
  const HandoverHello hello{HandoverHello::kMagic, 0, contact.nonce, sender, tag};
  const int fds[] = {memory};
  // The listener refuses other users without a word: both sides have to choose the same way.
  if (fd && !same_user(fd.get()))
    return Error{ErrorCode::kEnvironment, "the peer's process belongs to another user"};
  if (fd && send_greeting(fd.get(), bytes_of(hello), fds)) return fd;
  return Error{ErrorCode::kEnvironment,
               std::string("the peer is not reached on this node: ") + strerror(errno)};
}

}  // namespace muster
