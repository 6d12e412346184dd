#include "server/http_head.h"

#include <gtest/gtest.h>

namespace mm01::server {
namespace {

TEST(HttpHead, ReadsARequest) {
  const auto head = ParseHead(
      "POST /v1/completions?a=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\n"
      "Expect: 100-continue\r\nX-Two:  words here \r\n");
  ASSERT_TRUE(head.ok()) << head.status().message();
  EXPECT_EQ(head->method, "POST");
  EXPECT_EQ(head->path, "/v1/completions");
  EXPECT_EQ(head->query, "a=1");
  EXPECT_EQ(head->body_length, 12);
  EXPECT_TRUE(head->expects_100);
  EXPECT_TRUE(head->keep_alive);
  EXPECT_EQ(*head->Find("x-two"), "words here");
  EXPECT_EQ(head->Find("x-three"), nullptr);
}

TEST(HttpHead, OldVersionCloses) {
  const auto head = ParseHead("GET / HTTP/1.0\r\n");
  ASSERT_TRUE(head.ok());
  EXPECT_FALSE(head->keep_alive);
}

class Refused : public testing::TestWithParam<const char*> {};

TEST_P(Refused, IsAnError) {
  const auto head = ParseHead(GetParam());
  EXPECT_FALSE(head.ok()) << GetParam();
}

// What proxies and servers have understood differently.
INSTANTIATE_TEST_SUITE_P(
    HttpHead, Refused,
    testing::Values(
        "", "\r\n", "GET /\r\nHost: a\r\n", "GET / HTTP/1.1\nHost: a\n",
        "GET / HTTP/2.0\r\nHost: a\r\n", "GET  / HTTP/1.1\r\nHost: a\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: a\r\n", "GET /a b HTTP/1.1\r\nHost: a\r\n",
        "G(T / HTTP/1.1\r\nHost: a\r\n", "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n", "GET / HTTP/1.1\r\nHost : a\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n", "GET / HTTP/1.1\r\n Host: a\r\n",
        "GET / HTTP/1.1\r\nHost: a\x01\r\n", "GET / HTTP/1.1\r\nHost: a\rX: b\r\n",
        "GET / HTTP/1.1\r\nHost: a\nX: b\r\n", "GET / HTTP/1.1\r\nHost: a\r\nNoColon\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n: empty\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x10\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999999999999\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: "
        "chunked\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nExpect: something\r\n"));

}  // namespace
}  // namespace mm01::server
