#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/files/safetensors.hpp"
#include "core/layer/layer_inputs.hpp"

/// What snapshots and traces share; not for use outside core/.
namespace moescope::detail {

/// Positive number below 2^31 that "__metadata__" records as text; empty when the key is absent. Throws
/// FileError.
std::optional<std::int64_t> metadata_extent(const ArrayFile& file, std::string_view path,
                                            const std::string& key);

/// `requested`, or `recorded` when 0 is requested. Throws InvalidArgument when they differ.
std::int64_t fit_extent(std::string_view field, std::int64_t requested, std::int64_t recorded,
                        std::string_view path);
/// The same for an extent of which less than recorded may be asked for.
std::int64_t fit_at_most(std::string_view field, std::int64_t requested, std::int64_t recorded,
                         std::string_view path);

/// Throws FileError unless the array is `extents`; `meaning` says where they come from.
void require_extents(const FileArray& array, std::string_view path, std::string_view name,
                     const std::vector<std::int64_t>& extents, std::string_view meaning);
/// Throws FileError unless the array is a matrix with at least one row and one column; `meaning` names its
/// axes.
void require_matrix(const FileArray& array, std::string_view path, std::string_view name,
                    std::string_view meaning);

/// workload_snapshot.cpp. `shape` may hold zeros; the file completes it.
LayerShape complete_snapshot_shape(const ArrayFile& file, std::string_view path, const LayerShape& requested);
/// Consumes the file: each array is dropped once it is converted.
LayerInputs make_snapshot(ArrayFile file, std::string_view path, const LayerShape& requested,
                          std::uint64_t seed, std::shared_ptr<const ExpertWeights> experts);

/// workload_trace.cpp, likewise.
LayerShape complete_trace_shape(const ArrayFile& file, std::string_view path, const LayerShape& requested);
LayerInputs make_trace(ArrayFile file, std::string_view path, const LayerShape& requested, std::uint64_t seed,
                       std::shared_ptr<const ExpertWeights> experts);

}  // namespace moescope::detail
