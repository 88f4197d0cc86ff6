// etcd over TLS and with users: who gets in, and what the others are told. The certificates are openssl's,
// made here.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <fstream>

#include "launcher/etcd_json.h"
#include "launcher/etcd_watch.h"
#include "runtime/base/random.h"
#include "tests/launcher/etcd_server.h"

namespace muster::launcher {
namespace {

using nlohmann::json;

const std::atomic<bool> kGoOn = false;

// A CA that signs: /CA.pem, and NAME.pem with NAME.key.
class Certificates {
 public:
  Certificates() {
    folder_ = std::filesystem::temp_directory_path() / ("muster-certificates-" + std::to_string(getpid()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    make_ca("ca");
    make_ca("other");
    sign("server", "/CN=etcd", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n");
    sign("elsewhere", "/CN=etcd", "subjectAltName=IP:192.0.2.1\nextendedKeyUsage=serverAuth,clientAuth\n");
    sign("agent", "/O=muster", "extendedKeyUsage=clientAuth\n");
    run("pkey -in agent.key -aes256 -passout pass:long -out encrypted.key");
  }
  ~Certificates() { std::filesystem::remove_all(folder_); }
  std::string file(const std::string& name) const { return (folder_ / name).string(); }
  bool made() const { return made_; }

 private:
  void run(const std::string& words) {
    made_ = made_ &&
            std::system(("cd " + folder_.string() + " && openssl " + words + " > log 2>&1").c_str()) == 0;
  }
  void make_ca(const std::string& name) {
    run("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout " + name + ".key -out " + name +
        ".pem -days 2 -subj /CN=test-" + name);
  }
  void sign(const std::string& name, const std::string& subject, const std::string& extensions) {
    std::ofstream(folder_ / "extensions") << extensions;
    run("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout " + name +
        ".key -out request -subj " + subject);
    run("x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out " +
        name + ".pem");
  }

  std::filesystem::path folder_;
  bool made_ = true;
};

class EtcdAccessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    // Reason for the skip: only a real etcd answers as etcd does.
    if (!etcd_is_there()) GTEST_SKIP() << "no etcd here (Debian: etcd-server)";
    ASSERT_TRUE(certificates_.made()) << "openssl";
  }

  void start(const std::string& certificate, std::vector<std::string> more = {}) {
    more.insert(more.end(), {"--cert-file", certificates_.file(certificate + ".pem"), "--key-file",
                             certificates_.file(certificate + ".key")});
    server_.emplace(EtcdServer::Options{1, "https", std::move(more)});
  }
  EtcdAccess access(const std::string& ca = "ca") const {
    return {server_->members(), HttpTls{certificates_.file(ca + ".pem"), "", ""}};
  }
  EtcdAccess access_as(const std::string& user, const std::string& password) const {
    EtcdAccess made = access();
    made.user = user;
    made.password = password;
    return made;
  }

  // Once a member listens its answer is what counts: the first one that is none of "not there yet".
  Error refused(const EtcdAccess& access, const std::string& prefix = "/muster/t/") {
    const Instant deadline = now() + 30 * kSecond;
    Etcd etcd(access);
    while (true) {
      const auto answer = etcd.with_prefix(prefix, kGoOn);
      if (answer.ok()) return {ErrorCode::kRetry, "nothing was refused"};
      if (answer.error().code == ErrorCode::kMisuse || now() > deadline) return answer.error();
      usleep(50'000);  // Reason for the wait: etcd says nothing when it begins to listen
    }
  }
  static void expect_misuse(const Error& error, const std::string& part) {
    EXPECT_EQ(error.code, ErrorCode::kMisuse) << error.message;
    EXPECT_NE(error.message.find(part), std::string::npos) << error.message;
  }

  // ---- before users count

  json call(const std::string& path, const json& body) {
    HttpCall made{"POST",
                  "https://127.0.0.1:" + std::to_string(server_->member(0).port) + "/v3/" + path,
                  {},
                  body.dump()};
    made.tls = own_ ? own_ : access().tls;
    const auto answer = http_call(made, kGoOn);
    EXPECT_TRUE(answer.ok() && answer->status == 200)
        << path << (answer.ok() ? answer->body : answer.error().message);
    return answer.ok() ? json::parse(answer->body, nullptr, false) : json{};
  }
  void add_user(const std::string& name, const std::string& from, const std::string& to) {
    call("auth/user/add", {{"name", name}, {"password", name + "'s"}});
    call("auth/role/add", {{"name", name}});
    if (!from.empty())
      call("auth/role/grant",
           {{"name", name},
            {"perm",
             {{"permType", "READWRITE"}, {"key", key_in_json(from)}, {"range_end", key_in_json(to)}}}});
    call("auth/user/grant", {{"user", name}, {"role", name}});
  }
  void require_users() {
    add_user("root", "", "");
    add_user("muster", "/muster/t/", "/muster/t0");
    call("auth/enable", json::object());
  }

  agent::Loop loop_;
  Certificates certificates_;
  std::optional<EtcdServer> server_;
  std::optional<HttpTls> own_;  // with a certificate, where one must be shown
};

bool lives(const EtcdAccess& access) {
  Etcd etcd(access);
  const auto lease = etcd.grant(5 * kSecond, kGoOn);
  if (!lease.ok()) return false;
  EtcdTransaction write;
  write.guards = {{EtcdGuard::kCreated, "/muster/t/leader", 0}};
  write.puts = {{"/muster/t/leader", ByteBuffer(3), *lease}};
  const auto outcome = etcd.transact(write, kGoOn);
  const auto read = etcd.with_prefix("/muster/t/", kGoOn);
  const auto alive = etcd.keep_alive(*lease, kGoOn);
  return outcome.ok() && outcome->written && read.ok() && read->size() == 1 && alive.ok() && *alive &&
         etcd.revoke(*lease, kGoOn).ok();
}

TEST_F(EtcdAccessTest, OverTlsAllIsAsWithout) {
  start("server");
  ASSERT_TRUE(server_->answers(access()));
  EXPECT_TRUE(lives(access()));
  expect_misuse(refused(access("other")), "--etcd-cacert");
  expect_misuse(refused(EtcdAccess{server_->members(), HttpTls{certificates_.file("none.pem"), "", ""}}),
                "--etcd-cacert");
  const auto plain = Etcd({server_->members()}).with_prefix("/muster/t/", kGoOn);
  ASSERT_FALSE(plain.ok());
  EXPECT_NE(plain.error().message.find("TLS"), std::string::npos) << plain.error().message;
}

TEST_F(EtcdAccessTest, ACertificateForAnotherPlaceIsRefused) {
  start("elsewhere");
  expect_misuse(refused(access()), "the names in the certificate");
}

TEST_F(EtcdAccessTest, WhoHasToShowACertificateIsToldSo) {
  start("server", {"--client-cert-auth", "--trusted-ca-file", certificates_.file("ca.pem")});
  EtcdAccess with = access();
  with.tls->certificate_file = certificates_.file("agent.pem");
  with.tls->key_file = certificates_.file("agent.key");
  ASSERT_TRUE(server_->answers(with));
  EXPECT_TRUE(lives(with));
  expect_misuse(refused(access()), "--etcd-cert");
  with.tls->key_file = certificates_.file("server.key");
  expect_misuse(refused(with), "--etcd-key");
}

// OpenSSL asks a terminal for the passphrase, or standard input, which is one here that never says a word.
TEST_F(EtcdAccessTest, AKeyThatIsEncryptedIsRefusedAndNobodyAsked) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd reading(ends[0]), writing(ends[1]), before(fcntl(0, F_DUPFD_CLOEXEC, 3));
  dup2(reading.get(), 0);
  start("server", {"--client-cert-auth", "--trusted-ca-file", certificates_.file("ca.pem")});
  EtcdAccess with = access();
  with.tls->certificate_file = certificates_.file("agent.pem");
  with.tls->key_file = certificates_.file("encrypted.key");
  expect_misuse(refused(with), "must not be encrypted");
  dup2(before.get(), 0);
}

// The gateway passes no name on, and so refuses to be shown one.
TEST_F(EtcdAccessTest, WithUsersACertificateMustNameNobody) {
  start("server", {"--client-cert-auth", "--trusted-ca-file", certificates_.file("ca.pem")});
  EtcdAccess with = access_as("muster", "muster's");
  with.tls->certificate_file = certificates_.file("agent.pem");
  with.tls->key_file = certificates_.file("agent.key");
  expect_misuse(refused(with), "leave --etcd-user out");
  own_ = with.tls;
  require_users();
  EXPECT_TRUE(lives(with));
  with.tls->certificate_file = certificates_.file("server.pem");
  with.tls->key_file = certificates_.file("server.key");
  expect_misuse(refused(with), "without a CN");
}

TEST_F(EtcdAccessTest, AnEtcdWithoutTlsIsTold) {
  server_.emplace(EtcdServer::Options{});
  ASSERT_TRUE(server_->answers({}));
  const auto answer = Etcd(access()).with_prefix("/muster/t/", kGoOn);
  ASSERT_FALSE(answer.ok());
  EXPECT_NE(answer.error().message.find("where no TLS is spoken"), std::string::npos)
      << answer.error().message;
}

TEST_F(EtcdAccessTest, AUserNeedsItsKeysAndNoMore) {
  start("server");
  ASSERT_TRUE(server_->answers(access()));
  expect_misuse(refused(access_as("muster", "muster's")), "leave --etcd-user out");
  require_users();
  EXPECT_TRUE(lives(access_as("muster", "muster's")));
  expect_misuse(refused(access()), "give --etcd-user");
  expect_misuse(refused(access_as("muster", "wrong")), "check --etcd-user and its password");
  expect_misuse(refused(access_as("nobody", "muster's")), "check --etcd-user and its password");
  expect_misuse(refused(access_as("muster", "muster's"), "/muster/another/"), "must read and write all keys");
}

// A token that is not used lives a second here: the calls and the watch's second opening find theirs
// forgotten.
TEST_F(EtcdAccessTest, ATokenThatIsForgottenIsFetchedAnew) {
  start("server", {"--auth-token-ttl", "1"});
  ASSERT_TRUE(server_->answers(access()));
  require_users();
  int heard = 0;
  WatchTimes times;
  times.quiet_max = 3 * kSecond;
  EtcdWatch watch(loop_, access_as("muster", "muster's"), "/muster/t/leader", times,
                  {[&] {
                     if (++heard == 4) loop_.stop();
                   },
                   [](const std::string& words) { FAIL() << words; }});
  Etcd etcd(access_as("muster", "muster's"));
  ASSERT_TRUE(etcd.with_prefix("/muster/t/", kGoOn).ok());
  sleep(4);  // Reason for the wait: etcd looks once a second for tokens that are over, and tells nobody
  const auto again = etcd.with_prefix("/muster/t/", kGoOn);
  EXPECT_TRUE(again.ok()) << again.error().message;
  EXPECT_TRUE(lives(access_as("muster", "muster's")));
  loop_.run();  // until it has heard of two openings, and that something lived there and went
}

TEST_F(EtcdAccessTest, WhatOneFetchesTheOthersUse) {
  start("server");
  ASSERT_TRUE(server_->answers(access()));
  require_users();
  EtcdAccess shared = access_as("muster", "muster's");
  ASSERT_TRUE(Etcd(shared).with_prefix("/muster/t/", kGoOn).ok());
  shared.password = "wrong";
  const auto answer = Etcd(shared).with_prefix("/muster/t/", kGoOn);
  EXPECT_TRUE(answer.ok()) << "it had to log in: " << answer.error().message;
}

TEST_F(EtcdAccessTest, AWatchOfForeignKeysIsRefusedInWords) {
  start("server");
  ASSERT_TRUE(server_->answers(access()));
  require_users();
  std::string told;
  EtcdWatch watch(loop_, access_as("muster", "muster's"), "/another/leader", {},
                  {[] { FAIL() << "nothing can have changed"; },
                   [&](std::string words) {
                     told = std::move(words);
                     loop_.stop();
                   }});
  loop_.run();
  EXPECT_NE(told.find("permission denied"), std::string::npos) << told;
  EXPECT_NE(told.find("--etcd-user"), std::string::npos) << told;
}

}  // namespace
}  // namespace muster::launcher
