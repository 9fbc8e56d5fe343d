#pragma once

#include <iosfwd>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "profiler/study/layer_study.hpp"
#include "profiler/text/figure.hpp"

namespace moescope {

/// The tables of `compare`: skew of every workload, then every schedule on it.
void print_comparison(std::ostream& out, const std::vector<LayerStudy>& studies, const std::string& device);

/// Layer time and requested bytes of the expert stage over unevenness: Zipf sweeps as lines, other workloads
/// as points with their names.
Figure skew_figure(const std::vector<LayerStudy>& studies, const std::string& device);

/// Which points failed, each with its reason, a line a point: what a command says last. Empty when none did.
std::string failures_text(const std::vector<LayerStudy>& studies);

/// Ok when any point was measured (others are recorded as failed), else the code of the first failure.
ExitCode outcome(const std::vector<LayerStudy>& studies);

}  // namespace moescope
