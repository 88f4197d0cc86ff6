#include "checkpoint/restore.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace muster::checkpoint {
namespace {

constexpr uint64_t kReadSlabs = 16;  // read at once where they are needed one behind the other

// A window of verified slabs that moves forward over one shard.
class SlabWindow {
 public:
  explicit SlabWindow(ShardReader& reader)
      : reader_(reader), buffer_(std::min(kReadSlabs * kSlabBytes, reader.geometry().payload_bytes)) {}

  // The verified bytes from `at` on: at least one, at most up to the end of the window. `end` is as far as
  // the caller will go on without a gap of a slab.
  Result<ByteSpan> from(uint64_t at, uint64_t end) {
    if (at < window_.begin || at >= window_.end) MUSTER_TRY(load(at / kSlabBytes, end));
    return ByteSpan(buffer_).subspan(at - window_.begin, window_.end - at);
  }

 private:
  Status load(uint64_t slab, uint64_t end) {
    const ShardGeometry& geometry = reader_.geometry();
    const uint64_t last = std::min((end - 1) / kSlabBytes, geometry.slab_count() - 1);
    const uint64_t count = std::min(kReadSlabs, last - slab + 1);
    window_ = {0, 0};
    const Range bytes{geometry.slab(slab).begin, geometry.slab(slab + count - 1).end};
    MUSTER_TRY(reader_.read(slab, count, MutableByteSpan(buffer_).first(bytes.size())));
    window_ = bytes;
    return ok();
  }

  ShardReader& reader_;
  ByteBuffer buffer_;
  Range window_;
};

Status copy_run(SlabWindow& window, uint64_t source, uint64_t reach, MutableByteSpan target) {
  while (!target.empty()) {
    MUSTER_ASSIGN(const ByteSpan bytes, window.from(source, std::max(reach, source + target.size())));
    const size_t count = std::min(bytes.size(), target.size());
    std::copy_n(bytes.begin(), count, target.begin());
    target = target.subspan(count);
    source += count;
  }
  return ok();
}

// Where the last run of this copy ends, or of this run if there are gaps of whole slabs between runs.
uint64_t reach_of(const Copy& copy, uint64_t outer) {
  const bool has_gaps = std::max(copy.source_strides[0], copy.source_strides[1]) > kSlabBytes;
  const uint64_t inner_end = copy.source + outer * copy.source_strides[0] +
                             (copy.counts[1] - 1) * copy.source_strides[1] + copy.run_bytes;
  if (has_gaps) return copy.source_strides[1] > kSlabBytes ? 0 : inner_end;
  return inner_end + (copy.counts[0] - 1 - outer) * copy.source_strides[0];
}

Status copy_all(SlabWindow& window, const Copy& copy, MutableByteSpan memory) {
  for (uint64_t i = 0; i < copy.counts[0]; ++i) {
    const uint64_t reach = reach_of(copy, i);
    for (uint64_t j = 0; j < copy.counts[1]; ++j) {
      const uint64_t source = copy.source + i * copy.source_strides[0] + j * copy.source_strides[1];
      const uint64_t target = copy.target + i * copy.target_strides[0] + j * copy.target_strides[1];
      MUSTER_TRY(copy_run(window, source, reach, memory.subspan(target, copy.run_bytes)));
    }
  }
  return ok();
}

uint64_t bytes_of_copy(const Copy& copy) { return copy.run_bytes * copy.counts[0] * copy.counts[1]; }

void check_memory(const RestoreRequest& request, std::span<const MutableByteSpan> memory) {
  MUSTER_CHECK(memory.size() == request.tensors.size(), "restore needs one span for each tensor");
  for (size_t t = 0; t < memory.size(); ++t) {
    MUSTER_CHECK(memory[t].size() == local_bytes(request.tensors[t], request.part, request.parts),
                 "wrong memory for tensor " + request.tensors[t].name);
  }
}

}  // namespace

Result<RestoreReport> restore(FileSystem& files, const std::string& folder, const Manifest& manifest,
                              const RestoreRequest& request, std::span<const MutableByteSpan> memory) {
  MUSTER_ASSIGN(const SavePlan saved,
                plan_save(manifest.tensors, static_cast<uint32_t>(manifest.shards.size())));
  MUSTER_ASSIGN(const std::vector<Copy> copies,
                plan_restore(saved, request.tensors, request.part, request.parts, request.share));
  check_memory(request, memory);
  RestoreReport report;
  for (size_t i = 0; i < copies.size();) {
    const uint32_t participant = copies[i].participant;
    MUSTER_ASSIGN(ShardReader reader, ShardReader::open(files, folder, manifest.shard(participant)));
    SlabWindow window(reader);
    for (; i < copies.size() && copies[i].participant == participant; ++i) {
      MUSTER_TRY(copy_all(window, copies[i], memory[copies[i].tensor]));
      report.bytes_needed += bytes_of_copy(copies[i]);
    }
    report.bytes_read += reader.bytes_read();
    ++report.shards;
  }
  return report;
}

Status verify_shard(FileSystem& files, const std::string& folder, const Manifest& manifest,
                    uint32_t participant) {
  MUSTER_ASSIGN(ShardReader reader, ShardReader::open(files, folder, manifest.shard(participant)));
  return reader.verify();
}

Status verify_shards(FileSystem& files, const std::string& folder, const Manifest& manifest) {
  for (uint32_t p = 0; p < manifest.shards.size(); ++p) MUSTER_TRY(verify_shard(files, folder, manifest, p));
  return ok();
}

}  // namespace muster::checkpoint
