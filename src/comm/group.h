// Ranks that work together on one model, and what they do as one.
//
// A collective is called by every rank of its group, in the same order, with sizes that agree; it
// returns when this rank's part is done and its memory may be used again. Memory is the host's.
//
//   all[r n + i]  = mine of rank r [i]                        AllGather, n = mine.size()
//   data[i]       = x_0[i] + x_1[i] + ... + x_{size-1}[i]     AllReduceSum
//   out[i]        = sum over r of in of rank r [rank n + i]   ReduceScatterSum, n = out.size()
//
// Sums are added in the element type, left to right in order of rank, so every rank gets the same
// bits, every time.
// Cost      In a group of one a collective is a copy, or nothing: no lock, no allocation.
// Errors    Ranks that call different collectives, or sizes that disagree, are our own bug: Bug. A
//           rank that was lost ends every collective of the others, now and later, with PeerError.
// Spans     may overlap only where a function says so. T has to be named where an argument is not
//           yet a span: AllGather<float>(a_vector, another).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <stdexcept>
#include <type_traits>

#include "base/check.h"

namespace mm01 {

// Another rank failed, so what this rank waited for will not come. The group is of no more use.
class PeerError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What may travel: plain values, with no address in them.
template <typename T>
concept Wire = std::is_trivially_copyable_v<T> && !std::is_pointer_v<T>;

class Group {
 public:
  virtual ~Group() = default;
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // In place.
  void AllReduceSum(std::span<float> data) {
    if (size_ > 1) DoAllReduceSum(data);
  }
  void AllReduceSum(std::span<double> data) {
    if (size_ > 1) DoAllReduceSum(data);
  }

  // `out` may be this rank's own part of `in`.
  void ReduceScatterSum(std::span<const float> in, std::span<float> out) { Scatter(in, out); }
  void ReduceScatterSum(std::span<const double> in, std::span<double> out) { Scatter(in, out); }

  // `mine` may be this rank's own part of `all`.
  template <Wire T>
  void AllGather(std::span<const T> mine, std::span<T> all) {
    Check(all.size() == mine.size() * num_ranks(), "AllGather: all must hold one part a rank");
    if (size_ == 1) return Copy(mine, all);
    DoAllGather(std::as_bytes(mine), std::as_writable_bytes(all));
  }

  // Rank r gets send_counts[r] elements of `send`, and send_counts[r] equals this rank's entry in
  // the recv_counts of rank r. Both spans hold the parts in order of rank with nothing between
  // them.
  template <Wire T>
  void AllToAll(std::span<const T> send, std::span<const int64_t> send_counts, std::span<T> recv,
                std::span<const int64_t> recv_counts) {
    CheckCounts(send_counts, send.size());
    CheckCounts(recv_counts, recv.size());
    if (size_ == 1) return Copy(send, recv);
    DoAllToAll(std::as_bytes(send), send_counts, std::as_writable_bytes(recv), recv_counts,
               sizeof(T));
  }

  // Parts of one size: rank r gets the r-th. Two ranks tell each other their counts in this way.
  template <Wire T>
  void AllToAll(std::span<const T> send, std::span<T> recv) {
    Check(send.size() == recv.size() && send.size() % num_ranks() == 0,
          "AllToAll: send and recv must hold one part a rank");
    if (size_ == 1) return Copy(send, recv);
    DoAllToAllEven(std::as_bytes(send), std::as_writable_bytes(recv));
  }

  // `data` of rank `root` replaces that of the others.
  template <Wire T>
  void Broadcast(std::span<T> data, int root) {
    Check(0 <= root && root < size_, "Broadcast: the root is no rank of the group");
    if (size_ > 1) DoBroadcast(std::as_writable_bytes(data), root);
  }

  // One step around the ring: `send` goes to rank + step, `recv` comes from rank - step, both
  // modulo the size of the group. The same step on every rank: 1 is to the next rank, -1 to the one
  // before.
  template <Wire T>
  void SendRecv(std::span<const T> send, std::span<T> recv, int step) {
    if (size_ == 1) return Copy(send, recv);
    DoSendRecv(std::as_bytes(send), std::as_writable_bytes(recv), step);
  }

  // Returns when every rank has called it.
  void Barrier() {
    if (size_ > 1) DoBarrier();
  }

  // The ranks that give the same color form a group, in order of (key, rank here). The new group
  // lives no longer than what this one came from (ThreadRanks::Run).
  std::unique_ptr<Group> Split(int color, int key);

 protected:
  Group(int rank, int size) : rank_(rank), size_(size) {
    Check(size >= 1 && 0 <= rank && rank < size, "a group needs 0 <= rank < size");
  }

 private:
  // Called with size() > 1 only.
  virtual void DoAllReduceSum(std::span<float> data) = 0;
  virtual void DoAllReduceSum(std::span<double> data) = 0;
  virtual void DoReduceScatterSum(std::span<const float> in, std::span<float> out) = 0;
  virtual void DoReduceScatterSum(std::span<const double> in, std::span<double> out) = 0;
  virtual void DoAllGather(std::span<const std::byte> mine, std::span<std::byte> all) = 0;
  virtual void DoAllToAll(std::span<const std::byte> send, std::span<const int64_t> send_counts,
                          std::span<std::byte> recv, std::span<const int64_t> recv_counts,
                          std::size_t element_bytes) = 0;
  virtual void DoAllToAllEven(std::span<const std::byte> send, std::span<std::byte> recv) = 0;
  virtual void DoBroadcast(std::span<std::byte> data, int root) = 0;
  virtual void DoSendRecv(std::span<const std::byte> send, std::span<std::byte> recv, int step) = 0;
  virtual void DoBarrier() = 0;
  virtual std::unique_ptr<Group> DoSplit(int color, int key) = 0;

  std::size_t num_ranks() const { return static_cast<std::size_t>(size_); }

  template <typename T>
  static void Copy(std::span<const T> from, std::span<T> to) {
    Check(from.size() == to.size(),
          "what a rank sends to itself differs in size from what it wants");
    if (from.empty() || from.data() == to.data()) return;
    std::memcpy(to.data(), from.data(), from.size_bytes());
  }

  template <typename T>
  void Scatter(std::span<const T> in, std::span<T> out) {
    Check(in.size() == out.size() * num_ranks(), "ReduceScatterSum: in must hold one part a rank");
    if (size_ == 1) return Copy(in, out);
    DoReduceScatterSum(in, out);
  }

  void CheckCounts(std::span<const int64_t> counts, std::size_t total) const {
    Check(counts.size() == num_ranks(), "AllToAll: one count a rank is wanted");
    std::size_t sum = 0;
    for (const int64_t n : counts) {
      Check(n >= 0, "AllToAll: a negative count");
      sum += static_cast<std::size_t>(n);
    }
    Check(sum == total, "AllToAll: the counts do not add up to the size of the span");
  }

  int rank_;
  int size_;
};

// A rank on its own. It has no state: one object may serve any number of threads.
class SingleGroup final : public Group {
 public:
  SingleGroup() : Group(0, 1) {}

 private:
  void DoAllReduceSum(std::span<float>) override { Alone(); }
  void DoAllReduceSum(std::span<double>) override { Alone(); }
  void DoReduceScatterSum(std::span<const float>, std::span<float>) override { Alone(); }
  void DoReduceScatterSum(std::span<const double>, std::span<double>) override { Alone(); }
  void DoAllGather(std::span<const std::byte>, std::span<std::byte>) override { Alone(); }
  void DoAllToAll(std::span<const std::byte>, std::span<const int64_t>, std::span<std::byte>,
                  std::span<const int64_t>, std::size_t) override {
    Alone();
  }
  void DoAllToAllEven(std::span<const std::byte>, std::span<std::byte>) override { Alone(); }
  void DoBroadcast(std::span<std::byte>, int) override { Alone(); }
  void DoSendRecv(std::span<const std::byte>, std::span<std::byte>, int) override { Alone(); }
  void DoBarrier() override { Alone(); }
  std::unique_ptr<Group> DoSplit(int, int) override { Alone(); }

  [[noreturn]] static void Alone() { Fail("a rank on its own has nobody to talk to"); }
};

inline std::unique_ptr<Group> Group::Split(int color, int key) {
  if (size_ == 1) return std::make_unique<SingleGroup>();
  return DoSplit(color, key);
}

}  // namespace mm01
