#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/layer/stage.hpp"
#include "core/results/result.hpp"

/// Rows of a small sweep, for whatever shows rows.
namespace moescope::test {

/// A measured row of a layer of 4 x 4 experts; its repro names the number of tokens.
ResultRow make_row(const std::string& schedule, Stage stage, const std::string& metric, double value,
                   std::int64_t num_tokens, const std::string& workload = "zipf:1");

/// Two schedules over three numbers of tokens, one of them failed once.
std::vector<RecordedRun> make_runs();

}  // namespace moescope::test
