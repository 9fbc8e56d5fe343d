#include "profiler/cluster/volume_study.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>
#include <utility>

#include "core/base/index.hpp"
#include "core/ranks/placement_use.hpp"
#include "profiler/cluster/exchange_time.hpp"
#include "profiler/study/layer_rows.hpp"
#include "profiler/text/format.hpp"

namespace moescope {
namespace {

/// A power below which bytes are called constant.
constexpr double kConstant = 0.1;

/// Experts that home tokens use and whose ranks are others, of all homes.
std::int64_t fetched_experts(const ExchangePlan& plan, const Routing& routing) {
  std::int64_t count = 0;
  std::vector<std::int64_t> seen(at(routing.num_experts()), -1);
  for (std::int64_t home = 0; home < plan.group.ranks; ++home) {
    for (std::int64_t rank = 0; rank < plan.group.ranks; ++rank) {
      if (rank == home) {
        continue;
      }
      const std::int64_t first = plan.pair_offsets[at(plan.job_offsets[at(plan.link(home, rank))])];
      const std::int64_t last = plan.pair_offsets[at(plan.job_offsets[at(plan.link(home, rank) + 1)])];
      for (std::int64_t i = first; i < last; ++i) {
        std::int64_t& by = seen[at(routing.expert_ids[at(plan.pair_ids[at(i)])])];
        count += by == home ? 0 : 1;
        by = home;
      }
    }
  }
  return count;
}

double both_ways_s(const LinkBytes& bytes, const ClusterSpec& cluster, const TransferCurve& out) {
  return exchange_time(bytes.dispatch, bytes.group, out, cluster).time_s +
         exchange_time(bytes.combine, bytes.group, cluster.all_to_all, cluster).time_s;
}

std::int64_t size_of(const VolumeAxis& axis, const LayerVolume& layer) {
  return axis.name == "N"   ? layer.experts
         : axis.name == "L" ? layer.tokens
         : axis.name == "K" ? layer.top_k
                            : layer.ranks;
}

std::string held(const VolumeAxis& axis) {
  const LayerVolume& one = axis.layers.front();
  std::string text;
  for (const auto& [name, value] : {std::pair{"N", one.experts}, std::pair{"L", one.tokens},
                                    std::pair{"K", one.top_k}, std::pair{"P", one.ranks}}) {
    if (axis.name != name) {
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name, value);
    }
  }
  return text;
}

std::string grows(double power, const std::string& name) {
  return std::abs(power) < kConstant ? "constant" : fmt::format("as {}^{:.2f}", name, power);
}

}  // namespace

LayerVolume layer_volume(const LayerShape& shape, const Routing& routing, Point point,
                         const RankOptions& ranks, const ClusterSpec* cluster) {
  const ExpertPlacement placement =
      make_placement(ranks.placement, ranks.group, shape.grid_rows, shape.grid_cols, &routing);
  ExchangePlan plan = plan_exchange(Exchange::kDispatch, placement, routing, homes_of(placement, routing));
  LayerVolume volume;
  volume.point = std::move(point);
  volume.point.ranks = ranks.group.ranks;
  volume.point.placement = ranks.placement.text();
  volume.tokens = shape.num_tokens;
  volume.experts = shape.num_experts();
  volume.top_k = shape.top_k;
  volume.ranks = ranks.group.ranks;
  const std::vector<std::int64_t> loads = expert_loads(routing);
  volume.active = std::ranges::count_if(loads, [](std::int64_t load) { return load > 0; });
  volume.most_active = std::min(volume.experts, routing.num_pairs());
  volume.ranks_per_token = placement_use(plan, placement, routing).ranks_per_token;
  const std::int64_t row = shape.hidden_size * dtype_bytes(shape.dtype);
  volume.weights = fetched_experts(plan, routing) * 2 * row;
  const LinkBytes dispatch =
      link_bytes(plan, ExchangeSizes::of(Exchange::kDispatch, shape.hidden_size, shape.dtype));
  plan.exchange = Exchange::kGather;
  const LinkBytes gather =
      link_bytes(plan, ExchangeSizes::of(Exchange::kGather, shape.hidden_size, shape.dtype));
  volume.dispatch = dispatch.total();
  volume.gather = gather.total();
  if (cluster != nullptr) {
    volume.gather_s = both_ways_s(gather, *cluster, cluster->all_gather);
    volume.dispatch_s = both_ways_s(dispatch, *cluster, cluster->all_to_all);
  }
  return volume;
}

double growth(const VolumeAxis& axis, std::int64_t LayerVolume::*bytes) {
  const LayerVolume& first = axis.layers.front();
  const LayerVolume& last = axis.layers.back();
  const double sizes = static_cast<double>(size_of(axis, last)) / static_cast<double>(size_of(axis, first));
  if (sizes == 1 || first.*bytes == 0 || last.*bytes == 0) {
    return 0;
  }
  return std::log(static_cast<double>(last.*bytes) / static_cast<double>(first.*bytes)) / std::log(sizes);
}

Table volume_table(std::span<const VolumeAxis> axes) {
  using enum Need;
  Table table({{"varied", Align::kLeft, kAlways, true},
               {"held", Align::kLeft, kUsual, true},
               {"size", Align::kRight, kAlways},
               {"active", Align::kRight, kAlways},
               {"min(N, L K)", Align::kRight, kUsual},
               {"ranks/token", Align::kRight, kUsual},
               {"gather", Align::kRight, kAlways},
               {"dispatch", Align::kRight, kAlways},
               {"weights", Align::kRight, kAlways},
               {"gather time", Align::kRight, kExtra},
               {"dispatch time", Align::kRight, kExtra}});
  for (const VolumeAxis& axis : axes) {
    for (const LayerVolume& layer : axis.layers) {
      const auto time = [](const std::optional<double>& s) { return s ? seconds_cell(*s) : TableCell("-"); };
      table.add_row(
          {axis.name, held(axis), count_cell(size_of(axis, layer)), count_cell(layer.active),
           count_cell(layer.most_active),
           TableCell(fmt::format("{:.2f}", layer.ranks_per_token), layer.ranks_per_token),
           bytes_cell(static_cast<double>(layer.gather)), bytes_cell(static_cast<double>(layer.dispatch)),
           bytes_cell(static_cast<double>(layer.weights)), time(layer.gather_s), time(layer.dispatch_s)});
    }
    table.add_rule();
  }
  return table;
}

std::vector<std::string> volume_conclusion(std::span<const VolumeAxis> axes, const ClusterSpec* cluster) {
  std::vector<std::string> text = {
      "Bytes are analytic: exact counts from the routing's exchange plan, of all ranks. gather and dispatch "
      "move "
      "tokens both ways; weights are what moving experts to the tokens would take (W and V, forward)."};
  for (const VolumeAxis& axis : axes) {
    if (axis.layers.size() < 2) {
      continue;
    }
    text.push_back(fmt::format("{} from {} to {} ({}): gather {}, dispatch {}, weights {}.", axis.name,
                               size_of(axis, axis.layers.front()), size_of(axis, axis.layers.back()),
                               held(axis), grows(growth(axis, &LayerVolume::gather), axis.name),
                               grows(growth(axis, &LayerVolume::dispatch), axis.name),
                               grows(growth(axis, &LayerVolume::weights), axis.name)));
  }
  if (const auto experts = std::ranges::find(axes, "N", &VolumeAxis::name); experts != axes.end()) {
    const LayerVolume& last = experts->layers.back();
    const auto first = std::ranges::find_if(experts->layers, [](const LayerVolume& layer) {
      return layer.experts >= layer.tokens * layer.top_k;
    });
    if (first != experts->layers.end() && first->experts < last.experts && first->weights > 0) {
      text.push_back(
          fmt::format("Beyond N = L K, from {} to {} experts, weights become {:.2f} times as many, dispatch "
                      "{:.2f} times.",
                      first->experts, last.experts,
                      static_cast<double>(last.weights) / static_cast<double>(first->weights),
                      static_cast<double>(last.dispatch) / static_cast<double>(first->dispatch)));
    }
  }
  text.emplace_back(
      "The paper (appendix C): communication saturates once experts outnumber active tokens. That is the "
      "bound "
      "min(N, L K) on distinct experts, true of any mixture of experts; it says nothing of K or P.");
  std::string time = fmt::format(
      "The paper's {:.3f} ms on {} GPUs for about {:.0f} MB at L K = {} is {:.0f} GB/s, of all GPUs together "
      "or of "
      "each: it does not say, nor does it state d, K, dtype, placement, collective or GPU.",
      1e3 * PaperVolume::kSeconds, PaperVolume::kRanks, PaperVolume::kBytes / 1e6, PaperVolume::kActive,
      PaperVolume::kBytes / PaperVolume::kSeconds / 1e9);
  if (cluster != nullptr && cluster->gpus() >= PaperVolume::kRanks) {
    const RankGroup group = cluster->group(PaperVolume::kRanks);
    const auto time_of = [&](double bytes_of_each) {
      std::vector<std::int64_t> links(at(group.ranks * group.ranks));
      for (std::int64_t link = 0; link < group.ranks * group.ranks; ++link) {
        if (link / group.ranks != link % group.ranks) {
          links[at(link)] = static_cast<std::int64_t>(bytes_of_each / static_cast<double>(group.ranks - 1));
        }
      }
      return 1e3 * exchange_time(links, group, cluster->all_to_all, *cluster).time_s;
    };
    time += fmt::format(
        " Modelled on {} of {}, one all-to-all: {:.3f} ms for {:.0f} MB of all, {:.3f} ms for {:.0f} MB of "
        "each; "
        "extrapolated from {} GPUs.",
        PaperVolume::kRanks, cluster->name, time_of(PaperVolume::kBytes / PaperVolume::kRanks),
        PaperVolume::kBytes / 1e6, time_of(PaperVolume::kBytes), PaperVolume::kBytes / 1e6,
        cluster->measured_ranks);
  }
  text.push_back(std::move(time));
  return text;
}

Figure volume_figure(std::span<const VolumeAxis> axes) {
  Figure figure;
  figure.title = "what travels among GPUs (analytic)";
  figure.columns = 2;
  for (const VolumeAxis& axis : axes) {
    FigurePanel panel{fmt::format("against {} ({})", axis.name, held(axis)),
                      axis.name,
                      "bytes of all ranks",
                      true,
                      {},
                      true};
    for (const auto& [name, member] :
         {std::pair{"gather", &LayerVolume::gather}, std::pair{"dispatch", &LayerVolume::dispatch},
          std::pair{"weights", &LayerVolume::weights}}) {
      FigureSeries series{name, {}, {}, true, {}};
      for (const LayerVolume& layer : axis.layers) {
        series.x.push_back(static_cast<double>(size_of(axis, layer)));
        series.y.push_back(static_cast<double>(layer.*member));
      }
      panel.series.push_back(std::move(series));
    }
    figure.panels.push_back(std::move(panel));
  }
  return figure;
}

std::vector<ResultRow> volume_rows(std::span<const VolumeAxis> axes) {
  std::vector<ResultRow> rows;
  std::set<std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>> written;
  for (const VolumeAxis& axis : axes) {
    for (const LayerVolume& layer : axis.layers) {
      if (!written.emplace(layer.tokens, layer.experts, layer.top_k, layer.ranks).second) {
        continue;
      }
      Point point = layer.point;
      const auto add = [&](const char* metric, double value, const char* unit,
                           Source source = Source::kAnalytic) {
        rows.push_back(value_row(point, Stage::kLayer, source, metric, value, unit));
      };
      add("active_experts", static_cast<double>(layer.active), "experts");
      add("ranks_per_token", layer.ranks_per_token, "ranks");
      add("fetched_weight_bytes", static_cast<double>(layer.weights), "bytes");
      point.exchange = to_string(Exchange::kGather);
      add("exchange_bytes", static_cast<double>(layer.gather), "bytes");
      if (layer.gather_s) {
        add("exchange_s", *layer.gather_s, "s", Source::kModelled);
      }
      point.exchange = to_string(Exchange::kDispatch);
      add("exchange_bytes", static_cast<double>(layer.dispatch), "bytes");
      if (layer.dispatch_s) {
        add("exchange_s", *layer.dispatch_s, "s", Source::kModelled);
      }
    }
  }
  return rows;
}

}  // namespace moescope
