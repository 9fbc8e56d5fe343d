#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "core/layer/layer_shape.hpp"
#include "core/layer/tensor.hpp"
#include "core/schedule/schedule.hpp"

namespace moescope {

/// Kinds of layer (DESIGN section 5): the subject and the baselines it is compared with.
enum class System : std::uint8_t {
  kOmniMoe,      ///< described by LayerShape and LayerInputs; all others by SystemShape and SystemInputs
  kDenseMlp,     ///< one gated MLP for every token
  kGShard,       ///< top-K of N gated FFN experts, gates renormalised over the K (GShard, Mixtral)
  kDeepSeekMoe,  ///< fine-grained FFN experts beside a shared one (DeepSeekMoE)
  kPkm,          ///< product-key memory: a weighted sum of values (Lample et al. 2019)
  kPeer,         ///< product keys over single-neuron experts (He 2024)
};

std::string_view to_string(System system);
/// Throws InvalidArgument("system", ...).
System parse_system(std::string_view text);
/// All of them, in the order of system_traits().
std::span<const System> systems();

/// Shape and options of one baseline layer. Fields that a system has no use for are 0 (heads: 1).
struct SystemShape {
  System system = System::kGShard;
  std::int64_t num_tokens = 0;   ///< [L]
  std::int64_t hidden_size = 0;  ///< [d]
  std::int64_t num_experts = 0;  ///< [N] FFN experts, PKM values or PEER experts (these two: a square)
  std::int64_t expert_size = 0;  ///< gshard, deepseekmoe: width of a routed expert
  std::int64_t shared_size = 0;  ///< dense_mlp: its width; deepseekmoe: width of the shared expert
  std::int64_t top_k = 0;        ///< [K] experts per token; pkm, peer: over all heads, K / heads for each
  std::int64_t heads = 1;        ///< pkm, peer: queries per token
  std::int64_t key_size = 0;     ///< pkm, peer: width of a sub-key, and of each half of a query
  Dtype dtype = Dtype::kBF16;
  Activation activation = Activation::kSilu;
  GateMode gate_mode = GateMode::kSoftmax;

  // Of its traits (system_traits.hpp):
  bool has_ffn_experts() const;
  bool has_product_keys() const;
  bool has_routing() const;
  bool has_dense_branch() const;  ///< dense_mlp, or a shared expert
  bool has_neurons() const;       ///< experts of one hidden neuron: scores, then rows
  /// Rows of the Routing: one query per token and head. Query q belongs to token q / heads.
  std::int64_t num_queries() const { return num_tokens * heads; }
  std::int64_t top_k_per_query() const { return top_k / heads; }
  /// sqrt(N): sub-keys in each half.
  std::int64_t num_keys() const;

  /// The extents that every kind of layer has, as rows carry them: the grid is sqrt(N) x sqrt(N) with product
  /// keys, 1 x N otherwise, 1 x 1 for dense_mlp, which has no routing.
  LayerShape row_shape() const;
  /// The routing as a layer of its own: row_shape() with num_queries() tokens of top_k_per_query() experts.
  LayerShape query_shape() const;
  /// Throws InvalidArgument naming the first field that cannot work for this system.
  void validate() const;
  /// "gshard_L1024_d1024_N128_K2".
  std::string label() const;
  /// Bytes of all weights.
  std::int64_t weight_bytes() const;
};

/// A named shape of a baseline with its origin.
struct SystemPreset {
  std::string name;  ///< unique within its system, e.g. "table-a-1024-2"
  std::string source;
  SystemShape shape;
};

/// Paper Table A (both sweeps) and a small one. dense_mlp is not in that table: its width is 4 d.
std::span<const SystemPreset> system_presets(System system);
/// Throws InvalidArgument("preset", ...) listing the system's names.
const SystemPreset& find_system_preset(System system, std::string_view name);

/// N gated FFN experts: y = (act(x gate^T) * (x up^T)) down^T, matrices [out, in].
struct FfnExpertWeights {
  HostTensor gate_up;  ///< [N * 2 * expert_size, d]: of each expert its gate rows, then its up rows
  HostTensor down;     ///< [N * d, expert_size]
};

/// Multi-head product keys. Head h scores expert (i, j) by q[0,h] . key[h,i,0] + q[1,h] . key[h,j,1].
struct ProductKeyWeights {
  HostTensor queries;  ///< [2 * heads * key_size, d]: half outermost, then head
  HostTensor keys;     ///< [heads * num_keys * 2, key_size]: head outermost, then key, then half
  /// pkm: affine layer norm of every half query, [key_size] each; empty for none.
  std::vector<float> norm_weight;
  std::vector<float> norm_bias;
};

/// Weights of one baseline, in storage dtype; what a system does not have is empty.
struct SystemWeights {
  HostTensor router;                        ///< gshard, deepseekmoe: [N, d]
  std::optional<ProductKeyWeights> keys;    ///< pkm, peer
  std::optional<FfnExpertWeights> experts;  ///< gshard, deepseekmoe
  HostTensor w_in;                          ///< peer: [N, d]
  HostTensor w_out;                         ///< peer: [N, d]; pkm: its values [N, d]
  std::optional<SharedMlpWeights> shared;   ///< dense_mlp: the MLP itself; deepseekmoe: the shared expert
};

/// One baseline layer with its input batch.
struct SystemInputs {
  SystemShape shape;
  HostTensor hidden_states;  ///< X [L, d]
  std::shared_ptr<const SystemWeights> weights;
  /// Recorded, or drawn without a router: the router's stages are skipped. Its rows are queries.
  std::optional<Routing> fixed_routing;
  std::string workload;
  std::uint64_t seed = 0;
  /// Order of work of the experts, where there is a choice: FFN experts as expert_centric (grouped
  /// products), token_centric (each token its experts) or dense_masked (all experts for every token); pkm and
  /// peer as token_centric (their rows gathered) or dense_masked. kAuto: the backend's own.
  ScheduleKind schedule = ScheduleKind::kAuto;
  /// FFN experts as expert_centric: the pairs that they are given. A backend that has no rules
  /// (MoeBackend::supports_token_rules) is not to be asked.
  TokenRule tokens = {};

  /// Sets both. system_schedule() with what was chosen in its place.
  void set_schedule(const ScheduleOptions& options);
  ScheduleOptions schedule_options() const;

  /// Throws InvalidArgument naming the tensor whose extents or dtype do not fit `shape`, a routing that does
  /// not, or a schedule that the system does not have.
  void validate() const;
};

/// X ~ N(0, 1) and weights such that router logits and product-key scores are N(0, score_deviation^2) and
/// every layer's output is of order one: the workload gaussian:STD. Bit-identical on every machine for one
/// (shape, deviation, seed). Throws InvalidArgument, and OutOfMemory before making anything.
SystemInputs make_system_inputs(const SystemShape& shape, double score_deviation, std::uint64_t seed);

}  // namespace moescope
