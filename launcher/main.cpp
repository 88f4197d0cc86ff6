// The `muster` command. Options come from one table (runtime/base/options.h); a flag wins over its variable.
#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "checkpoint/hdf5_module.h"
#include "collectives/mpi/mpi_table.h"
#include "collectives/transport/ucx_table.h"
#include "kernels/cuda_table.h"
#include "launcher/audit.h"
#include "launcher/bench.h"
#include "launcher/ckpt.h"
#include "launcher/host_limits.h"
#include "launcher/http.h"
#include "launcher/placing.h"
#include "launcher/probe.h"
#include "launcher/run.h"
#include "launcher/sim.h"
#include "runtime/base/files.h"
#include "runtime/base/module.h"
#include "runtime/notice/account.h"

namespace {

using namespace muster;

int fail(const std::string& text, int code = launcher::kExitMisuse) {
  std::fprintf(stderr, "muster: %s\n", text.c_str());
  return code;
}

// ---- muster info: what is here, and what would be done with it.
struct InfoFlags {
  std::string workers;
  std::string policy;

  CLI::App* add_to(CLI::App& app) {
    const std::string what =
        "print the version, the modules found, this machine, where workers would be placed, and what limits "
        "them";
    CLI::App* command = app.add_subcommand("info", what);
    command->add_option("--nproc", workers, "plan for so many workers [MUSTER_NPROC, or 1]");
    command->add_option("--bind", policy, "plan as muster run --bind would [MUSTER_BIND, or auto]");
    return command;
  }
};

void show_modules() {
  const std::pair<const char*, int> modules[] = {{"ucx", MUSTER_UCX_TABLE_VERSION},
                                                 {"hdf5", MUSTER_HDF5_TABLE_VERSION},
                                                 {"mpi", MUSTER_MPI_TABLE_VERSION},
                                                 {"cuda", kCudaTableVersion}};
  for (const auto& [name, table_version] : modules) {
    const auto module = load_module(name, table_version);
    std::printf("module %-5s %s\n", name,
                module.ok() ? "found" : ("missing: " + module.error().message).c_str());
  }
}

// What `muster run` would do here: its variables count, and flags win over them.
Result<OptionValues> values_of(const InfoFlags& flags, const CLI::App& command) {
  MUSTER_ASSIGN(OptionValues values, OptionValues::from_environment());
  if (command.count("--nproc") > 0) MUSTER_TRY(values.set("nproc", flags.workers, "--nproc"));
  if (command.count("--bind") > 0) MUSTER_TRY(values.set("bind", flags.policy, "--bind"));
  return values;
}

int info(const InfoFlags& flags, const CLI::App& command) {
  const auto given = values_of(flags, command);
  if (!given.ok()) return fail(given.error().message);
  const OptionValues& values = *given;
  const auto workers = static_cast<uint32_t>(values.integer("nproc"));
  std::printf("muster %s\n", MUSTER_VERSION);
  show_modules();
  std::printf("%s", launcher::describe_placing(placement::policy_of(values.text("bind")), workers).c_str());
  std::printf("%s", launcher::describe_limits(launcher::measure_limits(), workers).c_str());
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

  // What has a variable and no flag.
  static std::string variables() {
    std::string text = "Variables without a flag:\n";
    for (const Option& option : options()) {
      if (option.use != OptionUse::kVariable) continue;
      const std::string default_value(option.default_value);
      text += "  " + variable_of(option) + "  " + std::string(option.help) +
              (default_value.empty() ? "" : " [" + default_value + "]") + "\n";
    }
    return text;
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

// ---- muster notice: tells an agent of this host, and waits until it can be killed; for preStop hooks and
// epilogues.
struct NoticeFlags {
  std::string to;
  std::string words;
  bool wait = false;
  bool withdraw = false;
  double wait_seconds = 3600;

  CLI::App* add_to(CLI::App& app) {
    CLI::App* command =
        app.add_subcommand("notice", "tell an agent on this host that its node or job will be taken away");
    command->add_option("--to", to, "HOST:PORT that the agent was given as --notice-listen")
        ->envname("MUSTER_NOTICE_LISTEN")
        ->required();
    command->add_flag("--wait", wait, "return only when the node can be killed without losing anything");
    command->add_option("--wait-seconds", wait_seconds, "the longest wait")->check(CLI::Range(0.1, 86400.0));
    command->add_flag("--withdraw", withdraw, "the notice given before no longer stands");
    command->add_option("notice", words, "[job|node] [SECONDS] [WORDS], in quotes");
    return command;
  }
};

int give_notice(const NoticeFlags& flags) {
  const std::atomic<bool> stop = false;
  launcher::HttpCall call;
  call.url = "http://" + flags.to + "/notice";
  call.method = flags.withdraw ? "DELETE" : "POST";
  call.body = flags.withdraw ? "" : flags.words + "\n";
  auto answer = launcher::http_call(call, stop);
  if (answer.ok() && answer->status < 300 && flags.wait) {
    call = {};
    call.url = "http://" + flags.to + "/safe";
    call.timeout = static_cast<Duration>(flags.wait_seconds * 1e9);
    answer = launcher::http_call(call, stop);
  }
  if (!answer.ok()) return fail("no agent heard the notice: " + answer.error().message, 75);
  if (answer->status >= 300) return fail("the agent refused the notice: " + answer->body);
  std::printf("%s", answer->body.c_str());
  return 0;
}

// ---- muster account: what the launches of a job have written with --account, for people.

constexpr uint64_t kAccountBytesMax = 64 << 20;

int show_account(const std::string& path) {
  const auto bytes = read_file(real_files(), path, kAccountBytesMax);
  if (!bytes.ok())
    return fail(bytes.error().message + "; name the file that muster run was given as --account");
  const auto launches = notice::read_account({reinterpret_cast<const char*>(bytes->data()), bytes->size()});
  if (launches.empty()) return fail(path + " holds no account of a job, as --account keeps it");
  std::printf("%s", notice::account_report(launches).c_str());
  return 0;
}

}  // namespace

// What could not be written was not said: a full disk must not look like success.
static int printed(int code) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  std::fprintf(stderr, "muster: the output could not be written to its end: %s\n", std::strerror(errno));
  return launcher::kExitTrouble;
}

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "run") == 0) launcher::hold_signals();
  int own = 1;
  while (own < argc && std::strcmp(argv[own], "--") != 0) ++own;
  const std::vector<std::string> program(argv + std::min(own + 1, argc), argv + argc);

  CLI::App app("Muster keeps a training job running through loss, preemption and growth.", "muster");
  app.require_subcommand(1);
  Flags flags;
  CLI::App* run_command =
      app.add_subcommand("run", "start this node's agent: muster run [OPTIONS] -- PROGRAM ARGS…");
  run_command->allow_extras();
  run_command->footer(Flags::variables());
  flags.add_to(*run_command);
  NoticeFlags notice_flags;
  CLI::App* notice_command = notice_flags.add_to(app);
  std::string account_path;
  CLI::App* account_command =
      app.add_subcommand("account", "print what preemptions have cost a job, launch by launch");
  account_command->add_option("file", account_path, "that muster run was given as --account")->required();
  InfoFlags info_flags;
  CLI::App* info_command = info_flags.add_to(app);
  launcher::AuditCommand audit;
  audit.add_to(app);
  launcher::ProbeCommand probe;
  probe.add_to(app);
  launcher::CkptCommand ckpt;
  ckpt.add_to(app);
  const launcher::SimCommand sim_command(app);
  const launcher::BenchCommand bench_command(app);
  try {
    app.parse(own, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    return fail(std::string(error.what()) + "; see: muster --help");
  }
  if (audit.parsed()) return audit.run();
  if (probe.parsed()) return probe.run();
  if (ckpt.parsed()) return printed(ckpt.run());
  if (notice_command->parsed()) return give_notice(notice_flags);
  if (account_command->parsed()) return show_account(account_path);
  if (sim_command.parsed()) return sim_command.run();
  if (bench_command.parsed()) return bench_command.run();
  return info_command->parsed() ? info(info_flags, *info_command) : run(*run_command, flags, program);
}
