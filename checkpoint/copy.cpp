#include "checkpoint/copy.h"

#include <algorithm>

namespace muster::checkpoint {
namespace {

// One shard file, from its beginning to its end.
class PlainWriter {
 public:
  explicit PlainWriter(std::unique_ptr<File> file) : file_(std::move(file)) {}
  Status append(ByteSpan bytes) {
    MUSTER_TRY(file_->pwrite(bytes, written_));
    written_ += bytes.size();
    return ok();
  }
  Result<Container> finish() {
    MUSTER_TRY(file_->sync());
    MUSTER_TRY(file_->close());
    return Container{};
  }

 private:
  std::unique_ptr<File> file_;
  uint64_t written_ = 0;
};

class SaveCopy {
 public:
  SaveCopy(FileSystem& files, const std::string& folder, const Manifest& manifest, Folder& target,
           const CopyOptions& options)
      : files_(files), folder_(folder), target_(target), options_(options) {
    report_.manifest = manifest;
    for (ShardEntry& shard : report_.manifest.shards) {
      shard.container = {};
      shard.shares_with = {};
      shard.shared_slabs = 0;
    }
  }

  Result<CopyReport> run(const Manifest& manifest) {
    MUSTER_TRY(remove_leftover(target_.save_folder(manifest.id)));
    MUSTER_ASSIGN(target_folder_, target_.begin_save(manifest.id));
    const Status copied = copy_all(manifest);
    if (copied.ok()) return std::move(report_);
    remove_copy();
    return copied.error();
  }

 private:
  Status copy_all(const Manifest& manifest) {
    for (uint32_t p = 0; p < manifest.shards.size(); ++p) {
      MUSTER_ASSIGN(ShardReader reader, ShardReader::open(files_, folder_, manifest.shard(p), manifest.key));
      MUSTER_TRY(options_.zstd_level ? copy_shard<CompressedWriter>(reader, p)
                                     : copy_shard<PlainWriter>(reader, p));
    }
    MUSTER_TRY(files_.sync_directory(target_folder_));
    // As the readers of the published manifest will.
    MUSTER_TRY(verify_shards(files_, target_folder_, report_.manifest));
    MUSTER_TRY(target_.publish(report_.manifest));
    (void)target_.mark_verified(
        report_.manifest.id);  // it is there, and right, whether this can be noted or not
    return ok();
  }

  // Of a copy that was killed: nobody else writes into a folder whose owner this is.
  Status remove_leftover(const std::string& folder) {
    MUSTER_ASSIGN(const auto itself, files_.stat_link(folder));
    if (!itself || !itself->is_directory) return ok();
    MUSTER_ASSIGN(const auto manifest, files_.stat(folder + "/" + kManifestName));
    if (manifest) return ok();
    MUSTER_ASSIGN(const auto names, files_.list(folder));
    for (const std::string& name : names) MUSTER_TRY(files_.unlink(folder + "/" + name));
    return files_.remove_directory(folder);
  }

  template <typename Writer>
  Status copy_shard(ShardReader& reader, uint32_t participant) {
    ShardEntry& shard = report_.manifest.shards[participant];
    std::string path = target_folder_ + "/" + shard_file_name(participant, shard.writer_nonce) + suffix();
    MUSTER_ASSIGN(auto file, files_.open(path, OpenMode::kCreate));
    written_.push_back(std::move(path));
    MUSTER_ASSIGN(Writer writer, create<Writer>(std::move(file)));
    MUSTER_TRY(stream(reader, writer));
    MUSTER_ASSIGN(shard.container, writer.finish());
    const uint64_t plain = reader.geometry().file_bytes();
    report_.bytes_plain += plain;
    report_.bytes_stored += shard.container.bytes == 0 ? plain : shard.container.bytes;
    return ok();
  }

  template <typename Writer>
  Result<Writer> create(std::unique_ptr<File> file) const {
    if constexpr (std::is_same_v<Writer, CompressedWriter>)
      return CompressedWriter::create(std::move(file), *options_.zstd_level);
    else
      return PlainWriter(std::move(file));
  }

  // Frames begin where slabs do.
  template <typename Writer>
  Status stream(ShardReader& reader, Writer& writer) {
    const ShardGeometry& geometry = reader.geometry();
    ByteBuffer bytes(std::max(geometry.metadata_bytes, std::min(kFrameBytes, geometry.payload_bytes)));
    const auto metadata = MutableByteSpan(bytes).first(geometry.metadata_bytes);
    MUSTER_TRY(reader.read_metadata(metadata));
    MUSTER_TRY(writer.append(metadata));
    for (uint64_t i = 0; i < geometry.slab_count(); i += kFrameSlabs) {
      const uint64_t count = std::min(kFrameSlabs, geometry.slab_count() - i);
      const auto slabs = MutableByteSpan(bytes).first(geometry.range_of(i, count).size());
      MUSTER_TRY(reader.read(i, count, slabs));
      if (i == 0) MUSTER_TRY(reader.check_identity(slabs));
      MUSTER_TRY(writer.append(slabs));
      if (options_.progress) options_.progress(report_.bytes_plain + reader.bytes_read());
    }
    return writer.append(reader.tables());
  }

  std::string suffix() const { return options_.zstd_level ? kCompressedSuffix : ""; }

  void remove_copy() {
    (void)files_.unlink(target_folder_ + "/" + kManifestName);
    for (const std::string& path : written_) (void)files_.unlink(path);
    (void)files_.remove_directory(target_folder_);
  }

  FileSystem& files_;
  const std::string& folder_;
  Folder& target_;
  const CopyOptions& options_;
  CopyReport report_;
  std::string target_folder_;
  std::vector<std::string> written_;
};

}  // namespace

Result<CopyReport> copy_save(FileSystem& files, const std::string& folder, const Manifest& manifest,
                             Folder& target, const CopyOptions& options) {
  if (manifest.key_id != 0 && manifest.key == nullptr)
    return Error{ErrorCode::kMisuse, to_string(manifest.id) +
                                         " is sealed, and so is what is copied from it; give its key "
                                         "(--key-file)"};
  if (options.zstd_level) MUSTER_TRY(check_zstd());
  return SaveCopy(files, folder, manifest, target, options).run(manifest);
}

}  // namespace muster::checkpoint
