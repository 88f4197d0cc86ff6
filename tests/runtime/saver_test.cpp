// One rank's saving and verifying, with real files; the test plays the leader.
#include "runtime/saver.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <thread>

#include "checkpoint/parity_file.h"
#include "tests/forwarding_files.h"
#include "tests/runtime/heard_from_savers.h"

namespace muster {
namespace {

using namespace control;

constexpr MemberId kSelf = 7;

// What a file system does with a clone.
enum class Cloning : uint8_t { kCopies, kRefuses, kFails };

class CloningFile final : public testing::ForwardingFile {
 public:
  CloningFile(std::unique_ptr<File> inner, Cloning cloning)
      : ForwardingFile(std::move(inner)), cloning_(cloning) {}
  // In place of the file system, which may not be able to.
  Result<bool> clone(File& source, uint64_t offset, uint64_t bytes) override {
    if (cloning_ == Cloning::kFails) return Error{ErrorCode::kEnvironment, "Input/output error"};
    if (cloning_ == Cloning::kRefuses) return false;
    checkpoint::StagingBuffer memory;  // aligned
    MUSTER_TRY(memory.reserve(bytes));
    MUSTER_TRY(source.pread(memory.bytes().first(bytes), offset));
    MUSTER_TRY(inner_->pwrite(memory.bytes().first(bytes), offset));
    return true;
  }

 private:
  const Cloning cloning_;
};

// The real disk, on which one path does not answer until it is released.
class SlowFiles final : public testing::ForwardingFiles {
 public:
  SlowFiles() : ForwardingFiles(real_files()) {}

  void hold(std::string path) {
    const std::lock_guard lock(mutex_);
    held_ = std::move(path);
  }
  void release() {
    hold("");
    changed_.notify_all();
  }
  // Files of that name are not opened, for want of descriptors. "": all are.
  void lack(std::string name) {
    const std::lock_guard lock(mutex_);
    lacking_ = std::move(name);
  }
  // Whether someone waits for it, within a bounded time.
  bool waited_for() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [this] { return waits_; });
  }

  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode, bool direct) override {
    std::unique_lock lock(mutex_);
    waits_ = waits_ || path == held_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return path != held_; });
    if (!lacking_.empty() && path.ends_with("/" + lacking_))
      return Error{ErrorCode::kRetry, "no descriptor is left for " + path};
    MUSTER_ASSIGN(auto file, real_files().open(path, mode, direct));
    if (!cloning_ || path.find("/shard-") == std::string::npos) return file;
    return std::unique_ptr<File>(std::make_unique<CloningFile>(std::move(file), *cloning_));
  }
  void let_clone(Cloning cloning) {
    const std::lock_guard lock(mutex_);
    cloning_ = cloning;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string held_, lacking_;
  std::optional<Cloning> cloning_;
  bool waits_ = false;
};

class SaverTest : public HeardFromSavers {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "muster-saver-XXXXXX";  // mkdtemp fills in the X
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
    ASSERT_TRUE(state_.add_replicated("w", values_, DType::kFloat32, {1024}).ok());
    state_.seal();
    start({});
  }

  // A saver with these options, and a folder.
  void start(SaveOptions options) {
    saver_.reset();
    options.folder = folder_;
    options.keep = 2;
    checkpoint::JobConstants job;
    saver_.emplace(
        state_, options, job, 1, [this](Message message) { note(messages_, std::move(message)); },
        [this](Event event) { note(events_, std::move(event)); }, files_);
  }

  void start_with(uint8_t key_byte) {
    SaveOptions options;
    options.key = key_of(key_byte);
    start(options);
  }
  // Another number in a manifest, and its digest made right again.
  void forge(uint64_t version) const {
    const std::string path =
        folder_ + "/" + checkpoint::save_name({version, 100 + version}) + "/manifest.json";
    std::string text =
        checkpoint::without_digest_line(read_file(real_files(), path, 1 << 20).value(), path).value();
    text.replace(text.find("\"seed\":0"), 8, "\"seed\":1");
    std::ofstream(path) << checkpoint::with_digest_line(text);
  }
  static checkpoint::SealKeyPtr key_of(uint8_t byte) {
    return checkpoint::SealKey::of(ByteBuffer(32, std::byte{byte}), "a test's key").value();
  }

  void TearDown() override {
    files_.release();
    saver_.reset();
    std::filesystem::remove_all(folder_);
  }

  template <typename T>
  std::optional<T> said(uint64_t save) {
    return await([&]() -> std::optional<T> {
      for (const Message& message : messages_)
        if (const auto* m = std::get_if<T>(&message); m != nullptr && m->save == save) return *m;
      return {};
    });
  }

  // Saves `version` up to its publication, or its refusal.
  SavePublished try_to_write(Version version, bool stop = false, bool last = false) {
    const uint64_t save = 100 + static_cast<uint64_t>(version);
    saver_->hold(version, last, now());
    SaveOpen open;
    open.save = save;
    open.version = version;
    open.lineage = lineage_;
    open.participants = {kSelf};
    open.stop = stop;
    saver_->open(open, kSelf);
    const auto vote = said<SaveVote>(save);
    if (!vote || !vote->written) return {save, false, vote ? vote->why : "no vote"};
    saver_->publish({save, {vote->record}});
    return said<SavePublished>(save).value_or(SavePublished{save, false, "no answer"});
  }
  void write(Version version) {
    values_[version % 1024] += 1;  // a step was made
    const auto published = try_to_write(version);
    ASSERT_TRUE(published.published) << "version " << version << ": " << published.why
                                     << told(EventKind::kLog);
  }

  // Before this rank is at the version.
  void open_by_others(Version version) {
    SaveOpen open;
    open.save = 100 + static_cast<uint64_t>(version);
    open.version = version;
    open.participants = {kSelf};
    saver_->open(open, kSelf);
  }
  void expect_taken_part_in(Version version) {
    ASSERT_TRUE(saver_->due(version));
    ASSERT_TRUE(saver_->hold(version, false, now() + kSecond));
    const auto vote = said<SaveVote>(100 + static_cast<uint64_t>(version));
    ASSERT_TRUE(vote.has_value());
    EXPECT_TRUE(vote->written) << vote->why;
  }

  void close(Version version) { saver_->closed({100 + static_cast<uint64_t>(version), true, "", version}); }

  bool has(EventKind kind, Version version) {
    const std::lock_guard lock(mutex_);
    return std::any_of(events_.begin(), events_.end(),
                       [&](const Event& e) { return e.kind == kind && e.version == version; });
  }

  // The text of the newest event of this kind; empty: there is none.
  std::string told(EventKind kind) {
    const std::lock_guard lock(mutex_);
    const auto found =
        std::find_if(events_.rbegin(), events_.rend(), [&](const Event& e) { return e.kind == kind; });
    return found == events_.rend() ? "" : found->text;
  }

  std::string shard_of(Version version) const {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_)) {
      // v000000000112-…: the number may stand in the random part of another name.
      const std::string name = entry.path().filename().string();
      const std::string of = entry.path().parent_path().filename().string();
      if (name.starts_with("shard") && std::atoll(of.c_str() + 1) == version) return entry.path().string();
    }
    return "";
  }

  std::string folder_;
  SlowFiles files_;
  float values_[1024] = {};
  State state_;
  Lineage lineage_;  // of the view
  std::optional<Saver> saver_;
};

TEST_F(SaverTest, WhatIsDurableIsReadBackAndOldVersionsGo) {
  for (Version version = 111; version <= 114; ++version) {
    write(version);
    close(version);
    ASSERT_TRUE(emitted(EventKind::kSaveVerified, version, "read back"));
    EXPECT_EQ(saver_->durable(), version);
    EXPECT_EQ(saver_->outcome(version), "");
  }
  EXPECT_TRUE(emitted(EventKind::kDecided, 112, "the retention keeps the newest 2")) << "and so it is gone";
  write(115);  // behind the pruning of 112 on the same thread
  EXPECT_EQ(shard_of(112), "");
  EXPECT_NE(shard_of(113), "");
}

TEST_F(SaverTest, ParityIsWrittenWhileASaveIsReadBack) {
  write(110);
  close(110);
  ASSERT_TRUE(emitted(EventKind::kSaveVerified, 110));
  const auto parity_of = [&](Version version) {
    return std::filesystem::path(shard_of(version)).parent_path() / "parity-000000-of-000001.xor";
  };
  EXPECT_FALSE(std::filesystem::exists(parity_of(110))) << "nobody has asked for it";
  SaveOptions options;
  options.parity = 4;
  start(options);
  write(111);
  close(111);
  ASSERT_TRUE(emitted(EventKind::kSaveVerified, 111));
  ASSERT_TRUE(std::filesystem::exists(parity_of(111)));
  const std::string folder = parity_of(111).parent_path().string();
  const auto save = checkpoint::read_manifest_json(files_, folder, {111, 211});
  ASSERT_TRUE(save.ok()) << save.error().message;
  const auto damaged = checkpoint::verify_parity(files_, folder, *save);
  ASSERT_TRUE(damaged.ok());
  EXPECT_TRUE(damaged->empty());
  EXPECT_EQ(told(EventKind::kLog), "");
}

TEST_F(SaverTest, ParityThatCannotBeWrittenCostsTheSaveNothing) {
  SaveOptions options;
  options.parity = 2;
  start(options);
  write(111);
  std::filesystem::create_directory(std::filesystem::path(shard_of(111)).parent_path() /
                                    "parity-000000-of-000001.xor");  // in the way
  close(111);
  EXPECT_TRUE(emitted(EventKind::kLog, 111, "not all of its parity is there: the parity file"));
  EXPECT_TRUE(emitted(EventKind::kSaveVerified, 111));
}

// As at a start: by the owner, and within its time.
TEST_F(SaverTest, ADamagedVersionIsRepairedInTime) {
  SaveOptions options;
  options.parity = 2;
  start(options);
  write(111);
  close(111);
  ASSERT_TRUE(emitted(EventKind::kSaveVerified, 111));
  const auto found = saver_->find_versions();
  ASSERT_TRUE(found.ok());
  ASSERT_EQ(found->usable.size(), 1U);
  const checkpoint::Candidate& candidate = found->usable[0];
  EXPECT_FALSE(saver_->repair(candidate, now() + 20 * kSecond)) << "nothing is damaged";
  std::filesystem::resize_file(shard_of(111), 100);
  EXPECT_FALSE(saver_->repair(candidate, now()));
  EXPECT_TRUE(emitted(EventKind::kLog, 111, "its repair was not finished: the repair was stopped"));
  EXPECT_EQ(std::filesystem::file_size(shard_of(111)), 100U);
  EXPECT_TRUE(saver_->repair(candidate, now() + 20 * kSecond));
  EXPECT_TRUE(emitted(EventKind::kDecided, 111, "rebuilt from its group's other files (it has 100 bytes"));
  EXPECT_TRUE(checkpoint::verify_shards(files_, candidate.folder, *candidate.manifest).ok());
  std::filesystem::resize_file(shard_of(111), 100);
  ASSERT_TRUE(saver_->take_folder(false).ok());
  EXPECT_FALSE(saver_->repair(candidate, now() + 20 * kSecond)) << "another rank is the owner";
  EXPECT_EQ(std::filesystem::file_size(shard_of(111)), 100U);
}

// A node that was away, with later versions of a history that the job has left. It removed each new save, as
// older than those, from the second on.
TEST_F(SaverTest, ANodeThatJoinsLeavesWhatItHasOfAnotherHistory) {
  SaveOptions options;
  options.tier = Tier::kLocal;
  const auto save = [&](Version version) {
    write(version);
    close(version);
    ASSERT_TRUE(emitted(EventKind::kSaveVerified, version));
  };
  start(options);
  lineage_ = {{{7, 1}, 0}};
  save(150);
  save(151);
  start(options);  // in a view that went on from 100 without it
  lineage_.push_back({{7, 2}, 100});
  save(111);
  EXPECT_TRUE(has(EventKind::kAbandoned, 150) && has(EventKind::kAbandoned, 151)) << "told";
  lineage_.push_back({{7, 3}, 111});  // what was saved in the view before still counts
  save(112);
  write(113);  // behind the pruning of 112 on the same thread
  EXPECT_NE(shard_of(111), "");
  EXPECT_NE(shard_of(112), "");
  EXPECT_EQ(shard_of(150), "");
  EXPECT_EQ(shard_of(151), "");
}

// Nobody will go back to them, and on a full disk or memory every save failed for want of their space.
TEST_F(SaverTest, WhatTheJobHasLeftGoesBeforeANodeSavesAgain) {
  SaveOptions options;
  options.tier = Tier::kLocal;
  start(options);
  lineage_ = {{{7, 1}, 0}};
  write(150);
  start(options);  // in a view that went on from 100 without it
  lineage_.push_back({{7, 2}, 100});
  SaveOpen open{.save = 211, .version = 111, .lineage = lineage_, .participants = {kSelf}};
  saver_->hold(111, false, now());
  saver_->open(open, kSelf);
  ASSERT_TRUE(said<SaveVote>(211));
  EXPECT_EQ(shard_of(150), "") << "before it is published";
  EXPECT_NE(shard_of(111), "");
  saver_->publish({211, {said<SaveVote>(211)->record}});
  ASSERT_TRUE(said<SavePublished>(211)->published);
  ASSERT_TRUE(saver_->take_folder(true).ok());
  lineage_.back() = {{7, 3}, 100};
  ASSERT_TRUE(saver_->go_on_along(lineage_, "a start").ok());
  EXPECT_EQ(shard_of(111), "") << "at a start, too";
}

// An older version would be taken for what nobody could look at.
TEST_F(SaverTest, WithoutDescriptorsItIsNotKnownWhatThereIs) {
  write(150);
  files_.lack("manifest.json");
  const auto found = saver_->find_versions();
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.error().code, ErrorCode::kRetry);
  files_.lack("");
  EXPECT_EQ(saver_->find_versions()->usable.size(), 1U);
}

// What a device's mirror is to a saver: a copy, which may come late or not at all.
class CopyOf final : public StateMirror {
 public:
  CopyOf(State& state, std::span<float> values)
      : state_(state), values_(std::as_bytes(values)), copy_(values_.size()) {
    state_.set_mirror(this);
  }
  ~CopyOf() override { state_.set_mirror(nullptr); }
  MutableByteSpan host() const override { return {copy_.data(), copy_.size()}; }
  Status note_written() override { return ok(); }
  Status begin_fetch() override {
    std::copy(values_.begin(), values_.end(), copy_.begin());
    return ok();
  }
  Status finish_fetch(Instant) override {
    while (blocked) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // as a busy device does
    return fails ? Status(Error{ErrorCode::kEnvironment, "no copy came"}) : ok();
  }
  Status order_update() override { return ok(); }
  Status store(ByteSpan, Instant) override { return ok(); }

  std::atomic<bool> fails = false, blocked = false;

 private:
  State& state_;
  ByteSpan values_;
  mutable ByteBuffer copy_;
};

TEST_F(SaverTest, WhereSavesArePacedTheyAreDueWhenTheLeaderSays) {
  EXPECT_FALSE(saver_->due(1)) << "without an interval";
  SaveOptions options;
  options.every = SaveOptions::kPaced;
  start(options);
  EXPECT_FALSE(saver_->due(9));
  saver_->schedule({10, 4});
  EXPECT_TRUE(saver_->due(10));
  EXPECT_FALSE(saver_->due(12));
  EXPECT_TRUE(saver_->due(14));
}

// Members may know different schedules for a moment. It was never voted on, and stood in the way of others
// until its deadline.
TEST_F(SaverTest, ASaveThatOthersThinkIsDueIsTakenPartInIfItsVersionIsStillToCome) {
  SaveOptions options;
  options.every = SaveOptions::kPaced;
  start(options);
  EXPECT_FALSE(saver_->due(4));
  open_by_others(4);
  const auto refused = said<SaveVote>(104);
  ASSERT_TRUE(refused.has_value());
  EXPECT_FALSE(refused->written);
  open_by_others(5);
  expect_taken_part_in(5);
}

// A view that begins again at a version: it was refused, since the program had been at it before.
TEST_F(SaverTest, ASaveOfTheBaseIsStillToComeWhenAViewBegins) {
  EXPECT_FALSE(saver_->due(5));
  saver_->view_begins(5);
  open_by_others(5);
  expect_taken_part_in(5);
}

TEST_F(SaverTest, WhatIsSwitchedOffRefusesAtOnceAndSaysWhy) {
  EXPECT_TRUE(saver_->enabled());
  saver_->switch_off("the record is damaged");
  EXPECT_FALSE(saver_->enabled());
  open_by_others(5);
  const auto refused = said<SaveVote>(105);
  ASSERT_TRUE(refused.has_value());
  EXPECT_FALSE(refused->written);
  EXPECT_THAT(refused->why, ::testing::HasSubstr("the record is damaged"));
}

// Others may not have found it there. It was voted on by nobody, until the save's deadline.
TEST_F(SaverTest, ASaveOfWhatTheRunStartedFromIsRefusedAtOnceByWhoHasIt) {
  SaveOptions options;
  options.every = 5;
  start(options);
  saver_->note_start({5, 55}, 5);
  EXPECT_TRUE(saver_->due(5));
  open_by_others(5);
  const auto refused = said<SaveVote>(105);
  ASSERT_TRUE(refused.has_value());
  EXPECT_FALSE(refused->written);
  EXPECT_THAT(refused->why, ::testing::HasSubstr("already"));
}

TEST_F(SaverTest, ACopyThatDoesNotComeFailsItsSaveAlone) {
  CopyOf mirror(state_, values_);
  write(111);
  mirror.fails = true;
  const auto failed = try_to_write(112);
  EXPECT_FALSE(failed.published);
  EXPECT_EQ(failed.why, "no copy came");
  mirror.fails = false;
  write(113);
  saver_.reset();
}

// Where the memory for staging is bounded, training waited for the folder with it.
TEST_F(SaverTest, ANodesSaveWhoseFolderCannotBeHadFailsBeforeTheStateIsRead) {
  SaveOptions options;
  options.tier = Tier::kLocal;
  start(options);
  options.folder = folder_;
  Saver other(
      state_, options, {}, 1, [](const Message&) {}, [](const Event&) {}, files_);
  ASSERT_TRUE(other.take_folder(true).ok());
  CopyOf mirror(state_, values_);
  mirror.blocked = true;  // who reads waits
  ASSERT_TRUE(saver_->hold(112, false, now()));
  open_by_others(112);
  const auto refused = said<SaveVote>(212);
  mirror.blocked = false;
  ASSERT_TRUE(refused);
  EXPECT_FALSE(refused->written);
  EXPECT_THAT(refused->why, ::testing::HasSubstr("belongs to another running process"));
  saver_.reset();
}

// Only one try is made for the lock, so it is left before the next save.
TEST_F(SaverTest, WhoIsNoLongerTheFirstOfItsNodeLeavesTheFolderWhenTheViewIsKnown) {
  SaveOptions options;
  options.tier = Tier::kLocal;
  start(options);
  ASSERT_TRUE(saver_->take_folder(true).ok());
  options.folder = folder_;
  Saver other(
      state_, options, {}, 1, [](const Message&) {}, [](const Event&) {}, files_);
  saver_->prepare({1, 2, {}});
  EXPECT_TRUE(other.take_folder(true).ok());
}

// Saves that hold a lease, whether they stage or wait for the worker, and no others.
TEST_F(SaverTest, WhoIsInTheWayIsGivenUpAndWhatComesAfterIsNot) {
  CopyOf mirror(state_, values_);
  mirror.blocked = true;
  SaveOpen open;
  open.version = 112;
  open.participants = {kSelf};
  for (const uint64_t save : {512, 513}) {  // the one that stages, and one that waits behind it
    ASSERT_TRUE(saver_->hold(112, false, now()));
    open.save = save;
    saver_->open(open, kSelf);
  }
  saver_->cancel_staging();
  mirror.blocked = false;
  for (const uint64_t save : {512, 513}) {
    const auto vote = said<SaveVote>(save);
    ASSERT_TRUE(vote);
    EXPECT_FALSE(vote->written) << save;
  }
  EXPECT_FALSE(state_.older_is_read());
  write(113);
  saver_->cancel_staging();  // nobody
  write(114);
  saver_.reset();
}

// The update was not held up, so the next save may be due while the one before still reads its copy.
TEST_F(SaverTest, ASaveWhoseStateCannotBeKeptIsRefusedAtOnceAndTold) {
  CopyOf mirror(state_, values_);
  ASSERT_TRUE(state_.acquire_read(now()).ok());  // the save before
  ASSERT_TRUE(state_.begin_write(now()).ok());
  state_.end_write();
  SaveOpen open;
  open.save = 212;
  open.version = 112;
  open.participants = {kSelf};
  saver_->open(open, kSelf);  // by a member that came there sooner
  EXPECT_FALSE(saver_->hold(112, false, now() + 5 * kMillisecond));
  EXPECT_GE(state_.stall(), 5 * kMillisecond) << "the program has waited";
  const auto vote = said<SaveVote>(212);
  ASSERT_TRUE(vote);
  EXPECT_FALSE(vote->written);
  EXPECT_NE(told(EventKind::kLog).find("not kept for its save"), std::string::npos);
  open.save = 300;
  saver_->open(open, kSelf);
  const auto later = said<SaveVote>(300);
  ASSERT_TRUE(later) << "refused, and not waited for";
  EXPECT_FALSE(later->written);
  state_.release_read();
  write(113);
  saver_.reset();
}

// Reading back a large version took minutes, in which every further save was skipped or late.
TEST_F(SaverTest, AVerificationThatTakesLongHoldsUpNoSave) {
  write(111);
  const std::string shard = shard_of(111);
  ASSERT_NE(shard, "");
  files_.hold(shard);
  close(111);
  ASSERT_TRUE(files_.waited_for());
  write(112);
  close(112);
  write(113);
  close(113);
  std::filesystem::resize_file(shard, 4096);  // the disk answers: with something else
  files_.release();
  EXPECT_TRUE(emitted(EventKind::kVersionRejected, 111));
  EXPECT_TRUE(emitted(EventKind::kSaveVerified, 113));
  EXPECT_EQ(saver_->outcome(113), "");
}

// Full once, a disk stayed full: what failed saves had written stayed for an hour, and nothing was removed.
TEST_F(SaverTest, WhatAFailedSaveHasWrittenGoesAtOnce) {
  write(111);
  close(111);
  ASSERT_TRUE(emitted(EventKind::kSaveVerified, 111));
  saver_->hold(112, false, now());
  SaveOpen open;
  open.save = 212;
  open.version = 112;
  open.participants = {kSelf, kSelf + 1};  // the other one never writes
  saver_->open(open, kSelf);
  ASSERT_TRUE(said<SaveVote>(212));
  EXPECT_NE(shard_of(112), "");
  saver_->closed({212, false, "rank 1 has no space", 112});
  write(113);  // behind it on the same thread
  EXPECT_EQ(shard_of(112), "");
  EXPECT_NE(shard_of(111), "");
  EXPECT_NE(shard_of(113), "");
}

// ---- a part of a lost rank (PROTOCOL 24)

// This rank is participant 1 of two; participant 0 is lost before it has made the folder.
class LostPart : public SaverTest {
 protected:
  static constexpr uint64_t kSave = 212;

  void open(bool holds) {
    ASSERT_TRUE(checkpoint::Folder::own(files_, folder_, "the one that is lost").ok());
    if (holds) saver_->hold(112, false, now());
    SaveOpen open;
    open.save = kSave;
    open.version = 112;
    open.stop = !holds;
    open.participants = {kSelf - 1, kSelf};
    saver_->open(open, kSelf);
  }
  static SaveRewrite asked(uint32_t part) { return {kSave, part, 112, {5, 6}}; }
  std::optional<SaveVote> voted(std::optional<uint32_t> part) {
    return await([&]() -> std::optional<SaveVote> {
      for (const Message& message : messages_)
        if (const auto* vote = std::get_if<SaveVote>(&message); vote != nullptr && vote->part == part)
          return *vote;
      return {};
    });
  }
  size_t shards() const {
    size_t count = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_))
      count += entry.path().filename().string().starts_with("shard-") ? 1 : 0;
    return count;
  }
};

// In a file beside what that one has left, or leaves later, which goes once the save is published.
TEST_F(LostPart, IsWrittenAsThatRankWouldHave) {
  open(true);
  saver_->rewrite(asked(0), control::Generation{5, 7});
  const auto part = voted(0), own = voted(std::nullopt);
  ASSERT_TRUE(part && own);
  ASSERT_TRUE(part->written) << part->why;
  ASSERT_TRUE(own->written) << own->why;
  const auto record = checkpoint::decode_shard_record(ByteSpan(part->record).first(checkpoint::kVoteBytes));
  ASSERT_TRUE(record.ok());
  EXPECT_EQ(record->identity.participant, 0u);
  EXPECT_EQ(record->identity.participants, 2u);
  const std::string left =
      std::filesystem::path(shard_of(112)).parent_path() / "shard-000000-00000000000000aa.h5";
  std::ofstream(left) << "half of it";
  saver_->publish({kSave, {part->record, own->record}});
  const auto published = said<SavePublished>(kSave);
  ASSERT_TRUE(published && published->published);
  saver_->closed({kSave, true, "", 112});
  EXPECT_TRUE(emitted(EventKind::kSaveVerified, 112)) << "who published verifies in the first one's place";
  EXPECT_FALSE(std::filesystem::exists(left));
  EXPECT_EQ(shards(), 2u);
}

TEST_F(LostPart, IsRefusedAtOnceWhereTheStateHasMovedOn) {
  open(false);
  // Not before the own part is staged, whose lease would serve.
  ASSERT_TRUE(state_.begin_write(now() + 20 * kSecond).ok());
  state_.end_write();
  saver_->rewrite(asked(0), std::nullopt);
  // Its own part waits for the folder, which nobody makes; this answer does not.
  const auto part = voted(0);
  ASSERT_TRUE(part.has_value());
  EXPECT_FALSE(part->written);
  EXPECT_FALSE(part->why.empty());
}

TEST_F(LostPart, OfASaveThatIsOverIsNotWritten) {
  open(true);
  saver_->closed({kSave, false, "rank 0 has no space", 112});
  saver_->rewrite(asked(0), control::Generation{5, 7});
  const auto part = voted(0);
  ASSERT_TRUE(part.has_value());
  EXPECT_FALSE(part->written);
  // No lease is left behind: the state may change.
  EXPECT_TRUE(state_.begin_write(now() + 20 * kSecond).ok());
  state_.cancel_write();
}

TEST_F(SaverTest, WhatIsSealedIsVerifiedWithTheKeyAndReadWithNoOther) {
  start_with(1);
  write(10);
  close(10);
  ASSERT_TRUE(emitted(EventKind::kSaveVerified, 10));
  const auto found = saver_->find_versions();
  ASSERT_TRUE(found.ok());
  ASSERT_EQ(found->usable.size(), 1U);
  ASSERT_TRUE(found->usable[0].manifest->key);
  EXPECT_EQ(found->usable[0].manifest->key_id, key_of(1)->id());
  start_with(2);
  const auto with_another = saver_->find_versions();
  ASSERT_FALSE(with_another.ok());
  EXPECT_EQ(with_another.error().code, ErrorCode::kMisuse);
  EXPECT_THAT(with_another.error().message, ::testing::HasSubstr("is sealed with the key"));
}

TEST_F(SaverTest, ASealThatNobodyChecksIsToldOnce) {
  start_with(1);
  write(10);
  start({});
  ASSERT_TRUE(saver_->take_folder(true).ok());
  for (int i = 0; i < 2; ++i) {
    const auto found = saver_->find_versions();
    ASSERT_TRUE(found.ok());
    EXPECT_EQ(found->usable.size(), 1U);
  }
  const std::lock_guard lock(mutex_);
  const auto told = std::count_if(events_.begin(), events_.end(), [](const Event& event) {
    return event.text.find("only its digests are checked") != std::string::npos;
  });
  EXPECT_EQ(told, 1);
}

TEST_F(SaverTest, WhatIsNotSealedStopsAJobThatHasAKey) {
  write(10);
  start_with(1);
  const auto found = saver_->find_versions();
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.error().code, ErrorCode::kMisuse);
  EXPECT_THAT(found.error().message, ::testing::HasSubstr("is not sealed"));
}

TEST_F(SaverTest, AForgedSaveIsRejected) {
  start_with(1);
  write(10);
  close(10);
  ASSERT_TRUE(emitted(EventKind::kSaveVerified, 10));
  forge(10);
  const auto found = saver_->find_versions();
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->usable.size(), 0U);
  EXPECT_EQ(found->rejected, 1U);
  EXPECT_TRUE(emitted(EventKind::kVersionRejected, 10, "lacks the key"));
}

// What is read back after a save is checked with the key, too.
TEST_F(SaverTest, WhatWasForgedSinceItWasPublishedIsNotVerified) {
  start_with(1);
  write(10);
  forge(10);
  close(10);
  EXPECT_TRUE(emitted(EventKind::kVersionRejected, 10, "lacks the key"));
  EXPECT_FALSE(has(EventKind::kSaveVerified, 10));
}

TEST_F(LostPart, IsSealedByWhoWritesIt) {
  start_with(1);
  open(true);
  saver_->rewrite(asked(0), control::Generation{5, 7});
  const auto part = voted(0), own = voted(std::nullopt);
  ASSERT_TRUE(part && part->written && own && own->written);
  const auto record = checkpoint::decode_shard_record(ByteSpan(part->record).first(checkpoint::kVoteBytes));
  ASSERT_TRUE(record.ok());
  EXPECT_EQ(record->seal.key_id, key_of(1)->id());
  EXPECT_EQ(record->seal.first_writer, record->writer_nonce);
  saver_->publish({kSave, {part->record, own->record}});
  const auto published = said<SavePublished>(kSave);
  ASSERT_TRUE(published && published->published);
  saver_->closed({kSave, true, "", 112});
  EXPECT_TRUE(emitted(EventKind::kSaveVerified, 112));
}

// A run that silently began at step 0 beside the shards of another looked as if it had resumed.
TEST_F(SaverTest, ShardsWithoutAnyManifestAreTold) {
  ASSERT_TRUE(saver_->take_folder(true).ok());
  saver_->tell_of_unfinished(saver_->find_versions().value());
  EXPECT_EQ(told(EventKind::kVersionRejected), "") << "an empty folder is nothing to tell";
  write(111);
  write(112);
  for (const Version version : {111, 112}) {
    const auto save_folder = std::filesystem::path(shard_of(version)).parent_path();
    ASSERT_TRUE(std::filesystem::remove(save_folder / "manifest.json"));
  }
  const auto found = saver_->find_versions();
  ASSERT_TRUE(found.ok()) << found.error().message;
  EXPECT_TRUE(found->usable.empty());
  saver_->tell_of_unfinished(*found);
  ASSERT_TRUE(emitted(EventKind::kVersionRejected, 112));
  EXPECT_THAT(told(EventKind::kVersionRejected),
              ::testing::AllOf(::testing::HasSubstr("shards of 2 saves"), ::testing::HasSubstr("no manifest"),
                               ::testing::HasSubstr("starts at its beginning")));
}

// After a loss that only a save can mend, a run looks into its folder again, and what is still done for the
// save before may be looking too.
TEST_F(SaverTest, LooksAgainBehindWhatItStillDoesForASave) {
  ASSERT_TRUE(saver_->take_folder(true).ok());
  write(111);
  close(111);
  ASSERT_TRUE(saver_->take_folder(false).ok());
  ASSERT_TRUE(saver_->take_folder(true).ok());
  EXPECT_EQ(saver_->find_versions().value().usable.size(), 1U);
}

TEST_F(SaverTest, WhoIsNoLongerTheFirstRankLeavesTheFolder) {
  ASSERT_TRUE(saver_->take_folder(true).ok());
  write(111);
  SaveOptions options;
  options.folder = folder_;
  Saver other(
      state_, options, {}, 1, [](const Message&) {}, [](const Event&) {}, files_);
  ASSERT_TRUE(saver_->take_folder(false).ok());
  EXPECT_TRUE(other.take_folder(true).ok()) << "or the next start would end here, the folder in use";
  EXPECT_EQ(saver_->find_versions().value().usable.size(), 1U) << "it still reads";
}

// The new first one makes the save's folder, for which this one waits.
TEST_F(SaverTest, WhoIsNoLongerTheFirstParticipantLeavesTheFolderBeforeItWaits) {
  ASSERT_TRUE(saver_->take_folder(true).ok());
  write(111);
  SaveOptions options;
  options.folder = folder_;
  Saver other(
      state_, options, {}, 1, [](const Message&) {}, [](const Event&) {}, files_);
  saver_->hold(112, false, now());
  saver_->open(SaveOpen{.save = 212, .version = 112, .participants = {kSelf + 1, kSelf}}, kSelf);
  const Status taken = other.take_folder(true);
  EXPECT_TRUE(taken.ok()) << taken.error().message;
  saver_->closed({212, false, "the test ends"});
}

TEST_F(SaverTest, OneFinishedSaveIsEnoughAndNothingIsTold) {
  ASSERT_TRUE(saver_->take_folder(true).ok());
  write(111);
  write(112);
  std::filesystem::remove(std::filesystem::path(shard_of(112)).parent_path() / "manifest.json");
  EXPECT_EQ(saver_->find_versions().value().usable.size(), 1U);
  EXPECT_EQ(told(EventKind::kVersionRejected), "");
}

// It began anew, as if nothing had been saved, where every manifest was damaged.
TEST_F(SaverTest, CheckpointsOfWhichNoneCanBeUsedAreNoEmptyFolder) {
  ASSERT_TRUE(saver_->take_folder(true).ok());
  write(111);
  const auto manifest = std::filesystem::path(shard_of(111)).parent_path() / "manifest.json";
  std::filesystem::remove(manifest);
  ASSERT_EQ(mkfifo(manifest.c_str(), 0600), 0);  // opening it to read would wait for a writer
  const auto found = saver_->find_versions();
  ASSERT_TRUE(found.ok()) << found.error().message;
  EXPECT_TRUE(found->usable.empty());
  EXPECT_EQ(found->rejected, 1U);
  EXPECT_THAT(told(EventKind::kVersionRejected), ::testing::HasSubstr("manifest.json is a named pipe"));
}

// Its word was lost, or it died before it could say so: the save stands, and the next publisher says so.
TEST_F(SaverTest, ASaveThatIsPublishedAlreadyIsPublished) {
  write(111);
  const auto vote = said<SaveVote>(211);
  messages_.clear();
  saver_->publish({211, {vote->record}});
  const auto again = said<SavePublished>(211);
  ASSERT_TRUE(again);
  EXPECT_TRUE(again->published) << again->why;
}

// Whatever the staleness guard thinks of it when it sees it again.
TEST_F(SaverTest, ASaveThatIsPublishedAlreadyDoesNotBecomeStale) {
  SaveOptions options;
  options.stale_fails = true;
  start(options);
  ASSERT_TRUE(try_to_write(111).published);
  values_[0] += 1;
  ASSERT_TRUE(try_to_write(112).published);
  const auto vote = said<SaveVote>(212);
  messages_.clear();
  for (int i = 0; i < 2; ++i) saver_->publish({212, {vote->record}});
  const auto again = said<SavePublished>(212);
  ASSERT_TRUE(again);
  EXPECT_TRUE(again->published) << again->why;
}

// Opened by a member that was sooner, and closed before this rank came to the version.
TEST_F(SaverTest, ASaveThatWasClosedBeforeItsVersionCameDoesNotTakeTheNextOnesPlace) {
  saver_->hold(111, false, now());
  saver_->release();
  SaveOpen open;
  open.save = 1;
  open.version = 112;
  open.participants = {kSelf};
  saver_->open(open, kSelf);
  saver_->closed({1, false, "a participant was lost", 112});
  write(112);
}

// What was saved again and again was the state of the first save.
TEST_F(SaverTest, AStateThatDoesNotChangeIsTold) {
  ASSERT_TRUE(try_to_write(111).published);
  ASSERT_TRUE(try_to_write(112).published);
  EXPECT_TRUE(emitted(EventKind::kStale, 112));
  EXPECT_THAT(told(EventKind::kStale), ::testing::HasSubstr("no tensor has changed since version 111"));
  write(113);
  write(114);
  EXPECT_FALSE(has(EventKind::kStale, 113) || has(EventKind::kStale, 114));
}

TEST_F(SaverTest, WhereItIsAskedForAStaleStateFailsItsSaveAndTheLastWordIsSaved) {
  SaveOptions options;
  options.stale_fails = true;
  start(options);
  ASSERT_TRUE(try_to_write(111).published);
  const auto refused = try_to_write(112);
  EXPECT_FALSE(refused.published);
  EXPECT_THAT(refused.why, ::testing::HasSubstr("may be stale"));
  EXPECT_EQ(saver_->find_versions().value().usable.size(), 1U) << "the older one stays";
  EXPECT_FALSE(try_to_write(113).published) << "it is as stale as before";
  EXPECT_TRUE(try_to_write(114, true).published) << "on notice";
  EXPECT_TRUE(try_to_write(115, false, true).published) << "the run's last version";
  EXPECT_TRUE(has(EventKind::kStale, 114) && has(EventKind::kStale, 115)) << "told all the same";
  values_[0] += 1;
  EXPECT_TRUE(try_to_write(116).published);
}

// A tensor that has stopped is told once, but where it is to fail saves it does so until it changes again.
TEST_F(SaverTest, AStaleTensorFailsSavesUntilItChangesAgain) {
  float counter = 0;
  State state;
  ASSERT_TRUE(state.add_replicated("w", values_, DType::kFloat32, {1024}).ok());
  ASSERT_TRUE(state.add_replicated("n", &counter, DType::kFloat32, {}).ok());
  state.seal();
  saver_.reset();
  SaveOptions options;
  options.folder = folder_;
  options.stale_fails = true;
  saver_.emplace(
      state, options, checkpoint::JobConstants{}, 1,
      [this](Message message) { note(messages_, std::move(message)); },
      [this](Event event) { note(events_, std::move(event)); }, files_);
  const auto step = [&](Version version, bool w_changes) {
    counter += 1;
    values_[3] += w_changes ? 1 : 0;
    return try_to_write(version).published;
  };
  EXPECT_TRUE(step(111, true));
  EXPECT_TRUE(step(112, true));
  EXPECT_FALSE(step(113, false));
  EXPECT_THAT(told(EventKind::kStale), ::testing::HasSubstr("tensor 'w' did not change since version 112"));
  EXPECT_FALSE(step(114, false));
  EXPECT_TRUE(step(115, true));
  saver_.reset();  // before its state
}

// Frozen layers were written again with every save.
TEST_F(SaverTest, AShardThatDoesNotChangeIsLinkedAndTheNewestTwoNeverShareAFile) {
  std::map<Version, ino_t> inodes;
  const auto save_as_it_is = [&](Version version) {
    ASSERT_TRUE(try_to_write(version).published);
    close(version);
    ASSERT_TRUE(emitted(EventKind::kSaveVerified, version));
    struct stat status = {};
    ASSERT_EQ(stat(shard_of(version).c_str(), &status), 0);
    inodes[version] = status.st_ino;
  };
  for (Version version = 111; version <= 115; ++version) save_as_it_is(version);
  EXPECT_NE(inodes[111], inodes[112]);
  EXPECT_EQ(inodes[113], inodes[111]);
  EXPECT_EQ(inodes[114], inodes[112]);
  EXPECT_EQ(inodes[115], inodes[113]);
  EXPECT_EQ(said<SaveVote>(215)->bytes, 0U) << "nothing was written";
  values_[1000] = 5;
  save_as_it_is(116);
  EXPECT_NE(inodes[116], inodes[114]);
  EXPECT_NE(inodes[116], inodes[115]);
  EXPECT_GT(said<SaveVote>(216)->bytes, 0U);
}

// Damage must not spread from version to version by links.
TEST_F(SaverTest, AFileThatWasNotFoundWholeIsNotLinkedTo) {
  for (Version version = 111; version <= 112; ++version) {
    ASSERT_TRUE(try_to_write(version).published);
    if (version == 111) std::filesystem::resize_file(shard_of(111), 4096);
    close(version);
  }
  ASSERT_TRUE(emitted(EventKind::kSaveVerified, 112));
  ASSERT_TRUE(emitted(EventKind::kVersionRejected, 111));
  ASSERT_TRUE(try_to_write(113).published);
  EXPECT_GT(said<SaveVote>(213)->bytes, 0U);
  EXPECT_EQ(std::filesystem::hard_link_count(shard_of(113)), 1U);
}

// A state of 4 MiB, of which the first bytes change from save to save.
class ClonesOfSaver : public SaverTest {
 protected:
  void SetUp() override {
    SaverTest::SetUp();
    ASSERT_TRUE(large_.add_replicated("w", weights_.data(), DType::kFloat32, {1 << 20}).ok());
    large_.seal();
    start_large({});
  }
  void TearDown() override {
    saver_.reset();  // before its state
    SaverTest::TearDown();
  }
  void start_large(SaveOptions options) {
    saver_.reset();
    options.folder = folder_;
    options.keep = 2;
    saver_.emplace(
        large_, options, checkpoint::JobConstants{}, 1,
        [this](Message message) { note(messages_, std::move(message)); },
        [this](Event event) { note(events_, std::move(event)); }, files_);
  }
  // The bytes that it has written.
  uint64_t save_next(Version version) {
    weights_[3] += 1;
    EXPECT_TRUE(try_to_write(version).published);
    close(version);
    EXPECT_TRUE(emitted(EventKind::kSaveVerified, version));
    return said<SaveVote>(100 + static_cast<uint64_t>(version))->bytes;
  }
  std::string notes() {
    const std::lock_guard lock(mutex_);
    std::string text;
    for (const Event& event : events_)
      if (event.kind == EventKind::kLog) text += event.text + "\n";
    return text;
  }

  std::vector<float> weights_ = std::vector<float>(1 << 20, 1.5F);
  State large_;
};

TEST_F(ClonesOfSaver, WhatDoesNotChangeIsSharedAndTheNewestTwoShareNothing) {
  files_.let_clone(Cloning::kCopies);
  constexpr uint64_t kWhole = 4 << 20;
  EXPECT_GE(save_next(111), kWhole);
  EXPECT_GE(save_next(112), kWhole);
  for (Version version = 113; version <= 116; ++version) {
    EXPECT_LE(save_next(version), kWhole / 4) << version;
    const auto found = saver_->find_versions();
    ASSERT_EQ(found->usable.size(), 2U) << "those that share with nothing else that is kept";
    const checkpoint::VersionId origin = found->usable[0].manifest->shard(0).origin();
    EXPECT_EQ(origin.version, version % 2 == 0 ? 112U : 111U);
    EXPECT_NE(origin, found->usable[1].manifest->shard(0).origin());
  }
  EXPECT_EQ(notes(), "");
}

TEST_F(ClonesOfSaver, AFileSystemThatCannotIsToldOfOnce) {
  files_.let_clone(Cloning::kRefuses);
  for (Version version = 111; version <= 115; ++version) EXPECT_GE(save_next(version), 4U << 20) << version;
  EXPECT_THAT(notes(),
              ::testing::MatchesRegex(
                  "the file system refuses to share bytes[^\n]*XFS and Btrfs with blocks of 4 KiB can\n"));
}

TEST_F(ClonesOfSaver, AnErrorIsToldAndTriedAgain) {
  files_.let_clone(Cloning::kFails);
  for (Version version = 111; version <= 113; ++version) EXPECT_GE(save_next(version), 4U << 20) << version;
  EXPECT_THAT(notes(), ::testing::HasSubstr("Input/output error; what this save could have shared"));
  files_.let_clone(Cloning::kCopies);
  EXPECT_LE(save_next(114), 1U << 20);
}

TEST_F(ClonesOfSaver, IsSwitchedOffWithTheLinks) {
  files_.let_clone(Cloning::kCopies);
  SaveOptions options;
  options.link_unchanged = false;
  start_large(options);
  for (Version version = 111; version <= 114; ++version) EXPECT_GE(save_next(version), 4U << 20) << version;
}

TEST_F(SaverTest, LinksCanBeSwitchedOff) {
  SaveOptions options;
  options.link_unchanged = false;
  start(options);
  for (Version version = 111; version <= 114; ++version) {
    ASSERT_TRUE(try_to_write(version).published);
    close(version);
    ASSERT_TRUE(emitted(EventKind::kSaveVerified, version));
    EXPECT_GT(said<SaveVote>(100 + static_cast<uint64_t>(version))->bytes, 0U);
  }
}

// The first save took the time of its memory's first touch, as did one on notice.
TEST_F(SaverTest, TheMemoryOfTheFirstSaveIsThereBeforeIt) {
  constexpr size_t kCount = 12 << 20;  // 48 MiB
  const auto resident = [] {
    std::ifstream file("/proc/self/statm");
    uint64_t all = 0, pages = 0;
    file >> all >> pages;
    return pages * 4096;
  };
  const std::vector<float> large(kCount, 1.0F);
  State state;
  ASSERT_TRUE(state.add_replicated("w", const_cast<float*>(large.data()), DType::kFloat32, {kCount}).ok());
  state.seal();
  SaveOptions options;
  options.folder = folder_;
  options.every = 10;
  Saver saver(
      state, options, {}, 1, [](Message) {}, [](Event) {}, files_);
  const uint64_t before = resident();
  saver.prepare({0, 1, {}});
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (resident() < before + 4 * kCount && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // the kernel's work; nothing tells of it
  EXPECT_GE(resident(), before + 4 * kCount);
}

TEST_F(SaverTest, AFailedSaveSaysWhyAndHarmsNoOther) {
  write(111);
  close(111);
  EXPECT_EQ(saver_->outcome(112), std::nullopt);
  write(112);
  saver_->closed({212, false, "rank 3 has no space", 112});
  EXPECT_EQ(saver_->outcome(112), "rank 3 has no space");
  EXPECT_EQ(saver_->durable(), 111);
}

}  // namespace
}  // namespace muster
