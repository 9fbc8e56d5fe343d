#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>

/// What streams say of kernels that was read off recorded rows of one GPU: counts of instructions, lengths of
/// chains, paces. Data beside the fits in a device's calibration.json, each with its source. What follows
/// from a kernel's source or from its binary (sizes of code by cuobjdump) stands with the kernel's stream
/// instead.
namespace moescope {

class JsonField;

/// Steps are trips to L2 that wait for each other. One without a value cannot be used: see known().
struct StreamConstants {
  static constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

  // router_select.cu into lists. Chains grow with what a token selects: its rows, and the longest of them.
  std::int64_t select_code_bytes = 0;
  double select_instructions_per_token = kNone;
  double select_instructions_per_logit = kNone;
  double select_instructions_per_pair = kNone;
  double select_list_steps = kNone;  ///< a warp to a token
  double select_list_steps_per_row = kNone;
  double select_list_steps_per_length = kNone;
  double select_list_steps_per_logit = kNone;
  double select_list_steps_per_pair = kNone;
  double select_row_steps = kNone;  ///< eight warps to a token
  double select_row_steps_per_row = kNone;
  double select_row_steps_per_length = kNone;
  // schedule.cu
  double sort_issue_per_pair = kNone;  ///< issue slots of a pass of the radix sort, waiting included
  // router_select_strips.cu
  double strip_select_instructions_per_token = kNone;
  double strip_select_instructions_per_logit = kNone;
  double strip_select_steps = kNone;  ///< eight warps to a token
  double strip_select_steps_per_row = kNone;
  double strip_select_steps_per_length = kNone;
  double strip_select_one_warp_steps = kNone;
  double strip_select_one_warp_steps_per_row = kNone;
  double strip_select_one_warp_steps_per_logit = kNone;
  double strip_select_one_warp_steps_per_pair = kNone;
  // schedule_strips.cu
  double list_steps = kNone;
  double list_steps_per_32_strips = kNone;
  std::int64_t list_spill_bytes_per_warp = 0;
  std::int64_t list_spill_bytes_per_token = 0;
  // The staircase kernel: clocks of a tile at d = 1024 and 320 experts.
  double strip_tile_clocks = kNone;
  double strip_tile_clocks_per_64_tokens = kNone;
  // experts_tiles.cu: clocks of a tile at d = 1024 for 64 experts, and what 64 tokens add.
  double tile_clocks_per_64_experts = kNone;
  double tile_clocks_per_64_tokens = kNone;
  double tile_row_reread_fraction = kNone;  ///< of a row of X, W, V, what L2 is asked for twice
  // experts_token_centric.cu: warp instructions of a pair, and of a 16-byte load of W and of V.
  double pair_instructions = kNone;
  double pair_instructions_per_score_load = kNone;
  double pair_instructions_per_sum_load = kNone;
  // Matrix products of cuBLASLt.
  std::int64_t product_code_bytes = 0;
  std::int64_t product_operand_cost = 0;  ///< products that loading one more row of A or B is worth
  // A layer beside its stages.
  double dependent_start_s =
      kNone;  ///< that a stage takes longer by itself, where its kernel can start early
  // What stands in L2 before a layer.
  double cold_dirty_fraction = kNone;  ///< that the emptying of L2 leaves dirty

  /// Whether they were read from somewhere.
  bool known() const { return cold_dirty_fraction == cold_dirty_fraction; }

  friend bool operator==(const StreamConstants&, const StreamConstants&) = default;
};

/// Constants with where each comes from, by key.
struct SourcedConstants {
  StreamConstants values;
  std::map<std::string, std::string> sources;
};

/// {KEY: {"value": ..., "source": "..."}}, every member of StreamConstants. Throws FileError naming the key
/// that is missing, unknown, without source or out of range.
SourcedConstants parse_stream_constants(const JsonField& object);
/// The same back, keys in order.
nlohmann::ordered_json stream_constants_json(const SourcedConstants& constants);

}  // namespace moescope
