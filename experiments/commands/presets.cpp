#include <fmt/format.h>

#include <memory>

#include "core/layer/layer_shape.hpp"
#include "core/systems/system.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/table_options.hpp"

namespace moescope {
namespace {

TableCell extent(std::int64_t value) { return value > 0 ? count_cell(value) : TableCell("-"); }

Table presets_table() {
  using enum Align;
  Table table({{"system", kLeft, Need::kAlways, true},
               {"preset", kLeft, Need::kAlways},
               {"L", kRight, Need::kAlways},
               {"d", kRight, Need::kAlways},
               {"experts", kRight, Need::kAlways},
               {"K", kRight, Need::kAlways},
               {"grid", kRight, Need::kExtra},
               {"shared"},
               {"expert size", kRight, Need::kExtra},
               {"heads", kRight, Need::kExtra},
               {"key size", kRight, Need::kExtra},
               {"source", kLeft}});
  for (const Preset& preset : presets()) {
    const LayerShape& shape = preset.shape;
    table.add_row({"omnimoe", preset.name, count_cell(shape.num_tokens), count_cell(shape.hidden_size),
                   count_cell(shape.grid_rows * shape.grid_cols), count_cell(shape.top_k),
                   fmt::format("{}x{}", shape.grid_rows, shape.grid_cols), extent(shape.shared_size), "-",
                   "-", "-", preset.source});
  }
  for (const System system : systems()) {
    if (system == System::kOmniMoe) {
      continue;
    }
    table.add_rule();
    for (const SystemPreset& preset : system_presets(system)) {
      const SystemShape& shape = preset.shape;
      table.add_row({to_string(system), preset.name, count_cell(shape.num_tokens),
                     count_cell(shape.hidden_size), extent(shape.num_experts), extent(shape.top_k), "-",
                     extent(shape.shared_size), extent(shape.expert_size), extent(shape.heads),
                     extent(shape.key_size), preset.source});
    }
  }
  return table;
}

}  // namespace

Command add_presets(Cli app, const Invocation& /*invocation*/) {
  auto options = std::make_shared<TableOptions>();
  const Cli sub =
      app.add_subcommand("presets", "named shapes: what --preset NAME stands for, and its source");
  sub.footer(examples({"moescope presets", "moescope presets --format csv"}));
  add_table_options(sub, *options);
  return {sub, [options] {
            StandardTables out(*options);
            out.show("presets", presets_table());
            out.text()
                << "\nL: tokens, d: model width, K: experts per token, shared: width of the shared MLP; any "
                   "of them can be changed beside --preset, e.g. --preset table-a -L 256\n";
            return ExitCode::kOk;
          }};
}

}  // namespace moescope
