#include "launcher/ckpt.h"

#include "checkpoint/numbers.h"
#include "checkpoint/zstd_frames.h"
#include "launcher/ckpt_text.h"

namespace muster::launcher {
namespace {

using checkpoint::kZstdLevelMax;

constexpr const char* kHelp =
    "look at checkpoints: FOLDER means its newest usable version, FOLDER@VERSION a certain one. Exit codes: "
    "0 fine, "
    "1 damage or a difference was found, 2 it could not look, 78 the command is wrong";

}  // namespace

void CkptCommand::add_to(CLI::App& app) {
  ckpt_ = app.add_subcommand("ckpt", kHelp);
  ckpt_->require_subcommand(1);
  const auto add = [this](const char* name, const char* help, int (*function)(const CkptArguments&)) {
    CLI::App* command = ckpt_->add_subcommand(name, help);
    command->add_flag("--json", arguments_.json, "one JSON object instead of a table");
    commands_.emplace_back(command, function);
    return command;
  };
  CkptArguments& to = arguments_;
  const auto add_key = [&to](CLI::App* command, const char* help) {
    command->add_option("--key-file", to.key_file, std::string(help) + " [MUSTER_CHECKPOINT_KEY_FILE]");
  };
  constexpr const char* kCheckedWith = "the key of sealed saves: theirs is checked, and no other is read";

  CLI::App* command = add("ls", "the saves of a folder, newest first, with state, size and age", ckpt_ls);
  command->add_option("FOLDER", to.first)->required();
  add_key(command, kCheckedWith);

  command = add("show", "what one save holds, tensor by tensor", ckpt_show);
  command->add_option("FOLDER[@VERSION]", to.first)->required();
  add_key(command, kCheckedWith);
  command->add_flag("--stats", to.statistics, "read the values: least, greatest, mean, NaNs, magnitudes");
  command->add_option("--tensor", to.tensors, "only this tensor; may be repeated")->allow_extra_args(false);

  command = add("verify", "read every byte of a save and check it", ckpt_verify);
  command->add_option("FOLDER[@VERSION]", to.first)->required();
  add_key(command, kCheckedWith);
  command->add_flag("--all", to.all, "all finished saves of the folder");
  command->add_flag("--mark", to.mark, "record those found good as verified; no job may run on the folder");

  command = add("repair",
                "rebuild what is damaged of a save, or of all, from its parity files; no job may run on the "
                "folder",
                ckpt_repair);
  command->add_option("FOLDER[@VERSION]", to.first, "without VERSION all finished saves")->required();
  command->add_option(
      "VERSION", to.second,
      "the same as FOLDER@VERSION; the save may also lack its manifest.json, if it has parity");
  add_key(command, kCheckedWith);
  command->add_flag("--dry-run", to.dry_run, "only say what would be done");
  command
      ->add_option("--parity", to.parity,
                   "write parity files for saves that have none and are right: one for so many shards")
      ->check(CLI::Range(2, 64));

  command = add("diff", "compare the tensors of two saves", ckpt_diff);
  command->add_option("A", to.first, "FOLDER[@VERSION]")->required();
  command->add_option("B", to.second, "FOLDER[@VERSION]")->required();
  add_key(command, kCheckedWith);
  command->add_option("--tensor", to.tensors, "only this tensor; may be repeated")->allow_extra_args(false);

  command = add("export", "write tensors to a new safetensors file", ckpt_export);
  command->add_option("FOLDER[@VERSION]", to.first)->required();
  command->add_option("FILE", to.second)->required();
  add_key(command, kCheckedWith);
  command->add_option("--tensor", to.tensors, "only this tensor; may be repeated")->allow_extra_args(false);
  command
      ->add_option(
          "--cast", to.cast,
          "write float tensors as this type, rounded to the nearest; the file then says nothing of the job")
      ->check(CLI::IsMember({"float32", "float64", "bfloat16", "float16"}));

  command = add("import", "save the tensors of a safetensors file as a version of a folder", ckpt_import);
  command->add_option("FILE", to.first)->required();
  command->add_option("FOLDER", to.second, "created where missing; no job may run on it")->required();
  add_key(command, "seal the version with this key");
  command
      ->add_option_function<int64_t>(
          "--version",
          [&to](const int64_t& version) {
            to.version = static_cast<uint64_t>(version);
            to.version_given = true;
          },
          "number of the version [what an export says, else 0]")
      ->type_name("UINT")
      ->check([](const std::string& text) {
        const auto number = checkpoint::parse_number<uint64_t>(text, 10);
        const bool fits = number && *number <= checkpoint::kVersionMax;
        return fits ? std::string()
                    : "a version is a whole number up to " + std::to_string(checkpoint::kVersionMax);
      });
  command->add_option("--shards", to.shards, "files to spread it over")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command
      ->add_option(
          "--job", to.job,
          "NAME=VALUE: a constant of the job that shall resume from it, as it names it when it refuses")
      ->allow_extra_args(false);

  command = add("copy", "copy a save into another folder, each byte verified; compressed, or plain again",
                ckpt_copy);
  command->add_option("FOLDER[@VERSION]", to.first)->required();
  command->add_option("TARGET", to.second, "created where missing; no job may run on it")->required();
  add_key(command, "the key of a sealed save; the copy is sealed with it");
  command
      ->add_flag("--zstd{3}", to.zstd_level,
                 "compress the copy, with this level, 1 to 19: --zstd is 3, as --zstd=3")
      ->check(CLI::Range(1, kZstdLevelMax));

  command = add("keygen", "write a new key that seals checkpoints, for checkpoint_key_file", ckpt_keygen);
  command->add_option("FILE", to.first, "new, and readable by you alone")->required();

  command =
      add("index", "write the save's index.h5 anew, which shows h5py and h5dump whole tensors", ckpt_index);
  command->add_option("FOLDER[@VERSION]", to.first)->required();

  command = add("prune", "remove saves that are no longer needed; no job may run on the folder", ckpt_prune);
  command->add_option("FOLDER", to.first)->required();
  command->add_option("--keep", to.keep, "verified versions to keep, the newest")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  command->add_option("--keep-every", to.keep_every, "keep also versions that are multiples of this");
  command->add_option("--keep-younger", to.keep_younger_s,
                      "keep also what was saved less than so many seconds ago");
  command->add_flag("--dry-run", to.dry_run, "only say what would be removed");
}

int CkptCommand::run() const {
  for (const auto& [command, function] : commands_)
    if (command->parsed()) return function(arguments_);
  return kExitTrouble;
}

}  // namespace muster::launcher
