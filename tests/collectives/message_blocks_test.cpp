// What the tests of operations do not show of blocks: when there is none, names that make no sense, and how
// long the memory lives.
#include "collectives/node/message_blocks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <thread>

#include "collectives/core.h"
#include "runtime/base/clock.h"
#include "tests/collectives/world.h"

namespace muster {
namespace {

const Generation kGeneration{0x1234, 7};

// A process of the node, as far as blocks need one.
struct Process {
  std::shared_ptr<Core> core = Core::start(nullptr).value();
  uint64_t nonce = random_nonce();
  std::unique_ptr<LocalListener> listener = LocalListener::open(core, nonce).value();

  ~Process() {
    listener.reset();
    core->stop();
  }
  Contact contact() const { return {.nonce = nonce, .local_socket = listener->name()}; }
};

ByteBuffer pattern(size_t bytes, int seed) {
  ByteBuffer all(bytes);
  for (size_t i = 0; i < bytes; ++i)
    all[i] = static_cast<std::byte>((i * 7 + static_cast<size_t>(seed)) % 251);
  return all;
}

// Ranks 1, 4 and 6 of a group are on this node.
class Blocks : public ::testing::Test {
 protected:
  static constexpr int kRanks[] = {1, 4, 6};

  std::unique_ptr<MessageBlocks> open(size_t own, const Generation& generation = kGeneration) {
    std::vector<MessageBlocks::Rank> mates;
    for (size_t other = 0; other < 3; ++other) {
      if (other != own) mates.push_back({kRanks[other], processes[other].contact()});
    }
    return MessageBlocks::open(*processes[own].core, *processes[own].listener, processes[own].nonce,
                               generation, kRanks[own], std::move(mates));
  }

  ~Blocks() override {
    for (size_t i = 0; i < 3; ++i) close(i);
  }
  void close(size_t i) {
    const std::lock_guard lock(processes[i].core->mutex());
    blocks[i].reset();
  }

  // Listeners read what came on the progress threads of their cores.
  bool link_until(const std::function<bool()>& done) {
    const Instant deadline = now() + 20 * kSecond;
    while (!done() && now() < deadline) {
      for (size_t i = 0; i < 3; ++i) {
        const std::lock_guard lock(processes[i].core->mutex());
        if (blocks[i] != nullptr) blocks[i]->link();
      }
      // Reason for the wait: what came is read by the cores' progress threads, which tell nobody; up to the
      // deadline.
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return done();
  }
  // A name that rank `to` knows, or none yet.
  bool is_linked(size_t from, size_t to) {
    const auto name = blocks[from]->put(kRanks[to], large);
    if (!name) return false;
    blocks[to]->release(kRanks[from], *name);
    return true;
  }
  void open_all() {
    for (size_t i = 0; i < 3; ++i) blocks[i] = open(i);
    ASSERT_TRUE(link_until(
        [&] { return std::ranges::all_of(blocks, [](const auto& one) { return one->is_settled(); }); }));
    for (const auto& [from, to] : {std::pair{0, 1}, {1, 0}, {0, 2}, {2, 0}, {1, 2}, {2, 1}})
      ASSERT_TRUE(is_linked(static_cast<size_t>(from), static_cast<size_t>(to)));
  }

  Process processes[3];
  std::unique_ptr<MessageBlocks> blocks[3];
  const ByteBuffer large = pattern(kBlockBytes, 1);
};

TEST_F(Blocks, GiveWhatWasPut) {
  open_all();
  for (const size_t bytes : {kBlockFromBytes, kBlockFromBytes + 1, size_t{100'003}, kBlockBytes}) {
    for (const auto& [from, to] : {std::pair{0, 1}, {1, 0}, {0, 2}, {2, 1}}) {
      const ByteBuffer sent = pattern(bytes, from);
      const auto name = blocks[from]->put(kRanks[to], sent);
      ASSERT_TRUE(name.has_value());
      const std::byte* const found = blocks[to]->find(kRanks[from], *name, bytes);
      ASSERT_NE(found, nullptr);
      EXPECT_EQ(ByteBuffer(found, found + bytes), sent);
      blocks[to]->release(kRanks[from], *name);
    }
  }
}

TEST_F(Blocks, AreNotHadForWhatIsSmallNorForStrangers) {
  open_all();
  EXPECT_FALSE(blocks[0]->put(kRanks[1], ByteSpan(large).first(kBlockFromBytes - 1)));
  EXPECT_FALSE(blocks[0]->put(kRanks[1], {}));
  for (const int stranger : {0, 1, 2, 5, 7, 4000}) EXPECT_FALSE(blocks[0]->put(stranger, large)) << stranger;
}

TEST_F(Blocks, AreNotHadBeforeTheMateHasTheMemory) {
  blocks[0] = open(0);
  blocks[1] = open(1);
  EXPECT_FALSE(blocks[0]->put(kRanks[1], large));
  ASSERT_TRUE(link_until([&] { return is_linked(0, 1) && is_linked(1, 0); }));
  EXPECT_FALSE(blocks[0]->put(kRanks[2], large)) << "who never came";
  EXPECT_FALSE(blocks[0]->is_settled()) << "who may still come";
}

// Its queue was full, or it had no descriptor left.
TEST_F(Blocks, WhatDidNotGetThereIsHandedOverAgain) {
  blocks[0] = open(0);
  std::optional<Handover> lost;
  ASSERT_TRUE(link_until([&] {
    const std::lock_guard lock(processes[1].core->mutex());
    if (!lost)
      lost = processes[1].listener->claim_handover(processes[0].nonce, MessageBlocks::tag_of(kGeneration));
    return lost.has_value();
  }));
  lost.reset();
  blocks[1] = open(1);
  EXPECT_TRUE(link_until([&] { return is_linked(0, 1) && is_linked(1, 0); }));
}

TEST_F(Blocks, AMateThatIsNotReachedIsGivenUp) {
  std::vector<MessageBlocks::Rank> mates{{4, {.nonce = 1, .local_socket = "muster-nobody"}}};
  blocks[0] = MessageBlocks::open(*processes[0].core, *processes[0].listener, processes[0].nonce, kGeneration,
                                  1, std::move(mates));
  EXPECT_TRUE(link_until([&] { return blocks[0]->is_settled(); }));
  EXPECT_FALSE(blocks[0]->put(4, large));
}

// A receiver that does not take what it was sent holds that back, and nothing of others.
TEST_F(Blocks, ComeBackWhenTheirReceiverSaysSo) {
  open_all();
  std::vector<BlockName> names;
  for (uint32_t i = 0; i < kMessageBlocks; ++i) {
    const auto name = blocks[0]->put(kRanks[i % 2 + 1], pattern(kBlockBytes, static_cast<int>(i)));
    ASSERT_TRUE(name.has_value()) << i;
    names.push_back(*name);
  }
  EXPECT_FALSE(blocks[0]->put(kRanks[1], large)) << "all are on their way";
  blocks[2]->release(kRanks[0], names[3]);
  const auto again = blocks[0]->put(kRanks[1], large);
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->block, names[3].block);
  EXPECT_GT(again->use, names[3].use);
  EXPECT_FALSE(blocks[0]->put(kRanks[1], large));
  blocks[2]->release(kRanks[0], names[3]);  // it is not its receiver's any more
  EXPECT_FALSE(blocks[0]->put(kRanks[1], large));
  for (const uint32_t i : {0U, kMessageBlocks - 1}) {
    const std::byte* const found = blocks[i % 2 + 1]->find(kRanks[0], names[i], kBlockBytes);
    ASSERT_NE(found, nullptr);
    EXPECT_EQ(ByteBuffer(found, found + kBlockBytes), pattern(kBlockBytes, static_cast<int>(i)));
  }
}

TEST_F(Blocks, NamesThatMakeNoSenseLeadNowhere) {
  open_all();
  const BlockName name = blocks[0]->put(kRanks[1], large).value();
  EXPECT_EQ(blocks[1]->find(kRanks[0], {.use = 1, .block = kMessageBlocks}, 1), nullptr);
  EXPECT_EQ(blocks[1]->find(kRanks[0], {.use = 1, .block = UINT32_MAX}, 1), nullptr);
  EXPECT_EQ(blocks[1]->find(kRanks[0], name, kBlockBytes + 1), nullptr);
  EXPECT_EQ(blocks[1]->find(3, name, kBlockBytes), nullptr);
  EXPECT_EQ(blocks[1]->find(kRanks[0], {.use = name.use + 1, .block = name.block}, kBlockBytes), nullptr);
  blocks[1]->release(kRanks[0], {.use = 1, .block = kMessageBlocks});
  blocks[1]->release(3, name);
  EXPECT_NE(blocks[1]->find(kRanks[0], name, kBlockBytes), nullptr);
}

// A rank may leave its group while what it sent is on its way, and be in the next one.
TEST_F(Blocks, MemoryOutlivesItsSender) {
  open_all();
  const BlockName name = blocks[0]->put(kRanks[1], large).value();
  close(0);
  blocks[0] = open(0, {0x1234, 8});
  EXPECT_FALSE(blocks[0]->put(kRanks[1], large)) << "the mate is not in that group";
  const std::byte* const found = blocks[1]->find(kRanks[0], name, kBlockBytes);
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(ByteBuffer(found, found + kBlockBytes), large);
}

size_t open_descriptors() {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    count += entry.exists() ? 1 : 0;
  return count;
}

// Endpoints of one process that make groups over two nodes, rank by rank in turn.
class TwoNodes : public ::testing::Test {
 protected:
  static constexpr int kRanks = 5;

  // `without`: a rank that shares no memory, or −1.
  void open(int without) {
    for (int rank = 0; rank < kRanks; ++rank) {
      EndpointOptions options;
      options.transport = network->make_transport();
      options.shared_memory = rank != without;
      endpoints.push_back(Endpoint::create(std::move(options)).value());
    }
  }
  std::vector<std::unique_ptr<Group>> form(uint64_t counter) {
    std::vector<std::unique_ptr<Group>> groups(kRanks);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < kRanks; ++rank) {
      threads.emplace_back([&, rank] {
        GroupSpec spec{.generation = {nonce, counter}, .rank = rank, .deadline = now() + 20 * kSecond};
        for (int other = 0; other < kRanks; ++other) {
          spec.contacts.push_back(endpoints[static_cast<size_t>(other)]->contact());
          spec.nodes.push_back(static_cast<uint64_t>(other % 2 + 1));
        }
        groups[static_cast<size_t>(rank)] = endpoints[static_cast<size_t>(rank)]->form_group(spec).value();
      });
    }
    for (std::thread& thread : threads) thread.join();
    return groups;
  }
  // An all_to_all of 64 KiB for each pair. Whether it was right.
  static bool exchange(std::vector<std::unique_ptr<Group>>& groups) {
    constexpr size_t kCount = 16 * 1024;
    std::atomic<bool> right = true;
    std::vector<std::thread> threads;
    for (int rank = 0; rank < kRanks; ++rank) {
      threads.emplace_back([&, rank] {
        std::vector<float> in(kRanks * kCount), out(kRanks * kCount), wanted(kRanks * kCount);
        const auto value = [](size_t from, size_t to, size_t i) {
          return static_cast<float>(from * 1000 + to * 100 + i % 97);
        };
        for (size_t other = 0; other < kRanks; ++other) {
          for (size_t i = 0; i < kCount; ++i) {
            in[other * kCount + i] = value(static_cast<size_t>(rank), other, i);
            wanted[other * kCount + i] = value(other, static_cast<size_t>(rank), i);
          }
        }
        Group& group = *groups[static_cast<size_t>(rank)];
        const Status status =
            group.all_to_all(in.data(), out.data(), kCount, DType::kFloat32, now() + 20 * kSecond).wait();
        if (!status.ok() || out != wanted) right = false;
      });
    }
    for (std::thread& thread : threads) thread.join();
    return right;
  }
  // Blocks that one exchange takes, once it takes as many as `wanted`.
  static uint64_t blocks_of_an_exchange(std::vector<std::unique_ptr<Group>>& groups, uint64_t wanted) {
    const Instant deadline = now() + 20 * kSecond;
    uint64_t taken = 0;
    while (taken != wanted && now() < deadline) {
      const uint64_t before = MessageBlocks::put_in_all();
      EXPECT_TRUE(exchange(groups));
      taken = MessageBlocks::put_in_all() - before;
    }
    return taken;
  }

  const uint64_t nonce = random_nonce();
  std::shared_ptr<InProcessNetwork> network = InProcessNetwork::create();
  std::vector<std::unique_ptr<Endpoint>> endpoints;
};

// Three ranks on one node, two on the other: eight ordered pairs of mates.
TEST_F(TwoNodes, WhatMatesSendEachOtherGoesByBlocksAndIsRight) {
  open(-1);
  auto groups = form(1);
  EXPECT_EQ(blocks_of_an_exchange(groups, 8), 8U);
}

TEST_F(TwoNodes, ARankThatSharesNoMemoryIsSentMessages) {
  open(2);
  auto groups = form(1);
  EXPECT_EQ(blocks_of_an_exchange(groups, 4), 4U);
}

// Also of groups that nobody has used yet.
TEST_F(TwoNodes, LinkedGroupsHoldNoDescriptors) {
  open(-1);
  auto first = form(1);
  ASSERT_EQ(blocks_of_an_exchange(first, 8), 8U);
  const size_t before = open_descriptors();
  std::vector<std::vector<std::unique_ptr<Group>>> groups;
  for (uint64_t counter = 2; counter < 22; ++counter) groups.push_back(form(counter));
  const Instant deadline = now() + 20 * kSecond;
  while (open_descriptors() > before && now() < deadline)
    // Reason for the wait: connections end on the progress threads, which tell nobody; up to the deadline.
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_LE(open_descriptors(), before);
}

}  // namespace
}  // namespace muster
