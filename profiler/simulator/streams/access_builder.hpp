#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/tiling/strip_tiles.hpp"
#include "core/tiling/tile_config.hpp"
#include "profiler/simulator/streams/access_stream.hpp"

/// Parts of layer_stream(), one file per kind of kernel. Not for use outside
/// profiler/simulator/streams/access_*.cpp.
namespace moescope::detail {

/// Where tensors lie: one after another on 4 KiB borders.
struct TensorMap {
  std::uint64_t x = 0;               ///< [L, d]
  std::uint64_t router = 0;          ///< [Nr + Nc, d]
  std::uint64_t w_in = 0;            ///< [N, d]
  std::uint64_t w_out = 0;           ///< [N, d]
  std::uint64_t shared = 0;          ///< gate, up [h, d] each, down [d, h]
  std::uint64_t token_offsets = 0;   ///< [L + 1] 8 bytes
  std::uint64_t expert_ids = 0;      ///< [M]
  std::uint64_t gates = 0;           ///< [M]
  std::uint64_t schedule = 0;        ///< lists of the schedule: sorted pairs [M], entry tokens, entry offsets
  std::uint64_t strips = 0;          ///< StripArrays
  std::uint64_t working = 0;         ///< logits, later y [L, d] fp32 or the staircase's sums in their place
  std::uint64_t output = 0;          ///< [L, d]
  std::uint64_t shared_result = 0;   ///< [L, d] fp32
  std::uint64_t shared_scratch = 0;  ///< gate and up of a chunk of tokens
  std::uint64_t scratch = 0;         ///< stages take turns in it

  TensorMap() = default;
  TensorMap(const LayerShape& shape, StripRule rule);
};

/// Where the lists of strips lie (kernels/contract/strips.hpp), from TensorMap::strips on.
struct StripArrays {
  std::uint64_t row_log_probs = 0;   ///< [L, Nr] fp32
  std::uint64_t col_log_probs = 0;   ///< [L, Nc] fp32
  std::uint64_t uncovered_rows = 0;  ///< [L, Nr] fp32
  std::uint64_t of_tokens = 0;       ///< threshold, tie limit, gate shift, strips, exponent: [L] 4 bytes each
  std::uint64_t cover = 0;           ///< [L, max_strips_of_token] 4 bytes
  std::uint64_t ranks = 0;           ///< likewise
  std::uint64_t counts = 0;          ///< [Nr + Nc] 4 bytes
  std::uint64_t tokens = 0;          ///< of the strips, one strip after another, 4 bytes each
  std::uint64_t end = 0;

  StripArrays(const LayerShape& shape, StripRule rule, std::uint64_t first);
};

/// A matrix as a product reads or writes it.
struct Operand {
  std::uint64_t address = 0;
  std::int64_t pitch_bytes = 0;
  std::int64_t element_bytes = 2;
};

/// D [m, n] = A [m, k] B [k, n]: conventions of kernels/runtime/cublas_lt.hpp.
struct Product {
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  bool transpose_a = false;  ///< A lies as [k, m]
  bool transpose_b = true;   ///< B lies as [n, k]
  bool add = false;          ///< D is added to
  Operand a, b, d;
};

/// Products of one size side by side, bytes apart.
struct ProductBatch {
  std::int64_t count = 1;
  std::int64_t stride_a = 0;
  std::int64_t stride_b = 0;
  std::int64_t stride_d = 0;
};

/// Bytes that a pass over arrays moves.
struct PassPart {
  std::uint64_t address = 0;
  std::int64_t bytes = 0;
  AccessKind kind = AccessKind::kRead;
};

/// What every part of the stream knows. Launches keep a copy; routing and schedule outlive them.
struct StreamContext {
  LayerShape shape;
  const Routing* routing;
  const Schedule* schedule;
  StreamOptions options;
  TensorMap map;
  std::int64_t row_bytes;  ///< of X, W, V
  std::int64_t element_bytes;
  std::shared_ptr<const Routing> owned = nullptr;  ///< the routing, where the launches are to keep it

  const StreamConstants& constants() const { return options.constants; }
  /// The staircase schedule runs on strips.
  bool on_strips() const {
    return schedule->kind == ScheduleKind::kStaircase && options.staircase == StaircaseKernels::kThresholds;
  }
  /// Of the sums that strips add to.
  std::int64_t strip_sum_bytes() const { return strips_sum_in_fp16(shape, schedule->options) ? 2 : 4; }
  std::int64_t strip_segment() const {
    return options.strip_segment_experts > 0 ? options.strip_segment_experts
                                             : strip_segment_experts(shape.grid_rows, shape.grid_cols);
  }
  std::uint64_t x_row(std::int64_t token) const {
    return map.x + static_cast<std::uint64_t>(token * row_bytes);
  }
  std::uint64_t w_row(std::int64_t expert) const {
    return map.w_in + static_cast<std::uint64_t>(expert * row_bytes);
  }
  std::uint64_t v_row(std::int64_t expert) const {
    return map.w_out + static_cast<std::uint64_t>(expert * row_bytes);
  }
};

/// What a token selects, as the selection's chains go by it.
struct SelectedRows {
  std::int64_t rows = 0;
  std::int64_t longest = 0;
};
/// Of `ids` in ascending order, on a grid of `cols` columns.
SelectedRows selected_rows(std::span<const std::int32_t> ids, std::int64_t cols);

/// Most values of a side that the selection keeps in ten registers a lane; beyond, fewer of its blocks fit.
inline constexpr std::int64_t kSideInTenRegisters = 320;

Burst burst(std::uint64_t address, std::int64_t bytes, AccessKind kind, std::int64_t rows = 1,
            std::int64_t pitch_bytes = 0);

/// access_matmul.cpp: one product as cuBLASLt would take it.
void add_product(std::vector<KernelLaunch>& launches, Stage stage, std::string name, const Product& product,
                 const StreamContext& context, const ProductBatch& batch = {});
/// access_matmul.cpp: one elementwise kernel over arrays of any length, each part in equal steps.
void add_pass(std::vector<KernelLaunch>& launches, Stage stage, std::string name, std::vector<PassPart> parts,
              double instructions, std::int64_t code_bytes = 0);

/// access_token_pairs.cpp: the expert stage token by token; stages as its arguments say.
/// `finishes`: adds the shared MLP's result and rounds, as the fused kernel always does.
void add_token_pairs(std::vector<KernelLaunch>& launches, Stage stage, bool score, bool sum,
                     const StreamContext& context, bool finishes);
/// access_stream.cpp: the router's product and its selection, into lists of pairs or strips as the schedule
/// takes them; and what brings the strips or lists of a schedule into order.
void add_router(std::vector<KernelLaunch>& launches, const StreamContext& context);
/// access_stream.cpp: the context of a layer on `options`, its kernels chosen. Throws as layer_stream().
StreamContext make_context(const LayerShape& shape, const Routing& routing, const Schedule& schedule,
                           const StreamOptions& options, bool fixed_routing);
/// access_stream.cpp: router_select.cu, a block per row of logits.
void add_select(std::vector<KernelLaunch>& launches, std::string name, const StreamContext& context);
/// access_stream.cpp: instructions come from HBM once, with the first launch of a kernel.
void charge_code_once(std::vector<KernelLaunch>& launches);
/// access_tiles.cpp: kernels over lists of pairs, for all items of the schedule.
void add_pair_tiles(std::vector<KernelLaunch>& launches, Stage stage, bool scores_only,
                    const StreamContext& context);
/// access_strips.cpp: the staircase from thresholds: its selection, its schedule, its expert stage with the
/// clearing of sums before it.
void add_strip_select(std::vector<KernelLaunch>& launches, const StreamContext& context);
void add_strip_schedule(std::vector<KernelLaunch>& launches, const StreamContext& context);
void add_strips(std::vector<KernelLaunch>& launches, const StreamContext& context);
/// access_dense_masked.cpp: a block of mask_kernel, which reads what a token selects among some columns of P
/// and writes these whole.
struct MaskBlock {
  std::int64_t token = 0;
  std::int64_t first_column = 0;
  std::int64_t columns = 0;
};
inline constexpr std::int64_t kMaskCodeBytes = 18'432;  // mask_kernel as compiled for sm_90a
/// Of `segments` blocks a token over `width` columns; clears `unit`.
MaskBlock begin_mask(std::int64_t width, std::int64_t segments, std::int64_t element_bytes,
                     std::int64_t index, WorkUnit& unit);
/// Ids and gates of `row` of the routing from expert `first` on, `count` experts, are read; the ids.
std::span<const std::int32_t> read_selected(const Routing& routing, std::int64_t row, std::int64_t first,
                                            std::int64_t count, std::uint64_t expert_ids, std::uint64_t gates,
                                            WorkUnit& unit);
/// access_stream.cpp: throws InvalidArgument("hidden_size", ...) for a row that the kernels do not take.
void require_row_width(std::int64_t hidden_size, Dtype dtype);
/// access_dense_masked.cpp
void add_dense_masked(std::vector<KernelLaunch>& launches, const StreamContext& context);

}  // namespace moescope::detail
