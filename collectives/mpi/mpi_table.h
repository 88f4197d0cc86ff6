/* The function table between libmuster and its run-time module libmuster_mpi.so. In C, so that it stays one;
 * version 1. Only called where the process runs the MPI that the module was built for, see mpi_library.h. All
 * calls on one communicator come from the thread that opened it. */
#ifndef MUSTER_COLLECTIVES_MPI_MPI_TABLE_H_
#define MUSTER_COLLECTIVES_MPI_MPI_TABLE_H_

#include <stddef.h>
#include <stdint.h>

#define MUSTER_MPI_TABLE_VERSION 1

enum muster_mpi_status {
  MUSTER_MPI_OK = 0,
  MUSTER_MPI_MISUSE = 1, /* MPI is not initialised, the communicator is none that can be used, … */
  MUSTER_MPI_LATE = 2,   /* not all ranks called it in time */
  MUSTER_MPI_FAILED = 3, /* MPI said no */
};

struct muster_mpi_comm;

struct muster_mpi_table {
  int version;
  /* Collective: a duplicate of *mpi_comm, an MPI_Comm. A muster_mpi_status, with a text in error. */
  int (*open)(const void* mpi_comm, double timeout_s, struct muster_mpi_comm** comm, char* error,
              size_t error_size);
  int (*rank)(const struct muster_mpi_comm* comm);
  int (*size)(const struct muster_mpi_comm* comm);
  /* Collective: everyone's bytes, one after the other, in rank order, into `all`, whose sizes are in `sizes`.
   * With `all` NULL only the sizes are exchanged. */
  int (*all_gather)(struct muster_mpi_comm* comm, const void* mine, int size, int* sizes, void* all,
                    double timeout_s, char* error, size_t error_size);
  /* Frees the duplicate, unless something went wrong with it: then it is left to MPI. */
  void (*close)(struct muster_mpi_comm* comm);
};

#endif
