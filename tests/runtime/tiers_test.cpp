#include "runtime/tiers.h"

#include <gtest/gtest.h>

namespace muster {
namespace {

TEST(Tiers, ANodesFolderIsBelowTheGivenOneWhateverItsName) {
  EXPECT_EQ(folder_of_node("/nvme/job", "gpu-07.rack_2"), "/nvme/job/node-gpu-07.rack_2");
  EXPECT_EQ(folder_of_node("/nvme", "../x"), "/nvme/node-..%2fx");
  EXPECT_EQ(folder_of_node("/nvme", "host/3"), "/nvme/node-host%2f3")
      << "of mpirun, where each rank is a node";
  EXPECT_NE(folder_of_node("/nvme", "a%2fb"), folder_of_node("/nvme", "a/b"));
}

TEST(Tiers, MembersOfANodeStandInRankOrder) {
  control::View view;
  view.members = {{11, 1, 0, "a", {}}, {21, 2, 0, "b", {}}, {22, 2, 1, "b", {}}};
  EXPECT_EQ(members_on(view, 2), (std::vector<control::MemberId>{21, 22}));
  EXPECT_TRUE(members_on(view, 3).empty());
}

}  // namespace
}  // namespace muster
