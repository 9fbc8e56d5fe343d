#include "core/schedule/placement_spec.hpp"

#include <fmt/format.h>

#include <array>
#include <optional>

#include "core/base/error.hpp"
#include "core/base/number_text.hpp"
#include "core/schedule/rank_options.hpp"

namespace moescope {
namespace {

struct KindName {
  PlacementKind kind;
  std::string_view name;
};

constexpr std::array kKinds = {KindName{PlacementKind::kLinear, "linear"},
                               KindName{PlacementKind::kRoundRobin, "round_robin"},
                               KindName{PlacementKind::kRows, "rows"},
                               KindName{PlacementKind::kColumns, "columns"},
                               KindName{PlacementKind::kBlocks, "blocks"},
                               KindName{PlacementKind::kStrips, "strips"},
                               KindName{PlacementKind::kLpt, "lpt"},
                               KindName{PlacementKind::kEplb, "eplb"},
                               KindName{PlacementKind::kClustered, "clustered"}};

constexpr std::string_view kHot = "strips+hot";
constexpr std::string_view kTokens = "clustered+tokens";

std::string_view name_of(PlacementKind kind) {
  for (const KindName& each : kKinds) {
    if (each.kind == kind) {
      return each.name;
    }
  }
  throw InternalError("a placement without a name");
}

[[noreturn]] void refuse(std::string_view text) {
  throw InvalidArgument(
      "placement", text,
      "must be linear, round_robin, rows, columns, blocks, strips, strips+hot:H, lpt, eplb, "
      "eplb:COPIES, eplb:COPIES,GROUPS, clustered or clustered+tokens");
}

std::int64_t count_in(std::string_view number, std::int64_t minimum, std::string_view text) {
  const auto value = parse_number<std::int64_t>(number);
  if (!value || *value < minimum || *value >= std::int64_t{1} << 31) {
    refuse(text);
  }
  return *value;
}

}  // namespace

std::string_view to_string(Exchange exchange) {
  return exchange == Exchange::kGather ? "gather" : "dispatch";
}

Exchange parse_exchange(std::string_view text) {
  for (const Exchange exchange : {Exchange::kGather, Exchange::kDispatch}) {
    if (text == to_string(exchange)) {
      return exchange;
    }
  }
  throw InvalidArgument("exchange", text, "must be gather or dispatch");
}

void RankGroup::validate() const {
  if (ranks < 1 || ranks > kMaxRanks) {
    throw InvalidArgument("ranks", fmt::to_string(ranks), fmt::format("must be from 1 to {}", kMaxRanks));
  }
  if (nodes < 1 || ranks % nodes != 0) {
    throw InvalidArgument("nodes", fmt::to_string(nodes), fmt::format("must divide ranks = {}", ranks));
  }
}

bool PlacementSpec::by_counts() const {
  return hot_strips > 0 || kind == PlacementKind::kLpt || kind == PlacementKind::kEplb ||
         kind == PlacementKind::kClustered;
}

std::string PlacementSpec::text() const {
  if (hot_strips > 0) {
    return fmt::format("{}:{}", kHot, hot_strips);
  }
  if (token_groups) {
    return std::string(kTokens);
  }
  if (expert_groups > 1) {
    return fmt::format("{}:{},{}", name_of(kind), copies, expert_groups);
  }
  return copies > 0 ? fmt::format("{}:{}", name_of(kind), copies) : std::string(name_of(kind));
}

PlacementSpec PlacementSpec::parse(std::string_view text) {
  PlacementSpec spec;
  const std::size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  const std::string_view argument =
      colon == std::string_view::npos ? std::string_view{} : text.substr(colon + 1);
  if (name == kHot && colon != std::string_view::npos) {
    spec.kind = PlacementKind::kStrips;
    spec.hot_strips = count_in(argument, 1, text);
    return spec;
  }
  if (name == "eplb" && colon != std::string_view::npos) {
    spec.kind = PlacementKind::kEplb;
    const std::size_t comma = argument.find(',');
    spec.copies = count_in(argument.substr(0, comma), comma == std::string_view::npos ? 1 : 0, text);
    if (comma != std::string_view::npos) {
      spec.expert_groups = count_in(argument.substr(comma + 1), 2, text);
    }
    return spec;
  }
  if (text == kTokens) {
    spec.kind = PlacementKind::kClustered;
    spec.token_groups = true;
    return spec;
  }
  for (const KindName& each : kKinds) {
    if (each.name == text) {
      spec.kind = each.kind;
      return spec;
    }
  }
  refuse(text);
}

std::string placement_help() {
  return "linear (consecutive experts), round_robin, rows, columns or blocks of the grid, strips (an expert "
         "lies with its row and with its column), strips+hot:H (the H most used strips on every rank), lpt "
         "(by counts), eplb:COPIES (by counts, with copies; default one a rank) or eplb:COPIES,GROUPS "
         "(groups "
         "of experts stay in a node), clustered (experts that tokens use together), clustered+tokens (tokens "
         "move, too)";
}

}  // namespace moescope
