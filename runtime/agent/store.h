// Where rendezvous and leadership live: a few keys with revisions, and a token that fences old leaders.
//
// Calls are made on the loop's thread; answers come on it too, possibly before the call returns. An error
// means that the outcome is unknown: read again and compare (rule 14).
#pragma once

#include <functional>
#include <map>
#include <string>

#include "runtime/base/bytes.h"
#include "runtime/base/clock.h"
#include "runtime/base/result.h"

namespace muster::agent {

struct StoreEntry {
  ByteBuffer value;
  uint64_t revision = 0;  // grows with each write of the key; 0: the key is absent
};

class Store {
 public:
  virtual ~Store() = default;
  // Chosen at random when the store starts empty: tells an emptied store from the one before (rule 9).
  virtual uint64_t incarnation() const = 0;
  // A token that voids all earlier ones.
  virtual void lead(std::function<void(Result<uint64_t>)> answer) = 0;
  virtual void get(const std::string& key, std::function<void(Result<StoreEntry>)> answer) = 0;
  // Writes only if the key has `expected_revision` and `token` is the newest. Answers whether it wrote.
  virtual void compare_and_swap(const std::string& key, uint64_t expected_revision, ByteBuffer value,
                                uint64_t token, std::function<void(Result<bool>)> answer) = 0;

  // ---- of a store that outlives its leader

  virtual bool outlives_leader() const { return false; }
  // The leader says and does nothing from then on (rule 14). It grows while the lease is renewed.
  virtual Instant lease_until() const { return kNever; }
  // The job's end, before anybody is told: a leader that comes after this one must not go on with it.
  virtual void record_end(int /*exit_code*/, const std::string& /*why*/, uint64_t /*token*/,
                          std::function<void(Result<bool>)> answer) {
    answer(true);
  }
};

// The embedded store: lives and dies with its process.
class MemoryStore final : public Store {
 public:
  MemoryStore();
  // One that was moved here: what the other held under `key`, and its incarnation.
  MemoryStore(uint64_t incarnation, const std::string& key, ByteBuffer value);
  uint64_t incarnation() const override { return incarnation_; }
  void lead(std::function<void(Result<uint64_t>)> answer) override;
  void get(const std::string& key, std::function<void(Result<StoreEntry>)> answer) override;
  void compare_and_swap(const std::string& key, uint64_t expected_revision, ByteBuffer value, uint64_t token,
                        std::function<void(Result<bool>)> answer) override;

 private:
  uint64_t incarnation_;
  uint64_t token_ = 0;
  std::map<std::string, StoreEntry> entries_;
};

}  // namespace muster::agent
