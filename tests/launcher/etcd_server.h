// A real etcd on the loopback address, of one member or of several, and what stands in for one that
// misbehaves.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "launcher/etcd.h"
#include "runtime/base/handle.h"

namespace muster::launcher {

inline uint16_t port_of(int socket) {
  sockaddr_in own{};
  socklen_t size = sizeof own;
  getsockname(socket, reinterpret_cast<sockaddr*>(&own), &size);
  return ntohs(own.sin_port);
}

inline sockaddr_in loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

inline UniqueFd listening_socket() {
  UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_in own = loopback(0);
  EXPECT_EQ(bind(socket.get(), reinterpret_cast<const sockaddr*>(&own), sizeof own), 0);
  EXPECT_EQ(listen(socket.get(), 16), 0);
  return socket;
}

inline uint16_t unused_port() { return port_of(listening_socket().get()); }

inline bool etcd_is_there() { return std::system("etcd --version > /dev/null 2>&1") == 0; }

class EtcdServer {
 public:
  struct Options {
    size_t members = 1;
    std::string scheme = "http";
    std::vector<std::string> more;  // arguments of each member
  };

  explicit EtcdServer(Options options) : options_(std::move(options)) {
    static int count = 0;
    folder_ = std::filesystem::temp_directory_path() /
              ("muster-etcd-test-" + std::to_string(getpid()) + "-" + std::to_string(count++));
    std::filesystem::remove_all(folder_);
    std::vector<std::string> peers;
    std::string cluster;
    for (size_t i = 0; i < options_.members; ++i) {
      ports_.push_back(unused_port());
      peers.push_back("http://127.0.0.1:" + std::to_string(unused_port()));
      cluster += (i == 0 ? "" : ",") + name_of(i) + "=" + peers[i];
    }
    for (size_t i = 0; i < options_.members; ++i) pids_.push_back(start(i, peers[i], cluster));
  }
  ~EtcdServer() {
    for (size_t i = 0; i < pids_.size(); ++i) kill_member(i);
    std::filesystem::remove_all(folder_);
  }
  EtcdServer(const EtcdServer&) = delete;
  EtcdServer& operator=(const EtcdServer&) = delete;

  agent::HostPort member(size_t i) const { return {"127.0.0.1", ports_[i]}; }
  std::vector<agent::HostPort> members() const {
    std::vector<agent::HostPort> all;
    for (size_t i = 0; i < ports_.size(); ++i) all.push_back(member(i));
    return all;
  }

  void kill_member(size_t i) {
    if (pids_[i] <= 0) return;
    kill(pids_[i], SIGKILL);
    waitpid(pids_[i], nullptr, 0);
    pids_[i] = 0;
  }

  // Whether each member, asked by itself, answers a read within the patience of a test.
  bool answers(EtcdAccess access) const {
    const std::atomic<bool> go_on = false;
    const Instant deadline = now() + 30 * kSecond;
    for (const agent::HostPort& each : members()) {
      access.members = {each};
      Etcd etcd(access);
      while (!etcd.with_prefix("/x/", go_on).ok()) {
        if (now() > deadline) return false;
        usleep(50'000);  // Reason for the wait: etcd says nothing when it is ready; it is asked again until
                         // it is
      }
    }
    return true;
  }

 private:
  static std::string name_of(size_t i) { return "m" + std::to_string(i); }

  pid_t start(size_t i, const std::string& peer, const std::string& cluster) const {
    const std::string client = options_.scheme + "://127.0.0.1:" + std::to_string(ports_[i]);
    std::vector<std::string> words{"etcd",
                                   "--name",
                                   name_of(i),
                                   "--data-dir",
                                   (folder_ / name_of(i)).string(),
                                   "--unsafe-no-fsync",
                                   "--listen-client-urls",
                                   client,
                                   "--advertise-client-urls",
                                   client,
                                   "--listen-peer-urls",
                                   peer,
                                   "--initial-advertise-peer-urls",
                                   peer,
                                   "--initial-cluster",
                                   cluster};
    words.insert(words.end(), options_.more.begin(), options_.more.end());
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    const pid_t pid = fork();
    if (pid != 0) return pid;
    (void)!freopen("/dev/null", "w", stdout);
    (void)!freopen("/dev/null", "w", stderr);
    execvp("etcd", arguments.data());
    _exit(127);
  }

  const Options options_;
  std::filesystem::path folder_;
  std::vector<uint16_t> ports_;
  std::vector<pid_t> pids_;
};

// Gives every caller the same answer.
class Parrot {
 public:
  Parrot(int status, std::string body)
      : answer_("HTTP/1.1 " + std::to_string(status) + " X\r\nContent-Length: " +
                std::to_string(body.size()) + "\r\nConnection: close\r\n\r\n" + body),
        thread_([this] { run(); }) {}
  ~Parrot() {
    shutdown(socket_.get(), SHUT_RDWR);
    thread_.join();
  }
  agent::HostPort place() const { return {"127.0.0.1", port_of(socket_.get())}; }
  int callers() const { return callers_; }

 private:
  void run() {
    while (true) {
      const UniqueFd caller(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!caller) return;
      ++callers_;
      char request[8192];
      (void)!read(caller.get(), request, sizeof request);
      (void)!write(caller.get(), answer_.data(), answer_.size());
    }
  }
  UniqueFd socket_ = listening_socket();
  const std::string answer_;
  std::atomic<int> callers_ = 0;
  std::thread thread_;
};

// Passes bytes on between callers and a server until it is mute: then it takes everything, says nothing, and
// closes nothing, as a firewall that has forgotten a connection.
class Relay {
 public:
  explicit Relay(agent::HostPort server) : server_(std::move(server)), thread_([this] { run(); }) {}
  ~Relay() {
    over_ = true;
    thread_.join();
  }
  agent::HostPort place() const { return {"127.0.0.1", port_of(socket_.get())}; }
  void be_mute(bool mute) { mute_ = mute; }
  int callers() const { return callers_; }

 private:
  struct Pair {
    UniqueFd from, to;
  };

  void run() {
    while (!over_) {
      std::vector<pollfd> waiting{{socket_.get(), POLLIN, 0}};
      for (const Pair& pair : pairs_) waiting.push_back({pair.from.get(), POLLIN, 0});
      poll(waiting.data(), waiting.size(), 5);
      for (size_t i = 1; i < waiting.size(); ++i)
        if (waiting[i].revents != 0) pass_on(pairs_[i - 1]);
      if (waiting[0].revents != 0) take_caller();
    }
  }

  void take_caller() {
    UniqueFd caller(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    UniqueFd server(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_in there = loopback(server_.port);
    if (!caller || connect(server.get(), reinterpret_cast<const sockaddr*>(&there), sizeof there) != 0)
      return;
    ++callers_;
    UniqueFd caller_too(dup(caller.get())), server_too(dup(server.get()));
    pairs_.push_back({std::move(caller), std::move(server)});
    pairs_.push_back({std::move(server_too), std::move(caller_too)});
  }

  void pass_on(Pair& pair) {
    char bytes[8192];
    const ssize_t got = read(pair.from.get(), bytes, sizeof bytes);
    if (got > 0 && !mute_) (void)!write(pair.to.get(), bytes, static_cast<size_t>(got));
    if (got > 0) return;
    if (!mute_) shutdown(pair.to.get(), SHUT_RDWR);
    pair.from.reset();  // poll passes over -1
  }

  const agent::HostPort server_;
  UniqueFd socket_ = listening_socket();
  std::vector<Pair> pairs_;
  std::atomic<bool> mute_ = false;
  std::atomic<int> callers_ = 0;
  std::atomic<bool> over_ = false;
  std::thread thread_;
};

}  // namespace muster::launcher
