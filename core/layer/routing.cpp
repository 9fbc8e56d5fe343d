#include "core/layer/routing.hpp"

#include <fmt/format.h>

#include <cmath>

#include "core/base/error.hpp"

namespace moescope {
namespace {

[[noreturn]] void refuse(std::string_view field, std::int64_t index, std::int64_t value,
                         std::string_view requirement) {
  throw InvalidArgument(fmt::format("{}[{}]", field, index), fmt::to_string(value), requirement);
}

void validate_offsets(const Routing& routing) {
  const auto& offsets = routing.token_offsets;
  if (offsets.empty() || std::ssize(offsets) - 1 != routing.num_tokens) {
    throw InvalidArgument("token_offsets.size", fmt::to_string(offsets.size()),
                          fmt::format("must be num_tokens + 1 for num_tokens = {}", routing.num_tokens));
  }
  if (offsets.front() != 0) {
    refuse("token_offsets", 0, offsets.front(), "must be 0");
  }
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    const auto at = static_cast<std::size_t>(token);
    if (offsets[at + 1] < offsets[at]) {
      refuse("token_offsets", token + 1, offsets[at + 1],
             fmt::format("must not be below token_offsets[{}] = {}", token, offsets[at]));
    }
  }
  if (offsets.back() != routing.num_pairs()) {
    refuse("token_offsets", routing.num_tokens, offsets.back(),
           fmt::format("must be the number of pairs, {}", routing.num_pairs()));
  }
}

}  // namespace

std::span<const std::int32_t> Routing::ids_of(std::int64_t token) const {
  const auto at = static_cast<std::size_t>(token);
  return {expert_ids.data() + token_offsets[at], expert_ids.data() + token_offsets[at + 1]};
}

std::span<const float> Routing::gates_of(std::int64_t token) const {
  const auto at = static_cast<std::size_t>(token);
  return {gates.data() + token_offsets[at], gates.data() + token_offsets[at + 1]};
}

void Routing::validate() const {
  if (num_tokens < 0) {
    throw InvalidArgument("num_tokens", fmt::to_string(num_tokens), "must not be negative");
  }
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;  // expert ids are 32-bit
  if (grid_rows < 1 || grid_cols < 1 || grid_rows >= kLimit || grid_cols >= kLimit ||
      num_experts() >= kLimit) {
    throw InvalidArgument("grid", fmt::format("{} x {}", grid_rows, grid_cols),
                          "extents must be at least 1 and their product below 2^31");
  }
  validate_offsets(*this);
  if (gates.size() != expert_ids.size()) {
    throw InvalidArgument("gates.size", fmt::to_string(gates.size()),
                          fmt::format("must be the number of pairs, {}", num_pairs()));
  }
  for (std::int64_t token = 0; token < num_tokens; ++token) {
    const auto ids = ids_of(token);
    const auto token_gates = gates_of(token);
    for (std::size_t k = 0; k < ids.size(); ++k) {
      const auto where = [&](std::string_view field) {
        return fmt::format("{}[token {}, {}]", field, token, k);
      };
      if (ids[k] < 0 || ids[k] >= num_experts()) {
        throw InvalidArgument(where("expert_ids"), fmt::to_string(ids[k]),
                              fmt::format("must be in [0, {})", num_experts()));
      }
      if (k > 0 && ids[k] <= ids[k - 1]) {
        throw InvalidArgument(where("expert_ids"), fmt::to_string(ids[k]),
                              ids[k] == ids[k - 1]
                                  ? "repeats within its token; experts of a token are distinct"
                                  : "follows a larger id; a token's experts ascend");
      }
      if (!std::isfinite(token_gates[k])) {
        throw InvalidArgument(where("gates"), fmt::to_string(token_gates[k]), "must be finite");
      }
    }
  }
}

std::vector<std::int64_t> expert_loads(const Routing& routing) {
  std::vector<std::int64_t> loads(static_cast<std::size_t>(routing.num_experts()), 0);
  for (const auto id : routing.expert_ids) {
    ++loads[static_cast<std::size_t>(id)];
  }
  return loads;
}

}  // namespace moescope
