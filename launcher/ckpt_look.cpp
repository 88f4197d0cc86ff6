// `muster ckpt ls`, `show`, `verify`, `diff`: they only read and need no lock, `verify --mark` apart.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include "checkpoint/repair.h"
#include "launcher/ckpt_text.h"
#include "runtime/base/clock.h"

namespace muster::launcher {
namespace {

using namespace checkpoint;

uint64_t bytes_on_disk(const Candidate& candidate) {
  if (candidate.manifest) return stored_bytes_of(*candidate.manifest);
  uint64_t bytes = 0;
  const auto names = real_files().list(candidate.folder);
  if (!names.ok()) return 0;
  for (const std::string& name : *names) {
    const auto status = real_files().stat(candidate.folder + "/" + name);
    if (status.ok() && *status) bytes += (*status)->bytes;
  }
  return bytes;
}

// When it was saved or, without a manifest, when its folder was last changed.
int64_t saved_at_ms(const Candidate& candidate) {
  if (candidate.manifest) return candidate.manifest->saved_at_ms;
  const auto status = real_files().stat(candidate.folder);
  return status.ok() && *status ? (*status)->modified_ms : 0;
}

Json summary(const Candidate& candidate) {
  Json json = {{"version", candidate.id.version},   {"nonce", hex64(candidate.id.nonce)},
               {"state", state_text(candidate)},    {"usable", !candidate.unusable},
               {"bytes", bytes_on_disk(candidate)}, {"saved_at_ms", saved_at_ms(candidate)},
               {"folder", candidate.folder}};
  if (candidate.unusable) json["why"] = candidate.unusable->message;
  if (candidate.manifest) {
    json["shards"] = candidate.manifest->shards.size();
    json["tensors"] = candidate.manifest->tensors.size();
    json["sample_position"] = candidate.manifest->sample_position;
    json["parent"] = to_json(candidate.manifest->parent);
    json["sealed"] = candidate.manifest->key_id != 0 ? Json(hex64(candidate.manifest->key_id)) : Json();
    json["seal_checked"] = candidate.manifest->key != nullptr;
    json["compression"] = candidate.manifest->compressed() ? Json("zstd") : Json();
    json["plain_bytes"] = bytes_of(*candidate.manifest);
  }
  return json;
}

// The indices of the tensors that the user asked for.
Result<std::vector<uint32_t>> chosen_tensors(const StateReader& state, std::span<const std::string> names) {
  std::vector<uint32_t> tensors;
  for (const std::string& name : names) {
    MUSTER_ASSIGN(tensors.emplace_back(), state.find(name));
  }
  for (uint32_t t = 0; names.empty() && t < state.manifest().tensors.size(); ++t) tensors.push_back(t);
  return tensors;
}

uint64_t bytes_of_tensors(const StateReader& state, std::span<const uint32_t> tensors) {
  uint64_t bytes = 0;
  for (const uint32_t t : tensors) bytes += total_bytes(state.manifest().tensors[t]);
  return bytes;
}

std::string split_text(const TensorSpec& spec) {
  if (spec.split == kSharded) return "shards";
  return spec.split == kReplicated ? "replicated" : "dimension " + std::to_string(spec.split);
}

Json tensor_json(const TensorSpec& spec) {
  return {{"name", spec.name},
          {"dtype", to_string(spec.dtype)},
          {"shape", spec.shape},
          {"split", spec.split},
          {"bytes", total_bytes(spec)}};
}

// Whose file an earlier save wrote.
size_t shared_shards(const Manifest& manifest) {
  return static_cast<size_t>(
      std::count_if(manifest.shards.begin(), manifest.shards.end(),
                    [](const ShardEntry& shard) { return shard.written_by.nonce != 0; }));
}

// Shards of which an earlier save's file has a part, by participant.
Json clones_json(const Manifest& manifest) {
  Json list = Json::array();
  for (size_t p = 0; p < manifest.shards.size(); ++p) {
    const ShardEntry& shard = manifest.shards[p];
    if (shard.shares_with.nonce == 0) continue;
    list.push_back({{"shard", p},
                    {"slabs", shard.geometry.slab_count()},
                    {"shared_slabs", shard.shared_slabs},
                    {"origin", to_json(shard.shares_with)}});
  }
  return list;
}

// "12 of 40 slabs with version 3 (save …)", by origin.
std::vector<std::string> cloned_lines(const Manifest& manifest) {
  struct Count {
    uint64_t shared = 0, all = 0;
  };
  std::map<VersionId, Count> by_origin;
  for (const ShardEntry& shard : manifest.shards) {
    if (shard.shares_with.nonce == 0) continue;
    Count& count = by_origin[shard.shares_with];
    count.shared += shard.shared_slabs;
    count.all += shard.geometry.slab_count();
  }
  std::vector<std::string> lines;
  for (const auto& [origin, count] : by_origin)
    lines.push_back(std::to_string(count.shared) + " of " + std::to_string(count.all) +
                    " slabs with files that began with " + to_string(origin));
  return lines;
}

Json header_json(const Candidate& candidate) {
  const Manifest& manifest = *candidate.manifest;
  Json lineage = Json::array();
  for (const LineageEntry& entry : manifest.lineage)
    lineage.push_back(
        {{"store", hex64(entry.store_nonce)}, {"generation", entry.generation}, {"base", entry.base}});
  Json json = summary(candidate);
  json["saved_by"] = manifest.saved_by;
  json["shared_shards"] = shared_shards(manifest);
  json["clones"] = clones_json(manifest);
  json["lineage"] = lineage;
  json["job"] = {{"microbatches", manifest.job.microbatches},
                 {"lanes", manifest.job.lanes},
                 {"seed", manifest.job.seed},
                 {"codec", manifest.job.codec},
                 {"tree", manifest.job.tree},
                 {"permutation", manifest.job.permutation},
                 {"samples_per_microbatch", manifest.job.samples_per_microbatch},
                 {"dataset_samples", manifest.job.dataset_samples}};
  Json values = Json::object();
  for (const auto& [name, bytes] : manifest.step_values) values[name] = to_hex(bytes);
  json["step_values"] = values;
  return json;
}

std::string seal_text(const Manifest& manifest) {
  if (manifest.key_id == 0) return "no: digests tell accidents, not who changed it";
  return "with the key " + hex64(manifest.key_id) +
         (manifest.key ? ", which is the one given"
                       : ", which was not given (--key-file) and is not checked");
}

void print_header(const Candidate& candidate) {
  const Manifest& manifest = *candidate.manifest;
  const auto line = [](const char* name, const std::string& value) {
    std::printf("%-16s %s\n", name, printable(value).c_str());
  };
  line("version", std::to_string(manifest.id.version) + " (save " + hex64(manifest.id.nonce) + ")");
  line("state", state_text(candidate));
  if (candidate.unusable) line("", candidate.unusable->message);
  line("saved", age_text(wall_time_ms() - manifest.saved_at_ms) + " ago by " + manifest.saved_by);
  if (manifest.parent.nonce != 0) line("parent", to_string(manifest.parent));
  line("sample position", std::to_string(manifest.sample_position));
  line("size", human_bytes(bytes_of(manifest)) + " in " + std::to_string(manifest.shards.size()) + " shard" +
                   (manifest.shards.size() == 1 ? "" : "s"));
  if (manifest.compressed())
    line("compressed", "with zstd, to " + human_bytes(stored_bytes_of(manifest)) +
                           "; a plain file again by: zstd -d shard-….h5.zst");
  if (const size_t shared = shared_shards(manifest); shared > 0)
    line("shared",
         std::to_string(shared) + " of these files with earlier versions, whose bytes were the same");
  for (const std::string& text : cloned_lines(manifest)) line("shared", text);
  line("sealed", seal_text(manifest));
  const JobConstants& job = manifest.job;
  line("job", "microbatches " + std::to_string(job.microbatches) + ", lanes " + std::to_string(job.lanes) +
                  ", seed " + std::to_string(job.seed) + ", codec " + job.codec);
  for (const auto& [name, bytes] : manifest.step_values)
    line("step value", name + ", " + std::to_string(bytes.size()) + " bytes");
}

Result<Statistics> statistics_of(StateReader& state, uint32_t tensor, ProgressBar& bar, uint64_t& done) {
  Statistics statistics;
  const DType dtype = state.manifest().tensors[tensor].dtype;
  const Status read = for_each_chunk(state, tensor, [&](uint64_t, ByteSpan bytes) -> Status {
    statistics.add(dtype, bytes);
    bar.show(done += bytes.size());
    return ok();
  });
  MUSTER_TRY(read);
  return statistics;
}

Status show_tensors(StateReader& state, const CkptArguments& arguments, Json& json) {
  MUSTER_ASSIGN(const auto tensors, chosen_tensors(state, arguments.tensors));
  std::vector<std::string> heads = {"tensor", "type", "shape", "split", "size"};
  if (arguments.statistics)
    for (const char* head : {"min", "max", "mean", "NaN", "inf", "zero", "|x| from 2^-48 to 2^32"})
      heads.emplace_back(head);
  Table table(heads);
  ProgressBar bar("reading", bytes_of_tensors(state, tensors), arguments.json);
  uint64_t done = 0;
  for (const uint32_t t : tensors) {
    const TensorSpec& spec = state.manifest().tensors[t];
    std::vector<std::string> row = {spec.name, std::string(to_string(spec.dtype)), shape_text(spec.shape),
                                    split_text(spec), human_bytes(total_bytes(spec))};
    Json entry = tensor_json(spec);
    if (arguments.statistics) {
      MUSTER_ASSIGN(const Statistics statistics, statistics_of(state, t, bar, done));
      for (const double value : {statistics.min, statistics.max, statistics.mean()})
        row.push_back(number_text(value));
      for (const uint64_t count : {statistics.nans, statistics.infinities, statistics.zeros})
        row.push_back(std::to_string(count));
      row.push_back(histogram_text(statistics));
      entry["statistics"] = launcher::to_json(statistics);
    }
    json["tensors"].push_back(std::move(entry));
    table.add(std::move(row));
  }
  if (!arguments.json) {
    std::printf("\n");
    table.print();
  }
  return ok();
}

// --- verify

struct Verdict {
  Json json;
  bool good = false;                  // the save
  bool parity_is_good = false;        // what it has of it
  bool parity_can_be_mended = false;  // some of it is damaged or missing
  bool removed = false;               // by a retention that went on meanwhile; nothing else is told then
};

// A published manifest goes only with its save, and first.
bool was_removed(const Candidate& candidate) {
  const auto manifest = real_files().stat(candidate.folder + "/" + kManifestName);
  return candidate.finished && manifest.ok() && !*manifest;
}

// What the save has beside its shards, to rebuild them from.
void verify_parity_of(const Candidate& candidate, const SealKeyPtr& key, Verdict& verdict, bool quiet) {
  Json problems = Json::array();
  size_t count = 0;
  const auto note = [&](const std::string& problem) { problems.push_back(problem); };
  if (const auto save = read_manifest_json(real_files(), candidate.folder, candidate.id, key); save.ok()) {
    const auto found = find_parity(real_files(), candidate.folder);
    if (found.ok()) count = found->size();
    ProgressBar bar("verifying its parity", bytes_of(save->manifest), quiet);
    const auto damaged =
        verify_parity(real_files(), candidate.folder, *save, [&](uint64_t bytes) { bar.show(bytes); });
    if (!damaged.ok()) note(damaged.error().message);
    for (size_t i = 0; damaged.ok() && i < damaged->size(); ++i) {
      const Error& problem = (*damaged)[i].problem;
      note(problem.message);
      verdict.parity_can_be_mended |= problem.code == ErrorCode::kDropCheckpoint;
    }
  }
  verdict.parity_is_good = problems.empty();
  verdict.json["parity"] = {{"files", count}, {"problems", problems}};
}

// Whether `muster ckpt repair` would make a finished save right again.
bool can_be_repaired(const Candidate& candidate, const SealKeyPtr& key) {
  if (!candidate.finished) return false;
  RepairOptions options;
  options.dry_run = true;
  options.key = key;
  const auto repair = repair_save(real_files(), candidate.folder, candidate.id, options);
  return repair.ok() && repair->is_right();
}

Verdict verify_save(const Candidate& candidate, const SealKeyPtr& key, bool quiet) {
  Verdict verdict{to_json(candidate.id), !candidate.unusable || candidate.abandoned};
  Json problems = Json::array();
  if (candidate.unusable) problems.push_back(candidate.unusable->message);
  const Instant began = now();
  uint64_t bytes = 0;
  if (candidate.manifest) {
    ProgressBar bar("verifying " + to_string(candidate.id), bytes_of(*candidate.manifest), quiet);
    for (uint32_t p = 0; p < candidate.manifest->shards.size(); ++p) {
      const Status verified = verify_shard(real_files(), candidate.folder, *candidate.manifest, p,
                                           [&](uint64_t read) { bar.show(bytes + read); });
      bytes += candidate.manifest->shards[p].geometry.file_bytes();
      if (verified.ok()) continue;
      verdict.good = false;
      problems.push_back(verified.error().message);
    }
  }
  verify_parity_of(candidate, key, verdict, quiet);
  verdict.removed = !(verdict.good && verdict.parity_is_good) && was_removed(candidate);
  if (verdict.removed) {
    verdict.json["removed"] = true;
    return verdict;
  }
  if (!verdict.good) verdict.json["repairable"] = can_be_repaired(candidate, key);
  verdict.json["good"] = verdict.good;
  verdict.json["state"] = state_text(candidate);
  verdict.json["problems"] = problems;
  verdict.json["bytes"] = bytes;
  verdict.json["seconds"] = static_cast<double>(now() - began) / static_cast<double>(kSecond);
  return verdict;
}

void print_verdict(const Candidate& candidate, const Verdict& verdict) {
  if (verdict.removed) {
    std::printf("%s: removed while it was verified\n", to_string(candidate.id).c_str());
    return;
  }
  std::printf("%s: %s, %s, %.2f s\n", to_string(candidate.id).c_str(), verdict.good ? "good" : "BAD",
              human_bytes(verdict.json["bytes"].get<uint64_t>()).c_str(),
              verdict.json["seconds"].get<double>());
  for (const Json& problem : verdict.json["problems"])
    std::printf("  %s\n", printable(problem.get_ref<const std::string&>()).c_str());
  for (const Json& problem : verdict.json["parity"]["problems"])
    std::printf("  %s\n", printable(problem.get_ref<const std::string&>()).c_str());
  const bool is_repairable =
      verdict.good ? verdict.parity_can_be_mended : verdict.json["repairable"].get<bool>();
  if (is_repairable) std::printf("  muster ckpt repair %s would make it right\n", candidate.folder.c_str());
}

// --- diff

struct Sides {
  StateReader a, b;
};

Result<Difference> compare(Sides& sides, uint32_t in_a, uint32_t in_b, Statistics& of_a, Statistics& of_b,
                           const std::function<void(uint64_t)>& progress) {
  Difference difference;
  const DType dtype = sides.a.manifest().tensors[in_a].dtype;
  ByteBuffer other;
  const Status read = for_each_chunk(sides.a, in_a, [&](uint64_t at, ByteSpan bytes) -> Status {
    other.resize(bytes.size());
    MUSTER_TRY(sides.b.read(in_b, at, other));
    difference.add(dtype, bytes, other);
    of_a.add(dtype, bytes);
    of_b.add(dtype, other);
    progress(bytes.size());
    return ok();
  });
  MUSTER_TRY(read);
  return difference;
}

struct DiffOutput {
  Json tensors = Json::array();
  Table table{{"tensor", "differing", "of", "largest", "not finite", "first at", "mean A", "mean B", "NaN A",
               "NaN B"}};
  uint64_t equal = 0;
  uint64_t different = 0;

  void only(const TensorSpec& spec, const char* side) {
    ++different;
    tensors.push_back({{"name", spec.name}, {"only_in", side}});
    table.add({spec.name, std::string("only in ") + side, "", "", "", "", "", "", "", ""});
  }
  void unlike(const TensorSpec& a, const TensorSpec& b) {
    ++different;
    tensors.push_back({{"name", a.name}, {"a", to_string(a)}, {"b", to_string(b)}});
    table.add({a.name, "A " + to_string(a) + ", B " + to_string(b), "", "", "", "", "", "", "", ""});
  }
  void values(const TensorSpec& spec, const Difference& difference, const Statistics& a,
              const Statistics& b) {
    if (difference.differing == 0) {
      ++equal;
      return;
    }
    ++different;
    tensors.push_back({{"name", spec.name},
                       {"differing", difference.differing},
                       {"count", difference.count},
                       {"largest", difference.largest},
                       {"not_finite", difference.not_finite},
                       {"first_differing", difference.first_differing},
                       {"a", launcher::to_json(a)},
                       {"b", launcher::to_json(b)}});
    table.add({spec.name, std::to_string(difference.differing), std::to_string(difference.count),
               number_text(difference.largest), std::to_string(difference.not_finite),
               std::to_string(difference.first_differing), number_text(a.mean()), number_text(b.mean()),
               std::to_string(a.nans), std::to_string(b.nans)});
  }
};

Status diff_tensors(Sides& sides, const CkptArguments& arguments, DiffOutput& output) {
  MUSTER_ASSIGN(const auto tensors, chosen_tensors(sides.a, arguments.tensors));
  ProgressBar bar("comparing", bytes_of_tensors(sides.a, tensors), arguments.json);
  uint64_t done = 0;
  for (const uint32_t t : tensors) {
    const TensorSpec& spec = sides.a.manifest().tensors[t];
    const auto other = sides.b.find(spec.name);
    if (!other.ok()) {
      output.only(spec, "A");
      continue;
    }
    const TensorSpec& there = sides.b.manifest().tensors[*other];
    if (there.dtype != spec.dtype || there.shape != spec.shape) {
      output.unlike(spec, there);
      continue;
    }
    Statistics a;
    Statistics b;
    MUSTER_ASSIGN(const Difference difference,
                  compare(sides, t, *other, a, b, [&](uint64_t bytes) { bar.show(done += bytes); }));
    output.values(spec, difference, a, b);
  }
  if (!arguments.tensors.empty()) return ok();
  for (const TensorSpec& spec : sides.b.manifest().tensors)
    if (!sides.a.find(spec.name).ok()) output.only(spec, "B");
  return ok();
}

Result<Sides> open_sides(const CkptArguments& arguments) {
  MUSTER_ASSIGN(const SealKeyPtr key, key_of(arguments));
  MUSTER_ASSIGN(const Chosen a, choose(arguments.first, key));
  MUSTER_ASSIGN(const Chosen b, choose(arguments.second, key));
  MUSTER_ASSIGN(StateReader reader_a, open_state(a));
  MUSTER_ASSIGN(StateReader reader_b, open_state(b));
  return Sides{std::move(reader_a), std::move(reader_b)};
}

}  // namespace

int ckpt_ls(const CkptArguments& arguments) {
  const auto key = key_of(arguments);
  if (!key.ok()) return report(key.error());
  auto folder = look(arguments.first, *key);
  if (!folder.ok()) return report(folder.error());
  const auto candidates = folder->versions();
  if (!candidates.ok()) return report(candidates.error());
  Json saves = Json::array();
  Table table(
      {"version", "save", "state", "size", "age", "shards", "tensors", "samples", "parent", "sealed"});
  std::vector<std::string> reasons;
  for (const Candidate& candidate : *candidates) {
    const Manifest* manifest = candidate.manifest.get();
    saves.push_back(summary(candidate));
    const auto number = [&](uint64_t value) { return manifest ? std::to_string(value) : std::string("-"); };
    table.add({std::to_string(candidate.id.version), hex64(candidate.id.nonce), state_text(candidate),
               human_bytes(bytes_on_disk(candidate)), age_text(wall_time_ms() - saved_at_ms(candidate)),
               number(manifest ? manifest->shards.size() : 0),
               number(manifest ? manifest->tensors.size() : 0),
               number(manifest ? manifest->sample_position : 0),
               manifest && manifest->parent.nonce != 0 ? std::to_string(manifest->parent.version) : "-",
               manifest && manifest->key_id != 0 ? hex64(manifest->key_id) : "-"});
    if (candidate.finished && candidate.unusable && !candidate.abandoned)
      reasons.push_back(candidate.unusable->message);
  }
  if (arguments.json) {
    print({{"folder", folder->path()}, {"saves", saves}});
  } else if (candidates->empty()) {
    std::printf("%s holds no saves\n", folder->path().c_str());
  } else {
    table.print();
    for (const std::string& reason : reasons) std::printf("%s\n", printable(reason).c_str());
  }
  return reasons.empty() ? 0 : kExitFound;
}

int ckpt_show(const CkptArguments& arguments) {
  const auto key = key_of(arguments);
  if (!key.ok()) return report(key.error());
  const auto chosen = choose(arguments.first, *key);
  if (!chosen.ok()) return report(chosen.error());
  auto state = open_state(*chosen);
  if (!state.ok()) return report(state.error());
  if (!arguments.json) print_header(chosen->candidate);
  Json json = header_json(chosen->candidate);
  json["tensors"] = Json::array();
  const Status shown = show_tensors(*state, arguments, json);
  if (!shown.ok()) return report(shown.error());
  if (arguments.json) print(json);
  return 0;
}

int ckpt_verify(const CkptArguments& arguments) {
  const auto key = key_of(arguments);
  if (!key.ok()) return report(key.error());
  const auto saves = choose_some(arguments.first, arguments.all, *key);
  if (!saves.ok()) return report(saves.error());
  std::optional<Folder> owned;
  if (arguments.mark) {
    auto folder = Folder::own(real_files(), saves->folder, who_am_i());
    if (!folder.ok()) return report(folder.error());
    owned.emplace(std::move(folder).value());
  }
  Json list = Json::array();
  bool all_good = true;
  bool nothing_seen = true;
  for (const Candidate& save : saves->candidates) {
    const Verdict verdict = verify_save(save, *key, arguments.json);
    all_good &= verdict.removed || (verdict.good && verdict.parity_is_good);
    nothing_seen &= verdict.removed;
    if (!arguments.json) print_verdict(save, verdict);
    list.push_back(verdict.json);
    if (!owned || !verdict.good || verdict.removed) continue;
    const Status marked = owned->mark_verified(save.id);
    if (!marked.ok()) return report(marked.error());
  }
  if (arguments.json) print({{"saves", list}});
  if (nothing_seen) return kExitTrouble;
  return all_good ? 0 : kExitFound;
}

int ckpt_diff(const CkptArguments& arguments) {
  auto sides = open_sides(arguments);
  // 1 must mean "they differ" and nothing else.
  const auto trouble = [](const Error& error) {
    const int code = report(error);
    return code == kExitFound ? kExitTrouble : code;
  };
  if (!sides.ok()) return trouble(sides.error());
  DiffOutput output;
  const Status compared = diff_tensors(*sides, arguments, output);
  if (!compared.ok()) return trouble(compared.error());
  if (arguments.json) {
    print({{"a", to_json(sides->a.manifest().id)},
           {"b", to_json(sides->b.manifest().id)},
           {"equal", output.equal},
           {"different", output.different},
           {"tensors", output.tensors}});
  } else {
    if (output.different != 0) output.table.print();
    std::printf("%s%llu tensors equal, %llu different\n", output.different != 0 ? "\n" : "",
                static_cast<unsigned long long>(output.equal),
                static_cast<unsigned long long>(output.different));
  }
  return output.different == 0 ? 0 : kExitFound;
}

}  // namespace muster::launcher
