// run_world(): the same body on every rank of a group, over each way that ranks can talk.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "collectives/endpoint.h"
#include "collectives/transport/in_process.h"
#include "collectives/transport/ucx.h"
#include "runtime/base/random.h"
#include "tests/support/spawn.h"

namespace muster {

enum class Medium {
  kInProcess,       // threads, in-process transport
  kNodeThreads,     // threads with an endpoint each, shared memory, no transport
  kNodesThreads,    // threads, in-process transport, shared memory within each of two nodes
  kNodeProcesses,   // processes, shared memory, no transport
  kUcxProcesses,    // processes, UCX over loopback TCP
  kBothProcesses,   // processes, shared memory agreed upon over UCX
  kNodesProcesses,  // processes, UCX, shared memory within each of two nodes
};

inline const char* name_of(Medium medium) {
  static constexpr const char* kNames[] = {"InProcess",    "NodeThreads",   "NodesThreads",  "NodeProcesses",
                                           "UcxProcesses", "BothProcesses", "NodesProcesses"};
  return kNames[static_cast<int>(medium)];
}

inline bool by_processes(Medium medium) { return medium >= Medium::kNodeProcesses; }
inline bool on_nodes(Medium medium) {
  return medium == Medium::kNodesThreads || medium == Medium::kNodesProcesses;
}

// One rank's view of the test.
struct Member {
  int rank;
  int size;
  Endpoint& endpoint;
  Group& group;
  GroupSpec spec;
  std::function<void(const std::string&)> fail;
  testing_support::Rank* process = nullptr;  // with processes
  InProcessNetwork* network = nullptr;       // with the in-process transport

  Instant soon() const { return now() + 20 * kSecond; }
  void expect(bool condition, const std::string& what) const {
    if (!condition) fail(what);
  }
  void expect_ok(const Status& status, const std::string& what) const {
    if (!status.ok()) fail(what + ": " + status.error().message);
  }
};

struct WorldOptions {
  std::string algorithm;
  // Around each in-process transport.
  std::function<std::unique_ptr<Transport>(std::unique_ptr<Transport>)> wrap;
  testing_support::SpawnOptions spawn;
  std::vector<uint64_t> nodes;  // of each rank; empty: all are on one, or in turn on the two
};

inline std::vector<uint64_t> nodes_of(Medium medium, const WorldOptions& options, int ranks) {
  if (!options.nodes.empty()) return options.nodes;
  std::vector<uint64_t> nodes(static_cast<size_t>(ranks), 7);
  for (size_t rank = 1; on_nodes(medium) && rank < nodes.size(); rank += 2) nodes[rank] = 8;
  return nodes;
}

inline Result<std::unique_ptr<Endpoint>> open_endpoint(Medium medium, InProcessNetwork* network,
                                                       const WorldOptions& world) {
  EndpointOptions options;
  options.algorithm = world.algorithm;
  if (medium == Medium::kInProcess || medium == Medium::kNodesThreads) {
    options.transport = network->make_transport();
    if (world.wrap) options.transport = world.wrap(std::move(options.transport));
  }
  if (by_processes(medium) && medium != Medium::kNodeProcesses) {
    MUSTER_ASSIGN(options.transport, open_ucx());
  }
  options.shared_memory = medium != Medium::kInProcess && medium != Medium::kUcxProcesses;
  return Endpoint::create(std::move(options));
}

inline void run_member(Medium medium, Endpoint& endpoint, const GroupSpec& spec,
                       const std::function<void(const std::string&)>& fail,
                       const std::function<void(Member&)>& body, testing_support::Rank* process,
                       InProcessNetwork* network) {
  auto group = endpoint.form_group(spec);
  if (!group.ok()) return fail("form_group: " + group.error().message);
  const bool expects_memory =
      medium == Medium::kNodeThreads || medium == Medium::kNodeProcesses || medium == Medium::kBothProcesses;
  if (spec.contacts.size() > 1 && ((*group)->medium() == "shared memory") != expects_memory)
    fail("the group talks over " + std::string((*group)->medium()));
  Member member{spec.rank, static_cast<int>(spec.contacts.size()), endpoint, **group, spec, fail, process,
                network};
  body(member);
}

inline void run_threads(Medium medium, int ranks, const std::function<void(Member&)>& body,
                        const WorldOptions& options) {
  const auto network = InProcessNetwork::create();
  std::vector<std::unique_ptr<Endpoint>> endpoints;
  GroupSpec spec;
  spec.generation = {random_nonce(), 1};
  spec.deadline = now() + 30 * kSecond;
  spec.nodes = nodes_of(medium, options, ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    auto endpoint = open_endpoint(medium, network.get(), options);
    ASSERT_TRUE(endpoint.ok()) << endpoint.error().message;
    endpoints.push_back(std::move(*endpoint));
    spec.contacts.push_back(endpoints.back()->contact());
  }
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      GroupSpec mine = spec;
      mine.rank = rank;
      const auto fail = [&, rank](const std::string& what) {
        const std::lock_guard lock(mutex);
        ADD_FAILURE() << "rank " << rank << ": " << what;
      };
      run_member(medium, *endpoints[static_cast<size_t>(rank)], mine, fail, body, nullptr, network.get());
    });
  }
  for (std::thread& thread : threads) thread.join();
}

inline void run_processes(Medium medium, int ranks, const std::function<void(Member&)>& body,
                          const WorldOptions& options) {
  const uint64_t nonce = random_nonce();
  testing_support::spawn(
      ranks,
      [&](testing_support::Rank& rank) {
        const auto fail = [&rank](const std::string& what) { rank.fail(what); };
        auto endpoint = open_endpoint(medium, nullptr, options);
        if (!endpoint.ok()) return fail("endpoint: " + endpoint.error().message);
        GroupSpec spec;
        spec.generation = {nonce, 1};
        spec.deadline = now() + 30 * kSecond;
        spec.nodes = nodes_of(medium, options, ranks);
        spec.rank = rank.rank();
        spec.contacts = rank.exchange((*endpoint)->contact());
        run_member(medium, **endpoint, spec, fail, body, &rank, nullptr);
      },
      options.spawn);
}

inline void run_world(Medium medium, int ranks, const std::function<void(Member&)>& body,
                      const WorldOptions& options = {}) {
  by_processes(medium) ? run_processes(medium, ranks, body, options)
                       : run_threads(medium, ranks, body, options);
}

}  // namespace muster
