#include "profiler/claims/claims.hpp"

#include <deque>
#include <iostream>
#include <iterator>
#include <memory>

#include "experiments/options/command.hpp"

namespace moescope {

Command add_claims(Cli app, const Invocation&) {
  struct Options {
    std::vector<std::string> files;
    bool markdown = false;
  };
  auto options = std::make_shared<Options>();
  const Cli sub = app.add_subcommand("claims", "the paper's system claims held against recorded rows");
  sub.footer(examples(
      {"moescope claims results/h200/*.jsonl*", "moescope claims results/h200/*.jsonl* --markdown"}));
  sub.add_option("rows", options->files, "files of rows, rows.jsonl of any run").required().type_name("ROWS");
  sub.add_flag("--markdown", options->markdown, "a markdown table");
  return {sub, [options] {
            std::deque<RecordedFile> files;  // recordings point into them
            std::vector<Recording> recordings;
            for (const std::string& file : options->files) {
              auto more = recordings_of(files.emplace_back(RecordedFile{file, read_rows(file)}));
              std::move(more.begin(), more.end(), std::back_inserter(recordings));
            }
            const std::vector<DeviceClaims> devices = judge_claims(recordings);
            std::cout << (options->markdown ? claims_markdown(devices) : claims_text(devices))
                      << claim_rules();
            return ExitCode::kOk;
          }};
}

}  // namespace moescope
