// Cases of GatherPages and ScatterPages on any device, against one copy a piece.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "kernels/attention/page_copy.h"

namespace mm01 {

struct PageCopyCase {
  const char* name;
  std::vector<int64_t> page_bytes;  // of each pool
  int32_t pool_pages;
  int64_t num_pages;  // different ones, in no order
};

inline const std::vector<PageCopyCase> kPageCopyCases = {
    {"no pages", {16}, 4, 0},
    {"one vector", {16}, 4, 3},
    {"uneven pools", {48, 16, 4096, 4112}, 9, 7},
    {"a layer's keys and values", {16384, 16384, 16384, 16384}, 40, 33},
    {"one page of many pools", std::vector<int64_t>(70, 4096), 3, 1},
    {"more pages than a launch takes", {64, 32}, 1200, 1100},
    {"more pages and pools than a launch takes", std::vector<int64_t>(130, 32), 700, 600},
};

class PageCopyProblem {
 public:
  PageCopyProblem(Queue& queue, const PageCopyCase& c) : queue_(queue) {
    for (const int64_t bytes : c.page_bytes) {
      std::vector<std::byte> host(static_cast<size_t>(c.pool_pages * bytes));
      for (size_t i = 0; i < host.size(); ++i) {
        host[i] = static_cast<std::byte>(RandomBits(7, memory_.size(), i));
      }
      memory_.emplace_back(std::ssize(host), queue.device());
      queue.CopyToDevice(memory_.back().data(), host.data(), std::ssize(host));
      pools_.push_back({memory_.back().data(), bytes});
      host_.push_back(std::move(host));
    }
    for (int32_t i = 0; i < c.pool_pages; ++i) pages_.push_back(i);
    for (size_t i = pages_.size(); i > 1; --i) {
      std::swap(pages_[i - 1], pages_[RandomBits(8, 0, i) % i]);
    }
    pages_.resize(static_cast<size_t>(c.num_pages));
  }

  void RunAndCompare() {
    const int64_t bytes = std::ssize(pages_) * PackedPageBytes(pools_);
    const Buffer packed(bytes + 16, queue_.device());  // and what must stay as it is
    const std::vector<std::byte> poison(static_cast<size_t>(bytes + 16), std::byte{0xFF});
    queue_.CopyToDevice(packed.data(), poison.data(), bytes + 16);
    GatherPages(queue_, pools_, pages_, packed.data());
    std::vector<std::byte> wanted;
    for (const int32_t page : pages_) {
      for (size_t p = 0; p < pools_.size(); ++p) {
        const auto at = host_[p].begin() + page * pools_[p].page_bytes;
        wanted.insert(wanted.end(), at, at + pools_[p].page_bytes);
      }
    }
    wanted.resize(wanted.size() + 16, std::byte{0xFF});
    EXPECT_TRUE(ToHost(packed) == wanted);

    // All pages of the pools are gone, and only those that are named come back.
    for (const Buffer& b : memory_) {
      const std::vector<std::byte> gone(static_cast<size_t>(b.bytes()), std::byte{0xEE});
      queue_.CopyToDevice(b.data(), gone.data(), b.bytes());
    }
    ScatterPages(queue_, pools_, pages_, packed.data());
    for (size_t p = 0; p < pools_.size(); ++p) {
      std::vector<std::byte> back(host_[p].size(), std::byte{0xEE});
      for (const int32_t page : pages_) {
        const auto at = page * pools_[p].page_bytes;
        std::memcpy(back.data() + at, host_[p].data() + at,
                    static_cast<size_t>(pools_[p].page_bytes));
      }
      EXPECT_TRUE(ToHost(memory_[p]) == back) << "pool " << p;
    }
  }

 private:
  std::vector<std::byte> ToHost(const Buffer& from) {
    std::vector<std::byte> out(static_cast<size_t>(from.bytes()));
    queue_.CopyToHost(out.data(), from.data(), from.bytes());
    return out;
  }

  Queue& queue_;
  std::vector<Buffer> memory_;
  std::vector<PagePool> pools_;
  std::vector<std::vector<std::byte>> host_;
  std::vector<int32_t> pages_;
};

}  // namespace mm01
