/* An MPI program that knows nothing of Muster, for comm.py: with libmuster_pmpi.so preloaded, what MPI_ gives
 * must be what PMPI_ gives. */
#include <dlfcn.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int rank, size, wrong;
static void same(const char* what, const void* a, const void* b, size_t bytes) {
  if (bytes > 0 && memcmp(a, b, bytes) != 0) {
    printf("FAILED: rank %d: %s differs\n", rank, what);
    wrong = 1;
  }
}
enum { N = 20000 };
static double d[N], x[N], y[N];
static int i32[N], ix[N * 8], iy[N * 8];
static void on(MPI_Comm comm) {
  int me, n;
  MPI_Comm_rank(comm, &me);
  MPI_Comm_size(comm, &n);
  for (int count = 0; count <= N; count = count * 7 + 1) {
    for (int i = 0; i < N; ++i) {
      d[i] = (double)((i * 31 + rank * 17 + count) % 13 - 6);
      i32[i] = (int)d[i] * 1001;
    }
    MPI_Allreduce(d, x, count, MPI_DOUBLE, MPI_SUM, comm);
    PMPI_Allreduce(d, y, count, MPI_DOUBLE, MPI_SUM, comm);
    same("allreduce", x, y, sizeof(double) * (size_t)count);
    memcpy(x, d, sizeof d);
    MPI_Allreduce(MPI_IN_PLACE, x, count, MPI_DOUBLE, MPI_MAX, comm);
    PMPI_Allreduce(d, y, count, MPI_DOUBLE, MPI_MAX, comm);
    same("allreduce in place", x, y, sizeof(double) * (size_t)count);
    MPI_Allreduce(i32, ix, count, MPI_INT, MPI_BOR, comm);
    PMPI_Allreduce(i32, iy, count, MPI_INT, MPI_BOR, comm);
    same("allreduce bor", ix, iy, sizeof(int) * (size_t)count);
    int root = count % n;
    memset(x, 0, sizeof x);
    memset(y, 0, sizeof y);
    MPI_Reduce(d, x, count, MPI_DOUBLE, MPI_MIN, root, comm);
    PMPI_Reduce(d, y, count, MPI_DOUBLE, MPI_MIN, root, comm);
    same("reduce", x, y, sizeof x);
    memcpy(ix, i32, sizeof i32);
    memcpy(iy, i32, sizeof i32);
    MPI_Bcast(ix, count, MPI_INT, root, comm);
    PMPI_Bcast(iy, count, MPI_INT, root, comm);
    same("bcast", ix, iy, sizeof i32);
    MPI_Datatype strided; /* of every other one */
    MPI_Type_vector(count / 2, 1, 2, MPI_INT, &strided);
    MPI_Type_commit(&strided);
    memcpy(ix, i32, sizeof i32);
    memcpy(iy, i32, sizeof i32);
    MPI_Bcast(ix, 1, strided, root, comm);
    PMPI_Bcast(iy, 1, strided, root, comm);
    same("bcast of a vector", ix, iy, sizeof i32);
    MPI_Type_free(&strided);
    int each = count / 8;
    MPI_Allgather(i32, each, MPI_INT, ix, each, MPI_INT, comm);
    PMPI_Allgather(i32, each, MPI_INT, iy, each, MPI_INT, comm);
    same("allgather", ix, iy, sizeof(int) * (size_t)(each * n));
    memcpy(ix, i32, sizeof i32);
    memcpy(iy, i32, sizeof i32);
    MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, ix, each, MPI_INT, comm);
    PMPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, iy, each, MPI_INT, comm);
    same("allgather in place", ix, iy, sizeof(int) * (size_t)(each * n));
    MPI_Barrier(comm);
  }
}
int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  on(MPI_COMM_WORLD);
  MPI_Comm half;
  MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half);
  on(half);
  on(MPI_COMM_WORLD);
  on(MPI_COMM_SELF);
  MPI_Comm_free(&half);
  /* A large message whose sender is in a collective already: it needs MPI's progress there. */
  static int big[4 << 20];
  MPI_Request request = MPI_REQUEST_NULL;
  if (rank == 0 && size > 1) MPI_Isend(big, 4 << 20, MPI_INT, 1, 3, MPI_COMM_WORLD, &request);
  if (rank == 1) MPI_Recv(big, 4 << 20, MPI_INT, 0, 3, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Wait(&request, MPI_STATUS_IGNORE);
  uint64_t (*done)(void) = (uint64_t(*)(void))dlsym(RTLD_DEFAULT, "muster_pmpi_operations");
  printf("rank %d of %d: %s, %llu operations by Muster\n", rank, size, wrong ? "FAILED" : "the same",
         done ? (unsigned long long)done() : 0ULL);
  MPI_Finalize();
  return wrong;
}
