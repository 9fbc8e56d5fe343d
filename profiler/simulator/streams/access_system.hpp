#pragma once

#include <memory>
#include <vector>

#include "core/systems/system.hpp"
#include "profiler/simulator/streams/access_builder.hpp"

/// Parts of system_stream(). Not for use outside profiler/simulator/streams/access_*.cpp.
namespace moescope::detail {

/// Where a baseline's tensors lie: one after another on 4 KiB borders.
struct SystemMap {
  std::uint64_t x = 0;              ///< [L, d]
  std::uint64_t router = 0;         ///< FFN experts: [N, d]; product keys: queries' projection [2 H k, d]
  std::uint64_t keys = 0;           ///< [H 2 n, k]
  std::uint64_t gate_up = 0;        ///< [N 2 f, d]
  std::uint64_t down = 0;           ///< [N d, f]
  std::uint64_t w_in = 0;           ///< peer: [N, d]
  std::uint64_t w_out = 0;          ///< peer, pkm: [N, d]
  std::uint64_t shared = 0;         ///< gate and up [2 h, d], down [d, h]
  std::uint64_t token_offsets = 0;  ///< of the routing
  std::uint64_t expert_ids = 0;     ///< [M]
  std::uint64_t gates = 0;          ///< [M]
  std::uint64_t queries = 0;        ///< [L, 2 H k] as stored; before the norm, fp32, behind them
  std::uint64_t logits = 0;         ///< [queries, Nr + Nc] fp32
  std::uint64_t counts = 0;         ///< of the permutation: [blocks, N]
  std::uint64_t row_tokens = 0;     ///< [M] tokens in order of experts
  std::uint64_t pair_rows = 0;      ///< [M] place of each pair in that order
  std::uint64_t hidden = 0;         ///< [M, f], of the masked form S and P
  std::uint64_t results = 0;        ///< [M, d], of the masked form the sums of its parts
  std::uint64_t shared_hidden = 0;  ///< [L, h]
  std::uint64_t shared_result = 0;  ///< [L, d] fp32
  std::uint64_t output = 0;         ///< [L, d]
};

/// What every part of the stream knows. Launches keep a copy.
struct SystemContext {
  SystemShape shape;
  std::shared_ptr<const Routing> queries;  ///< a row per query, ids ascending
  std::shared_ptr<const Routing> tokens;   ///< the same with a row per token
  StreamOptions options;
  SystemMap map;
  std::int64_t capacity = 0;  ///< rows of every expert; 0: as many as it has pairs
  std::int64_t row_bytes = 0;
  std::int64_t element_bytes = 0;

  /// For parts that are OmniMoE's: a layer of `layer`'s extents over `routing`; addresses are the caller's.
  StreamContext as_layer(const LayerShape& layer, std::shared_ptr<const Routing> routing) const;
};

/// access_grouped.cpp: tiles of consecutive rows of one expert.
struct GroupedTileRows {
  std::int64_t expert = 0;
  std::int64_t first_row = 0;
  std::int64_t count = 0;
};
using GroupedTiles = std::shared_ptr<const std::vector<GroupedTileRows>>;
/// Of loads, one a group, in the order of their ids.
GroupedTiles grouped_tiles(const std::vector<std::int64_t>& loads);

/// kernels/contract/grouped_gemm.hpp, addresses in place of pointers.
struct GroupedProduct {
  GroupedTiles tiles;
  bool gated = false;
  std::int64_t rows = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::int64_t element_bytes = 2;
  std::uint64_t a = 0;
  std::shared_ptr<const std::vector<std::int32_t>> row_ids;  ///< null: row i is row i of A
  std::uint64_t row_ids_at = 0;
  std::uint64_t weights = 0;
  std::uint64_t out = 0;
};
void add_grouped_product(std::vector<KernelLaunch>& launches, Stage stage, std::string name,
                         const GroupedProduct& product);

/// access_grouped.cpp: FFN experts: selection and permutation, then both products and the tokens' sums.
void add_ffn_router(std::vector<KernelLaunch>& launches, const SystemContext& context);
void add_ffn_schedule(std::vector<KernelLaunch>& launches, const SystemContext& context);
void add_ffn_experts(std::vector<KernelLaunch>& launches, const SystemContext& context);
/// access_product_keys.cpp: scores and selection, then the experts as a gather or as products with all of
/// them.
void add_product_keys(std::vector<KernelLaunch>& launches, const SystemContext& context);
void add_gathered_rows(std::vector<KernelLaunch>& launches, const SystemContext& context);
void add_masked_product_keys(std::vector<KernelLaunch>& launches, const SystemContext& context);

}  // namespace moescope::detail
