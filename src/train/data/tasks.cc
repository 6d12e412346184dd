#include "train/data/tasks.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

namespace mm01::train {
namespace {

constexpr int64_t kVariableDigits = 5;
constexpr int64_t kChainLength = 3;  // variables that hold one value

int64_t Size(const TokenSpan& span) {
  return static_cast<int64_t>(span.ids.size());
}

void Append(const TokenSpan& more, TokenSpan* to) {
  to->ids.insert(to->ids.end(), more.ids.begin(), more.ids.end());
  to->counted.insert(to->counted.end(), more.counted.begin(), more.counted.end());
}

void Truncate(TokenSpan* span, int64_t length) {
  span->ids.resize(static_cast<size_t>(length));
  span->counted.resize(static_cast<size_t>(length));
}

std::string VariableName(Draw& draw) {
  std::string name;
  for (int i = 0; i < 5; ++i) name += static_cast<char>('A' + draw.Below(26));
  return name;
}

}  // namespace

Result<std::vector<int32_t>> DataSetHaystack::Take(int64_t count, Draw& draw) const {
  TokenSpan span;
  MM01_RETURN_IF_ERROR(set_.ReadOn(draw.Below(set_.info().num_tokens), count, &span));
  return std::move(span.ids);
}

Result<TokenSpan> TaskMaker::Encode(const std::string& text, bool counted) const {
  TokenSpan span;
  MM01_ASSIGN_OR_RETURN(span.ids, tokenizer_.Encode(text, Tokenizer::Special::kAsText));
  span.counted.assign(span.ids.size(), counted || spec_.loss == TaskLoss::kAll);
  return span;
}

Result<TaskMaker::Item> TaskMaker::Encode(const std::string& fact, const std::string& question,
                                          const std::string& answer) const {
  Item item;
  MM01_ASSIGN_OR_RETURN(item.fact, Encode(fact, false));
  MM01_ASSIGN_OR_RETURN(item.question, Encode(question, false));
  MM01_ASSIGN_OR_RETURN(const TokenSpan counted, Encode(answer, true));
  Append(counted, &item.question);
  return item;
}

Result<std::vector<TaskMaker::Item>> TaskMaker::NeedleItems(Draw& draw, int64_t num_keys) const {
  std::vector<Item> items;
  for (const std::string& key : draw.Keys(words_.training, num_keys)) {
    const std::string value = draw.Digits(kMagicDigits);
    MM01_ASSIGN_OR_RETURN(Item item,
                          Encode(NeedleSentence(key, value), NeedleQuestion(key), value + ".\n"));
    items.push_back(std::move(item));
  }
  return items;
}

Result<std::vector<TaskMaker::Item>> TaskMaker::RecallItems(Draw& draw, int64_t num_keys) const {
  std::vector<Item> items;
  for (const std::string& key : draw.Keys(words_.training, num_keys)) {
    const std::string value = draw.Digits(kMagicDigits);
    MM01_ASSIGN_OR_RETURN(Item item,
                          Encode(fmt::format("{}: {}\n", key, value), key + ": ", value + "\n"));
    items.push_back(std::move(item));
  }
  return items;
}

Result<std::vector<TaskMaker::Item>> TaskMaker::VariableItems(Draw& draw,
                                                              int64_t num_chains) const {
  std::vector<Item> items;
  for (int64_t i = 0; i < num_chains; ++i) {
    const std::string value = draw.Digits(kVariableDigits);
    std::string facts, names, last = value;
    for (int64_t v = 0; v < kChainLength; ++v) {
      const std::string name = VariableName(draw);
      facts += fmt::format("\nVAR {} = {}\n", name, v == 0 ? value : "VAR " + last);
      names += " " + name;
      last = name;
    }
    MM01_ASSIGN_OR_RETURN(
        Item item,
        Encode(facts, fmt::format("\nThe variables that hold {} are:", value), names + ".\n"));
    items.push_back(std::move(item));
  }
  return items;
}

// As many of the first items as fit with their questions.
void TaskMaker::Fit(int64_t num_questions, int64_t length, std::vector<Item>* items) {
  int64_t facts = 0, longest = 0, fit = 0;
  for (const Item& item : *items) {
    facts += Size(item.fact);
    longest = std::max(longest, Size(item.question));
    if (facts + std::min(num_questions, fit + 1) * longest > length) break;
    ++fit;
  }
  items->resize(static_cast<size_t>(fit));
}

// Facts stand at random cuts of the haystack. With ask_anywhere a question stands at a cut behind
// its fact's, else behind everything.
Result<TokenSpan> TaskMaker::Strew(Draw& draw, const std::vector<Item>& items,
                                   int64_t num_questions, int64_t length) const {
  const auto num_items = static_cast<int64_t>(items.size());
  const std::vector<int64_t> order = draw.Permutation(num_items);
  const std::span<const int64_t> asked =
      std::span(order).first(static_cast<size_t>(std::min(num_questions, num_items)));
  int64_t body = length;
  for (const Item& item : items) body -= Size(item.fact);
  for (const int64_t i : asked) body -= Size(items[static_cast<size_t>(i)].question);
  Check(body >= 0, "items fit their sample");

  struct Place {
    int64_t cut;
    int order;  // facts before questions at one cut
    const TokenSpan* span;
  };
  std::vector<Place> places;
  std::vector<int64_t> cut_of;
  for (const Item& item : items) {
    cut_of.push_back(draw.Between(0, body));
    places.push_back({cut_of.back(), 0, &item.fact});
  }
  for (const int64_t i : asked) {
    const auto at = static_cast<size_t>(i);
    const int64_t cut = spec_.ask_anywhere ? draw.Between(cut_of[at], body) : body;
    places.push_back({cut, 1, &items[at].question});
  }
  std::stable_sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
    return std::pair(a.cut, a.order) < std::pair(b.cut, b.order);
  });

  TokenSpan hay;
  if (haystack_ != nullptr && body > 0) {
    MM01_ASSIGN_OR_RETURN(hay.ids, haystack_->Take(body, draw));
  } else {
    // A recall has no haystack; its first fact once more fills what is left.
    while (Size(hay) < body) Append(items.front().fact, &hay);
    Truncate(&hay, body);
  }
  TokenSpan sample;
  int64_t done = 0;
  const auto fill = [&](int64_t until) {
    sample.ids.insert(sample.ids.end(), hay.ids.begin() + done, hay.ids.begin() + until);
    sample.counted.resize(sample.ids.size(), spec_.loss == TaskLoss::kAnswers ? 0 : 1);
    done = until;
  };
  for (const Place& place : places) {
    fill(place.cut);
    Append(*place.span, &sample);
  }
  fill(body);
  return sample;
}

Result<std::vector<TaskMaker::Item>> TaskMaker::Items(Draw& draw, int64_t num_keys) const {
  switch (spec_.kind) {
    case TaskKind::kNeedle:
      return NeedleItems(draw, num_keys);
    case TaskKind::kRecall:
      return RecallItems(draw, num_keys);
    case TaskKind::kVariables:
      return VariableItems(draw, num_keys);
  }
  Fail("a kind of task");
}

Result<TokenSpan> TaskMaker::Make(uint64_t seed, uint64_t stream, int64_t length) const {
  Draw draw(seed, stream);
  const int64_t num_questions = draw.Between(spec_.questions.min, spec_.questions.max);
  const int64_t most = static_cast<int64_t>(words_.training.size()) / 2;
  const int64_t num_keys =
      std::min(most, std::max(num_questions, draw.Between(spec_.keys.min, spec_.keys.max)));
  MM01_ASSIGN_OR_RETURN(std::vector<Item> items, Items(draw, num_keys));
  Fit(num_questions, length, &items);
  if (items.empty()) {
    return Status::Invalid(
        fmt::format("task '{}': not one fact with its question fits a sample of {} tokens, wanted "
                    "a larger length",
                    spec_.name, length));
  }
  return Strew(draw, items, num_questions, length);
}

}  // namespace mm01::train
