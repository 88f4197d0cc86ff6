// Saves in the shared folder that are made of what this node has saved for itself, with real files; the test
// plays the leader and the other rank.
#include <gmock/gmock.h>
#include <stdlib.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "checkpoint/state_reader.h"
#include "runtime/tiers.h"
#include "tests/runtime/heard_from_savers.h"

namespace muster {
namespace {

using namespace control;
using testing::HasSubstr;

constexpr MemberId kSelf = 7, kOther = 8;
constexpr size_t kValues = 300'000;  // some slabs

class TierDrain : public HeardFromSavers {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "muster-drain-XXXXXX";  // mkdtemp fills in the X
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
    ASSERT_TRUE(state_.add_replicated("w", values_.data(), DType::kFloat32, {int64_t{kValues}}).ok());
    state_.seal();
    SaveOptions shared;
    shared.folder = folder_ + "/shared";
    shared.keep = 2;
    shared.link_unchanged = false;
    const Member self{kSelf, 1, 0, "a", {}};
    tiers_.emplace(
        state_, shared, LocalSaveOptions{folder_ + "/local", 4, true}, self, checkpoint::JobConstants{}, 1,
        [this](Message message) { note(messages_, std::move(message)); },
        [this](Event event) { note(events_, std::move(event)); });
  }
  void TearDown() override {
    tiers_.reset();
    std::filesystem::remove_all(folder_);
  }

  template <typename T>
  std::optional<T> said(uint64_t save, std::optional<uint32_t> part = {}) {
    return await([&]() -> std::optional<T> {
      for (const Message& message : messages_) {
        const auto* m = std::get_if<T>(&message);
        if (m == nullptr || m->save != save) continue;
        if constexpr (std::is_same_v<T, SaveVote>) {
          if (m->part != part) continue;
        }
        return *m;
      }
      return {};
    });
  }
  void step() {
    ASSERT_TRUE(state_.begin_write(now()).ok()) << "nobody reads the state";
    for (size_t i = 0; i < kValues; ++i) values_[i] += static_cast<float>(i % 97) + 1;
    state_.end_write();
  }
  SaveOpen opened(uint64_t save, Version version, std::vector<MemberId> participants, Tier tier) const {
    SaveOpen open;
    open.save = save;
    open.version = version;
    open.lineage = lineage_;
    open.participants = std::move(participants);
    open.tier = tier;
    return open;
  }
  void publish(uint64_t save, std::vector<ByteBuffer> records, Tier tier, Version version) {
    tiers_->publish({save, std::move(records), tier});
    const auto published = said<SavePublished>(save);
    ASSERT_TRUE(published && published->published) << (published ? published->why : "no answer");
    tiers_->closed({save, true, "", version, tier});
  }
  void save_locally(Version version) {
    const uint64_t save = 1000 + static_cast<uint64_t>(version);
    ASSERT_TRUE(tiers_->local()->hold(version, false, now() + kSecond));
    tiers_->open(opened(save, version, {kSelf}, Tier::kLocal));
    const auto vote = said<SaveVote>(save);
    ASSERT_TRUE(vote && vote->written) << (vote ? vote->why : "no vote");
    publish(save, {vote->record}, Tier::kLocal, version);
    ASSERT_TRUE(emitted(EventKind::kSaveVerified, version));
  }
  uint64_t drain(Version version, std::vector<MemberId> participants = {kSelf}) {
    const uint64_t save = 2000 + static_cast<uint64_t>(version);
    SaveOpen open = opened(save, version, std::move(participants), Tier::kShared);
    open.drain = true;
    tiers_->open(open);
    return save;
  }
  // Of the newest version in a folder.
  std::vector<float> read(const std::string& folder, Version version) {
    std::vector<float> values(kValues);
    auto look = checkpoint::Folder::look(real_files(), folder);
    EXPECT_TRUE(look.ok());
    const auto versions = look->versions();
    EXPECT_TRUE(versions.ok() && !versions->empty());
    if (!versions.ok() || versions->empty() || !versions->front().manifest) return {};
    EXPECT_EQ(versions->front().id.version, static_cast<uint64_t>(version));
    auto reader =
        checkpoint::StateReader::open(real_files(), versions->front().folder, versions->front().manifest);
    EXPECT_TRUE(reader.ok());
    const Status status = reader->read(0, 0, std::as_writable_bytes(std::span(values)));
    EXPECT_TRUE(status.ok()) << status.error().message;
    return values;
  }
  std::string local_folder() const { return folder_ + "/local/node-a"; }
  // The save of a version in the node's folder; empty: there is none.
  std::string local_save(Version version) const {
    for (const auto& entry : std::filesystem::directory_iterator(local_folder())) {
      const auto id = checkpoint::parse_save_name(entry.path().filename().string());
      if (id && id->version == static_cast<uint64_t>(version)) return entry.path().string();
    }
    return "";
  }

  std::string folder_;
  std::vector<float> values_ = std::vector<float>(kValues, 0.5F);
  State state_;
  Lineage lineage_ = {{{5, 1}, 0}};
  std::optional<Tiers> tiers_;
};

TEST_F(TierDrain, TheStateGoesOnAndWhatTheNodeSavedIsSaved) {
  save_locally(4);
  const std::vector<float> at_4 = values_;
  step();
  ASSERT_TRUE(state_.begin_write(now()).ok());
  const uint64_t save = drain(4);
  const auto vote = said<SaveVote>(save);  // while an update is open
  ASSERT_TRUE(vote && vote->written) << (vote ? vote->why : "no vote");
  state_.end_write();
  EXPECT_EQ(vote->stalled, 0);
  publish(save, {vote->record}, Tier::kShared, 4);
  EXPECT_EQ(read(folder_ + "/shared", 4), at_4);
  EXPECT_EQ(tiers_->shared().durable(), 4);
}

// The job has gone back since, and made the version again; or has never made it (rule 25).
TEST_F(TierDrain, AVersionOfAnotherHistoryIsNotTaken) {
  save_locally(4);
  lineage_.push_back({{5, 2}, 3});
  const auto vote = said<SaveVote>(drain(4));
  ASSERT_TRUE(vote.has_value());
  EXPECT_FALSE(vote->written);
  EXPECT_THAT(vote->why, HasSubstr("it is of another history"));
  const auto missing = said<SaveVote>(drain(5));
  ASSERT_TRUE(missing.has_value());
  EXPECT_THAT(missing->why, HasSubstr("save of version 5, in " + local_folder() + ", cannot be drained"));
}

TEST_F(TierDrain, ADamagedFileFailsTheDrainAloneAndIsNamed) {
  save_locally(3);
  const auto before = said<SaveVote>(drain(3));
  ASSERT_TRUE(before && before->written);
  publish(2003, {before->record}, Tier::kShared, 3);
  step();
  save_locally(4);
  std::string shard;
  for (const auto& entry : std::filesystem::directory_iterator(local_save(4))) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("shard-")) shard = entry.path().string();
  }
  std::fstream(shard, std::ios::in | std::ios::out | std::ios::binary).seekp(700'000) << "not what it was";
  const auto vote = said<SaveVote>(drain(4));
  ASSERT_TRUE(vote.has_value());
  EXPECT_FALSE(vote->written);
  EXPECT_THAT(vote->why, HasSubstr(shard.substr(shard.rfind("shard-"))));
  tiers_->closed({2004, false, vote->why, 4});
  read(folder_ + "/shared", 3);
  save_locally(5);
  const auto after = said<SaveVote>(drain(5));
  EXPECT_TRUE(after && after->written) << "the next one is as good as ever";
}

// The other rank, which is to make the save's folder, is late.
TEST_F(TierDrain, RetentionLeavesTheVersionThatIsReadAlone) {
  for (const Version version : {4, 5}) save_locally(version);
  const uint64_t save = drain(4, {kOther, kSelf});
  for (const Version version : {6, 7, 8}) save_locally(version);
  // Reason for the wait: the removal that must not come would come now.
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(local_save(5), "") << "two are kept";
  EXPECT_NE(local_save(4), "");
  tiers_->closed({save, false, "a test's end", 4});
  EXPECT_TRUE(emitted(EventKind::kDecided, 4, "removed " + local_folder()));
  EXPECT_EQ(local_save(4), "") << "and this one no longer";
}

TEST_F(TierDrain, TheOtherRanksPartIsReadTooWhereThatIsLost) {
  save_locally(4);
  const std::vector<float> at_4 = values_;
  const uint64_t save = drain(4, {kSelf, kOther});
  step();
  SaveRewrite rewrite{save, 1, 4, {5, 1}};
  tiers_->rewrite(rewrite, std::nullopt);  // its state has gone on
  const auto own = said<SaveVote>(save);
  const auto others = said<SaveVote>(save, 1);
  ASSERT_TRUE(own && own->written && others && others->written) << (others ? others->why : "no vote");
  EXPECT_EQ(others->held_in, (control::Generation{5, 1}));
  publish(save, {own->record, others->record}, Tier::kShared, 4);
  EXPECT_EQ(read(folder_ + "/shared", 4), at_4);
}

// Its leader has given the drain up, or is lost.
TEST_F(TierDrain, AStopSaveDoesNotWaitForIt) {
  save_locally(4);
  drain(4, {kOther, kSelf});  // which waits for the other one's folder
  const Instant began = now();
  SaveOpen stop = opened(3000, 6, {kSelf}, Tier::kShared);
  stop.stop = true;
  tiers_->open(stop);
  const auto vote = said<SaveVote>(3000);
  EXPECT_TRUE(vote && vote->written) << (vote ? vote->why : "no vote");
  EXPECT_LT(now() - began, 10 * kSecond) << "the folder is waited for three times as long";
}

TEST_F(TierDrain, AProcessWithoutSavesOfItsNodeRefuses) {
  Saver alone(
      state_, SaveOptions{.folder = folder_ + "/shared"}, checkpoint::JobConstants{}, 1,
      [this](Message message) { note(messages_, std::move(message)); },
      [this](Event event) { note(events_, std::move(event)); });
  SaveOpen open = opened(77, 4, {kSelf}, Tier::kShared);
  open.drain = true;
  alone.open(open, kSelf);
  const auto vote = said<SaveVote>(77);
  ASSERT_TRUE(vote.has_value());
  EXPECT_FALSE(vote->written);
  EXPECT_THAT(vote->why, HasSubstr("no checkpoint_local_dir"));
}

}  // namespace
}  // namespace muster
