#pragma once

#include <filesystem>
#include <string_view>

#include "core/layer/routing.hpp"

namespace moescope {

/// Throws InvalidArgument when `file` does not end in .safetensors, as write_trace() does.
void require_trace_name(const std::filesystem::path& file);

/// Records a routing as a trace that workload `trace:FILE` replays bit for bit: safetensors with expert_ids
/// i32 [L,K], gates f32 [L,K] and the grid as metadata. The file appears whole or not at all; an existing one
/// is replaced. `system` and `heads`, the rows of `routing` that a token has, are recorded as metadata too:
/// whoever replays the trace as something else has to say so. Throws InvalidArgument when `file` does not end
/// in .safetensors, the routing is invalid or empty, or its tokens have different numbers of experts;
/// FileError when it cannot be written.
void write_trace(const Routing& routing, const std::filesystem::path& file,
                 std::string_view system = "omnimoe", std::int64_t heads = 1);

}  // namespace moescope
