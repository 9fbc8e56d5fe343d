#include "profiler/cluster/scaling_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <set>
#include <utility>

#include "core/base/error.hpp"
#include "profiler/study/layer_rows.hpp"
#include "profiler/text/format.hpp"

namespace moescope {
namespace {

bool same_way(const ScalingPoint& a, const ScalingPoint& b) {
  const bool alone = a.model.group.ranks == 1 || b.model.group.ranks == 1;
  return a.point.schedule == b.point.schedule &&
         (alone || (a.point.placement == b.point.placement && a.point.exchange == b.point.exchange &&
                    a.model.chunks == b.model.chunks && a.model.overlap == b.model.overlap));
}

std::string way_of(const ScalingPoint& point) {
  return fmt::format("{} {} {}{}{}", point.point.schedule, point.point.placement, point.point.exchange,
                     point.model.chunks > 1 ? fmt::format(" in {} chunks", point.model.chunks) : "",
                     point.model.overlap ? "" : " without overlap");
}

/// Values of all ranks under one name.
struct StageTimes {
  Stage stage;
  std::vector<double> time_s;
};

std::vector<StageTimes> stage_times(const RanksModel& model) {
  std::vector<StageTimes> stages = {{Stage::kRouterProject, {}},
                                    {Stage::kRouterSelect, {}},
                                    {Stage::kExperts, {}},
                                    {Stage::kTokenCombine, {}},
                                    {Stage::kSharedMlp, {}}};
  for (const RankModel& rank : model.ranks) {
    const std::array values = {rank.router_project_s, rank.router_select_s, rank.experts_s, rank.sum_s,
                               rank.shared_s};
    for (std::size_t i = 0; i < values.size(); ++i) {
      stages[i].time_s.push_back(values[i]);
    }
  }
  std::erase_if(stages, [](const StageTimes& s) { return std::ranges::max(s.time_s) == 0; });
  return stages;
}

const char* words(Stage stage) {
  switch (stage) {
    case Stage::kExperts:
      return "schedule and experts";
    case Stage::kTokenCombine:
      return "adding what came back";
    default:
      return nullptr;
  }
}

double slowest(const std::vector<RankModel>& ranks, double RankModel::*member) {
  double most = 0;
  for (const RankModel& rank : ranks) {
    most = std::max(most, rank.*member);
  }
  return most;
}

}  // namespace

std::string_view to_string(Scaling scaling) { return scaling == Scaling::kStrong ? "strong" : "weak"; }

Scaling parse_scaling(std::string_view text) {
  for (const Scaling scaling : {Scaling::kStrong, Scaling::kWeak}) {
    if (text == to_string(scaling)) {
      return scaling;
    }
  }
  throw InvalidArgument("scaling", text, "must be strong or weak");
}

std::optional<double> ScalingStudy::efficiency(const ScalingPoint& point) const {
  const ScalingPoint* fewest = &point;
  for (const ScalingPoint& other : points) {
    if (same_way(other, point) && other.model.group.ranks < fewest->model.group.ranks) {
      fewest = &other;
    }
  }
  if (fewest == &point && point.model.group.ranks > 1) {
    return std::nullopt;
  }
  const double gain = fewest->model.layer_s / point.model.layer_s;
  return scaling == Scaling::kWeak ? gain
                                   : gain * static_cast<double>(fewest->model.group.ranks) /
                                         static_cast<double>(point.model.group.ranks);
}

Table scaling_table(std::span<const ScalingStudy> studies) {
  using enum Need;
  Table table({{"workload", Align::kLeft, kPrograms, true},
               {"schedule", Align::kLeft, kExtra, true},
               {"placement", Align::kLeft, kAlways, true},
               {"exchange", Align::kLeft, kAlways, true},
               {"chunks", Align::kRight, kUsual},
               {"GPUs", Align::kRight, kAlways},
               {"tokens", Align::kRight, kAlways},
               {"layer", Align::kRight, kAlways},
               {"experts", Align::kRight, kUsual},
               {"exchanges", Align::kRight, kUsual},
               {"exposed", Align::kRight, kAlways},
               {"efficiency", Align::kRight, kAlways},
               {"slowest/mean", Align::kRight, kUsual},
               {"decided by", Align::kLeft, kExtra},
               {"overlap", Align::kLeft, kPrograms},
               {"measured", Align::kLeft, kUsual}});
  for (const ScalingStudy& study : studies) {
    for (const ScalingPoint& point : study.points) {
      const RanksModel& model = point.model;
      const bool alone = model.group.ranks == 1;
      const std::optional<double> efficiency = study.efficiency(point);
      table.add_row({study.workload, point.point.schedule, alone ? "-" : TableCell(point.point.placement),
                     alone ? "-" : TableCell(point.point.exchange), count_cell(model.chunks),
                     count_cell(model.group.ranks), count_cell(point.point.num_tokens),
                     seconds_cell(model.layer_s), seconds_cell(slowest(model.ranks, &RankModel::experts_s)),
                     alone ? "-" : seconds_cell(model.exchange_s),
                     alone ? "-" : seconds_cell(model.exposed_s()),
                     efficiency ? percent_cell(*efficiency) : TableCell("-"),
                     alone ? "-" : TableCell(fmt::format("{:.3f}", model.max_over_mean), model.max_over_mean),
                     alone          ? "-"
                     : model.by_nic ? "NICs"
                                    : "links",
                     point.model.overlap ? "yes" : "no",
                     alone                        ? "-"
                     : model.extrapolated.empty() ? "exchanges"
                                                  : "extrapolated"});
    }
    table.add_rule();
  }
  return table;
}

Table rank_stage_table(const ScalingPoint& point) {
  Table table({{"stage", Align::kLeft, Need::kAlways},
               {"mean", Align::kRight, Need::kAlways},
               {"slowest", Align::kRight, Need::kAlways},
               {"rank", Align::kRight, Need::kAlways}});
  for (const auto& [stage, times] : stage_times(point.model)) {
    double sum = 0;
    for (const double time : times) {
      sum += time;
    }
    const auto most = std::ranges::max_element(times);
    const char* const named = words(stage);
    table.add_row({named == nullptr ? TableCell(to_string(stage)) : TableCell(named),
                   seconds_cell(sum / static_cast<double>(times.size())), seconds_cell(*most),
                   count_cell(most - times.begin())});
  }
  return table;
}

std::vector<std::string> scaling_conclusion(std::span<const ScalingStudy> studies) {
  std::vector<std::string> text = {
      "Everything here is modelled: stages by the simulator of one GPU on each rank's own share of pairs and "
      "experts, exchanges by the bytes that the routing makes travel, straight from rank to rank. The "
      "slowest "
      "link or NIC decides. Exposed is the layer less the same layer with exchanges that take no time. What "
      "an "
      "exchange takes from a GPU that computes beside it is left out."};
  std::set<std::string> notes;
  for (const ScalingStudy& study : studies) {
    for (const ScalingPoint& point : study.points) {
      notes.insert(point.model.extrapolated.begin(), point.model.extrapolated.end());
    }
  }
  if (notes.empty()) {
    text.emplace_back("Exchanges of these sizes on as many GPUs were measured.");
  }
  for (auto note = notes.begin(); note != notes.end(); ++note) {
    const auto next = std::next(note);
    if (next == notes.end() ||
        !next->starts_with(*note + ", ")) {  // else the next one lists the same and more
      text.push_back("extrapolated: " + *note);
    }
  }
  return text;
}

Figure scaling_figure(std::span<const ScalingStudy> studies) {
  Figure figure;
  figure.title = studies.empty() ? ""
                                 : fmt::format("{} scaling, modelled: {}", to_string(studies.front().scaling),
                                               studies.front().cluster);
  FigurePanel time{"time of the layer", "GPUs", "seconds", true, {}, true};
  FigurePanel share{"part of perfect scaling", "GPUs", "efficiency", false, {}, true};
  for (const ScalingStudy& study : studies) {
    std::vector<std::pair<std::string, std::vector<const ScalingPoint*>>> ways;
    for (const ScalingPoint& point : study.points) {
      if (point.model.group.ranks == 1 && study.points.size() > 1) {
        continue;
      }
      const std::string name = (studies.size() > 1 ? study.workload + " " : "") + way_of(point);
      auto found = std::ranges::find(ways, name, [](const auto& way) { return way.first; });
      if (found == ways.end()) {
        ways.push_back({name, {}});
        found = ways.end() - 1;
        for (const ScalingPoint& alone : study.points) {
          if (alone.model.group.ranks == 1 && same_way(alone, point) && &alone != &point) {
            found->second.push_back(&alone);
          }
        }
      }
      found->second.push_back(&point);
    }
    for (const auto& [name, points] : ways) {
      FigureSeries times{name, {}, {}, true, {}};
      FigureSeries shares{name, {}, {}, true, {}};
      FigureSeries ideal{"", {}, {}, true, {}, std::string(kReferenceLook)};
      ideal.points = false;
      for (const ScalingPoint* const point : points) {
        const auto ranks = static_cast<double>(point->model.group.ranks);
        times.x.push_back(ranks);
        times.y.push_back(point->model.layer_s);
        shares.x.push_back(ranks);
        shares.y.push_back(study.efficiency(*point).value_or(1));
        ideal.x.push_back(ranks);
        ideal.y.push_back(point->model.layer_s * study.efficiency(*point).value_or(1));
      }
      time.series.push_back(std::move(times));
      time.series.push_back(std::move(ideal));
      share.series.push_back(std::move(shares));
    }
  }
  figure.panels = {std::move(time), std::move(share)};
  return figure;
}

std::vector<ResultRow> scaling_rows(const ScalingStudy& study) {
  std::vector<ResultRow> rows;
  for (const ScalingPoint& of : study.points) {
    const RanksModel& model = of.model;
    Point point = of.point;
    const std::string prefix = (model.overlap ? std::string() : "serial_") +
                               (model.chunks > 1 ? fmt::format("chunks{}_", model.chunks) : "");
    const auto add = [&](Stage stage, const char* metric, double value, const char* unit) -> ResultRow& {
      return rows.emplace_back(value_row(point, stage, Source::kModelled, prefix + metric, value, unit));
    };
    add(Stage::kLayer, "time_s", model.layer_s, "s").reason =
        model.extrapolated.empty() ? ""
                                   : fmt::format("extrapolated: {}", fmt::join(model.extrapolated, "; "));
    if (const auto efficiency = study.efficiency(of)) {
      add(Stage::kLayer,
          study.scaling == Scaling::kStrong ? "strong_scaling_efficiency" : "weak_scaling_efficiency",
          *efficiency, "fraction");
    }
    if (model.group.ranks > 1) {
      add(Stage::kLayer, "compute_s", model.compute_s, "s");
      add(Stage::kLayer, "exposed_s", std::max(0.0, model.exposed_s()), "s");
      add(Stage::kLayer, "exchange_s", model.exchange_s, "s");
      add(Stage::kLayer, "exchange_bound_s", model.bound_s, "s");
      add(Stage::kLayer, "exchange_bytes", static_cast<double>(model.bytes), "bytes");
      add(Stage::kLayer, "messages", static_cast<double>(model.messages), "messages");
      add(Stage::kExperts, "time_max_over_mean", model.max_over_mean, "ratio");
      add(Stage::kTokenDispatch, "nodes", static_cast<double>(model.group.nodes), "nodes");
    }
    const auto stages = stage_times(model);
    for (std::size_t rank = 0; rank < model.ranks.size() && model.group.ranks > 1; ++rank) {
      point.rank = static_cast<std::int64_t>(rank);
      for (const auto& [stage, times] : stages) {
        add(stage, "time_s", times[rank], "s");
      }
      add(Stage::kLayer, "time_s", model.timeline.rank_s[rank], "s");
      add(Stage::kExperts, "rank_pairs", static_cast<double>(model.ranks[rank].pairs), "pairs");
      add(Stage::kExperts, "rank_experts", static_cast<double>(model.ranks[rank].experts), "experts");
      add(Stage::kExperts, "rank_tokens", static_cast<double>(model.ranks[rank].rows), "tokens");
    }
    point.rank.reset();
  }
  return rows;
}

}  // namespace moescope
