#include "runtime/restore_choice.h"

#include <gtest/gtest.h>

namespace muster {
namespace {

using checkpoint::Lineage;

const Lineage kFirst = {{7, 1, 0}};
const Lineage kSecond = {{7, 1, 0}, {7, 2, 100}};  // went on from version 100

FoundSave save(uint64_t version, uint64_t nonce, Lineage lineage = kFirst) {
  return {{version, nonce}, std::move(lineage), false};
}

// What is tried, in words: tier, version, nonce, readers.
std::vector<std::string> tried(const RestoreChoice& choice) {
  std::vector<std::string> words;
  for (const Proposal& proposal : choice.proposals) {
    std::string text = proposal.tier == Tier::kLocal ? "local " : "shared ";
    text += std::to_string(proposal.save.id.version) + "/" + std::to_string(proposal.save.id.nonce) + " by";
    for (const int rank : proposal.readers) text += " " + std::to_string(rank);
    words.push_back(text);
  }
  return words;
}
using Words = std::vector<std::string>;

TEST(RestoreChoice, NewestFirstAndTheNearerOfEqualVersions) {
  std::vector<FoundByRank> ranks(3);
  ranks[0] = {true, 0, kFirst, {save(20, 1), save(10, 2)}, {}};
  ranks[1].local = ranks[2].local = {save(30, 3), save(20, 4)};
  EXPECT_EQ(tried(choose_restore(ranks)), (Words{"local 30/3 by 1 2", "local 20/4 by 1 2",
                                                 "shared 20/1 by 0 1 2", "shared 10/2 by 0 1 2"}));
}

// One after the other, so that one node's damaged disk does not cost the version.
TEST(RestoreChoice, EachNodesSaveOfAVersionIsTriedByItself) {
  std::vector<FoundByRank> ranks(2);
  ranks[0] = {true, 0, kFirst, {}, {save(30, 3)}};
  ranks[1].local = {save(30, 5)};
  EXPECT_EQ(tried(choose_restore(ranks)), (Words{"local 30/5 by 1", "local 30/3 by 0"}));
}

TEST(RestoreChoice, WhatTheRecordAbandonedDoesNotCount) {
  std::vector<FoundByRank> ranks(2);
  ranks[0] = {true, 0, kSecond, {save(100, 1)}, {save(110, 2, kSecond)}};
  ranks[1].local = {save(150, 3), save(90, 4)};
  EXPECT_EQ(tried(choose_restore(ranks)),
            (Words{"local 110/2 by 0", "shared 100/1 by 0 1", "local 90/4 by 1"}));
}

// Node 1 was an update ahead when it was lost, and had saved it; the others went on from the version before.
TEST(RestoreChoice, WhatAViewChangeLeftBehindDoesNotCountEither) {
  std::vector<FoundByRank> ranks(2);
  ranks[0] = {true, 0, kFirst, {}, {save(100, 2, kSecond)}};
  ranks[1].local = {save(101, 3)};
  EXPECT_EQ(tried(choose_restore(ranks)), (Words{"local 100/2 by 0"}));
  ranks[0].local.clear();
  ranks[0].shared = {save(100, 2, kSecond)};
  EXPECT_EQ(tried(choose_restore(ranks)), (Words{"shared 100/2 by 0 1"})) << "the shared folder tells, too";
}

TEST(RestoreChoice, WithoutARecordNodesHaveOtherJobsSaves) {
  std::vector<FoundByRank> ranks(1);
  ranks[0] = {true, 0, {}, {save(10, 1)}, {save(30, 3)}};
  EXPECT_EQ(tried(choose_restore(ranks)), (Words{"shared 10/1 by 0"}));
}

// A launch that saved in the shared folder alone wrote no record; node 0's saves are of the one before.
TEST(RestoreChoice, BesideASharedSaveThatNoRecordTellsOfNoNodesSaveCounts) {
  std::vector<FoundByRank> ranks(1);
  ranks[0] = {true, 0, kFirst, {save(20, 1, {{8, 1, 0}})}, {save(50, 3)}};
  EXPECT_EQ(tried(choose_restore(ranks)), (Words{"shared 20/1 by 0"}));
  ranks[0].shared = {save(120, 1, kSecond)};  // of a view since the record
  EXPECT_EQ(tried(choose_restore(ranks)), (Words{"shared 120/1 by 0", "local 50/3 by 0"}));
}

TEST(RestoreChoice, ABeginningIsRecordedWhereARecordOrANodesSavesAre) {
  std::vector<FoundByRank> ranks(2);
  EXPECT_FALSE(choose_restore(ranks).needs_record);
  ranks[1].saves_locally = true;
  EXPECT_TRUE(choose_restore(ranks).needs_record);
  ranks[1].saves_locally = false;
  ranks[0].branch = kFirst;
  EXPECT_TRUE(choose_restore(ranks).needs_record) << "of a launch that this one does not go on from";
}

TEST(RestoreChoice, OnlyRankZerosViewOfTheSharedFolderCounts) {
  std::vector<FoundByRank> ranks(2);
  ranks[1] = {false, 4, kFirst, {save(10, 1)}, {}};
  const RestoreChoice choice = choose_restore(ranks);
  EXPECT_TRUE(choice.proposals.empty());
  EXPECT_FALSE(choice.has_any());
  EXPECT_FALSE(choice.needs_record);
}

Proposal taken(Tier tier, uint64_t version, const Lineage& lineage) {
  return {tier, save(version, 3, lineage), {0}};
}

// Nobody has read it where the run goes on from a node's save.
TEST(RestoreChoice, OfTheSharedFolderCountsWhatIsReadOrWasVerified) {
  std::vector<FoundByRank> ranks(1);
  FoundSave verified = save(10, 2);
  verified.verified = true;
  ranks[0] = {true, 0, kFirst, {save(20, 1), verified}, {}};
  const RestoreChoice choice = choose_restore(ranks);
  EXPECT_EQ(choice.durable_at(taken(Tier::kShared, 20, kFirst)), 20);
  EXPECT_EQ(choice.durable_at(taken(Tier::kLocal, 25, kFirst)), 10) << "20 may be damaged";
  EXPECT_EQ(choice.durable_at(taken(Tier::kLocal, 10, kFirst)), control::kNoVersion) << "it is saved anew";
  EXPECT_EQ(choice.durable_at(taken(Tier::kLocal, 25, {{8, 1, 0}})), control::kNoVersion)
      << "of another history";
}

// Their saves of one version have different ids: after a restart all but one saved it again.
TEST(RestoreChoice, ANodeThatHasTheVersionNeedNotSaveIt) {
  std::vector<FoundByRank> ranks(3);
  FoundSave other = save(30, 5);
  other.verified = true;
  ranks[0].local = {save(30, 3)};
  ranks[1].local = ranks[2].local = {other};
  const std::vector<int> first = {0}, second = {1, 2};
  EXPECT_TRUE(node_has(ranks, first, save(30, 3), {})) << "it was read";
  EXPECT_TRUE(node_has(ranks, second, save(30, 3), {}));
  EXPECT_FALSE(node_has(ranks, second, save(30, 3), std::vector{other.id})) << "it is damaged";
  EXPECT_FALSE(node_has(ranks, second, save(30, 3, kSecond), {})) << "of another history";
  EXPECT_FALSE(node_has(ranks, second, save(40, 3), {}));
  ranks[2].local[0].verified = false;
  EXPECT_FALSE(node_has(ranks, second, save(30, 3), {})) << "all of the node or none";
}

TEST(RestoreChoice, WhatCouldNotBeReadIsNotAbandonedForAnOlderVersion) {
  UnreadSaves unread;
  EXPECT_TRUE(unread.may_try(taken(Tier::kLocal, 30, kFirst)).ok());
  EXPECT_TRUE(unread.none().ok());
  unread.add(taken(Tier::kLocal, 30, kFirst), {ErrorCode::kEnvironment, "no memory"});
  EXPECT_TRUE(unread.may_try(taken(Tier::kShared, 30, kFirst)).ok()) << "the same version";
  const Status older = unread.may_try(taken(Tier::kShared, 20, kFirst));
  ASSERT_FALSE(older.ok());
  EXPECT_EQ(older.error().message, "no memory");
  EXPECT_FALSE(unread.none().ok()) << "and the run does not begin anew";
}

// It would begin anew where all it has turns out damaged.
TEST(RestoreChoice, AJobWhoseSavesAreAllOfItsNodesIsNotAtItsBeginning) {
  std::vector<FoundByRank> ranks(1);
  ranks[0] = {true, 0, kFirst, {}, {save(30, 3), save(20, 4)}};
  const RestoreChoice choice = choose_restore(ranks);
  EXPECT_TRUE(choice.has_any());
  EXPECT_EQ(choice.count(Tier::kLocal), 2U);
  EXPECT_EQ(choice.count(Tier::kShared), 0U);
  ranks[0].branch.clear();
  EXPECT_FALSE(choose_restore(ranks).has_any()) << "of another job";
}

// Whose version and history nobody knows, and which a person may still mend.
TEST(RestoreChoice, WhatIsDamagedOrCannotBeJudgedOnANodeIsNoBeginningEither) {
  std::vector<FoundByRank> damaged(2), unjudged(2);
  damaged[0].branch = unjudged[0].branch = kFirst;
  damaged[1].local_rejected = 2;
  unjudged[1].unjudged = true;
  EXPECT_TRUE(choose_restore(damaged).has_any());
  EXPECT_EQ(choose_restore(damaged).local_rejected, 2U);
  EXPECT_TRUE(choose_restore(unjudged).has_any());
  EXPECT_EQ(choose_restore(unjudged).unjudged, std::vector{1});
  damaged[0].branch = unjudged[0].branch = {};
  EXPECT_FALSE(choose_restore(damaged).has_any()) << "of another job";
  EXPECT_FALSE(choose_restore(unjudged).has_any());
  unjudged[0].branch = kFirst;
  unjudged[0].shared = {save(20, 1, {{8, 1, 0}})};  // of a launch that the record does not know
  EXPECT_TRUE(choose_restore(unjudged).unjudged.empty()) << "nothing there would count";
}

TEST(RestoreChoice, WordsSurviveAndCutOnesAreRefused) {
  FoundByRank found = {true, 3, kSecond, {save(20, 1)}, {save(30, 3, kSecond), save(25, 4)}, 5, true};
  found.local[0].verified = true;
  ByteBuffer bytes = encode(found);
  EXPECT_EQ(decode_found(bytes).value(), found);
  for (size_t size = 0; size < bytes.size(); ++size) {
    const auto cut = decode_found(ByteSpan(bytes).first(size));
    ASSERT_FALSE(cut.ok()) << size;
    EXPECT_EQ(cut.error().code, ErrorCode::kMisuse);
  }
  bytes.resize(bytes.size() + sizeof(uint64_t));
  EXPECT_FALSE(decode_found(bytes).ok());
}

}  // namespace
}  // namespace muster
