// Constrained decoding: what is written is JSON that a schema allows.
//
// A schema is compiled to a grammar over bytes; states of it are found as they are met and kept.
// A token may come next if all of its bytes may: the vocabulary is walked as a trie, so bytes that
// cannot come cut off all tokens that begin with them. Inside a string, limited or not, plain
// tokens go by their number of characters alone, and only the tokens that may leave it are walked.
//
// Schemas   type (also a list of types), properties, required, additionalProperties, items,
//           prefixItems, minItems, maxItems, enum, const, anyOf, allOf with one entry, $ref to
//           #/$defs/... or #/definitions/... (recursion too), minLength, maxLength, minimum,
//           maximum, exclusiveMinimum and exclusiveMaximum of integers. Annotations (title,
//           description, default, examples, ...) say nothing. Any other keyword is Unsupported, by
//           name: what would be ignored would not be obeyed.
// Narrower  Where a schema leaves a choice, less than all of it is written: properties in the
//           order of the schema and no others where some are named, at most one blank between
//           tokens, numbers of at most 16 digits, recursion of at most Grammar::kMaxStack.
// Limits    64 KiB of schema, 32 levels, 200,000 elements of grammar, 1,000 entries of a list of
//           values or schemas, and as many properties of an object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "base/status.h"
#include "infer/service.h"
#include "io/tokenizer.h"

namespace mm01::infer {

inline constexpr size_t kMaxSchemaBytes = 64 << 10;
inline constexpr int kMaxSchemaDepth = 32;
inline constexpr size_t kMaxSchemaEntries = 1000;

class Grammar;

// Joins text that is given and values of schemas: `parts` is a list of alternatives, each a list of
// them. Written is exactly one alternative.
struct GrammarPart {
  std::string text;              // these bytes, or
  const Json* schema = nullptr;  // a value of this schema; true or {} is any value
};
Result<std::shared_ptr<const Grammar>> CompileGrammar(
    const std::vector<std::vector<GrammarPart>>& alternatives);

// A value of `schema` alone.
Result<std::shared_ptr<const Grammar>> CompileSchema(const Json& schema);

// The tokens of a model as a trie. Special tokens are left out. Made once, used by all filters, by
// any number of threads.
class TokenTrie;
std::shared_ptr<const TokenTrie> MakeTokenTrie(const Tokenizer& tokenizer, int64_t vocab_size);

// Forces the tokens of `lead`, then text of the grammar, then one of `end_tokens`, which are not
// empty.
std::unique_ptr<TokenFilter> MakeGrammarFilter(std::shared_ptr<const Grammar> grammar,
                                               std::shared_ptr<const TokenTrie> trie,
                                               std::vector<int32_t> lead,
                                               std::vector<int32_t> end_tokens);

// Whether the grammar allows `text`, or a text that begins with it.
bool CanBegin(const std::shared_ptr<const Grammar>& grammar, std::string_view text);
// Whether the grammar allows exactly `text`.
bool Matches(const std::shared_ptr<const Grammar>& grammar, std::string_view text);

}  // namespace mm01::infer
