#include "profiler/claims/recording_names.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>

namespace moescope {
namespace {

std::string without_ending(std::string name) {
  for (const std::string_view ending : {".gz", ".jsonl"}) {
    if (name.size() > ending.size() && name.ends_with(ending)) {
      name.resize(name.size() - ending.size());
    }
  }
  return name;
}

std::string last_part(const std::string& file) { return std::filesystem::path(file).filename().string(); }

}  // namespace

RecordingNames::RecordingNames(std::span<const Recording* const> recordings) : recordings_(recordings) {
  std::map<std::string, std::string> file_of_name;
  for (const Recording* recording : recordings) {
    const std::string& file = recording->file->name;
    const std::string name = last_part(file);
    if (file_of_name.try_emplace(without_ending(name), file).first->second != file) {
      ambiguous_.insert(without_ending(name));
    }
  }
  for (const Recording* recording : recordings) {
    std::string& name = names_[recording->header];
    name = without_ending(file_of(*recording));
    if (recording->file->runs.size() > 1) {
      name += fmt::format(":{}", recording->run);
    }
  }
}

std::string RecordingNames::file_of(const Recording& recording) const {
  const std::string name = last_part(recording.file->name);
  return ambiguous_.contains(without_ending(name)) ? recording.file->name : name;
}

const std::string& RecordingNames::of(const Recording& recording) const {
  return names_.at(recording.header);
}

std::vector<NamedRecording> RecordingNames::describe(const std::set<std::string>& names) const {
  std::map<std::string, NamedRecording> found;
  for (const Recording* recording : recordings_) {
    const std::string& name = of(*recording);
    if (names.contains(name)) {
      const RunHeader& header = *recording->header;
      const auto torch = header.libraries.find("torch");
      found.try_emplace(
          name, NamedRecording{name, file_of(*recording), header.run_id, header.started_utc,
                               torch == header.libraries.end() ? header.git_revision.substr(0, 7)
                                                               : fmt::format("PyTorch {}", torch->second)});
    }
  }
  std::vector<NamedRecording> described;
  for (auto& [name, recording] : found) {
    described.push_back(std::move(recording));
  }
  return described;
}

std::string joined_names(const std::set<std::string>& names) {
  std::map<std::string, std::set<int>> runs_of_file;
  for (const std::string& name : names) {
    const auto colon = name.rfind(':');
    const std::string number = colon == std::string::npos ? "" : name.substr(colon + 1);
    const bool is_run =
        !number.empty() && number.size() < 9 && number.find_first_not_of("0123456789") == std::string::npos;
    std::set<int>& runs = runs_of_file[is_run ? name.substr(0, colon) : name];
    if (is_run) {
      runs.insert(std::stoi(number));
    }
  }
  std::vector<std::string> parts;
  for (const auto& [file, runs] : runs_of_file) {
    parts.push_back(runs.empty() ? file : fmt::format("{}:{}", file, fmt::join(runs, ",")));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace moescope
