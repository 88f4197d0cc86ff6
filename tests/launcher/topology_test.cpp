#include "launcher/topology.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "runtime/agent/binding.h"

namespace muster::launcher {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Sets one of hwloc's variables while it lives, and no other is set.
class Described {
 public:
  Described(const char* variable, const std::string& value) : variable_(variable) {
    unsetenv("HWLOC_SYNTHETIC");
    unsetenv("HWLOC_XMLFILE");
    setenv(variable, value.c_str(), 1);
  }
  ~Described() { unsetenv(variable_); }

 private:
  const char* variable_;
};

Topology synthetic(const std::string& description) {
  const Described described("HWLOC_SYNTHETIC", description);
  auto found = find_topology();
  EXPECT_TRUE(found.ok()) << found.error().message;
  return std::move(found).value();
}

Result<Topology> from_xml(const std::string& text) {
  std::string path = (std::filesystem::temp_directory_path() / "muster_topology_XXXXXX").string();
  const int file = mkstemp(path.data());
  EXPECT_GE(file, 0);
  close(file);
  std::ofstream(path) << text;
  const Described described("HWLOC_XMLFILE", path);
  auto found = find_topology();
  std::filesystem::remove(path);
  return found;
}

TEST(Topology, CoresHaveTheirThreadsAndPlaces) {
  const Topology found = synthetic("pack:2 numa:2 l3:1 core:3 pu:2");
  EXPECT_FALSE(found.is_this_machine);
  const auto& cores = found.machine.cores;
  ASSERT_EQ(cores.size(), 12U);
  EXPECT_EQ(placement::list_of(found.allowed), "0-23");
  EXPECT_THAT(cores[0].cpus, ElementsAre(0, 1));
  EXPECT_THAT(placement::packages_of(cores), ElementsAre(0, 1));
  EXPECT_THAT(placement::nodes_of(cores), ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(cores[11].package, 1U);
  EXPECT_EQ(cores[11].node, 3U);
  EXPECT_EQ(cores[11].cache, 3U);
  EXPECT_THAT(found.not_known, IsEmpty());
}

// Linux numbers the second threads of all cores after the first ones.
TEST(Topology, ThreadsGoByTheKernelsNumbers) {
  const Topology found = synthetic("core:2 pu:2(indexes=0,2,1,3)");
  ASSERT_EQ(found.machine.cores.size(), 2U);
  EXPECT_THAT(found.machine.cores[0].cpus, ElementsAre(0, 2));
  EXPECT_THAT(found.machine.cores[1].cpus, ElementsAre(1, 3));
}

TEST(Topology, WithoutCoresEachCpuCountsAsOne) {
  const Topology found = synthetic("numa:2 pu:4");
  EXPECT_EQ(found.machine.cores.size(), 8U);
  EXPECT_THAT(found.not_known, ElementsAre(HasSubstr("share a core")));
}

TEST(Topology, ThisMachineHasWhatThisProcessMayUse) {
  unsetenv("HWLOC_SYNTHETIC");
  unsetenv("HWLOC_XMLFILE");
  const auto found = find_topology();
  ASSERT_TRUE(found.ok()) << found.error().message;
  EXPECT_TRUE(found->is_this_machine);
  EXPECT_EQ(found->allowed, agent::own_cpus());
  EXPECT_EQ(placement::cpus_of(placement::allowed_cores(found->machine, found->allowed)), found->allowed);
}

// ---- devices: a machine of two packages as hwloc 2 writes it, with what is given beside the first, the
// second, and both

std::string package(int number, const std::string& devices) {
  const std::string sets = "cpuset=\"0x" + std::to_string(number + 1) + "\" complete_cpuset=\"0x" +
                           std::to_string(number + 1) + "\" nodeset=\"0x" + std::to_string(number + 1) +
                           "\" complete_nodeset=\"0x" + std::to_string(number + 1) + "\"";
  const auto object = [&, gp = 10 * number](const std::string& type, int at) {
    return "<object type=\"" + type + "\" os_index=\"" + std::to_string(number) + "\" " + sets +
           " gp_index=\"" + std::to_string(gp + at) + "\"";
  };
  return object("Package", 2) + ">" + object("NUMANode", 3) + " local_memory=\"1073741824\"/>" +
         object("Core", 4) + ">" + object("PU", 5) + "/></object>" + devices + "</object>";
}

std::string machine(const std::string& first, const std::string& second, const std::string& both) {
  return "<?xml version=\"1.0\" encoding=\"UTF-8\"?><!DOCTYPE topology SYSTEM \"hwloc2.dtd\"><topology "
         "version=\"2.0\">"
         "<object type=\"Machine\" os_index=\"0\" cpuset=\"0x3\" complete_cpuset=\"0x3\" "
         "allowed_cpuset=\"0x3\" "
         "nodeset=\"0x3\" complete_nodeset=\"0x3\" allowed_nodeset=\"0x3\" gp_index=\"1\">" +
         package(0, first) + package(1, second) + both + "</object></topology>";
}

// In a host bridge of its own. `kind` is PCI's: 0302 a 3D controller, 0300 VGA, 0200 Ethernet.
std::string pci(const std::string& bus, const std::string& kind, const std::string& vendor,
                const std::string& inside = "") {
  return "<object type=\"Bridge\" gp_index=\"1" + bus +
         "0\" bridge_type=\"0-1\" depth=\"0\" bridge_pci=\"0000:[" + bus + "-" + bus +
         "]\"><object type=\"PCIDev\" gp_index=\"1" + bus + "1\" pci_busid=\"0000:" + bus +
         ":00.0\" pci_type=\"" + kind + " [" + vendor + ":1db4] [0000:0000] a1\" pci_link_speed=\"0.0\">" +
         inside + "</object></object>";
}

std::string network(const std::string& name, const std::string& bus) {
  return "<object type=\"OSDev\" gp_index=\"1" + bus + "2\" name=\"" + name + "\" osdev_type=\"2\"/>";
}

TEST(Topology, GpusAreFoundInTheOrderOfTheirAddresses) {
  const auto found = from_xml(machine(pci("50", "0302", "10de"), pci("30", "0302", "10de"), ""));
  ASSERT_TRUE(found.ok()) << found.error().message;
  const auto& gpus = found->machine.gpus;
  ASSERT_EQ(gpus.size(), 2U);
  EXPECT_EQ(gpus[0].name, "0000:30:00.0");
  EXPECT_EQ(gpus[0].node, 1U);
  EXPECT_EQ(gpus[1].node, 0U);
}

TEST(Topology, AGpuBesideBothPackagesHasNoKnownPlace) {
  const auto found = from_xml(machine("", "", pci("30", "0302", "10de")));
  ASSERT_TRUE(found.ok()) << found.error().message;
  ASSERT_EQ(found->machine.gpus.size(), 1U);
  EXPECT_FALSE(found->machine.gpus[0].node.has_value());
  EXPECT_THAT(found->not_known, ElementsAre(HasSubstr("the NUMA node of GPU 0000:30:00.0")));
}

TEST(Topology, ABoardsOwnDisplayIsNoGpuAndVendorsDoNotMix) {
  const auto boards = from_xml(machine(pci("10", "0300", "1a03"), "", ""));
  ASSERT_TRUE(boards.ok()) << boards.error().message;
  EXPECT_THAT(boards->machine.gpus, IsEmpty());
  const auto mixed = from_xml(machine(pci("10", "0300", "1002") + pci("20", "0302", "10de"), "", ""));
  ASSERT_TRUE(mixed.ok()) << mixed.error().message;
  ASSERT_EQ(mixed->machine.gpus.size(), 1U);
  EXPECT_EQ(mixed->machine.gpus[0].name, "0000:20:00.0");
}

TEST(Topology, NetworkDevicesHaveTheirPlaces) {
  const auto found = from_xml(machine("", pci("40", "0200", "15b3", network("ib0", "40")), ""));
  ASSERT_TRUE(found.ok()) << found.error().message;
  ASSERT_EQ(found->machine.networks.size(), 1U);
  EXPECT_EQ(found->machine.networks[0].name, "ib0");
  EXPECT_EQ(found->machine.networks[0].node, 1U);
}

TEST(Topology, CoresOfUnequalSpeedAreOfTwoKinds) {
  std::string text = machine("", "", "");
  EXPECT_THAT(placement::kinds_of(from_xml(text).value().machine.cores), ElementsAre(0)) << "none are named";
  const std::string end = "</topology>";
  text.replace(text.size() - end.size(), end.size(),
               "<cpukind cpuset=\"0x1\" forced_efficiency=\"0\"/>"
               "<cpukind cpuset=\"0x2\" forced_efficiency=\"1\"/>" +
                   end);
  const auto found = from_xml(text);
  ASSERT_TRUE(found.ok()) << found.error().message;
  EXPECT_THAT(placement::kinds_of(found->machine.cores), ElementsAre(0, 1));
}

TEST(Topology, SaysThatHwlocCannotTell) {
  const auto found = from_xml(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?><!DOCTYPE topology SYSTEM \"hwloc2.dtd\">"
      "<topology version=\"2.0\"><object type=\"Bogus\"/></topology>");
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.error().code, ErrorCode::kEnvironment);
  EXPECT_THAT(found.error().message, HasSubstr("hwloc cannot load the topology"));
}

}  // namespace
}  // namespace muster::launcher
