/* The collectives on their own, in C: no training run, no MPI. Each process holds a part of a vector that is
 * scaled to length one, while rank 0 collects how long each part was.
 *
 *     ./collectives                    alone: a world of one
 *     mpirun -np 4 ./collectives       or srun --mpi=pmix
 *
 * In an MPI program, muster_comm_from_mpi(&my_mpi_comm, NULL, &comm) takes the place of muster_comm_create. */
#include <math.h>
#include <muster/muster.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(call)                                          \
  do {                                                       \
    if ((call) != MUSTER_OK) {                               \
      fprintf(stderr, "%s: %s\n", #call, muster_last_error()); \
      return 1;                                              \
    }                                                        \
  } while (0)

int main(void) {
  muster_comm* comm = NULL;
  CHECK(muster_comm_create(NULL, &comm));
  const int32_t rank = muster_comm_rank(comm);
  const int32_t ranks = muster_comm_size(comm);

  /* Rank r has r + 1 million elements. On one node others read and write memory of this kind in place. */
  const int64_t count = 1000000 + rank;
  void* memory = NULL;
  CHECK(muster_comm_allocate(comm, (size_t)count * sizeof(double), &memory));
  double* part = memory;
  double squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    part[i] = 1.0 + (double)((i + rank) % 3);
    squares += part[i] * part[i];
  }

  /* In the background: goes on while the next operation is issued and waited for. */
  muster_work* gathering = NULL;
  int64_t* counts = malloc((size_t)ranks * sizeof *counts);
  if (counts == NULL) return 1;
  CHECK(muster_comm_gather(comm, &count, counts, 1, MUSTER_INT64, 0, NULL, &gathering));

  muster_call soon = {sizeof soon, 10, 0}; /* who is late for more than 10 s is named, and it fails */
  CHECK(muster_comm_all_reduce(comm, &squares, &squares, 1, MUSTER_FLOAT64, MUSTER_SUM, &soon, NULL));
  const double length = sqrt(squares);
  squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    part[i] /= length;
    squares += part[i] * part[i];
  }
  CHECK(muster_comm_all_reduce(comm, &squares, &squares, 1, MUSTER_FLOAT64, MUSTER_SUM, &soon, NULL));
  CHECK(muster_work_wait(gathering, 0));
  muster_work_destroy(gathering);

  if (rank == 0) {
    int64_t elements = 0;
    for (int32_t r = 0; r < ranks; ++r) elements += counts[r];
    printf("%lld elements on %d ranks over %s: length %.1f, then %.9f\n", (long long)elements, (int)ranks,
           muster_comm_medium(comm), length, sqrt(squares));
  }
  free(counts);
  muster_comm_destroy(comm);
  return fabs(squares - 1) < 1e-9 ? 0 : 1;
}
