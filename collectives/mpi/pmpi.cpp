// libmuster_pmpi.so: a library to preload into an unmodified program of Open MPI, so that its MPI_Allreduce,
// Reduce, Reduce_scatter, Reduce_scatter_block, Bcast, Barrier, Gather, Gatherv, Allgather, Allgatherv,
// Scatter, Scatterv, Alltoall and Alltoallv are done by Muster, and their nonblocking forms:
//   mpirun -x LD_PRELOAD=…/libmuster_pmpi.so PROGRAM
// All ranks have it or none, and make one operation all in C or all in Fortran: the bindings of Fortran call
// PMPI, so what they do stays with MPI, and would meet nobody where others call MPI from C. For the same
// reason a request that C has got is waited for in C. With MUSTER_PMPI_REPORT=1 each rank says at its end how
// many of each Muster did.
//
// INVARIANTS
//  - Whether Muster does an operation depends only on what MPI makes equal on all ranks: the communicator and
//    the root; for reductions also type, operator and counts; and for one that does not block whether the
//    communicator has seen a blocking one before, in which all ranks could form a group. All else goes to
//    MPI. Where data only moves, types and counts may differ between ranks; the bytes of a block do not, so
//    blocks go as bytes, packed where they are not contiguous.
//  - Blocks of more than INT_MAX bytes go to MPI where all ranks know them, since packing counts in int. Of
//    Gatherv, Scatterv and Alltoallv a rank knows its own part only, which must not decide. So these are done
//    at any size, as sends and receives or an all_to_all_v, and packed in pieces. A single element of more
//    than 2 GiB cannot be: an error.
//  - While an operation is waited for, MPI makes progress too: a legal program may depend on it.
// A program of another MPI must not be started with it: the two MPIs would be in one process.
#include <mpi.h>
#include <muster/muster.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "collectives/mpi/pmpi_operation.h"
#include "collectives/mpi/pmpi_requests.h"

namespace muster::pmpi {
namespace {

// ---- a communicator's group

int on_delete(MPI_Comm, int, void* value, void*) {
  delete static_cast<Attachment*>(value);
  return MPI_SUCCESS;
}

int keyval() {
  static const int key = [] {
    int made = MPI_KEYVAL_INVALID;
    PMPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, on_delete, &made, nullptr);
    return made;
  }();
  return key;
}

// Collective: all have one, or none has.
muster_comm* make(MPI_Comm comm) {
  PMPI_Barrier(comm);  // who comes first waits here, and not against the deadline for forming
  muster_comm* made = nullptr;
  // MPI has no deadlines: the others wait for as long as one computes. Who dies is noticed without one.
  constexpr double kWeekSeconds = 7 * 86400;
  muster_comm_options options{};
  options.size = sizeof options;
  options.timeout_seconds = std::getenv("MUSTER_COMM_TIMEOUT") != nullptr ? 0 : kWeekSeconds;
  int yes = muster_comm_from_mpi(&comm, &options, &made) == MUSTER_OK ? 1 : 0;
  int all = 0;
  PMPI_Allreduce(&yes, &all, 1, MPI_INT, MPI_MIN, comm);
  if (all == 1) return made;
  muster_comm_destroy(made);
  return nullptr;
}

// This rank among those that may talk by Muster. None: MPI does it.
struct Place {
  int rank = 0;
  int ranks = 0;
  bool has(int root) const { return root >= 0 && root < ranks; }
};

Place place_in(MPI_Comm comm) {
  int inter = 0;
  if (comm == MPI_COMM_NULL || PMPI_Comm_test_inter(comm, &inter) != MPI_SUCCESS || inter != 0) return {};
  Place place;
  PMPI_Comm_rank(comm, &place.rank);
  PMPI_Comm_size(comm, &place.ranks);
  return place.ranks > 1 ? place : Place();
}

// What a communicator has, or null where MPI does it; `seen`: whether that has been settled.
Attachment attached(MPI_Comm comm, bool& seen) {
  void* value = nullptr;
  int has = 0;
  if (comm == MPI_COMM_NULL || PMPI_Comm_get_attr(comm, keyval(), &value, &has) != MPI_SUCCESS) {
    seen = true;
    return nullptr;
  }
  seen = has != 0;
  if (!seen) return nullptr;
  const Attachment& attachment = *static_cast<Attachment*>(value);
  return attachment->comm != nullptr ? attachment : nullptr;
}

// Where an operation finds its group. Null: MPI does it.
using Find = Attachment (*)(MPI_Comm);

// One that blocks forms it.
Attachment find_or_make(MPI_Comm comm) {
  bool seen = false;
  Attachment found = attached(comm, seen);
  if (seen) return found;
  auto* made =
      new Attachment(std::make_shared<Attached>(comm, place_in(comm).ranks > 0 ? make(comm) : nullptr));
  PMPI_Comm_set_attr(comm, keyval(), made);
  return (*made)->comm != nullptr ? *made : nullptr;
}

// One that does not block cannot: some ranks may come to it only when others have done something else.
Attachment find_made(MPI_Comm comm) {
  bool seen = false;
  return attached(comm, seen);
}

// ---- what MPI's words are here

bool translate(MPI_Datatype type, muster_dtype& dtype) {
  const struct {
    MPI_Datatype mpi;
    muster_dtype dtype;
  } kTypes[] = {
      {MPI_FLOAT, MUSTER_FLOAT32},
      {MPI_DOUBLE, MUSTER_FLOAT64},
      {MPI_SIGNED_CHAR, MUSTER_INT8},
      {MPI_INT8_T, MUSTER_INT8},
      {MPI_INT16_T, MUSTER_INT16},
      {MPI_INT32_T, MUSTER_INT32},
      {MPI_INT64_T, MUSTER_INT64},
      {MPI_UINT8_T, MUSTER_UINT8},
      {MPI_UNSIGNED_CHAR, MUSTER_UINT8},
      {MPI_UINT16_T, MUSTER_UINT16},
      {MPI_UINT32_T, MUSTER_UINT32},
      {MPI_UINT64_T, MUSTER_UINT64},
      {MPI_SHORT, MUSTER_INT16},
      {MPI_UNSIGNED_SHORT, MUSTER_UINT16},
      {MPI_INT, MUSTER_INT32},
      {MPI_UNSIGNED, MUSTER_UINT32},
      {MPI_LONG, sizeof(long) == 8 ? MUSTER_INT64 : MUSTER_INT32},
      {MPI_UNSIGNED_LONG, sizeof(long) == 8 ? MUSTER_UINT64 : MUSTER_UINT32},
      {MPI_LONG_LONG, MUSTER_INT64},
      {MPI_UNSIGNED_LONG_LONG, MUSTER_UINT64},
  };
  for (const auto& known : kTypes) {
    if (known.mpi != type) continue;
    dtype = known.dtype;
    return true;
  }
  return false;
}

bool translate(MPI_Op op, muster_reduce_op& reduce) {
  const struct {
    MPI_Op mpi;
    muster_reduce_op op;
  } kOps[] = {{MPI_SUM, MUSTER_SUM}, {MPI_PROD, MUSTER_PROD}, {MPI_MIN, MUSTER_MIN}, {MPI_MAX, MUSTER_MAX}};
  for (const auto& known : kOps) {
    if (known.mpi != op) continue;
    reduce = known.op;
    return true;
  }
  return false;
}

// What a reduction is here, if it is one of Muster's.
struct Reduction {
  muster_dtype dtype = MUSTER_FLOAT32;
  muster_reduce_op op = MUSTER_SUM;
};

bool translate(MPI_Datatype type, MPI_Op op, Reduction& reduction) {
  return translate(type, reduction.dtype) && translate(op, reduction.op);
}

bool are_counts(const int* counts, int ranks) {
  return std::all_of(counts, counts + ranks, [](int count) { return count >= 0; });
}

bool all_fit(const int* counts, int ranks, MPI_Datatype type) {
  return std::all_of(counts, counts + ranks, [&](int count) { return fits(bytes_of(count, type)); });
}

// ---- operations, each begun, or left to MPI where it says false

// This rank's part of an operation, as bytes.
struct Part {
  void* data = nullptr;
  size_t bytes = 0;
};

// What becomes this rank's block of `received`, which is of nothing where nobody gathers. In place it is
// there already. False: it cannot be, and the operation says so.
bool part_to_gather(Operation& o, int rank, const void* in, int count, MPI_Datatype type, Part& part) {
  const bool in_place = in == MPI_IN_PLACE;
  if (!in_place) o.sent = Bytes(in, type, {{0, count}});
  if (!o.received.usable() || !o.sent.usable()) return o.refuse(), false;
  in_place ? o.received.gather(rank) : o.sent.gather();
  part = in_place ? Part{o.received.at(rank), o.received.size(rank)} : Part{o.sent.data(), o.sent.size()};
  return true;
}

// The other way round: what this rank's block of `sent` becomes.
bool part_to_scatter(Operation& o, int rank, void* out, int count, MPI_Datatype type, Part& part) {
  const bool in_place = out == MPI_IN_PLACE;
  if (!in_place) o.received = Bytes(out, type, {{0, count}});
  if (!o.sent.usable() || !o.received.usable()) return o.refuse(), false;
  o.sent.gather();
  part = in_place ? Part{o.sent.at(rank), o.sent.size(rank)} : Part{o.received.data(), o.received.size()};
  return true;
}

// Where a reduce_scatter puts its result, and from where it takes what it reduces. In place that begins where
// the result will lie, which may be another rank's block: so the result has memory of its own until the end.
Part reduce_scatter_target(Operation& o, const void*& in, void* out, int count, MPI_Datatype type) {
  if (in != MPI_IN_PLACE) return {out, bytes_of(count, type)};
  in = out;
  o.received = Bytes(out, type, {{0, count}}, Bytes::In::kOwnMemory);
  return {o.received.data(), o.received.size()};
}

bool begin_barrier(Operation& o, Find find, MPI_Comm comm) {
  if (!o.begin(find(comm), kBarrier)) return false;
  o.issue([](muster_comm* mine, muster_work** work) { return muster_comm_barrier(mine, nullptr, work); });
  return true;
}

bool begin_all_reduce(Operation& o, Find find, const void* in, void* out, int count, MPI_Datatype type,
                      MPI_Op op, MPI_Comm comm) {
  Reduction r;
  if (count < 0 || !translate(type, op, r) || !o.begin(find(comm), kAllreduce)) return false;
  o.issue([&](muster_comm* mine, muster_work** work) {
    return muster_comm_all_reduce(mine, in == MPI_IN_PLACE ? out : in, out, static_cast<size_t>(count),
                                  r.dtype, r.op, nullptr, work);
  });
  return true;
}

bool begin_reduce(Operation& o, Find find, const void* in, void* out, int count, MPI_Datatype type, MPI_Op op,
                  int root, MPI_Comm comm) {
  Reduction r;
  if (count < 0 || !place_in(comm).has(root) || !translate(type, op, r)) return false;
  if (!o.begin(find(comm), kReduce)) return false;
  o.issue([&](muster_comm* mine, muster_work** work) {
    return muster_comm_reduce(mine, in == MPI_IN_PLACE ? out : in, out, static_cast<size_t>(count), r.dtype,
                              r.op, root, nullptr, work);
  });
  return true;
}

bool begin_reduce_scatter(Operation& o, Find find, const void* in, void* out, const int* counts,
                          MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  Reduction r;
  const Place place = place_in(comm);
  if (!are_counts(counts, place.ranks) || !translate(type, op, r)) return false;
  if (!o.begin(find(comm), kReduceScatter)) return false;
  o.counts.assign(counts, counts + place.ranks);
  const Part target = reduce_scatter_target(o, in, out, counts[place.rank], type);
  o.issue([&](muster_comm* mine, muster_work** work) {
    return muster_comm_reduce_scatter_v(mine, in, target.data, o.counts.data(), r.dtype, r.op, nullptr, work);
  });
  return true;
}

bool begin_reduce_scatter_block(Operation& o, Find find, const void* in, void* out, int count,
                                MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  Reduction r;
  if (count < 0 || !translate(type, op, r) || !o.begin(find(comm), kReduceScatterBlock)) return false;
  const Part target = reduce_scatter_target(o, in, out, count, type);
  o.issue([&](muster_comm* mine, muster_work** work) {
    return muster_comm_reduce_scatter(mine, in, target.data, static_cast<size_t>(count), r.dtype, r.op,
                                      nullptr, work);
  });
  return true;
}

bool begin_broadcast(Operation& o, Find find, void* buffer, int count, MPI_Datatype type, int root,
                     MPI_Comm comm) {
  const Place place = place_in(comm);
  if (!place.has(root) || !fits(bytes_of(count, type)) || !o.begin(find(comm), kBcast)) return false;
  Bytes& bytes = place.rank == root ? o.sent : o.received;
  bytes = Bytes(buffer, type, {{0, count}});
  if (place.rank == root) bytes.gather();
  o.issue([&](muster_comm* mine, muster_work** work) {
    return muster_comm_broadcast(mine, bytes.data(), bytes.data(), bytes.size(), MUSTER_UINT8, root, nullptr,
                                 work);
  });
  return true;
}

bool begin_scatter(Operation& o, Find find, const void* in, int in_count, MPI_Datatype in_type, void* out,
                   int out_count, MPI_Datatype out_type, int root, MPI_Comm comm) {
  const Place place = place_in(comm);
  const bool is_root = place.rank == root;
  size_t block = SIZE_MAX;
  if (place.has(root)) block = is_root ? bytes_of(in_count, in_type) : bytes_of(out_count, out_type);
  if (!fits(block) || !o.begin(find(comm), kScatter)) return false;
  if (is_root) o.sent = Bytes(in, in_type, even(in_count, place.ranks));
  Part part;
  if (!part_to_scatter(o, place.rank, out, out_count, out_type, part)) return true;
  o.issue([&](muster_comm* mine, muster_work** work) {
    return muster_comm_scatter(mine, o.sent.data(), part.data, block, MUSTER_UINT8, root, nullptr, work);
  });
  return true;
}

bool begin_scatter_v(Operation& o, Find find, const void* in, const int* in_counts, const int* in_firsts,
                     MPI_Datatype in_type, void* out, int out_count, MPI_Datatype out_type, int root,
                     MPI_Comm comm) {
  const Place place = place_in(comm);
  if (!place.has(root) || !o.begin(find(comm), kScatterv)) return false;
  if (place.rank == root) o.sent = Bytes(in, in_type, listed(in_counts, in_firsts, place.ranks));
  const bool in_place = out == MPI_IN_PLACE;
  Part part;
  if (!part_to_scatter(o, place.rank, out, out_count, out_type, part)) return true;
  for (int peer = 0; peer < o.sent.blocks(); ++peer)
    if (!in_place || peer != root) o.send(o.sent.at(peer), o.sent.size(peer), peer);
  if (!in_place) o.receive(part.data, part.bytes, root);
  return true;
}

bool begin_gather(Operation& o, Find find, const void* in, int in_count, MPI_Datatype in_type, void* out,
                  int out_count, MPI_Datatype out_type, int root, MPI_Comm comm) {
  const Place place = place_in(comm);
  const bool is_root = place.rank == root;
  size_t block = SIZE_MAX;
  if (place.has(root)) block = is_root ? bytes_of(out_count, out_type) : bytes_of(in_count, in_type);
  if (!fits(block) || !o.begin(find(comm), kGather)) return false;
  if (is_root) o.received = Bytes(out, out_type, even(out_count, place.ranks));
  Part part;
  if (!part_to_gather(o, place.rank, in, in_count, in_type, part)) return true;
  o.issue([&](muster_comm* mine, muster_work** work) {
    return muster_comm_gather(mine, part.data, o.received.data(), block, MUSTER_UINT8, root, nullptr, work);
  });
  return true;
}

bool begin_gather_v(Operation& o, Find find, const void* in, int in_count, MPI_Datatype in_type, void* out,
                    const int* out_counts, const int* out_firsts, MPI_Datatype out_type, int root,
                    MPI_Comm comm) {
  const Place place = place_in(comm);
  if (!place.has(root) || !o.begin(find(comm), kGatherv)) return false;
  if (place.rank == root) o.received = Bytes(out, out_type, listed(out_counts, out_firsts, place.ranks));
  const bool in_place = in == MPI_IN_PLACE;
  Part part;
  if (!part_to_gather(o, place.rank, in, in_count, in_type, part)) return true;
  for (int peer = 0; peer < o.received.blocks(); ++peer)
    if (!in_place || peer != root) o.receive(o.received.at(peer), o.received.size(peer), peer);
  if (!in_place) o.send(part.data, part.bytes, root);
  return true;
}

bool begin_all_gather(Operation& o, Find find, const void* in, int in_count, MPI_Datatype in_type, void* out,
                      int out_count, MPI_Datatype out_type, MPI_Comm comm) {
  const Place place = place_in(comm);
  const size_t block = place.ranks > 0 ? bytes_of(out_count, out_type) : SIZE_MAX;
  if (!fits(block) || !o.begin(find(comm), kAllgather)) return false;
  o.received = Bytes(out, out_type, even(out_count, place.ranks));
  Part part;
  if (!part_to_gather(o, place.rank, in, in_count, in_type, part)) return true;
  o.issue([&](muster_comm* mine, muster_work** work) {
    return muster_comm_all_gather(mine, part.data, o.received.data(), block, MUSTER_UINT8, nullptr, work);
  });
  return true;
}

bool begin_all_gather_v(Operation& o, Find find, const void* in, int in_count, MPI_Datatype in_type,
                        void* out, const int* out_counts, const int* out_firsts, MPI_Datatype out_type,
                        MPI_Comm comm) {
  const Place place = place_in(comm);
  if (!all_fit(out_counts, place.ranks, out_type) || !o.begin(find(comm), kAllgatherv)) return false;
  o.received = Bytes(out, out_type, listed(out_counts, out_firsts, place.ranks));
  Part part;
  if (!part_to_gather(o, place.rank, in, in_count, in_type, part)) return true;
  o.issue([&](muster_comm* mine, muster_work** work) {
    return muster_comm_all_gather_v(mine, part.data, o.received.data(), o.received.sizes().data(),
                                    MUSTER_UINT8, nullptr, work);
  });
  return true;
}

bool begin_all_to_all(Operation& o, Find find, const void* in, int in_count, MPI_Datatype in_type, void* out,
                      int out_count, MPI_Datatype out_type, MPI_Comm comm) {
  const Place place = place_in(comm);
  const size_t block = place.ranks > 0 ? bytes_of(out_count, out_type) : SIZE_MAX;
  if (!fits(block) || !o.begin(find(comm), kAlltoall)) return false;
  const bool in_place = in == MPI_IN_PLACE;
  o.received = Bytes(out, out_type, even(out_count, place.ranks));
  if (!in_place) o.sent = Bytes(in, in_type, even(in_count, place.ranks));
  if (!o.sent.usable()) return o.refuse(), true;
  Bytes& source = in_place ? o.received : o.sent;
  source.gather();
  o.issue([&](muster_comm* mine, muster_work** work) {
    return muster_comm_all_to_all(mine, source.data(), o.received.data(), block, MUSTER_UINT8, nullptr, work);
  });
  return true;
}

bool begin_all_to_all_v(Operation& o, Find find, const void* in, const int* in_counts, const int* in_firsts,
                        MPI_Datatype in_type, void* out, const int* out_counts, const int* out_firsts,
                        MPI_Datatype out_type, MPI_Comm comm) {
  const Place place = place_in(comm);
  if (place.ranks == 0 || !o.begin(find(comm), kAlltoallv)) return false;
  const Blocks blocks = listed(out_counts, out_firsts, place.ranks);
  o.received = Bytes(out, out_type, blocks);
  // In place what goes out lies where the others' will be: it is copied, as Muster needs two buffers.
  o.sent = in == MPI_IN_PLACE ? Bytes(out, out_type, blocks, Bytes::In::kOwnMemory)
                              : Bytes(in, in_type, listed(in_counts, in_firsts, place.ranks));
  if (!o.received.usable() || !o.sent.usable()) return o.refuse(), true;
  o.sent.gather();
  o.issue([&](muster_comm* mine, muster_work** work) {
    return muster_comm_all_to_all_v(mine, o.sent.data(), o.sent.sizes().data(), o.received.data(),
                                    o.received.sizes().data(), MUSTER_UINT8, nullptr, work);
  });
  return true;
}

// ---- MPI's two forms of each: `begin` is one of the above, `mpi` what MPI does instead

template <typename Begin, typename Mpi, typename... Arguments>
int block(Begin begin, Mpi mpi, Arguments... arguments) {
  Operation operation;
  return begin(operation, find_or_make, arguments...) ? operation.complete() : mpi(arguments...);
}

template <typename Begin, typename Mpi, typename... Arguments>
int request_of(MPI_Request* request, Begin begin, Mpi mpi, Arguments... arguments) {
  auto operation = std::make_unique<Operation>();
  return begin(*operation, find_made, arguments...) ? post(std::move(operation), request)
                                                    : mpi(arguments..., request);
}

// With MUSTER_PMPI_REPORT=1: what Muster did, in a line of each rank.
void report() {
  const char* wanted = std::getenv("MUSTER_PMPI_REPORT");
  if (wanted == nullptr || std::strcmp(wanted, "1") != 0) return;
  int rank = 0;
  PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const std::string did = operations() > 0 ? operations_in_words() : " nothing";
  std::fprintf(stderr, "muster: rank %d did%s\n", rank, did.c_str());
}

}  // namespace
}  // namespace muster::pmpi

#define MUSTER_PMPI extern "C" __attribute__((visibility("default")))

namespace muster::pmpi {

// Operations that Muster has done here, for tests.
MUSTER_PMPI uint64_t muster_pmpi_operations(void) { return operations(); }

MUSTER_PMPI int MPI_Barrier(MPI_Comm comm) { return block(begin_barrier, PMPI_Barrier, comm); }

MUSTER_PMPI int MPI_Ibarrier(MPI_Comm comm, MPI_Request* request) {
  return request_of(request, begin_barrier, PMPI_Ibarrier, comm);
}

// ---- reductions

MUSTER_PMPI int MPI_Allreduce(const void* in, void* out, int count, MPI_Datatype type, MPI_Op op,
                              MPI_Comm comm) {
  return block(begin_all_reduce, PMPI_Allreduce, in, out, count, type, op, comm);
}

MUSTER_PMPI int MPI_Iallreduce(const void* in, void* out, int count, MPI_Datatype type, MPI_Op op,
                               MPI_Comm comm, MPI_Request* request) {
  return request_of(request, begin_all_reduce, PMPI_Iallreduce, in, out, count, type, op, comm);
}

MUSTER_PMPI int MPI_Reduce(const void* in, void* out, int count, MPI_Datatype type, MPI_Op op, int root,
                           MPI_Comm comm) {
  return block(begin_reduce, PMPI_Reduce, in, out, count, type, op, root, comm);
}

MUSTER_PMPI int MPI_Ireduce(const void* in, void* out, int count, MPI_Datatype type, MPI_Op op, int root,
                            MPI_Comm comm, MPI_Request* request) {
  return request_of(request, begin_reduce, PMPI_Ireduce, in, out, count, type, op, root, comm);
}

MUSTER_PMPI int MPI_Reduce_scatter(const void* in, void* out, const int* counts, MPI_Datatype type, MPI_Op op,
                                   MPI_Comm comm) {
  return block(begin_reduce_scatter, PMPI_Reduce_scatter, in, out, counts, type, op, comm);
}

MUSTER_PMPI int MPI_Ireduce_scatter(const void* in, void* out, const int* counts, MPI_Datatype type,
                                    MPI_Op op, MPI_Comm comm, MPI_Request* request) {
  return request_of(request, begin_reduce_scatter, PMPI_Ireduce_scatter, in, out, counts, type, op, comm);
}

MUSTER_PMPI int MPI_Reduce_scatter_block(const void* in, void* out, int count, MPI_Datatype type, MPI_Op op,
                                         MPI_Comm comm) {
  return block(begin_reduce_scatter_block, PMPI_Reduce_scatter_block, in, out, count, type, op, comm);
}

MUSTER_PMPI int MPI_Ireduce_scatter_block(const void* in, void* out, int count, MPI_Datatype type, MPI_Op op,
                                          MPI_Comm comm, MPI_Request* request) {
  return request_of(request, begin_reduce_scatter_block, PMPI_Ireduce_scatter_block, in, out, count, type, op,
                    comm);
}

// ---- from one to all

MUSTER_PMPI int MPI_Bcast(void* buffer, int count, MPI_Datatype type, int root, MPI_Comm comm) {
  return block(begin_broadcast, PMPI_Bcast, buffer, count, type, root, comm);
}

MUSTER_PMPI int MPI_Ibcast(void* buffer, int count, MPI_Datatype type, int root, MPI_Comm comm,
                           MPI_Request* request) {
  return request_of(request, begin_broadcast, PMPI_Ibcast, buffer, count, type, root, comm);
}

MUSTER_PMPI int MPI_Scatter(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count,
                            MPI_Datatype out_type, int root, MPI_Comm comm) {
  return block(begin_scatter, PMPI_Scatter, in, in_count, in_type, out, out_count, out_type, root, comm);
}

MUSTER_PMPI int MPI_Iscatter(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count,
                             MPI_Datatype out_type, int root, MPI_Comm comm, MPI_Request* request) {
  return request_of(request, begin_scatter, PMPI_Iscatter, in, in_count, in_type, out, out_count, out_type,
                    root, comm);
}

MUSTER_PMPI int MPI_Scatterv(const void* in, const int* in_counts, const int* in_firsts, MPI_Datatype in_type,
                             void* out, int out_count, MPI_Datatype out_type, int root, MPI_Comm comm) {
  return block(begin_scatter_v, PMPI_Scatterv, in, in_counts, in_firsts, in_type, out, out_count, out_type,
               root, comm);
}

MUSTER_PMPI int MPI_Iscatterv(const void* in, const int* in_counts, const int* in_firsts,
                              MPI_Datatype in_type, void* out, int out_count, MPI_Datatype out_type, int root,
                              MPI_Comm comm, MPI_Request* request) {
  return request_of(request, begin_scatter_v, PMPI_Iscatterv, in, in_counts, in_firsts, in_type, out,
                    out_count, out_type, root, comm);
}

// ---- from all to one

MUSTER_PMPI int MPI_Gather(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count,
                           MPI_Datatype out_type, int root, MPI_Comm comm) {
  return block(begin_gather, PMPI_Gather, in, in_count, in_type, out, out_count, out_type, root, comm);
}

MUSTER_PMPI int MPI_Igather(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count,
                            MPI_Datatype out_type, int root, MPI_Comm comm, MPI_Request* request) {
  return request_of(request, begin_gather, PMPI_Igather, in, in_count, in_type, out, out_count, out_type,
                    root, comm);
}

MUSTER_PMPI int MPI_Gatherv(const void* in, int in_count, MPI_Datatype in_type, void* out,
                            const int* out_counts, const int* out_firsts, MPI_Datatype out_type, int root,
                            MPI_Comm comm) {
  return block(begin_gather_v, PMPI_Gatherv, in, in_count, in_type, out, out_counts, out_firsts, out_type,
               root, comm);
}

MUSTER_PMPI int MPI_Igatherv(const void* in, int in_count, MPI_Datatype in_type, void* out,
                             const int* out_counts, const int* out_firsts, MPI_Datatype out_type, int root,
                             MPI_Comm comm, MPI_Request* request) {
  return request_of(request, begin_gather_v, PMPI_Igatherv, in, in_count, in_type, out, out_counts,
                    out_firsts, out_type, root, comm);
}

// ---- from all to all

MUSTER_PMPI int MPI_Allgather(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count,
                              MPI_Datatype out_type, MPI_Comm comm) {
  return block(begin_all_gather, PMPI_Allgather, in, in_count, in_type, out, out_count, out_type, comm);
}

MUSTER_PMPI int MPI_Iallgather(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count,
                               MPI_Datatype out_type, MPI_Comm comm, MPI_Request* request) {
  return request_of(request, begin_all_gather, PMPI_Iallgather, in, in_count, in_type, out, out_count,
                    out_type, comm);
}

MUSTER_PMPI int MPI_Allgatherv(const void* in, int in_count, MPI_Datatype in_type, void* out,
                               const int* out_counts, const int* out_firsts, MPI_Datatype out_type,
                               MPI_Comm comm) {
  return block(begin_all_gather_v, PMPI_Allgatherv, in, in_count, in_type, out, out_counts, out_firsts,
               out_type, comm);
}

MUSTER_PMPI int MPI_Iallgatherv(const void* in, int in_count, MPI_Datatype in_type, void* out,
                                const int* out_counts, const int* out_firsts, MPI_Datatype out_type,
                                MPI_Comm comm, MPI_Request* request) {
  return request_of(request, begin_all_gather_v, PMPI_Iallgatherv, in, in_count, in_type, out, out_counts,
                    out_firsts, out_type, comm);
}

MUSTER_PMPI int MPI_Alltoall(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count,
                             MPI_Datatype out_type, MPI_Comm comm) {
  return block(begin_all_to_all, PMPI_Alltoall, in, in_count, in_type, out, out_count, out_type, comm);
}

MUSTER_PMPI int MPI_Ialltoall(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count,
                              MPI_Datatype out_type, MPI_Comm comm, MPI_Request* request) {
  return request_of(request, begin_all_to_all, PMPI_Ialltoall, in, in_count, in_type, out, out_count,
                    out_type, comm);
}

MUSTER_PMPI int MPI_Alltoallv(const void* in, const int* in_counts, const int* in_firsts,
                              MPI_Datatype in_type, void* out, const int* out_counts, const int* out_firsts,
                              MPI_Datatype out_type, MPI_Comm comm) {
  return block(begin_all_to_all_v, PMPI_Alltoallv, in, in_counts, in_firsts, in_type, out, out_counts,
               out_firsts, out_type, comm);
}

MUSTER_PMPI int MPI_Ialltoallv(const void* in, const int* in_counts, const int* in_firsts,
                               MPI_Datatype in_type, void* out, const int* out_counts, const int* out_firsts,
                               MPI_Datatype out_type, MPI_Comm comm, MPI_Request* request) {
  return request_of(request, begin_all_to_all_v, PMPI_Ialltoallv, in, in_counts, in_firsts, in_type, out,
                    out_counts, out_firsts, out_type, comm);
}

// The world's attributes would go only after MPI has gone.
MUSTER_PMPI int MPI_Finalize(void) {
  report();
  void* value = nullptr;
  int has = 0;
  PMPI_Comm_get_attr(MPI_COMM_WORLD, keyval(), &value, &has);
  if (has != 0) PMPI_Comm_delete_attr(MPI_COMM_WORLD, keyval());
  return PMPI_Finalize();
}

}  // namespace muster::pmpi
