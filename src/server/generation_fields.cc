#include "server/generation_fields.h"

#include <fmt/core.h>

#include <charconv>
#include <random>

#include "base/json.h"

namespace mm01::server {
namespace {

constexpr size_t kMaxSaltBytes = 256;

void ReadSampling(Fields& fields, SamplingParams* sampling) {
  fields.Real("temperature", 0, 2, &sampling->temperature);
  fields.Real("top_p", 1e-9, 1, &sampling->top_p);
  fields.Real("min_p", 0, 1, &sampling->min_p);
  fields.Real("repetition_penalty", 0.01, 10, &sampling->repetition_penalty);
  int64_t top_k = 0;
  fields.Whole("top_k", -1, 1 << 30, &top_k);  // -1 and 0 keep all
  sampling->top_k = top_k < 0 ? 0 : static_cast<int>(top_k);
  int64_t seed = static_cast<int64_t>(std::random_device{}());
  fields.Whole("seed", INT64_MIN, INT64_MAX, &seed);
  sampling->seed = static_cast<uint64_t>(seed);
}

void ReadBias(Fields& fields, const ServedModel& model, GenerationFields* out) {
  const Json* bias = fields.Find("logit_bias");
  if (bias == nullptr) return;
  if (!bias->is_object() || bias->size() > kMaxBiases) {
    return fields.Fail("logit_bias",
                       fmt::format("logit_bias is {}, wanted an object of at most {} token ids",
                                   bias->is_object() ? "larger" : TypeName(*bias), kMaxBiases));
  }
  for (const auto& [key, value] : bias->items()) {
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    const bool is_id =
        error == std::errc() && end == key.data() + key.size() && id >= 0 && id < model.vocab_size;
    if (!is_id) {
      return fields.Fail("logit_bias",
                         fmt::format("logit_bias has the key '{}', wanted a token id from 0 to {}",
                                     key.substr(0, 32), model.vocab_size - 1));
    }
    const double number = value.is_number() ? value.get<double>() : 1e9;
    if (!(number >= -100 && number <= 100)) {
      return fields.Fail("logit_bias", fmt::format("logit_bias of {} is {}, wanted a number from "
                                                   "-100 to 100",
                                                   id, JsonText(value).substr(0, 32)));
    }
    out->logit_bias.emplace_back(id, static_cast<float>(number));
  }
}

void ReadStop(Fields& fields, std::vector<std::string>* stop) {
  fields.Texts("stop", kMaxStops, kMaxStopBytes, stop);
  std::erase(*stop, "");
}

void ReadStreamOptions(Fields& fields, GenerationFields* out) {
  fields.Bool("stream", &out->stream);
  const Json* options = fields.Find("stream_options");
  if (options == nullptr) return;
  Fields nested(*options, "stream_options.");
  nested.Bool("include_usage", &out->include_usage);
  nested.Bool("include_progress", &out->include_progress);
  if (nested.error()) fields.Fail("stream_options", nested.error()->message);
}

void ReadMaxTokens(Fields& fields, const ServedModel& model, GenerationFields* out) {
  for (const char* name : {"max_tokens", "max_completion_tokens"}) {
    if (fields.Find(name) == nullptr) continue;
    int64_t count = 0;
    fields.Whole(name, 0, model.context_tokens, &count);
    out->max_tokens = count;
  }
}

}  // namespace

GenerationFields ReadGenerationFields(Fields& fields, const ServedModel& model) {
  GenerationFields out;
  ReadSampling(fields, &out.generate.sampling);
  ReadMaxTokens(fields, model, &out);
  ReadStop(fields, &out.generate.stop);
  ReadBias(fields, model, &out);
  fields.Real("presence_penalty", -2, 2, &out.presence_penalty);
  fields.Real("frequency_penalty", -2, 2, &out.frequency_penalty);
  fields.Whole("n", 1, kMaxChoices, &out.n);
  int64_t best_of = out.n;
  fields.Whole("best_of", 1, kMaxChoices, &best_of);
  if (best_of != out.n) fields.Fail("best_of", "best_of differs from n, wanted the same");
  fields.Whole("priority", -100, 100, &out.priority);
  fields.Text("cache_salt", kMaxSaltBytes, &out.salt);
  ReadStreamOptions(fields, &out);
  return out;
}

}  // namespace mm01::server
