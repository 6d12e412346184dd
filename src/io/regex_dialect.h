// Split patterns of tokenizer.json are written for Oniguruma (Ruby syntax, UTF-8). PCRE2 reads the
// same text differently in places: \s also takes U+180E, \p{Han} means script extensions, \v is a
// set, x{1,3}+ is possessive. A pattern is therefore spelled anew, construct by construct, and what
// would not mean the same is refused by name.
//
// Read: literals, . ^ $ | groups (?: (?= (?! (?<= (?<! (?> (?i: (?-i:, quantifiers ? * + {n,m} with
// a lazy ? or a possessive + (not after {}), classes without nesting or &&, \s \S \d \D \w \W \A \z
// \Z, \n \r \t \f \v \a \e \xHH \x{H} \uHHHH, \p{} \P{} \p{^} of general categories and scripts.
//
// Properties are those of PCRE2's Unicode (14 in 10.42), the reference library's are of Unicode 16:
// of the characters added in between, 9,272 are letters there and unassigned here. (?i: folds
// single characters only.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace mm01 {

// `pattern` (valid UTF-8) for PCRE2 under UTF, UCP and MULTILINE with LF as the only newline. An
// error says what was found and at which byte of the pattern; the caller says in which pattern.
Result<std::string> OnigurumaToPcre2(std::string_view pattern);

}  // namespace mm01
