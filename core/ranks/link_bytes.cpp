#include <algorithm>
#include <numeric>

#include "core/ranks/exchange_plan.hpp"

namespace moescope {

ExchangeSizes ExchangeSizes::of(Exchange exchange, std::int64_t hidden_size, Dtype dtype) {
  const std::int64_t row = hidden_size * dtype_bytes(dtype);
  return {.row = row, .back = row, .head = exchange == Exchange::kGather ? 4 : 8, .pair = 8};
}

LinkBytes link_bytes(const ExchangePlan& plan, const ExchangeSizes& sizes) {
  const std::int64_t ranks = plan.group.ranks;
  const std::vector<std::int64_t> tokens = plan.tokens_per_rank();
  LinkBytes bytes{plan.group, {}, {}};
  bytes.dispatch.resize(static_cast<std::size_t>(ranks * ranks));
  bytes.combine.resize(static_cast<std::size_t>(ranks * ranks));
  for (std::int64_t from = 0; from < ranks; ++from) {
    for (std::int64_t to = 0; to < ranks; ++to) {
      if (from == to) {
        continue;
      }
      const std::int64_t rows =
          plan.exchange == Exchange::kGather ? tokens[static_cast<std::size_t>(from)] : plan.jobs(from, to);
      bytes.dispatch[static_cast<std::size_t>(plan.link(from, to))] =
          rows * (sizes.row + sizes.head) + plan.pairs(from, to) * sizes.pair;
      bytes.combine[static_cast<std::size_t>(plan.link(to, from))] = rows * sizes.back;
    }
  }
  return bytes;
}

std::int64_t LinkBytes::total() const {
  return std::accumulate(dispatch.begin(), dispatch.end(), std::int64_t{0}) +
         std::accumulate(combine.begin(), combine.end(), std::int64_t{0});
}

std::int64_t LinkBytes::between_nodes() const {
  std::int64_t sum = 0;
  for (std::int64_t link = 0; link < group.ranks * group.ranks; ++link) {
    if (group.node_of(link / group.ranks) != group.node_of(link % group.ranks)) {
      sum += dispatch[static_cast<std::size_t>(link)] + combine[static_cast<std::size_t>(link)];
    }
  }
  return sum;
}

std::int64_t LinkBytes::busiest_rank() const {
  std::int64_t most = 0;
  for (std::int64_t rank = 0; rank < group.ranks; ++rank) {
    std::int64_t sent = 0;
    std::int64_t received = 0;
    for (std::int64_t other = 0; other < group.ranks; ++other) {
      const auto out = static_cast<std::size_t>(rank * group.ranks + other);
      const auto in = static_cast<std::size_t>(other * group.ranks + rank);
      sent += dispatch[out] + combine[out];
      received += dispatch[in] + combine[in];
    }
    most = std::max({most, sent, received});
  }
  return most;
}

}  // namespace moescope
