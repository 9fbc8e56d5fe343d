#include "profiler/study/rank_rows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "profiler/study/layer_rows.hpp"
#include "profiler/text/format.hpp"

namespace moescope {
namespace {

template <class T>
double max_over_mean(const std::vector<T>& values) {
  const auto sum = static_cast<double>(std::accumulate(values.begin(), values.end(), T{}));
  return sum == 0 ? 1
                  : static_cast<double>(std::ranges::max(values)) * static_cast<double>(values.size()) / sum;
}

/// Whether messages were counted; of GPUs there is the plan alone.
bool counted(const RankReport& report) { return !report.moved.dispatch.empty(); }

/// Time of each rank.
std::vector<double> rank_times(const RankReport& report) {
  std::vector<double> times(report.pairs.size());
  // Ranks that run at the same time have a time of the layer, in which stages overlap.
  const bool has_layer =
      std::ranges::find(report.times, Stage::kLayer, &RankTime::stage) != report.times.end();
  for (const RankTime& each : report.times) {
    if (!has_layer || each.stage == Stage::kLayer) {
      times[static_cast<std::size_t>(each.rank)] += each.time_s;
    }
  }
  return times;
}

/// Bytes that a rank sends (`sends`) or receives, both directions of the exchange added.
std::int64_t bytes_of(const LinkBytes& bytes, std::int64_t rank, bool sends) {
  std::int64_t sum = 0;
  const std::int64_t ranks = bytes.group.ranks;
  for (std::int64_t other = 0; other < ranks; ++other) {
    const auto at = static_cast<std::size_t>(sends ? rank * ranks + other : other * ranks + rank);
    sum += bytes.dispatch[at] + bytes.combine[at];
  }
  return sum;
}

class Rows {
 public:
  explicit Rows(const Point& point) : point_(point) {}

  void add(Stage stage, Source source, const char* metric, double value, const char* unit) {
    rows_.push_back(value_row(point_, stage, source, metric, value, unit));
  }
  void count(Stage stage, Source source, const char* metric, std::int64_t value, const char* unit) {
    add(stage, source, metric, static_cast<double>(value), unit);
  }
  void links(Stage stage, const LinkBytes& group, const std::vector<std::int64_t>& bytes) {
    const std::int64_t ranks = group.group.ranks;
    for (std::int64_t link = 0; link < ranks * ranks; ++link) {
      if (link / ranks != link % ranks) {
        point_.rank = link / ranks;
        point_.peer = link % ranks;
        count(stage, Source::kAnalytic, "link_bytes", bytes[static_cast<std::size_t>(link)], "bytes");
      }
    }
    point_.rank.reset();
    point_.peer.reset();
  }
  void set_rank(std::optional<std::int64_t> rank) { point_.rank = rank; }
  std::vector<ResultRow> take() { return std::move(rows_); }

 private:
  Point point_;
  std::vector<ResultRow> rows_;
};

}  // namespace

std::vector<ResultRow> rank_rows(const Point& point, const RankReport& report) {
  Rows rows(point);
  const std::vector<double> times = rank_times(report);
  rows.add(Stage::kExperts, Source::kAnalytic, "load_max_over_mean", max_over_mean(report.pairs), "ratio");
  rows.add(Stage::kLayer, Source::kMeasured, "rank_time_max_over_mean", max_over_mean(times), "ratio");
  rows.add(Stage::kTokenDispatch, Source::kAnalytic, "ranks_per_token", report.ranks_per_token, "ranks");
  rows.add(Stage::kTokenDispatch, Source::kAnalytic, "remote_ranks_per_token", report.remote_ranks_per_token,
           "ranks");
  rows.count(Stage::kLayer, Source::kAnalytic, "exchange_bytes", report.planned.total(), "bytes");
  if (counted(report)) {
    rows.count(Stage::kLayer, Source::kMeasured, "moved_bytes", report.moved.total(), "bytes");
  }
  rows.count(Stage::kLayer, Source::kAnalytic, "busiest_rank_bytes", report.planned.busiest_rank(), "bytes");
  if (report.exposed_s) {
    rows.add(Stage::kLayer, Source::kMeasured, "exposed_s", std::max(0.0, *report.exposed_s), "s");
    rows.add(Stage::kTokenDispatch, Source::kMeasured, "exposed_s", std::max(0.0, *report.exposed_rows_s),
             "s");
  }
  for (const RankTime& each : report.times) {
    if (each.time_s > 0) {
      rows.set_rank(each.rank);
      rows.add(each.stage, Source::kMeasured, "time_s", each.time_s, "s");
    }
  }
  for (std::size_t rank = 0; rank < report.pairs.size(); ++rank) {
    rows.set_rank(static_cast<std::int64_t>(rank));
    rows.count(Stage::kExperts, Source::kAnalytic, "home_tokens", report.tokens[rank], "tokens");
    rows.count(Stage::kExperts, Source::kAnalytic, "rank_pairs", report.pairs[rank], "pairs");
    rows.count(Stage::kExperts, Source::kAnalytic, "rank_experts", report.experts[rank], "experts");
  }
  rows.set_rank(std::nullopt);
  if (report.planned.group.ranks <= kMostRanksWithLinks) {
    rows.links(Stage::kTokenDispatch, report.planned, report.planned.dispatch);
    rows.links(Stage::kTokenCombine, report.planned, report.planned.combine);
  }
  return rows.take();
}

Table rank_table(const RankReport& report) {
  Table table({{"rank", Align::kRight, Need::kAlways},
               {"tokens"},
               {"pairs", Align::kRight, Need::kAlways},
               {"experts"},
               {"time", Align::kRight, Need::kAlways},
               {"sent"},
               {"received"}});
  const std::vector<double> times = rank_times(report);
  const LinkBytes& travelled = counted(report) ? report.moved : report.planned;
  for (std::size_t rank = 0; rank < report.pairs.size(); ++rank) {
    const auto number = static_cast<std::int64_t>(rank);
    table.add_row({count_cell(number), count_cell(report.tokens[rank]), count_cell(report.pairs[rank]),
                   count_cell(report.experts[rank]), seconds_cell(times[rank]),
                   bytes_cell(static_cast<double>(bytes_of(travelled, number, true))),
                   bytes_cell(static_cast<double>(bytes_of(travelled, number, false)))});
  }
  return table;
}

std::string rank_text(const RankReport& report) {
  const std::string exposed = report.exposed_s ? fmt::format(", {} of the time exposed",
                                                             format_seconds(std::max(0.0, *report.exposed_s)))
                                               : "";
  return fmt::format(
      "{} ranks, placement {}, exchange {}: busiest over mean {:.3f} by pairs, {:.2f} by time; {:.2f} ranks "
      "a "
      "token; {} exchanged{}",
      report.options.group.ranks, report.options.placement.text(), to_string(report.options.exchange),
      max_over_mean(report.pairs), max_over_mean(rank_times(report)), report.ranks_per_token,
      format_bytes(static_cast<double>((counted(report) ? report.moved : report.planned).total())), exposed);
}

}  // namespace moescope
