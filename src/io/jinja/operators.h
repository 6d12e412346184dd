// Python's operators on values: truth, order, arithmetic, subscripts, iteration.
//
// Errors come back without a place; the evaluator adds the line. An operation that runs out of
// budget returns any value early, see budget.h.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "io/jinja/value.h"

namespace mm01::jinja {

bool Truth(const Value& v);
bool Equal(Runtime& rt, const Value& a, const Value& b);
// a < b; numbers, strings, lists and tuples have an order.
Result<bool> Less(Runtime& rt, const Value& a, const Value& b);
// op: == != < <= > >= in, not in
Result<bool> Compare(Runtime& rt, std::string_view op, const Value& a, const Value& b);
Result<bool> Contains(Runtime& rt, const Value& container, const Value& item);

// op: + - * / // % **
Result<Value> Arithmetic(Runtime& rt, std::string_view op, const Value& a, const Value& b);
Result<Value> Negate(const Value& v);

const Value* FindKey(Runtime& rt, const Dict& dict, const Value& key);
void SetKey(Runtime& rt, Dict& dict, const Value& key, const Value& value);
bool Hashable(const Value& key);

// v[key]: items first, then attributes. What is not there is undefined.
Result<Value> GetItem(Runtime& rt, const Value& v, const Value& key);
// v.name: attributes first, then items.
Result<Value> GetAttribute(Runtime& rt, const Value& v, const Text& name);
Result<Value> GetSlice(Runtime& rt, const Value& v, const Value& start, const Value& stop,
                       const Value& step);

// What `for x in v` walks over. A generator is used up by it.
Result<std::vector<Value>> Iterate(Runtime& rt, const Value& v);
Result<int64_t> Length(const Value& v);

}  // namespace mm01::jinja
