#include "experiments/points/compare_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <ostream>
#include <span>
#include <string_view>
#include <utility>

#include "core/base/line_text.hpp"
#include "core/results/result.hpp"
#include "experiments/points/sweep_points.hpp"
#include "profiler/report/layer_names.hpp"
#include "profiler/study/fastest.hpp"
#include "profiler/study/system_study.hpp"
#include "profiler/text/wrap.hpp"

namespace moescope {
namespace {

bool routed(const LayerStudy& study) { return study.skew.num_pairs > 0; }

TableCell fixed_cell(double value, int decimals) { return {fmt::format("{:.{}f}", value, decimals), value}; }

using Studies = std::span<const LayerStudy>;

/// Sentences are read no wider than this.
constexpr std::size_t kReadable = 108;

Table workload_table(Studies studies) {
  Table table({{"workload", Align::kLeft},
               {"usage"},
               {"unevenness", Align::kRight, Need::kAlways},
               {"max/mean"},
               {"effective experts"},
               {"reuse", Align::kRight, Need::kAlways},
               {"strips/token", Align::kRight, Need::kExtra},
               {"floor bytes"}});
  for (const LayerStudy& study : studies) {
    const SkewMetrics& skew = study.skew;
    if (!routed(study)) {
      table.add_row({short_workload(study.workload), "-", "-", "-", "-", "-", "-", "-"});
      continue;
    }
    table.add_row({short_workload(study.workload), fixed_cell(skew.usage, 3), fixed_cell(skew.unevenness, 3),
                   fixed_cell(skew.max_over_mean, 1), fixed_cell(skew.effective_experts, 0),
                   fixed_cell(skew.reuse, 1), fixed_cell(skew.strips_per_token, 1),
                   study.save ? TableCell("-") : bytes_cell(static_cast<double>(study.floor_bytes))});
  }
  return table;
}

TableCell speed_up_cell(const std::optional<RatioSummary>& ratio) {
  return ratio ? ratio_cell(ratio->median) : TableCell("-");
}

void add_schedule(Table& table, const LayerStudy& study, const ScheduleStudy& point,
                  const std::vector<Standing>& standings) {
  const std::string workload = short_workload(study.workload);
  std::string name = point.name();
  if (!is_measured(point)) {
    table.add_row({workload, name, to_string(point.status), "-", "-", "-", "-", "-", "-", "-", "-"});
    return;
  }
  if (point.is_chosen()) {
    name += fmt::format(" -> {}", to_string(point.ran));
  }
  const StageSamples& layer = *point.times.find(Stage::kLayer);
  const auto experts = expert_samples(point.times);
  const auto bytes = static_cast<double>(expert_bytes(point.cost, MemoryLevel::kL2));
  const double over = bytes / static_cast<double>(study.floor_bytes);
  const auto standing = std::ranges::find(standings, &point, &Standing::schedule);
  table.add_row(
      {workload, name, seconds_cell(layer.median_s()), percent_cell(layer.spread()),
       against_fastest(*standing), speed_up_cell(point.layer_speed_up),
       study.save || point.ranks ? TableCell("-") : TableCell(fmt::format("{:.1f}x", over), over),
       point.ranks ? TableCell("-") : bytes_cell(bytes),
       experts ? seconds_cell(experts->median_s()) : TableCell("-"), speed_up_cell(point.expert_speed_up),
       point.error
           ? TableCell(fmt::format("{:.1e}", point.error->relative_error), point.error->relative_error)
           : TableCell("-")});
}

/// Skipped schedules stand below the table, with their reason.
Table schedule_table(Studies studies) {
  using enum Need;
  Table table({{"workload", Align::kLeft, kAlways, true},
               {"schedule", Align::kLeft, kAlways},
               {"layer", Align::kRight, kAlways},
               {"spread"},
               {"vs fastest", Align::kRight, kAlways},
               {"speed-up"},
               {"over floor"},
               {"requested bytes", Align::kRight, kExtra},
               {"experts", Align::kRight, kExtra},
               {"experts' speed-up", Align::kRight, kExtra},
               {"error", Align::kRight, kExtra}});
  for (const LayerStudy& study : studies) {
    table.add_rule();
    const auto all = standings(study);
    for (const ScheduleStudy& point : study.schedules) {
      if (point.status != Status::kSkipped) {
        add_schedule(table, study, point, all);
      }
    }
  }
  return table;
}

/// What is to be known of points that did not fail.
std::string notes_text(const std::vector<LayerStudy>& studies) {
  std::vector<std::string> lines;
  for (const LayerStudy& study : studies) {
    for (const ScheduleStudy& point : study.schedules) {
      std::string line;
      if (point.status == Status::kSkipped) {
        line = fmt::format("{} skipped: {}\n", point.name(), point.reason);
      } else if (point.status == Status::kOk && !point.error) {
        line = fmt::format("{}: {} has no error: {}\n", study.workload, point.name(), point.error_reason);
      }
      if (!line.empty() && std::ranges::find(lines, line) == lines.end()) {
        lines.push_back(std::move(line));
      }
    }
  }
  return fmt::format("{}", fmt::join(lines, ""));
}

std::string conclusions(Studies studies, std::size_t line_width) {
  std::size_t width = 0;
  for (const LayerStudy& study : studies) {
    width = std::max(width, text_width(short_workload(study.workload)));
  }
  std::string text;
  for (const LayerStudy& study : studies) {
    const std::string workload = one_line(short_workload(study.workload)) + ':';
    text += paragraph(fmt::format("{:<{}} {}", workload, width + 1, conclusion_text(standings(study))),
                      line_width, std::string(width + 2, ' '));
  }
  return text;
}

}  // namespace

std::vector<std::span<const LayerStudy>> by_shape(const std::vector<LayerStudy>& studies) {
  std::vector<std::span<const LayerStudy>> groups;
  for (std::size_t begin = 0, end = 0; begin < studies.size(); begin = end) {
    const auto same = [&](const LayerStudy& study) {
      return study.shape.label() == studies[begin].shape.label();
    };
    for (end = begin; end < studies.size() && same(studies[end]); ++end) {
    }
    groups.push_back(Studies(studies).subspan(begin, end - begin));
  }
  return groups;
}

void print_comparison(TableOutput& out, const std::vector<LayerStudy>& studies, const std::string& device) {
  for (const Studies group : by_shape(studies)) {
    const LayerStudy& first = group.front();
    out.text() << fmt::format("{}, {}{}, {} on {}, L2 {}, seed {}\n\n", first.shape.label(),
                              to_string(first.shape.dtype),
                              first.save ? ", " + backward_words(first) : "",
                              first.backend, device, to_string(first.sampling.l2), first.seed);
    out.show(fmt::format("workloads {}", first.shape.label()), workload_table(group));
    out.text() << '\n';
    out.show(fmt::format("schedules {}", first.shape.label()), schedule_table(group));
    out.text() << '\n' << conclusions(group, out.style().width) << '\n';
  }
  const bool backward = !studies.empty() && studies.front().save;
  out.text()
      << paragraph(
             fmt::format(
                 "layer: median over alternating samples; spread: (max - min) / median; vs fastest: time "
                 "over the fastest one's, round by round, ~ where it may be 1 (95 % confidence; of fewer "
                 "than 6 rounds, the extremes); speed-up: over token_centric; {}",
                 backward
                     ? "requested bytes: of the experts' data and weight gradients (analytic); error: "
                       "relative, of the gradient that is nearest to its tolerance against the fp64 oracle"
                     : "over floor: bytes that the expert stage requests (analytic) over active experts, "
                       "tokens and output once; error: relative, against the fp64 oracle on sampled tokens"),
             out.style().width == 0 ? 0 : std::min(out.style().width, kReadable))
      << notes_text(studies);
}

TableCell against_fastest(const Standing& standing) {
  if (standing.fastest) {
    return {"fastest", 1, Mark::kFastest};
  }
  if (!standing.ratio) {
    return "-";
  }
  const double ratio = standing.ratio->median;
  return standing.tied() ? TableCell(fmt::format("~{:.2f}x", ratio), ratio, Mark::kWithinSpread)
                         : ratio_cell(ratio);
}

std::string typed_command(const Invocation& invocation) {
  constexpr std::string_view kSaidAgain[] = {"--min-samples", "--max-time", "--output"};
  std::vector<const char*> words = {"moescope"};
  for (int a = 1; a < invocation.argc; ++a) {
    const std::string_view word = invocation.argv[a];
    const std::string_view name = word.substr(0, word.find('='));
    if (std::ranges::find(kSaidAgain, name) == std::end(kSaidAgain)) {
      words.push_back(invocation.argv[a]);
    } else if (name == word) {
      ++a;  // its value
    }
  }
  return command_line_of(words);
}

std::string noise_text(const std::vector<LayerStudy>& studies, const std::string& repro) {
  const auto spread = usual_spread(studies);
  return !spread || *spread <= kNoisySpread
             ? ""
             : fmt::format(
                   "\nwarning: this machine is noisy: half of the times spread by more than {:.0f} %.\n"
                   "Close other programs, or ask for more samples:\n"
                   "      {} --min-samples 30 --max-time 20\n",
                   100 * *spread, repro);
}

std::string next_text(const std::vector<LayerStudy>& studies, const std::string& repro) {
  std::string text = noise_text(studies, repro);
  // The layer with most to do tells most.
  const auto most =
      std::ranges::max_element(studies, {}, [](const LayerStudy& study) { return study.skew.num_pairs; });
  if (most == studies.end()) {
    return text;
  }
  const auto all = standings(*most);
  if (all.empty()) {
    return text;
  }
  return text + fmt::format("\nnext: where the time goes:\n      {}\n      what a GPU would do:\n      {}\n",
                            run_command(*most, all.front().schedule->ran), simulate_command(*most));
}

std::string failures_text(const std::vector<LayerStudy>& studies) {
  std::vector<std::string> lines;
  std::size_t points = 0;
  for (const LayerStudy& study : studies) {
    for (const ScheduleStudy& point : study.schedules) {
      ++points;
      if (point.status == Status::kFailed) {
        lines.push_back(fmt::format("failed: {}: {}: {}\n",
                                    one_line(study.baseline ? study_label(study) : study.workload),
                                    point.name(), one_line(point.reason)));
      }
    }
  }
  return lines.empty()
             ? ""
             : fmt::format("{} of {} points failed\n{}", lines.size(), points, fmt::join(lines, ""));
}

ExitCode outcome(const std::vector<LayerStudy>& studies) {
  ExitCode failure = ExitCode::kOk;
  for (const LayerStudy& study : studies) {
    for (const ScheduleStudy& point : study.schedules) {
      if (is_measured(point)) {
        return ExitCode::kOk;
      }
      if (failure == ExitCode::kOk && point.status == Status::kFailed) {
        failure = point.code;
      }
    }
  }
  return failure;
}

}  // namespace moescope
