#include "checkpoint/manifest.h"

#include <algorithm>
#include <tuple>

#include "checkpoint/json.h"
#include "checkpoint/lineage_json.h"
#include "checkpoint/manifest_json.h"
#include "runtime/base/check.h"

namespace muster::checkpoint {
namespace {

constexpr std::string_view kDigestWord = "xxh3-128 ";
constexpr const char* kCompression = "zstd";
constexpr size_t kDigestLineBytes = kDigestWord.size() + 32 + 1;

Error damaged(const std::string& where, const std::string& what) {
  return {ErrorCode::kDropCheckpoint, where + " is damaged: " + what + "; use an older version"};
}

Json to_json(const TensorSpec& spec) {
  return Json::array({spec.name, to_string(spec.dtype), spec.shape, spec.split});
}

Json to_json(const ShardEntry& shard) {
  Json json = Json::array({hex64(shard.writer_nonce), shard.geometry.metadata_bytes,
                           shard.geometry.payload_bytes, to_string(shard.root)});
  const bool linked = shard.written_by.nonce != 0;
  if (linked) {
    json.push_back(shard.written_by.version);
    json.push_back(hex64(shard.written_by.nonce));
  }
  if (!shard.geometry.sealed) return json;
  if (linked) json.push_back(hex64(shard.seal.first_writer));
  json.push_back(to_hex(shard.seal.tag));
  return json;
}

// By participant.
Json containers_json(const Manifest& manifest) {
  Json list = Json::array();
  for (const ShardEntry& shard : manifest.shards)
    list.push_back(Json::array({shard.container.bytes, to_string(shard.container.digest)}));
  return list;
}

std::optional<Container> as_container(const Json& json) {
  if (!json.is_array() || json.size() != 2) return std::nullopt;
  const auto bytes = as_number(json[0]);
  const auto digest = as_digest(json[1]);
  if (!bytes || !digest || *bytes == 0) return std::nullopt;
  return Container{*bytes, *digest};
}

Json to_json(const VersionId& id) { return {{"version", id.version}, {"nonce", hex64(id.nonce)}}; }

Json to_json(const JobConstants& job) {
  return {{"microbatches", job.microbatches},
          {"lanes", job.lanes},
          {"seed", job.seed},
          {"codec", job.codec},
          {"tree", job.tree},
          {"permutation", job.permutation},
          {"samples_per_microbatch", job.samples_per_microbatch},
          {"dataset_samples", job.dataset_samples}};
}

template <typename T>
Json list_of(const std::vector<T>& values) {
  Json list = Json::array();
  for (const T& value : values) list.push_back(to_json(value));
  return list;
}

std::optional<TensorSpec> as_tensor(const Json& json) {
  if (!json.is_array() || json.size() != 4) return std::nullopt;
  const auto* name = json[0].get_ptr<const Json::string_t*>();
  const auto* dtype_name = json[1].get_ptr<const Json::string_t*>();
  if (name == nullptr || dtype_name == nullptr || !json[2].is_array() || !json[3].is_number_integer())
    return std::nullopt;
  const auto dtype = dtype_from(*dtype_name);
  const auto split = json[3].get<int64_t>();
  if (!dtype || json[2].size() > kRankMax || split < kSharded || split >= static_cast<int64_t>(kRankMax))
    return std::nullopt;
  TensorSpec spec{*name, *dtype, {}, static_cast<int>(split)};
  for (const Json& extent : json[2]) {
    const auto value = as_number(extent);
    if (!value) return std::nullopt;
    spec.shape.push_back(*value);
  }
  return spec;
}

// The last fields of a sealed shard: [first writer of a link, tag].
std::optional<ShardSeal> as_seal(const Json& json, uint64_t key_id, uint64_t writer_nonce, bool linked) {
  const auto first_writer = linked ? as_hex64(json[6]) : writer_nonce;
  const auto* hex = json.back().get_ptr<const Json::string_t*>();
  const ByteBuffer tag = hex != nullptr ? from_hex(*hex) : ByteBuffer();
  ShardSeal seal{key_id, first_writer.value_or(0)};
  if (!first_writer || tag.size() != seal.tag.size()) return std::nullopt;
  std::ranges::copy(tag, seal.tag.begin());
  return seal;
}

// `key_id`: of a sealed manifest, else 0.
std::optional<ShardEntry> as_shard(const Json& json, uint64_t key_id) {
  const bool sealed = key_id != 0;
  const size_t plain = sealed ? 5 : 4, of_link = sealed ? 8 : 6;
  if (!json.is_array() || (json.size() != plain && json.size() != of_link)) return std::nullopt;
  const bool linked = json.size() == of_link;
  const auto nonce = as_hex64(json[0]);
  const auto metadata_bytes = as_number(json[1]);
  const auto payload_bytes = as_number(json[2]);
  const auto root = as_digest(json[3]);
  if (!nonce || !metadata_bytes || !payload_bytes || !root) return std::nullopt;
  for (uint64_t size : {*metadata_bytes, *payload_bytes}) {
    if (size == 0 || size % kBlockBytes != 0 || size > kStateBytesMax) return std::nullopt;
  }
  ShardEntry entry{*nonce, {*metadata_bytes, *payload_bytes, sealed}, *root};
  if (sealed) {
    const auto seal = as_seal(json, key_id, *nonce, linked);
    if (!seal) return std::nullopt;
    entry.seal = *seal;
  }
  if (!linked) return entry;
  const auto version = as_number(json[4]);
  const auto save = as_hex64(json[5]);
  if (!version || !save || *save == 0) return std::nullopt;
  entry.written_by = {*version, *save};
  return entry;
}

template <typename T, typename Convert>
std::vector<T> read_list(JsonReader& reader, const char* field, size_t count_max, Convert convert) {
  std::vector<T> list;
  for (const Json& json : reader.array(field, count_max)) {
    auto value = convert(json);
    if (!value) {
      reader.fail(std::string(field) + "[" + std::to_string(list.size()) + "]", "is malformed");
      break;
    }
    list.push_back(*std::move(value));
  }
  return list;
}

uint64_t read_version(JsonReader& reader) {
  const uint64_t version = reader.number("version");
  if (version > kVersionMax) reader.fail("version", "is more than " + std::to_string(kVersionMax));
  return version;
}

VersionId read_id(JsonReader& reader, const char* field) {
  JsonReader inner(reader.object(field), std::string(field) + ".");
  const VersionId id{read_version(inner), inner.hex64("nonce")};
  reader.adopt(inner);
  return id;
}

JobConstants read_job(JsonReader& reader) {
  JsonReader inner(reader.object("job"), "job.");
  JobConstants job{inner.number("microbatches"),
                   inner.number("lanes"),
                   inner.number("seed"),
                   inner.text("codec", 256),
                   inner.number("tree"),
                   inner.number("permutation"),
                   inner.number("samples_per_microbatch"),
                   inner.number("dataset_samples")};
  reader.adopt(inner);
  return job;
}

// Not in the entries of the shards, which readers of version 1.0 take only as long as they know them.
Json clones_json(const Manifest& manifest) {
  Json list = Json::array();
  for (size_t p = 0; p < manifest.shards.size(); ++p) {
    const ShardEntry& shard = manifest.shards[p];
    if (shard.shares_with.nonce == 0) continue;
    list.push_back(
        Json::array({p, shard.shares_with.version, hex64(shard.shares_with.nonce), shard.shared_slabs}));
  }
  return list;
}

bool take_clone(const Json& json, Manifest& manifest) {
  if (!json.is_array() || json.size() != 4) return false;
  const auto participant = as_number(json[0]);
  const auto version = as_number(json[1]);
  const auto save = as_hex64(json[2]);
  const auto slabs = as_number(json[3]);
  if (!participant || !version || !save || !slabs || *participant >= manifest.shards.size()) return false;
  ShardEntry& shard = manifest.shards[*participant];
  const bool possible = *save != 0 && *slabs > 0 && *slabs <= shard.geometry.slab_count() &&
                        VersionId{*version, *save} != manifest.id;
  if (!possible || shard.shares_with.nonce != 0) return false;
  shard.shares_with = {*version, *save};
  shard.shared_slabs = *slabs;
  return true;
}

void read_clones(JsonReader& reader, Manifest& manifest) {
  if (!reader.has("clones")) return;
  size_t i = 0;
  for (const Json& json : reader.array("clones", kParticipantsMax)) {
    if (!take_clone(json, manifest)) reader.fail("clones[" + std::to_string(i) + "]", "is malformed");
    ++i;
  }
}

std::map<std::string, ByteBuffer> read_step_values(JsonReader& reader) {
  std::map<std::string, ByteBuffer> values;
  for (const auto& [name, json] : reader.object("step_values").items()) {
    const auto* hex = json.get_ptr<const Json::string_t*>();
    ByteBuffer bytes = hex != nullptr ? from_hex(*hex) : ByteBuffer();
    if (hex == nullptr || bytes.size() * 2 != hex->size() || bytes.size() > kStepValueBytesMax)
      reader.fail("step_values." + name, "is not hexadecimal");
    values[name] = std::move(bytes);
  }
  return values;
}

bool is_sealed(JsonReader& reader) {
  const uint64_t major = reader.number("format_major");
  return major == kSealedFormatMajor || (major >= kCompressedFormatMajor && reader.has("key_id"));
}

void read_containers(JsonReader& reader, Manifest& manifest) {
  const auto containers = read_list<Container>(reader, "containers", kParticipantsMax, as_container);
  if (containers.size() != manifest.shards.size())
    return reader.fail("containers", "is not one for each shard");
  for (size_t p = 0; p < containers.size(); ++p) manifest.shards[p].container = containers[p];
}

Manifest read_manifest(JsonReader& reader) {
  Manifest manifest;
  read_context(reader, manifest);
  manifest.id.nonce = reader.hex64("nonce");
  manifest.parent = read_id(reader, "parent");
  manifest.saved_at_ms = reader.signed_number("saved_at_ms");
  manifest.saved_by = reader.text("saved_by");
  manifest.fence = reader.number("fence");
  manifest.tensors = read_list<TensorSpec>(reader, "tensors", kTensorsMax, as_tensor);
  const uint64_t major = reader.number("format_major");
  if (is_sealed(reader)) {
    manifest.key_id = reader.hex64("key_id");
    if (manifest.key_id == 0) reader.fail("key_id", "is 0, which is no key's");
  }
  manifest.shards = read_list<ShardEntry>(reader, "shards", kParticipantsMax,
                                          [&](const Json& json) { return as_shard(json, manifest.key_id); });
  if (major >= kCompressedFormatMajor) read_containers(reader, manifest);
  if (major < kShardedFormatMajor) return manifest;
  manifest.shard_owners = read_list<uint32_t>(reader, "shard_owners", kShardsMax, [](const Json& json) {
    const auto owner = as_number(json);
    return owner && *owner < kParticipantsMax ? std::optional(static_cast<uint32_t>(*owner)) : std::nullopt;
  });
  return manifest;
}

// Who cannot read it must not take an older save without a word.
Status check_compression(JsonReader& reader, const std::string& where) {
  const std::string name = reader.text("compression");
  if (!reader.ok()) return damaged(where, reader.problem());
  if (name != kCompression)
    return Error{ErrorCode::kMisuse, where + " is compressed with '" + name + "', and this Muster reads " +
                                         kCompression + "; take the Muster that wrote it, or a later one"};
  const Status able = check_zstd();
  if (able.ok()) return ok();
  return Error{ErrorCode::kMisuse, where + " is compressed, and " + able.error().message};
}

Status check_format(const Json& json, const std::string& where) {
  JsonReader reader(json);
  const std::string kind = reader.text("kind");
  const uint64_t major = reader.number("format_major");
  const uint64_t minor = reader.number("format_minor");
  if (!reader.ok() || kind != "muster checkpoint") return damaged(where, "it is not a checkpoint's manifest");
  if (major == kCompressedFormatMajor) return check_compression(reader, where);
  if (major >= kFormatMajor && major < kCompressedFormatMajor) return ok();
  return Error{ErrorCode::kMisuse, where + " has format version " + std::to_string(major) + "." +
                                       std::to_string(minor) + ", and this Muster reads versions up to " +
                                       std::to_string(kCompressedFormatMajor) +
                                       "; resume with the Muster that wrote it, or a later one"};
}

// What a manifest was sealed with, for a sentence.
std::string key_text(uint64_t key_id) { return key_id == 0 ? "no key" : "the key " + hex64(key_id); }

// A sealed text ends with its seal, and all of it that is before the seal's digits is under the seal: what
// is behind them is always the same.
constexpr std::string_view kSealBegins = ",\"seal\":\"";
constexpr std::string_view kSealEnds = "\"}\n";
constexpr size_t kSealDigits = 2 * sizeof(crypto::Hash);

struct SealedText {
  std::string_view covered;
  std::string_view seal;
};

std::optional<SealedText> split_seal(std::string_view text) {
  if (!text.ends_with(kSealEnds) || text.size() < kSealBegins.size() + kSealDigits + kSealEnds.size())
    return std::nullopt;
  const size_t covered = text.size() - kSealEnds.size() - kSealDigits;
  if (!text.substr(0, covered).ends_with(kSealBegins)) return std::nullopt;
  return SealedText{text.substr(0, covered), text.substr(covered, kSealDigits)};
}

Status check_seal(std::string_view text, const Json& json, const std::string& where, const SealKeyPtr& key) {
  JsonReader reader(json);
  const bool sealed = is_sealed(reader);
  const auto parts = split_seal(text);
  if (sealed && !parts) return damaged(where, "it does not end with its seal");
  if (!key) return ok();
  if (!sealed)
    return Error{ErrorCode::kMisuse,
                 where + " is not sealed, and this process has " + key_text(key->id()) +
                     ": who can write to the folder may have put it there; where you trust it, export it and "
                     "import it with --key-file into a new folder, else remove it"};
  const uint64_t key_id = reader.hex64("key_id");
  if (!reader.ok()) return damaged(where, reader.problem());
  if (key_id != key->id())
    return Error{ErrorCode::kMisuse, where + " is sealed with " + key_text(key_id) +
                                         ", and this process has " + key_text(key->id()) +
                                         "; give the other one's file, or another folder"};
  const auto seal = key->manifest_seal(parts->covered);
  if (!seal.ok()) return Error{ErrorCode::kRetry, seal.error().message};
  if (crypto::equal(as_bytes(to_hex(*seal)), as_bytes(parts->seal))) return ok();
  return damaged(
      where, "it does not fit its seal, though its digest fits: somebody has changed it who lacks the key");
}

// The lengths that the plan gives, against those that the manifest claims.
constexpr uint64_t kMetadataBytes = 4 << 20;
constexpr uint64_t kMetadataBytesPerTensor = 16 << 10;

Status check_shards(const Manifest& manifest, const std::string& where) {
  if (manifest.shards.empty()) return damaged(where, "it has no shards");
  auto plan = plan_of(manifest);
  if (!plan.ok()) return damaged(where, plan.error().message);
  // Readers hold it in memory. What libhdf5 writes is far less: some hundred bytes and its name for a tensor.
  const uint64_t metadata_max = kMetadataBytes + manifest.tensors.size() * kMetadataBytesPerTensor;
  for (uint32_t p = 0; p < manifest.shards.size(); ++p) {
    if (manifest.shards[p].geometry.metadata_bytes > metadata_max)
      return damaged(where, "the metadata of shard " + std::to_string(p) + " is said to have " +
                                std::to_string(manifest.shards[p].geometry.metadata_bytes) +
                                " bytes, more than it can");
    const uint64_t expected = round_up(shard_layout(*plan, p).bytes, kBlockBytes);
    if (manifest.shards[p].geometry.payload_bytes != expected)
      return damaged(where, "the payload of shard " + std::to_string(p) + " should have " +
                                std::to_string(expected) + " bytes");
  }
  return ok();
}

}  // namespace

Result<SavePlan> plan_of(const Manifest& manifest) {
  return plan_save(manifest.tensors, static_cast<uint32_t>(manifest.shards.size()), manifest.shard_owners);
}

Json context_json(const Manifest& manifest) {
  Json step_values = Json::object();
  for (const auto& [name, bytes] : manifest.step_values) step_values[name] = to_hex(bytes);
  return {{"version", manifest.id.version},
          {"lineage", to_json(manifest.lineage)},
          {"job", to_json(manifest.job)},
          {"sample_position", manifest.sample_position},
          {"step_values", step_values}};
}

void read_context(JsonReader& reader, Manifest& manifest) {
  manifest.id.version = read_version(reader);
  manifest.lineage = read_lineage(reader, "lineage");
  manifest.job = read_job(reader);
  manifest.sample_position = reader.number("sample_position");
  manifest.step_values = read_step_values(reader);
}

Json to_json(const Lineage& lineage) {
  Json list = Json::array();
  for (const LineageEntry& entry : lineage)
    list.push_back(Json::array({hex64(entry.store_nonce), entry.generation, entry.base}));
  return list;
}

Lineage read_lineage(JsonReader& reader, const char* field) {
  return read_list<LineageEntry>(reader, field, kLineageMax, [](const Json& json) {
    std::optional<LineageEntry> entry;
    if (!json.is_array() || json.size() != 3) return entry;
    const auto store = as_hex64(json[0]);
    const auto generation = as_number(json[1]);
    const auto base = as_number(json[2]);
    if (store && generation && base) entry = LineageEntry{*store, *generation, *base};
    return entry;
  });
}

const char* to_string(SaveState state) {
  switch (state) {
    case SaveState::kStaged:
      return "staged";
    case SaveState::kDurable:
      return "durable";
    case SaveState::kVerified:
      return "verified";
  }
  return "unknown";
}

Status check_same_job(const JobConstants& saved, const JobConstants& wanted) {
  const auto differs = [](const char* name, const std::string& there, const std::string& here) {
    return Error{ErrorCode::kMisuse, std::string("the checkpoint was made with ") + name + " = " + there +
                                         " and this run has " + here +
                                         "; resume with the same value, or start in another folder"};
  };
  const std::tuple<const char*, uint64_t, uint64_t> numbers[] = {
      {"microbatches", saved.microbatches, wanted.microbatches},
      {"lanes", saved.lanes, wanted.lanes},
      {"seed", saved.seed, wanted.seed},
      {"tree version", saved.tree, wanted.tree},
      {"permutation version", saved.permutation, wanted.permutation},
      {"samples_per_microbatch", saved.samples_per_microbatch, wanted.samples_per_microbatch},
      {"dataset_samples", saved.dataset_samples, wanted.dataset_samples}};
  for (const auto& [name, there, here] : numbers) {
    if (there != here) return differs(name, std::to_string(there), std::to_string(here));
  }
  if (saved.codec != wanted.codec) return differs("codec", "'" + saved.codec + "'", "'" + wanted.codec + "'");
  return ok();
}

ShardRecord Manifest::shard(uint32_t participant) const {
  const ShardEntry& entry = shards[participant];
  return {{id, participant, static_cast<uint32_t>(shards.size())},
          entry.writer_nonce,
          entry.geometry,
          entry.root,
          entry.written_by,
          entry.shares_with,
          entry.shared_slabs,
          entry.seal,
          entry.container};
}

bool Manifest::shares() const {
  return std::any_of(shards.begin(), shards.end(),
                     [](const ShardEntry& shard) { return shard.written_by.nonce != 0; });
}

bool Manifest::clones() const {
  return std::any_of(shards.begin(), shards.end(),
                     [](const ShardEntry& shard) { return shard.shares_with.nonce != 0; });
}

bool Manifest::compressed() const { return !shards.empty() && shards.front().container.bytes != 0; }

Status adopt_shards(Manifest& manifest, std::span<const ShardRecord> records) {
  const auto refused = [&](const std::string& what) {
    return Error{ErrorCode::kDropCheckpoint,
                 "the save of " + to_string(manifest.id) + " cannot be published: " + what};
  };
  std::vector<ShardEntry> shards(records.size());
  std::vector<bool> seen(records.size(), false);
  for (const ShardRecord& record : records) {
    const uint32_t p = record.identity.participant;
    if (record.identity.id != manifest.id || record.identity.participants != records.size() ||
        p >= records.size())
      return refused("participant " + std::to_string(p) + " voted for " + to_string(record.identity.id) +
                     " with " + std::to_string(record.identity.participants) + " participants, there are " +
                     std::to_string(records.size()) + " votes");
    if (seen[p]) return refused("participant " + std::to_string(p) + " voted twice");
    seen[p] = true;
    if (const uint64_t key_id = record.geometry.sealed ? record.seal.key_id : 0; key_id != manifest.key_id)
      return refused("participant " + std::to_string(p) + " has sealed its part with " + key_text(key_id) +
                     ", and this process with " + key_text(manifest.key_id) +
                     "; give all processes the same checkpoint_key_file, or none");
    shards[p] = {record.writer_nonce, record.geometry,     record.root, record.written_by,
                 record.shares_with,  record.shared_slabs, record.seal, record.container};
  }
  manifest.shards = std::move(shards);
  return check_shards(manifest, "the manifest of " + to_string(manifest.id));
}

std::string with_digest_line(std::string text) {
  const Digest digest = digest_of(as_bytes(text));
  text += kDigestWord;
  text += to_string(digest);
  text += '\n';
  return text;
}

Result<std::string> without_digest_line(ByteSpan bytes, const std::string& where) {
  const std::string_view all(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (all.size() < kDigestLineBytes) return damaged(where, "it is too short");
  const std::string_view text = all.substr(0, all.size() - kDigestLineBytes);
  const std::string_view line = all.substr(text.size());
  if (with_digest_line(std::string(text)) != all)
    return damaged(where, line.starts_with(kDigestWord) ? "its digest does not match its text"
                                                        : "it does not end with its digest");
  return std::string(text);
}

namespace {

// One line.
std::string text_of(const Manifest& manifest) {
  Json json = context_json(manifest);
  uint32_t major = manifest.shares() ? kSharedFormatMajor : kFormatMajor;
  if (!manifest.shard_owners.empty()) major = kShardedFormatMajor;
  if (manifest.key_id != 0) {
    major = kSealedFormatMajor;
    json["key_id"] = hex64(manifest.key_id);
  }
  if (manifest.compressed()) {
    major = kCompressedFormatMajor;
    json["compression"] = kCompression;
    json["containers"] = containers_json(manifest);
  }
  if (major >= kShardedFormatMajor) json["shard_owners"] = manifest.shard_owners;
  json.update({{"kind", "muster checkpoint"},
               {"format_major", major},
               {"format_minor", manifest.clones() ? kClonedFormatMinor : kFormatMinor},
               {"nonce", hex64(manifest.id.nonce)},
               {"parent", to_json(manifest.parent)},
               {"saved_at_ms", manifest.saved_at_ms},
               {"saved_by", manifest.saved_by},
               {"fence", manifest.fence},
               {"slab_bytes", kSlabBytes},
               {"tensors", list_of(manifest.tensors)},
               {"shards", list_of(manifest.shards)}});
  if (manifest.clones()) json["clones"] = clones_json(manifest);
  // Text that is not UTF-8 is replaced, never thrown about: names of tensors have been checked, the rest is
  // for display.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

std::string encode(const Manifest& manifest) {
  MUSTER_CHECK(manifest.key_id == 0, "a sealed manifest is written without its seal");
  return with_digest_line(text_of(manifest));
}

Result<std::string> encode_sealed(const Manifest& manifest) {
  MUSTER_CHECK(manifest.key && manifest.key->id() == manifest.key_id, "a manifest is sealed without its key");
  std::string text = text_of(manifest);
  text.resize(text.size() - 2);  // the brace and the line feed, which kSealEnds has
  text += kSealBegins;
  MUSTER_ASSIGN(const crypto::Hash seal, manifest.key->manifest_seal(text));
  text += to_hex(seal);
  text += kSealEnds;
  return with_digest_line(std::move(text));
}

Result<Manifest> decode_manifest(ByteSpan bytes, const std::string& where, const SealKeyPtr& key) {
  if (bytes.size() > kManifestBytesMax) return damaged(where, "it is larger than a manifest can be");
  MUSTER_ASSIGN(const std::string text, without_digest_line(bytes, where));
  const std::optional<Json> json = parse_json(text);
  if (!json || !json->is_object()) return damaged(where, "it is not JSON");
  MUSTER_TRY(check_format(*json, where));
  MUSTER_TRY(check_seal(text, *json, where, key));
  JsonReader reader(*json);
  Manifest manifest = read_manifest(reader);
  if (reader.number("slab_bytes") != kSlabBytes)
    reader.fail("slab_bytes", "is not " + std::to_string(kSlabBytes));
  if (manifest.shares() && reader.number("format_major") < kSharedFormatMajor)
    reader.fail("shards", "has one that another save wrote, which this format version does not have");
  for (const ShardEntry& shard : manifest.shards)
    if (shard.written_by == manifest.id) reader.fail("shards", "has one that says twice who wrote it");
  read_clones(reader, manifest);
  if (!reader.ok()) return damaged(where, reader.problem());
  MUSTER_TRY(check_shards(manifest, where));
  manifest.key = key;
  return manifest;
}

}  // namespace muster::checkpoint
