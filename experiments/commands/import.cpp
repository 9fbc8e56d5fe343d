#include "core/import/import.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <iostream>
#include <memory>
#include <utility>

#include "core/base/command_text.hpp"
#include "core/base/error.hpp"
#include "core/base/grid_text.hpp"
#include "core/base/number_text.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/npy.hpp"
#include "core/files/output_file.hpp"
#include "core/import/checkpoint.hpp"
#include "core/import/snapshot_writer.hpp"
#include "core/workload/deterministic_math.hpp"
#include "experiments/inspection/trace_layers.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/table_options.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

struct ImportCommand {
  std::vector<std::string> files;
  std::string output;
  std::string format;
  std::string axes;
  std::vector<std::string> keys;
  std::optional<std::int64_t> top_k;
  std::optional<std::int64_t> num_experts;
  std::vector<std::string> layers;
  std::optional<std::int64_t> padding;
  std::string scores;
  std::string block = "decoder";
  std::string system;
  std::string grid;
  std::string model;
  std::string against;
  std::optional<std::int64_t> layer;
  std::string hidden;
  std::optional<std::int64_t> num_tokens;
  std::uint64_t seed = 0;
  std::vector<std::string> ignored;
};

bool is_checkpoint(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path, error) && fs::exists(path / "config.json", error);
}

/// All that is read: of a folder (a checkpoint, a trace of ranks) whatever lies in it.
std::vector<fs::path> input_files(const ImportCommand& command) {
  std::vector<fs::path> files(command.files.begin(), command.files.end());
  for (const std::string& other : {command.model, command.against, command.hidden}) {
    if (!other.empty()) {
      files.emplace_back(other);
    }
  }
  std::vector<fs::path> inside;
  for (const fs::path& file : files) {
    std::error_code none;
    for (const auto& entry : fs::directory_iterator(file, none)) {
      inside.push_back(entry.path());
    }
  }
  files.insert(files.end(), inside.begin(), inside.end());
  return files;
}

ImportOptions import_options(const ImportCommand& command) {
  ImportOptions options;
  options.format = command.format;
  options.axes = command.axes;
  for (const std::string& key : command.keys) {
    const auto equal = key.find('=');
    const std::string name = key.substr(0, equal);
    if (equal == std::string::npos || (name != "expert_ids" && name != "gates" && name != "logits")) {
      throw InvalidArgument("key", key, "must be expert_ids=NAME, gates=NAME or logits=NAME");
    }
    options.keys[name] = key.substr(equal + 1);
  }
  options.top_k = command.top_k;
  options.num_experts = command.num_experts;
  for (const std::string& word : command.layers) {
    const auto number = parse_number<std::int64_t>(word);
    if (!number || *number < 0) {
      throw InvalidArgument("layers", word, "must be numbers from 0 on, by commas");
    }
    options.layers.push_back(*number);
  }
  options.padding = command.padding;
  if (!command.scores.empty()) {
    options.scores = parse_score_mode(command.scores);
  }
  options.block = command.block;
  return options;
}

/// Takes over what config.json says of the model, against what the files said.
void apply_model(const ModelConfig& config, ImportedTrace& imported) {
  LayeredTrace& trace = imported.trace;
  const SystemShape& layer = config.layer;
  if (trace.num_experts != layer.num_experts) {
    throw InvalidArgument("num_experts", fmt::to_string(trace.num_experts),
                          fmt::format("{} has {}", config.path, layer.num_experts));
  }
  if (trace.top_k != layer.top_k) {
    throw InvalidArgument(
        "model", config.path,
        fmt::format("has num_experts_per_tok {}, the routing {}", layer.top_k, trace.top_k));
  }
  for (const std::int64_t number : trace.layers) {
    if (number >= config.num_layers) {
      throw InvalidArgument("model", config.path,
                            fmt::format("has {} layers, the routing layer {}", config.num_layers, number));
    }
  }
  trace.system = to_string(layer.system);
  trace.hidden_size = layer.hidden_size;
  trace.expert_size = layer.expert_size;
  trace.shared_size = layer.shared_size;
  if (trace.gate_mode.empty() && !trace.gates.empty()) {
    trace.gate_mode = to_string(layer.gate_mode);
  }
  imported.notes.push_back(
      fmt::format("{}: {}, of system {}: d {}, {} experts of width {}, K {}{}", config.path,
                  config.architecture, trace.system, layer.hidden_size, layer.num_experts, layer.expert_size,
                  layer.top_k, layer.shared_size > 0 ? fmt::format(", shared {}", layer.shared_size) : ""));
}

void apply_grid(const std::string& text, LayeredTrace& trace) {
  if (text.empty()) {
    return;
  }
  const GridExtents grid = parse_grid(text);
  if (grid.rows < 1 || grid.cols < 1 || grid.rows > trace.num_experts ||
      trace.num_experts / grid.rows != grid.cols || trace.num_experts % grid.rows != 0) {
    throw InvalidArgument("grid", text, fmt::format("must be of {} experts", trace.num_experts));
  }
  trace.grid_rows = grid.rows;
  trace.grid_cols = grid.cols;
}

ExitCode compare_with(const ImportedTrace& imported, const ImportCommand& command) {
  ImportOptions options;
  options.num_experts = imported.trace.num_experts;
  options.num_layers = std::ssize(imported.trace.layers);
  options.top_k = imported.trace.top_k;
  options.padding = command.padding;
  const ImportedTrace other = import_trace({command.against}, options);
  const TraceComparison found = compare_traces(imported, other.trace);
  std::cout << fmt::format(
      "against {}: {} rows compared as sets, {} equal, {} differ only in equal logits at the last place ({} "
      "rows "
      "have such ties), {} differ\n",
      command.against, found.rows, found.equal, found.equal_but_ties, found.tied_rows, found.different);
  if (found.different > 0) {
    std::cout << fmt::format("first: {}\n", found.first_different);
    return ExitCode::kCheckFailed;
  }
  return ExitCode::kOk;
}

ExitCode import_routing(const ImportCommand& command) {
  for (const auto& [given, option] :
       {std::pair(!command.hidden.empty(), "hidden"), std::pair(command.num_tokens.has_value(), "num_tokens"),
        std::pair(command.layer.has_value(), "layer"), std::pair(!command.ignored.empty(), "ignore")}) {
    if (given) {
      throw InvalidArgument(option, "given",
                            "is for folders with a config.json; of routing all layers are kept");
    }
  }
  ImportOptions options = import_options(command);
  std::optional<ModelConfig> model;
  if (!command.model.empty()) {
    model = read_model_config(command.model);
    const SystemShape& layer = model->layer;
    options.num_experts = options.num_experts ? options.num_experts : layer.num_experts;
    options.num_layers = model->num_layers - std::ssize(model->dense_layers);
    options.top_k = options.top_k ? options.top_k : layer.top_k;
    if (!options.scores) {
      options.scores = layer.gate_mode == GateMode::kSoftmax ? ScoreMode::kSoftmax : ScoreMode::kProbability;
    }
  }
  if (!command.output.empty()) {
    require_layered_trace_name(command.output);
    const OutputFile claimed("output", command.output, input_files(command));
  } else if (command.against.empty()) {
    throw InvalidArgument("output", "none", "must name an .npz to write");
  }
  ImportedTrace imported = import_trace({command.files.begin(), command.files.end()}, options);
  if (model) {
    apply_model(*model, imported);
  }
  if (!command.system.empty()) {
    imported.trace.system = to_string(parse_system(command.system));
  }
  apply_grid(command.grid, imported.trace);
  imported.trace.source = detail::printable(
      fmt::format("moescope import of {}{}", fs::path(command.files.front()).filename().string(),
                  command.files.size() > 1 ? fmt::format(" and {} more", command.files.size() - 1) : ""),
      200);
  for (const std::string& note : imported.notes) {
    std::cout << note << '\n';
  }
  const ExitCode code = command.against.empty() ? ExitCode::kOk : compare_with(imported, command);
  if (code != ExitCode::kOk || command.output.empty()) {
    return code;
  }
  write_layered_trace(imported.trace, command.output);
  const ArrayFile written = read_array_file(command.output);
  const TraceInfo info = trace_info(written, command.output);
  std::cout << fmt::format("\n{}\n\n{}\n", trace_text(info),
                           layer_skew_table(skew_of_layers(written, command.output)).text(stdout_width()));
  if (info.system.empty()) {
    std::cout << "what it is of is not recorded: --system NAME, or --model config.json, says it\n";
  }
  const std::string all = fmt::format("trace:{}#layer=all", command.output);
  const std::string one = fmt::format("trace:{}#layer={}", command.output, info.layers.front());
  std::cout << fmt::format("trace: {}; --workload {} is one layer, {} all of them\n", command.output,
                           shell_word(one), shell_word(all));
  return code;
}

/// Hidden states of --hidden, [tokens, d], with what to say of them.
FileArray read_hidden(const ImportCommand& command, const SystemShape& layer, std::string& about) {
  const ArrayFile file = read_array_file(command.hidden);
  const std::string name = file.has("") ? "" : "hidden_states";
  const FileArray& array = file.get(command.hidden, name);
  if (array.shape.size() < 2 || array.shape.back() != layer.hidden_size) {
    throw FileError(command.hidden, "hidden_states",
                    fmt::format("shape {}: must be [tokens, {}], the hidden_size of the model",
                                detail::shape_text(array.shape), layer.hidden_size));
  }
  const HostTensor checked = array.to_tensor(Dtype::kF32, command.hidden, "hidden_states");  // floats?
  FileArray hidden{array.dtype, {checked.rows(), layer.hidden_size}, array.bytes};
  if (command.num_tokens) {
    if (*command.num_tokens < 1 || *command.num_tokens > checked.rows()) {
      throw InvalidArgument("num_tokens", fmt::to_string(*command.num_tokens),
                            fmt::format("{} has {}", command.hidden, checked.rows()));
    }
    hidden.bytes.resize(hidden.bytes.size() / static_cast<std::size_t>(checked.rows()) *
                        static_cast<std::size_t>(*command.num_tokens));
    hidden.shape[0] = *command.num_tokens;
  }
  about = fmt::format("of {}", detail::printable(fs::path(command.hidden).filename().string()));
  return hidden;
}

/// X ~ N(0, 1) in bf16, as the workloads draw it.
FileArray random_hidden(const ImportCommand& command, const SystemShape& layer, std::string& about) {
  constexpr std::int64_t kTokens = 1024;
  const std::int64_t tokens = command.num_tokens.value_or(kTokens);
  if (tokens < 1 || tokens >= std::int64_t{1} << 31) {
    throw InvalidArgument("num_tokens", fmt::to_string(tokens), "must be in [1, 2^31)");
  }
  HostTensor tensor(Dtype::kBF16, tokens, layer.hidden_size);
  fill_normal(tensor, 1, command.seed, RandomStream::kHiddenStates);
  about = fmt::format("random, N(0, 1), seed {}: not what the model saw", command.seed);
  return {"bf16", {tokens, layer.hidden_size}, {tensor.data(), tensor.data() + tensor.bytes()}};
}

ExitCode import_checkpoint(const ImportCommand& command) {
  if (command.files.size() != 1) {
    throw InvalidArgument("file", fmt::format("{} of them", command.files.size()),
                          "must be one folder with a config.json");
  }
  for (const auto& [given, option] :
       {std::pair(!command.format.empty(), "format"), std::pair(!command.axes.empty(), "axes"),
        std::pair(!command.keys.empty(), "key"), std::pair(command.top_k.has_value(), "top_k"),
        std::pair(command.num_experts.has_value(), "num_experts"),
        std::pair(!command.layers.empty(), "layers"), std::pair(command.padding.has_value(), "padding"),
        std::pair(!command.scores.empty(), "scores"), std::pair(!command.against.empty(), "against"),
        std::pair(!command.model.empty(), "model"), std::pair(!command.grid.empty(), "grid"),
        std::pair(!command.system.empty(), "system")}) {
    if (given) {
      throw InvalidArgument(option, "given", "is for routing; a checkpoint says itself what it is");
    }
  }
  const fs::path folder = command.files.front();
  const ModelConfig config = read_model_config(folder);
  if (!command.layer) {
    throw InvalidArgument("layer", "none",
                          fmt::format("{} has layers 0 to {}: --layer names the one to take", config.path,
                                      config.num_layers - 1));
  }
  if (command.output.empty()) {
    throw InvalidArgument("output", "none", "must name a .safetensors file to write");
  }
  if (fs::path(command.output).extension() != ".safetensors") {
    throw InvalidArgument("output", command.output, "a snapshot must end in .safetensors");
  }
  const OutputFile claimed("output", command.output, input_files(command));
  std::string about;
  FileArray hidden = command.hidden.empty() ? random_hidden(command, config.layer, about)
                                            : read_hidden(command, config.layer, about);
  CheckpointLayer layer = read_checkpoint_layer(folder, *command.layer, command.ignored);
  const std::string dtype = layer.arrays.at("experts.down").dtype;
  const std::int64_t tokens = hidden.shape[0];
  layer.arrays["hidden_states"] = std::move(hidden);
  SystemShape shape = config.layer;
  shape.num_tokens = tokens;
  write_system_snapshot(shape, layer.arrays,
                        {{"layer", fmt::to_string(*command.layer)},
                         {"source", fmt::format("moescope import of {}", config.architecture)},
                         {"hidden_states", about}},
                        command.output);
  for (const std::string& note : layer.notes) {
    std::cout << note << '\n';
  }
  std::cout << fmt::format(
      "{} of {} layers, layer {}: {}, d {}, {} experts of width {}, K {}{}, gates {}, {}, {}\n",
      config.architecture, config.num_layers, *command.layer, to_string(shape.system), shape.hidden_size,
      shape.num_experts, shape.expert_size, shape.top_k,
      shape.shared_size > 0 ? fmt::format(", shared {}", shape.shared_size) : "", to_string(shape.gate_mode),
      to_string(shape.activation), dtype);
  std::cout << fmt::format("hidden states: {} tokens, {}\n", tokens, about);
  std::cout << fmt::format("snapshot: {}; run it with --system {} --workload {}\n", command.output,
                           to_string(shape.system), shell_word("snapshot:" + command.output));
  return ExitCode::kOk;
}

ExitCode import_files(const ImportCommand& command) {
  return is_checkpoint(command.files.front()) ? import_checkpoint(command) : import_routing(command);
}

std::string format_help() {
  std::string text = "format of the files; default: recognised, and said.";
  for (const ImportFormat& format : import_formats()) {
    text += fmt::format("\n{:<14}{}", format.name, format.about);
  }
  return text;
}

}  // namespace

Command add_import(Cli app, const Invocation& /*invocation*/) {
  auto command = std::make_shared<ImportCommand>();
  const Cli sub = app.add_subcommand("import",
                                     "other people's routing as a trace of all layers, or a layer of a "
                                     "Hugging Face checkpoint as a snapshot");
  sub.footer(examples(
      {"moescope import routing.npz --model checkpoint --output mine.npz",
       "moescope import router_logits.npy --top-k 8 --num-experts 64 --system gshard --output mine.npz",
       "moescope import topk.npz --key expert_ids=my_ids --axes tokens,layers,k --num-experts 64 --output "
       "mine.npz",
       "moescope import trace_folder --output mine.npz",
       "moescope import checkpoint --layer 2 --hidden hidden.safetensors --output layer2.safetensors"}));
  sub.add_option("files", command->files,
                 "files of one batch, or a folder: of a checkpoint, or of Megatron traces")
      .required()
      .type_name("FILE");
  sub.add_option("--output", command->output, "the trace (.npz) or snapshot (.safetensors) to write")
      .type_name("FILE");

  const Cli routing = sub.add_option_group("Routing", "What the files do not say themselves");
  routing.add_option("--format", command->format, format_help()).type_name("NAME");
  routing
      .add_option("--axes", command->axes,
                  "order of an array's axes: layers,tokens,k or tokens,layers,k (experts in place of k for "
                  "logits). Default: what can be meant in one way only, and said")
      .type_name("NAMES");
  routing
      .add_option("--key", command->keys,
                  "name of an array in the file: expert_ids=NAME, gates=NAME or logits=NAME; may be repeated")
      .type_name("WHAT=NAME")
      .repeatable();
  routing.add_option("-K,--top-k", command->top_k, "experts per token, of logits and of lists")
      .type_name("N");
  routing.add_option("--num-experts", command->num_experts, "experts of a layer").type_name("N");
  routing
      .add_option("--layers", command->layers, "numbers of the layers, by commas, in the order of the file")
      .type_name("N,...")
      .delimiter(',');
  routing
      .add_option("--padding", command->padding,
                  "id that stands for no expert, e.g. -1: such tokens are left out")
      .type_name("ID");
  routing
      .add_option("--scores", command->scores,
                  "gates from logits: softmax over the selected (default), probability (softmax over all), "
                  "sigmoid or sigmoid_normalised")
      .type_name("NAME");
  routing.add_option("--block", command->block, "Megatron: decoder (default), mtp0, mtp1, ...")
      .type_name("NAME");
  routing.add_option("--system", command->system, "what the routing is of: gshard, deepseekmoe, omnimoe, ...")
      .type_name("NAME");
  routing.add_option("--grid", command->grid, "omnimoe: rows and columns of its router")
      .type_name("ROWSxCOLS");
  routing
      .add_option("--model", command->model,
                  "config.json of the model, or its folder: says system, experts and widths")
      .type_name("FILE");
  routing
      .add_option(
          "--against", command->against,
          "other routing of the same batch: are the selections equal? Exit code 1 when they differ by "
          "more than ties")
      .type_name("FILE");

  const Cli checkpoint = sub.add_option_group("Checkpoint", "For a folder with a config.json");
  checkpoint.add_option("--layer", command->layer, "the layer to take").type_name("N");
  checkpoint
      .add_option("--hidden", command->hidden,
                  "its inputs, hidden_states [tokens, d] in .safetensors, .npz or .npy; default: random")
      .type_name("FILE");
  checkpoint
      .add_option("-L,--num-tokens", command->num_tokens, "tokens (default: all of --hidden, else 1024)")
      .type_name("N");
  checkpoint.add_option("--seed", command->seed, "seed of random inputs (default 0)").type_name("N");
  checkpoint
      .add_option("--ignore", command->ignored,
                  "part of the name of a tensor of the layer that may be left out; may be repeated")
      .type_name("NAME")
      .repeatable();
  return {sub, [command] { return import_files(*command); }};
}

}  // namespace moescope
