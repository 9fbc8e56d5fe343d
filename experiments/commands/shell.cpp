// What a shell and man(1) are given: completion and the manual page, from the program's own tree of commands.
#include <fmt/format.h>

#include <iostream>
#include <memory>

#include "core/base/build_info.hpp"
#include "experiments/manual/help.hpp"
#include "experiments/options/command.hpp"
#include "profiler/text/fitted_output.hpp"

namespace moescope {

Command add_completion(Cli app, const CliProgram& program) {
  auto shell = std::make_shared<std::string>();
  const Cli sub = app.add_subcommand("completion", "a completion script for bash, zsh or fish");
  sub.footer(examples({"moescope completion bash", "moescope completion fish"}));
  sub.add_option("shell", *shell, "bash, zsh or fish").required().type_name("SHELL");
  return {sub, [shell, &program] {
            const Verbatim whole(std::cout);
            std::cout << completion_script(program.describe(), *shell);
            return ExitCode::kOk;
          }};
}

Command add_man(Cli app, const CliProgram& program) {
  const Cli sub = app.add_subcommand("man", "the manual page: moescope man | man -l -");
  sub.footer(examples({"moescope man"}));
  return {sub, [&program] {
            const Verbatim whole(std::cout);
            std::cout << man_page(program.describe(), fmt::format("moescope {}", build_info().version));
            return ExitCode::kOk;
          }};
}

}  // namespace moescope
