// What OpenSSL computes for Muster, against published vectors and, where there are none, against values that
// Python's `cryptography` computed.
#include "runtime/crypto/crypto.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <thread>

namespace muster::crypto {
namespace {

ByteBuffer counting(int first, size_t count) {
  ByteBuffer bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(static_cast<size_t>(first) + i);
  return bytes;
}

std::string_view text_of(const ByteBuffer& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Key counting_key() {
  Key key;
  std::ranges::copy(counting(0, key.size()), key.begin());
  return key;
}

TEST(Crypto, Sha256OfFips180) {
  EXPECT_EQ(to_hex(sha256(as_bytes("abc")).value()),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

// RFC 4231, test case 1: HMAC fills shorter keys up with zeros.
TEST(Crypto, HmacOfRfc4231) {
  Key key{};
  std::fill_n(key.begin(), 20, std::byte{0x0b});
  EXPECT_EQ(to_hex(hmac_sha256(key, as_bytes("Hi There")).value()),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
}

// RFC 5869, test case 1: the first 32 bytes of 42, which do not depend on how many are asked for.
TEST(Crypto, HkdfOfRfc5869) {
  const ByteBuffer secret(22, std::byte{0x0b}), salt = counting(0, 13), info = counting(0xf0, 10);
  EXPECT_EQ(to_hex(derive_key(secret, text_of(salt), text_of(info)).value()),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf");
}

// "The Galois/Counter Mode of Operation", test case 13: all is zero, and nothing is there to authenticate.
TEST(Crypto, GmacOfTheModesOwnVectors) {
  EXPECT_EQ(to_hex(Gmac(Key{}).tag(0, {}).value()), "530f8afbc74536b9a963b4f1c4cb738b");
}

TEST(Crypto, GmacAgreesWithAnotherLibrary) {
  const Gmac gmac(counting_key());
  EXPECT_EQ(to_hex(gmac.tag(1, as_bytes("muster")).value()), "a78b9b55262561cb28a3a7b685a0b293");
  ByteBuffer bytes(100'003);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7);
  const Tag tag = gmac.tag(UINT64_MAX, bytes).value();
  EXPECT_EQ(to_hex(tag), "55599f70b5d4dbc5f371b901e04cbcdd");
  EXPECT_EQ(gmac.tag(UINT64_MAX, bytes).value(), tag) << "a context that was used before";
  bytes.back() ^= std::byte{1};
  EXPECT_NE(gmac.tag(UINT64_MAX, bytes).value(), tag);
}

TEST(Crypto, GmacFromManyThreads) {
  const Gmac gmac(counting_key());
  const ByteBuffer bytes = counting(3, 5000);
  std::vector<Tag> expected;
  for (uint64_t i = 0; i < 50; ++i) expected.push_back(Gmac(counting_key()).tag(i, bytes).value());
  std::vector<int> wrong(4);
  std::vector<std::thread> threads;
  for (int& mine : wrong) {
    threads.emplace_back([&] {
      for (uint64_t i = 0; i < 2000; ++i) mine += gmac.tag(i % 50, bytes).value() != expected[i % 50] ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(std::accumulate(wrong.begin(), wrong.end(), 0), 0);
}

TEST(Crypto, EqualAndForget) {
  ByteBuffer bytes = counting(1, 40);
  EXPECT_TRUE(equal(bytes, counting(1, 40)));
  EXPECT_FALSE(equal(bytes, counting(2, 40)));
  EXPECT_FALSE(equal(bytes, counting(1, 39)));
  forget(bytes);
  EXPECT_EQ(bytes, ByteBuffer(40));
}

}  // namespace
}  // namespace muster::crypto
