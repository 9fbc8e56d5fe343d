#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/layer/tolerance.hpp"
#include "core/systems/system.hpp"
#include "reference/oracle/oracle.hpp"

/// The baselines in fp64 from the storage-rounded inputs, on a sample of tokens; nothing shared with the fp32
/// path.
namespace moescope {

/// y and the oracle's own selection of the sampled tokens.
struct SystemOracle {
  OracleRouting routing;  ///< of their queries, heads * T of them; none for dense_mlp
  std::vector<double> y;  ///< [T, d]
  std::int64_t hidden_size = 0;
  RoundingSums rounding;  ///< what a path in storage precision rounds on the way to y

  MatrixView<const double> view() const {
    return {y.data(), static_cast<std::int64_t>(y.size()) / hidden_size, hidden_size};
  }
};

/// The layer for `tokens` (distinct, ascending; empty = all). With `selection` (a routing of all queries) its
/// experts are used instead of the oracle's own, with gates still from fp64 scores; a fixed routing is taken
/// as it is. With `ran` (FFN experts under a rule for tokens) these pairs are summed: those of the selection
/// with the gates that they have in it, others with their probability. Throws InvalidArgument when one does
/// not belong to the batch.
SystemOracle system_oracle(const SystemInputs& inputs, const std::vector<std::int64_t>& tokens,
                           const Routing* selection, const Routing* ran = nullptr);

/// Output of a layer against the oracle with the experts that `routing` selected, for tokens spread over the
/// batch. Keeps a reference to `inputs`.
std::function<ErrorReport(const HostTensor& output, const Routing& routing)> system_judge(
    const SystemInputs& inputs, std::int64_t sampled_tokens);

/// The same against the pairs that a rule for tokens left.
std::function<ErrorReport(const HostTensor& output, const Routing& routing,
                          const TokenAssignment& assignment)>
system_assigned_judge(const SystemInputs& inputs, std::int64_t sampled_tokens);

/// Largest relative error that a correct layer of this shape may show end to end on the oracle's tokens.
double system_tolerance(const SystemShape& shape, const SystemOracle& oracle);

/// Outcome of checking one baseline on a backend, end to end.
struct SystemCheck {
  SelectionReport selection;  ///< against the oracle
  ErrorReport error;          ///< of the output, with the layer's own selection
  double tolerance = 0;
  ScheduleKind ran = ScheduleKind::kAuto;
  /// Of a rule for tokens: what it left, and the error against all pairs that the router chose.
  TokenRule tokens;
  std::int64_t chosen_pairs = 0;
  std::int64_t dropped_pairs = 0;
  std::int64_t added_pairs = 0;
  std::optional<ErrorReport> dropless_error;
  std::string assignment_fault;  ///< where it is not what the rule says
  bool repeats = true;           ///< a second run gave the same bits, or the layer says that it need not

  bool passed() const {
    return selection.ok() && error.relative_error <= tolerance && repeats && assignment_fault.empty();
  }
  /// One line: what failed, or the error.
  std::string describe() const;
};
/// Throws what the backend throws.
SystemCheck check_system(MoeBackend& backend, const SystemInputs& inputs, std::int64_t sampled_tokens);

}  // namespace moescope
