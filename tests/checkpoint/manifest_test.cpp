#include "checkpoint/manifest.h"

#include <gtest/gtest.h>

#include "runtime/base/clock.h"
#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::HasSubstr;

Manifest sample(uint32_t participants = 3) {
  Manifest manifest;
  manifest.id = {200, 0xfedcba9876543210ULL};
  manifest.lineage = {{UINT64_MAX, 1, 0}, {UINT64_MAX, 7, 150}};
  manifest.parent = {100, 5};
  manifest.job = {16, 8, UINT64_MAX, "int8 per lane", 2, 3};
  manifest.sample_position = 123456789;
  manifest.saved_at_ms = 1'800'000'000'000;
  manifest.saved_by = "host \"a\"\n";
  manifest.fence = 4;
  manifest.tensors = {
      {"wte", DType::kBFloat16, {300, 7}, 1}, {"scale", DType::kFloat64, {}}, {"ü/%", DType::kInt8, {0, 4}}};
  manifest.step_values["loss_scale"] = {std::byte{0}, std::byte{255}};
  manifest.step_values["empty"] = {};
  const auto plan = plan_save(manifest.tensors, participants);
  std::vector<ShardRecord> votes;
  for (uint32_t p = 0; p < participants; ++p)
    votes.push_back({{manifest.id, p, participants},
                     50 + p,
                     ShardGeometry::of(8192, shard_layout(*plan, p)),
                     {p, ~uint64_t{p}}});
  EXPECT_TRUE(adopt_shards(manifest, votes).ok());
  return manifest;
}

std::string refusal(std::string text) {
  const auto decoded = decode_manifest(as_bytes(text), "M");
  return decoded.ok() ? "" : decoded.error().message;
}

// With the digest made right again, so that the check behind it is reached.
std::string refusal_of_edit(const std::string& text, const std::string& from, const std::string& to) {
  std::string body = *without_digest_line(as_bytes(text), "M");
  const size_t at = body.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return refusal(with_digest_line(body.replace(at, from.size(), to)));
}
std::string refusal_of_edit(const std::string& from, const std::string& to) {
  return refusal_of_edit(encode(sample()), from, to);
}

TEST(Manifest, ComesBackTheSame) {
  const Manifest manifest = sample();
  const std::string text = encode(manifest);
  const auto decoded = decode_manifest(as_bytes(text), "M");
  ASSERT_OK(decoded);
  EXPECT_EQ(encode(*decoded), text);
  EXPECT_EQ(decoded->id, manifest.id);
  EXPECT_EQ(decoded->lineage, manifest.lineage);
  EXPECT_EQ(decoded->parent, manifest.parent);
  EXPECT_EQ(decoded->job, manifest.job);
  EXPECT_EQ(decoded->tensors, manifest.tensors);
  EXPECT_EQ(decoded->step_values, manifest.step_values);
  EXPECT_EQ(decoded->shards[2].root, manifest.shards[2].root);
  EXPECT_EQ(decoded->shards[1].writer_nonce, 51U);
}

TEST(Manifest, EveryFlippedOrMissingByteIsFound) {
  const std::string text = encode(sample());
  for (size_t i = 0; i < text.size(); ++i) {
    for (int bit : {0, 3, 7}) {
      std::string flipped = text;
      flipped[i] = static_cast<char>(flipped[i] ^ (1 << bit));
      ASSERT_THAT(refusal(flipped), HasSubstr("M is damaged")) << i;
    }
    ASSERT_THAT(refusal(text.substr(0, i)), HasSubstr("M is damaged")) << i;
  }
  EXPECT_THAT(refusal(text + " "), HasSubstr("M is damaged"));
}

TEST(Manifest, LaterFormatIsAClearSentence) {
  EXPECT_EQ(refusal_of_edit("\"format_major\":1", "\"format_major\":6"),
            "M has format version 6.0, and this Muster reads versions up to 5; resume with the Muster that "
            "wrote it, or a later one");
  EXPECT_EQ(refusal_of_edit("\"format_minor\":0", "\"format_minor\":9"), "");
}

// Readers of version 1 would have called such a shard damaged; so they refuse, in words, and do not fall
// back.
TEST(Manifest, ShardsOfEarlierSavesMakeItVersionTwo) {
  EXPECT_THAT(encode(sample()), HasSubstr("\"format_major\":1"));
  Manifest manifest = sample();
  manifest.shards[1].written_by = {150, 0xabc};
  const std::string text = encode(manifest);
  EXPECT_THAT(text, HasSubstr("\"format_major\":2"));
  const auto decoded = decode_manifest(as_bytes(text), "M");
  ASSERT_OK(decoded);
  EXPECT_EQ(encode(*decoded), text);
  EXPECT_TRUE(decoded->shares());
  EXPECT_EQ(decoded->shards[1].written_by, (VersionId{150, 0xabc}));
  EXPECT_EQ(decoded->shards[0].written_by, VersionId{});
  EXPECT_EQ(decoded->shard(1).identity_in_file().id, (VersionId{150, 0xabc}));
  EXPECT_EQ(decoded->shard(0).identity_in_file().id, manifest.id);

  const std::string body = *without_digest_line(as_bytes(text), "M");
  const auto edited = [&](const std::string& from, const std::string& to) {
    std::string changed = body;
    const size_t at = changed.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return refusal(with_digest_line(changed.replace(at, from.size(), to)));
  };
  EXPECT_THAT(edited("\"format_major\":2", "\"format_major\":1"), HasSubstr("another save wrote"));
  EXPECT_THAT(edited(",150,\"0000000000000abc\"", ",150"), HasSubstr("'shards[1]'"));
  EXPECT_THAT(edited(",150,\"0000000000000abc\"", ",150,\"0000000000000000\""), HasSubstr("'shards[1]'"));
  EXPECT_THAT(edited(",150,\"0000000000000abc\"", ",-1,\"0000000000000abc\""), HasSubstr("'shards[1]'"));
  EXPECT_THAT(edited(",150,\"0000000000000abc\"", ",200,\"fedcba9876543210\""), HasSubstr("twice"));
}

// A reader that does not know of it reads the version all the same, so it is a matter of the minor version.
TEST(Manifest, ClonedSlabsMakeItAnotherMinorVersion) {
  Manifest manifest = sample();
  manifest.shards[1].shares_with = {150, 0xabc};
  manifest.shards[1].shared_slabs = 1;
  const std::string text = encode(manifest);
  EXPECT_THAT(text, HasSubstr("\"format_major\":1,\"format_minor\":1"));
  const auto decoded = decode_manifest(as_bytes(text), "M");
  ASSERT_OK(decoded);
  EXPECT_EQ(encode(*decoded), text);
  EXPECT_TRUE(decoded->clones());
  EXPECT_FALSE(decoded->shares());
  EXPECT_EQ(decoded->shard(1).origin(), (VersionId{150, 0xabc}));
  EXPECT_EQ(decoded->shard(1).shared_slabs, 1U);
  EXPECT_EQ(decoded->shard(1).identity_in_file().id, manifest.id);
  EXPECT_EQ(decoded->shard(0).origin(), manifest.id);
  // Linked by a later save, it is still one of the same origin.
  manifest.shards[1].written_by = {170, 0xdef};
  const auto linked = decode_manifest(as_bytes(encode(manifest)), "M");
  ASSERT_OK(linked);
  EXPECT_EQ(linked->shard(1).identity_in_file().id, (VersionId{170, 0xdef}));
  EXPECT_EQ(linked->shard(1).origin(), (VersionId{150, 0xabc}));

  const std::string body = *without_digest_line(as_bytes(text), "M");
  const std::string clone = "[1,150,\"0000000000000abc\",1]";
  for (const char* wrong :
       {"[9,150,\"0000000000000abc\",1]", "[1,150,\"0000000000000abc\",0]", "[1,150,\"0000000000000000\",1]",
        "[1,150,\"0000000000000abc\",9999999]", "[1,200,\"fedcba9876543210\",1]", "[1,150]", "7",
        "[1,150,\"0000000000000abc\",1],[1,150,\"0000000000000abc\",1]"}) {
    std::string changed = body;
    const size_t at = changed.find(clone);
    ASSERT_NE(at, std::string::npos);
    EXPECT_THAT(refusal(with_digest_line(changed.replace(at, clone.size(), wrong))), HasSubstr("'clones["))
        << wrong;
  }
}

TEST(Manifest, OwnersOfShardsMakeItVersionThree) {
  Manifest manifest;
  manifest.id = {5, 9};
  manifest.tensors = {{"m", DType::kFloat32, {10'000}, kSharded}};
  manifest.shard_owners = {1, 0, 1, 1};
  const auto plan = plan_save(manifest.tensors, 2, manifest.shard_owners);
  ASSERT_OK(plan);
  for (uint32_t p = 0; p < 2; ++p) {
    const auto bytes = round_up(shard_layout(*plan, p).bytes, kBlockBytes);
    manifest.shards.push_back({7, {kBlockBytes, bytes}, {1, 2}, {}});
  }
  const std::string text = encode(manifest);
  EXPECT_THAT(text, HasSubstr("\"format_major\":3"));
  const auto back = decode_manifest(as_bytes(text), "m");
  ASSERT_OK(back);
  EXPECT_EQ(back->shard_owners, manifest.shard_owners);
  EXPECT_EQ(back->tensors, manifest.tensors);

  const auto edited = [&](const std::string& from, const std::string& to) {
    return refusal_of_edit(text, from, to);
  };
  EXPECT_THAT(edited("[1,0,1,1]", "[1,0,1,2]"), HasSubstr("shard 3 is saved by participant 2 of 2"));
  EXPECT_THAT(edited("[1,0,1,1]", "[1,0,0,1]"), HasSubstr("payload of shard 0")) << "another's lengths";
  EXPECT_THAT(edited("[1,0,1,1]", "[]"), HasSubstr("nobody is said to save"));
  EXPECT_THAT(edited("[1,0,1,1]", "[-1]"), HasSubstr("shard_owners[0]"));
  EXPECT_THAT(edited("\"format_major\":3", "\"format_major\":2"), HasSubstr("nobody is said to save"));
}

TEST(Manifest, HostileFieldsAreNamed) {
  EXPECT_THAT(refusal_of_edit("\"version\":200", "\"version\":-1"),
              HasSubstr("field 'version' is not a number"));
  EXPECT_THAT(refusal_of_edit("\"version\":200", "\"version\":\"200\""), HasSubstr("'version'"));
  EXPECT_THAT(refusal_of_edit("\"version\":200", "\"version\":1e300"), HasSubstr("'version'"));
  EXPECT_THAT(refusal_of_edit(",\"version\":200", ""), HasSubstr("'version' is missing"));
  EXPECT_THAT(refusal_of_edit("\"lanes\":8", "\"lanes\":null"), HasSubstr("'job.lanes'"));
  EXPECT_THAT(refusal_of_edit("\"bfloat16\"", "\"complex\""), HasSubstr("'tensors[0]'"));
  EXPECT_THAT(refusal_of_edit("[300,7],1", "[300,7],2"), HasSubstr("'wte' is split"));
  EXPECT_THAT(refusal_of_edit("[300,7],1", "[300,7],-9223372036854775808"), HasSubstr("'tensors[0]'"));
  EXPECT_THAT(refusal_of_edit("[300,7],1", "[9000,7],1"), HasSubstr("payload of shard"));
  EXPECT_THAT(refusal_of_edit("[300,7],1", "[18446744073709551615,18446744073709551615],1"),
              HasSubstr("too large"));
  EXPECT_THAT(refusal_of_edit("\"scale\"", "\"wte\""), HasSubstr("two tensors are named"));
  EXPECT_THAT(refusal_of_edit(",8192,", ",8193,"), HasSubstr("'shards[0]'"));
  EXPECT_THAT(refusal_of_edit(",8192,", ",1099511627776,"), HasSubstr("more than it can"));
  for (const char* version : {"9223372036854775808", "18446744073709551615"})
    EXPECT_THAT(refusal_of_edit("\"version\":200", std::string("\"version\":") + version),
                HasSubstr("is more than 9223372036854775807"));
  EXPECT_THAT(refusal_of_edit("\"slab_bytes\":262144", "\"slab_bytes\":0"), HasSubstr("slab_bytes"));
  EXPECT_THAT(refusal_of_edit("00ff", "00f"), HasSubstr("step_values.loss_scale"));
  EXPECT_THAT(refusal_of_edit("{", "["), HasSubstr("not JSON"));
  EXPECT_THAT(refusal(with_digest_line(std::string(100'000, '['))), HasSubstr("not JSON"));
  EXPECT_THAT(refusal(with_digest_line("{}")), HasSubstr("not a checkpoint's manifest"));
  EXPECT_THAT(refusal(with_digest_line("[]")), HasSubstr("not JSON"));
  EXPECT_THAT(refusal(with_digest_line("")), HasSubstr("not JSON"));
}

// Random edits of the text behind a right digest: an answer or a refusal, never a crash.
TEST(Manifest, RandomEditsAreSurvived) {
  const std::string body = *without_digest_line(as_bytes(encode(sample())), "M");
  SeededRandom random(1);
  int accepted = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string edited = body;
    for (uint64_t n = 1 + random.below(4); n > 0; --n) {
      const size_t at = random.below(edited.size());
      if (random.chance(0.5))
        edited[at] = static_cast<char>(random.next());
      else
        edited.erase(at, 1 + random.below(20));
    }
    accepted += refusal(with_digest_line(edited)).empty() ? 1 : 0;
  }
  EXPECT_LT(accepted, 20'000);
}

TEST(Manifest, VotesMustBeComplete) {
  Manifest manifest = sample(3);
  std::vector<ShardRecord> votes{manifest.shard(2), manifest.shard(0), manifest.shard(1)};
  EXPECT_TRUE(adopt_shards(manifest, votes).ok());
  const auto refused = [&](std::vector<ShardRecord> list) {
    Manifest copy = manifest;
    const Status status = adopt_shards(copy, list);
    return status.ok() ? "" : status.error().message;
  };
  EXPECT_THAT(refused({votes[0], votes[1]}), HasSubstr("there are 2 votes"));
  EXPECT_THAT(refused({votes[0], votes[1], votes[1]}), HasSubstr("participant 0 voted twice"));
  auto other = votes;
  other[1].identity.id.nonce = 1;
  EXPECT_THAT(refused(other), HasSubstr("participant 0 voted for version 200 (save 0000000000000001)"));
  other = votes;
  other[2].geometry.payload_bytes += 4096;
  EXPECT_THAT(refused(other), HasSubstr("payload of shard 1"));
  EXPECT_THAT(refused({}), HasSubstr("no shards"));
}

TEST(Manifest, JobConstantsAreCompared) {
  const JobConstants job = sample().job;
  EXPECT_TRUE(check_same_job(job, job).ok());
  JobConstants other = job;
  other.lanes = 4;
  EXPECT_EQ(
      check_same_job(job, other).error().message,
      "the checkpoint was made with lanes = 8 and this run has 4; resume with the same value, or start in "
      "another folder");
  other = job;
  other.codec = "none";
  EXPECT_THAT(check_same_job(job, other).error().message, HasSubstr("codec = 'int8 per lane'"));
}

// 10,000 ranks and 1,000 tensors: small, and read without planning every byte.
TEST(Manifest, StaysSmallAtScale) {
  Manifest manifest;
  manifest.id = {1'000'000, random_nonce()};
  for (int t = 0; t < 1000; ++t)
    manifest.tensors.push_back(
        {"transformer.layers." + std::to_string(t / 10) + ".attention.weight." + std::to_string(t % 10),
         DType::kBFloat16,
         {12288, 4096},
         t % 3 - 1});
  const auto plan = plan_save(manifest.tensors, 10'000);
  ASSERT_OK(plan);
  std::vector<ShardRecord> votes;
  for (uint32_t p = 0; p < 10'000; ++p)
    votes.push_back({{manifest.id, p, 10'000},
                     random_nonce(),
                     ShardGeometry::of(389'120, shard_layout(*plan, p)),
                     {random_nonce(), random_nonce()}});
  ASSERT_OK(adopt_shards(manifest, votes));
  const std::string text = encode(manifest);
  EXPECT_LE(text.size(), 4U * 1024 * 1024);
  const Instant begin = now();
  const auto decoded = decode_manifest(as_bytes(text), "M");
  const double decode_s = seconds(now() - begin);
  ASSERT_OK(decoded);
  RecordProperty("manifest_bytes", static_cast<int>(text.size()));
  RecordProperty("decode_ms", static_cast<int>(decode_s * 1000));
}

}  // namespace
}  // namespace muster::testing
