#include "core/import/top_k.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "core/base/error.hpp"

namespace moescope {
namespace {

constexpr std::array kModes = {ScoreMode::kSoftmax, ScoreMode::kProbability, ScoreMode::kSigmoid,
                               ScoreMode::kSigmoidNormalised};

}  // namespace

std::string_view to_string(ScoreMode mode) {
  switch (mode) {
    case ScoreMode::kSoftmax:
      return "softmax";
    case ScoreMode::kProbability:
      return "probability";
    case ScoreMode::kSigmoid:
      return "sigmoid";
    case ScoreMode::kSigmoidNormalised:
      return "sigmoid_normalised";
  }
  return "?";
}

ScoreMode parse_score_mode(std::string_view text) {
  for (const ScoreMode mode : kModes) {
    if (text == to_string(mode)) {
      return mode;
    }
  }
  throw InvalidArgument("scores", text, "must be softmax, probability, sigmoid or sigmoid_normalised");
}

void make_gates(std::span<const float> logits, std::span<const std::int32_t> ids, ScoreMode mode,
                std::span<float> gates) {
  const auto logit = [&](std::int32_t id) {
    return static_cast<double>(logits[static_cast<std::size_t>(id)]);
  };
  const double largest = *std::ranges::max_element(logits);
  const bool exponential = mode == ScoreMode::kSoftmax || mode == ScoreMode::kProbability;
  const auto score = [&](std::int32_t id) {
    return exponential ? std::exp(logit(id) - largest) : 1 / (1 + std::exp(-logit(id)));
  };
  double sum = 0;
  if (mode == ScoreMode::kProbability) {
    for (std::size_t id = 0; id < logits.size(); ++id) {
      sum += score(static_cast<std::int32_t>(id));
    }
  } else if (mode != ScoreMode::kSigmoid) {
    for (const std::int32_t id : ids) {
      sum += score(id);
    }
  }
  // All of them may vanish: sigmoids of very negative logits.
  const double scale = mode == ScoreMode::kSigmoid || sum == 0 ? 1 : 1 / sum;
  std::ranges::transform(ids, gates.begin(),
                         [&](std::int32_t id) { return static_cast<float>(score(id) * scale); });
}

std::vector<std::int32_t> select_top_k(std::span<const float> logits, std::span<std::int32_t> ids) {
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto logit = [&](std::int32_t id) { return logits[static_cast<std::size_t>(id)]; };
  const auto k = static_cast<std::ptrdiff_t>(ids.size());
  std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](std::int32_t a, std::int32_t b) {
    return logit(a) != logit(b) ? logit(a) > logit(b) : a < b;
  });
  std::copy(order.begin(), order.begin() + k, ids.begin());
  const float last = logit(ids.back());
  if (std::none_of(order.begin() + k, order.end(), [&](std::int32_t id) { return logit(id) == last; })) {
    return {};
  }
  std::vector<std::int32_t> tied;
  std::ranges::copy_if(order, std::back_inserter(tied), [&](std::int32_t id) { return logit(id) == last; });
  std::ranges::sort(tied);
  return tied;
}

}  // namespace moescope
