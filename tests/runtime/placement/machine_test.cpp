#include "runtime/placement/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/runtime/placement/machines.h"

namespace muster::placement {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(Machine, AllowedCoresKeepOnlyAllowedCpus) {
  const Machine machine = machine_of({1, 1, 1, 4, 2});  // core 1 has cpus 1 and 5
  const auto cores = allowed_cores(machine, {1, 2, 6});
  ASSERT_EQ(cores.size(), 2U);
  EXPECT_THAT(cores[0].cpus, ElementsAre(1));
  EXPECT_THAT(cores[1].cpus, ElementsAre(2, 6));
  EXPECT_THAT(allowed_cores(machine, {99}), IsEmpty());
}

TEST(Machine, ListsAreWrittenAsTheKernelDoes) {
  EXPECT_EQ(list_of({}), "");
  EXPECT_EQ(list_of({7}), "7");
  EXPECT_EQ(list_of({0, 1, 2, 5, 8, 9}), "0-2,5,8-9");
}

using Seen = std::vector<std::optional<uint32_t>>;

TEST(Machine, VisibleGpusAreInTheProgramsOrder) {
  Machine machine = machine_of({});
  for (int i = 0; i < 4; ++i) add_gpu(machine, 0);
  const auto seen = [&](const char* visible) { return visible_gpus(machine.gpus, visible); };
  EXPECT_EQ(seen(nullptr), (Seen{0, 1, 2, 3}));
  EXPECT_EQ(seen(""), Seen{});
  EXPECT_EQ(seen("3,1"), (Seen{3, 1}));
  EXPECT_EQ(seen("2,-1,3"), (Seen{2}));  // as CUDA: what comes after a number without a GPU is not seen
  EXPECT_EQ(seen("2,9,3"), (Seen{2}));
  EXPECT_EQ(seen("GPU-8932f937,1"), (Seen{std::nullopt, 1}));
  EXPECT_EQ(seen("none"), Seen{});
  EXPECT_EQ(seen(",1"), Seen{});
}

TEST(Machine, NearestNetworksAreThoseOfTheNodeFirst) {
  Machine machine = machine_of({2, 1, 1, 4, 1});
  EXPECT_THAT(nearest_networks(machine, 0), IsEmpty());
  machine.networks = {{"ib0", 0}, {"ib1", 1}};
  EXPECT_THAT(nearest_networks(machine, 1), ElementsAre("ib1"));
  EXPECT_THAT(nearest_networks(machine, 7), ElementsAre("ib0", "ib1"));
  machine.networks.push_back({"eth0", std::nullopt});
  EXPECT_THAT(nearest_networks(machine, 7), ElementsAre("eth0"));
}

}  // namespace
}  // namespace muster::placement
