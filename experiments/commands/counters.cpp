#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>

#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/table_options.hpp"
#include "profiler/counters/counter_check.hpp"
#include "profiler/counters/cupti_counters.hpp"
#include "profiler/counters/metric_catalogue.hpp"

#ifdef MOESCOPE_HAVE_CUDA
#include "kernels/probes/known_work.hpp"
#endif

namespace moescope {
namespace {

struct CountersOptions {
  std::string chip = MetricCatalogue::builtin().default_chip();
  std::vector<std::string> metrics;
  bool check = false;
  std::string output;
  TableOptions tables;
};

std::string formula_text(const std::map<std::string, double>& terms) {
  std::string text;
  for (const auto& [counter, factor] : terms) {
    text += factor < 0 ? " - " : text.empty() ? "" : " + ";
    text += std::abs(factor) == 1 ? counter : fmt::format("{:g} {}", std::abs(factor), counter);
  }
  return text;
}

/// Passes that the chosen metrics take together, or why that is not known here.
std::string passes_text(const CountersOptions& options, const MetricSelection& selection, CounterPlan& plan) {
  try {
    plan = plan_counters(options.chip, selection.counters());
    return fmt::format("{} counters in {} passes", plan.counters.size(), plan.passes);
  } catch (const CountersUnavailable& error) {
    if (!MetricCatalogue::builtin().chips().contains(options.chip)) {
      throw InvalidArgument("chip", options.chip,
                            "not in the catalogue, and there is no CUPTI here to know it");
    }
    return fmt::format("number of passes unknown: {}", error.what());
  }
}

ExitCode list(const CountersOptions& options) {
  const auto& catalogue = MetricCatalogue::builtin();
  const auto architecture = catalogue.chips().find(options.chip);
  const std::vector<std::string> all = {"full"};
  const auto selection = catalogue.resolve(options.chip, options.metrics.empty() ? all : options.metrics);
  CounterPlan plan;
  const std::string passes = passes_text(options, selection, plan);
  std::cout << fmt::format(
      "{} ({}): {}\n\n", options.chip,
      architecture == catalogue.chips().end() ? "not in the catalogue" : architecture->second, passes);
  for (const auto& metric : selection.metrics) {
    std::string formula = formula_text(metric.terms);
    if (!metric.over.empty()) {
      formula = fmt::format("({}) / ({})", formula, formula_text(metric.over));
    }
    std::cout << fmt::format("{}, {}: {}\n    = {}\n", metric.name, metric.unit, metric.meaning, formula);
  }
  for (const auto& missing : selection.unavailable) {
    std::cout << fmt::format("unavailable: {}: {}\n", missing.name, missing.reason);
  }
  for (const auto& missing : plan.unavailable) {
    std::cout << fmt::format("unavailable: {}: {}\n", missing.name, missing.reason);
  }
  for (const auto& [set, names] : catalogue.sets()) {
    std::cout << fmt::format("set {}: {}\n", set, fmt::join(names, ", "));
  }
  return ExitCode::kOk;
}

void print(TableOutput& out, const CounterCheck& check) {
  Table table({{"work", Align::kLeft},
               {"metric", Align::kLeft},
               {"known"},
               {"counted"},
               {"ratio"},
               {"verdict", Align::kLeft}});
  for (const auto& one : check.checked) {
    const auto ratio = one.ratio();
    table.add_row(
        {one.work, one.known.metric, fmt::format("{}{:.5g}", one.known.at_most ? "<= " : "", one.known.value),
         ratio ? fmt::format("{:.5g}", *one.measured) : "none", ratio ? fmt::format("{:.4f}", *ratio) : "",
         one.holds() ? "ok"
         : ratio     ? "WRONG"
                     : one.reason});
  }
  out.text() << fmt::format("{}, {} counters in {} passes\n\n", check.plan.chip, check.plan.counters.size(),
                            check.plan.passes);
  out.show("known work", table);
  if (check.counted.empty()) {
    return;
  }
  Table others({{"work", Align::kLeft}, {"metric", Align::kLeft}, {"counted"}, {"unit", Align::kLeft}});
  for (const auto& one : check.counted) {
    for (const auto& value : one.values) {
      others.add_row({one.work, value.name, value.value ? fmt::format("{:.6g}", *value.value) : value.reason,
                      value.unit});
    }
  }
  out.text() << '\n';
  out.show("other counters", others);
}

KnownWork known_work() {
#ifdef MOESCOPE_HAVE_CUDA
  return make_cuda_known_work();
#else
  throw NoDevice("this build has no CUDA backend; configure with -DMOESCOPE_CUDA=ON and nvcc");
#endif
}

ExitCode check(const CountersOptions& options, const Invocation& invocation) {
  StandardTables out(options.tables);
  const auto backend = make_backend("cuda");
  const auto source = make_cupti_counters();
  const auto writer = open_rows(options.output, run_header(invocation, *backend));
  const CounterCheck result = check_counters(*source, known_work(), options.metrics);
  for (const auto& row : writer ? counter_check_rows(result, backend->name()) : std::vector<ResultRow>{}) {
    writer->write(row);
  }
  print(out, result);
  const bool all_hold = std::all_of(result.checked.begin(), result.checked.end(),
                                    [](const CheckedValue& one) { return one.holds(); });
  return all_hold ? ExitCode::kOk : ExitCode::kCheckFailed;
}

}  // namespace

Command add_counters(Cli app, const Invocation& invocation) {
  auto options = std::make_shared<CountersOptions>();
  const Cli sub = app.add_subcommand(
      "counters",
      "hardware metrics: what can be counted, by which of the vendor's counters, in how many passes");
  sub.add_option("--chip", options->chip,
                 fmt::format("chip to list for, as CUPTI names it (default {})", options->chip))
      .type_name("CHIP");
  sub.add_option("--metrics", options->metrics,
                 "metrics, sets (traffic, tensor, full) or counters of the vendor, by comma (default full)")
      .type_name("NAME,...")
      .delimiter(',');
  sub.add_flag(
      "--check", options->check,
      "count work of known bytes and FLOP on this GPU and compare; exit code 1 when a counter is wrong");
  sub.add_option("--output", options->output,
                 "directory for rows.jsonl, rows.csv and run.json of --check (default: none are written)")
      .type_name("DIR");
  add_table_options(sub, options->tables);
  sub.footer(examples({"moescope counters --metrics traffic", "moescope counters --chip GA100",
                       "moescope counters --check --output out/counters"}));
  return {sub,
          [options, invocation] { return options->check ? check(*options, invocation) : list(*options); }};
}

}  // namespace moescope
