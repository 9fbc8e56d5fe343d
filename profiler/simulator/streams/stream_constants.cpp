#include "profiler/simulator/streams/stream_constants.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <type_traits>

#include "core/files/json_field.hpp"

namespace moescope {
namespace {

/// Ranges that keep a simulation finite.
constexpr std::int64_t kMostBytes = 1 << 24;
constexpr double kMost = 1e9;

/// The one list of keys, in file order: visit(key, member, most). The least is 0.
template <class Constants, class Visit>
void for_each_constant(Constants& c, Visit&& visit) {
  visit("select_code_bytes", c.select_code_bytes, kMostBytes);
  visit("select_instructions_per_token", c.select_instructions_per_token, kMost);
  visit("select_instructions_per_logit", c.select_instructions_per_logit, kMost);
  visit("select_instructions_per_pair", c.select_instructions_per_pair, kMost);
  visit("select_list_steps", c.select_list_steps, kMost);
  visit("select_list_steps_per_row", c.select_list_steps_per_row, kMost);
  visit("select_list_steps_per_length", c.select_list_steps_per_length, kMost);
  visit("select_list_steps_per_logit", c.select_list_steps_per_logit, kMost);
  visit("select_list_steps_per_pair", c.select_list_steps_per_pair, kMost);
  visit("select_row_steps", c.select_row_steps, kMost);
  visit("select_row_steps_per_row", c.select_row_steps_per_row, kMost);
  visit("select_row_steps_per_length", c.select_row_steps_per_length, kMost);
  visit("sort_issue_per_pair", c.sort_issue_per_pair, kMost);
  visit("strip_select_instructions_per_token", c.strip_select_instructions_per_token, kMost);
  visit("strip_select_instructions_per_logit", c.strip_select_instructions_per_logit, kMost);
  visit("strip_select_steps", c.strip_select_steps, kMost);
  visit("strip_select_steps_per_row", c.strip_select_steps_per_row, kMost);
  visit("strip_select_steps_per_length", c.strip_select_steps_per_length, kMost);
  visit("strip_select_one_warp_steps", c.strip_select_one_warp_steps, kMost);
  visit("strip_select_one_warp_steps_per_row", c.strip_select_one_warp_steps_per_row, kMost);
  visit("strip_select_one_warp_steps_per_logit", c.strip_select_one_warp_steps_per_logit, kMost);
  visit("strip_select_one_warp_steps_per_pair", c.strip_select_one_warp_steps_per_pair, kMost);
  visit("list_steps", c.list_steps, kMost);
  visit("list_steps_per_32_strips", c.list_steps_per_32_strips, kMost);
  visit("list_spill_bytes_per_warp", c.list_spill_bytes_per_warp, kMostBytes);
  visit("list_spill_bytes_per_token", c.list_spill_bytes_per_token, kMostBytes);
  visit("strip_tile_clocks", c.strip_tile_clocks, kMost);
  visit("strip_tile_clocks_per_64_tokens", c.strip_tile_clocks_per_64_tokens, kMost);
  visit("tile_clocks_per_64_experts", c.tile_clocks_per_64_experts, kMost);
  visit("tile_clocks_per_64_tokens", c.tile_clocks_per_64_tokens, kMost);
  visit("tile_row_reread_fraction", c.tile_row_reread_fraction, 1.0);
  visit("pair_instructions", c.pair_instructions, kMost);
  visit("pair_instructions_per_score_load", c.pair_instructions_per_score_load, kMost);
  visit("pair_instructions_per_sum_load", c.pair_instructions_per_sum_load, kMost);
  visit("product_code_bytes", c.product_code_bytes, kMostBytes);
  visit("product_operand_cost", c.product_operand_cost, std::int64_t{1} << 20);
  visit("dependent_start_s", c.dependent_start_s, 1.0);
  visit("cold_dirty_fraction", c.cold_dirty_fraction, 1.0);
}

}  // namespace

SourcedConstants parse_stream_constants(const JsonField& object) {
  SourcedConstants constants;
  for_each_constant(constants.values, [&](const char* key, auto& member, auto most) {
    const JsonField field = object.member(key);
    const JsonField value = field.member("value");
    if constexpr (std::is_integral_v<std::remove_reference_t<decltype(member)>>) {
      member = value.integer(0, most);
    } else {
      member = value.number();
      if (!(member >= 0 && member <= most)) {
        value.fail(fmt::format("must be in [0, {:g}]", most));
      }
    }
    constants.sources[key] = field.member("source").text();
  });
  for (const auto& [key, field] : object.members()) {
    if (!constants.sources.contains(key)) {
      field.fail("is not a constant of the streams");
    }
  }
  return constants;
}

nlohmann::ordered_json stream_constants_json(const SourcedConstants& constants) {
  nlohmann::ordered_json object;
  for_each_constant(constants.values, [&](const char* key, const auto& member, auto) {
    const auto source = constants.sources.find(key);
    object[key] = {{"value", member},
                   {"source", source == constants.sources.end() ? std::string("unknown") : source->second}};
  });
  return object;
}

}  // namespace moescope
