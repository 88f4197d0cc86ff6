/* Compressed gradients with error feedback, in C: each process knows a part of the truth, t, and all walk to
 * its mean by gradients of which int8 sends a quarter. In the middle the residuals go through bytes, as
 * through a checkpoint.
 *
 *     ./compressed                     alone: a world of one
 *     mpirun -np 4 ./compressed        or srun --mpi=pmix */
#include <math.h>
#include <muster/muster.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(call)                                            \
  do {                                                         \
    if ((call) != MUSTER_OK) {                                 \
      fprintf(stderr, "%s: %s\n", #call, muster_last_error()); \
      return 1;                                                \
    }                                                          \
  } while (0)

enum { kCount = 100000, kSteps = 120 };
static float truth[kCount], weights[kCount], gradients[kCount], mean[kCount];

int main(void) {
  muster_comm* comm = NULL;
  CHECK(muster_comm_create(NULL, &comm));
  const int32_t rank = muster_comm_rank(comm);
  for (int i = 0; i < kCount; ++i) truth[i] = sinf((float)(i % 1000)) + (float)((i + rank) % 5);

  muster_residuals* residuals = NULL;
  CHECK(muster_residuals_create(comm, kCount, &residuals));
  muster_compression how = {sizeof how};
  how.codec = MUSTER_CODEC_INT8;
  for (how.step = 0; how.step < kSteps; ++how.step) {
    how.residuals = residuals;
    for (int i = 0; i < kCount; ++i) gradients[i] = weights[i] - truth[i];
    CHECK(muster_comm_all_reduce_compressed(comm, gradients, gradients, kCount, MUSTER_AVG, &how, NULL));
    CHECK(
        muster_residuals_commit(residuals)); /* this step counts: what it rounded off is added to the next */
    for (int i = 0; i < kCount; ++i) weights[i] -= 0.15F * gradients[i];

    if (how.step == kSteps / 2) {
      const size_t bytes = muster_residuals_bytes(residuals);
      void* saved = malloc(bytes);
      if (saved == NULL) return 1;
      CHECK(muster_residuals_export(residuals, saved, bytes));
      muster_residuals_destroy(residuals);
      CHECK(muster_residuals_import(saved, bytes, &residuals));
      free(saved);
    }
  }

  CHECK(muster_comm_all_reduce(comm, truth, mean, kCount, MUSTER_FLOAT32, MUSTER_AVG, NULL, NULL));
  float farthest = 0;
  for (int i = 0; i < kCount; ++i) farthest = fmaxf(farthest, fabsf(weights[i] - mean[i]));
  if (rank == 0)
    printf("%d weights on %d ranks: within %.4f of the mean after %d steps\n", (int)kCount,
           (int)muster_comm_size(comm), (double)farthest, (int)kSteps);
  muster_residuals_destroy(residuals);
  muster_comm_destroy(comm);
  return farthest < 0.02F ? 0 : 1;
}
