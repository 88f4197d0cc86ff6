#include "runtime/agent/store.h"

#include "runtime/base/random.h"

namespace muster::agent {

MemoryStore::MemoryStore() : incarnation_(random_nonce()) {}

MemoryStore::MemoryStore(uint64_t incarnation, const std::string& key, ByteBuffer value)
    : incarnation_(incarnation) {
  entries_[key] = {std::move(value), 1};
}

void MemoryStore::lead(std::function<void(Result<uint64_t>)> answer) { answer(++token_); }

void MemoryStore::get(const std::string& key, std::function<void(Result<StoreEntry>)> answer) {
  const auto found = entries_.find(key);
  answer(found == entries_.end() ? StoreEntry{} : found->second);
}

void MemoryStore::compare_and_swap(const std::string& key, uint64_t expected_revision, ByteBuffer value,
                                   uint64_t token, std::function<void(Result<bool>)> answer) {
  const auto found = entries_.find(key);
  const uint64_t revision = found == entries_.end() ? 0 : found->second.revision;
  if (token != token_ || revision != expected_revision) return answer(false);
  entries_[key] = {std::move(value), revision + 1};
  answer(true);
}

}  // namespace muster::agent
