#include "infer/grammar.h"

#include <algorithm>

#include "base/check.h"

namespace mm01::infer {
namespace {

uint64_t Pair(int32_t a, int32_t b) {
  return static_cast<uint64_t>(static_cast<uint32_t>(a)) << 32 | static_cast<uint32_t>(b);
}

}  // namespace

int32_t Grammar::NewRule() {
  rules_.emplace_back();
  return static_cast<int32_t>(rules_.size()) - 1;
}

void Grammar::Add(int32_t rule, const std::vector<int32_t>& alternative) {
  rules_[static_cast<size_t>(rule)].alternatives.push_back(static_cast<int32_t>(elements_.size()));
  elements_.insert(elements_.end(), alternative.begin(), alternative.end());
  elements_.push_back(kEnd);
}

int32_t Grammar::Class(const ByteClass& bytes) {
  const auto [it, is_new] =
      class_ids_.emplace(bytes.to_string(), static_cast<int32_t>(classes_.size()));
  if (is_new) classes_.push_back(bytes);
  return it->second;
}

void Grammar::AppendText(std::string_view text, std::vector<int32_t>* alternative) {
  for (const char c : text) {
    ByteClass one;
    one.set(static_cast<unsigned char>(c));
    alternative->push_back(Class(one));
  }
}

void Grammar::Finish(int32_t start) {
  start_ = start;
  FindHeights();
  FindKinds();
}

// After as many passes all heights up to that number are right, and higher ones are all too high.
void Grammar::FindHeights() {
  bool changed = true;
  for (int pass = 0; pass < kMaxStack && changed; ++pass) {
    changed = false;
    for (Rule& rule : rules_) {
      for (const int32_t begin : rule.alternatives) {
        int32_t height = 1;
        for (auto at = static_cast<size_t>(begin); elements_[at] != kEnd; ++at) {
          if (elements_[at] >= 0) continue;
          height = std::max(height, rules_[static_cast<size_t>(-1 - elements_[at])].height + 1);
        }
        if (height >= rule.height) continue;
        rule.height = height;
        changed = true;
      }
    }
  }
}

void Grammar::FindKinds() {
  for (const ByteClass& bytes : classes_) {
    std::array<int, 512> part;  // of a kind so far, by whether the class has it
    part.fill(-1);
    int num_parts = 0;
    for (size_t b = 0; b < kinds_.size(); ++b) {
      int& mine = part[kinds_[b] * 2u + (bytes[b] ? 1 : 0)];
      if (mine < 0) mine = num_parts++;
      kinds_[b] = static_cast<uint8_t>(mine);
    }
  }
}

Matcher::Matcher(const Grammar& grammar) : grammar_(grammar) {
  Clear();
  State state;
  const Grammar::Rule& rule = grammar_.rules()[static_cast<size_t>(grammar_.start())];
  for (const int32_t begin : rule.alternatives) Expand(begin, kEmpty, &state);
  start_ = Intern(std::move(state));
}

void Matcher::Clear() {
  nodes_.assign(1, {0, 0, 0});
  node_ids_.clear();
  states_.assign(1, {});
  state_ids_.clear();
  state_ids_[{false, {}}] = kDead;
  next_.clear();
  rows_.clear();
}

int32_t Matcher::Push(int32_t place, int32_t parent) {
  const auto [it, is_new] =
      node_ids_.emplace(Pair(place, parent), static_cast<int32_t>(nodes_.size()));
  if (is_new) nodes_.push_back({place, parent, nodes_[static_cast<size_t>(parent)].depth + 1});
  return it->second;
}

// All stacks with a class of bytes on top that `place` on `parent` leads to without a byte.
void Matcher::Expand(int32_t place, int32_t parent, State* state) {
  const uint64_t key = Pair(place, parent);
  if (!seen_.insert(key).second) return;
  const int32_t element = grammar_.elements()[static_cast<size_t>(place)];
  if (element == Grammar::kEnd) {
    if (parent == kEmpty) {
      state->can_end = true;
    } else {
      const Node node = nodes_[static_cast<size_t>(parent)];
      Expand(node.place, node.parent, state);
    }
    return;
  }
  if (element >= 0) {
    state->stacks.push_back(Push(place, parent));
    return;
  }
  // The last call of an alternative comes back to where that alternative does.
  const bool is_last = grammar_.elements()[static_cast<size_t>(place) + 1] == Grammar::kEnd;
  const int32_t back = is_last ? parent : Push(place + 1, parent);
  const Grammar::Rule& rule = grammar_.rules()[static_cast<size_t>(-1 - element)];
  const int32_t room = Grammar::kMaxStack - nodes_[static_cast<size_t>(back)].depth;
  for (const int32_t begin : rule.alternatives) {
    int32_t height = 0;
    for (auto at = static_cast<size_t>(begin); grammar_.elements()[at] != Grammar::kEnd; ++at) {
      const int32_t e = grammar_.elements()[at];
      if (e < 0) height = std::max(height, grammar_.rules()[static_cast<size_t>(-1 - e)].height);
    }
    if (height < room) Expand(begin, back, state);
  }
}

int32_t Matcher::Intern(State state) {
  seen_.clear();
  std::sort(state.stacks.begin(), state.stacks.end());
  state.stacks.erase(std::unique(state.stacks.begin(), state.stacks.end()), state.stacks.end());
  const auto [it, is_new] = state_ids_.emplace(std::pair(state.can_end, state.stacks),
                                               static_cast<int32_t>(states_.size()));
  if (is_new) states_.push_back(std::move(state));
  return it->second;
}

int32_t Matcher::FindNext(int32_t state, uint8_t byte) {
  const uint8_t kind = grammar_.kind(byte);
  const uint64_t key = static_cast<uint64_t>(state) << 8 | kind;
  State& from = states_[static_cast<size_t>(state)];
  if (++from.visits == kVisitsForRow) {
    from.row = static_cast<int32_t>(rows_.size());
    rows_.emplace_back().fill(kUnknown);
  }
  const int32_t row = from.row;
  const auto keep = [&](int32_t next) {
    if (row >= 0) rows_[static_cast<size_t>(row)][kind] = next;
    return next;
  };
  if (const auto known = next_.find(key); known != next_.end()) return keep(known->second);
  State next;
  const std::vector<int32_t> stacks = states_[static_cast<size_t>(state)].stacks;
  for (const int32_t id : stacks) {
    const Node node = nodes_[static_cast<size_t>(id)];
    const int32_t element = grammar_.elements()[static_cast<size_t>(node.place)];
    if (grammar_.ByteClassAt(element)[byte]) Expand(node.place + 1, node.parent, &next);
  }
  const int32_t id = Intern(std::move(next));
  next_.emplace(key, id);
  return keep(id);
}

int32_t Matcher::Copy(int32_t node, const std::vector<Node>& from) {
  if (node == kEmpty) return kEmpty;
  const Node& old = from[static_cast<size_t>(node)];
  return Push(old.place, Copy(old.parent, from));
}

int32_t Matcher::Compact(int32_t state) {
  const State old = states_[static_cast<size_t>(state)];
  const std::vector<Node> nodes = nodes_;
  Clear();
  State copy{.can_end = old.can_end};
  for (const int32_t stack : old.stacks) copy.stacks.push_back(Copy(stack, nodes));
  return Intern(std::move(copy));
}

}  // namespace mm01::infer
