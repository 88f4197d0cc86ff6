// One type for every way in which a worker, a node or a job is told that it will be taken away, and the board
// on which notices of several sources are combined. Pure: no clock, socket, thread or log.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/control/messages.h"

namespace muster::notice {

using control::Scope;

enum class Source : uint8_t { kSignal, kSlurm, kKubernetes, kPbs, kLsf, kFile, kHttp, kAws, kGcp, kAzure };
const char* to_string(Source source);

struct Notice {
  Scope scope = Scope::kJob;
  Instant deadline = kNever;  // when what is in its scope may be killed; kNever: not known
  Source source = Source::kSignal;
  std::string id;     // the source's own name of it: told again, moved or withdrawn under the same name
  std::string words;  // for people
  // Planned: it may still be withdrawn or moved, so it is acted on only when its deadline comes near. A
  // signal is not.
  bool may_wait = false;
  // The source wants to hear when it may begin, and it concerns this machine alone.
  bool may_acknowledge = false;
  // May never come true (a rebalance recommendation, a live migration): said, not acted on.
  bool is_warning = false;
};

// What the agent does next.
struct BoardAction {
  enum Kind {
    kSay,  // tell people; nothing else happens
    kAct,  // tell the leader
  } kind = kSay;
  Notice notice;
  std::string why;
};

// INVARIANTS
//  - A notice that was acted on is acted on again only if its scope grew or its deadline came nearer: sources
//  repeat
//    themselves every few seconds, and several tell of one event.
//  - A notice that may wait does so until `lead` before its deadline. Withdrawn before that, it costs
//  nothing.
//  - Withdrawing what was acted on takes nothing back: the step at which the job stops is agreed already.
class NoticeBoard {
 public:
  explicit NoticeBoard(Duration lead) : lead_(lead) {}

  std::vector<BoardAction> raise(Instant now, const Notice& notice);
  std::vector<BoardAction> withdraw(Source source, const std::string& id);
  std::vector<BoardAction> tick(Instant now);
  Instant next_deadline() const;

  // The earliest deadline of what was acted on; kNever: none is known.
  Instant deadline() const { return acted_ ? acted_->deadline : kNever; }
  bool acted() const { return acted_.has_value(); }

 private:
  using Key = std::pair<Source, std::string>;
  bool waits(Instant now, const Notice& notice) const;
  std::optional<BoardAction> act_if_new(Instant now, const Notice& notice);

  const Duration lead_;
  std::map<Key, Notice> standing_;
  std::set<Key> due_;            // acted on, or as good as: another source's notice of the same was
  std::optional<Notice> acted_;  // widest scope and earliest deadline so far
};

}  // namespace muster::notice
