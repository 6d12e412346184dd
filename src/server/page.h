// The files of the page, put into the program when it is built: cmake/page.cmake.
#pragma once

#include <span>
#include <string_view>

namespace mm01::server {

struct PageFile {
  std::string_view path;  // "/", "/page.css"
  std::string_view content_type;
  std::string_view content;
};

std::span<const PageFile> PageFiles();

}  // namespace mm01::server
