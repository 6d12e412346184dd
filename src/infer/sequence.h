// A request on its way through the server: what it asked for, what has been read and written, and
// its place in the state. For the engine's thread alone.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "infer/mask_worker.h"
#include "infer/prefix_keys.h"
#include "infer/service.h"
#include "infer/snapshots.h"
#include "infer/text_stream.h"

namespace mm01::infer {

using Clock = std::chrono::steady_clock;

inline double SecondsBetween(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

struct Sequence {
  // `model` is what the keys of the prompt's blocks stand on, beside the salt.
  Sequence(Service::Id number, Request asked, std::shared_ptr<Listener> hears, const Engine& engine,
           std::string_view model)
      : id(number),
        request(std::move(asked)),
        listener(std::move(hears)),
        tokens(request.prompt),
        root(PrefixRoot(model, request.salt)),
        text(engine.tokenizer(), request.generate.stop) {
    ExtendPrefixKeys(root, tokens, &keys);
  }

  int64_t prompt_tokens() const { return static_cast<int64_t>(request.prompt.size()); }
  int64_t written() const { return static_cast<int64_t>(tokens.size()) - prompt_tokens(); }
  bool reading() const { return read < prompt_tokens(); }
  bool waits_for_mask() const { return ahead != nullptr && !ahead->ready(); }
  // The most tokens that will be read: the last one written is not.
  int64_t room() const {
    return prompt_tokens() + std::max<int64_t>(0, request.generate.max_tokens - 1);
  }

  const Service::Id id;
  Request request;
  const std::shared_ptr<Listener> listener;
  std::vector<int32_t> tokens;  // of the prompt, and those written
  const PrefixKey root;
  std::vector<PrefixKey> keys;  // of the whole blocks of the prompt
  TextStream text;

  int32_t slot = -1;                   // of the state, while it runs
  bool ended = false;                  // its listener has heard its last
  int64_t read = 0;                    // tokens that the state holds
  std::optional<Restoring> restoring;  // while a snapshot is copied into the slot
  const AheadFilter* ahead = nullptr;  // the request's filter, from admission on
  int num_fetches = 0;                 // of snapshots on disk
  int64_t cached = 0;                  // of these, taken from a snapshot
  std::set<int64_t> borders;           // still ahead, where snapshots are to be taken
  std::vector<TokenInfo> prompt_logprobs;

  Clock::time_point submitted = Clock::now(), admitted, prompt_read;
  Clock::time_point reported = submitted;  // the last Reading
  int64_t reported_tokens = 0;
  double tokens_per_second = 0;  // of reading, lately
};

}  // namespace mm01::infer
