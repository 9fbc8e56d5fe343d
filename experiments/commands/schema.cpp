#include <iostream>
#include <memory>

#include "core/base/error.hpp"
#include "core/results/experiment.hpp"
#include "core/results/result.hpp"
#include "experiments/options/command.hpp"
#include "profiler/text/fitted_output.hpp"

namespace moescope {

Command add_schema(Cli app, const Invocation& /*invocation*/) {
  auto what = std::make_shared<std::string>();
  const Cli sub = app.add_subcommand(
      "schema",
      "prints the JSON Schema of result rows or of experiment files, for programs that read or write them");
  sub.footer(examples({"moescope schema result", "moescope schema experiment"}));
  sub.add_option("what", *what, "result or experiment").required().type_name("NAME");
  return {sub, [what] {
            if (*what != "result" && *what != "experiment") {
              throw InvalidArgument("what", *what, "must be result or experiment");
            }
            const Verbatim whole(std::cout);
            std::cout << (*what == "result" ? result_schema_json() : experiment_schema_json());
            return ExitCode::kOk;
          }};
}

}  // namespace moescope
