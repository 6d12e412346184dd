#include "testing/temp_folder.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>

#include "base/check.h"

namespace mm01 {

TempFolder::TempFolder() {
  std::string name = testing::TempDir() + "mm01_test_XXXXXX";
  Check(::mkdtemp(name.data()) != nullptr, "no temporary folder");
  path_ = name;
}

TempFolder::~TempFolder() {
  std::filesystem::remove_all(path_);
}

}  // namespace mm01
