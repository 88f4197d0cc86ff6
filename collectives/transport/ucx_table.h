/* The function table between libmuster and its run-time module libmuster_ucx.so. In C, so that it stays one;
 * version 1. All calls on one worker are made under one lock of the caller. Peers and transfers are named by
 * numbers; memory of a transfer stays valid until its end was reported, or the worker was closed. */
#ifndef MUSTER_COLLECTIVES_TRANSPORT_UCX_TABLE_H_
#define MUSTER_COLLECTIVES_TRANSPORT_UCX_TABLE_H_

#include <stddef.h>
#include <stdint.h>

#define MUSTER_UCX_TABLE_VERSION 1

enum muster_ucx_status {
  MUSTER_UCX_PENDING = 0,
  MUSTER_UCX_DONE = 1,
  MUSTER_UCX_TRUNCATED = 2,
  MUSTER_UCX_CANCELED = 3,
  MUSTER_UCX_FAILED = 4,
};

struct muster_ucx_events {
  void* user;
  void (*ended)(void* user, uint64_t id, int status, size_t bytes);
  void (*peer_failed)(void* user, uint32_t peer, const char* reason);
};

struct muster_ucx_config {
  const char* transports; /* as UCX_TLS */
  double keepalive_s;     /* how often an idle connection is probed */
};

struct muster_ucx_worker;

struct muster_ucx_table {
  int version;
  struct muster_ucx_worker* (*open)(const struct muster_ucx_config* config,
                                    const struct muster_ucx_events* events, char* error, size_t error_size);
  void (*close)(struct muster_ucx_worker* worker);
  /* Returns the size of the address; writes it where it fits. */
  size_t (*address)(struct muster_ucx_worker* worker, void* buffer, size_t capacity);
  /* 0, or -1 with a text in error. */
  int (*connect)(struct muster_ucx_worker* worker, const void* address, uint32_t peer, char* error,
                 size_t error_size);
  void (*disconnect)(struct muster_ucx_worker* worker, uint32_t peer);
  /* A muster_ucx_status; ended() is called where it is MUSTER_UCX_PENDING, perhaps before the
   * return, and not otherwise. */
  int (*send)(struct muster_ucx_worker* worker, uint32_t peer, uint64_t tag, const void* data, size_t size,
              uint64_t id);
  int (*receive)(struct muster_ucx_worker* worker, uint64_t tag, void* data, size_t size, uint64_t id);
  void (*cancel)(struct muster_ucx_worker* worker, uint64_t id);
  void (*discard)(struct muster_ucx_worker* worker, uint64_t value, uint64_t mask);
  unsigned (*progress)(struct muster_ucx_worker* worker);
  int (*event_fd)(struct muster_ucx_worker* worker);
  /* 1: the descriptor will tell; 0: there is something to do already. */
  int (*arm)(struct muster_ucx_worker* worker);
};

#endif
