// `muster ckpt repair`: becomes the folder's owner, so a folder on which a job runs is refused, and rebuilds
// what is damaged of its saves. A dry run only reads.
#include <algorithm>
#include <cstdio>

#include "checkpoint/repair.h"
#include "launcher/ckpt_text.h"

namespace muster::launcher {
namespace {

using namespace checkpoint;

struct Tally {
  Json saves = Json::array();
  Table table{{"version", "save", "file", "damage", "outcome", "how"}};
  bool has_rows = false;
  bool is_right = true;
  std::vector<std::string>
      unreadable;  // saves of which not even the manifest is known, or that were not repaired to the end

  void add(const RepairReport& report) {
    Json files = Json::array();
    for (const FileRepair& file : report.files) {
      files.push_back({{"file", file.file},
                       {"damage", file.damage},
                       {"outcome", to_string(file.what)},
                       {"how", file.how}});
      table.add({std::to_string(report.id.version), hex64(report.id.nonce), file.file, file.damage,
                 to_string(file.what), file.how});
      has_rows = true;
    }
    is_right = is_right && report.is_right();
    if (report.ended_by) unreadable.push_back(to_string(report.id) + ": " + report.ended_by->message);
    Json json = to_json(report.id);
    if (report.ended_by) json["why"] = report.ended_by->message;
    json["was_right"] = report.was_right();
    json["right"] = report.is_right();
    json["files"] = files;
    saves.push_back(std::move(json));
  }

  void add_unreadable(const VersionId& id, const Error& why) {
    is_right = false;
    unreadable.push_back(to_string(id) + ": " + why.message);
    Json json = to_json(id);
    json["was_right"] = false;
    json["right"] = false;
    json["files"] = Json::array();
    json["why"] = why.message;
    saves.push_back(std::move(json));
  }

  void print_text(bool dry_run) const {
    if (has_rows) table.print();
    for (const std::string& line : unreadable) std::printf("%s\n", printable(line).c_str());
    const size_t count = saves.size();
    if (!has_rows && unreadable.empty())
      std::printf("nothing to repair in %zu save%s\n", count, count == 1 ? "" : "s");
    else if (dry_run)
      std::printf("nothing was changed: a dry run\n");
  }
};

uint64_t bytes_to_read(const Candidate& candidate) {
  return candidate.manifest ? bytes_of(*candidate.manifest) : 0;
}

bool has_parity(const Candidate& save) {
  const auto found = find_parity(real_files(), save.folder);
  return found.ok() && !found->empty();
}

// What one trouble stops is one save. Those that have parity first: others may link to what is rebuilt there.
void repair_all(ChosenSaves& saves, const std::vector<OtherSave>& others, const SealKeyPtr& key,
                const CkptArguments& arguments, Tally& tally) {
  std::stable_partition(saves.candidates.begin(), saves.candidates.end(), has_parity);
  for (const Candidate& save : saves.candidates) {
    ProgressBar bar("repairing " + to_string(save.id), bytes_to_read(save), arguments.json);
    RepairOptions options;
    options.dry_run = arguments.dry_run;
    options.missing_manifest = !save.finished;  // only one that was named
    options.write_parity = arguments.parity;
    options.others = others;
    options.key = key;
    options.progress = [&](uint64_t bytes) { bar.show(bytes); };
    const auto repaired = repair_save(real_files(), save.folder, save.id, options);
    if (repaired.ok())
      tally.add(*repaired);
    else
      tally.add_unreadable(save.id, repaired.error());
  }
}

Result<Tally> repair(const CkptArguments& arguments) {
  const std::string name =
      arguments.second.empty() ? arguments.first : arguments.first + "@" + arguments.second;
  MUSTER_ASSIGN(const SealKeyPtr key, key_of(arguments));
  MUSTER_ASSIGN(ChosenSaves saves, choose_some(name, !names_version(name), key));
  std::optional<Folder> owned;
  if (!arguments.dry_run) {
    MUSTER_ASSIGN(owned, Folder::own(real_files(), saves.folder, who_am_i()));
  }
  MUSTER_ASSIGN(Folder folder, look(saves.folder, key));
  MUSTER_ASSIGN(const auto all, folder.versions());
  std::vector<OtherSave> others;
  for (const Candidate& candidate : all)
    if (candidate.manifest) others.push_back({candidate.folder, candidate.manifest});
  Tally tally;
  repair_all(saves, others, key, arguments, tally);
  return tally;
}

}  // namespace

int ckpt_repair(const CkptArguments& arguments) {
  const auto repaired = repair(arguments);
  if (!repaired.ok()) return report(repaired.error());
  if (arguments.json)
    print({{"dry_run", arguments.dry_run}, {"saves", repaired->saves}});
  else
    repaired->print_text(arguments.dry_run);
  return repaired->is_right ? 0 : kExitFound;
}

}  // namespace muster::launcher
