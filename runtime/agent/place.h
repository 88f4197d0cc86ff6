// What started this process, and its place among those that were started with it, by the variables that
// launchers set. Reads the environment; asks nobody.
#pragma once

#include <cstdint>
#include <string>

namespace muster::agent {

enum class World : uint8_t { kElastic, kFixed, kAlone };
enum class Launcher : uint8_t { kNone, kMuster, kMpirun, kSlurm, kPmi };  // kPmi: MPICH's mpiexec and its kin

struct Place {
  World world = World::kAlone;
  Launcher launcher = Launcher::kNone;
  uint32_t rank = 0;
  uint32_t size = 1;
  uint32_t local_rank = 0;
  bool one_host = false;  // known to be; kFixed only
  bool pmix = false;      // a PMIx server is said to be there

  // "rank 1 of 4 by mpirun"
  std::string description() const;
};

Place find_place();

// What to do instead, for a launcher that offers no way to meet.
std::string advice_without_pmix(const Place& place);

}  // namespace muster::agent
