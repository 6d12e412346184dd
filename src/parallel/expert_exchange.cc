#include "parallel/expert_exchange.h"

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "parallel/mesh.h"

namespace mm01 {
namespace {

// Rows that arrived, rank after rank and by expert within a rank, brought into the order of
// experts.
struct Arrival {
  std::vector<int64_t> recv_rows;  // [R]      rows from each rank
  std::vector<int64_t> offset;     // [mine+1] of this rank's experts
  std::vector<int64_t> from;       // [rows]   where the i-th row in expert order arrived
};

// counts[r][e]: rows from rank r for this rank's expert e.
Arrival Arrange(const std::vector<int64_t>& counts, int64_t ranks, int64_t mine) {
  Arrival a;
  a.offset.push_back(0);
  std::vector<int64_t> begin;  // of each (rank, expert) in order of arrival
  int64_t at = 0;
  for (int64_t r = 0; r < ranks; ++r) {
    const int64_t before = at;
    for (int64_t e = 0; e < mine; ++e) {
      begin.push_back(at);
      at += counts[static_cast<size_t>(r * mine + e)];
    }
    a.recv_rows.push_back(at - before);
  }
  for (int64_t e = 0; e < mine; ++e) {
    for (int64_t r = 0; r < ranks; ++r) {
      const auto i = static_cast<size_t>(r * mine + e);
      for (int64_t j = 0; j < counts[i]; ++j) a.from.push_back(begin[i] + j);
    }
    a.offset.push_back(static_cast<int64_t>(a.from.size()));
  }
  return a;
}

std::vector<int64_t> Times(std::vector<int64_t> counts, int64_t factor) {
  for (int64_t& c : counts) c *= factor;
  return counts;
}

std::span<float> Floats(const Tensor& t) {
  return {static_cast<float*>(t.data), static_cast<size_t>(t.size())};
}

void PlainPath(Queue& queue, const ExpertExchangeArgs& a) {
  const Dispatch d = MakeDispatch(a.chosen, a.weights, a.num_experts);
  const int64_t width = a.x.dim(1);
  Scratch scratch(queue);
  const Tensor in(scratch.Get<float>(d.num_rows() * width), {d.num_rows(), width});
  const Tensor out(scratch.Get<float>(d.num_rows() * width), {d.num_rows(), width});
  GatherRows(queue, a.x, d.token, in);
  Experts(queue, {.x = in, .offset = d.offset, .experts = a.experts, .out = out});
  Combine(queue, d, out, a.out);
}

// The tokens of `a`, which no other rank has, through the experts of all ranks.
void Exchange(Queue& queue, Group& group, const ExpertExchangeArgs& a) {
  const int64_t ranks = group.size(), mine = a.num_experts / ranks, width = a.x.dim(1);
  const Dispatch d = MakeDispatch(a.chosen, a.weights, a.num_experts);
  std::vector<int64_t> counts(static_cast<size_t>(a.num_experts)), arriving(counts.size());
  for (size_t e = 0; e < counts.size(); ++e) counts[e] = d.offset[e + 1] - d.offset[e];
  group.AllToAll(std::span<const int64_t>(counts), std::span(arriving));
  const Arrival arrival = Arrange(arriving, ranks, mine);
  std::vector<int64_t> send_rows;
  for (int64_t r = 0; r < ranks; ++r) {
    send_rows.push_back(d.offset[static_cast<size_t>((r + 1) * mine)] -
                        d.offset[static_cast<size_t>(r * mine)]);
  }
  const auto send = Times(send_rows, width), recv = Times(arrival.recv_rows, width);
  const auto come = static_cast<int64_t>(arrival.from.size());

  Scratch scratch(queue);
  const Tensor rows(scratch.Get<float>(d.num_rows() * width), {d.num_rows(), width});
  const Tensor arrived(scratch.Get<float>(come * width), {come, width});
  const Tensor sorted(scratch.Get<float>(come * width), {come, width});
  const Tensor done(scratch.Get<float>(come * width), {come, width});
  GatherRows(queue, a.x, d.token, rows);
  group.AllToAll(std::span<const float>(Floats(rows)), send, Floats(arrived), recv);
  GatherRows(queue, arrived, arrival.from, sorted);
  Experts(queue, {.x = sorted, .offset = arrival.offset, .experts = a.experts, .out = done});
  std::vector<int64_t> back(arrival.from.size());
  for (size_t i = 0; i < back.size(); ++i) {
    back[static_cast<size_t>(arrival.from[i])] = static_cast<int64_t>(i);
  }
  GatherRows(queue, done, back, arrived);
  group.AllToAll(std::span<const float>(Floats(arrived)), recv, Floats(rows), send);
  Combine(queue, d, rows, a.out);
}

}  // namespace

void ExpertExchange(Queue& queue, const ExpertGroups& groups, const ExpertExchangeArgs& a) {
  if (groups.expert.size() == 1) return PlainPath(queue, a);
  Check(a.num_experts % groups.expert.size() == 0, "experts must be split evenly");
  if (groups.replicas.size() == 1) return Exchange(queue, groups.expert, a);

  // Each replica sends its part of the tokens, and all of them gather the whole.
  const int64_t tokens = a.x.dim(0), width = a.x.dim(1), replicas = groups.replicas.size();
  const int64_t part = (tokens + replicas - 1) / replicas;
  const int64_t begin = std::min(tokens, groups.replicas.rank() * part);
  const int64_t end = std::min(tokens, begin + part);
  Scratch scratch(queue);
  const Tensor all(scratch.Get<float>(part * replicas * width), {part * replicas, width});
  const Tensor own = all.Rows(groups.replicas.rank() * part, (groups.replicas.rank() + 1) * part);
  std::ranges::fill(Floats(own), 0.0f);
  ExpertExchangeArgs mine = a;
  mine.x = a.x.Rows(begin, end);
  mine.chosen = a.chosen.Rows(begin, end);
  mine.weights = a.weights.Rows(begin, end);
  mine.out = own.Rows(0, end - begin);
  Exchange(queue, groups.expert, mine);
  groups.replicas.AllGather(std::span<const float>(Floats(own)), Floats(all));
  std::copy_n(static_cast<const float*>(all.data), tokens * width, static_cast<float*>(a.out.data));
}

}  // namespace mm01
