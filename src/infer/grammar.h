// A context-free grammar over bytes, and the states that a text can be in.
//
// A rule is a list of alternatives, an alternative a list of elements: a class of bytes, or a rule.
// A state is the set of all stacks of places that may come next. States are numbered as they are
// met. Bytes that no class tells apart are of one kind; a state that is left often has a row of the
// states behind it by kind, so that most steps are one look into a table.
//
// Bounds    Stacks have at most kMaxStack places: an alternative that could not end within it is
//           not taken, so no state is a dead end. Left recursion is found and goes nowhere.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace mm01::infer {

using ByteClass = std::bitset<256>;

class Grammar {
 public:
  static constexpr int32_t kEnd = INT32_MIN;
  static constexpr int32_t kMaxStack = 128;
  static constexpr int32_t kNever = 1 << 20;  // height of a rule that no finite text matches

  struct Rule {
    std::vector<int32_t> alternatives;  // where in elements() each begins
    int32_t height = kNever;            // rules nested in the flattest text that matches
  };

  int32_t NewRule();
  void Add(int32_t rule, const std::vector<int32_t>& alternative);
  int32_t Class(const ByteClass& bytes);                   // an element
  static int32_t Call(int32_t rule) { return -1 - rule; }  // an element
  void AppendText(std::string_view text, std::vector<int32_t>* alternative);
  void Finish(int32_t start);  // works out heights and kinds; nothing is added after it

  int32_t start() const { return start_; }
  const std::vector<int32_t>& elements() const { return elements_; }
  const std::vector<Rule>& rules() const { return rules_; }
  const ByteClass& ByteClassAt(int32_t element) const {
    return classes_[static_cast<size_t>(element)];
  }
  size_t size() const { return elements_.size(); }
  uint8_t kind(uint8_t byte) const { return kinds_[byte]; }

 private:
  void FindHeights();
  void FindKinds();

  std::vector<Rule> rules_;
  std::vector<int32_t> elements_;
  std::vector<ByteClass> classes_;
  std::map<std::string, int32_t> class_ids_;
  std::array<uint8_t, 256> kinds_{};
  int32_t start_ = 0;
};

// For one thread; the grammar outlives it.
class Matcher {
 public:
  static constexpr int32_t kDead = 0;

  explicit Matcher(const Grammar& grammar);

  int32_t start() const { return start_; }
  int32_t Next(int32_t state, uint8_t byte) {
    const int32_t row = states_[static_cast<size_t>(state)].row;
    if (row >= 0) {
      const int32_t next = rows_[static_cast<size_t>(row)][grammar_.kind(byte)];
      if (next != kUnknown) return next;
    }
    return FindNext(state, byte);
  }
  bool CanEnd(int32_t state) const { return states_[static_cast<size_t>(state)].can_end; }
  bool HasNext(int32_t state) const { return !states_[static_cast<size_t>(state)].stacks.empty(); }

  // Forgets all states but `state`, whose new number it returns; where many are kept.
  int32_t Compact(int32_t state);
  bool is_large() const {
    return nodes_.size() > kLarge || next_.size() > kLarge || rows_.size() > kManyRows;
  }

 private:
  static constexpr size_t kLarge = 500'000;
  static constexpr size_t kManyRows = 4096;
  static constexpr int32_t kVisitsForRow = 16;
  static constexpr int32_t kUnknown = -1;
  static constexpr int32_t kEmpty = 0;  // the stack with nothing on it

  struct Node {  // of a stack: the place on its top, and the rest
    int32_t place, parent, depth;
  };
  struct State {
    std::vector<int32_t> stacks;  // ascending; each has a class of bytes on top
    bool can_end = false;
    int32_t visits = 0, row = -1;  // in rows_
  };

  void Clear();
  int32_t FindNext(int32_t state, uint8_t byte);
  int32_t Push(int32_t place, int32_t parent);
  void Expand(int32_t place, int32_t parent, State* state);
  int32_t Intern(State state);
  int32_t Copy(int32_t node, const std::vector<Node>& from);

  const Grammar& grammar_;
  std::vector<Node> nodes_;
  std::unordered_map<uint64_t, int32_t> node_ids_;
  std::vector<State> states_;
  std::map<std::pair<bool, std::vector<int32_t>>, int32_t> state_ids_;
  std::unordered_map<uint64_t, int32_t> next_;  // of state * 256 + kind
  std::vector<std::array<int32_t, 256>> rows_;  // by kind
  std::unordered_set<uint64_t> seen_;           // by Expand
  int32_t start_ = 0;
};

}  // namespace mm01::infer
