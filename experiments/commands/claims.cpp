#include "profiler/claims/claims.hpp"

#include <deque>
#include <iterator>
#include <memory>
#include <ostream>

#include "experiments/options/command.hpp"
#include "experiments/options/table_options.hpp"

namespace moescope {

Command add_claims(Cli app, const Invocation&) {
  struct Options {
    std::vector<std::string> files;
    TableOptions tables;
  };
  auto options = std::make_shared<Options>();
  const Cli sub = app.add_subcommand("claims", "the paper's system claims held against recorded rows");
  sub.footer(examples(
      {"moescope claims results/h200/*.jsonl*", "moescope claims results/h200/*.jsonl* --format md"}));
  sub.add_option("rows", options->files, "files of rows, rows.jsonl of any run").required().type_name("ROWS");
  add_table_options(sub, options->tables);
  return {sub, [options] {
            StandardTables tables(options->tables);
            std::deque<RecordedFile> files;  // recordings point into them
            std::vector<Recording> recordings;
            for (const std::string& file : options->files) {
              auto more = recordings_of(files.emplace_back(RecordedFile{file, read_rows(file)}));
              std::move(more.begin(), more.end(), std::back_inserter(recordings));
            }
            const std::vector<DeviceClaims> devices = judge_claims(recordings);
            if (tables.for_people()) {
              const bool markdown = tables.style().format == TableFormat::kMarkdown;
              tables.text() << (markdown ? claims_markdown(devices) : claims_text(devices));
            } else {
              for (const DeviceClaims& device : devices) {
                tables.show(device.device, claims_table(device));
              }
            }
            tables.text() << claim_rules();
            return ExitCode::kOk;
          }};
}

}  // namespace moescope
