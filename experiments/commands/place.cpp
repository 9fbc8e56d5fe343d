#include <fmt/format.h>

#include <memory>
#include <optional>
#include <utility>

#include "core/layer/layer_shape.hpp"
#include "experiments/clusters/volume_points.hpp"
#include "experiments/inspection/routed_batches.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/system_options.hpp"
#include "profiler/placement/placement_rows.hpp"
#include "profiler/placement/placement_text.hpp"
#include "profiler/text/wrap.hpp"

namespace moescope {
namespace {

constexpr const char* kPlacementFigure = "placement";

struct PlaceOptions : CommonOptions {
  std::string file;
  std::int64_t num_ranks = 8;
  std::int64_t num_nodes = 1;
  std::vector<std::string> placements;
  bool links = false;
  bool volume = false;
  std::string cluster;
};

/// Rows of --links grow with the square of the ranks; what passes this is no file to read any more.
void require_few_links(const PlaceOptions& options, std::size_t placements, std::size_t batches) {
  constexpr std::int64_t kMostLinkRows = 1'000'000;
  // Two exchanges, each with a way there and a way back.
  const std::int64_t rows = 4 * options.num_ranks * (options.num_ranks - 1) *
                            static_cast<std::int64_t>(placements) * static_cast<std::int64_t>(batches);
  if (options.links && rows > kMostLinkRows) {
    throw InvalidArgument(
        "links", fmt::format("{} ranks, {} placements, {} layers", options.num_ranks, placements, batches),
        fmt::format("--links would write up to {} rows, and at most {} are written; lower --ranks, or name "
                    "fewer by --placement",
                    rows, kMostLinkRows));
  }
}

/// Those asked for, or all that make sense on the grid.
std::vector<PlacementSpec> specs_of(const PlaceOptions& options, const Routing& routing) {
  std::vector<std::string> names = options.placements;
  if (names.empty()) {
    names = {"linear", "round_robin"};
    if (routing.grid_rows > 1 && routing.grid_cols > 1) {
      // A tenth of the strips on every rank: 64 of the 640 that a grid of 320 x 320 has.
      const std::int64_t hot = (routing.grid_rows + routing.grid_cols + 9) / 10;
      for (std::string name : {std::string("rows"), std::string("columns"), std::string("blocks"),
                               std::string("strips"), fmt::format("strips+hot:{}", hot)}) {
        names.push_back(std::move(name));
      }
    }
    for (const char* name : {"lpt", "eplb", "clustered", "clustered+tokens"}) {
      names.emplace_back(name);
    }
  }
  std::vector<PlacementSpec> specs;
  for (const std::string& name : names) {
    specs.push_back(PlacementSpec::parse(name));
  }
  return specs;
}

std::vector<RoutedBatch> batches_of(MoeBackend& backend, const PlaceOptions& options) {
  if (options.file.empty()) {
    return batches_of_workloads(backend, options);
  }
  if (!options.workloads.empty()) {
    throw InvalidArgument("workload", options.workloads.front(), "cannot be given beside a file");
  }
  return batches_of_file(options.file, options);
}

void require_widths(const RoutedBatch& batch) {
  if (batch.hidden_size == 0) {
    throw InvalidArgument("hidden_size", "0", "rows name it, and the routing does not say it: must be given");
  }
}

std::string heading(const PlacementStudy& study, bool several) {
  const Point& point = study.batch.point;
  const std::string grid = point.grid_rows == 1 ? fmt::to_string(point.grid_cols)
                                                : fmt::format("{} x {}", point.grid_rows, point.grid_cols);
  return fmt::format(
      "{}{} experts, {} tokens, K {}, on {} ranks of {} node{}\nJudged on the last {} tokens; placements by "
      "counts (lpt, eplb, clustered, +hot) were made from the first {}.\n",
      several ? "" : study.batch.name + ": ", grid, study.batch.routing.num_tokens, point.top_k,
      study.group.ranks, study.group.nodes, study.group.nodes == 1 ? "" : "s", study.judged_tokens,
      study.seen_tokens);
}

/// --volume: one placement, and nothing that is of one batch.
ExitCode volume(const PlaceOptions& options, const Invocation& invocation) {
  if (!options.file.empty()) {
    throw InvalidArgument("file", options.file, "has sizes of its own, which --volume varies");
  }
  if (options.placements.size() > 1) {
    throw InvalidArgument("placement", options.placements[1], "--volume is of one");
  }
  if (options.num_nodes != 1) {
    throw InvalidArgument("nodes", fmt::to_string(options.num_nodes), "come from --cluster with --volume");
  }
  return place_volume(options,
                      {.ranks = options.num_ranks,
                       .placement = options.placements.empty() ? "" : options.placements.front(),
                       .cluster = options.cluster},
                      invocation);
}

ExitCode place(const PlaceOptions& options, const Invocation& invocation) {
  apply_threads(options);
  if (options.volume) {
    return volume(options, invocation);
  }
  if (!options.cluster.empty()) {
    throw InvalidArgument("cluster", options.cluster,
                          "is for --volume; a layer's time is `simulate --cluster`");
  }
  StandardTables out(options.tables);
  if (options.file.empty() || !options.systems.empty()) {
    require_meaningful(options);  // of a file without --system nobody knows what its experts are
  }
  const RankGroup group{options.num_ranks, options.num_nodes};
  group.validate();
  for (const std::string& name : options.placements) {
    (void)PlacementSpec::parse(name);
  }
  const auto backend = make_backend(options.backend);
  std::vector<RoutedBatch> batches = batches_of(*backend, options);
  std::optional<ResultWriter> writer;
  if (!options.output.empty()) {
    for (const RoutedBatch& batch : batches) {
      require_widths(batch);
    }
    writer.emplace(
        open_results(options.output, run_header(invocation, *backend), figure_files(kPlacementFigure)));
  }
  std::vector<PlacementStudy> studies;
  for (RoutedBatch& batch : batches) {
    const std::vector<PlacementSpec> specs = specs_of(options, batch.routing);
    require_few_links(options, specs.size(), batches.size());
    studies.push_back(study_placements(std::move(batch), group, specs));
  }
  out.text() << heading(studies.front(), studies.size() > 1) << '\n';
  out.show("placements", placement_table(studies));
  out.text() << '\n' << placement_conclusion(studies);
  if (studies.front().batch.hidden_size == 0) {
    out.text() << "Bytes are left out: the routing does not say how wide the model is; -d does.\n";
  }
  if (!writer) {
    return ExitCode::kOk;
  }
  for (const PlacementStudy& study : studies) {
    for_each_placement_row(study, options.links, [&](const ResultRow& row) { writer->write(row); });
  }
  const FigureResult figure = draw_figure(placement_figure(studies), writer->directory(), kPlacementFigure);
  out.text() << fmt::format("\nrows:   {}/rows.jsonl, rows.csv, run.json\n", writer->directory().string());
  out.text() << figure_line(figure);
  return ExitCode::kOk;
}

}  // namespace

Command add_place(Cli app, const Invocation& invocation) {
  auto options = std::make_shared<PlaceOptions>();
  const Cli sub = app.add_subcommand(
      "place",
      "where should experts lie among GPUs? Placements against a routing, without a GPU: balance, ranks a "
      "token touches, bytes, memory, and whether copies of experts pay");
  sub.add_option("file", options->file,
                 "routing of all layers: a trace, or what `moescope import` reads (default: --workload)")
      .type_name("FILE");
  sub.footer(
      examples({"moescope place", "moescope place mine.npz --ranks 4 -d 256",
                "moescope place --workload zipf:1 --grid 64x64 -K 32 -L 2048 --ranks 16 --nodes 2",
                "moescope place --system gshard --workload zipf:1 --placement linear --placement eplb:16",
                "moescope place --workload snapshot:data/tablea_layer2_1024.safetensors --ranks 64 "
                "--placement strips --placement strips+hot:64",
                "moescope place --volume --cluster h200-node"}));
  const Cli group = sub.add_option_group("Ranks", "GPUs, and where experts lie among them");
  group.add_option("--ranks", options->num_ranks, "GPUs, 1 to 1024 (default 8)").type_name("P");
  group.add_option("--nodes", options->num_nodes, "that share them, consecutive ranks together (default 1)")
      .type_name("N");
  group.add_option("--placement", options->placements, placement_help() + "; may be repeated (default: all)")
      .type_name("NAME")
      .repeatable();
  group.add_flag("--links", options->links, "with --output: also the bytes from each rank to each other");
  group.add_flag(
      "--volume", options->volume,
      "what travels against N, L, K and P, each varied with the others held: the paper's claim that "
      "it is constant in N");
  group.add_option("--cluster", options->cluster, "with --volume: also times on this cluster, modelled")
      .type_name("NAME|FILE");
  add_shape_options(sub, *options);
  add_system_options(sub, *options);
  add_workload_options(sub, *options);
  add_machine_options(sub, *options);
  add_table_options(sub, options->tables);
  add_output_option(sub, *options, "and a figure; default: none are written");
  return {sub, [options, invocation] { return place(*options, invocation); }};
}

}  // namespace moescope
