#include "cli/sampling_flags.h"

#include <random>

#include "cli/model_flags.h"

namespace mm01::cli {

void AddSamplingFlags(Command& command, SamplingFlags* flags) {
  command.Section("Writing");
  command.Whole("--max-tokens", "N", &flags->max_tokens, kAtLeastZero, "tokens to write at most");
  command.Real("--temperature", "T", &flags->temperature, {0.0, 1e6},
               "0 takes the likeliest token, higher values more surprising ones");
  command.Switch("--greedy", &flags->greedy, "the same as --temperature 0");
  command.Whole("--top-k", "K", &flags->top_k, {0, 1 << 30},
                "keep the K likeliest tokens, 0 keeps all");
  command.Real("--top-p", "P", &flags->top_p, {1e-9, 1.0},
               "keep the likeliest tokens that have P of the weight together");
  command.Real("--min-p", "P", &flags->min_p, {0.0, 1.0},
               "keep tokens of at least P times the likeliest one's weight");
  command.Real("--repetition-penalty", "R", &flags->repetition_penalty, {1e-3, 1e3},
               "divide the logits of tokens that were read or written before");
  command.Whole("--seed", "N", &flags->seed, {0, std::numeric_limits<int64_t>::max()},
                "of the random numbers (default: another one each time; the summary names it)");
  command.Texts("--stop", "TEXT", &flags->stop, "end before this text; may be given several times");
  command.Switch("--ignore-end", &flags->ignore_end, "go on past the end-of-text token");
}

infer::GenerateOptions ToGenerateOptions(const SamplingFlags& flags) {
  const auto seed = flags.seed ? static_cast<uint64_t>(*flags.seed) : std::random_device{}();
  return {.sampling = {.temperature = flags.greedy ? 0.0 : flags.temperature,
                       .top_k = static_cast<int>(flags.top_k),
                       .top_p = flags.top_p,
                       .min_p = flags.min_p,
                       .repetition_penalty = flags.repetition_penalty,
                       .seed = seed},
          .max_tokens = flags.max_tokens,
          .stop = flags.stop,
          .ignore_end = flags.ignore_end};
}

}  // namespace mm01::cli
