#include "runtime/sim/crowd.h"

#include <time.h>

#include <string>

namespace muster::sim {

using namespace control;

namespace {

constexpr size_t kContactBytes = 200;  // of a UCX address with two network devices
constexpr size_t kRecordBytes = 112;   // of a vote
constexpr uint64_t kPartBytes = 1 << 20;

double thread_ms() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
}

}  // namespace

Crowd::Crowd(uint32_t nodes, uint32_t ranks_per_node, Heard heard)
    : nodes_(nodes), ranks_per_node_(ranks_per_node), heard_(std::move(heard)), voting_(nodes) {
  Limits limits;
  limits.nodes_min = 1;
  limits.nodes_max = nodes;
  limits.workers_per_node = ranks_per_node;
  leader_ = std::make_unique<Coordinator>(limits, "job", 77, now_);
}

Crowd::~Crowd() = default;

MemberId Crowd::id(NodeId node, uint32_t slot) const { return (uint64_t{node} << 16) + slot; }

Crowd::Cost Crowd::form() {
  cost_ = Cost{};
  for (NodeId node = 1; node <= nodes_; ++node) {
    NodeHello hello;
    hello.node = node;
    hello.name = "n" + std::to_string(node);
    hello.job = "job";
    hello.workers = ranks_per_node_;
    hello.nodes_min = 1;
    hello.nodes_max = nodes_;
    hello.rescue_host = "10.0.0.1";
    hello.rescue_port = 7000;
    hear(node, 0, hello);
    for (uint32_t slot = 0; slot < ranks_per_node_; ++slot) {
      MemberHello member;
      member.member = Member{id(node, slot), node, slot, hello.name, ByteBuffer(kContactBytes)};
      hear(node, id(node, slot), member);
    }
  }
  drain_inbox();
  return cost_;
}

Crowd::Cost Crowd::lose(uint32_t nodes) {
  cost_ = Cost{};
  disconnect(nodes);
  drain_inbox();
  return cost_;
}

Crowd::Cost Crowd::save_locally() {
  cost_ = Cost{};
  voting_ = nodes_;
  ++version_;
  for (NodeId node = 1; node <= nodes_; ++node)
    hear(node, id(node, 0), SaveDue{leader_->view().generation, version_, false, Tier::kLocal});
  drain_inbox();
  return cost_;
}

Crowd::Cost Crowd::drain(uint32_t nodes) {
  cost_ = Cost{};
  for (NodeId node = nodes_ - nodes + 1; node <= nodes_; ++node) {
    NoticeRaised notice;
    notice.scope = Scope::kNode;
    notice.source = "a test";
    hear(node, 0, notice);
  }
  now_ += kSecond;  // in which other notices could have come
  timed([&] { return leader_->tick(now_); });
  drain_inbox();
  nodes_ -= nodes;
  return cost_;
}

Crowd::Cost Crowd::save(uint32_t lost, bool refused) {
  cost_ = Cost{};
  voting_ = nodes_ - lost;
  refuses_ = refused;
  ++version_;
  hear(1, id(1, 0), SaveDue{leader_->view().generation, version_});
  drain_inbox();
  disconnect(lost);
  drain_inbox();
  return cost_;
}

Crowd::Cost Crowd::progress() {
  cost_ = Cost{};
  ++version_;
  const Generation generation = leader_->view().generation;
  all_say([&](NodeId node, MemberId member) {
    hear(node, member, Progress{generation, version_, 10 * kMillisecond, 1});
  });
  drain_inbox();
  return cost_;
}

Crowd::Cost Crowd::end() {
  cost_ = Cost{};
  all_say([&](NodeId node, MemberId member) { hear(node, member, Leaving{0, version_, ""}); });
  drain_inbox();
  return cost_;
}

template <typename Say>
void Crowd::all_say(Say&& say) {
  for (NodeId node = 1; node <= nodes_; ++node) {
    for (uint32_t slot = 0; slot < ranks_per_node_; ++slot) say(node, id(node, slot));
  }
}

bool Crowd::ended() const { return leader_->phase() == "ended"; }

bool Crowd::running() const {
  return leader_->phase() == "running" && leader_->view().members.size() == ranks();
}

void Crowd::disconnect(uint32_t nodes) {
  for (; nodes > 0; --nodes) timed([&] { return leader_->disconnected(now_, nodes_--, "connection reset"); });
}

void Crowd::hear(NodeId node, MemberId member, Message message) {
  ++cost_.received;
  const Envelope envelope{member, std::move(message), {}};
  timed([&] { return leader_->receive(now_, node, envelope); });
}

template <typename Call>
void Crowd::timed(Call&& call) {
  const double began = thread_ms();
  Actions actions = call();
  cost_.leader_ms += thread_ms() - began;
  for (Action& action : actions) {
    if (const auto* store = std::get_if<StoreView>(&action)) stores_.push_back(*store);
    if (const auto* send = std::get_if<Send>(&action)) deliver(send->node, send->envelope);
    if (auto* many = std::get_if<SendMany>(&action)) {
      Envelope envelope{0, std::move(many->message), {}};
      for (const auto& [node, members] : many->to) {
        envelope.member = members.front();
        envelope.others.assign(members.begin() + 1, members.end());
        deliver(node, envelope);
      }
    }
  }
}

void Crowd::deliver(NodeId node, const Envelope& envelope) {
  ++cost_.sent;
  if (heard_) heard_(envelope);
  if (envelope.member == 0) return;
  answer(node, envelope.member, envelope.message);
  for (const MemberId member : envelope.others) answer(node, member, envelope.message);
}

// What was answered travels while the leader still speaks.
void Crowd::drain_inbox() {
  while (!stores_.empty() || !inbox_.empty()) {
    if (!stores_.empty()) {
      const StoreView store = std::move(stores_.front());
      stores_.pop_front();
      timed([&] { return leader_->stored(now_, store.attempt, true, store.view); });
      continue;
    }
    auto [node, envelope] = std::move(inbox_.front());
    inbox_.pop_front();
    hear(node, envelope.member, std::move(envelope.message));
  }
}

void Crowd::answer(NodeId node, MemberId member, const Message& message) {
  const auto reply = [&](Message answered) {
    inbox_.emplace_back(node, Envelope{member, std::move(answered), {}});
  };
  if (const auto* agree = std::get_if<Agree>(&message)) {
    Report report;
    report.generation = report.installed = agree->generation;
    report.attempt = agree->attempt;
    report.version = version_;
    report.knows = agree->generation;
    reply(report);
  } else if (const auto* install = std::get_if<Install>(&message)) {
    base_ = install->view.base;
    reply(Ready{install->view.generation, install->attempt});
  } else if (const auto* go = std::get_if<Go>(&message)) {
    if (base_ == kNoVersion)
      reply(Started{go->generation, version_, Digest{1, 2}, {}});
    else
      reply(BaseDigest{go->generation, Digest{1, 2}, {}});
  } else if (const auto* plan = std::get_if<PlanNumber>(&message)) {
    reply(AtBoundary{leader_->view().generation, plan->plan, version_});
  } else if (const auto* open = std::get_if<SaveOpen>(&message); open != nullptr && votes_now(node)) {
    SaveVote vote{.save = open->save, .written = true, .record = ByteBuffer(kRecordBytes)};
    vote.bytes = kPartBytes;
    reply(vote);
  } else if (const auto* rewrite = std::get_if<SaveRewrite>(&message)) {
    SaveVote vote{.save = rewrite->save, .written = !refuses_, .record = ByteBuffer(kRecordBytes)};
    vote.part = rewrite->part;
    vote.held_in = rewrite->opened_in;
    reply(vote);
  } else if (const auto* publish = std::get_if<SavePublish>(&message)) {
    reply(SavePublished{publish->save, true, ""});
  } else if (const auto* closed = std::get_if<SaveClosed>(&message)) {
    if (member == id(1, 0) && closed->durable && closed->tier == Tier::kShared) ++saves_durable_;
  } else if (std::holds_alternative<End>(message)) {
    MemberGone gone;
    gone.member = member;
    gone.local_rank = static_cast<uint32_t>(member & 0xffff);
    gone.proven = gone.orderly = true;
    inbox_.emplace_back(node, Envelope{0, std::move(gone), {}});
  }
}

}  // namespace muster::sim
