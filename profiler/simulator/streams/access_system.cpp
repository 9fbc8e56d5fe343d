// The layers of kernels/systems/cuda_system_layer.cpp as launches.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/base/error.hpp"
#include "core/systems/system_traits.hpp"
#include "core/tiling/chunks.hpp"
#include "core/tiling/token_split.hpp"
#include "profiler/simulator/streams/access_system.hpp"

namespace moescope {
namespace detail {
namespace {

/// `rows`: of experts' products, at least as many as pairs.
SystemMap place_tensors(const SystemShape& shape, std::int64_t pairs, std::int64_t rows) {
  SystemMap map;
  std::uint64_t next = 0;
  const auto place = [&next](std::uint64_t& tensor, std::int64_t bytes) {
    tensor = next;
    next += static_cast<std::uint64_t>(round_up(bytes, 4096));
  };
  const std::int64_t e = dtype_bytes(shape.dtype);
  const std::int64_t row = shape.hidden_size * e;
  const std::int64_t half_queries = shape.num_queries() * 2 * shape.key_size;
  const std::int64_t n = shape.num_keys();
  const bool ffn = shape.has_ffn_experts();
  const DenseChunks chunks =
      shape.has_product_keys() ? DenseChunks::plan(shape.row_shape(), shape.has_neurons()) : DenseChunks{};
  place(map.x, shape.num_tokens * row);
  place(map.router, ffn ? shape.num_experts * row : 2 * shape.heads * shape.key_size * row);
  place(map.keys, shape.heads * 2 * n * shape.key_size * e);
  place(map.gate_up, ffn ? 2 * shape.num_experts * shape.expert_size * row : 0);
  place(map.down, ffn ? shape.num_experts * shape.expert_size * row : 0);
  place(map.w_in, shape.has_neurons() ? shape.num_experts * row : 0);
  place(map.w_out, shape.has_product_keys() ? shape.num_experts * row : 0);
  place(map.shared, 3 * shape.shared_size * row);
  place(map.token_offsets, (shape.num_queries() + 1) * 8);
  place(map.expert_ids, pairs * 4);
  place(map.gates, pairs * 4);
  place(map.queries, half_queries * (e + 4));
  place(map.logits, shape.num_queries() * (ffn ? shape.num_experts : 2 * n) * 4);
  place(map.counts, 256 * shape.num_experts * 4);
  place(map.row_tokens, rows * 4);
  place(map.pair_rows, pairs * 4);
  place(map.hidden, ffn ? rows * shape.expert_size * e : chunks.bytes);
  place(map.results, ffn ? rows * row : 32 * shape.num_tokens * shape.hidden_size * 4);
  place(map.shared_hidden, shape.num_tokens * shape.shared_size * e);
  place(map.shared_result, shape.shared_size > 0 ? shape.num_tokens * shape.hidden_size * 4 : 0);
  place(map.output, shape.num_tokens * row);
  return map;
}

/// A row per token: its heads' experts one head after the other.
Routing by_token(const Routing& queries, const SystemShape& shape) {
  Routing tokens = queries;
  tokens.num_tokens = shape.num_tokens;
  tokens.token_offsets.clear();
  for (std::int64_t query = 0; query <= queries.num_tokens; query += shape.heads) {
    tokens.token_offsets.push_back(queries.token_offsets[query]);
  }
  return tokens;
}

/// A gated product with one expert, then down: to the output, or in fp32 to what the experts add.
void add_dense_branch(std::vector<KernelLaunch>& launches, const SystemContext& context) {
  const SystemShape& shape = context.shape;
  const std::int64_t e = context.element_bytes;
  GroupedProduct up;
  up.tiles = grouped_tiles({shape.num_tokens});
  up.gated = true;
  up.rows = shape.num_tokens;
  up.n = shape.shared_size;
  up.k = shape.hidden_size;
  up.element_bytes = e;
  up.a = context.map.x;
  up.weights = context.map.shared;
  up.out = context.map.shared_hidden;
  add_grouped_product(launches, Stage::kSharedMlp, "gated product", up);
  Product down{
      .m = shape.num_tokens, .n = shape.hidden_size, .k = shape.shared_size, .a = {}, .b = {}, .d = {}};
  down.a = {context.map.shared_hidden, shape.shared_size * e, e};
  down.b = {context.map.shared + static_cast<std::uint64_t>(2 * shape.shared_size * context.row_bytes),
            shape.shared_size * e, e};
  const std::int64_t out = shape.has_routing() ? 4 : e;
  down.d = {shape.has_routing() ? context.map.shared_result : context.map.output, shape.hidden_size * out,
            out};
  add_product(launches, Stage::kSharedMlp, "down", down, context.as_layer(shape.row_shape(), context.tokens));
}

void require_kernels(const SystemShape& shape, ScheduleKind kind) {
  const SystemTraits& traits = traits_of(shape.system);
  if (!traits.has(kind) || (shape.has_ffn_experts() && kind != ScheduleKind::kExpertCentric)) {
    throw InvalidArgument("schedule", to_string(kind),
                          shape.has_ffn_experts()
                              ? "has no access stream: GPU kernels run FFN experts as expert_centric"
                              : fmt::format("is none of {}", traits.name));
  }
  if (!shape.has_product_keys() && shape.dtype != Dtype::kBF16) {
    throw InvalidArgument("dtype", to_string(shape.dtype),
                          "has no access stream: grouped products are modelled in bf16");
  }
  require_row_width(shape.hidden_size, shape.dtype);
  for (const auto& [field, value] :
       {std::pair("expert_size", shape.expert_size), std::pair("shared_size", shape.shared_size)}) {
    if (value % 8 != 0) {
      throw InvalidArgument(field, fmt::to_string(value), "the CUDA kernels need a multiple of 8");
    }
  }
}

}  // namespace

StreamContext SystemContext::as_layer(const LayerShape& layer, std::shared_ptr<const Routing> routing) const {
  StreamContext context{.shape = layer,
                        .routing = routing.get(),
                        .schedule = nullptr,
                        .options = options,
                        .map = {},
                        .row_bytes = row_bytes,
                        .element_bytes = element_bytes,
                        .owned = routing};
  context.map.x = map.x;
  context.map.w_in = map.w_in;
  context.map.w_out = map.w_out;
  context.map.expert_ids = map.expert_ids;
  context.map.gates = map.gates;
  context.map.scratch = map.gates;  // what sums are weighted by
  context.map.working = map.logits;
  context.map.output = map.output;
  context.map.shared_result = map.shared_result;
  return context;
}

}  // namespace detail

std::vector<KernelLaunch> system_stream(const SystemShape& shape, const Routing& routing, ScheduleKind kind,
                                        const StreamOptions& options, bool fixed_routing,
                                        std::int64_t capacity) {
  shape.validate();
  detail::require_kernels(shape, kind);
  const LayerShape row = shape.row_shape();
  if (routing.num_tokens != shape.num_queries() || routing.grid_rows != row.grid_rows ||
      routing.grid_cols != row.grid_cols) {
    throw InvalidArgument(
        "routing",
        fmt::format("{} rows, grid {} x {}", routing.num_tokens, routing.grid_rows, routing.grid_cols),
        fmt::format("must have {} rows, grid {} x {}", shape.num_queries(), row.grid_rows, row.grid_cols));
  }
  detail::SystemContext context;
  context.shape = shape;
  context.queries = std::make_shared<const Routing>(routing);
  context.tokens =
      shape.heads == 1 ? context.queries : std::make_shared<const Routing>(detail::by_token(routing, shape));
  context.options = options;
  context.map = detail::place_tensors(shape, routing.num_pairs(),
                                      std::max(routing.num_pairs(), capacity * shape.num_experts));
  context.capacity = capacity;
  context.element_bytes = dtype_bytes(shape.dtype);
  context.row_bytes = shape.hidden_size * context.element_bytes;
  std::vector<KernelLaunch> launches;
  if (!fixed_routing && shape.has_ffn_experts()) {
    detail::add_ffn_router(launches, context);
  }
  if (!fixed_routing && shape.has_product_keys()) {
    detail::add_product_keys(launches, context);
  }
  if (shape.has_ffn_experts()) {
    detail::add_ffn_schedule(launches, context);
  }
  if (shape.shared_size > 0) {
    detail::add_dense_branch(launches, context);
  }
  if (shape.has_ffn_experts()) {
    detail::add_ffn_experts(launches, context);
  } else if (shape.has_product_keys() && kind == ScheduleKind::kDenseMasked) {
    detail::add_masked_product_keys(launches, context);
  } else if (shape.has_product_keys()) {
    detail::add_gathered_rows(launches, context);
  }
  detail::charge_code_once(launches);
  return launches;
}

}  // namespace moescope
