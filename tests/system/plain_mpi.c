/* An MPI program that knows nothing of Muster, for comm.py: with libmuster_pmpi.so preloaded, what MPI_ gives
 * must be what PMPI_ gives, or what is computed here; and Muster must have done what the library says it
 * does.
 */
#include <dlfcn.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int rank, size, wrong;
static void same(const char* what, const void* a, const void* b, size_t bytes) {
  if (bytes > 0 && memcmp(a, b, bytes) != 0) {
    printf("FAILED: rank %d: %s differs\n", rank, what);
    wrong = 1;
  }
}
/* Operations that Muster has done since the last call; 0 where it is not there. */
static uint64_t (*operations)(void);
static int by_muster(void) {
  static uint64_t before;
  uint64_t now = operations ? operations() : 0;
  int count = (int)(now - before);
  before = now;
  return count;
}
/* One operation on `ranks` ranks is Muster's, where it is there and has anybody to talk to. */
static void require_muster(const char* what, int ranks) {
  int count = by_muster(), due = operations && ranks > 1;
  if (count == due) return;
  printf("FAILED: rank %d: Muster did %d of one %s\n", rank, count, what);
  wrong = 1;
}
static void require_mpi(const char* what) { require_muster(what, 1); }

/* An operation blocks, or is a request that is waited for in one of these ways. */
enum { BLOCKS, WAIT, WAITALL, WAITANY, WAITSOME, TEST, TESTALL, TESTANY, TESTSOME, GET_STATUS, WAYS };
static int next_way(void) {
  static int way;
  return way = way + 1 < WAYS ? way + 1 : WAIT;
}
#define CALL(blocking, nonblocking, ...) \
  (way == BLOCKS ? MPI_##blocking(__VA_ARGS__) : MPI_##nonblocking(__VA_ARGS__, &request))
/* Among requests of MPI's own, of which one is none. */
static void finish(int way, MPI_Request* request) {
  enum { ALL = 4 };
  int sent = 7, got = 0, flag = 0, some = 0, index = 0, indices[ALL];
  MPI_Request all[ALL] = {MPI_REQUEST_NULL, *request, MPI_REQUEST_NULL, MPI_REQUEST_NULL};
  MPI_Status status;
  if (way == BLOCKS) return;
  MPI_Isend(&sent, 1, MPI_INT, 0, way, MPI_COMM_SELF, &all[0]);
  MPI_Irecv(&got, 1, MPI_INT, 0, way, MPI_COMM_SELF, &all[2]);
  switch (way) {
    case WAIT:
      MPI_Wait(&all[1], &status);
      break;
    case WAITALL:
      MPI_Waitall(ALL, all, MPI_STATUSES_IGNORE);
      break;
    case WAITANY:
      while (all[1] != MPI_REQUEST_NULL) MPI_Waitany(ALL, all, &index, &status);
      break;
    case WAITSOME:
      while (all[1] != MPI_REQUEST_NULL) MPI_Waitsome(ALL, all, &some, indices, MPI_STATUSES_IGNORE);
      break;
    case TEST:
      while (!flag) MPI_Test(&all[1], &flag, MPI_STATUS_IGNORE);
      break;
    case TESTALL:
      while (!flag) MPI_Testall(ALL, all, &flag, MPI_STATUSES_IGNORE);
      break;
    case TESTANY:
      while (all[1] != MPI_REQUEST_NULL) MPI_Testany(ALL, all, &index, &flag, &status);
      break;
    case TESTSOME:
      while (all[1] != MPI_REQUEST_NULL) MPI_Testsome(ALL, all, &some, indices, MPI_STATUSES_IGNORE);
      break;
    default:
      while (!flag) MPI_Request_get_status(all[1], &flag, &status);
  }
  *request = all[1];
  MPI_Waitall(ALL, all, MPI_STATUSES_IGNORE);
  if (got == sent && all[1] == MPI_REQUEST_NULL) return;
  printf("FAILED: rank %d: waiting in way %d\n", rank, way);
  wrong = 1;
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

/* ---- what moves data, in several layouts. Three types of the same signature: an int; every other one of
 * four; two, the second first. Ranks use different ones in one operation. */
enum { PLAIN, STRIDED, SWAPPED, LAYOUTS };
static MPI_Datatype types[LAYOUTS];
static const int widths[LAYOUTS] = {1, 4, 2}; /* in ints */
static void make_types(void) {
  MPI_Datatype parts;
  int swapped[2] = {1, 0};
  types[PLAIN] = MPI_INT;
  MPI_Type_vector(2, 1, 2, MPI_INT, &parts);
  MPI_Type_create_resized(parts, 0, 4 * sizeof(int), &types[STRIDED]);
  MPI_Type_free(&parts);
  MPI_Type_create_indexed_block(2, 1, swapped, MPI_INT, &types[SWAPPED]);
  MPI_Type_commit(&types[STRIDED]);
  MPI_Type_commit(&types[SWAPPED]);
}
static int elements(int layout, int ints) { return layout == PLAIN ? ints : ints / 2; }
/* Where the i-th int of a block lies that begins at element `first`. */
static int place(int layout, int first, int i) {
  int within = layout == PLAIN ? i : layout == STRIDED ? i / 2 * 4 + i % 2 * 2 : i / 2 * 2 + 1 - i % 2;
  return first * widths[layout] + within;
}

enum { GATHER, GATHERV, ALLGATHER, ALLGATHERV, SCATTER, SCATTERV, ALLTOALL, ALLTOALLV, BCAST, KINDS };
static const char* const names[KINDS] = {"gather",   "gatherv",  "allgather", "allgatherv", "scatter",
                                         "scatterv", "alltoall", "alltoallv", "bcast"};
enum { RANKS = 8, INTS = 1 << 16, EMPTY = -7 };
typedef struct {
  int kind, ints, root, in_place, n, me;
} Case;
static int is_even(const Case* c) {
  return c->kind == GATHER || c->kind == ALLGATHER || c->kind == SCATTER || c->kind == ALLTOALL;
}
/* The int `i` that `from` has for `to`, and how many there are: some have nothing. In place an alltoallv
 * gives each what it takes. */
static int given(const Case* c, int from, int to, int i) {
  return from * 1000000 +
         (c->kind == ALLTOALL || c->kind == ALLTOALLV || c->kind == SCATTERV || c->kind == SCATTER
              ? to * 100000
              : 0) +
         i;
}
static int length(const Case* c, int from, int to) {
  if (is_even(c) || c->kind == BCAST) return c->ints;
  int mix = c->kind == GATHERV || c->kind == ALLGATHERV ? from
            : c->kind == SCATTERV                       ? to
            : c->in_place                               ? from + to
                                                        : 2 * from + to;
  return mix % 3 == 1 ? 0 : c->ints / (1 + mix % 4) / 2 * 2;
}
/* Blocks in a buffer: one after the other, or, where the operation can, from the last to the first with gaps.
 */
typedef struct {
  int data[INTS], layout, counts[RANKS], firsts[RANKS];
} Blocks;
static void lay(Blocks* b, const Case* c, int layout, int receives, int gaps) {
  int next = 0;
  for (int i = 0; i < INTS; ++i) b->data[i] = EMPTY;
  b->layout = layout;
  for (int k = 0; k < c->n; ++k) {
    int peer = gaps && !is_even(c) ? c->n - 1 - k : k;
    b->counts[peer] = elements(layout, receives ? length(c, peer, c->me) : length(c, c->me, peer));
    b->firsts[peer] = next;
    next += b->counts[peer] + (gaps && !is_even(c));
  }
}
static void put(Blocks* b, const Case* c, int block, int from, int to) {
  for (int i = 0; i < length(c, from, to); ++i)
    b->data[place(b->layout, b->firsts[block], i)] = given(c, from, to, i);
}
static Blocks in, out, due;
static void moves(const Case* c, MPI_Comm comm, int shift, int gaps, int way) {
  const int gathers = c->kind <= ALLGATHERV, scatters = c->kind == SCATTER || c->kind == SCATTERV;
  const int to_root = c->kind == GATHER || c->kind == GATHERV, exchanges = !gathers && !scatters;
  const int is_root = c->me == c->root, me = c->me, n = c->n;
  const int in_place = c->in_place && (exchanges || is_root || !(to_root || scatters));
  /* Open MPI 4.1 by itself chooses how to gather by the sizes of local types, and hangs where they differ. */
  const int mine = operations ? me + shift : shift;
  lay(&in, c, mine % LAYOUTS, 0, gaps);
  lay(&out, c, (mine + 1) % LAYOUTS, 1, gaps);
  if (gathers) in.firsts[0] = 0, put(&in, c, 0, me, me);
  for (int to = 0; to < n && !gathers && (is_root || !scatters); ++to) put(&in, c, to, me, to);
  if (scatters) out.counts[0] = elements(out.layout, length(c, c->root, me)), out.firsts[0] = 0;
  /* Where it is in place, what goes out lies where the result will. */
  for (int to = 0; to < n && in_place; ++to)
    if (exchanges || (gathers && to == me)) put(&out, c, to, me, to);
  due = out;
  for (int from = 0; from < n; ++from)
    if (exchanges || (gathers && (is_root || !to_root))) put(&due, c, from, from, me);
  if (scatters && !in_place) put(&due, c, 0, c->root, me);
  Blocks const before = in;
  const int own = elements(in.layout, length(c, me, me));
  const void* from = in_place && !scatters ? MPI_IN_PLACE : in.data;
  void* to = in_place && scatters ? MPI_IN_PLACE : out.data;
  MPI_Datatype const it = types[in.layout], ot = types[out.layout];
  MPI_Request request = MPI_REQUEST_NULL;
  by_muster();
  switch (c->kind) {
    case GATHER:
      CALL(Gather, Igather, from, own, it, to, is_root ? out.counts[0] : -1, is_root ? ot : MPI_DATATYPE_NULL,
           c->root, comm);
      break;
    case GATHERV:
      CALL(Gatherv, Igatherv, from, own, it, to, is_root ? out.counts : NULL, out.firsts,
           is_root ? ot : MPI_DATATYPE_NULL, c->root, comm);
      break;
    case ALLGATHER:
      CALL(Allgather, Iallgather, from, own, it, to, out.counts[0], ot, comm);
      break;
    case ALLGATHERV:
      CALL(Allgatherv, Iallgatherv, from, own, it, to, out.counts, out.firsts, ot, comm);
      break;
    case SCATTER:
      CALL(Scatter, Iscatter, from, is_root ? in.counts[0] : -1, is_root ? it : MPI_DATATYPE_NULL, to,
           out.counts[0], ot, c->root, comm);
      break;
    case SCATTERV:
      CALL(Scatterv, Iscatterv, from, is_root ? in.counts : NULL, in.firsts, is_root ? it : MPI_DATATYPE_NULL,
           to, out.counts[0], ot, c->root, comm);
      break;
    case ALLTOALL:
      CALL(Alltoall, Ialltoall, from, in.counts[0], it, to, out.counts[0], ot, comm);
      break;
    case ALLTOALLV:
      CALL(Alltoallv, Ialltoallv, from, in.counts, in.firsts, it, to, out.counts, out.firsts, ot, comm);
      break;
    default:
      break;
  }
  finish(way, &request);
  require_muster(names[c->kind], n);
  char what[120];
  snprintf(what, sizeof what, "%s of %d ints, root %d, layouts %d and %d%s%s, way %d", names[c->kind],
           c->ints, c->root, in.layout, out.layout, gaps ? ", gaps" : "", in_place ? ", in place" : "", way);
  same(what, out.data, due.data, sizeof due.data);
  same(what, in.data, before.data, sizeof in.data);
}
static void broadcasts(const Case* c, MPI_Comm comm, int shift, int way) {
  const int layout = (c->me + shift) % LAYOUTS;
  lay(&out, c, layout, 1, 0);
  if (c->me == c->root) put(&out, c, 0, c->root, 0);
  lay(&due, c, layout, 1, 0);
  put(&due, c, 0, c->root, 0);
  MPI_Request request = MPI_REQUEST_NULL;
  by_muster();
  CALL(Bcast, Ibcast, out.data, elements(layout, c->ints), types[layout], c->root, comm);
  finish(way, &request);
  require_muster("bcast", c->n);
  same("bcast in different layouts", out.data, due.data, sizeof due.data);
}
static void all_moves(MPI_Comm comm) {
  static const int ints[] = {0, 2, 46, 6002};
  Case c = {0};
  MPI_Comm_rank(comm, &c.me);
  MPI_Comm_size(comm, &c.n);
  for (c.kind = 0; c.kind < KINDS; ++c.kind)
    for (int i = 0; i < 4; ++i)
      for (int shift = 0; shift < LAYOUTS; ++shift) {
        c.ints = ints[i];
        c.root = (i + shift) % c.n;
        c.in_place = 0;
        if (c.kind == BCAST) {
          broadcasts(&c, comm, shift, BLOCKS);
          broadcasts(&c, comm, shift, next_way());
          continue;
        }
        for (; c.in_place < 2; ++c.in_place)
          for (int gaps = 0; gaps < 2; ++gaps) {
            moves(&c, comm, shift, gaps, BLOCKS);
            /* Open MPI 4.1 by itself hangs or crashes in some of these; what they mean, the blocking ones
             * show. */
            if (operations) moves(&c, comm, shift, gaps, next_way());
          }
      }
}

/* ---- reductions: rank r has r * 1000 + i */
static void reductions(MPI_Comm comm, int blocks) {
  int me, n, counts[RANKS];
  MPI_Comm_rank(comm, &me);
  MPI_Comm_size(comm, &n);
  for (int count = 0; count < 3000; count = count * 9 + 1)
    for (int in_place = 0; in_place < 2; ++in_place)
      for (int even = 0; even < 2; ++even) {
        int total = 0, first = 0, way = blocks ? BLOCKS : next_way();
        MPI_Request request = MPI_REQUEST_NULL;
        for (int r = 0; r < n; ++r) {
          counts[r] = even ? count : r % 3 == 1 ? 0 : count / (r + 1);
          if (r < me) first += counts[r];
          total += counts[r];
        }
        for (int i = 0; i < INTS; ++i) in.data[i] = out.data[i] = due.data[i] = EMPTY;
        int* const given_in = in_place ? out.data : in.data;
        for (int i = 0; i < total; ++i) given_in[i] = me * 1000 + i;
        for (int i = 0; i < counts[me]; ++i) due.data[i] = n * (n - 1) / 2 * 1000 + n * (first + i);
        by_muster();
        if (even)
          CALL(Reduce_scatter_block, Ireduce_scatter_block, in_place ? MPI_IN_PLACE : in.data, out.data,
               count, MPI_INT, MPI_SUM, comm);
        else
          CALL(Reduce_scatter, Ireduce_scatter, in_place ? MPI_IN_PLACE : in.data, out.data, counts, MPI_INT,
               MPI_SUM, comm);
        finish(way, &request);
        require_muster("reduce_scatter", n);
        /* In place, what lies behind the result is undefined. */
        const int defined = in_place ? counts[me] : INTS;
        same(even ? "reduce_scatter_block" : "reduce_scatter", out.data, due.data,
             sizeof(int) * (size_t)defined);
        const int root = count % n;
        for (int i = 0; i < INTS; ++i) out.data[i] = due.data[i] = EMPTY;
        for (int i = 0; i < count; ++i) {
          in.data[i] = me * 1000 + i;
          if (in_place && me == root) out.data[i] = in.data[i];
          if (me == root) due.data[i] = (n - 1) * 1000 + i;
        }
        by_muster();
        CALL(Reduce, Ireduce, in_place && me == root ? MPI_IN_PLACE : in.data, out.data, count, MPI_INT,
             MPI_MAX, root, comm);
        finish(way, &request);
        require_muster("reduce", n);
        same("reduce", out.data, due.data, sizeof due.data);
        if (in_place) memcpy(out.data, in.data, sizeof in.data);
        for (int i = 0; i < count; ++i) due.data[i] = i;
        by_muster();
        CALL(Allreduce, Iallreduce, in_place ? MPI_IN_PLACE : in.data, out.data, count, MPI_INT, MPI_MIN,
             comm);
        finish(way, &request);
        require_muster("allreduce", n);
        same("allreduce", out.data, due.data, sizeof(int) * (size_t)count);
      }
  MPI_Request request = MPI_REQUEST_NULL;
  const int way = blocks ? BLOCKS : next_way();
  by_muster();
  CALL(Barrier, Ibarrier, comm);
  finish(way, &request);
  require_muster("barrier", n);
}

/* ---- operations that do not block */
static void require_sum(const char* what, int sum, int due) {
  if (sum == due) return;
  printf("FAILED: rank %d: %s gave %d, not %d\n", rank, what, sum, due);
  wrong = 1;
}
/* Several on several communicators, in one order on all ranks, waited for from the last to the first. */
static void many_in_flight(MPI_Comm one, MPI_Comm other) {
  enum { MANY = 40 };
  static int mine[MANY][3000], sums[MANY][3000];
  MPI_Request all[MANY];
  for (int k = 0; k < MANY; ++k) {
    for (int i = 0; i < 3000; ++i) mine[k][i] = rank + k + i;
    MPI_Iallreduce(mine[k], sums[k], k % 3 == 0 ? 3000 : k + 1, MPI_INT, MPI_SUM, k % 2 ? one : other,
                   &all[k]);
  }
  for (int k = MANY - 1; k >= 0; --k) {
    MPI_Wait(&all[k], MPI_STATUS_IGNORE);
    require_sum("one of many", sums[k][k], size * (size - 1) / 2 + 2 * k * size);
  }
}
/* What other ranks do before an operation ends must not wait for this one's next call of MPI. */
static void in_the_background(MPI_Comm comm) {
  int one = 1, sum = 0, word = 0;
  MPI_Request request;
  if (size < 2) return;
  MPI_Iallreduce(&one, &sum, 1, MPI_INT, MPI_SUM, comm, &request);
  if (rank == 0) MPI_Recv(&word, 1, MPI_INT, 1, 9, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  MPI_Wait(&request, MPI_STATUS_IGNORE);
  if (rank == 1) MPI_Send(&one, 1, MPI_INT, 0, 9, MPI_COMM_WORLD);
  require_sum("a sum beside a message", sum, size);
}
static void without_blocking(MPI_Comm world) {
  int one = 1, sum = 0;
  MPI_Comm comm;
  MPI_Request request;
  MPI_Comm_dup(world, &comm);
  by_muster();
  MPI_Iallreduce(&one, &sum, 1, MPI_INT, MPI_SUM, comm, &request);
  MPI_Wait(&request, MPI_STATUS_IGNORE);
  require_mpi("sum on a communicator that has seen no blocking operation");
  require_sum("that sum", sum, size);
  if (!operations) { /* Open MPI 4.1 by itself crashes where MPI says "will complete normally" */
    MPI_Comm_free(&comm);
    return;
  }
  MPI_Barrier(comm);
  /* A type that the program frees before the operation has ended. */
  MPI_Datatype every_other;
  int gathered[4 * RANKS], pair[2] = {rank, -rank};
  for (int i = 0; i < 4 * RANKS; ++i) gathered[i] = EMPTY;
  MPI_Type_vector(2, 1, 2, MPI_INT, &every_other);
  MPI_Type_create_resized(every_other, 0, 4 * sizeof(int), &every_other);
  MPI_Type_commit(&every_other);
  MPI_Iallgather(pair, 2, MPI_INT, gathered, 1, every_other, comm, &request);
  MPI_Type_free(&every_other);
  MPI_Wait(&request, MPI_STATUS_IGNORE);
  for (int r = 0; r < size; ++r) {
    require_sum("a type that was freed", gathered[4 * r], r);
    require_sum("a type that was freed", gathered[4 * r + 2], -r);
    require_sum("between", gathered[4 * r + 1], EMPTY);
  }
  sum = 0;
  by_muster();
  MPI_Iallreduce(&one, &sum, 1, MPI_INT, MPI_SUM, comm, &request);
  MPI_Comm_free(&comm); /* which the operation outlives */
  MPI_Wait(&request, MPI_STATUS_IGNORE);
  require_sum("a sum on a communicator that was freed", sum, size);
  require_muster("sum on a communicator that was freed", size);
  if (size < 2) return;
  /* A failure is the request's: ranks that give different counts. */
  static int many[2], sums[2];
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0, code;
  MPI_Comm_dup(world, &comm);
  MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Barrier(comm); /* which may fail already here, by what others do after it */
  code = MPI_Iallreduce(many, sums, rank == 1 ? 2 : 1, MPI_INT, MPI_SUM, comm, &request);
  if (code == MPI_SUCCESS) code = MPI_Wait(&request, MPI_STATUS_IGNORE);
  if (code != MPI_SUCCESS) MPI_Error_string(code, text, &length);
  if (strncmp(text, "Muster: ", 8) != 0)
    wrong = 1, printf("FAILED: rank %d: no error, but \"%s\"\n", rank, text);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_ARE_FATAL);
  MPI_Comm_free(&comm);
}

/* ---- what is MPI's, or an error */
static void left_to_mpi(MPI_Comm comm) {
  int me, n, bits, all[RANKS], counts[RANKS], firsts[RANKS], root = 0;
  MPI_Comm_rank(comm, &me);
  MPI_Comm_size(comm, &n);
  bits = 1 << me;
  by_muster();
  MPI_Allreduce(&bits, all, 1, MPI_INT, MPI_BOR, comm);
  require_mpi("allreduce with an operator that it has not");
  if (all[0] != (1 << n) - 1) wrong = 1, printf("FAILED: rank %d: bits\n", rank);
  for (int r = 0; r < n; ++r) counts[r] = -1, firsts[r] = 0;
  MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  if (MPI_Alltoallv(&bits, counts, firsts, MPI_INT, all, counts, firsts, MPI_INT, comm) == MPI_SUCCESS)
    wrong = 1, printf("FAILED: rank %d: counts below 0 were no error\n", rank);
  MPI_Comm_set_errhandler(comm, MPI_ERRORS_ARE_FATAL);
  require_mpi("alltoallv with counts below 0");
  if (n < 2) return;
  /* Between even and odd ranks: the root's side names MPI_ROOT, or nothing at all. */
  MPI_Comm half, between;
  MPI_Comm_split(comm, me % 2, me, &half);
  MPI_Intercomm_create(half, 0, comm, 1 - me % 2, 5, &between);
  by_muster();
  int others = 0, sum = 0;
  MPI_Comm_remote_size(between, &others);
  MPI_Allreduce(&me, &sum, 1, MPI_INT, MPI_SUM, between);
  for (int r = 1 - me % 2; r < n; r += 2) sum -= r;
  if (sum != 0) wrong = 1, printf("FAILED: rank %d: a sum of the others\n", rank);
  if (me % 2 == 0) root = me == 0 ? MPI_ROOT : MPI_PROC_NULL;
  MPI_Gather(&me, me % 2, me % 2 ? MPI_INT : MPI_DATATYPE_NULL, all, 1, me == 0 ? MPI_INT : MPI_DATATYPE_NULL,
             root, between);
  for (int r = 0; r < others && me == 0; ++r)
    if (all[r] != 2 * r + 1) wrong = 1, printf("FAILED: gathered from the others\n");
  require_mpi("operations between two groups");
  MPI_Comm_free(&between);
  MPI_Comm_free(&half);
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (argc > 1 && strcmp(argv[1], "late") == 0 && rank == 1) sleep(3); /* MPI has no deadlines */
  operations = (uint64_t(*)(void))dlsym(RTLD_DEFAULT, "muster_pmpi_operations");
  MPI_Comm half, reversed;
  MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half);
  MPI_Comm_split(MPI_COMM_WORLD, 0, -rank, &reversed);
  MPI_Comm comms[] = {MPI_COMM_WORLD, half, reversed, MPI_COMM_SELF, MPI_COMM_WORLD};
  on(MPI_COMM_WORLD);
  on(half);
  make_types();
  for (int i = 0; i < 5; ++i) {
    all_moves(comms[i]);
    reductions(comms[i], 1);
    reductions(comms[i], 0);
    left_to_mpi(comms[i]);
  }
  on(MPI_COMM_WORLD);
  on(MPI_COMM_SELF);
  many_in_flight(MPI_COMM_WORLD, reversed);
  in_the_background(reversed);
  without_blocking(MPI_COMM_WORLD);
  MPI_Comm_free(&half);
  MPI_Comm_free(&reversed);
  /* A large message whose sender is in a collective already: it needs MPI's progress there. */
  static int big[4 << 20];
  MPI_Request request = MPI_REQUEST_NULL;
  if (rank == 0 && size > 1) MPI_Isend(big, 4 << 20, MPI_INT, 1, 3, MPI_COMM_WORLD, &request);
  if (rank == 1) MPI_Recv(big, 4 << 20, MPI_INT, 0, 3, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Wait(&request, MPI_STATUS_IGNORE);
  printf("rank %d of %d: %s, %llu operations by Muster\n", rank, size, wrong ? "FAILED" : "the same",
         operations ? (unsigned long long)operations() : 0ULL);
  MPI_Finalize();
  return wrong;
}
