#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/base/gpu_traits.hpp"
#include "core/devices/gpu_rates.hpp"
#include "core/layer/stage.hpp"
#include "core/systems/system.hpp"
#include "kernels/systems/ffn_experts.hpp"

/// What a baseline layer on the GPU runs and holds, from its shape and the device: arithmetic, no device
/// needed.
namespace moescope::cuda {

struct SystemDesign {
  SystemShape shape;
  bool has_norm = false;  ///< pkm: half queries pass a layer norm
  /// The dense branch's gate, up and activation are one grouped product with one expert (grouped_gemm.hpp),
  /// its hidden activations never leave storage precision. Otherwise it is OmniMoE's shared MLP
  /// (shared_mlp.cu).
  bool fused_mlp = false;
  /// pkm, peer: products with all experts and the gates in a matrix [L, N] (dense_masked); else a gather of
  /// the selected rows (token_centric).
  bool masked = false;
  /// FFN experts: the order of work, and which pairs they are given.
  ScheduleKind ffn_kind = ScheduleKind::kExpertCentric;
  TokenRule tokens = {};
  bool fixed_routing = false;  ///< recorded, or drawn without a router: no router stages
  /// Why `masked` is as it is; empty where it was asked for, or nothing is to choose.
  std::string explanation = {};
  GpuTraits gpu = {};

  FfnForm ffn() const { return {.shape = shape, .kind = ffn_kind, .tokens = tokens}; }
};

/// Throws InvalidArgument for what the kernels cannot do: hidden_size (and expert_size) no multiple of 8,
/// more than kMaxFfnExperts FFN experts, L*K of FFN experts or rows of their products not below 2^31, rows
/// longer than the gathers take, grouped products in bf16 on another device than compute capability 9.0, a
/// schedule that the system does not have, a rule for tokens that needs a router where there is none. Of
/// product keys choose_product_key_form() takes the form where inputs.schedule leaves it open, by `rates`,
/// which must be there then.
SystemDesign design_system(const SystemInputs& inputs, const GpuTraits& gpu,
                           const std::optional<ProductKeyRates>& rates = {});

/// The stages in the order they depend on each other: core's system_stages(), but a shared expert comes
/// before the routed ones, whose last kernel adds it.
/// FFN experts have a schedule where their order of work follows from the routing.
std::vector<Stage> system_layer_stages(System system, bool fixed_routing = false,
                                       ScheduleKind ffn_kind = ScheduleKind::kExpertCentric);

/// Device memory of one layer in bytes, before anything is allocated.
struct SystemMemoryPlan {
  std::int64_t hidden_states = 0;
  std::int64_t weights = 0;
  std::int64_t routing = 0;  ///< expert ids and gates
  std::int64_t output = 0;   ///< [L, d] in storage dtype
  /// One buffer: of the router [queries | logits | selection's workspace], after it of FFN experts
  /// [hidden | results], of the masked form of product keys its workspace.
  std::int64_t working = 0;
  std::int64_t logits_offset = 0;
  std::int64_t select_offset = 0;
  std::int64_t permutation = 0;  ///< of FFN experts
  std::int64_t schedule_scratch = 0;
  std::int64_t mlp_tiles = 0;    ///< of the fused dense branch
  std::int64_t mlp_scratch = 0;  ///< of the dense branch: its hidden activations
  std::int64_t mlp_result = 0;  ///< of a shared expert, or of a dense branch that does not round itself: fp32
  std::int64_t token_workspace = 0;  ///< of peer's gather
  std::int64_t library = 0;          ///< cuBLASLt's workspace, of the router
  std::int64_t mlp_library = 0;      ///< cuBLASLt's workspace, of the dense branch
  std::vector<StageMemory> stages;   ///< the extra memory that each stage uses; kLayer: all of it, held

  std::int64_t total_bytes() const;
};
SystemMemoryPlan plan_system_memory(const SystemDesign& design);

}  // namespace moescope::cuda
