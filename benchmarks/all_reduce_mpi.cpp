// A peer's side of `scripts/bench all_reduce`: MPI_Allreduce of whatever MPI this was built with.
//   mpirun -np RANKS bench_all_reduce_mpi BYTES  prints as bench_all_reduce does.
#include <mpi.h>

#include <cstdio>
#include <cstdlib>

#include "benchmarks/all_reduce.h"

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  if (argc != 2) return 2;
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const auto bytes = static_cast<size_t>(std::atoll(argv[1]));
  std::vector<float> in(bytes / sizeof(float));
  std::vector<float> out(in.size());
  std::vector<int64_t> times;
  for (int round = 0; round < bench::repeats(bytes) + 5; ++round) {
    bench::fresh(in, round, rank);
    MPI_Barrier(MPI_COMM_WORLD);
    const int64_t began = bench::now_ns();
    MPI_Allreduce(in.data(), out.data(), static_cast<int>(in.size()), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    if (round >= 5) times.push_back(bench::now_ns() - began);
  }
  long long mine = bench::median(times);
  long long slowest = 0;
  MPI_Reduce(&mine, &slowest, 1, MPI_LONG_LONG, MPI_MAX, 0, MPI_COMM_WORLD);
  if (rank == 0) std::printf("%lld\n", slowest);
  MPI_Finalize();
  return 0;
}
