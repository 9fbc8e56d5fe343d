#pragma once

#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "profiler/claims/recorded_choice.hpp"

namespace moescope {

/// A run that results name.
struct NamedRecording {
  std::string name;  ///< of its file without .jsonl, with ":n" where the file holds several runs
  std::string file;  ///< without folders, unless two files have one name
  std::string run_id;
  std::string started_utc;  ///< empty when the run does not say
  std::string revision;     ///< of the program, or PyTorch's version
};

/// Short names of the runs of one device: no two runs of different files have one name, and files that
/// nothing counts in change no name.
class RecordingNames {
 public:
  explicit RecordingNames(std::span<const Recording* const> recordings);
  const std::string& of(const Recording& recording) const;
  /// The runs with these names, in the names' order.
  std::vector<NamedRecording> describe(const std::set<std::string>& names) const;

 private:
  std::string file_of(const Recording& recording) const;

  std::span<const Recording* const> recordings_;
  std::set<std::string> ambiguous_;  ///< file names that several folders have
  std::map<const RunHeader*, std::string> names_;
};

/// "ablations, validation:8,9,11": runs of one file together.
std::string joined_names(const std::set<std::string>& names);

}  // namespace moescope
