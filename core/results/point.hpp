#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "core/layer/layer_shape.hpp"
#include "core/schedule/schedule.hpp"
#include "core/systems/system.hpp"

/// The one description of a measured point. Columns of rows, both schemas, grouping and "the same point"
/// follow from the table of Point; command-line options, axes of experiments, ids and repro commands from the
/// table of PointRequest. A new axis is a line in each, its meaning and its test (docs/developing.md).
namespace moescope {

/// Of rows. A new column raises it, and has it as PointField::since.
inline constexpr int kResultSchemaVersion = 6;

/// What a field of a point tells apart.
enum class PointPart : std::uint8_t {
  kLayer,     ///< another layer, batch, routing or machine: never side by side in one table
  kSchedule,  ///< another way to run it: what a table compares
  kState,     ///< how it was run or which part of it a value is of
};

/// A field as rows carry it.
struct PointField {
  const char* key;  ///< column and JSON key
  int since;        ///< first schema version that has it
  PointPart part;
  const char* about;             ///< for the published schema
  const char* values = nullptr;  ///< by commas, where only these are allowed
  std::optional<std::int64_t> minimum = std::nullopt;
  /// First version whose rows are known in this field: before `since` there was only the default.
  int known_since = since;
  /// What null is the same as, when points are compared: the one value that there was before `since`.
  std::optional<std::int64_t> null_means = std::nullopt;
};

/// What was run. Fields that do not apply are null or "none".
struct Point {
  std::string system = "omnimoe";
  std::string direction = "forward";
  std::string save = "none";
  std::string gradients = "none";
  std::string optimizer = "none";
  std::string schedule = "none";
  std::string backend;
  std::int64_t num_tokens = 0;
  std::int64_t hidden_size = 0;
  std::int64_t grid_rows = 0;
  std::int64_t grid_cols = 0;
  std::int64_t top_k = 0;
  std::optional<std::int64_t> shared_size;
  std::optional<std::int64_t> expert_size;
  std::optional<std::int64_t> heads;
  std::optional<std::int64_t> key_size;
  std::optional<std::int64_t> group_size;
  std::optional<std::int64_t> tile_tokens;
  std::string dtype;
  std::string activation = "none";
  std::string gates = "none";
  std::string workload;
  std::uint64_t seed = 0;
  std::string l2_state = "none";
  std::int64_t ranks = 1;
  std::optional<std::int64_t> rank;
  std::optional<std::int64_t> peer;
  std::string placement = "none";
  std::string exchange = "none";

  /// A layer as a whole on one device: neither shared by ranks nor one rank's part.
  bool on_one_device() const { return ranks == 1 && !rank; }

  /// The fields that come from an OmniMoE layer's shape.
  void set_shape(const LayerShape& shape);
  /// The fields that come from a baseline's shape, system included; its grid is that of row_shape().
  void set_shape(const SystemShape& shape);
  /// Name of the schedule, and of its options those that such a schedule has.
  void set_schedule(const ScheduleOptions& options);
};

/// A layer's point before a schedule is chosen and anything is run.
Point layer_point(const LayerShape& shape, std::string_view backend, std::string_view workload,
                  std::uint64_t seed);
/// The same of a baseline.
Point layer_point(const SystemShape& shape, std::string_view backend, std::string_view workload,
                  std::uint64_t seed);

/// Calls visit(PointField, member) for every field, in column order.
template <class P, class Visit>
void for_each_field(P&& point, Visit&& visit) {
  using enum PointPart;
  visit(PointField{"system", 1, kLayer, "kind of layer: omnimoe, or one of the paper's baselines"},
        point.system);
  visit(PointField{"direction", 4, kLayer, "forward, or backward: gradients and the step they are for",
                   "forward,backward", std::nullopt, 1},
        point.direction);
  visit(PointField{"save", 5, kSchedule, "what the forward keeps for the backward; none of a forward",
                   "minimal,log_probs,scores,none", std::nullopt, 1},
        point.save);
  visit(PointField{"gradients", 6, kSchedule,
                   "what a backward makes of dW and dV where it is not to store all of their rows: touched, those "
                   "of experts with tokens alone; added, sums with what was there; none otherwise",
                   "touched,added,none", std::nullopt, 1},
        point.gradients);
  visit(PointField{"optimizer", 6, kSchedule,
                   "the step on W and V that ends a backward: on experts with tokens, or on all; none without",
                   "touched,dense,none", std::nullopt, 1},
        point.optimizer);
  visit(PointField{"schedule", 1, kSchedule,
                   "order of work of the expert stage; none for a value that does not depend on it"},
        point.schedule);
  visit(PointField{"backend", 1, kLayer, "cpu or cuda; other programs name themselves"}, point.backend);
  visit(PointField{"L", 1, kLayer, "tokens in the batch", nullptr, 0}, point.num_tokens);
  visit(PointField{"d", 1, kLayer, "model width", nullptr, 0}, point.hidden_size);
  visit(PointField{"Nr", 1, kLayer, "rows of the router's grid", nullptr, 0}, point.grid_rows);
  visit(PointField{"Nc", 1, kLayer, "columns of the router's grid", nullptr, 0}, point.grid_cols);
  visit(PointField{"K", 1, kLayer, "experts per token", nullptr, 0}, point.top_k);
  visit(PointField{"shared_size", 2, kLayer,
                   "width of the shared MLP, 0 = none; null where it does not apply", nullptr, 0},
        point.shared_size);
  visit(PointField{"expert_size", 4, kLayer, "width of an FFN expert; null for systems without", nullptr, 1},
        point.expert_size);
  visit(
      PointField{"heads", 4, kLayer, "queries per token; null for systems without product keys", nullptr, 1},
      point.heads);
  visit(PointField{"key_size", 4, kLayer, "width of a sub-key; null for systems without product keys",
                   nullptr, 1},
        point.key_size);
  visit(
      PointField{
          "B", 2, kSchedule,
          "group size: experts per group of expert_centric, and of what staircase covers by explicit lists; "
          "null for other schedules",
          nullptr, 1},
      point.group_size);
  visit(
      PointField{
          "tile_tokens", 3, kSchedule,
          "staircase: most tokens of a strip in one tile; nothing reads it where the kernels work on lists "
          "of "
          "pairs (recorded routing, fp32), nor on the CPU. Null for other schedules; before version 3 it was "
          "128",
          nullptr, 1, 1, kStripTileTokens},
      point.tile_tokens);
  visit(PointField{"dtype", 1, kLayer, "storage type of tensors", "fp32,bf16,none"}, point.dtype);
  visit(PointField{"activation", 2, kLayer, "silu, gelu or relu; none where it does not apply"},
        point.activation);
  visit(PointField{"gates", 2, kLayer, "softmax, probability or relu; none where it does not apply"},
        point.gates);
  visit(PointField{"workload", 1, kLayer, "where tokens and routing come from, as on the command line"},
        point.workload);
  visit(PointField{"seed", 1, kLayer, "seed of everything random", nullptr, 0}, point.seed);
  visit(PointField{"l2_state", 1, kState, "last-level cache before each sample; none where nothing was run",
                   "cold,warm,none"},
        point.l2_state);
  visit(PointField{"ranks", 4, kLayer, "GPUs, or ranks on the CPU, that share the layer", nullptr, 1, 1},
        point.ranks);
  visit(PointField{"rank", 4, kState, "which of them the value is of; null for the layer as a whole", nullptr,
                   std::nullopt, 1},
        point.rank);
  visit(PointField{"peer", 5, kState, "of bytes from `rank` to another: the other; else null", nullptr,
                   std::nullopt, 1},
        point.peer);
  visit(PointField{"placement", 4, kSchedule, "where experts lie among ranks; none on one", nullptr,
                   std::nullopt, 1},
        point.placement);
  visit(PointField{"exchange", 5, kSchedule, "how tokens reach the ranks of their experts; none on one",
                   "gather,dispatch,none", std::nullopt, 1},
        point.exchange);
}

/// Text that is equal for points that agree in every field of `parts` that rows of schema version `version`
/// are known in. For maps and ids within one process: what it looks like may change.
std::string point_key(const Point& point, std::initializer_list<PointPart> parts, int version);
/// The same layer under the same routing on the same backend, whatever the schedule and the cache's state.
std::string layer_key(const Point& point, int version);
/// Equal in every field that rows of schema version `version` are known in.
bool same_point(const Point& a, const Point& b, int version);

/// What a person asks for, in the words of the command line. What is not given stays empty.
struct PointRequest {
  std::string preset;
  std::optional<std::int64_t> num_tokens;
  std::optional<std::int64_t> hidden_size;
  std::optional<std::int64_t> num_experts;
  std::string grid;
  std::optional<std::int64_t> top_k;
  std::optional<std::int64_t> shared_size;
  std::optional<std::int64_t> expert_size;
  std::optional<std::int64_t> heads;
  std::optional<std::int64_t> key_size;
  std::string dtype;
  std::string activation;
  std::string gates;
  std::optional<std::int64_t> group_size;
  std::optional<std::int64_t> tile_tokens;
  std::optional<std::int64_t> ranks;
  std::string placement;
  std::string exchange;
  std::string l2;
  std::string direction;
  std::string save;
  std::string gradients;
  std::string optimizer;
};

/// Where an option stands in --help.
enum class RequestGroup : std::uint8_t {
  kShape,
  kSystem,
  kSchedule,
  kRanks,
  kRun  ///< how a point is measured: nothing that simulates it has these
};

/// A field of a request.
struct RequestField {
  const char* key;           ///< of experiment files' axes, and of messages
  const char* options = "";  ///< on the command line, by commas; repro commands use the first
  const char* type_name = "";
  const char* about = "";
  RequestGroup group = RequestGroup::kShape;
  std::int64_t minimum = 1;  ///< of counts
  std::int64_t maximum = std::numeric_limits<std::int64_t>::max();
  void (*check)(std::string_view) = nullptr;  ///< of texts; throws InvalidArgument
};

namespace detail {
void check_grid(std::string_view text);
void check_dtype(std::string_view text);
void check_activation(std::string_view text);
void check_gates(std::string_view text);
void check_l2(std::string_view text);
void check_direction(std::string_view text);
void check_save(std::string_view text);
void check_gradients(std::string_view text);
void check_optimizer(std::string_view text);
void check_placement(std::string_view text);
void check_exchange(std::string_view text);
}  // namespace detail

/// Calls visit(RequestField, member) for every field: std::string or std::optional<std::int64_t>.
template <class R, class Visit>
void for_each_request_field(R& request, Visit&& visit) {
  using enum RequestGroup;
  visit(RequestField{"preset", "--preset", "NAME", "a named shape"}, request.preset);
  visit(RequestField{"num_tokens", "-L,--num-tokens", "N", "tokens in the batch"}, request.num_tokens);
  visit(RequestField{"hidden_size", "-d,--hidden-size", "N", "model width"}, request.hidden_size);
  visit(RequestField{"grid", "--grid", "RxC", "the router's grid, e.g. 320x320 or 48,16", kShape, 0, 0,
                     detail::check_grid},
        request.grid);
  visit(RequestField{"num_experts", "--num-experts", "N", "a square grid of this many experts"},
        request.num_experts);
  visit(RequestField{"top_k", "-K,--top-k", "N", "experts per token"}, request.top_k);
  visit(RequestField{"shared_size", "--shared-size", "N", "width of the shared MLP; 0 = none", kShape, 0},
        request.shared_size);
  visit(RequestField{"dtype", "--dtype", "TYPE", "storage type: bf16 (default) or fp32", kShape, 0, 0,
                     detail::check_dtype},
        request.dtype);
  visit(RequestField{"activation", "--activation", "NAME", "silu (default), gelu or relu", kShape, 0, 0,
                     detail::check_activation},
        request.activation);
  visit(RequestField{"gates", "--gates", "MODE", "softmax (default) or probability; of peer softmax or relu",
                     kShape, 0, 0, detail::check_gates},
        request.gates);
  visit(RequestField{"expert_size", "--expert-size", "N", "gshard, deepseekmoe: width of an FFN expert",
                     kSystem},
        request.expert_size);
  visit(
      RequestField{"heads", "--heads", "N", "pkm, peer: heads; each selects top_k / heads experts", kSystem},
      request.heads);
  visit(RequestField{"key_size", "--key-size", "N", "pkm, peer: width of a sub-key", kSystem},
        request.key_size);
  visit(RequestField{"group_size", "--group-size", "B", "experts per group of expert_centric (default 64)",
                     kSchedule},
        request.group_size);
  visit(RequestField{"tile_tokens", "--tile-tokens", "N",
                     "most tokens of a strip in one tile of the staircase kernels, 1 to 128 (default)",
                     kSchedule, 1, kStripTileTokens},
        request.tile_tokens);
  visit(RequestField{"l2", "--l2", "STATE", "last-level cache before each sample: cold (default) or warm",
                     kRun, 0, 0, detail::check_l2},
        request.l2);
  visit(RequestField{"direction", "--direction", "DIRECTION",
                     "forward (default), or backward: the gradients of everything that is learnt", kRun, 0, 0,
                     detail::check_direction},
        request.direction);
  visit(RequestField{"save", "--save", "MODE",
                     "what the forward keeps for the backward: minimal, log_probs (default) or scores", kRun,
                     0, 0, detail::check_save},
        request.save);
  visit(RequestField{"gradients", "--gradients", "FORM",
                     "rows of dW and dV that the backward leaves: stored (all, default), touched (of experts "
                     "with tokens alone) or added (to what is there)",
                     kRun, 0, 0, detail::check_gradients},
        request.gradients);
  visit(RequestField{"optimizer", "--optimizer", "ROWS",
                     "end the backward with AdamW on W and V: none (default), touched (experts with tokens) or "
                     "dense (all)",
                     kRun, 0, 0, detail::check_optimizer},
        request.optimizer);
  visit(RequestField{"ranks", "--ranks", "P",
                     "ranks that share the layer (default 1); on the CPU in one process", kRanks, 1,
                     kMaxRunningRanks},
        request.ranks);
  visit(RequestField{"placement", "--placement", "NAME",
                     "where experts lie among ranks: linear (default), round_robin, rows, columns, blocks, "
                     "strips, strips+hot:H, lpt, eplb:COPIES, clustered or clustered+tokens (moescope place)",
                     kRanks, 0, 0, detail::check_placement},
        request.placement);
  visit(RequestField{"exchange", "--exchange", "NAME",
                     "how tokens reach the ranks of their experts: gather (default) or dispatch", kRanks, 0,
                     0, detail::check_exchange},
        request.exchange);
}

}  // namespace moescope
