#include "reference/oracle/stage_compare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <utility>

namespace moescope {
namespace {

/// Score of a pair up to a constant of its token: the log-softmax shifts of eq. 10 cancel in comparisons.
double raw_score(const RouterLogits& logits, std::int64_t token, std::int32_t expert,
                 std::int64_t grid_cols) {
  return static_cast<double>(logits.row.f32().row(token)[expert / grid_cols]) +
         static_cast<double>(logits.col.f32().row(token)[expert % grid_cols]);
}

/// First difference of two arrays, or empty.
template <class T>
std::string first_difference(const char* name, const std::vector<T>& ours, const std::vector<T>& theirs) {
  if (ours.size() != theirs.size()) {
    return fmt::format("{} has {} entries against {}", name, ours.size(), theirs.size());
  }
  for (std::size_t i = 0; i < ours.size(); ++i) {
    if (ours[i] != theirs[i]) {
      return fmt::format("{}[{}] = {} against {}", name, i, ours[i], theirs[i]);
    }
  }
  return {};
}

/// visit(p, q) for every pair that both took: p of `ours`, q of `theirs`, CSR indices.
template <class Visit>
void for_each_common_pair(const Routing& ours, const Routing& theirs, const Visit& visit) {
  for (std::int64_t token = 0; token < std::min(ours.num_tokens, theirs.num_tokens); ++token) {
    auto p = static_cast<std::size_t>(ours.token_offsets[static_cast<std::size_t>(token)]);
    auto q = static_cast<std::size_t>(theirs.token_offsets[static_cast<std::size_t>(token)]);
    const auto p_end = static_cast<std::size_t>(ours.token_offsets[static_cast<std::size_t>(token) + 1]);
    const auto q_end = static_cast<std::size_t>(theirs.token_offsets[static_cast<std::size_t>(token) + 1]);
    while (p < p_end && q < q_end) {
      if (ours.expert_ids[p] == theirs.expert_ids[q]) {
        visit(p++, q++);
      } else if (ours.expert_ids[p] < theirs.expert_ids[q]) {
        ++p;
      } else {
        ++q;
      }
    }
  }
}

}  // namespace

ErrorReport compare_tensors(const HostTensor& ours, const HostTensor& theirs) {
  std::vector<double> reference(static_cast<std::size_t>(theirs.size()));
  const HostTensor floats = theirs.to(Dtype::kF32);
  std::ranges::copy_n(floats.f32().data, theirs.size(), reference.begin());
  return compare(ours, {reference.data(), theirs.rows(), theirs.cols()});
}

HostTensor as_tensor(const std::vector<float>& values) {
  HostTensor tensor(Dtype::kF32, 1, static_cast<std::int64_t>(values.size()));
  std::ranges::copy(values, tensor.f32().data);
  return tensor;
}

bool same_bits(const HostTensor& a, const HostTensor& b) {
  const bool empty = a.bytes() == 0;  // no data, and memcmp() takes no null
  return a.bytes() == b.bytes() &&
         (empty || std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.bytes())) == 0);
}

SelectionReport compare_selections(const LayerShape& shape, const RouterLogits& logits, const Routing& ours,
                                   const Routing& theirs) {
  constexpr double kRoundings = 8;  // two log-softmax subtractions and one sum on either side, and their lse
  SelectionReport report;
  report.compared_pairs = theirs.num_pairs();
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    const auto a = ours.ids_of(token);
    const auto b = theirs.ids_of(token);
    std::vector<std::int32_t> differing;
    std::ranges::set_symmetric_difference(a, b, std::back_inserter(differing));
    if (differing.empty()) {
      continue;
    }
    double threshold = INFINITY;
    double largest = 0;
    for (const std::int32_t expert : b) {
      const double score = raw_score(logits, token, expert, shape.grid_cols);
      threshold = std::min(threshold, score);
      largest = std::max(largest, std::abs(score));
    }
    const double extent =
        std::log(static_cast<double>(shape.grid_rows)) + std::log(static_cast<double>(shape.grid_cols));
    const double tolerance = kRoundings * 0x1.0p-24 * 2 * (largest + std::abs(threshold) + extent);
    for (const std::int32_t expert : differing) {
      const double score = raw_score(logits, token, expert, shape.grid_cols);
      if (a.size() == b.size() && std::abs(score - threshold) <= tolerance) {
        ++report.near_ties;
      } else if (report.wrong++ == 0) {
        report.first_wrong =
            fmt::format("token {}, expert {}: score {:.9g} against threshold {:.9g} (tolerance {:.1e})",
                        token, expert, score, threshold, tolerance);
      }
    }
  }
  return report;
}

Routing judged_routing(const Routing& ours, const Routing& theirs) {
  Routing judged = ours;
  for_each_common_pair(ours, theirs,
                       [&](std::size_t a, std::size_t b) { judged.gates[a] = theirs.gates[b]; });
  return judged;
}

ErrorReport compare_gates(const Routing& ours, const Routing& theirs) {
  std::vector<float> a;
  std::vector<float> b;
  for_each_common_pair(ours, theirs, [&](std::size_t at, std::size_t other) {
    a.push_back(ours.gates[at]);
    b.push_back(theirs.gates[other]);
  });
  return a.empty() ? ErrorReport{} : compare_tensors(as_tensor(a), as_tensor(b));
}

std::string compare_schedules(const Schedule& ours, const Schedule& theirs) {
  for (std::string& difference :
       std::vector{first_difference("experts", ours.experts, theirs.experts),
                   first_difference("tokens", ours.tokens, theirs.tokens),
                   first_difference("pair_offsets", ours.pair_offsets, theirs.pair_offsets),
                   first_difference("sorted_pair_ids", ours.sorted_pair_ids, theirs.sorted_pair_ids)}) {
    if (!difference.empty()) {
      return std::move(difference);
    }
  }
  if (ours.items.size() != theirs.items.size()) {
    return fmt::format("{} items against {}", ours.items.size(), theirs.items.size());
  }
  const auto differing = std::ranges::mismatch(ours.items, theirs.items).in1;
  return differing == ours.items.end() ? std::string()
                                       : fmt::format("items[{}] differs", differing - ours.items.begin());
}

}  // namespace moescope
