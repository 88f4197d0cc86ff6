// Seeded mutations of everything that is parsed: it is refused or read, never more. Run under sanitizers. A
// digest guards the real files, so the parsers behind it are fed texts whose digest was made right again.
#include <gtest/gtest.h>

#include <cstdlib>

#include "checkpoint/parity_file.h"
#include "checkpoint/safetensors.h"
#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

int rounds() {
  const char* wanted = std::getenv("MUSTER_TEST_FUZZ_ROUNDS");
  return wanted != nullptr ? std::atoi(wanted) : 4000;
}

std::string mutated(std::string text, SeededRandom& random) {
  static const char* const kWords[] = {"0",
                                       "-1",
                                       "18446744073709551615",
                                       "9223372036854775808",
                                       "1e999",
                                       "null",
                                       "[]",
                                       "{}",
                                       "\"\"",
                                       "[[[[[[[[[[[[",
                                       "\\u0000",
                                       "float32",
                                       "4611686018427387904"};
  for (uint64_t change = 1 + random.below(4); change > 0 && !text.empty(); --change) {
    const size_t at = random.below(text.size());
    switch (random.below(5)) {
      case 0:
        text[at] = static_cast<char>(random.next());
        break;
      case 1:
        text.erase(at, 1 + random.below(20));
        break;
      case 2:
        text.insert(at, kWords[random.below(std::size(kWords))]);
        break;
      case 3:
        text.insert(at, text.substr(random.below(text.size()), random.below(60)));
        break;
      default: {  // a number becomes another one
        const size_t digit = text.find_first_of("0123456789", at);
        if (digit == std::string::npos) break;
        const size_t end = text.find_first_not_of("0123456789", digit);
        text.replace(digit, end - digit, kWords[random.below(4)]);
      }
    }
  }
  return text;
}

TEST(Fuzz, Manifests) {
  SeededRandom random(1);
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  const auto manifest =
      save(files, *folder, WholeState::random(random_specs(random, 6), 1), {3, 4}, {.participants = 3});
  ASSERT_OK(manifest);
  const std::string with_line = encode(*manifest);
  const std::string text = without_digest_line(as_bytes(with_line), "m").value();
  int accepted = 0;
  for (int i = 0; i < rounds(); ++i) {
    const std::string bytes = with_digest_line(mutated(text, random));
    const auto decoded = decode_manifest(as_bytes(bytes), "m");
    if (!decoded.ok()) {
      ASSERT_FALSE(decoded.error().message.empty());
      continue;
    }
    ++accepted;
    ASSERT_OK(decode_manifest(as_bytes(encode(*decoded)), "again"));
  }
  EXPECT_LT(accepted, rounds()) << "nothing was refused";
  EXPECT_GT(accepted, 0) << "changes of texts for display are read";
}

// Sealed again after the mutation, as only who has the key could: else nothing behind the seal is reached.
TEST(Fuzz, SealedManifests) {
  SeededRandom random(6);
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  const SealKeyPtr key = seal_key();
  folder->use_key(key);
  const WholeState state = WholeState::random(random_specs(random, 6), 1);
  const auto first = save(files, *folder, state, {3, 4}, {.participants = 3, .key = key});
  ASSERT_OK(first);
  const auto manifest =
      save(files, *folder, state, {4, 5}, {.participants = 3, .earlier = &*first, .key = key});
  ASSERT_OK(manifest);
  const std::string text = without_digest_line(as_bytes(encode_sealed(*manifest).value()), "m").value();
  const size_t seal_bytes = std::string("0\"}\n").size() - 1 + 2 * sizeof(crypto::Hash);
  int accepted = 0;
  for (int i = 0; i < rounds(); ++i) {
    std::string forged = mutated(text, random);
    const std::string unsealed = with_digest_line(forged);
    if (forged != text) {
      ASSERT_FALSE(decode_manifest(as_bytes(unsealed), "m", key).ok());
    }
    (void)decode_manifest(as_bytes(unsealed), "m");
    if (forged.size() < seal_bytes) continue;
    const size_t covered = forged.size() - seal_bytes;
    forged.replace(covered, 2 * sizeof(crypto::Hash),
                   to_hex(key->manifest_seal(forged.substr(0, covered)).value()));
    const auto decoded = decode_manifest(as_bytes(with_digest_line(forged)), "m", key);
    if (!decoded.ok()) {
      ASSERT_FALSE(decoded.error().message.empty());
      continue;
    }
    ++accepted;
    const auto again = encode_sealed(*decoded);
    ASSERT_OK(again);
    ASSERT_OK(decode_manifest(as_bytes(*again), "again", key));
  }
  EXPECT_LT(accepted, rounds()) << "nothing was refused";
  EXPECT_GT(accepted, 0) << "changes of texts for display are read";
}

TEST(Fuzz, SafetensorsHeaders) {
  SeededRandom random(2);
  const auto header = lay_out_safetensors(random_specs(random, 8), {{"format", "pt"}});
  ASSERT_OK(header);
  const std::string encoded = encode_safetensors(*header);
  const uint64_t data_bytes = header->tensors.back().bytes.end;
  int accepted = 0;
  for (int i = 0; i < rounds(); ++i) {
    const std::string json = mutated(encoded.substr(8), random);
    const auto decoded = decode_safetensors(as_bytes(json), 8 + json.size() + data_bytes, "s");
    if (!decoded.ok()) continue;
    ++accepted;
    uint64_t at = 0;
    for (const SafetensorsEntry& entry : decoded->tensors) {
      ASSERT_EQ(entry.bytes.begin, at) << json;
      at = entry.bytes.end;
    }
    ASSERT_EQ(at, data_bytes) << json;
  }
  EXPECT_LT(accepted, rounds());
}

// The table of a shard, and the file around it: whatever is changed, no wrong byte is handed out.
class FuzzShards : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(PlainAndSealed, FuzzShards, ::testing::Bool());

TEST_P(FuzzShards, AreReadRightOrNotAtAll) {
  SeededRandom random(3);
  const SealKeyPtr key = GetParam() ? seal_key() : nullptr;
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  const WholeState state =
      WholeState::random({{"w", DType::kFloat32, {300, 400}, 0}, {"b", DType::kInt8, {900}}}, 1);
  folder->use_key(key);
  const auto manifest = save(files, *folder, state, {3, 4}, {.key = key});
  ASSERT_OK(manifest);
  ByteBuffer& contents = files.contents(folder->save_folder({3, 4}) + "/" + shard_file_name(0, 100));
  const ByteBuffer good = contents;
  for (int i = 0; i < rounds() / 10; ++i) {
    contents = good;
    const bool in_table = random.chance(0.5);
    const size_t table = manifest->shards[0].geometry.table_offset();
    for (uint64_t change = 1 + random.below(3); change > 0; --change) {
      const size_t at = in_table ? table + random.below(good.size() - table) : random.below(good.size());
      contents[at] ^= static_cast<std::byte>(1 + random.below(255));
    }
    if (random.chance(0.1)) contents.resize(random.below(good.size() + 5000));
    const std::string outcome = compare_restored(files, *folder, *manifest, state, state.specs, 2);
    ASSERT_THAT(outcome, ::testing::Not(::testing::HasSubstr("differs"))) << "wrong bytes were accepted";
    if (contents != good) {
      ASSERT_FALSE(verify_shards(files, folder->save_folder({3, 4}), *manifest).ok());
    }
  }
}

// Headers of parity files: flipped, and changed with a digest that was made right again. What is read names a
// possible group and possible sizes; and none but the save's own is taken for its own.
TEST(Fuzz, ParityHeaders) {
  SeededRandom random(5);
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  const WholeState state = WholeState::random({{"w", DType::kFloat32, {300, 400}, 0}}, 1);
  ASSERT_OK(save(files, *folder, state, {3, 4}, {.participants = 3}));
  const std::string path = folder->save_folder({3, 4});
  const auto json = read_manifest_json(files, path, {3, 4});
  ASSERT_OK(json);
  ParityOutcome outcome;
  ASSERT_OK(verify_with_parity(files, path, *json, 2, outcome));
  const ParityLayout layout = ParityLayout::of(json->manifest, json->bytes, {0, 2});
  ByteBuffer& contents = files.contents(path + "/" + parity_file_name({0, 2}));
  const ByteBuffer good = contents;
  constexpr size_t kWords = 15, kCheck = kWords * 8;  // the digest follows them
  int accepted = 0;
  for (int i = 0; i < rounds(); ++i) {
    contents = good;
    for (uint64_t change = 1 + random.below(3); change > 0; --change) {
      const size_t word = random.below(kWords) * 8;
      if (word == 8) continue;  // the format: a later minor version is read
      uint64_t value = random.chance(0.5) ? random.below(9) : random.next() >> random.below(64);
      if (random.chance(0.3)) value *= 4096;
      std::memcpy(contents.data() + word, &value, sizeof value);
    }
    if (random.chance(0.9)) {
      const Digest check = digest_of(ByteSpan(contents).first(kCheck));
      std::memcpy(contents.data() + kCheck, &check, sizeof check);
    }
    const auto header = decode_parity_header(ByteSpan(contents).first(kBlockBytes));
    if (header.ok()) {
      ++accepted;
      ASSERT_LT(header->layout.name.group, header->layout.name.groups);
      ASSERT_LE(header->layout.name.groups, header->layout.participants);
      ASSERT_LE(header->layout.manifest_bytes, kManifestBytesMax);
    }
    const bool is_same = contents == good;
    auto parity = ParityFile::open(files, path, layout);
    ASSERT_OK(parity);
    ASSERT_EQ(parity->verify().ok(), is_same);
    const auto copy = manifest_from_parity(files, path, {3, 4});
    if (copy.ok()) {
      ASSERT_EQ(copy->bytes, json->bytes);
    }
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, rounds());
}

TEST(Fuzz, Votes) {
  SeededRandom random(4);
  const ByteBuffer good =
      encode(ShardRecord{{{7, 9}, 2, 3}, 11, {8192, 4096, true}, {1, 2}, {6, 8}, {5, 4}, 3, {12, 13, {}}});
  for (int i = 0; i < rounds(); ++i) {
    ByteBuffer bytes = good;
    bytes[random.below(bytes.size())] ^= static_cast<std::byte>(1 + random.below(255));
    ASSERT_FALSE(decode_shard_record(bytes).ok());
  }
}

}  // namespace
}  // namespace muster::testing
