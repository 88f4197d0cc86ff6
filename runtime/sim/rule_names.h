// The switches of RuleSwitches by name, for command line and tests.
#pragma once

#include <iterator>
#include <string>

#include "runtime/control/rules.h"

namespace muster::sim {

struct NamedRule {
  const char* name;
  bool control::RuleSwitches::*flag;
  bool of_leaders = false;  // at work where leaders change: Options::shared_store
};

inline constexpr NamedRule kRules[] = {
    {"refuse_after_report", &control::RuleSwitches::refuse_after_report},
    {"await_open_update", &control::RuleSwitches::await_open_update},
    {"tear_open_update", &control::RuleSwitches::tear_open_update},
    {"digest_checked", &control::RuleSwitches::digest_checked},
    {"branch_checked", &control::RuleSwitches::branch_checked},
    {"shards_counted", &control::RuleSwitches::shards_counted},
    {"shards_kept_until_update", &control::RuleSwitches::shards_kept_until_update},
    {"shards_mended", &control::RuleSwitches::shards_mended},
    {"shards_given_first", &control::RuleSwitches::shards_given_first},
    {"transfers_are_staged", &control::RuleSwitches::transfers_are_staged},
    {"evict_before_ready", &control::RuleSwitches::evict_before_ready},
    {"stores_told_apart", &control::RuleSwitches::stores_told_apart},
    {"own_absence_noticed", &control::RuleSwitches::own_absence_noticed},
    {"store_guarded", &control::RuleSwitches::store_guarded},
    {"frozen_refuses", &control::RuleSwitches::frozen_refuses},
    {"plan_baseline", &control::RuleSwitches::plan_baseline},
    {"boundary_awaits_all", &control::RuleSwitches::boundary_awaits_all},
    {"joins_wait_for_step", &control::RuleSwitches::joins_wait_for_step},
    {"quarantine_kept", &control::RuleSwitches::quarantine_kept},
    {"laggards_waited_for", &control::RuleSwitches::laggards_waited_for},
    {"end_awaits_all", &control::RuleSwitches::end_awaits_all},
    {"save_needs_all_votes", &control::RuleSwitches::save_needs_all_votes},
    {"saves_outlive_views", &control::RuleSwitches::saves_outlive_views},
    {"rewrites_checked", &control::RuleSwitches::rewrites_checked},
    {"drains_of_view", &control::RuleSwitches::drains_of_view},
    {"stop_bounds_permits", &control::RuleSwitches::stop_bounds_permits},
    {"silence_is_bounded", &control::RuleSwitches::silence_is_bounded},
    {"survivors_save", &control::RuleSwitches::survivors_save},
    {"rescue_asks_all", &control::RuleSwitches::rescue_asks_all},
    {"leader_fenced", &control::RuleSwitches::leader_fenced, true},
    {"lease_checked", &control::RuleSwitches::lease_checked, true},
    {"terms_counted", &control::RuleSwitches::terms_counted, true},
    {"takeover_waits", &control::RuleSwitches::takeover_waits, true},
    {"former_is_asked", &control::RuleSwitches::former_is_asked, true},
    {"refusals_count", &control::RuleSwitches::refusals_count, true},
    {"refusals_are_said", &control::RuleSwitches::refusals_are_said, true},
    {"takeover_evicts", &control::RuleSwitches::takeover_evicts, true},
    {"former_leader_is_silent", &control::RuleSwitches::former_leader_is_silent},
    {"store_moves_at_boundary", &control::RuleSwitches::store_moves_at_boundary},
    {"start_is_kept", &control::RuleSwitches::start_is_kept, true},
};

inline bool switch_off(control::RuleSwitches& rules, const std::string& name) {
  for (const NamedRule& rule : kRules) {
    if (name != rule.name) continue;
    rules.*rule.flag = false;
    return true;
  }
  return false;
}

inline std::string rule_list() {
  std::string list;
  for (const NamedRule& rule : kRules) list += std::string(" ") + rule.name;
  return list;
}

}  // namespace muster::sim
