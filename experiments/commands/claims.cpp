#include "profiler/report/claims.hpp"

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
      {"moescope claims results/h100/*.jsonl*", "moescope claims results/h100/*.jsonl* --markdown"}));
  sub.add_option("rows", options->files, "files of rows, rows.jsonl of any run").required().type_name("ROWS");
  sub.add_flag("--markdown", options->markdown, "a markdown table");
  return {sub, [options] {
            std::vector<RecordedRun> runs;
            for (const std::string& file : options->files) {
              auto more = read_rows(file);
              std::move(more.begin(), more.end(), std::back_inserter(runs));
            }
            const Table table = claims_table(judge_claims(recorded_layers(runs)));
            std::cout << (options->markdown ? table.markdown() : table.text()) << '\n' << claim_rules();
            return ExitCode::kOk;
          }};
}

}  // namespace moescope
