#include "profiler/placement/placement_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

#include "profiler/report/layer_names.hpp"
#include "profiler/text/format.hpp"

namespace moescope {
namespace {

TableCell fixed_cell(double value, int decimals, Mark mark = Mark::kNone) {
  return {fmt::format("{:.{}f}", value, decimals), value, mark};
}

bool made(const JudgedPlacement& each) { return each.reason.empty(); }

std::int64_t most_experts(const JudgedPlacement& each) {
  return std::ranges::max(each.placement.experts_per_rank());
}

/// Bytes that the busiest rank sends or receives, as text; "-" where d is not known.
TableCell busiest_cell(const LinkBytes& bytes) {
  return bytes.dispatch.empty() ? TableCell("-") : bytes_cell(static_cast<double>(bytes.busiest_rank()));
}

TableCell between_cell(const PlacementStudy& study, const JudgedPlacement& each) {
  if (study.group.nodes == 1 || each.dispatch.dispatch.empty()) {
    return "-";
  }
  return bytes_cell(static_cast<double>(each.dispatch.between_nodes()));
}

TableCell memory_cell(const PlacementStudy& study, const JudgedPlacement& each) {
  const std::int64_t bytes = study.batch.expert_bytes * most_experts(each);
  return bytes == 0 ? TableCell("-") : bytes_cell(static_cast<double>(bytes));
}

void add_placement(Table& table, const PlacementStudy& study, const JudgedPlacement& each, double best_load,
                   double fewest_rows) {
  const PlacementUse& use = each.use;
  table.add_row(
      {study.batch.name, each.spec.text(),
       fixed_cell(use.load_max_over_mean, 3, use.load_max_over_mean <= best_load ? Mark::kGood : Mark::kNone),
       each.spec.by_counts() ? fixed_cell(each.seen_max_over_mean, 3) : TableCell("-"),
       fixed_cell(use.ranks_per_token, 2),
       fixed_cell(use.remote_ranks_per_token, 2,
                  use.remote_ranks_per_token <= fewest_rows ? Mark::kGood : Mark::kNone),
       percent_cell(use.hottest_share), busiest_cell(each.dispatch), busiest_cell(each.gather),
       between_cell(study, each), count_cell(most_experts(each)), memory_cell(study, each),
       count_cell(each.placement.copies()), count_cell(use.hottest_rank)});
}

/// The best of those made, by a value.
template <class Value>
double least(const PlacementStudy& study, const Value& value) {
  std::optional<double> best;
  for (const JudgedPlacement& each : study.placements) {
    if (made(each) && (!best || value(each) < *best)) {
      best = value(each);
    }
  }
  return best.value_or(0);
}

double load_of(const JudgedPlacement& each) { return each.use.load_max_over_mean; }
double sent_of(const JudgedPlacement& each) { return each.use.remote_ranks_per_token; }

const char* verdict_words(CopiesVerdict verdict) {
  switch (verdict) {
    case CopiesVerdict::kPay:
      return "copies pay";
    case CopiesVerdict::kDoNotPay:
      return "copies do not pay";
    case CopiesVerdict::kUndecided:
      return "whether copies pay differs between parts of the tokens";
  }
  return "?";
}

std::string copies_text(const CopiesAnswer& answer) {
  const auto more = [](double part, const char* less_word, const char* more_word) {
    return fmt::format("{} {}", format_percent(part < 0 ? -part : part), part < 0 ? more_word : less_word);
  };
  return fmt::format(
      "{}. With {} the busiest rank has {:.3f} times the mean, {} than with {} ({:.3f}); perfect balance "
      "would "
      "save {}. Rows sent per "
      "token: {:.2f} against {:.2f}. Experts on a rank: {}.",
      verdict_words(answer.verdict), answer.with->spec.text(), answer.with->use.load_max_over_mean,
      more(answer.saved, "less", "more"), answer.without->spec.text(), answer.without->use.load_max_over_mean,
      format_percent(answer.ceiling), answer.with->use.remote_ranks_per_token,
      answer.without->use.remote_ranks_per_token, more(answer.memory, "more", "fewer"));
}

/// Which exchange moves less, by the busiest rank, with the placement that suits it.
std::string exchange_text(const PlacementStudy& study) {
  const JudgedPlacement* best = nullptr;
  for (const JudgedPlacement& each : study.placements) {
    if (made(each) && !each.spec.token_groups && !each.dispatch.dispatch.empty() &&
        (best == nullptr || each.dispatch.busiest_rank() < best->dispatch.busiest_rank())) {
      best = &each;
    }
  }
  if (best == nullptr || best->gather.busiest_rank() == 0) {
    return "";
  }
  const double ratio =
      static_cast<double>(best->dispatch.busiest_rank()) / static_cast<double>(best->gather.busiest_rank());
  return fmt::format(
      " A dispatch moves least with {}: {:.2f} times what a gather moves over the busiest rank.",
      best->spec.text(), ratio);
}

}  // namespace

Table placement_table(std::span<const PlacementStudy> studies) {
  const bool several = studies.size() > 1;
  Table table({{"workload", Align::kLeft, several ? Need::kAlways : Need::kPrograms, true},
               {"placement", Align::kLeft, Need::kAlways},
               {"max/mean", Align::kRight, Need::kAlways},
               {"when seen", Align::kRight, Need::kExtra},
               {"ranks/token", Align::kRight, Need::kAlways},
               {"sent/token", Align::kRight, Need::kAlways},
               {"hottest"},
               {"dispatch"},
               {"gather"},
               {"between nodes", Align::kRight, Need::kExtra},
               {"experts"},
               {"memory"},
               {"copies", Align::kRight, Need::kExtra},
               {"hottest rank", Align::kRight, Need::kPrograms}});
  for (const PlacementStudy& study : studies) {
    const double best_load = least(study, load_of);
    const double fewest_rows = least(study, sent_of);
    for (const JudgedPlacement& each : study.placements) {
      if (made(each)) {
        add_placement(table, study, each, best_load, fewest_rows);
      }
    }
    table.add_rule();
  }
  return table;
}

std::string placement_conclusion(std::span<const PlacementStudy> studies) {
  std::string text;
  std::array<int, 3> verdicts{};
  for (const PlacementStudy& study : studies) {
    const std::string where = studies.size() > 1 ? study.batch.name + ": " : "";
    if (const auto answer = copies_answer(study)) {
      ++verdicts[static_cast<std::size_t>(answer->verdict)];
      text += fmt::format("{}{}{}\n", where, copies_text(*answer), exchange_text(study));
    } else if (const std::string exchange = exchange_text(study); !exchange.empty()) {
      text += fmt::format("{}{}\n", where, exchange.substr(1));
    }
    for (const JudgedPlacement& each : study.placements) {
      if (!made(each)) {
        text += fmt::format("{}{} was left out: {}\n", where, each.spec.text(), each.reason);
      }
    }
  }
  const auto& [pay, do_not, undecided] = verdicts;
  if (pay + do_not + undecided > 1) {
    text += fmt::format(
        "in all: copies pay in {} of {}, do not in {}; in {} it differs between parts of the tokens\n", pay,
        pay + do_not + undecided, do_not, undecided);
  }
  return text;
}

Figure placement_figure(std::span<const PlacementStudy> studies) {
  Figure figure;
  figure.title = studies.empty() ? "" : fmt::format("placements on {} ranks", studies.front().group.ranks);
  const auto panel = [&](const char* title, const char* label, double (*value)(const JudgedPlacement&)) {
    FigurePanel result{title, "placement", label, false, {}};
    if (!studies.empty()) {
      for (const JudgedPlacement& each : studies.front().placements) {
        result.x_names.push_back(each.spec.text());
      }
    }
    for (const PlacementStudy& study : studies) {
      FigureSeries series{study.batch.name, {}, {}, false, {}};
      for (std::size_t i = 0; i < study.placements.size(); ++i) {
        if (made(study.placements[i])) {
          series.x.push_back(static_cast<double>(i));
          series.y.push_back(value(study.placements[i]));
        }
      }
      result.series.push_back(std::move(series));
    }
    return result;
  };
  figure.panels = {panel("balance", "pairs of the busiest rank over the mean", load_of),
                   panel("exchange", "rows sent per token", sent_of)};
  return figure;
}

}  // namespace moescope
