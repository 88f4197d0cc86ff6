// The manifest: the one file that makes a save a checkpoint. Format: docs/formats/checkpoint.md.
//
// It is small: where each byte lies follows from the tensors, the number of participants and two sizes a
// shard, and the digests of the slabs are in the shards. A manifest that parses is consistent: its tensors
// pass check_specs and there is one shard for each participant.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "checkpoint/identity.h"
#include "checkpoint/layout.h"
#include "checkpoint/shard_file.h"

namespace muster::checkpoint {

constexpr const char* kManifestName = "manifest.json";
constexpr uint64_t kManifestBytesMax = 64 * 1024 * 1024;
constexpr size_t kLineageMax = 100'000;
constexpr size_t kStepValueBytesMax = 64 * 1024;

// How far a save has come. Only the last two are seen in a folder.
enum class SaveState : uint8_t {
  kStaged,    // copied out of the program's way
  kDurable,   // published: survives the loss of every process and of power
  kVerified,  // read back whole and found right
};
const char* to_string(SaveState state);

// Fixed when a job starts. A resume with others would be another job.
struct JobConstants {
  uint64_t microbatches = 1;  // M
  uint64_t lanes = 1;         // L
  uint64_t seed = 0;
  std::string codec = "none";
  uint64_t tree = 1;         // of the canonical reduction
  uint64_t permutation = 1;  // version of the sample order
  uint64_t samples_per_microbatch = 1;
  uint64_t dataset_samples = 1;
  friend bool operator==(const JobConstants&, const JobConstants&) = default;
};
// Errors: kMisuse; the sentence names the constant and both values.
Status check_same_job(const JobConstants& saved, const JobConstants& wanted);

struct ShardEntry {
  uint64_t writer_nonce = 0;
  ShardGeometry geometry;
  Digest root;
  VersionId written_by = {};   // the earlier save whose file this one has a link to; nonce 0: none
  VersionId shares_with = {};  // as in ShardRecord
  uint64_t shared_slabs = 0;
  ShardSeal seal = {};       // where geometry.sealed; its key_id is the manifest's
  Container container = {};  // where it is compressed
};

struct Manifest {
  VersionId id;
  Lineage lineage;
  VersionId parent;  // the version that this job resumed from or saved before; nonce 0: none
  JobConstants job;
  uint64_t sample_position = 0;
  int64_t saved_at_ms = 0;  // wall time, for display
  std::string saved_by;     // for display
  uint64_t fence = 0;       // of the owner of the folder
  std::vector<TensorSpec> tensors;
  std::map<std::string, ByteBuffer> step_values;  // registered step-local values, small
  std::vector<ShardEntry> shards;                 // by participant
  std::vector<uint32_t> shard_owners;  // of sharded tensors, by shard: the participant that saved it
  uint64_t key_id = 0;                 // of the key that seals it, and its shards; 0: it is not sealed
  // Not in the file: the key with which the seal was found good, or is made. Whoever reads shards checks
  // their tags with it. Null: no key was given, and digests are all there is to go by.
  SealKeyPtr key = {};

  ShardRecord shard(uint32_t participant) const;
  bool shares() const;      // it has a shard that an earlier save wrote
  bool clones() const;      // it has a shard of which slabs are shared
  bool compressed() const;  // all its shards are, or none is
};

// The shards of all participants, in any order, into manifest.shards.
// Errors: kDropCheckpoint: one is missing, doubled, or of another save; the sentence names the participant.
Status adopt_shards(Manifest& manifest, std::span<const ShardRecord> records);

// Where everything lies. Errors: kMisuse; not of a manifest that was decoded.
Result<SavePlan> plan_of(const Manifest& manifest);

// Text of JSON and a last line with its digest. REQUIRES: it is not sealed.
std::string encode(const Manifest& manifest);
// The same, with its seal. REQUIRES: the manifest has its key. Errors: kEnvironment, of OpenSSL.
Result<std::string> encode_sealed(const Manifest& manifest);

// With a key the manifest has to be sealed with it, and is returned with it. Errors: kDropCheckpoint:
// damaged, inconsistent or, with a key, changed by somebody who lacks it; kMisuse: of a later format or, with
// a key, not sealed or sealed with another. The sentence names `where`.
Result<Manifest> decode_manifest(ByteSpan bytes, const std::string& where, const SealKeyPtr& key = {});

// Appends the line with the digest, and checks and takes it off again; for every small file of a folder.
std::string with_digest_line(std::string text);
Result<std::string> without_digest_line(ByteSpan bytes, const std::string& where);

}  // namespace muster::checkpoint
