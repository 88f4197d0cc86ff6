// The savers of one process: one for the folder that all nodes share and, where the program wants it, one for
// a folder of its node's own. Each has its own thread, options and retention; saves of the two may run at
// once. Messages find their saver here.
//
// INVARIANT: a version that a drain reads stays in the node's folder until that save is over.
//
// INVARIANT: only the shared one makes the saves that a notice, a stop, a lost leader or the end ask for, and
// only what it has saved is durable for the program and for whoever plans.
#pragma once

#include <memory>
#include <string>

#include "runtime/saver.h"

namespace muster {

struct LocalSaveOptions {
  std::string folder;  // one of the node's disks, or its memory; empty: no local saves
  int64_t every = 0;   // steps; or SaveOptions::kPaced
  bool drain = false;  // the shared folder's periodic saves are made of these
};

// Below the folder that was given, one for each node by its name: two nodes of one machine have two, and a
// node finds its own when it is started again.
std::string folder_of_node(const std::string& local_folder, const std::string& node_name);

class Tiers {
 public:
  Tiers(State& state, const SaveOptions& shared, const LocalSaveOptions& local, const control::Member& self,
        const checkpoint::JobConstants& job, int64_t samples_per_step, Saver::Say say,
        const Saver::Emit& emit);

  Saver& shared() { return shared_; }
  const Saver& shared() const { return shared_; }
  // Null: the program wants none, or it was switched off.
  Saver* local() { return local_ && local_->enabled() ? local_.get() : nullptr; }
  Saver* of(Tier tier) { return tier == Tier::kShared ? &shared_ : local_.get(); }

  // As of each saver.
  void prepare(const control::View& view);
  void release();
  void expire(Instant now);
  void view_begins(control::Version base);
  void cancel_staging();

  // Of the tier that the message names.
  void open(const control::SaveOpen& open);
  void rewrite(const control::SaveRewrite& rewrite, std::optional<control::Generation> held_in);
  void publish(const control::SavePublish& publish);
  void closed(const control::SaveClosed& closed);
  void schedule(const control::SaveSchedule& schedule);

 private:
  template <typename Do>
  void each(Do what) {
    what(shared_);
    if (local_) what(*local_);
  }

  const control::Member self_;
  const Saver::Say say_;
  std::unique_ptr<Saver> local_;  // outlives the other, whose drains read what it saved
  Saver shared_;
};

// The members of the view on that node, in rank order: they make its local saves.
std::vector<control::MemberId> members_on(const control::View& view, control::NodeId node);

}  // namespace muster
