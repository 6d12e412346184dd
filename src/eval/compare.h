// A model against numbers that another implementation computed.
//
// The reference is a safetensors file with input_ids [N, T] or [T] and any of these, float32 but
// for ids; [N, ...] throughout where input_ids has N:
//   logits [N, T, V]            or, with logits_positions [P] int64, of those positions only: [N,
//   P, V] hidden.0 .. hidden.L        hidden.0 the embedding, hidden.i the output of layer i-1,
//   hidden.L
//                               after the final norm: [N, T, D]
//   router.i                    router logits of layer i: [N, T, E] or [N T, E]
//   top_values, top_ids         the largest logits of each position: [T, n]; ids whose logits
//   differ by
//                               less than the tolerance may change places
//   logsumexp [T], nll [T - 1]  of all logits; of the next token
//   generated                   greedy tokens after input_ids: [N, n], or input_ids and they: [N, T
//   + n] greedy_from_200             greedy tokens after the first 200 of input_ids
// Other tensors (loss, grad.*, attention_mask, ...) are listed as not compared; for the first two
// see eval/compare_gradients.h.
#pragma once

#include <string>

#include "base/status.h"
#include "eval/reference.h"
#include "infer/engine.h"

namespace mm01::eval {

// Errors: a reference that cannot be read, whose shapes do not fit the model, or whose
// attention_mask masks anything.
Result<CompareReport> Compare(infer::Engine& engine, const std::string& reference_path,
                              double tolerance);

}  // namespace mm01::eval
