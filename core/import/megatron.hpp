#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/import/reader.hpp"

namespace moescope::detail {

/// Bytes [offset, offset + bytes) of the file `name` beside the trace `trace`. Throws FileError.
using SidecarReader = std::function<std::vector<std::byte>(const std::string& trace, const std::string& name,
                                                           std::uint64_t offset, std::uint64_t bytes)>;

/// Megatron's trace from memory, the texts of its ranks by their names; for fuzzing and tests. `path` names
/// all of it in messages.
RawRouting parse_megatron(const std::vector<std::pair<std::string, std::string>>& texts,
                          const std::string& path, const ImportOptions& options,
                          const SidecarReader& sidecar);

}  // namespace moescope::detail
