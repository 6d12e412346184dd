// What each step of the server computes: the next token of every sequence that writes, and part of
// the prompts of those that read.
//
// Admission  In the order of fair_queue.h, as long as there is a slot, and pages for the prompt and
//            all that may be written: what runs never runs out. A request starts from the longest
//            snapshot of its prompt, in memory or on disk, but reads at least its last token, whose
//            logits it needs. One whose prompt begins like one that is being read waits until that
//            part is read.
// Restoring  A snapshot goes into its slot a part in each step: others write on meanwhile.
// Prompts    Readers share the rows that writers leave. While somebody writes, these are fewer the
//            further a prompt has been read, so that a step takes no longer. Their chunks end on
//            the grid of 64, and at every position where a snapshot is to be taken: the request's
//            borders, where it parts from earlier prompts, every so many tokens, and the last
//            border of the prompt.
// Masks      Who waits for the mask of its next token (mask_worker.h) is left out of the step.
// Bits       On the CPU a row's numbers depend on its sequence alone, so readers and writers go
//            together, and what was written is as good for snapshots as what was read. On a GPU a
//            call with few rows a sequence takes other kernels: writers and readers are calls of
//            their own, a chunk has more rows than kDecodeRows, and only prompts become snapshots.
// Threads    One thread.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <unordered_set>
#include <vector>

#include "infer/fair_queue.h"
#include "infer/sequence.h"
#include "infer/snapshot_files.h"
#include "infer/snapshots.h"

namespace mm01::infer {

// What works for a scheduler on threads of its own.
struct Helpers {
  SnapshotFiles* files = nullptr;  // may be null
  MaskWorker* masks = nullptr;
};

class Scheduler {
 public:
  Scheduler(Engine& engine, Snapshots& snapshots, const Helpers& helpers,
            const ServiceOptions& options);
  ~Scheduler();

  void Add(std::unique_ptr<Sequence> sequence);
  void Cancel(Service::Id id);
  void CancelAll();
  void FailAll(const Status& status);
  // False where there was nothing that could be done. What goes wrong in computing fails the
  // requests it was for; what is thrown from here is about none of them.
  bool Step();

  bool idle() const { return queue_.size() == 0 && running_.empty(); }
  int64_t num_queued() const { return queue_.size(); }
  ServiceStats stats() const;

 private:
  struct Part {
    Sequence* sequence;
    int64_t rows;
  };

  void Admit();
  bool Ready(Sequence& s, bool* blocked);
  bool WaitsForFile(Sequence& s, const Snapshot* found);
  bool WaitsForReader(Sequence& s, int64_t cached);
  void Start(std::unique_ptr<Sequence> s);
  void Open(Sequence& s);
  void PlanBorders(Sequence& s);
  bool Restore();

  std::vector<Part> Writers() const;
  std::vector<Part> Readers(int64_t rows, bool others_wait);
  int64_t RowsOfEqualWork(const Sequence& s, int64_t rows) const;
  int64_t ChunkOf(const Sequence& s, int64_t rows) const;
  void Run(const std::vector<Part>& parts);
  void Compute(const std::vector<Part>& parts);
  void DescribePrompt(Sequence& s, int64_t begin, const Tensor& hidden);
  void Draw(const std::vector<Sequence*>& ready, const Tensor& hidden);
  void Accept(Sequence& s, TokenInfo info);
  void Report(Sequence& s, const Sequence& reader, int64_t done);

  void TakeSnapshot(Sequence& s);
  void End(Sequence& s, Finish finish);
  void Fail(Sequence& s, const Status& status);
  void Release(Sequence& s);

  Engine& engine_;
  Snapshots& snapshots_;
  SnapshotFiles* const files_;
  MaskWorker& masks_;
  std::unordered_set<PrefixKey, PrefixKeyHash> fetching_;  // from files
  const ServiceOptions options_;
  const bool on_cpu_;
  const int64_t least_rows_;  // of a chunk of a prompt
  RecentBlocks recent_;
  FairQueue queue_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of admission
  size_t next_reader_ = 0;                          // who goes first in this step
  ServiceStats stats_;
};

}  // namespace mm01::infer
