#include "tests/checkpoint/saves.h"

namespace muster::testing {

WholeState WholeState::random(std::vector<TensorSpec> specs, uint64_t seed) {
  WholeState state{std::move(specs), {}};
  SeededRandom random(seed);
  for (const TensorSpec& spec : state.specs) {
    ByteBuffer bytes(total_bytes(spec));
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.next());
    state.tensors.push_back(std::move(bytes));
  }
  return state;
}

ByteBuffer WholeState::local(size_t tensor, const TensorSpec& spec, uint32_t part, uint32_t parts) const {
  if (spec.split == kReplicated) return tensors[tensor];
  const auto d = static_cast<size_t>(spec.split);
  // By the definition: larger parts first, sizes that differ by at most one.
  std::vector<uint32_t> owner_of_index;
  for (uint32_t p = 0; p < parts; ++p) {
    const uint64_t size = spec.shape[d] / parts + (p < spec.shape[d] % parts ? 1 : 0);
    owner_of_index.insert(owner_of_index.end(), size, p);
  }
  uint64_t inner = 1;
  for (size_t i = d + 1; i < spec.shape.size(); ++i) inner *= spec.shape[i];
  const size_t element = size_of(spec.dtype);
  ByteBuffer bytes;
  const uint64_t count = tensors[tensor].size() / element;
  for (uint64_t i = 0; i < count; ++i) {
    if (owner_of_index[i / inner % spec.shape[d]] != part) continue;
    const auto from = tensors[tensor].begin() + static_cast<ptrdiff_t>(i * element);
    bytes.insert(bytes.end(), from, from + static_cast<ptrdiff_t>(element));
  }
  return bytes;
}

// Row by row: larger shards first, sizes that differ by at most one.
ByteBuffer WholeState::local_shards(size_t tensor, const TensorSpec& spec, const HeldShards& held) const {
  ByteBuffer bytes;
  const uint64_t rows = spec.shape[0];
  const uint64_t row_bytes = rows == 0 ? 0 : tensors[tensor].size() / rows;
  uint64_t row = 0;
  for (uint32_t shard = 0; shard < held.count; ++shard) {
    for (uint64_t i = rows / held.count + (shard < rows % held.count ? 1 : 0); i > 0; --i, ++row) {
      if (!std::binary_search(held.mine.begin(), held.mine.end(), shard)) continue;
      const auto from = tensors[tensor].begin() + static_cast<ptrdiff_t>(row * row_bytes);
      bytes.insert(bytes.end(), from, from + static_cast<ptrdiff_t>(row_bytes));
    }
  }
  return bytes;
}

std::vector<ByteBuffer> WholeState::locals(std::span<const TensorSpec> as, uint32_t part, uint32_t parts,
                                           const HeldShards& held) const {
  std::vector<ByteBuffer> list;
  for (const TensorSpec& spec : as) {
    size_t tensor = 0;
    while (specs[tensor].name != spec.name) ++tensor;
    list.push_back(spec.split == kSharded ? local_shards(tensor, spec, held)
                                          : local(tensor, spec, part, parts));
  }
  return list;
}

SealKeyPtr seal_key(uint8_t byte) {
  return SealKey::of(ByteBuffer(kSealKeyBytesMin, std::byte{byte}), "a test's key").value();
}

namespace {

int random_split(const TensorSpec& spec, SeededRandom& random) {
  return spec.shape.empty() ? kReplicated : static_cast<int>(random.below(spec.shape.size() + 1)) - 1;
}

}  // namespace

std::vector<TensorSpec> random_specs(SeededRandom& random, size_t count) {
  std::vector<TensorSpec> specs;
  for (size_t t = 0; t < count; ++t) {
    TensorSpec spec{"t" + std::to_string(t), static_cast<DType>(random.below(kDTypeCount)), {}, kReplicated};
    const size_t dimensions = random.below(4);
    for (size_t d = 0; d < dimensions; ++d) spec.shape.push_back(random.below(random.chance(0.2) ? 60 : 12));
    // Now and then one that is longer than a slab, so that it is cut.
    if (random.chance(0.15)) spec.shape = {1 + random.below(5), 40'000 + random.below(90'000)};
    spec.split = random_split(spec, random);
    specs.push_back(std::move(spec));
  }
  return specs;
}

std::vector<TensorSpec> resplit(std::vector<TensorSpec> specs, SeededRandom& random) {
  for (TensorSpec& spec : specs) spec.split = random_split(spec, random);
  return specs;
}

std::vector<TensorSpec> with_shards(std::vector<TensorSpec> specs, SeededRandom& random) {
  for (TensorSpec& spec : specs) {
    if (!spec.shape.empty() && random.chance(0.6)) spec.split = kSharded;
  }
  return specs;
}

Result<EarlierShard> earlier_shard(FileSystem& files, const Folder& folder, const Manifest& manifest,
                                   uint32_t participant) {
  const ShardRecord record = manifest.shard(participant);
  const std::string path =
      folder.save_folder(manifest.id) + "/" + shard_file_name(participant, record.writer_nonce);
  MUSTER_ASSIGN(const ByteBuffer bytes, read_file(files, path, 1 << 30));
  const auto* entries = reinterpret_cast<const Digest*>(bytes.data() + record.geometry.table_offset());
  return EarlierShard{record, std::make_shared<const std::vector<Digest>>(
                                  entries, entries + record.geometry.table_entries())};
}

namespace {

Result<ShardRecord> save_shard(FileSystem& files, const Folder& folder, const WholeState& state, VersionId id,
                               const SavePlan& plan, uint32_t participant, const SaveOptions& wanted) {
  const Manifest* const earlier = wanted.earlier;
  const std::vector<ByteBuffer> memory =
      state.locals(state.specs, participant, plan.participants(), plan.owned_by(participant));
  MUSTER_ASSIGN(auto shape, make_shard_template(plan, participant, wanted.key != nullptr));
  StageProgress progress;
  StagingBuffer buffer;
  SaveShardOptions options;
  options.key = wanted.key;
  options.write.writer_nonce = wanted.first_writer + participant;
  options.staging_bytes_max = 1;
  options.folder = [&]() -> Result<std::string> { return folder.save_folder(id); };
  if (earlier != nullptr) {
    MUSTER_ASSIGN(options.earlier, earlier_shard(files, folder, *earlier, participant));
    options.earlier_path = folder.save_folder(earlier->id) + "/" +
                           shard_file_name(participant, earlier->shards[participant].writer_nonce);
  }
  MUSTER_ASSIGN(
      const SaveShardReport report,
      save_shard(files, shape, id, read_from({memory.begin(), memory.end()}), buffer, options, progress));
  return decode_shard_record(encode(report.record));
}

}  // namespace

Result<Manifest> save(FileSystem& files, Folder& folder, const WholeState& state, VersionId id,
                      const SaveOptions& options) {
  MUSTER_ASSIGN(const SavePlan plan, plan_save(state.specs, options.participants, options.shard_owners));
  MUSTER_TRY(folder.begin_save(id));
  std::vector<ShardRecord> votes;
  for (uint32_t p = options.participants; p-- > 0;) {
    MUSTER_ASSIGN(votes.emplace_back(), save_shard(files, folder, state, id, plan, p, options));
  }
  Manifest manifest;
  manifest.id = id;
  manifest.lineage = options.lineage;
  manifest.parent = options.parent;
  manifest.saved_at_ms = options.saved_at_ms;
  manifest.tensors = state.specs;
  manifest.shard_owners = options.shard_owners;
  manifest.key = options.key;
  manifest.key_id = id_of(options.key);
  manifest.step_values["loss_scale"] = {std::byte{1}, std::byte{2}};
  MUSTER_TRY(adopt_shards(manifest, votes));
  if (options.publish) MUSTER_TRY(folder.publish(manifest));
  return manifest;
}

std::string compare_restored(FileSystem& files, const Folder& folder, const Manifest& manifest,
                             const WholeState& state, std::span<const TensorSpec> as, uint32_t parts,
                             const std::vector<HeldShards>& held) {
  for (uint32_t part = 0; part < parts; ++part) {
    const HeldShards mine = part < held.size() ? held[part] : HeldShards{};
    const std::vector<ByteBuffer> expected = state.locals(as, part, parts, mine);
    std::vector<ByteBuffer> memory;
    for (const ByteBuffer& bytes : expected) memory.emplace_back(bytes.size(), std::byte{0xa5});
    const std::vector<MutableByteSpan> spans(memory.begin(), memory.end());
    const auto report = restore(files, folder.save_folder(manifest.id), manifest,
                                {{as.begin(), as.end()}, part, parts, ReadShare::kAll, {}, mine}, spans);
    if (!report.ok()) return report.error().message;
    for (size_t t = 0; t < as.size(); ++t) {
      if (memory[t] != expected[t])
        return "rank " + std::to_string(part) + " of " + std::to_string(parts) + ": " + to_string(as[t]) +
               " split " + std::to_string(as[t].split) + " differs";
    }
  }
  return "";
}

}  // namespace muster::testing
