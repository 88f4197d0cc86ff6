#include "runtime/tiers.h"

#include <algorithm>
#include <cstdio>
#include <string_view>

#include "runtime/control/shard_placement.h"

namespace muster {
namespace {

SaveOptions options_of_local(const SaveOptions& shared, const LocalSaveOptions& local,
                             const control::Member& self) {
  SaveOptions options = shared;
  options.tier = Tier::kLocal;
  options.folder = folder_of_node(local.folder, self.node_name);
  options.every = local.every;
  // These spare the shared disk, or archive.
  options.bytes_per_second_max = 0;
  options.keep_every = 0;
  options.keep_younger_ms = 0;
  options.parity = 0;
  return options;
}

}  // namespace

std::string folder_of_node(const std::string& local_folder, const std::string& node_name) {
  constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
  std::string name;
  for (const char c : node_name) {
    char escaped[4];
    std::snprintf(escaped, sizeof escaped, "%%%02x", static_cast<unsigned char>(c));
    name += kPlain.find(c) != std::string_view::npos ? std::string(1, c) : escaped;
  }
  return local_folder + "/node-" + name;
}

std::vector<control::MemberId> members_on(const control::View& view, control::NodeId node) {
  std::vector<control::MemberId> ids;
  for (const control::Member& member : view.members) {
    if (member.node == node) ids.push_back(member.id);
  }
  return ids;
}

Tiers::Tiers(State& state, const SaveOptions& shared, const LocalSaveOptions& local,
             const control::Member& self, const checkpoint::JobConstants& job, int64_t samples_per_step,
             Saver::Say say, const Saver::Emit& emit)
    : self_(self), say_(std::move(say)), shared_(state, shared, job, samples_per_step, say_, emit) {
  if (local.folder.empty()) return;
  local_ = std::make_unique<Saver>(state, options_of_local(shared, local, self), job, samples_per_step, say_,
                                   emit);
  shared_.drain_from(*local_);
}

// As the leader will choose, where all take part.
void Tiers::prepare(const control::View& view) {
  const auto index_in = [&](const std::vector<control::MemberId>& ids) {
    return static_cast<uint32_t>(std::find(ids.begin(), ids.end(), self_.id) - ids.begin());
  };
  const auto size = static_cast<uint32_t>(view.members.size());
  shared_.prepare({view.rank_of(self_.id).value_or(0), size, control::spread_over_holders(view.shards)});
  if (!local_) return;
  const std::vector<control::MemberId> here = members_on(view, self_.node);
  local_->prepare({index_in(here), static_cast<uint32_t>(here.size()), {}});
}

void Tiers::release() {
  each([](Saver& saver) { saver.release(); });
}

void Tiers::expire(Instant now) {
  each([now](Saver& saver) { saver.expire(now); });
}

void Tiers::view_begins(control::Version base) {
  each([base](Saver& saver) { saver.view_begins(base); });
}

void Tiers::cancel_staging() {
  each([](Saver& saver) { saver.cancel_staging(); });
}

void Tiers::open(const control::SaveOpen& open) {
  if (open.drain && local_) local_->keep(open.save, open.version);
  if (Saver* const saver = of(open.tier)) return saver->open(open, self_.id);
  say_(control::SaveVote{open.save,
                         false,
                         {},
                         "this rank was given no checkpoint_local_dir, and another one of its node was; give "
                         "it to all of them or to none"});
}

void Tiers::rewrite(const control::SaveRewrite& rewrite, std::optional<control::Generation> held_in) {
  if (Saver* const saver = of(rewrite.tier)) saver->rewrite(rewrite, held_in);
}

void Tiers::publish(const control::SavePublish& publish) {
  if (Saver* const saver = of(publish.tier)) saver->publish(publish);
}

void Tiers::closed(const control::SaveClosed& closed) {
  if (closed.tier == Tier::kShared && local_) local_->let_go(closed.save);
  if (Saver* const saver = of(closed.tier)) saver->closed(closed);
}

void Tiers::schedule(const control::SaveSchedule& schedule) {
  if (Saver* const saver = of(schedule.tier)) saver->schedule(schedule);
}

}  // namespace muster
