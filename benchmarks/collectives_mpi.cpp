// A peer of bench_collectives: MPI's collectives, of whatever MPI this is compiled with.
//   mpirun -np RANKS bench_collectives_NAME CONTROL
#include <mpi.h>

#include "benchmarks/turns.h"

namespace {

class Mpi {
 public:
  float* buffer(bool output, size_t bytes, bool) {
    std::vector<float>& buffer = output ? out_ : in_;
    buffer.assign(bytes / sizeof(float) + 16, 0.0F);
    return buffer.data();
  }
  void run(bench::Op op, const float* in, float* out, size_t count) {
    const int n = static_cast<int>(count);
    switch (op) {
      case bench::Op::kAllReduce:
        MPI_Allreduce(in, out, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        return;
      case bench::Op::kReduceScatter:
        MPI_Reduce_scatter_block(in, out, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        return;
      case bench::Op::kAllGather:
        MPI_Allgather(in, n, MPI_FLOAT, out, n, MPI_FLOAT, MPI_COMM_WORLD);
        return;
      case bench::Op::kBroadcast:  // on the root `out` is `in`
        MPI_Bcast(out, n, MPI_FLOAT, 0, MPI_COMM_WORLD);
        return;
      default:
        MPI_Barrier(MPI_COMM_WORLD);
    }
  }
  void settle() {}

 private:
  std::vector<float> in_, out_;
};

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  if (argc != 2) return 2;
  int rank = 0;
  int ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  bench::Control& control = *bench::open_control(argv[1]);
  bench::pin(control, rank, ranks);
  Mpi library;
  bench::Participant(control, rank, ranks).serve(library);
  MPI_Finalize();
  return 0;
}
