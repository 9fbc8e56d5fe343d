#include "profiler/simulator/paper_comparison.hpp"

#include <fmt/format.h>

#include "profiler/text/format.hpp"

namespace moescope {
namespace {

double layer_s(const LayerModel& model) { return model.stages.back().time_s; }

double stage_s(const LayerModel& model, Stage stage) {
  const StageModel* found = model.find(stage);
  return found == nullptr ? 0 : found->time_s;
}

PaperLine seconds(std::string figure, double paper, double model, std::string means) {
  return {std::move(figure), format_seconds(paper), format_seconds(model), model / paper, std::move(means)};
}

PaperLine ratio(std::string figure, double paper, double model, std::string means) {
  return {std::move(figure), fmt::format("{:g}x", paper), fmt::format("{:.3g}x", model), model / paper,
          std::move(means)};
}

/// Seconds to write rows gathered for every pair to HBM and read them back.
double copy_s(double bytes, const DeviceSpec& device) {
  return bytes / device.hbm_write_bytes_per_s + bytes / device.hbm_read_bytes_per_s;
}

/// Rows of W and V for every pair.
double gathered_bytes(std::int64_t pairs, std::int64_t hidden_size, Dtype dtype) {
  return 2.0 * static_cast<double>(pairs) * static_cast<double>(hidden_size) *
         static_cast<double>(dtype_bytes(dtype));
}

}  // namespace

std::vector<PaperLine> paper_lines(const PaperModel& model) {
  const LayerShape& shape = model.shape;
  const double ours_s = layer_s(model.expert_centric);
  const double gathered = gathered_bytes(shape.num_pairs(), shape.hidden_size, shape.dtype);
  const double peer_gathered =
      gathered_bytes(model.peer.num_tokens * model.peer.top_k, model.peer.hidden_size, model.peer.dtype);
  const double gather_s = layer_s(model.token_centric) + copy_s(gathered, model.device);
  const double router_s = stage_s(model.expert_centric, Stage::kRouterProject) +
                          stage_s(model.expert_centric, Stage::kRouterSelect);
  const auto experts = static_cast<double>(shape.num_experts());
  const auto tokens_in_and_out =
      2.0 * static_cast<double>(shape.num_tokens * shape.hidden_size * dtype_bytes(shape.dtype));
  constexpr double kPaperOmniMoe = 6.7e-3;
  constexpr double kPaperPeer = 73e-3;
  return {
      seconds("OmniMoE layer", kPaperOmniMoe, ours_s, "simulated: expert_centric, the paper's schedule"),
      seconds("OmniMoE layer", kPaperOmniMoe, layer_s(model.staircase), "simulated: staircase"),
      seconds("PEER layer", kPaperPeer, model.peer_bound_s, "roofline bound"),
      seconds("PEER layer", kPaperPeer, layer_s(model.peer_gather),
              fmt::format("simulated: token_centric, K = {}, router of OmniMoE", model.peer.top_k)),
      seconds("PEER layer", kPaperPeer, layer_s(model.peer_gather) + copy_s(peer_gathered, model.device),
              fmt::format("the same, and {} of gathered rows to HBM and back", format_bytes(peer_gathered))),
      seconds("DeepSeekMoE layer", 102e-3, model.deepseekmoe_bound_s, "roofline bound"),
      ratio("PEER / OmniMoE", 10.9, layer_s(model.peer_gather) / ours_s,
            "simulated: token_centric over expert_centric"),
      ratio("latency without expert-centric scheduling", 24.8, layer_s(model.token_centric) / ours_s,
            "simulated: token_centric over expert_centric"),
      ratio("latency without expert-centric scheduling", 24.8, gather_s / ours_s,
            fmt::format("the same, and {} of gathered rows to HBM and back", format_bytes(gathered))),
      ratio("memory without expert-centric scheduling", 417.7, gathered / tokens_in_and_out,
            "arithmetic: gathered rows over tokens in and out, which is K"),
      ratio("latency without the Cartesian router", 30.6, model.full_router_bound_s / router_s,
            "router alone: roofline bound of N-way logits over the simulated router"),
      ratio("latency without the Cartesian router", 30.6,
            (ours_s - router_s + model.full_router_bound_s) / ours_s, "the same in the whole layer"),
      ratio("memory without the Cartesian router", 337.5,
            experts / static_cast<double>(shape.grid_rows + shape.grid_cols),
            "arithmetic: N logits over Nr + Nc, of one dtype"),
      ratio("latency without the shared MLP", 0.86, layer_s(model.without_shared) / ours_s,
            "simulated, expert_centric"),
      {"scheduling, share of latency", "< 5 %",
       format_percent(stage_s(model.expert_centric, Stage::kSchedule) / ours_s),
       stage_s(model.expert_centric, Stage::kSchedule) / ours_s / 0.05, "simulated, expert_centric"}};
}

Table paper_table(const std::vector<PaperLine>& lines) {
  Table table({{"figure", Align::kLeft},
               {"paper"},
               {"model"},
               {"model / paper"},
               {"what it is", Align::kLeft, Need::kBelow}});
  for (const PaperLine& line : lines) {
    table.add_row({line.figure, line.paper, line.model,
                   TableCell(fmt::format("{:.3f}", line.ratio), line.ratio), line.means});
  }
  return table;
}

}  // namespace moescope
