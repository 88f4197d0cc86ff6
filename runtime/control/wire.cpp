#include "runtime/control/wire.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>
#include <vector>

#include "messages_generated.h"

namespace muster::control {
namespace {

using flatbuffers::FlatBufferBuilder;
using flatbuffers::Offset;

// A view nests frame → install → view → member, four levels; more is an attack.
constexpr uint32_t kDepthMax = 8;
constexpr uint32_t kTablesMax = 200'000;
constexpr size_t kFrameBytesMin = 8;  // root offset and identifier

// ---- values: structs, strings, vectors

fb::Digest write(const Digest& value) { return {value.low, value.high}; }
fb::Generation write(const Generation& value) { return {value.incarnation, value.counter}; }

Digest read(const fb::Digest& value) { return {value.low(), value.high()}; }
Generation read(const fb::Generation& value) { return {value.incarnation(), value.counter()}; }
Generation read(const fb::Generation* value) { return value == nullptr ? Generation{} : read(*value); }
std::string read(const flatbuffers::String& value) { return value.str(); }
Tier tier_of(bool local) { return local ? Tier::kLocal : Tier::kShared; }

ByteBuffer read(const flatbuffers::Vector<uint8_t>& value) {
  const auto* first = reinterpret_cast<const std::byte*>(value.data());
  return {first, first + value.size()};
}

// The verifier does not ask whether what is in a vector is aligned, and a hostile frame's need not be.
// Numbers are little-endian there, as on every machine that this runs on.
template <typename Element, typename Listed>
std::vector<Element> copied(const flatbuffers::Vector<Listed>& value) {
  static_assert(std::endian::native == std::endian::little);
  std::vector<Element> elements(value.size());
  if (!elements.empty()) std::memcpy(elements.data(), value.Data(), elements.size() * sizeof(Element));
  return elements;
}

std::vector<uint64_t> read(const flatbuffers::Vector<uint64_t>& value) { return copied<uint64_t>(value); }

// Null where the sender had none, or knew none.
std::vector<uint32_t> read(const flatbuffers::Vector<uint32_t>* value) {
  return value == nullptr ? std::vector<uint32_t>() : copied<uint32_t>(*value);
}

std::vector<ShardDigest> read(const flatbuffers::Vector<const fb::ShardDigest*>* value) {
  std::vector<ShardDigest> digests;
  if (value == nullptr) return digests;
  digests.reserve(value->size());
  for (const fb::ShardDigest& entry : copied<fb::ShardDigest>(*value))
    digests.push_back({entry.shard(), read(entry.digest())});
  return digests;
}

Lineage read(const flatbuffers::Vector<const fb::LineageEntry*>& value) {
  Lineage lineage;
  lineage.reserve(value.size());
  for (const fb::LineageEntry& entry : copied<fb::LineageEntry>(value))
    lineage.push_back({read(entry.generation()), entry.base()});
  return lineage;
}

auto write(FlatBufferBuilder& to, const std::string& value) { return to.CreateString(value); }
auto write(FlatBufferBuilder& to, const ByteBuffer& value) {
  return to.CreateVector(reinterpret_cast<const uint8_t*>(value.data()), value.size());
}
auto write(FlatBufferBuilder& to, const std::vector<uint64_t>& value) {
  return to.CreateVector(value.data(), value.size());
}
auto write(FlatBufferBuilder& to, const std::vector<uint32_t>& value) {
  return to.CreateVector(value.data(), value.size());
}
auto write(FlatBufferBuilder& to, const std::vector<ShardDigest>& value) {
  std::vector<fb::ShardDigest> entries;
  entries.reserve(value.size());
  for (const ShardDigest& entry : value) entries.emplace_back(entry.shard, write(entry.digest));
  return to.CreateVectorOfStructs(entries);
}
auto write(FlatBufferBuilder& to, const Lineage& value) {
  std::vector<fb::LineageEntry> entries;
  entries.reserve(value.size());
  for (const LineageEntry& entry : value) entries.emplace_back(write(entry.generation), entry.base);
  return to.CreateVectorOfStructs(entries);
}

// ---- nouns

Offset<fb::Member> write(FlatBufferBuilder& to, const Member& m) {
  const auto name = write(to, m.node_name);
  return fb::CreateMember(to, m.id, m.node, m.local_rank, name, write(to, m.contact));
}
Member read(const fb::Member& m) {
  return {m.id(), m.node(), m.local_rank(), read(*m.node_name()), read(*m.contact())};
}

Offset<fb::View> write(FlatBufferBuilder& to, const View& v) {
  std::vector<Offset<fb::Member>> members;
  members.reserve(v.members.size());
  for (const Member& member : v.members) members.push_back(write(to, member));
  const auto generation = write(v.generation);
  const auto list = to.CreateVector(members);
  const auto lineage = write(to, v.lineage);
  return fb::CreateView(to, &generation, list, v.base, lineage, v.shards.copies, write(to, v.shards.ranks));
}
View read(const fb::View& v) {
  View view{
      read(*v.generation()), {}, v.base(), read(*v.lineage()), {v.shard_copies(), read(v.shard_ranks())}};
  view.members.reserve(v.members()->size());
  for (const fb::Member* member : *v.members()) view.members.push_back(read(*member));
  return view;
}

Offset<fb::Event> write(FlatBufferBuilder& to, const Event& e) {
  return fb::CreateEvent(to, static_cast<uint16_t>(e.kind), e.at, e.generation, e.version, e.subject,
                         e.amount, write(to, e.text), e.tier == Tier::kLocal);
}
Event read(const fb::Event& e) {
  return {static_cast<EventKind>(e.kind()),
          e.at(),
          e.generation(),
          e.version(),
          e.subject(),
          e.amount(),
          read(*e.text()),
          tier_of(e.local())};
}

// ---- messages, in the order of messages.h

Offset<fb::NodeHello> write(FlatBufferBuilder& to, const NodeHello& m) {
  const auto name = write(to, m.name);
  const auto job = write(to, m.job);
  return fb::CreateNodeHello(to, m.node, name, job, m.protocol, m.workers, m.nodes_min, m.nodes_max,
                             write(to, m.rescue_host), m.rescue_port);
}
NodeHello read(const fb::NodeHello& m) {
  return {m.node(),      read(*m.name()), read(*m.job()),         m.protocol(),   m.workers(),
          m.nodes_min(), m.nodes_max(),   read(*m.rescue_host()), m.rescue_port()};
}

Offset<fb::MemberGone> write(FlatBufferBuilder& to, const MemberGone& m) {
  return fb::CreateMemberGone(to, m.member, m.proven, m.orderly, write(to, m.why), m.local_rank, m.exit_code,
                              m.given_up);
}
MemberGone read(const fb::MemberGone& m) {
  return {m.member(), m.proven(), m.orderly(), read(*m.why()), m.local_rank(), m.exit_code(), m.given_up()};
}

Offset<fb::NodeReady> write(FlatBufferBuilder& to, const NodeReady& m) {
  const auto generation = write(m.generation);
  return fb::CreateNodeReady(to, &generation);
}
NodeReady read(const fb::NodeReady& m) { return {read(*m.generation())}; }

Offset<fb::NoticeRaised> write(FlatBufferBuilder& to, const NoticeRaised& m) {
  return fb::CreateNoticeRaised(to, static_cast<uint8_t>(m.scope), m.member, m.time_left,
                                write(to, m.source));
}
NoticeRaised read(const fb::NoticeRaised& m) {
  return {static_cast<Scope>(m.scope()), m.member(), m.time_left(), read(*m.source())};
}

Offset<fb::Heartbeat> write(FlatBufferBuilder& to, const Heartbeat&) { return fb::CreateHeartbeat(to); }
Heartbeat read(const fb::Heartbeat&) { return {}; }

Offset<fb::MemberHello> write(FlatBufferBuilder& to, const MemberHello& m) {
  const auto fingerprint = write(m.fingerprint);
  const auto member = write(to, m.member);
  const fb::Generation installed = write(m.installed);
  return fb::CreateMemberHello(to, member, &fingerprint, write(to, m.description), &installed, m.paces_saves,
                               m.sharding.shards, m.sharding.copies, m.size.replicated, m.size.shard,
                               m.protocol, m.paces_local_saves, m.drains_saves);
}
MemberHello read(const fb::MemberHello& m) {
  const Generation installed = m.installed() == nullptr ? Generation{} : read(*m.installed());
  return {read(*m.member()),
          read(*m.fingerprint()),
          read(*m.description()),
          installed,
          m.paces_saves(),
          {m.shards(), m.shard_copies()},
          {m.state_bytes(), m.shard_bytes()},
          m.paces_local_saves(),
          m.protocol(),
          m.drains_saves()};
}

Offset<fb::Started> write(FlatBufferBuilder& to, const Started& m) {
  const auto generation = write(m.generation);
  const auto digest = write(m.digest);
  return fb::CreateStarted(to, &generation, m.version, &digest, write(to, m.lineage), m.durable);
}
Started read(const fb::Started& m) {
  return {read(*m.generation()), m.version(), read(*m.digest()), read(*m.lineage()), m.durable()};
}

Offset<fb::Report> write(FlatBufferBuilder& to, const Report& m) {
  const auto generation = write(m.generation);
  const auto installed = write(m.installed);
  const auto gradient_in = write(m.gradient_in);
  const auto knows = write(m.knows);
  const auto shards = write(to, m.shards);
  return fb::CreateReport(to, &generation, m.attempt, m.version, m.torn, &installed, shards, &gradient_in,
                          write(to, m.arrived), &knows);
}
Report read(const fb::Report& m) {
  return {read(*m.generation()), m.attempt(),      m.version(),           m.torn(),
          read(*m.installed()),  read(m.shards()), read(m.gradient_in()), read(m.arrived()),
          read(m.knows())};
}

Offset<fb::Ready> write(FlatBufferBuilder& to, const Ready& m) {
  const auto generation = write(m.generation);
  return fb::CreateReady(to, &generation, m.attempt);
}
Ready read(const fb::Ready& m) { return {read(*m.generation()), m.attempt()}; }

Offset<fb::Suspect> write(FlatBufferBuilder& to, const Suspect& m) {
  const auto generation = write(m.generation);
  const auto members = write(to, m.members);
  return fb::CreateSuspect(to, &generation, members, write(to, m.why));
}
Suspect read(const fb::Suspect& m) { return {read(*m.generation()), read(*m.members()), read(*m.why())}; }

Offset<fb::AtBoundary> write(FlatBufferBuilder& to, const AtBoundary& m) {
  const auto generation = write(m.generation);
  return fb::CreateAtBoundary(to, &generation, m.plan, m.version);
}
AtBoundary read(const fb::AtBoundary& m) { return {read(*m.generation()), m.plan(), m.version()}; }

Offset<fb::Level> write(FlatBufferBuilder& to, const Level& m) { return fb::CreateLevel(to, m.version); }
Level read(const fb::Level& m) { return {m.version()}; }

Offset<fb::LearnFailed> write(FlatBufferBuilder& to, const LearnFailed& m) {
  return fb::CreateLearnFailed(to, m.lesson, write(to, m.why), m.lags);
}
LearnFailed read(const fb::LearnFailed& m) { return {m.lesson(), read(*m.why()), m.lags()}; }

Offset<fb::Progress> write(FlatBufferBuilder& to, const Progress& m) {
  const auto generation = write(m.generation);
  return fb::CreateProgress(to, &generation, m.version, m.microbatch, m.microbatches);
}
Progress read(const fb::Progress& m) {
  return {read(*m.generation()), m.version(), m.microbatch(), m.microbatches()};
}

Offset<fb::SaveDue> write(FlatBufferBuilder& to, const SaveDue& m) {
  const auto generation = write(m.generation);
  return fb::CreateSaveDue(to, &generation, m.version, m.last, m.tier == Tier::kLocal);
}
SaveDue read(const fb::SaveDue& m) {
  return {read(*m.generation()), m.version(), m.last(), tier_of(m.local())};
}

Offset<fb::SaveVote> write(FlatBufferBuilder& to, const SaveVote& m) {
  const auto record = write(to, m.record);
  const auto held_in = write(m.held_in);
  const flatbuffers::Optional<uint32_t> part =
      m.part ? flatbuffers::Optional<uint32_t>(*m.part) : flatbuffers::nullopt;
  return fb::CreateSaveVote(to, m.save, m.written, record, write(to, m.why), m.bytes, m.stalled, m.held_back,
                            part, m.part ? &held_in : nullptr);
}
SaveVote read(const fb::SaveVote& m) {
  SaveVote vote{m.save(),  m.written(), read(*m.record()), read(*m.why()),
                m.bytes(), m.stalled(), m.held_back()};
  if (const auto part = m.part()) vote.part = *part;
  if (m.held_in() != nullptr) vote.held_in = read(*m.held_in());
  return vote;
}

Offset<fb::SavePublished> write(FlatBufferBuilder& to, const SavePublished& m) {
  return fb::CreateSavePublished(to, m.save, m.published, write(to, m.why));
}
SavePublished read(const fb::SavePublished& m) { return {m.save(), m.published(), read(*m.why())}; }

Offset<fb::Leaving> write(FlatBufferBuilder& to, const Leaving& m) {
  return fb::CreateLeaving(to, m.exit_code, m.version, write(to, m.why));
}
Leaving read(const fb::Leaving& m) { return {m.exit_code(), m.version(), read(*m.why())}; }

Offset<fb::NodeWelcome> write(FlatBufferBuilder& to, const NodeWelcome& m) {
  const auto newest = write(m.newest);
  return fb::CreateNodeWelcome(to, &newest, m.heartbeat_every, m.term);
}
NodeWelcome read(const fb::NodeWelcome& m) { return {read(*m.newest()), m.heartbeat_every(), m.term()}; }

Offset<fb::NodeRefused> write(FlatBufferBuilder& to, const NodeRefused& m) {
  return fb::CreateNodeRefused(to, write(to, m.why), m.exit_code);
}
NodeRefused read(const fb::NodeRefused& m) { return {read(*m.why()), m.exit_code()}; }

Offset<fb::Evict> write(FlatBufferBuilder& to, const Evict& m) {
  const auto generation = write(m.generation);
  return fb::CreateEvict(to, &generation, write(to, m.members));
}
Evict read(const fb::Evict& m) { return {read(*m.generation()), read(*m.members())}; }

Offset<fb::EndJob> write(FlatBufferBuilder& to, const EndJob& m) {
  return fb::CreateEndJob(to, m.exit_code, write(to, m.why));
}
EndJob read(const fb::EndJob& m) { return {m.exit_code(), read(*m.why())}; }

Offset<fb::Agree> write(FlatBufferBuilder& to, const Agree& m) {
  const auto generation = write(m.generation);
  return fb::CreateAgree(to, &generation, m.attempt, m.revoke, write(to, m.why));
}
Agree read(const fb::Agree& m) { return {read(*m.generation()), m.attempt(), m.revoke(), read(*m.why())}; }

Offset<fb::Install> write(FlatBufferBuilder& to, const Install& m) {
  const auto view = write(to, m.view);
  std::vector<fb::Transfer> list;
  list.reserve(m.transfers.size());
  for (const Transfer& transfer : m.transfers)
    list.emplace_back(transfer.source, transfer.target, transfer.gradient, transfer.part, transfer.parts);
  const auto transfers = to.CreateVectorOfStructs(list);
  std::vector<fb::ShardMove> moved;
  moved.reserve(m.moves.size());
  for (const ShardMove& move : m.moves) moved.emplace_back(move.shard, move.source, move.target);
  const auto moves = to.CreateVectorOfStructs(moved);
  const auto since = write(m.since);
  const auto left = write(to, m.left);
  return fb::CreateInstall(to, view, m.attempt, transfers, write(to, m.why), moves, m.bytes_sent,
                           m.bytes_moved, &since, left, write(to, m.ranks));
}
Install read(const fb::Install& m) {
  Install install{read(*m.view()), m.attempt(), {}, read(*m.why()), {}};
  for (const fb::Transfer& transfer : copied<fb::Transfer>(*m.transfers()))
    install.transfers.push_back(
        {transfer.source(), transfer.target(), transfer.gradient(), transfer.part(), transfer.parts()});
  install.bytes_sent = m.bytes_sent();
  install.bytes_moved = m.bytes_moved();
  install.since = read(m.since());
  if (m.left() != nullptr) install.left = read(*m.left());
  install.ranks = read(m.ranks());
  if (m.moves() == nullptr) return install;
  for (const fb::ShardMove& move : copied<fb::ShardMove>(*m.moves()))
    install.moves.push_back({move.shard(), move.source(), move.target()});
  return install;
}

Offset<fb::Go> write(FlatBufferBuilder& to, const Go& m) {
  const auto generation = write(m.generation);
  return fb::CreateGo(to, &generation);
}
Go read(const fb::Go& m) { return {read(*m.generation())}; }

Offset<fb::PlanNumber> write(FlatBufferBuilder& to, const PlanNumber& m) {
  return fb::CreatePlanNumber(to, m.plan);
}
PlanNumber read(const fb::PlanNumber& m) { return {m.plan()}; }

Offset<fb::Proceed> write(FlatBufferBuilder& to, const Proceed& m) { return fb::CreateProceed(to, m.plan); }
Proceed read(const fb::Proceed& m) { return {m.plan()}; }

Offset<fb::Teach> write(FlatBufferBuilder& to, const Teach& m) {
  return fb::CreateTeach(to, m.lesson, write(to, m.learner));
}
Teach read(const fb::Teach& m) { return {m.lesson(), read(*m.learner())}; }

Offset<fb::Learn> write(FlatBufferBuilder& to, const Learn& m) {
  const auto source = write(to, m.source);
  return fb::CreateLearn(to, m.lesson, source, write(to, m.view));
}
Learn read(const fb::Learn& m) { return {m.lesson(), read(*m.source()), read(*m.view())}; }

Offset<fb::LessonOver> write(FlatBufferBuilder& to, const LessonOver& m) {
  return fb::CreateLessonOver(to, m.lesson);
}
LessonOver read(const fb::LessonOver& m) { return {m.lesson()}; }

Offset<fb::LearnUntil> write(FlatBufferBuilder& to, const LearnUntil& m) {
  return fb::CreateLearnUntil(to, m.plan, m.version);
}
LearnUntil read(const fb::LearnUntil& m) { return {m.plan(), m.version()}; }

Offset<fb::SaveOpen> write(FlatBufferBuilder& to, const SaveOpen& m) {
  const auto lineage = write(to, m.lineage);
  const auto participants = write(to, m.participants);
  const auto all_of = write(m.all_of);
  return fb::CreateSaveOpen(to, m.save, m.version, lineage, participants, &all_of, m.stop, m.rescue,
                            write(to, m.writers), m.tier == Tier::kLocal, m.drain);
}
SaveOpen read(const fb::SaveOpen& m) {
  return {m.save(), m.version(), read(*m.lineage()), read(*m.participants()), read(*m.all_of()),
          m.stop(), m.rescue(),  read(m.writers()),  tier_of(m.local()),      m.drain()};
}

Offset<fb::SaveSchedule> write(FlatBufferBuilder& to, const SaveSchedule& m) {
  return fb::CreateSaveSchedule(to, m.from, m.every, m.tier == Tier::kLocal);
}
SaveSchedule read(const fb::SaveSchedule& m) { return {m.from(), m.every(), tier_of(m.local())}; }

Offset<fb::SaveHurry> write(FlatBufferBuilder& to, const SaveHurry& m) {
  return fb::CreateSaveHurry(to, m.save);
}
SaveHurry read(const fb::SaveHurry& m) { return {m.save()}; }

Offset<fb::SaveRewrite> write(FlatBufferBuilder& to, const SaveRewrite& m) {
  const auto opened_in = write(m.opened_in);
  return fb::CreateSaveRewrite(to, m.save, m.part, m.version, &opened_in, write(to, m.shards),
                               m.tier == Tier::kLocal);
}
SaveRewrite read(const fb::SaveRewrite& m) {
  SaveRewrite rewrite{m.save(), m.part(), m.version(), read(*m.opened_in()), {}, tier_of(m.local())};
  rewrite.shards = read(m.shards());
  return rewrite;
}

Offset<fb::StoreOffer> write(FlatBufferBuilder& to, const StoreOffer& m) {
  return fb::CreateStoreOffer(to, m.term, write(to, m.view));
}
StoreOffer read(const fb::StoreOffer& m) { return {m.term(), read(*m.view())}; }

Offset<fb::StoreAnswer> write(FlatBufferBuilder& to, const StoreAnswer& m) {
  return fb::CreateStoreAnswer(to, m.term, m.port, write(to, m.why));
}
StoreAnswer read(const fb::StoreAnswer& m) { return {m.term(), m.port(), read(*m.why())}; }

Offset<fb::StoreMoved> write(FlatBufferBuilder& to, const StoreMoved& m) {
  const auto name = write(to, m.name);
  return fb::CreateStoreMoved(to, m.term, m.node, name, write(to, m.host), m.port, m.former);
}
StoreMoved read(const fb::StoreMoved& m) {
  return {m.term(), m.node(), read(*m.name()), read(*m.host()), m.port(), m.former()};
}

Offset<fb::SavePublish> write(FlatBufferBuilder& to, const SavePublish& m) {
  std::vector<Offset<fb::Bytes>> records;
  records.reserve(m.records.size());
  for (const ByteBuffer& record : m.records) records.push_back(fb::CreateBytes(to, write(to, record)));
  return fb::CreateSavePublish(to, m.save, to.CreateVector(records), m.tier == Tier::kLocal);
}
SavePublish read(const fb::SavePublish& m) {
  SavePublish publish{m.save(), {}, tier_of(m.local())};
  for (const fb::Bytes* record : *m.records()) publish.records.push_back(read(*record->bytes()));
  return publish;
}

Offset<fb::SaveClosed> write(FlatBufferBuilder& to, const SaveClosed& m) {
  return fb::CreateSaveClosed(to, m.save, m.durable, write(to, m.why), m.version, m.tier == Tier::kLocal);
}
SaveClosed read(const fb::SaveClosed& m) {
  return {m.save(), m.durable(), read(*m.why()), m.version(), tier_of(m.local())};
}

Offset<fb::End> write(FlatBufferBuilder& to, const End& m) {
  return fb::CreateEnd(to, m.exit_code, write(to, m.why));
}
End read(const fb::End& m) { return {m.exit_code(), read(*m.why())}; }

Offset<fb::WorkerEvent> write(FlatBufferBuilder& to, const WorkerEvent& m) {
  return fb::CreateWorkerEvent(to, write(to, m.event));
}
WorkerEvent read(const fb::WorkerEvent& m) { return {read(*m.event())}; }

Offset<fb::Neighbours> write(FlatBufferBuilder& to, const Neighbours& m) {
  std::vector<Offset<fb::Neighbour>> nodes;
  nodes.reserve(m.nodes.size());
  for (const Neighbour& node : m.nodes) {
    const auto name = write(to, node.name);
    nodes.push_back(fb::CreateNeighbour(to, node.node, name, write(to, node.host), node.port));
  }
  return fb::CreateNeighbours(to, to.CreateVector(nodes));
}
Neighbours read(const fb::Neighbours& m) {
  Neighbours neighbours;
  for (const fb::Neighbour* node : *m.nodes())
    neighbours.nodes.push_back({node->node(), read(*node->name()), read(*node->host()), node->port()});
  return neighbours;
}

Offset<fb::LeaderLink> write(FlatBufferBuilder& to, const LeaderLink& m) {
  return fb::CreateLeaderLink(to, m.lost, write(to, m.why));
}
LeaderLink read(const fb::LeaderLink& m) { return {m.lost(), read(*m.why())}; }

Offset<fb::RescueHello> write(FlatBufferBuilder& to, const RescueHello& m) {
  const auto name = write(to, m.name);
  return fb::CreateRescueHello(to, m.node, name, write(to, m.members));
}
RescueHello read(const fb::RescueHello& m) { return {m.node(), read(*m.name()), read(*m.members())}; }

Offset<fb::RescueRefused> write(FlatBufferBuilder& to, const RescueRefused& m) {
  return fb::CreateRescueRefused(to, write(to, m.why));
}
RescueRefused read(const fb::RescueRefused& m) { return {read(*m.why())}; }

Offset<fb::RescueAsk> write(FlatBufferBuilder& to, const RescueAsk&) { return fb::CreateRescueAsk(to); }
RescueAsk read(const fb::RescueAsk&) { return {}; }

Offset<fb::RescueReport> write(FlatBufferBuilder& to, const RescueReport& m) {
  const auto installed = write(m.installed);
  const auto digest = write(m.digest);
  const auto before = write(m.before);
  return fb::CreateRescueReport(to, m.version, &installed, &digest, m.durable, m.base, &before, m.shard_count,
                                write(to, m.shards));
}
RescueReport read(const fb::RescueReport& m) {
  const Generation before = m.before() == nullptr ? Generation{} : read(*m.before());
  return {m.version(), read(*m.installed()), read(*m.digest()), m.durable(), m.base(),
          before,      m.shard_count(),      read(m.shards())};
}

Offset<fb::RescueOver> write(FlatBufferBuilder& to, const RescueOver& m) {
  return fb::CreateRescueOver(to, m.version, write(to, m.why));
}
RescueOver read(const fb::RescueOver& m) { return {m.version(), read(*m.why())}; }

Offset<fb::BaseDigest> write(FlatBufferBuilder& to, const BaseDigest& m) {
  const auto generation = write(m.generation);
  const auto digest = write(m.digest);
  return fb::CreateBaseDigest(to, &generation, &digest, write(to, m.shards));
}
BaseDigest read(const fb::BaseDigest& m) {
  return {read(*m.generation()), read(*m.digest()), read(m.shards())};
}

Offset<fb::BaseConfirmed> write(FlatBufferBuilder& to, const BaseConfirmed& m) {
  const auto generation = write(m.generation);
  return fb::CreateBaseConfirmed(to, &generation);
}
BaseConfirmed read(const fb::BaseConfirmed& m) { return {read(*m.generation())}; }

// ---- frames

template <typename T>
struct OffsetTarget;
template <typename T>
struct OffsetTarget<Offset<T>> {
  using type = T;
};

// fb::Body numbers the messages from 1 in the order of the variant.
template <size_t index = 0>
Result<Message> read_body(size_t wanted, const void* table) {
  if constexpr (index == std::variant_size_v<Message>) {
    return Error{ErrorCode::kMisuse, "a message of unknown kind " + std::to_string(wanted + 1) +
                                         "; run the same version of muster on every node"};
  } else {
    using M = std::variant_alternative_t<index, Message>;
    using Written = decltype(write(std::declval<FlatBufferBuilder&>(), std::declval<const M&>()));
    if (wanted != index) return read_body<index + 1>(wanted, table);
    return Message{read(*static_cast<const typename OffsetTarget<Written>::type*>(table))};
  }
}

template <typename Root>
Result<const Root*> verified_root(ByteSpan bytes, ByteBuffer& aligned) {
  const auto bad = [](const std::string& what) { return Error{ErrorCode::kMisuse, what}; };
  if (bytes.size() < kFrameBytesMin) return bad("a frame of " + std::to_string(bytes.size()) + " bytes");
  if (bytes.size() > kFrameBytesMax) return bad("a frame above the limit of " + human_bytes(kFrameBytesMax));
  if (reinterpret_cast<uintptr_t>(bytes.data()) % alignof(uint64_t) != 0) {
    aligned.assign(bytes.begin(), bytes.end());
    bytes = aligned;
  }
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  if (!flatbuffers::BufferHasIdentifier(data, fb::FrameIdentifier()))
    return bad("a frame of another protocol or major version; run the same version of muster on every node");
  flatbuffers::Verifier verifier(data, bytes.size(), kDepthMax, kTablesMax);
  if (!verifier.VerifyBuffer<Root>(fb::FrameIdentifier())) return bad("a damaged frame");
  return flatbuffers::GetRoot<Root>(data);
}

Result<ByteBuffer> finished(FlatBufferBuilder& from) {
  if (from.GetSize() > kFrameBytesMax) {
    return Error{ErrorCode::kMisuse, "a message of " + human_bytes(from.GetSize()) +
                                         " is above the control plane's limit of " +
                                         human_bytes(kFrameBytesMax) + "; send less in one message"};
  }
  const auto* first = reinterpret_cast<const std::byte*>(from.GetBufferPointer());
  return ByteBuffer(first, first + from.GetSize());
}

template <typename T>
Result<ByteBuffer> encode_root(const T& value) {
  FlatBufferBuilder to;
  to.Finish(write(to, value), fb::FrameIdentifier());
  return finished(to);
}

// A builder asserts where it would pass 2 GiB; the large fields are summed first.
size_t large_bytes(const Message& message) {
  if (const auto* vote = std::get_if<SaveVote>(&message)) return vote->record.size();
  size_t sum = 0;
  if (const auto* publish = std::get_if<SavePublish>(&message))
    for (const ByteBuffer& record : publish->records) sum += record.size();
  return sum;
}

// What reads it later counts on this.
Status check_shards(const View& view, bool is_whole = true) {
  const ShardMap& map = view.shards;
  const bool even = map.copies == 0 ? map.ranks.empty() : map.ranks.size() % map.copies == 0;
  const bool known = std::all_of(map.ranks.begin(), map.ranks.end(), [&](uint32_t rank) {
    return rank == ShardMap::kNobody || !is_whole || rank < view.members.size();
  });
  if (even && known) return ok();
  return Error{ErrorCode::kMisuse, "a view whose shards are held by ranks that it does not have"};
}

Status check_transfers(const std::vector<Transfer>& transfers) {
  const bool known = std::ranges::all_of(transfers, [](const Transfer& transfer) {
    return transfer.part < transfer.parts && transfer.parts <= kPartsMax;
  });
  if (known) return ok();
  return Error{ErrorCode::kMisuse, "a view whose state is sent in parts that there are not"};
}

}  // namespace

Result<ByteBuffer> encode(const Envelope& envelope) {
  if (large_bytes(envelope.message) > kFrameBytesMax) {
    return Error{ErrorCode::kMisuse, "a message of " + human_bytes(large_bytes(envelope.message)) +
                                         " is above the control plane's limit of " +
                                         human_bytes(kFrameBytesMax) + "; send less in one message"};
  }
  FlatBufferBuilder to;
  const auto body =
      std::visit([&](const auto& message) { return write(to, message).Union(); }, envelope.message);
  const auto kind = static_cast<fb::Body>(envelope.message.index() + 1);
  const auto others = envelope.others.empty() ? 0 : write(to, envelope.others);
  to.Finish(fb::CreateFrame(to, envelope.member, kind, body, others), fb::FrameIdentifier());
  return finished(to);
}

Result<Envelope> decode_envelope(ByteSpan bytes) {
  static_assert(static_cast<size_t>(fb::Body::MAX) == std::variant_size_v<Message>);
  ByteBuffer aligned;
  MUSTER_ASSIGN(const fb::Frame* frame, verified_root<fb::Frame>(bytes, aligned));
  const auto kind = static_cast<size_t>(frame->body_type());
  if (kind == 0 || frame->body() == nullptr) return Error{ErrorCode::kMisuse, "a frame without a message"};
  if (frame->body_type() == fb::Body::NoticeRaised &&
      frame->body_as_NoticeRaised()->scope() > static_cast<uint8_t>(Scope::kJob)) {
    return Error{ErrorCode::kMisuse, "a notice of unknown scope"};
  }
  MUSTER_ASSIGN(Message message, read_body(kind - 1, frame->body()));
  if (const auto* install = std::get_if<Install>(&message)) {
    MUSTER_TRY(check_shards(install->view, install->since.counter == 0));
    MUSTER_TRY(check_transfers(install->transfers));
  }
  if (const auto* learn = std::get_if<Learn>(&message)) MUSTER_TRY(check_shards(learn->view));
  if (const auto* offer = std::get_if<StoreOffer>(&message)) MUSTER_TRY(check_shards(offer->view));
  Envelope envelope{frame->member(), std::move(message), {}};
  if (frame->others() != nullptr) envelope.others = read(*frame->others());
  return envelope;
}

Result<ByteBuffer> encode(const View& view) { return encode_root(view); }
Result<View> decode_view(ByteSpan bytes) {
  ByteBuffer aligned;
  MUSTER_ASSIGN(const fb::View* found, verified_root<fb::View>(bytes, aligned));
  View view = read(*found);
  MUSTER_TRY(check_shards(view));
  return view;
}

Result<ByteBuffer> encode(const Event& event) { return encode_root(event); }
Result<Event> decode_event(ByteSpan bytes) {
  ByteBuffer aligned;
  MUSTER_ASSIGN(const fb::Event* event, verified_root<fb::Event>(bytes, aligned));
  return read(*event);
}

}  // namespace muster::control
