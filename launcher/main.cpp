// The `muster` command. Options come from one table (runtime/base/options.h); a flag wins over its variable.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>

#include "launcher/run.h"
#include "runtime/base/module.h"

namespace {

using namespace muster;

int fail(const std::string& text) {
  std::fprintf(stderr, "muster: %s\n", text.c_str());
  return launcher::kExitMisuse;
}

int info() {
  std::printf("muster %s\n", MUSTER_VERSION);
  for (const char* name : {"ucx", "hdf5", "cuda"}) {
    const auto module = load_module(name, 1);
    std::printf("module %-5s %s\n", name,
                module.ok() ? "found" : ("missing: " + module.error().message).c_str());
  }
  return 0;
}

// The flags of the table, as the user gave them.
struct Flags {
  std::map<std::string, std::string> texts;
  std::map<std::string, bool> switches;

  void add_to(CLI::App& command) {
    for (const Option& option : options()) {
      if (option.use != OptionUse::kRun) continue;
      const std::string name(option.name);
      const std::string help = std::string(option.help) + " [" + std::string(option.default_value) + "; " +
                               variable_of(option) + "]";
      if (option.type == OptionType::kSwitch)
        command.add_flag(flag_of(option), switches[name], help);
      else
        command.add_option(flag_of(option), texts[name], help)->type_name("");
    }
  }

  Status apply_to(OptionValues& values, const CLI::App& command) const {
    for (const auto& [name, text] : texts)
      if (command.count("--" + name) > 0) MUSTER_TRY(values.set(name, text, "--" + name));
    for (const auto& [name, on] : switches)
      if (command.count("--" + name) > 0) MUSTER_TRY(values.set(name, on ? "1" : "0", "--" + name));
    return ok();
  }
};

std::string unknown(const std::string& word) {
  if (word.empty() || word[0] != '-')
    return "'" + word +
           "' is not an option; put the program after --, as in: muster run --nproc 4 -- ./train";
  std::vector<std::string> flags;
  for (const Option& option : options())
    if (option.use == OptionUse::kRun) flags.push_back(flag_of(option));
  const std::string flag = word.substr(0, word.find('='));
  return "unknown option '" + flag + "'" + suggestion(flag, flags) + " See: muster run --help";
}

int run(const CLI::App& command, const Flags& flags, std::vector<std::string> program) {
  const auto left = command.remaining();
  if (!left.empty()) return fail(unknown(left.front()));
  auto values = OptionValues::from_environment();
  if (!values.ok()) return fail(values.error().message);
  const Status applied = flags.apply_to(*values, command);
  if (!applied.ok()) return fail(applied.error().message);
  return launcher::run(*values, std::move(program));
}

}  // namespace

int main(int argc, char** argv) {
  int own = 1;
  while (own < argc && std::strcmp(argv[own], "--") != 0) ++own;
  const std::vector<std::string> program(argv + std::min(own + 1, argc), argv + argc);

  CLI::App app("Muster keeps a training job running through loss, preemption and growth.", "muster");
  app.require_subcommand(1);
  Flags flags;
  CLI::App* run_command =
      app.add_subcommand("run", "start this node's agent: muster run [OPTIONS] -- PROGRAM ARGS…");
  run_command->allow_extras();
  flags.add_to(*run_command);
  CLI::App* info_command = app.add_subcommand("info", "print the version and the modules found");
  try {
    app.parse(own, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    return fail(std::string(error.what()) + "; see: muster --help");
  }
  return info_command->parsed() ? info() : run(*run_command, flags, program);
}
