// The messages of the control plane, as plain values. Their bytes on the wire are wire.h's business.
//
// Member = worker process, node = agent, leader = coordinator. A member speaks through its node's agent,
// which forwards without looking inside. Everything a message says is a claim by its sender at its sending;
// the receiver checks generation and attempt before it believes.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "runtime/base/events.h"
#include "runtime/base/tier.h"
#include "runtime/control/types.h"

namespace muster::control {

// ---- node → leader

// Raised with every change of a message. Who speaks another refuses in a sentence: agents each other, and the
// leader a worker, whose program may be linked with another Muster than its agent's.
constexpr uint32_t kProtocol = 13;

struct NodeHello {
  NodeId node = 0;
  std::string name;
  std::string job;  // agents of different jobs refuse each other
  uint32_t protocol = kProtocol;
  uint32_t workers = 0;    // --nproc
  uint32_t nodes_min = 1;  // --nnodes; must equal the leader's
  uint32_t nodes_max = 1;
  std::string rescue_host;   // where its agent listens for the others, should the leader be lost;
  uint32_t rescue_port = 0;  // 0: nowhere. An empty host: as the leader sees it
};

// A worker process ended, was killed and reaped, or fell silent. Only `proven` may exclude any number (rule
// 11).
struct MemberGone {
  MemberId member = 0;
  bool proven = false;
  bool orderly = false;  // it had said Leaving, and exited 0 or 75
  std::string why;
  uint32_t local_rank = 0;  // its slot; `member` is 0 where the process ended before it said MemberHello
  int exit_code = 0;        // the process's, or 128 + signal
  bool given_up = false;    // the slot will not be started again: the program is broken, or misused (78)
};

// All excluded processes of this node that belonged to views before `generation` are reaped (rule 13).
struct NodeReady {
  Generation generation;
};

enum class Scope : uint8_t { kRank = 0, kNode = 1, kJob = 2 };

struct NoticeRaised {
  Scope scope = Scope::kJob;
  MemberId member = 0;      // for kRank
  Duration time_left = -1;  // to the deadline, when sent; -1: not known
  std::string source;       // "SIGTERM to the agent on node a"
};

// Answer to StoreOffer.
struct StoreAnswer {
  uint64_t term = 0;
  uint32_t port = 0;  // where it listens, and does not answer yet; 0: it cannot
  std::string why;
};

struct Heartbeat {};  // both ways, also between agent and worker

// ---- member → leader

// First message of a process. `fingerprint` covers names, types, shapes and the job's constants: members of
// one job must agree on it.
struct MemberHello {
  Member member;
  Digest fingerprint;
  std::string description;  // the same in words, to explain a mismatch
  Generation installed;     // newest view that it was told to install; its agent knows, the process says none
  bool paces_saves = false;        // the program leaves it to the leader when to save (SaveSchedule)
  Sharding sharding;               // of the state; the fingerprint covers it
  StateSize size;                  // likewise
  bool paces_local_saves = false;  // as paces_saves, of those of its node
  uint32_t protocol = kProtocol;
  bool drains_saves = false;  // periodic saves of the shared folder are to come from nodes' own (SaveOpen)
};

// The run's starting version is known: 0 for a fresh start, or a checkpoint's. Sent by all members of the
// first view of a run once they agree among themselves; `lineage` is the checkpoint's.
struct Started {
  Generation generation;
  Version version = 0;
  Digest digest;
  Lineage lineage;
  Version durable =
      kNoVersion;  // newest on its branch that the shared folder has; a node's own is no promise
};

// Answer to Agree. No permit is granted after it until the leader says on (rule 1).
struct Report {
  Generation generation;
  uint32_t attempt = 0;
  Version version = kNoVersion;   // newest whole version it holds
  bool torn = false;              // an open update scope did not close within its deadline: `version` is void
  Generation installed;           // newest generation entered with this state: the tail of its lineage
  std::vector<uint32_t> shards;   // that it holds of `version`, compared with the other copies
  Generation gradient_in;         // where it made the update to `version`, if it still has its gradient
  std::vector<uint32_t> arrived;  // shards that it has too, and does not know to have been compared
  Generation knows;               // the newest view that it was told of, if it knows that view's base
};

// The member's part of the new view stands: group formed, state received and verified.
struct Ready {
  Generation generation;
  uint32_t attempt = 0;
};

struct ShardDigest {
  uint32_t shard = 0;
  Digest digest;
  friend bool operator==(const ShardDigest&, const ShardDigest&) = default;
};
// The state at the entered view's base, as this member holds it (rule 5). Computed while the view's first
// step is; no update is permitted before all members' are compared (BaseConfirmed).
struct BaseDigest {
  Generation generation;
  Digest digest;                    // of what all members hold
  std::vector<ShardDigest> shards;  // that it has, also of those that the view has given to others
};

// Something the member could not do names who stood in the way: a hint for the leader, not a proof.
struct Suspect {
  Generation generation;
  std::vector<MemberId> members;
  std::string why;
};

// The step boundary agreed by the reductions' plan number was reached (rule 16): the member waits there, at
// `version`, for Install, Proceed or SaveStop.
struct AtBoundary {
  Generation generation;
  uint64_t plan = 0;
  Version version = 0;
};

// A learner holds `version` and has no logged gradient waiting (rule 17).
struct Level {
  Version version = 0;
};
struct LearnFailed {
  uint64_t lesson = 0;
  std::string why;
  bool lags = false;  // gradients come faster than they go
};

// Progress of a member: version reached, sent at most every 100 ms, in worlds of thousands more seldom, at
// every boundary, and by the program's thread when it enters a view (a member that never says it is hung).
// A learner's says that its program goes on. For display, for the step deadline, for "joins wait until one
// step has been committed" (rule 18), and for whom it holds up (stragglers.h).
struct Progress {
  Generation generation;
  Version version = 0;
  Duration microbatch = 0;    // that one took, the mean of those since the last Progress
  uint32_t microbatches = 0;  // since then; 0: none
};

// A periodic save is due at this version on this member; the first one opens it (rule 24). A local one: the
// first one of its node, for that node alone.
struct SaveDue {
  Generation generation;
  Version version = 0;
  bool last =
      false;  // of the run: it must be saved, so it waits for the save before it, while others are skipped
  Tier tier = Tier::kShared;
};

// After the last write and close of the member's shard, or its failure.
struct SaveVote {
  uint64_t save = 0;
  bool written = false;
  ByteBuffer record;       // checkpoint's shard record, opaque here
  std::string why;         // when not written
  uint64_t bytes = 0;      // that it has written; 0 where it has linked an older file
  Duration stalled = 0;    // that updates were made to wait since it was held
  Duration held_back = 0;  // by a limit of the rate of saves: its disk had nothing to do
  // Of a part that SaveRewrite has asked for; the member's own is another vote. Not written: the next is
  // asked.
  std::optional<uint32_t> part;
  Generation held_in;  // with `part`: the view in which the member had the version
};

// Answer of the publisher to SavePublish. Publishing never overwrites, so a second publisher is harmless.
struct SavePublished {
  uint64_t save = 0;
  bool published = false;
  std::string why;
};

// The program left its loop: the last message of a member before it exits by itself.
struct Leaving {
  int exit_code = 0;
  Version version = kNoVersion;
  std::string why;
};

// ---- leader → node

struct NodeWelcome {
  Generation newest;  // newest generation of the store, counter 0 if none yet
  Duration heartbeat_every = 0;
  uint64_t term = 0;  // counts the leaders that the store has had: of two, the lower is fenced. 0: the
                      // first of an embedded one
};
struct NodeRefused {
  std::string why;
  int exit_code = 78;
};
// Kill and reap these processes of your node, then answer NodeReady for the generation.
struct Evict {
  Generation generation;
  std::vector<MemberId> members;
};
struct EndJob {
  int exit_code = 0;
  std::string why;
};

// Where the first agents in order of joining listen, should the leader be lost (rule 12).
constexpr size_t kNeighboursMax = 8;
struct Neighbour {
  NodeId node = 0;
  std::string name;
  std::string host;
  uint32_t port = 0;
};
struct Neighbours {
  std::vector<Neighbour> nodes;
};

// The embedded store's node is being drained: would this node hold the store, and lead with `term`? It leads
// only when StoreMoved names it.
struct StoreOffer {
  uint64_t term = 0;
  View view;  // the newest, which the store holds
};
// The leader has given the store away for good, and says nothing else from then on: it is at this place.
struct StoreMoved {
  uint64_t term = 0;  // of the leader there
  NodeId node = 0;
  std::string name;
  std::string host;
  uint32_t port = 0;
  NodeId former = 0;  // where the leader was
};

// ---- leader → member

// Report, and grant no permit until told on. With `revoke`, the view is over: its group is revoked, the step
// in flight will be repeated. Without, the view lives: an urgent save is looking for its version (rule 26).
struct Agree {
  Generation generation;  // of the view that ends, or is asked; counter 0 for members in no view
  uint32_t attempt = 0;
  bool revoke = true;
  std::string why;
};

// The state at the view's base, staged before Ready. Or, for one that lacks only the last update to it, which
// the source has made in the view before: that update's reduced gradient, which the target's program applies.
// In `parts` equal parts the target gets it from as many sources at once.
struct Transfer {
  MemberId source = 0;
  MemberId target = 0;
  bool gradient = false;
  uint32_t part = 0;
  uint32_t parts = 1;
  friend bool operator==(const Transfer&, const Transfer&) = default;
};
constexpr uint32_t kPartsMax = 4;  // of what one target gets

// A shard at the view's base, staged before Ready, to one that is to hold it. The source keeps its own until
// the view's first update.
struct ShardMove {
  uint32_t shard = 0;
  MemberId source = 0;
  MemberId target = 0;
  friend bool operator==(const ShardMove&, const ShardMove&) = default;
};

// The next view. Form its group, send or receive the state as `transfers` and `moves` say, answer Ready. To
// one that holds the view before, `view` is what differs from that (view_difference.h), and of `transfers`
// and `moves` there are those of its node.
struct Install {
  View view;
  uint32_t attempt = 0;
  std::vector<Transfer> transfers;
  std::string why;
  std::vector<ShardMove> moves;
  uint64_t bytes_sent = 0;      // by the transfers of all: the most that one source has to send
  uint64_t bytes_moved = 0;     // the same of all moves together
  Generation since;             // counter 0: `view` is whole
  std::vector<MemberId> left;   // of that view
  std::vector<uint32_t> ranks;  // of view.members, ascending
};

// Every member is ready: steps are computed from view.base on.
struct Go {
  Generation generation;
};

// All members hold the same state at the view's base: permits may be granted.
struct BaseConfirmed {
  Generation generation;
};

// The newest entry of the leader's cumulative list of plans. Members combine it (max) in every reduction.
struct PlanNumber {
  uint64_t plan = 0;
};

// The boundary of `plan` changes nothing (any more): go on in the same view.
struct Proceed {
  uint64_t plan = 0;
};

// Teach `learner`: stage your version, send it and then each reduced gradient, until LessonOver.
struct Teach {
  uint64_t lesson = 0;
  Member learner;
};
struct Learn {
  uint64_t lesson = 0;
  Member source;
  View view;  // which the learner will join; also fixes lanes and lineage
};
struct LessonOver {
  uint64_t lesson = 0;
};
// Stop at exactly this version and answer AtBoundary: the others wait there.
struct LearnUntil {
  uint64_t plan = 0;
  Version version = 0;
};

// Write your part of `version` into the folder of `save`. Part i of n belongs to participants[i]; the staged
// copy was taken when the member reached the version. Where all members of a view take part, the view is
// named in place of them: each member has it, and thousands of copies of thousands of names are saved.
struct SaveOpen {
  uint64_t save = 0;  // nonce; names the folder together with the version
  Version version = 0;
  Lineage lineage;
  std::vector<MemberId> participants;
  Generation all_of;    // of the view whose members they are, in rank order; 0: as named
  bool stop = false;    // an urgent save: reach `version`, grant no permit beyond it, save, and wait for End
  bool rescue = false;  // the leader is lost: the frozen member saves what it holds; `lineage` is its own
  std::vector<uint32_t> writers;  // by shard: which of the participants writes it
  Tier tier = Tier::kShared;      // kLocal: the participants are all on one node
  bool drain = false;  // shared: what its node has saved of this version and lineage is read, not the state
};
// Periodic saves are due at `from`, `from` + `every`, and so on, where the program leaves that to the leader.
struct SaveSchedule {
  Version from = 0;
  int64_t every = 0;
  Tier tier = Tier::kShared;  // kLocal: of all nodes, at the same versions
  friend bool operator==(const SaveSchedule&, const SaveSchedule&) = default;
};
// Someone waits for this save: a limit of its rate holds no longer.
struct SaveHurry {
  uint64_t save = 0;
};
// Write this part of the open save as well, into a file of your own, if you still hold what it has: whoever
// was to write it is lost, or its vote is. Answered by a SaveVote for the part, at once where it is not held.
struct SaveRewrite {
  uint64_t save = 0;
  uint32_t part = 0;  // of participants[part]
  Version version = 0;
  Generation opened_in;          // the view in which the save was opened: its history is the save's
  std::vector<uint32_t> shards;  // that the part has
  Tier tier = Tier::kShared;
};
struct SavePublish {
  uint64_t save = 0;
  std::vector<ByteBuffer> records;  // by participant
  Tier tier = Tier::kShared;
};
// The save's fate, to all participants: durable, or failed with a reason.
struct SaveClosed {
  uint64_t save = 0;  // 0: the save that was due at `version` is skipped
  bool durable = false;
  std::string why;
  Version version = 0;
  Tier tier = Tier::kShared;
};

// The run is over for this member: leave the loop with this exit code.
struct End {
  int exit_code = 0;
  std::string why;
};

// ---- when the store's node is lost (rules 10, 12); see rescue.h

// Agent → its workers. Lost: freeze, which grants no permit; found: go on.
struct LeaderLink {
  bool lost = false;
  std::string why;
};

// Agent → the agent that collects; its workers that speak.
struct RescueHello {
  NodeId node = 0;
  std::string name;
  std::vector<MemberId> members;
};
// The answer of one that does not collect: its leader lives, or it has joined another.
struct RescueRefused {
  std::string why;
};
// Collector → frozen members, and their answer, once no scope is open. Grants and refuses nothing.
struct RescueAsk {};
struct RescueReport {
  Version version = kNoVersion;  // kNoVersion: none that could be saved
  Generation installed;          // as in Report
  Digest digest;
  Version durable = kNoVersion;     // newest version that this member knows to be saved on its own branch
  Version base = kNoVersion;        // of the view that it has entered
  Generation before;                // the view before that one
  uint32_t shard_count = 0;         // of its view; 0: nothing is sharded
  std::vector<ShardDigest> shards;  // that it holds of `version`
};
// Collector → agents: nothing more can be saved.
struct RescueOver {
  Version version = kNoVersion;  // newest durable version
  std::string why;
};

// ---- member → its node's agent

// What a worker saw, for its agent's display and event file. The agent keeps it; the leader never gets one.
struct WorkerEvent {
  Event event;
};

using Message = std::variant<NodeHello, MemberGone, NodeReady, NoticeRaised, Heartbeat, MemberHello, Started,
                             Report, Ready, Suspect, AtBoundary, Level, LearnFailed, Progress, SaveDue,
                             SaveVote, SavePublished, Leaving, NodeWelcome, NodeRefused, Evict, EndJob, Agree,
                             Install, Go, PlanNumber, Proceed, Teach, Learn, LessonOver, LearnUntil, SaveOpen,
                             SavePublish, SaveClosed, End, WorkerEvent, Neighbours, LeaderLink, RescueHello,
                             RescueRefused, RescueAsk, RescueReport, RescueOver, BaseDigest, BaseConfirmed,
                             SaveSchedule, SaveHurry, SaveRewrite, StoreOffer, StoreAnswer, StoreMoved>;

// What travels: a message and the member that sent it or shall get it; 0 is the node's agent itself.
struct Envelope {
  MemberId member = 0;
  Message message;
  std::vector<MemberId> others;  // to a node: of its members, that get the same
};

const char* name_of(const Message& message);

}  // namespace muster::control
