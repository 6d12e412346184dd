// Many requests at once on one engine.
//
// One thread owns the engine. It takes requests from a queue, and each of its steps carries the
// next token of every sequence that writes, and a part of the prompt of those that still read
// (continuous batching). What a prompt shares with prompts before it is not read again: snapshots
// of the state are kept at borders and found by content (snapshots.h).
//
// Output    A request's tokens are those of the same request alone: they do not depend on who else
//           is served, on what was cached, or on a pause.
// Threads   Every function may be called from any thread. A Listener is called on the engine's
//           thread and must return at once.
// Errors    Submit says what is wrong with a request, or that the queue is full (kTooLarge); what
//           goes wrong later ends that request alone, with Failed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/status.h"
#include "infer/engine.h"
#include "infer/generate.h"
#include "kernels/sample/sample.h"

namespace mm01::infer {

// Says which tokens may come next: constrained decoding. One object serves one request, one call at
// a time. Mask is called ahead, too, with logits that nobody wants, on another thread: one that
// keeps what it found costs the engine's thread little.
class TokenFilter {
 public:
  virtual ~TokenFilter() = default;
  // Sets to -infinity the logits of tokens that may not come next. At least one stays.
  virtual void Mask(std::span<float> logits) = 0;
  virtual void Accept(int32_t token) = 0;  // the token that was drawn
};

struct Request {
  std::vector<int32_t> prompt;   // not empty
  std::vector<int64_t> borders;  // ascending positions of the prompt where a later prompt is likely
                                 // to part from it: ends of turns, tool results, documents
  GenerateOptions generate;
  uint64_t choice = 0;  // the request number of the sampler: choices of one prompt differ by it
  std::vector<std::pair<int32_t, float>> logit_bias;
  double presence_penalty = 0;   // off the logit of every token written so far
  double frequency_penalty = 0;  // the same, once for each time it was written
  int top_logprobs = -1;         // -1: no log-probabilities; n: of each token and the n best
  bool prompt_logprobs = false;  // the same of every token of the prompt but its first
  int priority = 0;              // higher goes first; equal ones in order of arrival, fair by salt
  std::string salt;              // prompts share snapshots only with prompts of the same salt
  std::unique_ptr<TokenFilter> filter;  // may be null
};

struct TokenInfo {
  int32_t token = 0;
  double logprob = 0;             // of the model itself
  std::vector<TokenLogprob> top;  // best first
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of the prompt, not read again
  int64_t completion_tokens = 0;
  double queued_seconds = 0, prefill_seconds = 0, decode_seconds = 0;
};

// What a listener hears, in this order: Reading any number of times, PromptRead once, Wrote any
// number of times, and then Done or Failed, once.
struct Reading {                            // a few times a second, and where reading begins
  int64_t done = 0, total = 0, cached = 0;  // tokens of the prompt
  double tokens_per_second = 0, seconds_left = 0;
};
struct PromptRead {
  std::vector<TokenInfo> logprobs;  // of the prompt's tokens from the second on, where asked for
};
struct Wrote {
  std::string text;               // whole UTF-8; no stop string can begin in it
  std::vector<TokenInfo> tokens;  // sampled since the last Wrote; their text may come later
};
struct Done {
  Finish finish = Finish::kLength;
  Usage usage;
};
struct Failed {
  Status status;
};
using Event = std::variant<Reading, PromptRead, Wrote, Done, Failed>;

class Listener {
 public:
  virtual ~Listener() = default;
  virtual void On(Event event) = 0;
};

struct ServiceOptions {
  int64_t max_queue = 256;             // requests that wait
  int64_t step_rows = 512;             // rows of one step: prompts share what writers leave
  int64_t restore_bytes = 64 << 20;    // of a snapshot, copied into its slot in a step: 24 ms
  int64_t snapshot_every = 4096;       // tokens between snapshots of a long prompt
  int64_t snapshot_bytes = 1ll << 30;  // memory for snapshots
  std::string snapshot_dir;            // empty: none on disk
  int64_t snapshot_disk_bytes = 8ll << 30;
  double stuck_seconds = 0;        // 0: nobody watches
  std::function<void()> on_stuck;  // a step has taken so long; on a thread of its own
};

// Counters since the start, and gauges of now. Counters only grow.
struct ServiceStats {
  int64_t submitted = 0, refused = 0, done = 0, failed = 0, cancelled = 0;
  int64_t prompt_tokens = 0;  // of admitted requests
  int64_t cached_tokens = 0;  // of these, found in snapshots
  int64_t read_tokens = 0;    // computed by prefill, work thrown away included
  int64_t written_tokens = 0;
  int64_t steps = 0;
  int64_t snapshots_taken = 0, snapshots_hit = 0, snapshots_evicted = 0;
  int64_t queued = 0, running = 0;            // requests now
  int64_t slots_used = 0, slots = 0;          // sequences of the engine
  int64_t pages_used = 0, pages = 0;          // of the KV cache
  int64_t snapshots = 0, snapshot_bytes = 0;  // in memory
  int64_t snapshots_on_disk = 0, snapshot_disk_bytes = 0;
  int64_t snapshots_damaged = 0;  // files that were deleted, unused: damaged, or of another model
};

class Service {
 public:
  using Id = uint64_t;

  // Takes the engine and starts its thread. Errors: a snapshot folder that cannot be used.
  static Result<std::unique_ptr<Service>> Start(std::unique_ptr<Engine> engine,
                                                ServiceOptions options);
  virtual ~Service() = default;  // cancels what is left, keeps the snapshots on disk

  virtual const Engine& engine() const = 0;  // its configuration, tokenizer and template: read only

  virtual Result<Id> Submit(Request request, std::shared_ptr<Listener> listener) = 0;
  // The listener hears Done with kCancelled, unless it has heard its last already. The part of the
  // prompt that was read is kept as a snapshot. Takes effect within one step.
  virtual void Cancel(Id id) = 0;
  virtual ServiceStats stats() const = 0;
  // No new requests from now on; returns when none is left, or after `seconds`, having cancelled
  // the rest and written the snapshots.
  virtual void Drain(double seconds) = 0;
};

}  // namespace mm01::infer
