#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "experiments/options/command.hpp"
#include "profiler/study/fastest.hpp"
#include "profiler/text/figure.hpp"
#include "profiler/text/table_output.hpp"

namespace moescope {

/// Studies of one shape after another, each shape by itself: what belongs into one table.
std::vector<std::span<const LayerStudy>> by_shape(const std::vector<LayerStudy>& studies);

/// The tables of `compare`, shape by shape: skew of every workload, then every schedule on it, then which is
/// the fastest and whether that is more than the noise.
void print_comparison(TableOutput& out, const std::vector<LayerStudy>& studies, const std::string& device);

/// Layer time and requested bytes of the expert stage over unevenness: Zipf sweeps as lines, other workloads
/// as points with their names.
Figure skew_figure(const std::vector<LayerStudy>& studies, const std::string& device);

/// A row's ratio to the fastest: "fastest", "1.31x", or "~1.02x" where the two cannot be told apart.
TableCell against_fastest(const Standing& standing);

/// A warning when the machine is noisy, with `repro`, the command to measure again; else empty.
std::string noise_text(const std::vector<LayerStudy>& studies, const std::string& repro);
/// What to do next: a warning as noise_text() gives it, then commands that go on from here.
std::string next_text(const std::vector<LayerStudy>& studies, const std::string& repro);
/// The command line that is running, in words of a shell, without how long to measure and where to write.
std::string typed_command(const Invocation& invocation);

/// Which points failed, each with its reason, a line a point: what a command says last. Empty when none did.
std::string failures_text(const std::vector<LayerStudy>& studies);

/// Ok when any point was measured (others are recorded as failed), else the code of the first failure.
ExitCode outcome(const std::vector<LayerStudy>& studies);

}  // namespace moescope
