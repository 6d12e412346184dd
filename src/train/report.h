// A run on one HTML page: curves, validation, needles, the balance of experts, samples and notes.
//
// The page is one file with inline SVG, light or dark as the browser likes it, and asks nobody for
// anything.
// Errors    NotFound where the folder has no metrics.jsonl, Invalid where it has no step.
// Cost      One pass over metrics.jsonl; the page has some 100 KB however long the run.
#pragma once

#include <string>

#include "base/status.h"

namespace mm01::train {

Result<std::string> MakeReport(const std::string& run);

}  // namespace mm01::train
