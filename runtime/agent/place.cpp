#include "runtime/agent/place.h"

#include <cstdlib>
#include <optional>

namespace muster::agent {
namespace {

std::optional<uint32_t> number_in(const char* variable) {
  const char* text = std::getenv(variable);
  if (text == nullptr || *text < '0' || *text > '9') return std::nullopt;
  return static_cast<uint32_t>(std::strtoul(text, nullptr, 10));
}

}  // namespace

Place find_place() {
  Place place;
  place.pmix = std::getenv("PMIX_NAMESPACE") != nullptr;
  if (std::getenv("MUSTER_CONTROL_FD") != nullptr) {
    place.world = World::kElastic;
    place.launcher = Launcher::kMuster;
  } else if (const auto ompi = number_in("OMPI_COMM_WORLD_SIZE"); ompi.value_or(1) > 1) {
    place.world = World::kFixed;
    place.launcher = Launcher::kMpirun;
    place.rank = number_in("OMPI_COMM_WORLD_RANK").value_or(0);
    place.size = *ompi;
    place.local_rank = number_in("OMPI_COMM_WORLD_LOCAL_RANK").value_or(0);
    place.one_host = number_in("OMPI_COMM_WORLD_LOCAL_SIZE").value_or(0) == place.size;
    place.pmix = true;
  } else if (const auto tasks = number_in("SLURM_NTASKS");
             // Within an allocation but outside srun these are set too, without a step's task: SLURM_STEP_ID
             // tells.
             tasks.value_or(1) > 1 && number_in("SLURM_PROCID") && number_in("SLURM_STEP_ID")) {
    place.world = World::kFixed;
    place.launcher = Launcher::kSlurm;
    place.rank = *number_in("SLURM_PROCID");
    place.size = *tasks;
    place.local_rank = number_in("SLURM_LOCALID").value_or(0);
    place.one_host = number_in("SLURM_NNODES").value_or(0) == 1;
  } else if (const auto pmi = number_in("PMI_SIZE"); pmi.value_or(1) > 1 && number_in("PMI_RANK")) {
    place.world = World::kFixed;
    place.launcher = Launcher::kPmi;
    place.rank = *number_in("PMI_RANK");
    place.size = *pmi;
  }
  return place;
}

std::string Place::description() const {
  static constexpr const char* kBy[] = {"", "muster run", "mpirun", "srun", "MPICH's mpiexec"};
  return "rank " + std::to_string(rank) + " of " + std::to_string(size) + " by " +
         kBy[static_cast<int>(launcher)];
}

std::string advice_without_pmix(const Place& place) {
  const std::string count = std::to_string(place.size);
  if (place.launcher == Launcher::kPmi) {
    return "MPICH's mpiexec, or one of its kin, started " + count +
           " processes, which cannot meet without PMIx: use Open MPI's mpirun or srun --mpi=pmix, or start "
           "one `muster run` per node";
  }
  return "srun started " + count +
         " tasks without PMIx: run srun --mpi=pmix, or start one `muster run` per node";
}

}  // namespace muster::agent
