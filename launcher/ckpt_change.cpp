// `muster ckpt export`, `import`, `copy`, `keygen`, `index`, `prune`: they write. Import, copy and prune
// become the folder's owner first, so a folder on which a job runs is refused.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "checkpoint/copy.h"
#include "checkpoint/exchange.h"
#include "checkpoint/index.h"
#include "checkpoint/numbers.h"
#include "launcher/ckpt_text.h"
#include "runtime/base/clock.h"
#include "runtime/base/handle.h"
#include "runtime/base/options.h"
#include "runtime/base/random.h"

namespace muster::launcher {
namespace {

using namespace checkpoint;

// "lanes=8" into the job's constants.
Status set_job_constant(JobConstants& job, const std::string& text) {
  const size_t equals = text.find('=');
  const std::string name = text.substr(0, equals);
  const std::pair<const char*, uint64_t*> numbers[] = {
      {"microbatches", &job.microbatches},
      {"lanes", &job.lanes},
      {"seed", &job.seed},
      {"tree", &job.tree},
      {"permutation", &job.permutation},
      {"samples_per_microbatch", &job.samples_per_microbatch},
      {"dataset_samples", &job.dataset_samples}};
  std::vector<std::string> names = {"codec"};
  for (const auto& [known, value] : numbers) names.emplace_back(known);
  if (equals == std::string::npos)
    return Error{ErrorCode::kMisuse, "--job " + text + " is not NAME=VALUE, as in: --job lanes=8"};
  const std::string value = text.substr(equals + 1);
  if (name == "codec") {
    job.codec = value;
    return ok();
  }
  for (const auto& [known, target] : numbers) {
    if (name != known) continue;
    const auto number = parse_number<uint64_t>(value, 10);
    if (!number)
      return Error{ErrorCode::kMisuse, "--job " + text + ": '" + value + "' is not a whole number"};
    *target = *number;
    return ok();
  }
  return Error{ErrorCode::kMisuse,
               "--job " + text + ": there is no constant '" + name + "'" + suggestion(name, names)};
}

// What the new version shall say of itself: what an export left in the file, and what the user gives.
Result<Manifest> describe_import(const SafetensorsFile& source, const CkptArguments& arguments) {
  MUSTER_ASSIGN(auto context, source.context());
  Manifest manifest = context ? *std::move(context) : Manifest{};
  if (arguments.version_given) manifest.id.version = arguments.version;
  for (const std::string& text : arguments.job) MUSTER_TRY(set_job_constant(manifest.job, text));
  manifest.id.nonce = random_nonce();
  manifest.saved_at_ms = wall_time_ms();
  manifest.saved_by = who_am_i() + ", from " + arguments.first;
  return manifest;
}

// Of two saves of one version nobody could say which a resume takes.
Status check_new(Folder& folder, const VersionId& id, const CkptArguments& arguments, const char* advice) {
  MUSTER_ASSIGN(const auto candidates, folder.versions());
  for (const Candidate& candidate : candidates) {
    if (candidate.id.version != id.version || !candidate.finished) continue;
    return Error{ErrorCode::kMisuse,
                 arguments.second + " has " + to_string(candidate.id) + " already; " + advice};
  }
  const bool newer = std::any_of(candidates.begin(), candidates.end(), [&](const Candidate& candidate) {
    return candidate.manifest && !candidate.unusable && candidate.id.version > id.version;
  });
  if (newer)
    std::fprintf(stderr, "muster: %s has newer versions, which a resume takes before version %llu\n",
                 arguments.second.c_str(), static_cast<unsigned long long>(id.version));
  return ok();
}

Result<Manifest> import_file(const CkptArguments& arguments) {
  MUSTER_ASSIGN(SafetensorsFile source, SafetensorsFile::open(real_files(), arguments.first));
  MUSTER_ASSIGN(Manifest like, describe_import(source, arguments));
  MUSTER_ASSIGN(like.key, key_of(arguments));
  MUSTER_ASSIGN(Folder folder, Folder::own(real_files(), arguments.second, who_am_i()));
  folder.use_key(like.key);
  MUSTER_TRY(check_new(folder, like.id, arguments, "give another --version, or another folder"));
  uint64_t total = 0;
  for (const TensorSpec& spec : source.specs()) total += total_bytes(spec);
  ProgressBar bar("importing", total, arguments.json);
  return import_safetensors(real_files(), source, folder, like, arguments.shards,
                            [&](uint64_t done) { bar.show(done); });
}

Status write_new_private_file(const std::string& path, ByteSpan bytes) {
  const auto failed = [&path](const char* what) {
    return Error{errno == EEXIST ? ErrorCode::kMisuse : ErrorCode::kEnvironment,
                 std::string("cannot ") + what + " " + path + ": " + std::strerror(errno)};
  };
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) return failed("create");
  const bool written = ::write(file.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
  if (written && ::fsync(file.get()) == 0) return ok();
  const Error error = failed("write");
  ::unlink(path.c_str());  // half a key is worse than none
  return error;
}

Result<ExportReport> export_file(const CkptArguments& arguments) {
  MUSTER_ASSIGN(const SealKeyPtr key, key_of(arguments));
  MUSTER_ASSIGN(const Chosen chosen, choose(arguments.first, key));
  MUSTER_ASSIGN(StateReader state, open_state(chosen));
  uint64_t total = 0;
  for (const TensorSpec& spec : state.manifest().tensors) total += total_bytes(spec);
  ProgressBar bar("exporting " + to_string(chosen.candidate.id), total, arguments.json);
  return export_safetensors(
      real_files(), state, arguments.tensors, arguments.second, [&](uint64_t done) { bar.show(done); },
      dtype_from(arguments.cast));
}

// The target's own candidate tells whether it counts there: a folder's branch record may say that it does
// not.
struct Copied {
  CopyReport report;
  std::string folder;
  std::optional<Error> unusable;
};

Result<Copied> copy_version(const CkptArguments& arguments) {
  MUSTER_ASSIGN(const SealKeyPtr key, key_of(arguments));
  MUSTER_ASSIGN(const Chosen chosen, choose(arguments.first, key));
  const Candidate& from = chosen.candidate;
  if (from.unusable) return *from.unusable;
  MUSTER_ASSIGN(Folder target, Folder::own(real_files(), arguments.second, who_am_i()));
  target.use_key(key);
  MUSTER_TRY(check_new(target, from.id, arguments, "copy into another folder, or remove that one"));
  CopyOptions options;
  if (arguments.zstd_level != 0) options.zstd_level = arguments.zstd_level;
  ProgressBar bar("copying " + to_string(from.id), bytes_of(*from.manifest), arguments.json);
  options.progress = [&](uint64_t done) { bar.show(done); };
  Copied copied;
  MUSTER_ASSIGN(copied.report, copy_save(real_files(), from.folder, *from.manifest, target, options));
  copied.folder = target.save_folder(from.id);
  MUSTER_ASSIGN(const auto candidates, target.versions());
  for (const Candidate& candidate : candidates)
    if (candidate.id == from.id) copied.unusable = candidate.unusable;
  return copied;
}

}  // namespace

int ckpt_copy(const CkptArguments& arguments) {
  const auto copied = copy_version(arguments);
  if (!copied.ok()) return report(copied.error());
  const CopyReport& done = copied->report;
  if (arguments.json) {
    Json json = to_json(done.manifest.id);
    json["folder"] = copied->folder;
    json["plain_bytes"] = done.bytes_plain;
    json["bytes"] = done.bytes_stored;
    json["compression"] = done.manifest.compressed() ? Json("zstd") : Json();
    json["usable"] = !copied->unusable;
    print(json);
  } else {
    std::printf("%s: %s, %s", copied->folder.c_str(), to_string(done.manifest.id).c_str(),
                human_bytes(done.bytes_plain).c_str());
    if (done.manifest.compressed()) std::printf(" in %s", human_bytes(done.bytes_stored).c_str());
    std::printf(", verified\n");
  }
  if (!copied->unusable) return 0;
  std::fprintf(stderr, "muster: the copy is there, and counts for nothing in %s: %s\n",
               arguments.second.c_str(), copied->unusable->message.c_str());
  return kExitFound;
}

int ckpt_export(const CkptArguments& arguments) {
  const auto exported = export_file(arguments);
  if (!exported.ok()) return report(exported.error());
  if (arguments.json)
    print({{"file", arguments.second},
           {"tensors", exported->tensors},
           {"bytes", exported->bytes},
           {"cast", exported->cast},
           {"kept_floats", exported->kept_floats},
           {"became_infinite", exported->became_infinite}});
  else
    std::printf("%s: %llu tensors, %s\n", arguments.second.c_str(),
                static_cast<unsigned long long>(exported->tensors), human_bytes(exported->bytes).c_str());
  if (exported->became_infinite > 0 && !arguments.json)
    std::fprintf(stderr, "muster: %llu finite values do not fit into %s and became infinite\n",
                 static_cast<unsigned long long>(exported->became_infinite), arguments.cast.c_str());
  if (exported->kept_floats > 0 && !arguments.json)
    std::fprintf(stderr, "muster: %llu %s not cast: their scales are the program's\n",
                 static_cast<unsigned long long>(exported->kept_floats),
                 exported->kept_floats == 1 ? "tensor of 8-bit floats was" : "tensors of 8-bit floats were");
  return 0;
}

int ckpt_import(const CkptArguments& arguments) {
  const auto imported = import_file(arguments);
  if (!imported.ok()) return report(imported.error());
  if (arguments.json) {
    Json json = to_json(imported->id);
    json["folder"] = arguments.second;
    json["tensors"] = imported->tensors.size();
    json["bytes"] = bytes_of(*imported);
    print(json);
  } else {
    std::printf("%s: %s, %zu tensors, %s\n", arguments.second.c_str(), to_string(imported->id).c_str(),
                imported->tensors.size(), human_bytes(bytes_of(*imported)).c_str());
  }
  return 0;
}

int ckpt_keygen(const CkptArguments& arguments) {
  ByteBuffer bytes = random_bytes(kSealKeyBytesMin);
  const Status written = write_new_private_file(arguments.first, bytes);
  const auto key = SealKey::of(std::move(bytes), arguments.first);
  if (!written.ok()) return report(written.error());
  if (!key.ok()) return report(key.error());
  if (arguments.json)
    print({{"file", arguments.first}, {"key_id", hex64((*key)->id())}});
  else
    std::printf("wrote %s, the key %s: keep a copy where the checkpoints are not\n", arguments.first.c_str(),
                hex64((*key)->id()).c_str());
  return 0;
}

int ckpt_index(const CkptArguments& arguments) {
  const auto chosen = choose(arguments.first);
  if (!chosen.ok()) return report(chosen.error());
  const Candidate& candidate = chosen->candidate;
  if (!candidate.manifest) return report(*candidate.unusable);
  const Status written = write_index(real_files(), candidate.folder, *candidate.manifest);
  if (!written.ok()) return report(written.error());
  const std::string path = candidate.folder + "/index.h5";
  if (arguments.json)
    print({{"file", path}});
  else
    std::printf("wrote %s\n", path.c_str());
  return 0;
}

int ckpt_prune(const CkptArguments& arguments) {
  const auto exists = Folder::look(real_files(), arguments.first);
  if (!exists.ok()) return report(exists.error());
  RetentionPolicy policy;
  policy.keep_last = arguments.keep;
  policy.keep_every = arguments.keep_every;
  constexpr uint64_t kSecondsMax = uint64_t{1} << 40;  // no overflow in milliseconds
  policy.keep_younger_ms = static_cast<int64_t>(std::min(arguments.keep_younger_s, kSecondsMax)) * 1000;
  auto folder = arguments.dry_run ? Folder::look(real_files(), arguments.first)
                                  : Folder::own_to_prune(real_files(), arguments.first, who_am_i());
  if (!folder.ok()) return report(folder.error());
  const auto pruned =
      arguments.dry_run ? folder->would_prune(policy, wall_time_ms()) : folder->prune(policy, wall_time_ms());
  if (!pruned.ok()) return report(pruned.error());
  if (arguments.json) {
    print({{"removed", pruned->removed}, {"problems", pruned->problems}, {"dry_run", arguments.dry_run}});
  } else {
    for (const std::string& name : pruned->removed)
      std::printf("%s %s\n", arguments.dry_run ? "would remove" : "removed", name.c_str());
    if (pruned->removed.empty()) std::printf("nothing to remove\n");
  }
  for (const std::string& problem : pruned->problems) std::fprintf(stderr, "muster: %s\n", problem.c_str());
  return pruned->problems.empty() ? 0 : kExitTrouble;
}

}  // namespace muster::launcher
