// Snapshots on disk, so that they outlive the process.
//
// A file holds S at one position and the keys and values since the file before it on the same text,
// its parent: so a file is of use only with all those before it. It is a safetensors file with the
// name KEY.snapshot, the key in hex (prefix_keys.h):
//
//   metadata  format "mm01-snapshot", version "1", model, begin, end, parent (hex, or empty)
//   border           [S bytes]         uint8   TextState::CopyBorder
//   pages            [n, page bytes]   uint8   TextState::CopyPages, tokens begin .. end - 1
//   border_checksum  [16]              uint8   XXH3-128 of name, metadata and border
//   pages_checksum   [16]              uint8   XXH3-128 of name, metadata and pages
//
// The bytes lie as in the memory of the device that made them, which `model` says too.
//
// Safety    A file appears whole or not at all. One that is damaged, or of another model, version
//           or layout, is deleted and counted, with those that need it, and never used.
// Budget    Room is made by deleting the least recently used; a parent counts as used with each of
//           its children, so it goes after them. What does not fit even so is not written.
// Threads   Reading and writing go on in a thread of their own, one after the other; a read shares
//           its files among several. All functions are for one other thread.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "infer/snapshots.h"
#include "io/file.h"

namespace mm01::infer {

struct SnapshotFilesOptions {
  std::string folder;  // made if it is not there; one process at a time
  int64_t budget_bytes = 0;
  int64_t most_pending_bytes = 0;  // of snapshots that wait to be written; others are not written
  std::string model;
  int64_t border_bytes = 0, page_bytes = 0;
  std::function<void()> on_read;  // a read has ended; called on the thread that reads
};

class SnapshotFiles {
 public:
  // Looks at the headers of all files. Errors: the folder cannot be used.
  static Result<std::unique_ptr<SnapshotFiles>> Open(SnapshotFilesOptions options);
  ~SnapshotFiles();  // once all is written

  // The greatest position up to `limit` of the text with these keys; 0 if there is none.
  int64_t Find(std::span<const PrefixKey> keys, int64_t limit) const;

  // `keys` are those of the snapshot's text, up to its position at least.
  void Write(std::shared_ptr<const Snapshot> snapshot, std::span<const PrefixKey> keys);

  // Fills a snapshot whose last segment is to be read, and the others are there already.
  void Read(std::shared_ptr<Snapshot> snapshot);
  struct ReadEnd {
    std::shared_ptr<Snapshot> snapshot;
    bool ok = false;
  };
  std::vector<ReadEnd> TakeReadEnds();  // since the last call

  void Flush();  // returns when all is written

  int64_t size() const;
  int64_t bytes() const;
  int64_t deleted() const;  // because they were damaged or foreign

 private:
  struct Entry {
    bool has_parent = false;
    PrefixKey parent;
    int64_t begin = 0, end = 0;
    int64_t bytes = 0;
    uint64_t used = 0;
  };
  struct Job {
    std::shared_ptr<const Snapshot> write;
    std::vector<PrefixKey> keys;
    std::shared_ptr<Snapshot> read;
  };
  using Index = std::unordered_map<PrefixKey, Entry, PrefixKeyHash>;

  explicit SnapshotFiles(SnapshotFilesOptions options);
  Status LockFolder();
  void Scan();
  Result<Entry> ReadHeader(const PrefixKey& key) const;
  std::string PathOf(const PrefixKey& key) const;

  void Work();
  void WriteFile(const Snapshot& snapshot, std::span<const PrefixKey> keys);
  Status WriteContents(const Snapshot& snapshot, const Entry& entry) const;
  bool ReadFiles(Snapshot& snapshot);
  Status ReadPages(const PrefixKey& key, const Entry& entry, const Segment& segment) const;
  Status ReadBorder(const PrefixKey& key, const Snapshot& snapshot) const;

  // With mutex_ held.
  void Touch(const PrefixKey& key);
  bool MakeRoom(int64_t bytes, const PrefixKey* parent);
  void Erase(const PrefixKey& key);
  void EraseWithChildren(const PrefixKey& key);

  const SnapshotFilesOptions options_;
  Descriptor lock_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  Index index_;
  int64_t bytes_ = 0, deleted_ = 0, pending_bytes_ = 0;
  uint64_t clock_ = 0;
  std::deque<Job> jobs_;
  bool busy_ = false, stop_ = false;
  std::vector<ReadEnd> read_ends_;

  ThreadPool readers_;  // thread_ is one of them
  std::thread thread_;
};

}  // namespace mm01::infer
