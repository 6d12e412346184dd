// What users of a server wait for, measured at infer::Service: HTTP and tokenizing are left out.
//
//   first    a question on a document that nobody has read: seconds to the first token
//   second   another question on it, as a share of the first
//   edit     the document with a token changed at 75 %: work and time as shares of the first, and
//            the most work that is allowed, 1.1 times what follows the edit and one snapshot
//            interval
//   cut      another document, whose reader goes at 60 % and comes again: work of both together
//   restart  a question on the document to a new service, from files: seconds, beside the time in
//            which the files can be read; the system's cache of them is emptied before either
//   gaps     between the tokens of another stream, while nobody else reads, while the document of
//            `cut` is read, and while a snapshot of the whole document is copied into its slot
//   streams  tokens a second of many streams, as a share of the engine's own steps of that batch
//
// Work is counted in operations (planner/flops.h). Each question is checked: asked again after a
// restart it gets the same token.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "eval/bench_cpu.h"
#include "infer/engine.h"

namespace mm01::eval {

struct ServeBenchOptions {
  std::string model;   // a folder
  std::string folder;  // for snapshots; empty, and left with what was written
  Device device = Device::kCpu;
  int num_threads = 0;              // 0: all cores
  int64_t document_tokens = 32768;  // 1,024 at least
  int64_t step_rows = 512;          // of the server's steps
  int64_t num_streams = 8;          // 0 leaves the part out
  int64_t stream_tokens = 64;       // that each of them writes
  bool text01_streams = false;      // by four random layers of Text-01's widths, not the model
};

// `on_line` gets each line as it is measured. Errors: a model or a folder that cannot be used, a
// document that does not fit; Bug if an answer is wrong.
Result<std::vector<BenchLine>> BenchServe(const ServeBenchOptions& options,
                                          const std::function<void(const BenchLine&)>& on_line);

}  // namespace mm01::eval
