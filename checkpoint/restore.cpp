#include "checkpoint/restore.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

#include "checkpoint/elements.h"
#include "checkpoint/read_plan.h"
#include "runtime/base/check.h"
#include "runtime/base/digest.h"
#include "runtime/base/threads.h"

namespace muster::checkpoint {
namespace {

constexpr size_t kOpenShardsMax = 64;  // each holds a descriptor and its slab table
constexpr uint32_t kLanesMax = 4;

void check_memory(const RestoreRequest& request, std::span<const MutableByteSpan> memory) {
  MUSTER_CHECK(memory.size() == request.tensors.size(), "restore needs one span for each tensor");
  for (size_t t = 0; t < memory.size(); ++t) {
    const TensorSpec& spec = request.tensors[t];
    const uint64_t bytes = spec.split == kSharded ? local_bytes(spec, request.held)
                                                  : local_bytes(spec, request.part, request.parts);
    MUSTER_CHECK(memory[t].size() == bytes, "wrong memory for tensor " + spec.name);
  }
}

// The error of the earliest step that failed. Steps are taken in order, and who has taken one before that
// goes on with it: so the same damage gives the same words, whichever lane is quicker.
class FirstError {
 public:
  bool any() const { return step_.load(std::memory_order_relaxed) != kNone; }
  bool before(size_t step) const { return step_.load(std::memory_order_relaxed) < step; }
  void note(size_t step, const Error& error) {
    const std::lock_guard lock(mutex_);
    if (error_ && before(step)) return;
    error_ = error;
    step_.store(step, std::memory_order_relaxed);
  }
  Status status() const {
    const std::lock_guard lock(mutex_);
    return error_ ? Status(*error_) : ok();
  }

 private:
  static constexpr size_t kNone = SIZE_MAX;
  mutable std::mutex mutex_;
  std::atomic<size_t> step_{kNone};
  std::optional<Error> error_;
};

// Runs `lane(i)` for i below `count`, the first on this thread; fewer where the system grants no thread.
template <typename Lane>
void run_lanes(size_t count, Lane lane) {
  std::vector<std::thread> threads;
  for (size_t i = 1; i < count; ++i) {
    auto thread = try_start_thread("muster-restore", [&lane, i] { lane(i); });
    if (!thread) break;
    threads.push_back(*std::move(thread));
  }
  lane(0);
  for (std::thread& thread : threads) thread.join();
}

Error lost(const Error& error) {
  return {ErrorCode::kDropCheckpoint, "a shard cannot be read: " + error.message + "; use an older version"};
}

// Says nothing about the version.
Status or_later(Status reserved) {
  return reserved.ok() ? ok() : Status(Error{ErrorCode::kRetry, reserved.error().message});
}

struct OpenShard {
  ShardReader reader;
  std::span<const Copy> copies;
  CopyIndex index;
};

struct Read {
  const OpenShard* shard = nullptr;
  SlabRun slabs;
};

struct Cast {
  DType from;
  DType to;
};

std::vector<std::optional<Cast>> casts_of(const TensorMatch& match, std::span<const TensorSpec> saved,
                                          std::span<const TensorSpec> wanted) {
  std::vector<std::optional<Cast>> casts(wanted.size());
  for (size_t t = 0; t < wanted.size(); ++t) {
    if (!match.saved[t]) continue;
    const DType from = saved[*match.saved[t]].dtype;
    if (from != wanted[t].dtype) casts[t] = Cast{from, wanted[t].dtype};
  }
  return casts;
}

// Some shards, all of whose needed slabs are read once.
class Batch {
 public:
  Batch(FileSystem& files, const ReadOptions& options, std::span<const MutableByteSpan> memory,
        std::span<const std::optional<Cast>> casts)
      : files_(files), options_(options), memory_(memory), casts_(casts) {}

  // The copies from each shard.
  Status run(const std::string& folder, const Manifest& manifest,
             std::span<const std::span<const Copy>> sources, RestoreReport& report) {
    MUSTER_TRY(open(folder, manifest, sources));
    plan(report);
    MUSTER_TRY(reserve());
    compressed_ = manifest.compressed();
    run_lanes(buffers_.size(), [this](size_t lane) { read(buffers_[lane].bytes()); });
    report.method = static_cast<IoMethod>(method_.load());
    uint64_t buffer_bytes = 0;
    for (const StagingBuffer& buffer : buffers_) buffer_bytes += buffer.bytes().size();
    report.buffer_bytes = std::max(report.buffer_bytes, buffer_bytes);
    report.became_infinite += became_infinite_;
    return failure_.status();
  }

 private:
  size_t lanes_for(size_t steps) const {
    const uint32_t wanted =
        options_.lanes != 0 ? options_.lanes : std::min(kLanesMax, std::thread::hardware_concurrency());
    return std::max<size_t>(1, std::min<size_t>(wanted, steps));
  }

  Status open(const std::string& folder, const Manifest& manifest,
              std::span<const std::span<const Copy>> sources) {
    shards_.resize(sources.size());
    std::atomic<size_t> next{0};
    run_lanes(lanes_for(sources.size()), [&](size_t) {
      for (size_t i = next++; i < sources.size() && !failure_.before(i); i = next++) {
        const ShardRecord record = manifest.shard(sources[i].front().participant);
        auto reader = ShardReader::open(files_, folder, record, manifest.key, options_.direct_bytes_min);
        if (reader.ok())
          shards_[i] = std::make_unique<OpenShard>(
              OpenShard{std::move(reader).value(), sources[i], CopyIndex(sources[i])});
        else
          failure_.note(i, reader.error());
      }
    });
    return failure_.status();
  }

  void plan(RestoreReport& report) {
    for (const auto& shard : shards_) {
      const ShardGeometry& geometry = shard->reader.geometry();
      for (const SlabRun& run : slabs_needed(shard->copies, geometry.payload_bytes, kReadSlabs)) {
        reads_.push_back({shard.get(), run});
        report.bytes_read += geometry.range_of(run.first, run.count).size();
      }
      report.bytes_read += shard->reader.bytes_read();
      report.direct |= shard->reader.direct();
      ++report.shards;
    }
  }

  // A lane for at least two reads, since one read is no pipeline.
  Status reserve() {
    buffers_.resize(lanes_for((reads_.size() + 1) / 2));
    const uint64_t each = (reads_.size() + buffers_.size() - 1) / buffers_.size();
    for (StagingBuffer& buffer : buffers_)
      MUSTER_TRY(or_later(buffer.reserve(std::clamp<uint64_t>(each, 1, options_.depth) * kReadBytes)));
    return ok();
  }

  // One lane: as many reads in flight as it has buffers, taken from the common list in its order. After an
  // error none is begun, but those in flight are used as far as they came before it.
  void read(MutableByteSpan memory) {
    const auto depth = static_cast<uint32_t>(memory.size() / kReadBytes);
    const auto queue = compressed_ ? reads_in_turn() : files_.read_queue({depth, {memory}, options_.method});
    method_ = static_cast<int>(queue->method());
    std::vector<size_t> read_in(depth);  // by buffer
    std::vector<uint32_t> free(depth);
    for (uint32_t i = 0; i < depth; ++i) free[i] = i;
    const auto buffer = [memory](uint64_t i) { return memory.subspan(i * kReadBytes, kReadBytes); };
    while (true) {
      while (!free.empty() && !failure_.any()) {
        const size_t next = next_read_++;
        if (next >= reads_.size()) break;
        const Status begun = begin(*queue, reads_[next], buffer(free.back()), free.back());
        if (!begun.ok()) {
          failure_.note(next, begun.error());
        } else {
          read_in[free.back()] = next;
          free.pop_back();
        }
      }
      if (free.size() == depth) return;
      const auto moved = queue->wait();
      // Which read it was the queue does not tell, but the error names the file. What a read found damaged
      // goes first.
      if (!moved.ok()) return failure_.note(reads_.size(), lost(moved.error()));
      const size_t read = read_in[moved->tag];
      const Status used = failure_.before(read) ? ok() : use(reads_[read], buffer(moved->tag), *moved);
      if (!used.ok()) failure_.note(read, used.error());
      free.push_back(static_cast<uint32_t>(moved->tag));
    }
  }

  static Status begin(ReadQueue& queue, const Read& read, MutableByteSpan buffer, uint32_t slot) {
    return read.shard->reader.begin(queue, read.slabs.first, read.slabs.count, buffer, slot);
  }

  // The memory into which all of a slab goes. It is copied while it is digested: nobody uses the memory
  // before all is right.
  std::optional<MutableByteSpan> only_target(const OpenShard& shard, Range slab) const {
    std::optional<MutableByteSpan> target;
    shard.index.each(slab, [&](const Copy& copy) {
      if (!target && !casts_[copy.tensor]) target = whole_window(copy, slab, memory_[copy.tensor]);
    });
    return target;
  }

  // Slab by slab, so that what was just digested is copied from the cache.
  Status use(const Read& read, ByteSpan buffer, const Moved& moved) {
    const ShardReader& reader = read.shard->reader;
    const Range all = reader.geometry().range_of(read.slabs.first, read.slabs.count);
    MUSTER_TRY(reader.check_length(all, moved.bytes));
    for (uint64_t i = read.slabs.first; i < read.slabs.first + read.slabs.count; ++i) {
      const Range slab = reader.geometry().slab(i);
      const ByteSpan bytes = buffer.subspan(slab.begin - all.begin, slab.size());
      if (const auto target = only_target(*read.shard, slab)) {
        MUSTER_TRY(reader.check(i, bytes, copy_and_digest(*target, bytes)));
        continue;
      }
      MUSTER_TRY(reader.check(i, bytes));
      read.shard->index.each(slab, [&](const Copy& copy) {
        if (casts_[copy.tensor])
          cast_within(copy, slab, bytes);
        else
          copy_within(copy, slab, bytes, memory_[copy.tensor]);
      });
    }
    return ok();
  }

  // Slabs and pieces begin at multiples of every element's size, so a run has whole elements.
  void cast_within(const Copy& copy, Range slab, ByteSpan bytes) {
    const Cast& cast = *casts_[copy.tensor];
    uint64_t became_infinite = 0;
    each_run_within(copy, slab, [&](Range part, uint64_t target) {
      const uint64_t first = target / size_of(cast.from);
      const uint64_t count = part.size() / size_of(cast.from);
      became_infinite +=
          cast_elements(cast.from, bytes.subspan(part.begin - slab.begin, part.size()), cast.to,
                        memory_[copy.tensor].subspan(first * size_of(cast.to), count * size_of(cast.to)));
    });
    became_infinite_ += became_infinite;
  }

  FileSystem& files_;
  const ReadOptions& options_;
  const std::span<const MutableByteSpan> memory_;
  const std::span<const std::optional<Cast>> casts_;  // by tensor
  bool compressed_ = false;                           // the lanes decompress, in place of a device's reads
  std::atomic<uint64_t> became_infinite_{0};
  std::vector<std::unique_ptr<OpenShard>> shards_;
  std::vector<Read> reads_;
  std::atomic<size_t> next_read_{0};
  std::atomic<int> method_{0};
  FirstError failure_;
  std::vector<StagingBuffer> buffers_;
};

// By shard.
std::vector<std::span<const Copy>> by_shard(std::span<const Copy> copies) {
  std::vector<std::span<const Copy>> sources;
  for (size_t begin = 0, end = 0; begin < copies.size(); begin = end) {
    while (end < copies.size() && copies[end].participant == copies[begin].participant) ++end;
    sources.push_back(copies.subspan(begin, end - begin));
  }
  return sources;
}

}  // namespace

Result<RestoreReport> restore(FileSystem& files, const std::string& folder, const Manifest& manifest,
                              const RestoreRequest& request, std::span<const MutableByteSpan> memory,
                              const ReadOptions& options) {
  MUSTER_ASSIGN(const SavePlan saved, plan_of(manifest));
  MUSTER_ASSIGN(const std::vector<Copy> copies,
                plan_restore(saved, request.tensors, request.part, request.parts, request.share,
                             request.rules, request.held));
  MUSTER_ASSIGN(const TensorMatch match, match_tensors(manifest.tensors, request.tensors, request.rules));
  const auto casts = casts_of(match, manifest.tensors, request.tensors);
  check_memory(request, memory);
  const auto sources = by_shard(copies);
  RestoreReport report;
  for (const Copy& copy : copies) report.bytes_needed += bytes_of_copy(copy);
  for (size_t at = 0; at < sources.size(); at += kOpenShardsMax) {
    const auto some = std::span(sources).subspan(at, std::min(kOpenShardsMax, sources.size() - at));
    MUSTER_TRY(Batch(files, options, memory, casts).run(folder, manifest, some, report));
  }
  return report;
}

Status verify_shard(FileSystem& files, const std::string& folder, const Manifest& manifest,
                    uint32_t participant, const Progress& progress, const Stop& stop) {
  MUSTER_ASSIGN(ShardReader reader,
                ShardReader::open(files, folder, manifest.shard(participant), manifest.key));
  return reader.verify(progress, stop);
}

Status verify_shards(FileSystem& files, const std::string& folder, const Manifest& manifest,
                     const Stop& stop) {
  for (uint32_t p = 0; p < manifest.shards.size(); ++p)
    MUSTER_TRY(verify_shard(files, folder, manifest, p, {}, stop));
  return ok();
}

}  // namespace muster::checkpoint
