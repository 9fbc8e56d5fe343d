#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/files/output_file.hpp"
#include "core/files/output_folder.hpp"
#include "profiler/cluster/ranks_model.hpp"

namespace moescope {

/// Files that a modelled layer is exported to (--goal, --chakra), claimed before anything is simulated.
class ClusterExports {
 public:
  /// Empty names: nothing. `ranks` of the one layer that there is, 0 where there are several. Throws
  /// InvalidArgument("goal" or "chakra", ...) for several layers and for a file of `kept`, FileError for what
  /// cannot be written and for a folder that has such traces.
  ClusterExports(const std::string& goal, const std::string& chakra, std::int64_t ranks,
                 const std::vector<std::filesystem::path>& kept);

  /// Writes them. Returns where, a line each. Throws FileError.
  std::string write(const RanksModel& model) const;

 private:
  std::optional<OutputFile> goal_;
  std::optional<OutputFolder> folder_;
  std::vector<OutputFile> traces_;  ///< [P]
};

}  // namespace moescope
