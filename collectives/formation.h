// Internal: how the members of a group find together. Rank 0 gathers a hello from each, says go, and where
// all are on one node gathers whether shared memory could be had, so that all choose the same engine.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "collectives/core.h"
#include "collectives/endpoint.h"

namespace muster {

class Formation final : public TransferOwner {
 public:
  // `peers[r]` is rank r, `ports[r]` its port; `digest` is that of what all members must agree on.
  Formation(Core& core, const GroupSpec& spec, std::vector<PeerId> peers, std::vector<Port> ports,
            Digest digest);
  ~Formation();

  // Everybody is here.
  Status assemble(std::vector<int>& absent);
  // REQUIRES: assemble() was ok. Whether `mine` is true on all.
  Result<bool> agree(bool mine, std::vector<int>& absent);

  void transfer_ended(uint64_t cookie, TransferStatus status, size_t bytes) override;

 private:
  enum class Kind : uint32_t { kHello = 1, kGo, kRefuse, kStatus, kDecision };
  static constexpr int kMaxNames = 64;
  struct Note {
    static constexpr uint32_t kMagic = 0x3146554dU;
    uint32_t magic = kMagic;
    Kind kind = Kind::kHello;
    int32_t source = 0;
    uint32_t flag = 0;
    Generation generation;
    Digest digest;
    uint32_t name_count = 0;
    int32_t names[kMaxNames] = {};
  };

  bool is_root() const { return spec_.rank == 0; }
  uint64_t tag_for(int rank) const;
  void post_receive();
  void tell(int rank, Note note);
  void tell_all(const Note& note);
  void handle(const Note& note);
  bool any_gone() const;
  bool cancelled() const;
  Error given_up() const;
  Status gather(Kind kind, Instant deadline, std::vector<int>& absent);
  Status await(Kind kind, std::vector<int>& absent);
  Status refuse(const std::vector<int>& absent);
  Error absence(const std::vector<int>& absent) const;

  Core& core_;
  const GroupSpec& spec_;
  const std::vector<PeerId> peers_;
  const std::vector<Port> ports_;
  const Digest digest_;
  TransferId receive_ = 0;
  MessagePtr message_;
  std::vector<bool> hello_, status_;
  bool all_agree_ = true;
  int differing_ = -1;  // a rank with another digest
  bool go_ = false, refused_ = false, decided_ = false, decision_ = false;
  std::vector<int> told_absent_;
};

}  // namespace muster
