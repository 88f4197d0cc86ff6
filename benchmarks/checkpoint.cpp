// One measurement of scripts/bench checkpoint, in as many processes as ranks:
//
//   bench_checkpoint MODE FOLDER MIB RANKS
//
// MODE: save, save_N (at most N MiB of staging a rank), restore, verify; raw_write, raw_read (O_DIRECT on
// plain files by threads that pread) and raw_read_uring (the same by io_uring), the bounds; hdf5_write
// (H5Dwrite and fsync); changed and scattered (saves of which a tenth has changed, at one place or in every
// tenth slab, written whole and with cloned slabs in turn, by one rank; FOLDER is where clones can be had);
// copies (ways of copying, digesting and tagging, in one process); seal (a shard saved and read back in turns
// without a key and with one, in one process); manifest. Prints "METRIC VALUE" lines; all times are of the
// slowest rank.
#include <fcntl.h>
#include <hdf5.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <thread>

#include "checkpoint/restore.h"
#include "checkpoint/shard_save.h"
#include "checkpoint/store.h"
#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/base/random.h"

using namespace muster;
using namespace muster::checkpoint;

namespace {

constexpr uint64_t kRequestBytes = 4 << 20;

struct Bench {
  std::string folder;
  uint64_t bytes = 0;  // of the whole state
  uint32_t ranks = 1;
};

// What the ranks tell the parent.
struct Shared {
  std::atomic<uint32_t> ready{0};
  std::atomic<bool> go{false};
  double seconds[64] = {};
  double staged_seconds[64] = {};
  double copy_seconds[64] = {};
  double buffer_bytes[64] = {};
  std::atomic<uint64_t> read_bytes{0};
  ShardRecord records[64] = {};
  bool failed[64] = {};
};

double seconds_since(Instant began) { return static_cast<double>(now() - began) / 1e9; }

int fail(const std::string& text) {
  std::fprintf(stderr, "bench_checkpoint: %s\n", text.c_str());
  return 1;
}

template <typename T>
T value_or_exit(Result<T> result) {
  if (!result.ok()) ::_exit(fail(result.error().message));
  return std::move(result).value();
}

// The state: 64 tensors, the same bytes in every rank, not to be compressed away.
std::vector<TensorSpec> specs_of(const Bench& bench) {
  std::vector<TensorSpec> specs;
  for (int i = 0; i < 64; ++i)
    specs.push_back({"t" + std::to_string(i), DType::kFloat32, {bench.bytes / 64 / 4096, 1024}});
  return specs;
}

StagingBuffer state_of(uint64_t bytes) {
  StagingBuffer memory;
  if (!memory.reserve(bytes).ok()) std::abort();
  uint64_t word = 88172645463325252ULL;
  auto* words = reinterpret_cast<uint64_t*>(memory.bytes().data());
  for (uint64_t i = 0; i < bytes / 8; ++i) {
    word ^= word << 13;
    word ^= word >> 7;
    word ^= word << 17;
    words[i] = word;
  }
  return memory;
}

void drop_from_cache(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  ::fdatasync(fd);
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  ::close(fd);
}

// Runs `work(rank)` in processes of their own; `prepare` before the clock starts.
template <typename Prepare, typename Work>
int in_ranks(uint32_t ranks, Shared& shared, Prepare prepare, Work work) {
  std::vector<pid_t> children;
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    const pid_t child = ::fork();
    if (child == 0) {
      auto prepared = prepare(rank);
      ++shared.ready;
      while (!shared.go) std::this_thread::yield();
      const Instant began = now();
      const Status done = work(rank, prepared);
      shared.seconds[rank] = seconds_since(began);
      if (!done.ok()) ::_exit(fail(done.error().message));
      ::_exit(0);
    }
    children.push_back(child);
  }
  // One that ends before it was ready has failed, and said why. Polled: both a word in shared memory and an
  // end are waited for, before anything is timed.
  int bad = 0;
  while (shared.ready < ranks && ::waitpid(-1, &bad, WNOHANG) == 0)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  if (shared.ready < ranks) {
    for (const pid_t child : children) ::kill(child, SIGKILL);
    return 1;
  }
  shared.go = true;
  for (const pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    bad |= status;
  }
  return bad == 0 ? 0 : 1;
}

double slowest(const double* values, uint32_t ranks) { return *std::max_element(values, values + ranks); }

struct Prepared {
  StagingBuffer state;
  std::shared_ptr<const ShardTemplate> shape;
  StagingBuffer buffer;
};

std::vector<ByteSpan> tensors_of(const StagingBuffer& state, const Bench& bench) {
  std::vector<ByteSpan> spans;
  for (int i = 0; i < 64; ++i)
    spans.push_back(
        ByteSpan(state.bytes()).subspan(static_cast<size_t>(i) * (bench.bytes / 64), bench.bytes / 64));
  return spans;
}

Status save_rank(const Bench& bench, uint32_t rank, Prepared& prepared, const std::string& save_folder,
                 uint64_t bound, const VersionId& id, Shared& shared) {
  SaveShardOptions options;
  options.write.writer_nonce = random_nonce();
  options.staging_bytes_max = bound;
  options.folder = [&]() -> Result<std::string> { return save_folder; };
  StageProgress progress;
  MUSTER_ASSIGN(const SaveShardReport report,
                save_shard(real_files(), prepared.shape, id, read_from(tensors_of(prepared.state, bench)),
                           prepared.buffer, options, progress));
  shared.records[rank] = report.record;
  shared.staged_seconds[rank] = static_cast<double>(report.staged_after) / 1e9;
  if (rank == 0) std::fprintf(stderr, "written by %s\n", to_string(report.method));
  return ok();
}

// A steady-state save: memory was touched by an earlier one, as in a job.
int save(const Bench& bench, uint64_t bound, Shared& shared) {
  auto folder = Folder::own(real_files(), bench.folder, "a benchmark");
  if (!folder.ok()) return fail(folder.error().message);
  const VersionId id{1, random_nonce()};
  const auto save_folder = folder->begin_save(id);
  if (!save_folder.ok()) return fail(save_folder.error().message);
  const SavePlan plan = plan_save(specs_of(bench), bench.ranks).value();
  const auto prepare = [&](uint32_t rank) {
    Prepared prepared{state_of(bench.bytes), value_or_exit(make_shard_template(plan, rank)), {}};
    const uint64_t room = prepared.shape->geometry.file_bytes() + 2 * kChunkBytes;
    (void)prepared.buffer.reserve(bound == 0 ? room : bound + (1 << 20));
    std::fill(prepared.buffer.bytes().begin(), prepared.buffer.bytes().end(), std::byte{1});
    // What a plain copy of the same bytes into memory that is there costs.
    const uint64_t bytes = std::min<uint64_t>(plan.bytes(rank), prepared.buffer.bytes().size());
    const Instant began = now();
    std::copy_n(prepared.state.bytes().begin(), bytes, prepared.buffer.bytes().begin());
    shared.copy_seconds[rank] =
        seconds_since(began) * static_cast<double>(plan.bytes(rank)) / static_cast<double>(bytes);
    return prepared;
  };
  const auto work = [&](uint32_t rank, Prepared& prepared) {
    return save_rank(bench, rank, prepared, *save_folder, bound, id, shared);
  };
  if (in_ranks(bench.ranks, shared, prepare, work) != 0) return 1;
  const Instant began = now();
  Manifest manifest;
  manifest.id = id;
  manifest.tensors = plan.specs();
  const Status adopted = adopt_shards(manifest, {shared.records, bench.ranks});
  if (!adopted.ok()) return fail(adopted.error().message);
  const Status published = folder->publish(manifest);
  if (!published.ok()) return fail(published.error().message);
  std::printf("seconds %.4f\n", slowest(shared.seconds, bench.ranks) + seconds_since(began));
  std::printf("staged_seconds %.4f\n", slowest(shared.staged_seconds, bench.ranks));
  std::printf("copy_seconds %.4f\n", slowest(shared.copy_seconds, bench.ranks));
  return 0;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void change_a_tenth(MutableByteSpan state, bool scattered, uint8_t turn) {
  const uint64_t slabs = state.size() / kSlabBytes;
  for (uint64_t slab = 0; slab < slabs; ++slab) {
    const bool changes = scattered ? slab % 10 == 5 : slab < slabs / 10;
    if (changes) state[slab * kSlabBytes + 8192] = static_cast<std::byte>(turn);
  }
}

// Each time the whole of a save but its publication; files are removed after their turn.
int save_changed(const Bench& bench, bool scattered) {
  constexpr uint8_t kTurns = 9;
  const StagingBuffer state = state_of(bench.bytes);
  const auto shape = value_or_exit(make_shard_template(plan_save(specs_of(bench), 1).value(), 0));
  StagingBuffer buffer;
  uint64_t saves = 0;
  const auto save_once = [&](const std::optional<EarlierShard>& earlier) {
    SaveShardOptions options;
    options.write.writer_nonce = ++saves;
    options.folder = [&]() -> Result<std::string> { return bench.folder; };
    options.earlier = earlier;
    options.earlier_path = bench.folder + "/" + shard_file_name(0, 1);
    StageProgress progress;
    const Instant began = now();
    auto report = value_or_exit(save_shard(real_files(), shape, {saves, saves},
                                           read_from(tensors_of(state, bench)), buffer, options, progress));
    if (saves > 1) (void)real_files().unlink(bench.folder + "/" + shard_file_name(0, saves));
    return std::pair(seconds_since(began), std::move(report));
  };
  const auto [unused, first] = save_once(std::nullopt);
  EarlierShard earlier{first.record, first.table, false};
  std::vector<double> whole, cloned, whole_staged, cloned_staged;
  uint64_t shared = 0;
  for (uint8_t turn = 1; turn <= kTurns; ++turn) {
    change_a_tenth(state.bytes(), scattered, turn);
    const auto written = save_once(std::nullopt);
    const auto sharing = save_once(earlier);
    whole.push_back(written.first);
    cloned.push_back(sharing.first);
    whole_staged.push_back(static_cast<double>(written.second.staged_after) / 1e9);
    cloned_staged.push_back(static_cast<double>(sharing.second.staged_after) / 1e9);
    shared = sharing.second.cloned.bytes;
    if (shared == 0) return fail("nothing was cloned: " + sharing.second.cloned.problem);
  }
  (void)real_files().unlink(bench.folder + "/" + shard_file_name(0, 1));
  std::printf("whole_seconds %.4f\ncloned_seconds %.4f\n", median(whole), median(cloned));
  std::printf("whole_staged_seconds %.4f\ncloned_staged_seconds %.4f\n", median(whole_staged),
              median(cloned_staged));
  std::printf("cloned_share %.4f\n", static_cast<double>(shared) / static_cast<double>(bench.bytes));
  return 0;
}

Result<Candidate> newest(const Bench& bench) {
  MUSTER_ASSIGN(Folder folder, Folder::look(real_files(), bench.folder));
  MUSTER_ASSIGN(auto candidates, folder.versions());
  if (candidates.empty()) return Error{ErrorCode::kMisuse, "no save in " + bench.folder};
  return candidates.front();
}

int restore(const Bench& bench, Shared& shared) {
  const auto candidate = newest(bench);
  if (!candidate.ok()) return fail(candidate.error().message);
  const auto names = real_files().list(candidate->folder);
  for (const std::string& name : *names) drop_from_cache(candidate->folder + "/" + name);
  const auto prepare = [&](uint32_t) { return state_of(bench.bytes); };
  const auto work = [&](uint32_t rank, StagingBuffer& state) -> Status {
    std::vector<MutableByteSpan> memory;
    for (int i = 0; i < 64; ++i)
      memory.push_back(state.bytes().subspan(static_cast<size_t>(i) * (bench.bytes / 64), bench.bytes / 64));
    MUSTER_ASSIGN(const RestoreReport report,
                  checkpoint::restore(real_files(), candidate->folder, *candidate->manifest,
                                      {specs_of(bench), rank, bench.ranks, ReadShare::kPart}, memory));
    shared.buffer_bytes[rank] = static_cast<double>(report.buffer_bytes);
    shared.read_bytes += report.bytes_read;
    if (rank == 0)
      std::fprintf(stderr, "read by %s, %s\n", to_string(report.method),
                   report.direct ? "direct" : "buffered");
    return ok();
  };
  if (in_ranks(bench.ranks, shared, prepare, work) != 0) return 1;
  std::printf("seconds %.4f\n", slowest(shared.seconds, bench.ranks));
  std::printf("buffer_bytes %.0f\n", slowest(shared.buffer_bytes, bench.ranks));
  std::printf("read_bytes %.0f\n", static_cast<double>(shared.read_bytes.load()));
  return 0;
}

// One process, and what it reads is in the cache: the arithmetic of digests and little else.
int verify(const Bench& bench) {
  const auto candidate = newest(bench);
  if (!candidate.ok()) return fail(candidate.error().message);
  double seconds = 0;
  for (int round = 0; round < 2; ++round) {
    const Instant began = now();
    const Status verified = verify_shards(real_files(), candidate->folder, *candidate->manifest);
    if (!verified.ok()) return fail(verified.error().message);
    seconds = seconds_since(began);
  }
  std::printf("seconds %.4f\n", seconds);
  return 0;
}

std::string raw_name(const Bench& bench, uint32_t rank) {
  return bench.folder + "/raw-" + std::to_string(rank);
}

int raw_write(const Bench& bench, Shared& shared) {
  const auto prepare = [&](uint32_t) { return state_of(bench.bytes / bench.ranks); };
  const auto work = [&](uint32_t rank, StagingBuffer& state) -> Status {
    const std::string path = raw_name(bench, rank);
    (void)real_files().unlink(path);
    MUSTER_ASSIGN(auto file, real_files().open(path, OpenMode::kCreate, true));
    MUSTER_TRY(file->allocate(state.bytes().size()));
    auto queue = file->write_queue({8, {state.bytes()}, IoMethod::kUring});
    const uint64_t count = (state.bytes().size() + kRequestBytes - 1) / kRequestBytes;
    for (uint64_t i = 0; i < count; ++i) {
      if (i >= 8) MUSTER_TRY(queue->wait());
      const uint64_t at = i * kRequestBytes;
      MUSTER_TRY(queue->submit(state.bytes().subspan(at, std::min(kRequestBytes, state.bytes().size() - at)),
                               at, i));
    }
    for (uint64_t i = 0; i < std::min<uint64_t>(count, 8); ++i) MUSTER_TRY(queue->wait());
    MUSTER_TRY(file->sync());
    return real_files().sync_directory(bench.folder);
  };
  if (in_ranks(bench.ranks, shared, prepare, work) != 0) return 1;
  std::printf("seconds %.4f\n", slowest(shared.seconds, bench.ranks));
  return 0;
}

// Four threads a rank, each with requests of its own: as many in flight as the writer has.
int raw_read(const Bench& bench, Shared& shared) {
  constexpr uint64_t kThreads = 4;
  const auto prepare = [&](uint32_t) { return state_of(bench.bytes / bench.ranks); };
  const auto work = [&](uint32_t rank, StagingBuffer& state) -> Status {
    MUSTER_ASSIGN(auto file, real_files().open(raw_name(bench, rank), OpenMode::kRead, true));
    std::vector<std::thread> threads;
    std::atomic<bool> good{true};
    for (uint64_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        for (uint64_t at = t * kRequestBytes; at < state.bytes().size(); at += kThreads * kRequestBytes)
          if (!file->pread(state.bytes().subspan(at, std::min(kRequestBytes, state.bytes().size() - at)), at)
                   .ok())
            good = false;
      });
    }
    for (std::thread& thread : threads) thread.join();
    if (!good) return Error{ErrorCode::kEnvironment, "cannot read " + raw_name(bench, rank)};
    return ok();
  };
  if (in_ranks(bench.ranks, shared, prepare, work) != 0) return 1;
  std::printf("seconds %.4f\n", slowest(shared.seconds, bench.ranks));
  return 0;
}

// One thread a rank, as many requests in flight as the writer has.
int raw_read_uring(const Bench& bench, Shared& shared) {
  const auto prepare = [&](uint32_t) { return state_of(bench.bytes / bench.ranks); };
  const auto work = [&](uint32_t rank, StagingBuffer& state) -> Status {
    MUSTER_ASSIGN(auto file, real_files().open(raw_name(bench, rank), OpenMode::kRead, true));
    const auto queue = real_files().read_queue({8, {state.bytes()}, IoMethod::kUring});
    const uint64_t count = (state.bytes().size() + kRequestBytes - 1) / kRequestBytes;
    for (uint64_t i = 0; i < count; ++i) {
      if (i >= 8) MUSTER_TRY(queue->wait());
      const uint64_t at = i * kRequestBytes;
      const uint64_t size = std::min(kRequestBytes, state.bytes().size() - at);
      MUSTER_TRY(queue->submit(*file, state.bytes().subspan(at, size), at, i));
    }
    for (uint64_t i = 0; i < std::min<uint64_t>(count, 8); ++i) MUSTER_TRY(queue->wait());
    return ok();
  };
  if (in_ranks(bench.ranks, shared, prepare, work) != 0) return 1;
  std::printf("seconds %.4f\n", slowest(shared.seconds, bench.ranks));
  return 0;
}

// What a slab's copy and digest cost, in several ways, beside one plain copy of all: medians of turns taken.
int copies(const Bench& bench) {
  const StagingBuffer source = state_of(bench.bytes);
  const StagingBuffer target = state_of(bench.bytes);
  uint64_t sum = 0;  // so that nothing is left out
  const auto each_slab = [&](auto one) {
    for (uint64_t at = 0; at < bench.bytes; at += kSlabBytes)
      one(target.bytes().subspan(at, kSlabBytes), source.bytes().subspan(at, kSlabBytes));
  };
  struct Way {
    const char* name;
    std::function<void()> run;
    std::vector<double> seconds;
  };
  const DigestWay& plain = digest_ways().back();
  const auto copy = [](MutableByteSpan to, ByteSpan from) {
    std::memcpy(to.data(), from.data(), from.size());
  };
  const crypto::Gmac gmac(crypto::Key{});
  const auto tag = [&](ByteSpan bytes) {
    return static_cast<uint64_t>(value_or_exit(gmac.tag(1, bytes))[0]) + 1;
  };
  std::vector<Way> ways = {
      {"memcpy", [&] { copy(target.bytes().first(bench.bytes), source.bytes().first(bench.bytes)); }, {}},
      {"plain_digest", [&] { each_slab([&](auto to, auto) { sum += plain.digest(to).low; }); }, {}},
      {"digest", [&] { each_slab([&](auto to, auto) { sum += digest_of(to).low; }); }, {}},
      {"copy_then_plain_digest",
       [&] {
         each_slab([&](auto to, auto from) {
           copy(to, from);
           sum += plain.digest(to).low;
         });
       },
       {}},
      {"copy_then_digest",
       [&] {
         each_slab([&](auto to, auto from) {
           copy(to, from);
           sum += digest_of(to).low;
         });
       },
       {}},
      {"digest_then_copy",
       [&] {
         each_slab([&](auto to, auto from) {
           sum += digest_of(from).low;
           copy(to, from);
         });
       },
       {}},
      {"tiles_past_the_cache",
       [&] { each_slab([&](auto to, auto from) { sum += copy_and_digest(to, from).low; }); },
       {}},
      {"tag", [&] { each_slab([&](auto to, auto) { sum += tag(to); }); }, {}},
      {"tiles_past_the_cache_and_tag",
       [&] {
         each_slab([&](auto to, auto from) {
           sum += copy_and_digest(to, from).low;
           sum += tag(from);
         });
       },
       {}}};
  for (int round = 0; round < 9; ++round) {
    for (Way& way : ways) {
      const Instant began = now();
      way.run();
      way.seconds.push_back(seconds_since(began));
    }
  }
  for (Way& way : ways) {
    std::sort(way.seconds.begin(), way.seconds.end());
    std::printf("%s_seconds %.4f\n", way.name, way.seconds[way.seconds.size() / 2]);
  }
  return sum == 0 ? 1 : 0;
}

// Interleaved, so that the machine's moods meet both alike.
int seal(const Bench& bench) {
  const SealKeyPtr key = value_or_exit(SealKey::of(random_bytes(kSealKeyBytesMin), "a key"));
  const SavePlan plan = plan_save(specs_of(bench), 1).value();
  const StagingBuffer state = state_of(bench.bytes);
  struct Kind {
    const char* name;
    SealKeyPtr key;
    std::vector<double> saved, staged, verified;
  };
  Kind kinds[] = {{"plain", nullptr, {}, {}, {}}, {"sealed", key, {}, {}, {}}};
  StagingBuffer buffer;
  for (int round = 0; round < 10; ++round) {
    for (Kind& kind : kinds) {
      const auto shape = value_or_exit(make_shard_template(plan, 0, kind.key != nullptr));
      SaveShardOptions options;
      options.write.writer_nonce = random_nonce();
      options.folder = [&]() -> Result<std::string> { return bench.folder; };
      options.key = kind.key;
      StageProgress progress;
      const Instant began = now();
      const SaveShardReport report = value_or_exit(save_shard(
          real_files(), shape, {1, 1}, read_from(tensors_of(state, bench)), buffer, options, progress));
      const double saved = seconds_since(began);
      const Instant read = now();
      ShardReader reader =
          value_or_exit(ShardReader::open(real_files(), bench.folder, report.record, kind.key));
      if (const Status verified = reader.verify(); !verified.ok()) return fail(verified.error().message);
      const double verified = seconds_since(read);
      (void)real_files().unlink(bench.folder + "/" + shard_file_name(0, report.record.writer_nonce));
      if (round == 0) continue;  // memory is touched for the first time
      kind.saved.push_back(saved);
      kind.staged.push_back(static_cast<double>(report.staged_after) / 1e9);
      kind.verified.push_back(verified);
    }
  }
  const auto median = [](std::vector<double>& seconds) {
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
  };
  for (Kind& kind : kinds) {
    std::printf("%s_seconds %.4f\n", kind.name, median(kind.saved));
    std::printf("%s_staged_seconds %.4f\n", kind.name, median(kind.staged));
    std::printf("%s_verify_seconds %.4f\n", kind.name, median(kind.verified));
  }
  return 0;
}

int hdf5_write(const Bench& bench, Shared& shared) {
  const auto prepare = [&](uint32_t) { return state_of(bench.bytes / bench.ranks); };
  const auto work = [&](uint32_t rank, StagingBuffer& state) -> Status {
    const std::string path = bench.folder + "/hdf5-" + std::to_string(rank) + ".h5";
    const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    const uint64_t each = state.bytes().size() / 32;
    for (int i = 0; i < 32 && file >= 0; ++i) {
      const hsize_t extent = each / 4;
      const hid_t space = H5Screate_simple(1, &extent, nullptr);
      const hid_t set = H5Dcreate2(file, ("t" + std::to_string(i)).c_str(), H5T_IEEE_F32LE, space,
                                   H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
      H5Dwrite(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT,
               state.bytes().data() + static_cast<size_t>(i) * each);
      H5Dclose(set);
      H5Sclose(space);
    }
    if (file < 0 || H5Fclose(file) < 0) return Error{ErrorCode::kEnvironment, "cannot write " + path};
    MUSTER_ASSIGN(auto synced, real_files().open(path, OpenMode::kReadWrite));
    MUSTER_TRY(synced->sync());
    return real_files().sync_directory(bench.folder);
  };
  if (in_ranks(bench.ranks, shared, prepare, work) != 0) return 1;
  std::printf("seconds %.4f\n", slowest(shared.seconds, bench.ranks));
  return 0;
}

// 10,000 ranks and 1,000 tensors.
int manifest() {
  Manifest manifest;
  manifest.id = {1, 1};  // a shard that names no earlier save must not seem to name this one
  for (int t = 0; t < 1000; ++t)
    manifest.tensors.push_back({"model.layers." + std::to_string(t) + ".weight",
                                DType::kBFloat16,
                                {4096, 4096},
                                t % 2 == 0 ? 0 : kReplicated});
  const SavePlan plan = plan_save(manifest.tensors, 10'000).value();
  for (uint32_t p = 0; p < 10'000; ++p)
    manifest.shards.push_back(
        {p * 0x9e3779b97f4a7c15ULL, ShardGeometry::of(1 << 20, shard_layout(plan, p)), {p, p}});
  const std::string text = encode(manifest);
  const Instant began = now();
  const auto decoded = decode_manifest(as_bytes(text), "the manifest");
  if (!decoded.ok()) return fail(decoded.error().message);
  std::printf("seconds %.4f\nbytes %zu\n", seconds_since(began), text.size());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return fail("usage: bench_checkpoint MODE FOLDER MIB RANKS");
  const std::string mode = argv[1];
  const Bench bench{argv[2], std::strtoull(argv[3], nullptr, 10) << 20,
                    static_cast<uint32_t>(std::strtoul(argv[4], nullptr, 10))};
  if (bench.ranks < 1 || bench.ranks > 64 || bench.bytes < (64 << 20))
    return fail("1 to 64 ranks, 64 MiB or more");
  void* memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return fail("no memory");
  Shared& shared = *new (memory) Shared;
  if (mode == "save") return save(bench, 0, shared);
  if (mode.starts_with("save_"))
    return save(bench, std::strtoull(mode.c_str() + 5, nullptr, 10) << 20, shared);
  if (mode == "restore") return restore(bench, shared);
  if (mode == "verify") return verify(bench);
  if (mode == "raw_write") return raw_write(bench, shared);
  if (mode == "raw_read") return raw_read(bench, shared);
  if (mode == "raw_read_uring") return raw_read_uring(bench, shared);
  if (mode == "changed" || mode == "scattered") return save_changed(bench, mode == "scattered");
  if (mode == "copies") return copies(bench);
  if (mode == "seal") return seal(bench);
  if (mode == "hdf5_write") return hdf5_write(bench, shared);
  if (mode == "manifest") return manifest();
  return fail("unknown mode '" + mode + "'");
}
