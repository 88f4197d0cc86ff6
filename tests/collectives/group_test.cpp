#include "collectives/group.h"

#include <gtest/gtest.h>

#include <thread>

#include "collectives/endpoint.h"
#include "collectives/transport/in_process.h"
#include "runtime/base/random.h"

namespace muster {
namespace {

TEST(Smoke, AllReduce) {
  for (int ranks = 1; ranks <= 5; ++ranks) {
    auto network = InProcessNetwork::create();
    std::vector<std::unique_ptr<Endpoint>> endpoints;
    GroupSpec spec;
    spec.generation = {random_nonce(), 1};
    spec.deadline = now() + 10 * kSecond;
    for (int r = 0; r < ranks; ++r) {
      auto endpoint = Endpoint::create({.transport = network->make_transport()});
      ASSERT_TRUE(endpoint.ok());
      endpoints.push_back(std::move(*endpoint));
      spec.contacts.push_back(endpoints.back()->contact());
      spec.nodes.push_back(static_cast<uint64_t>(r));
    }
    std::vector<std::thread> threads;
    for (int r = 0; r < ranks; ++r) {
      threads.emplace_back([&, r] {
        GroupSpec mine = spec;
        mine.rank = r;
        auto group = endpoints[static_cast<size_t>(r)]->form_group(mine);
        ASSERT_TRUE(group.ok()) << group.error().message;
        for (size_t count : {0, 1, 1000, 300000}) {
          std::vector<float> in(count, static_cast<float>(r + 1)), out(count, -1);
          const Status status = (*group)
                                    ->all_reduce(in.data(), out.data(), count, DType::kFloat32,
                                                 ReduceOp::kSum, now() + 10 * kSecond)
                                    .wait();
          ASSERT_TRUE(status.ok()) << status.error().message;
          for (float value : out) ASSERT_EQ(value, static_cast<float>(ranks * (ranks + 1) / 2));
        }
      });
    }
    for (auto& thread : threads) thread.join();
  }
}

}  // namespace
}  // namespace muster
