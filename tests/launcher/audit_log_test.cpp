// The writer of the audit log: goes on where a file ends, refuses what it must not touch, and outlives disks
// that fail.
#include "launcher/audit_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <sstream>
#include <thread>

#include "launcher/audit_file.h"
#include "tests/forwarding_files.h"

namespace muster::launcher {
namespace {

using namespace audit;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

// A disk that refuses to write, or to sync, while it is told to.
struct Moods {
  std::atomic<bool> refuses_writes = false;
  std::atomic<bool> refuses_syncs = false;
  std::atomic<int> syncs = 0;
  std::atomic<bool> hangs = false;
  std::atomic<bool> refuses_opening = false;
  std::atomic<bool> refuses_locks = false;
};

class MoodyFile final : public testing::ForwardingFile {
 public:
  MoodyFile(std::unique_ptr<File> inner, std::shared_ptr<Moods> moods)
      : ForwardingFile(std::move(inner)), moods_(std::move(moods)) {}
  Status pwrite(ByteSpan bytes, uint64_t offset) override {
    while (moods_->hangs) std::this_thread::yield();
    if (!moods_->refuses_writes) return inner_->pwrite(bytes, offset);
    (void)inner_->pwrite(bytes.first(bytes.size() / 2), offset);  // as a disk does that becomes full
    return Error{ErrorCode::kEnvironment, "No space left on device"};
  }
  Status sync_data() override {
    ++moods_->syncs;
    if (moods_->refuses_syncs) return Error{ErrorCode::kEnvironment, "Input/output error"};
    return inner_->sync_data();
  }

 private:
  const std::shared_ptr<Moods> moods_;
};

class MoodyFiles final : public testing::ForwardingFiles {
 public:
  explicit MoodyFiles(std::shared_ptr<Moods> moods)
      : ForwardingFiles(real_files()), moods_(std::move(moods)) {}
  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode, bool direct) override {
    if (moods_->refuses_opening) return Error{ErrorCode::kEnvironment, "Disk quota exceeded"};
    MUSTER_ASSIGN(auto file, inner_.open(path, mode, direct));
    return std::unique_ptr<File>(std::make_unique<MoodyFile>(std::move(file), moods_));
  }
  Result<std::unique_ptr<FileLock>> lock(const std::string& path) override {
    if (moods_->refuses_locks) return Error{ErrorCode::kEnvironment, "No space left on device"};
    return inner_.lock(path);
  }

 private:
  const std::shared_ptr<Moods> moods_;
};

class AuditLogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name =
        (fs::temp_directory_path() / "muster_audit_XXXXXX").string();  // mkdtemp fills in the X
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    path_ = (folder_ / "audit.log").string();
  }
  void TearDown() override {
    moods_.hangs = false;
    log_.reset();
    fs::remove_all(folder_);
  }

  AuditOptions options() {
    AuditOptions options;
    options.path = path_;
    options.job = "job";
    options.node = "a";
    options.incarnation = "00000000000000aa";
    options.retry_every = 2 * kMillisecond;
    options.on_trouble = [this](std::string words) {
      const std::lock_guard lock(mutex_);
      troubles_.push_back(std::move(words));
    };
    return options;
  }
  Status open() { return open(options()); }
  Status open(AuditOptions options) {
    MUSTER_ASSIGN(log_, AuditLog::open(files_, std::move(options), words_));
    return ok();
  }
  void note(const std::string& text, EventKind kind = EventKind::kDecided) {
    log_->note("leader", {kind, now(), 3, 12, -1, 0, text});
  }
  void close() {
    const auto closed = log_->close(10 * kSecond);
    EXPECT_TRUE(closed.ok()) << closed.error().message;
    log_.reset();
  }
  std::string trouble() {
    const std::lock_guard lock(mutex_);
    std::string all;
    for (const std::string& words : troubles_) all += words + "\n";
    return all;
  }
  bool until(const std::function<bool()>& there) {
    const Instant deadline = now() + 20 * kSecond;
    while (!there() && now() < deadline) std::this_thread::yield();
    return there();
  }
  std::string text() const {
    std::ostringstream text;
    text << std::ifstream(path_, std::ios::binary).rdbuf();
    return text.str();
  }
  void put(const std::string& text) const {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << text;
  }
  Report report(std::vector<Record>* records = nullptr) const {
    auto file = real_files().open(path_, OpenMode::kRead);
    return verify_audit(**file, {},
                        [&](const Record& record) {
                          if (records != nullptr) records->push_back(record);
                        })
        .value();
  }

  fs::path folder_;
  std::string path_;
  const std::shared_ptr<Moods> shared_moods_ =
      std::make_shared<Moods>();  // a thread left alone asks for them
  Moods& moods_ = *shared_moods_;
  MoodyFiles files_{shared_moods_};
  std::string words_;
  std::mutex mutex_;
  std::vector<std::string> troubles_;
  std::unique_ptr<AuditLog> log_;
};

TEST_F(AuditLogTest, GoesOnWhereTheFileEnds) {
  for (int launch = 0; launch < 3; ++launch) {
    ASSERT_TRUE(open().ok());
    note("first");
    note("a step", EventKind::kStepCommitted);
    log_->note("worker 0", {EventKind::kMemberLost, 1, 3, 1, -1, 0, "only follows"});
    log_->note_end(75, "preempted");
    close();
  }
  std::vector<Record> records;
  const Report found = report(&records);
  EXPECT_FALSE(found.fault);
  ASSERT_EQ(records.size(), 9u) << text();
  EXPECT_EQ(records[3].event, kOpened);
  EXPECT_EQ(records[4].text, "first");
  EXPECT_EQ(records[4].generation, 3u);
  EXPECT_EQ(records[4].version, 12);
  EXPECT_EQ(records[8].event, kAgentEnded);
  EXPECT_EQ(records[8].amount, 75);
  EXPECT_THAT(words_, HasSubstr("after 6 records"));
}

TEST_F(AuditLogTest, ATornLineIsCutOffAndKeptInARecord) {
  ASSERT_TRUE(open().ok());
  note("first");
  note("second");
  close();
  const std::string whole = text();
  const size_t last = whole.rfind('\n', whole.size() - 2) + 1;
  for (size_t cut = last + 1; cut < whole.size(); cut += 13) {
    put(whole.substr(0, cut));
    ASSERT_TRUE(open().ok());
    close();
    std::vector<Record> records;
    const Report found = report(&records);
    ASSERT_FALSE(found.fault) << words_of(*found.fault);
    if (cut + 1 == whole.size()) continue;  // the record is whole
    ASSERT_EQ(records.size(), 4u);
    EXPECT_EQ(records[3].event, kMended);
    EXPECT_EQ(records[3].amount, static_cast<int64_t>(cut - last));
    EXPECT_THAT(records[3].text,
                HasSubstr(to_hex(as_bytes(whole.substr(last, std::min<size_t>(cut - last, 200))))));
  }
  put(whole.substr(0, whole.size() - 1));
  ASSERT_TRUE(open().ok());
  close();
  EXPECT_EQ(report().records, 4u) << "only the line feed was missing";
  put(whole.substr(0, 5));
  ASSERT_TRUE(open().ok()) << "the first line may be torn, too";
  close();
  EXPECT_EQ(report().records, 2u);
}

TEST_F(AuditLogTest, WhatItMustNotTouchIsLeftAsItIs) {
  ASSERT_TRUE(open().ok());
  note("first");
  close();
  std::string changed = text();
  changed[changed.find("first")] = 'F';
  for (const std::string& bytes :
       {changed, std::string("my thesis, without a line feed"), std::string("my thesis\n"), std::string("{"),
        std::string("\0\0\1 a picture", 12)}) {
    put(bytes);
    const Status refused = open();
    if (bytes == "{") {  // as torn as a first line can be
      EXPECT_TRUE(refused.ok());
      close();
      continue;
    }
    ASSERT_FALSE(refused.ok()) << bytes;
    EXPECT_EQ(refused.error().code, ErrorCode::kMisuse);
    EXPECT_EQ(text(), bytes);
  }
  put("");
  ASSERT_TRUE(open().ok());
  close();
  AuditOptions other = options();
  other.job = "another";
  EXPECT_THAT(open(other).error().message, HasSubstr("job 'job'"));
  other = options();
  other.secret = ByteBuffer(32, std::byte{7});
  EXPECT_FALSE(open(other).ok()) << "a log without a seal does not get one in its middle";
}

TEST_F(AuditLogTest, AJobsNameIsTheSameInTheKeyAndInTheRecords) {
  for (const std::string& job : {std::string(300, 'j'), std::string("bad \xff")}) {
    fs::remove(path_);
    AuditOptions named = options();
    named.job = job;
    named.secret = ByteBuffer(32, std::byte{7});
    for (int launch = 0; launch < 2; ++launch) {
      const Status opened = open(named);
      ASSERT_TRUE(opened.ok()) << opened.error().message;
      close();
    }
    auto file = real_files().open(path_, OpenMode::kRead);
    EXPECT_FALSE(verify_audit(**file, {named.secret, {}}).value().fault);
  }
}

// Two writers of one file by two names would each cut off what the other wrote.
TEST_F(AuditLogTest, OneAgentWritesOneFileWhateverItIsCalled) {
  ASSERT_TRUE(open().ok());
  fs::create_symlink(path_, folder_ / "symbolic");
  fs::create_hard_link(path_, folder_ / "hard");
  for (const char* name : {"symbolic", "hard"}) {
    AuditOptions other = options();
    other.path = (folder_ / name).string();
    std::string words;
    const auto second = AuditLog::open(files_, other, words);
    ASSERT_FALSE(second.ok()) << name;
    EXPECT_EQ(second.error().code, ErrorCode::kMisuse);
    EXPECT_THAT(second.error().message, HasSubstr("another agent"));
  }
  close();
}

TEST_F(AuditLogTest, ADiskThatRefusesAtTheStartEndsNothing) {
  for (std::atomic<bool>* refuses : {&moods_.refuses_opening, &moods_.refuses_locks}) {
    troubles_.clear();
    fs::remove(path_);
    *refuses = true;
    AuditOptions sealed = options();
    sealed.secret = ByteBuffer(32, std::byte{7});
    ASSERT_TRUE(open(sealed).ok());
    EXPECT_THAT(trouble(), HasSubstr("training goes on"));
    note("before the disk answers");
    *refuses = false;
    ASSERT_TRUE(
        until([&] { return trouble().find("written again; nothing was lost") != std::string::npos; }));
    close();
    auto file = real_files().open(path_, OpenMode::kRead);
    std::vector<std::string> events;
    const Report found = verify_audit(**file, {sealed.secret, {}}, [&](const Record& record) {
                           events.push_back(record.event);
                         }).value();
    EXPECT_FALSE(found.fault);
    EXPECT_THAT(events, ::testing::ElementsAre(kOpened, "decision", kGap));
  }
}

TEST_F(AuditLogTest, ADiskThatNeverTakesTheFileIsToldAtTheEnd) {
  moods_.refuses_opening = true;
  ASSERT_TRUE(open().ok());
  note("lost");
  const auto closed = log_->close(10 * kSecond);
  ASSERT_FALSE(closed.ok());
  EXPECT_THAT(closed.error().message, HasSubstr("Disk quota exceeded"));
}

TEST_F(AuditLogTest, ANameThatNoFileCanHaveIsRefused) {
  for (const fs::path& path : {folder_ / "no" / "such" / "folder", folder_}) {
    AuditOptions wrong = options();
    wrong.path = path.string();
    const Status refused = open(wrong);
    ASSERT_FALSE(refused.ok()) << path;
    EXPECT_EQ(refused.error().code, ErrorCode::kMisuse);
  }
}

// After a power failure: pages that were not written yet read as NULs, whatever lies behind them.
TEST_F(AuditLogTest, AHoleAtTheEndIsCutOffAndKeptInARecord) {
  ASSERT_TRUE(open().ok());
  for (const char* text : {"first", "second", "third", "fourth"}) note(text);
  close();
  const std::string whole = text();
  const size_t line_end = whole.find('\n', whole.find("first")) + 1;
  for (const size_t begin : {line_end, line_end + 20, line_end - 1, size_t{0}}) {
    std::string holed = whole;
    std::fill_n(holed.begin() + static_cast<std::ptrdiff_t>(begin), 300, '\0');
    put(holed);
    const Status opened = open();
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    close();
    std::vector<Record> records;
    EXPECT_FALSE(report(&records).fault);
    const size_t kept = begin >= line_end ? 2 : begin == 0 ? 0 : 1;
    ASSERT_EQ(records.size(), kept + 2) << "hole at " << begin;
    EXPECT_EQ(records.back().event, kMended);
    EXPECT_EQ(records.back().amount, static_cast<int64_t>(whole.size() - (kept == 2   ? line_end
                                                                          : kept == 1 ? whole.find('\n') + 1
                                                                                      : 0)));
    EXPECT_THAT(records.back().text, HasSubstr("power failure"));
  }
  put(std::string(1000, '\0'));
  EXPECT_TRUE(open().ok()) << "a file that was made, and nothing more";
  close();
  std::string far = whole.substr(0, line_end) + std::string(400 << 10, '\0');
  put(far);
  EXPECT_FALSE(open().ok()) << "no crash leaves so much";
  EXPECT_EQ(text(), far);
}

TEST_F(AuditLogTest, WhatLacksOnlyItsLineFeedIsNotTakenForTorn) {
  AuditOptions sealed = options();
  sealed.secret = ByteBuffer(32, std::byte{7});
  ASSERT_TRUE(open(sealed).ok());
  close();
  put(text().substr(0, text().size() - 1));
  const std::string before = text();
  sealed.secret = ByteBuffer(32, std::byte{8});
  EXPECT_FALSE(open(sealed).ok()) << "sealed with another secret";
  EXPECT_EQ(text(), before);
}

TEST_F(AuditLogTest, WhoGoesOnWithAnothersFileSaysSo) {
  ASSERT_TRUE(open().ok());
  close();
  EXPECT_THAT(words_, ::testing::Not(HasSubstr("node")));
  AuditOptions other = options();
  other.node = "b\x1b[2J";
  ASSERT_TRUE(open(other).ok());
  close();
  EXPECT_THAT(words_, HasSubstr("node a wrote it before"));
  ASSERT_TRUE(open().ok());
  close();
  EXPECT_THAT(words_, HasSubstr("node b?[2J wrote it before"));
}

TEST_F(AuditLogTest, AFilesWordsDoNotSteerTheTerminal) {
  AuditOptions hostile = options();
  hostile.job = "job\x1b]0;title\x07 \xe2\x80\xae";
  ASSERT_TRUE(open(hostile).ok());
  close();
  const Status refused = open();
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("job?]0;title? ?"));
  EXPECT_EQ(harmless("a\xe2\x81\xa6"
                     "b\xc2\x9b"
                     "c\xd8\x9c"
                     "d\xe2\x80\x8f"
                     "€ grün"),
            "a?b?c?d?€ grün");
}

TEST_F(AuditLogTest, AHangIsToldWhileItLasts) {
  AuditOptions impatient = options();
  impatient.hang_after = 5 * kMillisecond;
  moods_.hangs = true;
  ASSERT_TRUE(open(impatient).ok());
  ASSERT_TRUE(until([&] {
    log_->tell_of_hang();
    return !trouble().empty();
  }));
  EXPECT_THAT(trouble(), HasSubstr("does not answer"));
  for (int i = 0; i < 10; ++i) log_->tell_of_hang();
  EXPECT_EQ(troubles_.size(), 1u) << trouble();
  moods_.hangs = false;
  ASSERT_TRUE(until([&] { return trouble().find("written again") != std::string::npos; }));
  close();
}

TEST_F(AuditLogTest, OneAgentWritesOneFile) {
  ASSERT_TRUE(open().ok());
  std::string words;
  const auto second = AuditLog::open(files_, options(), words);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(second.error().message, HasSubstr("another agent"));
  close();
}

TEST_F(AuditLogTest, AFullDiskIsToldAndNothingIsLostThatMemoryHolds) {
  ASSERT_TRUE(open().ok());
  note("before");
  ASSERT_TRUE(until([&] { return report().records == 2; }));
  moods_.refuses_writes = true;
  for (int i = 0; i < 100; ++i) note("while " + std::to_string(i));
  ASSERT_TRUE(until([&] { return trouble().find("No space left") != std::string::npos; })) << trouble();
  EXPECT_THAT(trouble(), HasSubstr("training goes on"));
  moods_.refuses_writes = false;
  ASSERT_TRUE(until([&] { return trouble().find("written again; nothing was lost") != std::string::npos; }));
  note("after");
  close();
  std::vector<Record> records;
  const Report found = report(&records);
  EXPECT_FALSE(found.fault);
  ASSERT_EQ(records.size(), 104u);
  EXPECT_EQ(records[101].text, "while 99");
  EXPECT_EQ(records[102].event, kGap);
  EXPECT_THAT(records[102].text, HasSubstr("No space left"));
}

TEST_F(AuditLogTest, WhatHasNoRoomIsCountedWhereItBelongs) {
  AuditOptions small = options();
  small.waiting_max = 10;
  ASSERT_TRUE(open(small).ok());
  ASSERT_TRUE(until([&] { return report().records == 1; }));
  moods_.refuses_writes = true;
  note("the first that fails");
  ASSERT_TRUE(until([&] { return !trouble().empty(); }));
  for (int i = 0; i < 50; ++i) note("number " + std::to_string(i));
  moods_.refuses_writes = false;
  ASSERT_TRUE(until([&] { return trouble().find("records were lost") != std::string::npos; }));
  close();
  std::vector<Record> records;
  EXPECT_FALSE(report(&records).fault);
  int64_t noted = 0;
  int64_t lost = 0;
  for (const Record& record : records) {
    if (record.event == kGap) lost += record.amount;
    if (record.text.starts_with("number")) ++noted;
  }
  EXPECT_GT(lost, 0);
  EXPECT_EQ(noted + lost, 50);
}

TEST_F(AuditLogTest, WhatASyncThatFailedMayHaveLostIsWrittenAgain) {
  ASSERT_TRUE(open().ok());
  ASSERT_TRUE(until([&] { return moods_.syncs > 0; }));
  const size_t durable = text().size();
  moods_.refuses_syncs = true;
  note("must be durable", EventKind::kSaveDurable);
  ASSERT_TRUE(until([&] { return trouble().find("Input/output error") != std::string::npos; }));
  fs::resize_file(path_, durable);  // what the page cache showed was lost
  moods_.refuses_syncs = false;
  close();
  EXPECT_FALSE(report().fault);
  EXPECT_THAT(text(), HasSubstr("must be durable"));
}

TEST_F(AuditLogTest, OnlyWhatSomebodyActsOnIsSyncedAtOnce) {
  AuditOptions never = options();
  never.sync_every = 3600 * kSecond;
  ASSERT_TRUE(open(never).ok());
  ASSERT_TRUE(until([&] { return moods_.syncs == 1; }));
  note("may wait");
  ASSERT_TRUE(until([&] { return report().records == 2; }));
  EXPECT_EQ(moods_.syncs, 1);
  note("written and published", EventKind::kSaveDurable);
  ASSERT_TRUE(until([&] { return moods_.syncs == 2; }));
  close();
  ASSERT_TRUE(open().ok());
  ASSERT_TRUE(until([&] { return moods_.syncs == 3; }));
  note("may wait, and not for ever");
  EXPECT_TRUE(until([&] { return moods_.syncs == 4; }));
  close();
}

TEST_F(AuditLogTest, ADiskThatHangsHoldsNobody) {
  moods_.hangs = true;
  ASSERT_TRUE(open().ok());
  const Instant began = now();
  for (int i = 0; i < 10000; ++i) note("event");
  const auto closed = log_->close(50 * kMillisecond);
  EXPECT_LT(now() - began, 10 * kSecond);
  ASSERT_FALSE(closed.ok());
  EXPECT_THAT(closed.error().message, HasSubstr("does not answer"));
  moods_.hangs = false;
  ASSERT_TRUE(until([&] {
    return fs::exists(path_) && !text().empty() && text().back() == '\n' && text().size() > 100000;
  }));
}

// A real limit of the kernel's in place of a disk that is full.
TEST_F(AuditLogTest, AFileThatMayGrowNoMoreIsMetInTheSameWay) {
  signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  ASSERT_TRUE(open().ok());
  ASSERT_TRUE(until([&] { return report().records == 1; }));
  rlimit small = before;
  small.rlim_cur = text().size() + 100;  // less than a record
  setrlimit(RLIMIT_FSIZE, &small);
  note("too much");
  EXPECT_TRUE(until([&] { return trouble().find("cannot be written") != std::string::npos; })) << trouble();
  setrlimit(RLIMIT_FSIZE, &before);
  close();
  std::vector<Record> records;
  EXPECT_FALSE(report(&records).fault);
  ASSERT_GE(records.size(), 2u);
  EXPECT_EQ(records[1].text, "too much");
}

// Files of any bytes: verify says something, and takes no more memory than a line.
TEST_F(AuditLogTest, AnyBytesAreAnsweredInWords) {
  const auto fault_of = [&](const std::string& bytes) {
    put(bytes);
    const Report found = report();
    EXPECT_TRUE(found.fault);
    return found.fault ? words_of(*found.fault) : "";
  };
  EXPECT_THAT(fault_of(""), HasSubstr("empty"));
  EXPECT_THAT(fault_of("\n"), HasSubstr("line 1: changed"));
  EXPECT_THAT(fault_of(std::string(100, '\0')), HasSubstr("torn"));
  EXPECT_THAT(fault_of(std::string(64 << 20, 'x') + "\n"), HasSubstr("line 1: changed"));
  EXPECT_THAT(fault_of(std::string(300000, '[') + "\n"), HasSubstr("line 1: changed"));
  EXPECT_THAT(fault_of("\xff\xfe\n\x80\n"), HasSubstr("line 1: changed"));
  uint64_t state = 5;
  for (int round = 0; round < 200; ++round) {
    std::string bytes(1 + state % 5000, '\0');
    for (char& c : bytes)
      c = static_cast<char>((state = state * 6364136223846793005u + 1442695040888963407u) >> 56);
    EXPECT_FALSE(fault_of(bytes).empty());
  }
}

}  // namespace
}  // namespace muster::launcher
