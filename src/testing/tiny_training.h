// A data set, words and a recipe small enough for tests, in a folder of their own. For tests only.
#pragma once

#include <string>

#include "testing/temp_folder.h"
#include "train/recipe.h"

namespace mm01 {

// Tokenizer: ids 0 .. 255 bytes, 256 "he", 257 <end>; 40 documents of 30 to 420 bytes; 200 words.
class TinyTraining {
 public:
  TinyTraining();

  std::string operator/(const std::string& name) const { return folder_ / name; }

  static std::string Text(int d);

  // The recipe of the tests, with `more` before its first table and `stage` in its stage.
  std::string RecipeText(const std::string& more = "", const std::string& stage = "") const;
  train::Recipe Recipe(const std::string& more = "", const std::string& stage = "") const;

 private:
  TempFolder folder_;
};

}  // namespace mm01
