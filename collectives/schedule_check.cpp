#include "collectives/schedule_check.h"

#include <bitset>
#include <deque>
#include <map>
#include <string>

namespace muster {
namespace {

struct Symbol {
  bool defined = false;
  bool final = false;
  uint64_t index = 0;
  std::bitset<kMaxContributions> contributions;
};
using Symbols = std::vector<Symbol>;

class Checker {
 public:
  Checker(std::span<const Schedule> schedules, const ScheduleMeaning& meaning)
      : schedules_(schedules),
        meaning_(meaning),
        ranks_(static_cast<int>(schedules.size())),
        states_(ranks_) {}

  Status run() {
    int contribution = 0;
    for (int rank = 0; rank < ranks_; ++rank) prepare(rank, contribution);
    bool moved = true;
    while (moved) {
      moved = false;
      for (int rank = 0; rank < ranks_; ++rank) {
        MUSTER_ASSIGN(const bool advanced, advance(rank));
        moved |= advanced;
      }
    }
    for (int rank = 0; rank < ranks_; ++rank) MUSTER_TRY(check_end(rank));
    for (const auto& [pair, queue] : messages_) {
      if (!queue.empty())
        return fault(pair.first, "sends a message that rank " + std::to_string(pair.second) + " never takes");
    }
    return ok();
  }

 private:
  struct RankState {
    std::vector<Symbols> inputs;
    Symbols output, scratch;
    size_t round = 0;
    bool started = false;
    size_t received = 0;
  };

  Error fault(int rank, const std::string& what) const {
    return {ErrorCode::kMisuse, std::string(schedules_[rank].algorithm) + " on " + std::to_string(ranks_) +
                                    " ranks: rank " + std::to_string(rank) + ", round " +
                                    std::to_string(states_[rank].round) + ": " + what};
  }

  void prepare(int rank, int& contribution) {
    RankState& state = states_[rank];
    for (int piece = 0; piece < meaning_.input_pieces[rank]; ++piece, ++contribution) {
      Symbols symbols(meaning_.input_count(rank));
      for (uint64_t i = 0; i < symbols.size(); ++i) {
        symbols[i].defined = true;
        symbols[i].index = i;
        symbols[i].contributions.set(static_cast<size_t>(contribution));
      }
      state.inputs.push_back(std::move(symbols));
    }
    state.output.resize(meaning_.output_count(rank));
    state.scratch.resize(schedules_[rank].scratch_count);
  }

  Result<Symbols*> buffer_of(int rank, const Region& region) {
    RankState& state = states_[rank];
    Symbols* symbols = region.buffer == BufferKind::kOutput ? &state.output : &state.scratch;
    if (region.buffer == BufferKind::kInput) {
      if (region.count == 0) return symbols;
      if (region.piece >= state.inputs.size()) return fault(rank, "names an input piece that does not exist");
      symbols = &state.inputs[region.piece];
    }
    if (region.offset + region.count > symbols->size()) return fault(rank, "leaves its buffer");
    return symbols;
  }

  Result<Symbols> read(int rank, const Region& region) {
    MUSTER_ASSIGN(Symbols * buffer, buffer_of(rank, region));
    const auto begin = buffer->begin() + static_cast<int64_t>(region.offset);
    Symbols values(begin, begin + static_cast<int64_t>(region.count));
    for (const Symbol& value : values) {
      if (!value.defined) return fault(rank, "reads an element that nothing wrote");
    }
    return values;
  }

  Status write(int rank, const Region& region, const Symbols& values) {
    MUSTER_ASSIGN(Symbols * buffer, buffer_of(rank, region));
    if (region.buffer == BufferKind::kInput && region.count > 0) return fault(rank, "writes into an input");
    if (values.size() != region.count) return fault(rank, "writes another number of elements than it has");
    std::copy(values.begin(), values.end(), buffer->begin() + static_cast<int64_t>(region.offset));
    return ok();
  }

  static bool overlap(const Region& a, const Region& b) {
    return a.buffer == b.buffer && a.piece == b.piece && a.offset < b.offset + b.count &&
           b.offset < a.offset + a.count;
  }

  Status check_overlaps(int rank, const Round& round) {
    for (size_t i = 0; i < round.receives.size(); ++i) {
      for (const Transfer& sent : round.sends) {
        if (overlap(round.receives[i].region, sent.region)) return fault(rank, "receives into what it sends");
      }
      for (size_t j = 0; j < i; ++j) {
        if (overlap(round.receives[i].region, round.receives[j].region))
          return fault(rank, "receives twice into the same place");
      }
    }
    return ok();
  }

  Status start(int rank, const Round& round) {
    MUSTER_TRY(check_overlaps(rank, round));
    for (const Transfer& transfer : round.sends) {
      if (transfer.peer < 0 || transfer.peer >= ranks_ || transfer.peer == rank)
        return fault(rank, "sends to a rank that does not exist, or to itself");
      MUSTER_ASSIGN(Symbols values, read(rank, transfer.region));
      messages_[{rank, transfer.peer}].push_back(std::move(values));
    }
    return ok();
  }

  Status fold(int rank, const Fold& fold) {
    Symbols result(fold.target.count);
    for (size_t s = 0; s < fold.sources.size(); ++s) {
      if (fold.sources[s].count != fold.target.count)
        return fault(rank, "folds regions of different lengths");
      MUSTER_ASSIGN(const Symbols source, read(rank, fold.sources[s]));
      for (size_t i = 0; i < source.size(); ++i) MUSTER_TRY(add(rank, fold, s, result[i], source[i]));
    }
    return write(rank, fold.target, result);
  }

  Status add(int rank, const Fold& fold, size_t position, Symbol& result, const Symbol& source) {
    if (fold.along_tree && (source.contributions.count() != 1 || !source.contributions.test(position)))
      return fault(rank, "gives the tree a leaf in another place than its own");
    if (result.defined && result.index != source.index)
      return fault(rank, "folds elements of different index");
    if ((result.contributions & source.contributions).any()) return fault(rank, "adds a contribution twice");
    if (meaning_.reduces && source.final) return fault(rank, "folds a value that was final already");
    result.defined = true;
    result.index = source.index;
    result.contributions |= source.contributions;
    result.final = fold.last;
    return ok();
  }

  Result<bool> advance(int rank) {
    RankState& state = states_[rank];
    if (state.round == schedules_[rank].rounds.size()) return false;
    const Round& round = schedules_[rank].rounds[state.round];
    if (!state.started) {
      MUSTER_TRY(start(rank, round));
      state.started = true;
      state.received = 0;
    }
    bool moved = false;
    for (; state.received < round.receives.size(); ++state.received, moved = true) {
      const Transfer& transfer = round.receives[state.received];
      auto& queue = messages_[{transfer.peer, rank}];
      if (queue.empty()) return moved;
      MUSTER_TRY(write(rank, transfer.region, queue.front()));
      queue.pop_front();
    }
    for (const Fold& step : round.folds) MUSTER_TRY(fold(rank, step));
    ++state.round;
    state.started = false;
    return true;
  }

  Status check_end(int rank) {
    const RankState& state = states_[rank];
    if (state.round != schedules_[rank].rounds.size())
      return fault(rank, "waits for a message that nobody sends");
    for (uint64_t i = 0; i < state.output.size(); ++i) {
      const auto wanted = meaning_.expected(rank, i);
      std::bitset<kMaxContributions> contributions;
      for (int contribution : wanted.contributions) contributions.set(static_cast<size_t>(contribution));
      const Symbol& symbol = state.output[i];
      if (!symbol.defined || symbol.contributions != contributions || symbol.index != wanted.index)
        return fault(rank, "ends with a wrong element " + std::to_string(i));
      if (meaning_.reduces && !symbol.final) return fault(rank, "ends with an element that is not final");
    }
    return ok();
  }

  std::span<const Schedule> schedules_;
  const ScheduleMeaning& meaning_;
  int ranks_;
  std::vector<RankState> states_;
  std::map<std::pair<int, int>, std::deque<Symbols>> messages_;
};

}  // namespace

Status check_schedules(std::span<const Schedule> schedules, const ScheduleMeaning& meaning) {
  return Checker(schedules, meaning).run();
}

}  // namespace muster
