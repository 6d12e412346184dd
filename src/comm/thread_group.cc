// A collective has two meetings. Before the first, each rank posts what it offers; between the two,
// each reads the others' memory; after the second, everybody's memory is its own again.
//
//   post | meet | copy from peers | part
//
// A wait for the first meeting may end in an error. The second is kept whatever happens: a rank
// that left it early could free memory that a slower peer still reads. It cannot hang, since
// everyone who was at the first meeting is on the way to it.
#include "comm/thread_group.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

namespace mm01 {
namespace {

using Bytes = std::span<const std::byte>;
using MutableBytes = std::span<std::byte>;

class Board;

enum class Op {
  kNone,
  kSum,
  kScatter,
  kGather,
  kAllToAll,
  kEven,
  kBroadcast,
  kRing,
  kBarrier,
  kSplit
};

const char* Name(Op op) {
  constexpr std::array kNames = {"nothing",  "AllReduceSum", "ReduceScatterSum", "AllGather",
                                 "AllToAll", "AllToAll",     "Broadcast",        "SendRecv",
                                 "Barrier",  "Split"};
  return kNames[static_cast<std::size_t>(op)];
}

// What one rank brings to a collective.
struct Post {
  Op op = Op::kNone;
  std::size_t element_bytes = 1;
  Bytes in;
  MutableBytes out;
  std::span<const int64_t> counts;  // kAllToAll: elements for each rank
  int argument = 0;                 // kBroadcast: the root; kRing: the step; kSplit: the color
  int key = 0;                      // kSplit
  Board* board = nullptr;           // kSplit: the new group's, from its first rank
};

// What all groups of one run share. A single lock is enough: ranks hold it only to count arrivals.
struct World {
  explicit World(int num_ranks) : left(static_cast<std::size_t>(num_ranks), false) {}

  Board& NewBoard(std::vector<int> members);
  void Leave(int member);
  void Fail(std::exception_ptr e);

  std::mutex mutex;  // guards everything below, and the arrivals of each board
  std::condition_variable changed;
  std::vector<bool> left;
  std::exception_ptr error;  // the first
  std::vector<std::unique_ptr<Board>> boards;
};

// The meeting place of one group.
class Board {
 public:
  Board(World& world, std::vector<int> members)
      : posts(members.size()), world_(world), members_(std::move(members)) {}

  World& world() const { return world_; }
  int size() const { return static_cast<int>(members_.size()); }
  int member(int rank) const { return members_[static_cast<std::size_t>(rank)]; }

  void Meet() {
    std::unique_lock lock(world_.mutex);
    if (world_.error) ThrowPeerError();
    if (Arrive()) return;
    const uint64_t round = round_;
    while (round_ == round) {
      const int absent = FirstThatLeft();
      if (!world_.error && absent < 0) {
        world_.changed.wait(lock);
        continue;
      }
      --arrived_;
      if (world_.error) ThrowPeerError();
      Fail(fmt::format("rank {} of {} returned while others wait for it", absent, size()));
    }
  }

  void Part() {
    std::unique_lock lock(world_.mutex);
    if (Arrive()) return;
    const uint64_t round = round_;
    world_.changed.wait(lock, [&] { return round_ != round; });
  }

  // A rank writes its own before the first meeting, and reads the others' until the second.
  std::vector<Post> posts;

 private:
  [[noreturn]] static void ThrowPeerError() {
    throw PeerError("a rank of this run failed, so the others cannot go on");
  }

  // True for the last to come, who wakes the others.
  bool Arrive() {
    if (++arrived_ < size()) return false;
    arrived_ = 0;
    ++round_;
    world_.changed.notify_all();
    return true;
  }

  int FirstThatLeft() const {
    for (int r = 0; r < size(); ++r) {
      if (world_.left[static_cast<std::size_t>(member(r))]) return r;
    }
    return -1;
  }

  World& world_;
  std::vector<int> members_;  // ranks of the world, in order of rank here
  int arrived_ = 0;
  uint64_t round_ = 0;
};

Board& World::NewBoard(std::vector<int> members) {
  auto board = std::make_unique<Board>(*this, std::move(members));
  std::lock_guard lock(mutex);
  boards.push_back(std::move(board));
  return *boards.back();
}

void World::Leave(int member) {
  std::lock_guard lock(mutex);
  left[static_cast<std::size_t>(member)] = true;
  changed.notify_all();
}

void World::Fail(std::exception_ptr e) {
  std::lock_guard lock(mutex);
  if (!error) error = std::move(e);
  changed.notify_all();
}

void CopyBytes(Bytes from, MutableBytes to) {
  if (from.empty() || from.data() == to.data()) return;
  std::memcpy(to.data(), from.data(), from.size());
}

class ThreadGroup final : public Group {
 public:
  ThreadGroup(Board& board, int rank) : Group(rank, board.size()), board_(board) {}

 private:
  void DoAllReduceSum(std::span<float> data) override { AllReduce(data); }
  void DoAllReduceSum(std::span<double> data) override { AllReduce(data); }
  void DoReduceScatterSum(std::span<const float> in, std::span<float> out) override {
    ReduceScatter(in, out);
  }
  void DoReduceScatterSum(std::span<const double> in, std::span<double> out) override {
    ReduceScatter(in, out);
  }

  void DoAllGather(Bytes mine, MutableBytes all) override {
    Collective({.op = Op::kGather, .in = mine}, [&] {
      for (int r = 0; r < size(); ++r) {
        CopyBytes(post(r).in, all.subspan(static_cast<std::size_t>(r) * mine.size(), mine.size()));
      }
    });
  }

  void DoAllToAll(Bytes send, std::span<const int64_t> send_counts, MutableBytes recv,
                  std::span<const int64_t> recv_counts, std::size_t element_bytes) override {
    const Post mine{
        .op = Op::kAllToAll, .element_bytes = element_bytes, .in = send, .counts = send_counts};
    Collective(mine, [&] {
      for (int r = 0; r < size(); ++r) {
        const auto counts = post(r).counts;
        const int64_t skipped =
            std::accumulate(counts.begin(), counts.begin() + rank(), int64_t{0});
        const int64_t count = recv_counts[static_cast<std::size_t>(r)];
        if (counts[static_cast<std::size_t>(rank())] != count) {
          Fail(fmt::format("AllToAll: rank {} sends {} elements to rank {}, which wants {}", r,
                           counts[static_cast<std::size_t>(rank())], rank(), count));
        }
        const std::size_t bytes = static_cast<std::size_t>(count) * element_bytes;
        CopyBytes(post(r).in.subspan(static_cast<std::size_t>(skipped) * element_bytes, bytes),
                  recv.first(bytes));
        recv = recv.subspan(bytes);
      }
    });
  }

  void DoAllToAllEven(Bytes send, MutableBytes recv) override {
    const std::size_t part = send.size() / static_cast<std::size_t>(size());
    Collective({.op = Op::kEven, .in = send}, [&] {
      for (int r = 0; r < size(); ++r) {
        CopyBytes(post(r).in.subspan(static_cast<std::size_t>(rank()) * part, part),
                  recv.subspan(static_cast<std::size_t>(r) * part, part));
      }
    });
  }

  void DoBroadcast(MutableBytes data, int root) override {
    Collective({.op = Op::kBroadcast, .in = data, .argument = root},
               [&] { CopyBytes(post(root).in, data); });
  }

  void DoSendRecv(Bytes send, MutableBytes recv, int step) override {
    Collective({.op = Op::kRing, .in = send, .argument = step}, [&] {
      const int from = static_cast<int>(((int64_t{rank()} - step) % size() + size()) % size());
      if (post(from).in.size() != recv.size()) {
        Fail(fmt::format("SendRecv: rank {} sends {} bytes to rank {}, which wants {}", from,
                         post(from).in.size(), rank(), recv.size()));
      }
      CopyBytes(post(from).in, recv);
    });
  }

  void DoBarrier() override {
    Collective({.op = Op::kBarrier}, [] {});
  }

  std::unique_ptr<Group> DoSplit(int color, int key) override;

  // Rank r adds up the r-th part of everybody's data and writes the sum back to everybody: no other
  // rank touches that part, so no copy of the data is needed.
  template <typename T>
  void AllReduce(std::span<T> data) {
    const Post mine{.op = Op::kSum,
                    .element_bytes = sizeof(T),
                    .in = std::as_bytes(data),
                    .out = std::as_writable_bytes(data)};
    Collective(mine, [&] {
      const auto n = static_cast<std::size_t>(size());
      const std::size_t me = static_cast<std::size_t>(rank());
      const std::size_t begin = data.size() / n * me + std::min(me, data.size() % n);
      const std::size_t end = begin + data.size() / n + (me < data.size() % n ? 1 : 0);
      Sum<T>(begin, end, [&](std::size_t at, std::span<const T> sum) {
        for (int r = 0; r < size(); ++r) {
          CopyBytes(std::as_bytes(sum), post(r).out.subspan(at * sizeof(T), sum.size_bytes()));
        }
      });
    });
  }

  template <typename T>
  void ReduceScatter(std::span<const T> in, std::span<T> out) {
    const Post mine{.op = Op::kScatter, .element_bytes = sizeof(T), .in = std::as_bytes(in)};
    Collective(mine, [&] {
      const std::size_t begin = static_cast<std::size_t>(rank()) * out.size();
      Sum<T>(begin, begin + out.size(), [&](std::size_t at, std::span<const T> sum) {
        std::copy(sum.begin(), sum.end(), out.begin() + static_cast<std::ptrdiff_t>(at - begin));
      });
    });
  }

  // Calls write(at, sums of elements at, at + 1, ...) for begin .. end-1, a block at a time.
  template <typename T, typename Write>
  void Sum(std::size_t begin, std::size_t end, Write write) {
    std::array<T, 512> sum;
    for (std::size_t at = begin; at < end; at += sum.size()) {
      const std::size_t count = std::min(sum.size(), end - at);
      for (int r = 0; r < size(); ++r) {
        const T* x = reinterpret_cast<const T*>(post(r).in.data()) + at;
        for (std::size_t i = 0; i < count; ++i) sum[i] = r == 0 ? x[i] : sum[i] + x[i];
      }
      write(at, std::span<const T>(sum.data(), count));
    }
  }

  template <typename Work>
  void Collective(const Post& mine, Work work) {
    board_.posts[static_cast<std::size_t>(rank())] = mine;
    board_.Meet();
    struct AtTheEnd {
      ~AtTheEnd() { board.Part(); }
      Board& board;
    } at_the_end{board_};
    CheckPosts(mine);
    work();
  }

  void CheckPosts(const Post& mine) const;

  const Post& post(int r) const { return board_.posts[static_cast<std::size_t>(r)]; }

  Board& board_;
};

void ThreadGroup::CheckPosts(const Post& mine) const {
  const bool sizes_may_differ = mine.op == Op::kAllToAll || mine.op == Op::kRing;
  for (int r = 0; r < size(); ++r) {
    const Post& other = post(r);
    if (other.op != mine.op || other.element_bytes != mine.element_bytes ||
        (other.in.size() != mine.in.size() && !sizes_may_differ)) {
      Fail(
          fmt::format("rank {} calls {} with {} bytes in elements of {}, rank {} calls {} with {} "
                      "bytes in elements of {}",
                      rank(), Name(mine.op), mine.in.size(), mine.element_bytes, r, Name(other.op),
                      other.in.size(), other.element_bytes));
    }
    if (mine.op != Op::kSplit && other.argument != mine.argument) {
      Fail(fmt::format("{}: rank {} gives {} as the root or step, rank {} gives {}", Name(mine.op),
                       rank(), mine.argument, r, other.argument));
    }
  }
}

std::unique_ptr<Group> ThreadGroup::DoSplit(int color, int key) {
  std::vector<int> ranks;  // of the new group, as ranks here
  Board* board = nullptr;
  Collective({.op = Op::kSplit, .argument = color, .key = key}, [&] {
    for (int r = 0; r < size(); ++r) {
      if (post(r).argument == color) ranks.push_back(r);
    }
    std::stable_sort(ranks.begin(), ranks.end(),
                     [&](int a, int b) { return post(a).key < post(b).key; });
    if (ranks.size() == 1 || ranks.front() != rank()) return;
    std::vector<int> members;
    for (const int r : ranks) members.push_back(board_.member(r));
    board = &board_.world().NewBoard(std::move(members));
  });
  Collective({.op = Op::kSplit, .board = board}, [&] { board = post(ranks.front()).board; });
  if (ranks.size() == 1) return std::make_unique<SingleGroup>();
  const auto me = std::find(ranks.begin(), ranks.end(), rank());
  return std::make_unique<ThreadGroup>(*board, static_cast<int>(me - ranks.begin()));
}

}  // namespace

ThreadRanks::ThreadRanks(int num_ranks) : num_ranks_(num_ranks) {
  Check(num_ranks >= 1, "a run needs a rank");
}

void ThreadRanks::Run(const std::function<void(int rank, Group& group)>& body) const {
  if (num_ranks_ == 1) {
    SingleGroup group;
    return body(0, group);
  }
  World world(num_ranks_);
  std::vector<int> members(static_cast<std::size_t>(num_ranks_));
  std::iota(members.begin(), members.end(), 0);
  Board& board = world.NewBoard(std::move(members));
  const auto run = [&](int rank) {
    try {
      ThreadGroup group(board, rank);
      body(rank, group);
      world.Leave(rank);
    } catch (...) {
      world.Fail(std::current_exception());
    }
  };
  std::vector<std::jthread> threads;
  try {
    for (int r = 1; r < num_ranks_; ++r) threads.emplace_back(run, r);
  } catch (...) {
    world.Fail(std::current_exception());  // the system refused a thread
  }
  run(0);
  threads.clear();
  if (world.error) std::rethrow_exception(world.error);
}

}  // namespace mm01
