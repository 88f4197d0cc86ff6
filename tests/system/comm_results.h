// Every operation of a communicator, for several types, counts, operators and roots, in place and not, in
// memory of the library and of the program, against a reference: expected(world) of comm_pmix.cpp or
// comm_mpi.cpp.
#pragma once

#include <cstring>

#include "tests/system/comm_world.h"

// What the reference must offer, for a type T:
//   all_reduce(seed, count, op), reduce_scatter(seed, counts, op): this rank's result
//   all_gather(seed, counts), all_to_all(seed, between), broadcast(seed, count, root), scatter(seed, counts,
//   root)
// between(from, to): what one rank has for another.
template <typename Between>
std::vector<size_t> sent_by(int rank, int size, Between between) {
  std::vector<size_t> counts;
  for (int peer = 0; peer < size; ++peer) counts.push_back(between(rank, peer));
  return counts;
}
template <typename Between>
std::vector<size_t> received_by(int rank, int size, Between between) {
  return sent_by(rank, size, [&](int, int peer) { return between(peer, rank); });
}

template <typename T, typename Reference>
class Results {
 public:
  Results(muster_comm* comm, Reference& reference)
      : comm_(comm), reference_(reference), rank_(muster_comm_rank(comm)), size_(muster_comm_size(comm)) {}

  void check_all(uint64_t seed, size_t count) {
    const auto ranks = static_cast<size_t>(size_);
    const int root = static_cast<int>(seed % ranks);
    counts_.clear();
    for (size_t rank = 0; rank < ranks; ++rank) counts_.push_back((count + rank * seed) % (count + 2));
    const size_t total = std::accumulate(counts_.begin(), counts_.end(), size_t{0});
    const std::vector<size_t> even(ranks, count);
    seed_ = seed;
    for (const muster_reduce_op op : {MUSTER_SUM, MUSTER_MIN, MUSTER_MAX, MUSTER_PROD}) {
      check("all_reduce", count, count, reference_.template all_reduce<T>(seed, count, op),
            [&](const T* in, T* out) {
              return muster_comm_all_reduce(comm_, in, out, count, type, op, nullptr, next());
            });
      check("reduce", count, count, at(root, reference_.template all_reduce<T>(seed, count, op)),
            [&](const T* in, T* out) {
              return muster_comm_reduce(comm_, in, rank_ == root ? out : nullptr, count, type, op, root,
                                        nullptr, next());
            });
      check("reduce_scatter", count * ranks, count, reference_.template reduce_scatter<T>(seed, even, op),
            [&](const T* in, T* out) {
              return muster_comm_reduce_scatter(comm_, in, out, count, type, op, nullptr, next());
            });
      check("reduce_scatter_v", total, mine(), reference_.template reduce_scatter<T>(seed, counts_, op),
            [&](const T* in, T* out) {
              return muster_comm_reduce_scatter_v(comm_, in, out, counts_.data(), type, op, nullptr, next());
            });
    }
    check("all_gather", count, count * ranks, reference_.template all_gather<T>(seed, even),
          [&](const T* in, T* out) {
            return muster_comm_all_gather(comm_, in, out, count, type, nullptr, next());
          });
    check("all_gather_v", mine(), total, reference_.template all_gather<T>(seed, counts_),
          [&](const T* in, T* out) {
            return muster_comm_all_gather_v(comm_, in, out, counts_.data(), type, nullptr, next());
          });
    check("gather", count, count * ranks, at(root, reference_.template all_gather<T>(seed, even)),
          [&](const T* in, T* out) {
            return muster_comm_gather(comm_, in, rank_ == root ? out : nullptr, count, type, root, nullptr,
                                      next());
          });
    check("gather_v", mine(), total, at(root, reference_.template all_gather<T>(seed, counts_)),
          [&](const T* in, T* out) {
            return muster_comm_gather_v(comm_, in, rank_ == root ? out : nullptr, counts_.data(), type, root,
                                        nullptr, next());
          });
    check("scatter", count * ranks, count, reference_.template scatter<T>(seed, even, root),
          [&](const T* in, T* out) {
            return muster_comm_scatter(comm_, rank_ == root ? in : nullptr, out, count, type, root, nullptr,
                                       next());
          });
    check("scatter_v", total, mine(), reference_.template scatter<T>(seed, counts_, root),
          [&](const T* in, T* out) {
            return muster_comm_scatter_v(comm_, rank_ == root ? in : nullptr, out, counts_.data(), type, root,
                                         nullptr, next());
          });
    check("all_to_all", count * ranks, count * ranks,
          reference_.template all_to_all<T>(seed, [=](int, int) { return count; }), [&](const T* in, T* out) {
            return muster_comm_all_to_all(comm_, in, out, count, type, nullptr, next());
          });
    // Nobody has the same for all, and some have nothing.
    const auto between = [=](int from, int to) {
      return (static_cast<size_t>(from) * seed + static_cast<size_t>(2 * to)) % 3 * count / 2;
    };
    const std::vector<size_t> sent = sent_by(rank_, size_, between);
    const std::vector<size_t> received = received_by(rank_, size_, between);
    const auto sum = [](const std::vector<size_t>& all) {
      return std::accumulate(all.begin(), all.end(), size_t{0});
    };
    check("all_to_all_v", sum(sent), sum(received), reference_.template all_to_all<T>(seed, between),
          [&](const T* in, T* out) {
            return muster_comm_all_to_all_v(comm_, in, sent.data(), out, received.data(), type, nullptr,
                                            next());
          });
    check("broadcast", count, count, reference_.template broadcast<T>(seed, count, root),
          [&](const T* in, T* out) {
            return muster_comm_broadcast(comm_, rank_ == root ? in : nullptr, out, count, type, root, nullptr,
                                         next());
          });
    in_place(seed, count);
    require(muster_comm_barrier(comm_, nullptr, nullptr), "barrier");
  }

  static int checked() { return checked_count; }

 private:
  static constexpr muster_dtype type = TypeOf<T>::value;
  static inline int checked_count = 0;

  size_t mine() const { return counts_[static_cast<size_t>(rank_)]; }

  // Every other operation is asynchronous.
  muster_work** next() { return ++issued_ % 2 == 0 ? &work_ : nullptr; }

  // Only the root gets a result.
  std::vector<T> at(int root, std::vector<T> result) const {
    return rank_ == root ? std::move(result) : std::vector<T>();
  }

  T* memory(size_t count) {
    void* data = nullptr;
    require(muster_comm_allocate(comm_, count * sizeof(T), &data), "allocate");
    return static_cast<T*>(data);
  }

  template <typename Operation>
  void check(const char* name, size_t in_count, size_t out_count, const std::vector<T>& expected,
             Operation operation) {
    const std::vector<T> given = input<T>(seed_, rank_, in_count);
    std::vector<T> in = given;
    std::vector<T> out(out_count + 1, T(99));
    finish(name, operation(in.data(), out.data()));
    compare(name, given, in.data(), in_count);
    compare(name, expected, out.data(), expected.size());
    if (out[out_count] != T(99)) die(std::string(name) + " wrote behind its output");

    T* const own_in = memory(in_count);
    T* const own_out = memory(out_count);
    if (in_count > 0) std::memcpy(own_in, given.data(), in_count * sizeof(T));
    finish(name, operation(own_in, own_out));
    compare(name, expected, own_out, expected.size());
    require(muster_comm_free(comm_, own_in), "free");
    require(muster_comm_free(comm_, own_out), "free");
  }

  void in_place(uint64_t seed, size_t count) {
    std::vector<T> values = input<T>(seed, rank_, count);
    finish("in place", muster_comm_all_reduce(comm_, values.data(), values.data(), count, type, MUSTER_SUM,
                                              nullptr, next()));
    compare("all_reduce in place", reference_.template all_reduce<T>(seed, count, MUSTER_SUM), values.data(),
            count);
  }

  void finish(const char* name, muster_status status) {
    require(status, name);
    if (work_ == nullptr) return;
    require(muster_work_wait(work_, 0), name);
    muster_work_destroy(work_);
    work_ = nullptr;
  }

  void compare(const char* name, const std::vector<T>& expected, const T* got, size_t count) {
    ++checked_count;
    if (count > 0 && std::memcmp(got, expected.data(), count * sizeof(T)) != 0) {
      size_t i = 0;
      while (got[i] == expected[i]) ++i;
      die("rank " + std::to_string(rank_) + ": " + name + " of type " + std::to_string(type) + ", seed " +
          std::to_string(seed_) + ": element " + std::to_string(i) + " of " + std::to_string(count) + " is " +
          std::to_string(got[i]) + ", not " + std::to_string(expected[i]));
    }
  }

  muster_comm* const comm_;
  Reference& reference_;
  const int rank_;
  const int size_;
  uint64_t seed_ = 0;
  std::vector<size_t> counts_;
  unsigned issued_ = 0;
  muster_work* work_ = nullptr;
};

// Everyone to everyone, itself included, in one batch: all lengths twice, once with a handle each. The last
// tag is received first.
inline void check_transfers(muster_comm* comm) {
  constexpr size_t kCounts[] = {0, 1, 5003, 300'001};
  constexpr int kTags = 8;
  const int rank = muster_comm_rank(comm);
  const int size = muster_comm_size(comm);
  const auto seed = [](int from, int to, int tag) {
    return static_cast<uint64_t>((from * 64 + to) * kTags + tag);
  };
  const auto transfers = static_cast<size_t>(size * kTags);
  std::vector<std::vector<int32_t>> out, in;
  std::vector<muster_work*> works;
  works.reserve(2 * transfers);  // handles are written where they are
  const auto handle = [&](int tag) { return tag < 4 ? nullptr : &works.emplace_back(); };
  require(muster_group_start(), "muster_group_start");
  for (int peer = 0; peer < size; ++peer) {
    for (int tag = 0; tag < kTags; ++tag) {
      out.push_back(input<int32_t>(seed(rank, peer, tag), 0, kCounts[tag % 4]));
      require(muster_comm_send(comm, out.back().data(), out.back().size(), MUSTER_INT32, peer, tag, nullptr,
                               handle(tag)),
              "send");
    }
    for (int tag = kTags - 1; tag >= 0; --tag) {
      in.emplace_back(kCounts[tag % 4]);
      require(muster_comm_recv(comm, in.back().data(), in.back().size(), MUSTER_INT32, peer, tag, nullptr,
                               handle(tag)),
              "recv");
    }
  }
  require(muster_group_end(), "muster_group_end");
  for (muster_work* work : works) {
    require(muster_work_wait(work, 0), "a transfer, wait");
    muster_work_destroy(work);
  }
  for (size_t i = 0; i < transfers; ++i) {
    const int tag = kTags - 1 - static_cast<int>(i) % kTags;
    const int peer = static_cast<int>(i) / kTags;
    if (in[i] != input<int32_t>(seed(peer, rank, tag), 0, in[i].size()))
      die("rank " + std::to_string(rank) + ": wrong numbers from rank " + std::to_string(peer) + ", tag " +
          std::to_string(tag));
  }
}

// Odd and even ranks in reverse order, and all but the last, at the same time.
inline void check_split(muster_comm* comm) {
  const int rank = muster_comm_rank(comm);
  const int size = muster_comm_size(comm);
  const bool last = rank == size - 1;
  muster_comm* half = nullptr;
  muster_comm* most = nullptr;
  require(muster_comm_split(comm, rank % 2, -rank, nullptr, &half), "split");
  require(muster_comm_split(comm, last ? -1 : 3, 0, nullptr, &most), "split");
  if ((most == nullptr) != last) die("a part for the one without color, or none for another");
  const int half_size = (size + 1 - rank % 2) / 2;
  std::vector<int32_t> members(static_cast<size_t>(half_size), -1);
  if (muster_comm_size(half) != half_size || muster_comm_rank(half) != half_size - 1 - rank / 2)
    die("another rank or size in the half");
  require(muster_comm_all_gather(half, &rank, members.data(), 1, MUSTER_INT32, nullptr, nullptr), "members");
  for (int i = 0; i < half_size; ++i) {
    if (members[static_cast<size_t>(half_size - 1 - i)] != 2 * i + rank % 2)
      die("another member of the half");
  }
  if (!last && (muster_comm_rank(most) != rank || muster_comm_size(most) != size - 1))
    die("another rank or size in the rest");
  check_transfers(half);
  if (!last) check_transfers(most);
  muster_comm_destroy(most);
  check_transfers(comm);
  require(muster_comm_barrier(half, nullptr, nullptr), "barrier of the half");
  muster_comm_destroy(half);
}

template <typename Reference>
void check_results(muster_comm* comm, Reference& reference) {
  check_split(comm);
  // Each type with two of the counts.
  constexpr size_t kCounts[] = {0, 1, 7, 5003};
  for (uint64_t round = 0; round < 2; ++round) {
    uint64_t seed = 2 * round + 1;
    const auto run = [&](auto results) {
      results.check_all(seed, kCounts[seed % 4]);
      ++seed;
    };
    run(Results<float, Reference>(comm, reference));
    run(Results<double, Reference>(comm, reference));
    run(Results<int8_t, Reference>(comm, reference));
    run(Results<uint8_t, Reference>(comm, reference));
    run(Results<int16_t, Reference>(comm, reference));
    run(Results<int32_t, Reference>(comm, reference));
    run(Results<int64_t, Reference>(comm, reference));
    run(Results<uint64_t, Reference>(comm, reference));
  }
  const int checked = Results<float, Reference>::checked();
  say("rank " + std::to_string(muster_comm_rank(comm)) + " of " + std::to_string(muster_comm_size(comm)) +
      ": right over " + muster_comm_medium(comm) + ", " + std::to_string(checked) + " float results");
}
