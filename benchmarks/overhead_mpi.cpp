// The peer of `scripts/bench overhead`: the loop of recovery_worker.cpp with MPI_Allreduce, of whatever MPI
// this is compiled with. Rank 0 prints the median time of a step in nanoseconds.
//   mpirun -np RANKS overhead_NAME UPDATED_BYTES SLEEP_MS STEPS
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  if (argc != 4) return 2;
  const size_t count = std::strtoull(argv[1], nullptr, 10) / sizeof(float);
  const auto computing = std::chrono::milliseconds(std::atoi(argv[2]));
  const int steps = std::atoi(argv[3]);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  std::vector<float> weights(count), gradient(count), reduced(count);
  std::vector<double> times;
  for (int i = 0; i < steps; ++i) {
    const auto began = std::chrono::steady_clock::now();
    std::fill(gradient.begin(), gradient.end(), 1e-3F);
    std::this_thread::sleep_for(computing);  // stands for the computing of a step
    MPI_Allreduce(gradient.data(), reduced.data(), static_cast<int>(count), MPI_FLOAT, MPI_SUM,
                  MPI_COMM_WORLD);
    for (size_t k = 0; k < count; ++k) weights[k] -= reduced[k] / 8;
    times.push_back(
        std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - began).count());
  }
  std::nth_element(times.begin(), times.begin() + steps / 2, times.end());
  if (rank == 0) std::printf("%.0f\n", times[static_cast<size_t>(steps) / 2]);
  MPI_Finalize();
  return 0;
}
