#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/files/npy.hpp"
#include "core/layer/layer_inputs.hpp"
#include "core/layer/tensor.hpp"
#include "core/systems/system.hpp"
#include "reference/golden/golden.hpp"

/// What the replays of golden files share; not for use outside reference/golden*.cpp.
namespace moescope::detail {

/// A golden file with its path, for messages. All throw FileError naming the array.
struct Golden {
  std::string path;
  ArrayFile file;

  /// As fp32; all axes but the last are rows.
  HostTensor matrix(const std::string& name) const;
  std::vector<float> floats(const std::string& name) const;
  std::vector<std::int64_t> integers(const std::string& name) const;
  std::int64_t integer(const std::string& name) const;
  float number(const std::string& name) const;
  /// Extents of an array that must have `rank` axes.
  const std::vector<std::int64_t>& extents(const std::string& name, std::size_t rank) const;

 private:
  template <class T>
  T only(const std::vector<T>& values, const std::string& name) const;
};

/// max |ours - theirs| / max |theirs|; infinite when sizes differ or either holds what is not finite.
double max_relative_error(std::span<const float> ours, std::span<const float> theirs);
double max_relative_error(const HostTensor& ours, const HostTensor& theirs);

/// Failed, with the place, when the error is above kGoldenTolerance.
GoldenResult judged(std::string kind, double error, std::string_view where);

/// The published module's layer with its batch norm folded in, fp32.
LayerInputs omnimoe_inputs(const Golden& golden);
/// Its output and, where the file has dy, its gradients, under every schedule and SaveMode.
GoldenResult replay_omnimoe(const Golden& golden);

/// The baseline that the file records, by the arrays only it has; empty for none.
std::optional<System> golden_system(const Golden& golden);
/// Replays a baseline's layer against y; where the file has dy, also the oracle's gradients against grad.*.
GoldenResult replay_system(const Golden& golden, System system, MoeBackend& backend);

}  // namespace moescope::detail
