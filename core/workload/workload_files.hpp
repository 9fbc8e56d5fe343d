#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/files/safetensors.hpp"
#include "core/layer/layer_inputs.hpp"
#include "core/workload/workload.hpp"

/// What snapshots and traces share; not for use outside core/.
namespace moescope::detail {

/// Positive number below 2^31 that "__metadata__" records as text; empty when the key is absent. Throws
/// FileError.
std::optional<std::int64_t> metadata_extent(const ArrayFile& file, std::string_view path,
                                            const std::string& key);

/// The same as text, e.g. the system that a file is of; empty when the key is absent.
std::string metadata_text(const ArrayFile& file, std::string_view path, const std::string& key);

/// The kind of layer that a trace or snapshot says it is of, "" where it does not say. Throws
/// InvalidArgument("system", ...) when it is not `wanted` and `spec` does not ask for that.
std::string require_recorded_system(const ArrayFile& file, const WorkloadSpec& spec, std::string_view wanted);

/// Name of a trace's ids: an .npy file holds them alone, without one.
std::string trace_ids_name(const ArrayFile& file);
/// The file of a trace workload with the one layer that it names: expert_ids and gates are [num_tokens,
/// top_k]. Throws InvalidArgument and FileError.
ArrayFile read_trace(const WorkloadSpec& spec);

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

/// All or none of a group of arrays. Throws FileError for the one that is missing.
bool has_group(const ArrayFile& file, std::string_view path, const std::vector<std::string>& names);
/// The array in that storage type; it is dropped from the file. Throws FileError for what is not finite.
HostTensor take_tensor(ArrayFile& file, std::string_view path, const std::string& name, Dtype dtype);
/// Activation and gate mode, when recorded, are what the weights were trained for. Throws
/// InvalidArgument for another request, FileError for a word that is none.
void require_recorded_options(const ArrayFile& file, std::string_view path, Activation activation,
                              GateMode gate_mode);
/// Throws FileError where the key is missing.
std::int64_t required_extent(const ArrayFile& file, std::string_view path, const std::string& key);
/// The width of the shared MLP that the file holds, 0 for none. Throws FileError where its matrices do not
/// fit.
std::int64_t recorded_shared_size(const ArrayFile& file, std::string_view path, std::int64_t hidden_size);
/// Its matrices; the file has them.
SharedMlpWeights take_shared(ArrayFile& file, std::string_view path, Dtype dtype);

/// workload_snapshot.cpp. `shape` may hold zeros; the file completes it.
LayerShape complete_snapshot_shape(const ArrayFile& file, std::string_view path, const LayerShape& requested);
/// Consumes the file: each array is dropped once it is converted.
LayerInputs make_snapshot(ArrayFile file, std::string_view path, const LayerShape& requested,
                          std::uint64_t seed, std::shared_ptr<const ExpertWeights> experts);

/// workload_trace.cpp, likewise.
LayerShape complete_trace_shape(const ArrayFile& file, const WorkloadSpec& spec, const LayerShape& requested);
LayerInputs make_trace(ArrayFile file, const WorkloadSpec& spec, const LayerShape& requested,
                       std::uint64_t seed, std::shared_ptr<const ExpertWeights> experts);

/// [rows, ids of a row] of a trace's ids, checked against its gates. Throws FileError.
struct TraceExtents {
  std::int64_t rows = 0;
  std::int64_t top_k = 0;
};
TraceExtents trace_extents(const ArrayFile& file, std::string_view path);
/// The first shape.num_tokens rows as the routing of a layer of that shape, whose top_k is the file's. Drops
/// the gates' array once it is converted. Throws FileError naming token and position.
Routing take_trace_routing(ArrayFile& file, std::string_view path, const LayerShape& shape);

}  // namespace moescope::detail
