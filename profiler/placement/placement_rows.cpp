#include "profiler/placement/placement_rows.hpp"

#include <algorithm>
#include <utility>

#include "profiler/study/layer_rows.hpp"

namespace moescope {
namespace {

class Rows {
 public:
  Rows(const PlacementStudy& study, const JudgedPlacement& each) : study_(study), each_(each) {
    point_ = study.batch.point;
    point_.ranks = study.group.ranks;
    point_.placement = each.spec.text();
  }

  std::vector<ResultRow> take(bool links) {
    if (!each_.reason.empty()) {
      rows_.push_back(absent_row(point_, Stage::kExperts, Source::kAnalytic, "load_max_over_mean", "ratio",
                                 Status::kSkipped, each_.reason));
      return std::move(rows_);
    }
    const PlacementUse& use = each_.use;
    const auto count = [](std::int64_t value) { return static_cast<double>(value); };
    add(Stage::kExperts, "load_max_over_mean", use.load_max_over_mean, "ratio");
    add(Stage::kExperts, "seen_load_max_over_mean", each_.seen_max_over_mean, "ratio");
    add(Stage::kExperts, "judged_tokens", count(study_.judged_tokens), "tokens");
    add(Stage::kExperts, "seen_tokens", each_.spec.by_counts() ? count(study_.seen_tokens) : 0, "tokens");
    add(Stage::kExperts, "copies", count(each_.placement.copies()), "experts");
    add(Stage::kTokenDispatch, "nodes", count(study_.group.nodes), "nodes");
    add(Stage::kTokenDispatch, "ranks_per_token", use.ranks_per_token, "ranks");
    add(Stage::kTokenDispatch, "remote_ranks_per_token", use.remote_ranks_per_token, "ranks");
    add(Stage::kTokenDispatch, "remote_nodes_per_token", use.remote_nodes_per_token, "nodes");
    add(Stage::kTokenDispatch, "hottest_rank_share", use.hottest_share, "fraction");
    per_rank();
    exchange(Exchange::kGather, each_.gather, links);
    exchange(Exchange::kDispatch, each_.dispatch, links);
    return std::move(rows_);
  }

 private:
  void add(Stage stage, const char* metric, double value, const char* unit) {
    rows_.push_back(value_row(point_, stage, Source::kAnalytic, metric, value, unit));
  }

  void per_rank() {
    const std::vector<std::int64_t> experts = each_.placement.experts_per_rank();
    for (std::size_t rank = 0; rank < experts.size(); ++rank) {
      point_.rank = static_cast<std::int64_t>(rank);
      add(Stage::kExperts, "rank_pairs", static_cast<double>(each_.use.pairs[rank]), "pairs");
      add(Stage::kExperts, "rank_tokens", static_cast<double>(each_.use.tokens[rank]), "tokens");
      add(Stage::kExperts, "rank_experts", static_cast<double>(experts[rank]), "experts");
      if (study_.batch.expert_bytes > 0) {
        add(Stage::kExperts, "rank_expert_bytes",
            static_cast<double>(experts[rank] * study_.batch.expert_bytes), "bytes");
      }
    }
    point_.rank.reset();
  }

  void exchange(Exchange exchange, const LinkBytes& bytes, bool links) {
    if (bytes.dispatch.empty()) {
      return;
    }
    point_.exchange = to_string(exchange);
    add(Stage::kLayer, "exchange_bytes", static_cast<double>(bytes.total()), "bytes");
    add(Stage::kLayer, "between_nodes_bytes", static_cast<double>(bytes.between_nodes()), "bytes");
    add(Stage::kLayer, "busiest_rank_bytes", static_cast<double>(bytes.busiest_rank()), "bytes");
    const std::int64_t ranks = bytes.group.ranks;
    for (std::int64_t link = 0; links && link < ranks * ranks; ++link) {
      if (link / ranks == link % ranks) {
        continue;
      }
      point_.rank = link / ranks;
      point_.peer = link % ranks;
      const auto at = static_cast<std::size_t>(link);
      add(Stage::kTokenDispatch, "link_bytes", static_cast<double>(bytes.dispatch[at]), "bytes");
      add(Stage::kTokenCombine, "link_bytes", static_cast<double>(bytes.combine[at]), "bytes");
    }
    point_.rank.reset();
    point_.peer.reset();
    point_.exchange = "none";
  }

  const PlacementStudy& study_;
  const JudgedPlacement& each_;
  Point point_;
  std::vector<ResultRow> rows_;
};

}  // namespace

void for_each_placement_row(const PlacementStudy& study, bool links,
                            const std::function<void(const ResultRow&)>& visit) {
  for (const JudgedPlacement& each : study.placements) {
    std::ranges::for_each(Rows(study, each).take(links), visit);
  }
}

std::vector<ResultRow> placement_rows(const PlacementStudy& study, bool links) {
  std::vector<ResultRow> rows;
  for_each_placement_row(study, links, [&](const ResultRow& row) { rows.push_back(row); });
  return rows;
}

}  // namespace moescope
