// The real binary with real processes: bad input, deaths, signals, leaks.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "tests/launcher/agent_process.h"

namespace muster {
namespace {

using namespace testing_agents;
using testing::HasSubstr;
namespace fs = std::filesystem;

using Words = std::vector<std::string>;

Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Steps of a job that the test ends.
constexpr char kForever[] = "100000000";

class Launcher : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "muster_launcher_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    secret_ = secret_file("secret", "0123456789abcdef0123456789abcdef");
    rdzv_ = "127.0.0.1:" + std::to_string(free_port());
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string secret_file(const std::string& name, const std::string& text, mode_t mode = 0600) {
    const std::string path = (folder_ / name).string();
    std::ofstream(path) << text << "\n";
    chmod(path.c_str(), mode);
    return path;
  }

  Words run(const Words& options, const Words& program) const {
    return Words{MUSTER_COMMAND, "run"} + options + Words{"--"} + program;
  }
  Words toy(const Words& options = {}) const {
    return Words{TOY_WORKER, "--board", (folder_ / "board").string()} + options;
  }
  // Its loop ends, and it does not.
  Words hanging_after(const std::string& steps) const {
    return {"/bin/sh", "-c",
            std::string(TOY_WORKER) + " --board " + (folder_ / "board").string() + " --steps " + steps +
                "; echo the loop is over; sleep 1000"};
  }
  // So that both are in the first view, however long the second takes to start.
  const Words together{"--form-wait", "60"};
  // One of two agents that make two nodes of this machine.
  Words node(const std::string& name, const Words& options = {}) const {
    return Words{"--nnodes",        "1:2",  "--nproc",        "2",     "--rdzv",           rdzv_,
                 "--job",           "test", "--secret-file",  secret_, "--node-name",      name,
                 "--restart-delay", "0.1",  "--node-silence", "60",    "--worker-silence", "60"} +
           options;
  }

  void expect_misuse(const Words& words, const std::string& sentence, const Words& variables = {},
                     int code = 78) {
    AgentProcess agent(words, variables);
    EXPECT_EQ(agent.wait(), code) << agent.said();
    EXPECT_THAT(agent.said(), HasSubstr(sentence));
    EXPECT_THAT(agent.said(), HasSubstr("muster: "));
  }

  static void stop_both(AgentProcess& a, AgentProcess& b) {
    a.signal(SIGTERM);
    b.signal(SIGTERM);
    EXPECT_EQ(a.wait(), 75) << a.said();
    EXPECT_EQ(b.wait(), 75) << b.said();
  }

  fs::path folder_;
  std::string secret_;
  std::string rdzv_;
};

// ---- bad input

TEST_F(Launcher, RefusesBadOptions) {
  expect_misuse(run({"--nprocs", "2"}, {"true"}), "unknown option '--nprocs', did you mean '--nproc'?");
  expect_misuse(run({"--nproc", "two"}, {"true"}),
                "--nproc is 'two'; it must be a whole number from 1 to 4096");
  expect_misuse(run({"--nnodes", "3:2"}, {"true"}), "MIN not above MAX");
  expect_misuse(run({"--nnodes", "1:2"}, {"true"}), "needs --rdzv HOST:PORT");
  expect_misuse(run({"--rdzv", "nowhere"}, {"true"}), "--rdzv is 'nowhere'; it must be HOST:PORT");
  expect_misuse(run({"--rdzv", rdzv_}, {"true"}), "--rdzv needs the job's secret");
  expect_misuse(run({}, {"true"}),
                "unknown environment variable 'MUSTER_NPORC', did you mean 'MUSTER_NPROC'?",
                {"MUSTER_NPORC=2"});
  expect_misuse(run({}, {"true"}), "MUSTER_NPROC is '0'", {"MUSTER_NPROC=0"});
  expect_misuse(run({"--node-name", ""}, {"true"}), "--node-name is empty");
  expect_misuse(run({"--worker-silence", "1", "--heartbeat", "0.8"}, {"true"}),
                "is less than two heartbeats");
  for (const char* probe : {"--ready-file", "--live-file"}) {
    expect_misuse(run({probe, folder_.string() + "/none/file"}, {"true"}), "No such file or directory");
    expect_misuse(run({probe, ""}, {"true"}), "it has no name");
  }
  expect_misuse({MUSTER_COMMAND, "run", "true"}, "put the program after --");
  expect_misuse({MUSTER_COMMAND, "run"}, "no program given");
  expect_misuse({MUSTER_COMMAND}, "subcommand");
}

TEST_F(Launcher, RefusesBadPrograms) {
  const std::string plain = secret_file("plain", "no program", 0644);
  expect_misuse(run({}, {(folder_ / "none").string()}), "No such file or directory");
  expect_misuse(run({}, {"no-such-program-anywhere"}), "no such program in PATH");
  expect_misuse(run({}, {folder_.string()}), "it is a folder");
  expect_misuse(run({}, {plain}), "it is not executable");
}

TEST_F(Launcher, RefusesBadSecrets) {
  const auto with = [&](const std::string& file) {
    return run({"--rdzv", rdzv_, "--secret-file", file}, {"true"});
  };
  expect_misuse(with(secret_file("open", "0123456789abcdef", 0644)), "chmod 600");
  expect_misuse(with(secret_file("short", "0123")), "use at least 16");
  expect_misuse(with((folder_ / "none").string()), "cannot open the secret file");
  expect_misuse(with(folder_.string()), "not a regular file");
}

TEST_F(Launcher, RefusesBadWaysIntoEtcd) {
  const auto with = [&](const std::string& rdzv, const Words& more) {
    Words words{"--rdzv", rdzv, "--secret-file", secret_};
    words.insert(words.end(), more.begin(), more.end());
    return run(words, {"true"});
  };
  const std::string plain = "etcd://127.0.0.1:1", secured = "etcds://127.0.0.1:1";
  const std::string password = secret_file("password", "x"), file = secret_;
  expect_misuse(with("etcds://127.0.0.1", {}), "etcds://");
  for (const char* option :
       {"--etcd-cacert", "--etcd-cert", "--etcd-key", "--etcd-user", "--etcd-password-file"})
    expect_misuse(with(plain, {option, file}), "--rdzv must begin with etcds://");
  expect_misuse(with(plain, {}), "--rdzv must begin with etcds://", {"MUSTER_ETCD_PASSWORD=x"});
  expect_misuse(with(secured, {"--etcd-cacert", (folder_ / "none").string()}), "cannot be read");
  expect_misuse(with(secured, {"--etcd-cert", file}), "go together");
  expect_misuse(with(secured, {"--etcd-user", "me:secret"}), "--etcd-password-file");
  expect_misuse(with(secured, {"--etcd-user", "me"}), "needs --etcd-user and one of");
  expect_misuse(with(secured, {"--etcd-password-file", password}), "needs --etcd-user and one of");
  expect_misuse(with(secured, {"--etcd-user", "me", "--etcd-password-file", password}), "not both",
                {"MUSTER_ETCD_PASSWORD=x"});
  expect_misuse(with(secured, {"--etcd-user", "me", "--etcd-password-file", secret_file("open", "x", 0644)}),
                "chmod 600");
  expect_misuse(with(secured, {"--etcd-user", "me", "--etcd-password-file", secret_file("empty", "\n")}),
                "is empty");
}

TEST_F(Launcher, EndsWithTheCodeOfAProgramThatDiesAtOnce) {
  AgentProcess agent(run({"--nproc", "2", "--restart-delay", "0.1"}, {"/bin/sh", "-c", "exit 3"}));
  EXPECT_EQ(agent.wait(), 3);
  EXPECT_THAT(agent.said(), HasSubstr("exited with code 3"));
}

TEST_F(Launcher, GivesUpOnARendezvousThatDoesNotAnswer) {
  // Another host's address, as far as this one can tell: nobody binds it, and nobody answers.
  expect_misuse(run({"--rdzv", "192.0.2.1:7", "--secret-file", secret_, "--rdzv-timeout", "0.3"}, {"true"}),
                "no rendezvous at 192.0.2.1:7 within", {}, 75);
}

// The handshake's own deadline is ten seconds: it must not hold an agent longer than --rdzv-timeout.
TEST_F(Launcher, GivesUpOnAListenerThatTakesConnectionsAndSaysNothing) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(listener, 16), 0);
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  const std::string mute = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  const Instant began = now();
  expect_misuse(
      run({"--rdzv", mute, "--secret-file", secret_, "--rdzv-timeout", "0.5"}, {"true"}),
      "no rendezvous at " + mute + " within 0.5 s (" + mute + " takes the connection and says nothing)", {},
      75);
  EXPECT_LT(now() - began, 9 * kSecond) << "the handshake's deadline was waited for";
  close(listener);
}

TEST_F(Launcher, RefusesAWrongSecretAndAnotherJob) {
  AgentProcess leader(run(node("a"), toy({"--steps", kForever})));
  ASSERT_TRUE(leader.says("view ready")) << leader.said();
  const std::string other = secret_file("other", "ffffffffffffffffffffffffffffffff");
  expect_misuse(run({"--nnodes", "1:2", "--rdzv", rdzv_, "--job", "test", "--secret-file", other}, {"true"}),
                "refused this agent's secret");
  expect_misuse(
      run({"--nnodes", "1:2", "--rdzv", rdzv_, "--job", "best", "--secret-file", secret_}, {"true"}),
      "runs another job than 'best'");
  expect_misuse(
      run({"--nnodes", "1:3", "--rdzv", rdzv_, "--job", "test", "--secret-file", secret_}, {"true"}),
      "--nnodes");
  EXPECT_TRUE(leader.says("wrong secret")) << leader.said();
  EXPECT_TRUE(leader.says("refused an agent of job 'best'")) << leader.said();
  leader.signal(SIGTERM);
  EXPECT_EQ(leader.wait(), 75);
}

// ---- jobs

TEST_F(Launcher, RunsPlainProgramsWithPrefixesAndLogFiles) {
  AgentProcess agent(
      run({"--nproc", "2", "--node-name", "n", "--log-dir", (folder_ / "logs").string(), "--quiet"},
          {"/bin/sh", "-c", "echo out $MUSTER_LOCAL_RANK; echo err >&2; printf tail"}));
  EXPECT_EQ(agent.wait(), 0) << agent.said();
  for (const char* line : {"[n/0] out 0\n", "[n/1] out 1\n", "[n/0] err\n", "[n/1] tail\n"})
    EXPECT_THAT(agent.said(), HasSubstr(line));
  EXPECT_EQ(file_text(folder_ / "logs" / "n.1.out"), "out 1\ntail\n");
  EXPECT_EQ(file_text(folder_ / "logs" / "n.0.err"), "err\n");
}

TEST_F(Launcher, AWorkerGetsFourDescriptorsAndNoSecret) {
  const int leaked = open("/dev/null", O_RDONLY);  // inheritable
  AgentProcess agent(run({"--secret-file", secret_, "--node-name", "vm", "--restarts", "0"},
                         {"/bin/sh", "-c", "ls /proc/$$/fd; echo secrets $(env | grep -c MUSTER_SECRET)"}),
                     {});
  agent.wait();
  close(leaked);
  EXPECT_THAT(agent.said(), HasSubstr("[vm/0] 0\n[vm/0] 1\n[vm/0] 2\n[vm/0] 3\n[vm/0] secrets 0\n"));
}

TEST_F(Launcher, FinishesAJobAndWritesItsEvents) {
  const std::string events = (folder_ / "events").string();
  AgentProcess agent(run({"--nproc", "3", "--events", events}, toy({"--steps", "20"})));
  EXPECT_EQ(agent.wait(), 0) << agent.said();
  EXPECT_THAT(agent.said(), HasSubstr("leaves at version 20 with code 0"));
  EXPECT_THAT(file_text(events), HasSubstr("\"event\":\"view ready\""));
  EXPECT_THAT(file_text(events), HasSubstr("\"from\":\"worker "));
}

TEST_F(Launcher, ReplacesAKilledWorker) {
  AgentProcess a(run(node("a", together), toy({"--steps", kForever})));
  AgentProcess b(run(node("b", together), toy({"--steps", kForever})));
  ASSERT_TRUE(a.says("view 1 world 4", 2) && b.says("view 1 world 4", 2)) << a.said() << b.said();
  const int victim = std::stoi(b.finds("worker 1 of node b, process ([0-9]+)"));
  kill(victim, SIGKILL);
  EXPECT_TRUE(a.says("world 3", 2)) << a.said();
  EXPECT_TRUE(a.says("view 3 world 4", 2)) << a.said();
  stop_both(a, b);
  EXPECT_THAT(b.said(), HasSubstr("killed by signal 9"));
}

TEST_F(Launcher, SurvivesAKilledAgentAndTakesItsReplacement) {
  AgentProcess a(run(node("a", together), toy({"--steps", kForever})));
  ASSERT_TRUE(a.says("node joined")) << a.said();
  auto b = std::make_unique<AgentProcess>(run(node("b", together), toy({"--steps", kForever})));
  ASSERT_TRUE(b->says("view 1 world 4", 2)) << b->said();
  const int orphan = std::stoi(b->finds("worker 0 of node b, process ([0-9]+)"));
  b->signal(SIGKILL);
  EXPECT_TRUE(a.says("world 2", 2)) << a.said();
  EXPECT_TRUE(ends_soon(orphan));  // its socket closed: it was told, and left
  AgentProcess c(run(node("c"), toy({"--steps", kForever})));
  EXPECT_TRUE(c.says("view 3 world 4", 2)) << a.said() << c.said();
  stop_both(a, c);
}

TEST_F(Launcher, KillsAFrozenWorker) {
  AgentProcess agent(
      run({"--nproc", "2", "--worker-silence", "2", "--restart-delay", "0.1"}, toy({"--steps", kForever})));
  ASSERT_TRUE(agent.says("view 1 world 2", 2)) << agent.said();
  kill(std::stoi(agent.finds("worker 1 of node .*, process ([0-9]+)")), SIGSTOP);
  EXPECT_TRUE(agent.says("silent for longer")) << agent.said();
  EXPECT_TRUE(agent.says("view 3 world 2", 2)) << agent.said();
}

// ---- signals

TEST_F(Launcher, EndsOnSigtermWithASaveAndRequeues) {
  AgentProcess a(run(node("a", together), toy({"--steps", kForever})));
  AgentProcess b(run(node("b", together), toy({"--steps", kForever})));
  ASSERT_TRUE(a.says("view 1 world 4", 2) && b.says("view 1 world 4", 2)) << a.said() << b.said();
  stop_both(a, b);
  EXPECT_THAT(a.said(), HasSubstr("save durable"));
}

TEST_F(Launcher, ASecondSignalEndsAtOnce) {
  AgentProcess agent(run({"--grace", "1000"},
                         {"/bin/sh", "-c", "trap '' TERM INT; echo ready $$; while :; do sleep 1; done"}));
  const int worker = std::stoi(agent.finds("ready ([0-9]+)"));
  agent.signal(SIGINT);
  ASSERT_TRUE(agent.says("notice")) << agent.said();
  // Reason for the wait: what comes within a second is the same wish.
  usleep(1'200'000);
  agent.signal(SIGINT);
  EXPECT_EQ(agent.wait(), 75) << agent.said();
  EXPECT_FALSE(runs(worker));
}

TEST_F(Launcher, TheGracePeriodIsBounded) {
  AgentProcess agent(
      run({"--grace", "0.3"}, {"/bin/sh", "-c", "trap '' TERM; echo ready $$; while :; do sleep 1; done"}));
  ASSERT_TRUE(agent.says("ready"));
  agent.signal(SIGTERM);
  EXPECT_EQ(agent.wait(), 75) << agent.said();
}

// ---- a program that does not end after its last step

TEST_F(Launcher, AProgramThatHangsAfterItsLastStepIsEndedByFinishGrace) {
  AgentProcess agent(run({"--finish-grace", "0.5"}, hanging_after("3")));
  EXPECT_EQ(agent.wait(), 1) << agent.said();
  EXPECT_THAT(agent.said(), HasSubstr("had not ended within --finish-grace of the last step"));
}

TEST_F(Launcher, AProgramThatFailsAfterItsLastStepFailsTheJob) {
  Words words = hanging_after("3");
  words.back().replace(words.back().find("sleep 1000"), 10, "exit 3");
  AgentProcess agent(run({}, words));
  EXPECT_EQ(agent.wait(), 3) << agent.said();
  EXPECT_THAT(agent.said(), HasSubstr("exited with code 3 after the last step"));
}

TEST_F(Launcher, ANoticeAfterTheLastStepEndsAProgramThatHangs) {
  AgentProcess agent(run({"--grace", "20"}, hanging_after("3")));
  ASSERT_TRUE(agent.says("the loop is over")) << agent.said();
  agent.signal(SIGTERM);
  EXPECT_EQ(agent.wait(), 75) << agent.said();
  EXPECT_THAT(agent.said(), HasSubstr("a notice came before a worker had ended"));
  EXPECT_THAT(agent.said(), HasSubstr("safe to kill"));
  EXPECT_THAT(agent.said(), testing::Not(HasSubstr("stopping at once")));
}

// ---- leaks

TEST_F(Launcher, KillsWhatAWorkerLeftBehind) {
  // A child in the worker's group, one that left it, and one that also closed its output.
  const std::string script =
      "sleep 1000 & echo child $!; setsid sleep 1000 & echo stray $!; "
      "setsid sh -c 'sleep 1000' >/dev/null 2>&1 & echo closed $!; sleep 0.2; exit 0";
  AgentProcess agent(run({}, {"/bin/sh", "-c", script}));
  EXPECT_EQ(agent.wait(), 0) << agent.said();
  for (const char* which : {"child", "stray", "closed"}) {
    const std::string process = agent.finds(std::string(which) + " ([0-9]+)");
    ASSERT_NE(process, "");
    EXPECT_FALSE(runs(std::stoi(process))) << which;
  }
}

TEST_F(Launcher, AnOutputThatNobodyReadsStopsNothing) {
  // The test does not read while the worker writes 20 MB; the agent must still see and obey signals.
  AgentProcess agent(
      run({"--grace", "1000"}, {"/bin/sh", "-c", "yes 0123456789012345678901234567890123456789"}));
  usleep(1'500'000);
  agent.signal(SIGTERM);
  // Reason for the wait: what comes within a second is the same wish.
  usleep(1'200'000);
  agent.signal(SIGTERM);
  const Instant deadline = now() + kPatience;
  int status = 0;
  while (waitpid(agent.process(), &status, WNOHANG) == 0 && now() < deadline) usleep(5000);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 75);
}

}  // namespace
}  // namespace muster
