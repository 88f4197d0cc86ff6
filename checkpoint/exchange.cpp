#include "checkpoint/exchange.h"

#include <algorithm>

#include "checkpoint/elements.h"
#include "checkpoint/index.h"
#include "checkpoint/manifest_json.h"
#include "checkpoint/shard_save.h"
#include "runtime/base/random.h"

namespace muster::checkpoint {
namespace {

constexpr uint64_t kImportBytes = 64 * 1024 * 1024;
constexpr uint64_t kCopyBytes = 4 * 1024 * 1024;
constexpr const char* kContextName = "muster";  // the key in the metadata

std::pair<std::string, std::string> folder_and_name(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return {".", path};
  return {slash == 0 ? "/" : path.substr(0, slash), path.substr(slash + 1)};
}

// In pieces of whole elements.
Status copy_tensors(File& file, StateReader& state, const SafetensorsHeader& header, const Progress& progress,
                    ExportReport& report) {
  ByteBuffer buffer(kCopyBytes);
  ByteBuffer cast(kCopyBytes);
  for (const SafetensorsEntry& entry : header.tensors) {
    MUSTER_ASSIGN(const uint32_t tensor, state.find(entry.name));
    const DType saved = state.manifest().tensors[tensor].dtype;
    const uint64_t count = entry.bytes.size() / size_of(entry.dtype);
    const uint64_t at_once = kCopyBytes / std::max(size_of(saved), size_of(entry.dtype));
    for (uint64_t at = 0; at < count; at += at_once) {
      const uint64_t some = std::min(at_once, count - at);
      auto chunk = MutableByteSpan(buffer).first(some * size_of(saved));
      MUSTER_TRY(state.read(tensor, at * size_of(saved), chunk));
      if (saved != entry.dtype) {
        const auto target = MutableByteSpan(cast).first(some * size_of(entry.dtype));
        report.became_infinite += cast_elements(saved, chunk, entry.dtype, target);
        chunk = target;
      }
      const uint64_t offset = entry.bytes.begin + at * size_of(entry.dtype);
      MUSTER_TRY(file.pwrite(chunk, header.data_offset + offset));
      if (progress) progress(offset + chunk.size());
    }
  }
  return ok();
}

Status write_export(FileSystem& files, const std::string& path, StateReader& state,
                    const SafetensorsHeader& header, const Progress& progress, ExportReport& report) {
  MUSTER_ASSIGN(auto file, files.open(path, OpenMode::kCreate));
  MUSTER_TRY(file->pwrite(as_bytes(encode_safetensors(header)), 0));
  MUSTER_TRY(copy_tensors(*file, state, header, progress, report));
  MUSTER_TRY(file->sync());
  return file->close();
}

}  // namespace

Result<ExportReport> export_safetensors(FileSystem& files, StateReader& state,
                                        std::span<const std::string> names, const std::string& target,
                                        const Progress& progress, std::optional<DType> cast) {
  if (cast && !can_cast(*cast, *cast))
    return Error{ErrorCode::kMisuse, "no cast to " + std::string(to_string(*cast)) +
                                         "; choose one of float32, float64, bfloat16 and float16"};
  std::vector<TensorSpec> specs;
  if (names.empty()) specs = state.manifest().tensors;
  for (const std::string& name : names) {
    MUSTER_ASSIGN(const uint32_t tensor, state.find(name));
    specs.push_back(state.manifest().tensors[tensor]);
  }
  MUSTER_TRY(check_specs(specs));
  ExportReport report;
  for (TensorSpec& spec : specs) {
    if (!cast || spec.dtype == *cast) continue;
    if (!can_cast(spec.dtype, *cast)) {
      report.kept_floats += is_float(spec.dtype) ? 1 : 0;
      continue;
    }
    spec.dtype = *cast;
    ++report.cast;
  }
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (report.cast == 0)
    metadata[kContextName] =
        context_json(state.manifest()).dump(-1, ' ', false, Json::error_handler_t::replace);
  MUSTER_ASSIGN(const SafetensorsHeader header, lay_out_safetensors(specs, metadata));
  MUSTER_ASSIGN(const auto taken, files.stat(target));
  if (taken) return Error{ErrorCode::kMisuse, target + " exists; remove it or choose another name"};
  const auto [folder, name] = folder_and_name(target);
  const std::string temporary = target + ".tmp-" + hex64(random_nonce());
  Status done = write_export(files, temporary, state, header, progress, report);
  if (done.ok()) done = files.link(temporary, target);
  (void)files.unlink(temporary);
  MUSTER_TRY(std::move(done));
  MUSTER_TRY(files.sync_directory(folder));
  report.tensors = specs.size();
  report.bytes = header.tensors.empty() ? 0 : header.tensors.back().bytes.end;
  return report;
}

Result<SafetensorsFile> SafetensorsFile::open(FileSystem& files, const std::string& path) {
  MUSTER_ASSIGN(auto file, files.open(path, OpenMode::kRead));
  MUSTER_ASSIGN(const uint64_t file_bytes, file->size());
  ByteBuffer first(kSafetensorsLengthBytes);
  MUSTER_ASSIGN(const size_t got, file->pread(first, 0));
  first.resize(got);
  MUSTER_ASSIGN(const uint64_t header_bytes, safetensors_header_bytes(first, file_bytes, path));
  ByteBuffer json(header_bytes);
  MUSTER_ASSIGN(const size_t read, file->pread(json, kSafetensorsLengthBytes));
  json.resize(read);
  MUSTER_ASSIGN(SafetensorsHeader header, decode_safetensors(json, file_bytes, path));
  return SafetensorsFile(path, std::move(file), std::move(header));
}

std::vector<TensorSpec> SafetensorsFile::specs() const {
  std::vector<TensorSpec> specs;
  for (const SafetensorsEntry& entry : header_.tensors)
    specs.push_back({entry.name, entry.dtype, entry.shape});
  return specs;
}

Result<std::optional<Manifest>> SafetensorsFile::context() const {
  const auto found = header_.metadata.find(kContextName);
  if (found == header_.metadata.end()) return std::optional<Manifest>();
  const std::optional<Json> json = parse_json(found->second);
  const Json nothing;
  JsonReader reader(json ? *json : nothing, "muster.");
  Manifest manifest;
  read_context(reader, manifest);
  if (!reader.ok())
    return Error{ErrorCode::kMisuse, path_ + " says that Muster exported it, but " + reader.problem() +
                                         "; take the 'muster' entry out of its metadata to import it anew"};
  return std::optional(std::move(manifest));
}

Status SafetensorsFile::read(uint32_t tensor, uint64_t offset, MutableByteSpan target) {
  MUSTER_ASSIGN(const size_t got,
                file_->pread(target, header_.data_offset + header_.tensors[tensor].bytes.begin + offset));
  if (got != target.size())
    return Error{ErrorCode::kEnvironment, path_ + " became shorter while it was read"};
  return ok();
}

Result<Manifest> import_safetensors(FileSystem& files, SafetensorsFile& source, Folder& folder,
                                    const Manifest& like, uint32_t shards, const Progress& progress) {
  Manifest manifest = like;
  manifest.tensors = source.specs();
  manifest.shard_owners.clear();
  manifest.key_id = id_of(manifest.key);
  MUSTER_ASSIGN(const SavePlan plan, plan_save(manifest.tensors, shards));
  MUSTER_ASSIGN(const std::string save_folder, folder.begin_save(manifest.id));
  uint64_t done = 0;
  const TensorReader reader = [&](uint32_t tensor, uint64_t offset, MutableByteSpan target) -> Status {
    MUSTER_TRY(source.read(tensor, offset, target));
    done += target.size();
    if (progress) progress(done);
    return ok();
  };
  std::vector<ShardRecord> records;
  StagingBuffer buffer;
  for (uint32_t p = 0; p < shards; ++p) {
    MUSTER_ASSIGN(auto shape, make_shard_template(plan, p, manifest.key != nullptr));
    StageProgress staging;
    SaveShardOptions options;
    options.write.writer_nonce = random_nonce();
    options.staging_bytes_max = kImportBytes;
    options.key = manifest.key;
    options.folder = [&]() -> Result<std::string> { return save_folder; };
    MUSTER_ASSIGN(const SaveShardReport saved,
                  save_shard(files, shape, manifest.id, reader, buffer, options, staging));
    records.push_back(saved.record);
  }
  MUSTER_TRY(adopt_shards(manifest, records));
  MUSTER_TRY(folder.publish(manifest));
  (void)write_index(files, save_folder, manifest);  // for people; what it lacks can be made anew
  return manifest;
}

}  // namespace muster::checkpoint
